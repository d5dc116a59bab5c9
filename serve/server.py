"""Start, serve, drain: the life of the server process."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from serve import config, framework, http_limits, listeners, log, queues, rest_calls, rest_server
from serve.flags import Flags
from serve.model import Model
from serve.models import LoadPolicy, Models
from serve.status import Code, ServingError, invalid

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(flags: Flags, began: float) -> None:
    """Serves until SIGTERM or SIGINT, and drains. `began` is when the process began, in time.monotonic().

    Raises ServingError if the server cannot start; no port is open then.
    """
    _check(flags)
    configs = config.from_flags(flags)
    http = _reserve(flags)
    policy = LoadPolicy(flags.max_num_load_retries, flags.load_retry_interval_micros / 1e6)
    models = Models(configs, _loader(flags), policy)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: models.stop())
    models.start(flags.file_system_poll_wait_seconds)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(flags, models, http, began))


def _check(flags: Flags) -> None:
    if not flags.port and not flags.grpc_socket_path:
        raise invalid(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
    if flags.ssl_config_file:
        # Whoever asks for TLS must not get plain text in its place.
        raise ServingError(Code.UNIMPLEMENTED, "--ssl_config_file: this server cannot do TLS yet")
    if flags.batching_parameters_file and not flags.enable_batching:
        raise invalid(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    if (
        flags.tensorflow_session_parallelism
        and flags.tensorflow_intra_op_parallelism
        and flags.tensorflow_inter_op_parallelism
    ):
        raise invalid(
            "tensorflow_session_parallelism replaces the intra_op and inter_op flags; set it or these"
        )


def _reserve(flags: Flags) -> socket.socket | None:
    """Finds taken ports before models load; keeps the HTTP port, and leaves the other to gRPC."""
    if flags.port:
        listeners.reserve(flags.address, flags.port).close()
    if flags.rest_api_port and flags.rest_api_port == flags.port:
        log.error("REST is off", reason=f"port {flags.port} is gRPC's")
        return None
    return listeners.reserve(flags.address, flags.rest_api_port) if flags.rest_api_port else None


def _loader(flags: Flags) -> Callable[[Path], Model]:
    """What loads a version: its session, then its warm-up."""
    framework.lean()
    from serve import loading, session, warmup

    both = flags.tensorflow_session_parallelism
    options = session.SessionOptions(
        tuple(flags.saved_model_tags.split(",")),
        intra_op_threads=flags.tensorflow_intra_op_parallelism or both,
        inter_op_threads=flags.tensorflow_inter_op_parallelism or both,
        check_method_names=flags.enable_signature_method_name_check,
    )

    queue_options = queues.Options(flags.adaptive_batching)

    def load(path: Path) -> Model:
        model = loading.load(path, options, prefer_tflite=flags.prefer_tflite_model)
        try:
            if flags.enable_model_warmup:
                warmup.replay(model, path, flags.num_request_iterations_for_warmup)
            return queues.queued(model, f"{path.parent.name}/{path.name}", queue_options)
        except BaseException:
            model.close()
            raise

    return load


async def _serve(flags: Flags, models: Models, http: socket.socket | None, began: float) -> None:
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if models.stopping:
        log.info("stopped before it was ready")
        return
    http_server = await _open_http(flags, models, http) if http else None
    grpc_server = _open_grpc(flags, models)
    log.info(
        "ready",
        address=flags.address,
        grpc=flags.port or flags.grpc_socket_path,
        rest=flags.rest_api_port if http else "off",
        seconds=time.monotonic() - began,
    )
    await stop.wait()
    log.info("draining", seconds=flags.drain_seconds)
    await _drain(http_server, grpc_server, flags.drain_seconds)
    log.info("stopped")


def _open_grpc(flags: Flags, models: Models) -> Any:
    from serve import grpc_server

    arguments = grpc_server.channel_arguments(flags.grpc_channel_arguments)
    server = grpc_server.server(
        models,
        flags.grpc_max_threads or 4 * len(os.sched_getaffinity(0)),
        as_content=flags.enable_serialization_as_tensor_content,
        arguments=arguments,
    )
    listeners.open_grpc(server, flags.address, flags.port, flags.grpc_socket_path)
    return server


async def _open_http(flags: Flags, models: Models, listener: socket.socket) -> rest_server.RestServer:
    limits = http_limits.Limits(
        head_bytes=flags.rest_head_bytes_at_most,
        body_bytes=flags.rest_body_bytes_at_most,
        all_bodies_bytes=flags.rest_all_bodies_bytes_at_most,
        connections=flags.rest_connections_at_most,
        receive_s=flags.rest_receive_seconds,
        send_s=flags.rest_send_seconds,
        idle_s=flags.rest_idle_seconds,
    )
    options = rest_calls.Options(
        timeout_s=flags.rest_api_timeout_in_ms / 1000 if flags.rest_api_timeout_in_ms > 0 else None,
        requests_at_most=flags.rest_requests_at_most,
        inflated_bytes=flags.rest_inflated_bytes_at_most,
    )
    server = rest_server.RestServer(
        models, limits, options, threads=flags.rest_api_num_threads, cors=flags.rest_api_enable_cors_support
    )
    listeners.open_http(listener)
    await server.start(listener)
    return server


async def _drain(http_server: rest_server.RestServer | None, grpc_server: Any, seconds: float) -> None:
    """Refuses new requests, and gives those that run `seconds` to finish."""
    grpc_stopped = grpc_server.stop(seconds)
    waiting = [asyncio.get_running_loop().run_in_executor(None, grpc_stopped.wait, seconds + 0.5)]
    if http_server:
        waiting.append(asyncio.ensure_future(http_server.drain(seconds)))
    await asyncio.gather(*waiting)
