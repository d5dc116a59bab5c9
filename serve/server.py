"""Start, serve, drain: the life of the server process."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from serve import config, framework, listeners, log, rest_server
from serve.flags import Flags
from serve.model import Model
from serve.models import LoadPolicy, Models
from serve.status import Code, ServingError, invalid

# Longer than the hour that Envoy keeps an idle connection: if clients close first, no request is on its way.
_KEEP_ALIVE_S = 3900
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
    from serve import grpc_prediction, session, warmup

    both = flags.tensorflow_session_parallelism
    options = session.SessionOptions(
        tuple(flags.saved_model_tags.split(",")),
        intra_op_threads=flags.tensorflow_intra_op_parallelism or both,
        inter_op_threads=flags.tensorflow_inter_op_parallelism or both,
    )

    def load(path: Path) -> Model:
        model = session.load(path, options)
        if not flags.enable_model_warmup:
            return model
        try:
            warmup.replay(model, path, grpc_prediction.read_predict, flags.num_request_iterations_for_warmup)
        except BaseException:
            model.close()
            raise
        return model

    return load


async def _serve(flags: Flags, models: Models, http: socket.socket | None, began: float) -> None:
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if models.stopping:
        log.info("stopped before it was ready")
        return
    http_server, grpc_server = _open(flags, models, http)
    waiting: list[asyncio.Task] = [asyncio.create_task(stop.wait())]
    if http_server and http:
        waiting.append(asyncio.create_task(http_server.serve(sockets=[http])))
    log.info(
        "ready",
        address=flags.address,
        grpc=flags.port or flags.grpc_socket_path,
        rest=flags.rest_api_port if http else "off",
        seconds=time.monotonic() - began,
    )
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    log.info("draining", seconds=flags.drain_seconds)
    await _drain(http_server, grpc_server, waiting[1:], flags.drain_seconds)
    log.info("stopped")


def _open(flags: Flags, models: Models, http: socket.socket | None) -> tuple["_RestServer | None", Any]:
    from serve import grpc_server

    if http:
        listeners.open_http(http)
    arguments = grpc_server.channel_arguments(flags.grpc_channel_arguments)
    server = grpc_server.server(
        models,
        _threads(flags.grpc_max_threads),
        as_content=flags.enable_serialization_as_tensor_content,
        arguments=arguments,
    )
    listeners.open_grpc(server, flags.address, flags.port, flags.grpc_socket_path)
    return (_rest_server(flags, models) if http else None), server


def _threads(asked: int) -> int:
    return asked or 4 * len(os.sched_getaffinity(0))


class _RestServer(uvicorn.Server):
    """uvicorn, without its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _rest_server(flags: Flags, models: Models) -> _RestServer:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    timeout_s = flags.rest_api_timeout_in_ms / 1000 if flags.rest_api_timeout_in_ms > 0 else None
    pool = ThreadPoolExecutor(_threads(flags.rest_api_num_threads), thread_name_prefix="rest")
    application = rest_server.Application(models, pool, timeout_s, flags.rest_api_enable_cors_support)
    settings = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(flags.drain_seconds),
    )
    return _RestServer(settings)


async def _drain(http_server: Any, grpc_server: Any, tasks: list[asyncio.Task], seconds: float) -> None:
    """Refuses new requests, and gives those that run `seconds` to finish."""
    grpc_stopped = grpc_server.stop(seconds)
    if http_server:
        http_server.should_exit = True
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, grpc_stopped.wait, seconds + 0.5)
    if tasks:
        await asyncio.wait(tasks, timeout=seconds + 0.5)
