"""Start, serve, drain: the life of the server process."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from serve import (
    config,
    framework,
    grpc_arguments,
    http_limits,
    json_parse,
    lines,
    listeners,
    log,
    memory,
    pages,
    queueing,
    reload,
    rest_calls,
    rest_server,
    tls,
)
from serve.flags import Flags
from serve.health import Health, Healths
from serve.metrics import Metrics
from serve.model import Model
from serve.models import LoadPolicy, Models, Options
from serve.observe import BatchObserver, Observer
from serve.pages import Pages
from serve.request_log import RequestLog, Rotation
from serve.status import invalid

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class _Parts:
    """What the doors of the server share."""

    models: Models
    observer: Observer
    pages: Pages
    healths: Healths | None
    credentials: Any


def serve(flags: Flags, began: float) -> None:
    """Serves until SIGTERM or SIGINT, and drains. `began` is when the process began, in time.monotonic().

    Raises ServingError if the server cannot start; no port is open then.
    """
    _check(flags)
    configs = config.from_flags(flags)
    config.check_logs(configs, from_file=bool(flags.model_config_file))
    metrics_path = pages.metrics_path(flags.monitoring_config_file)
    credentials = tls.credentials(flags.ssl_config_file)
    http = _reserve(flags)
    metrics = Metrics()
    rotation = Rotation(flags.request_log_max_mib * 2**20, flags.request_log_max_age_seconds)
    requests = RequestLog(metrics, rotation)
    observer = Observer(metrics, requests, flags.log_requests)
    models = _models(flags, configs, observer)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: models.stop())
    models.start(flags.file_system_poll_wait_seconds)
    models.watch(requests.follow)
    if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
        polled = reload.ConfigFile(flags.model_config_file, models)
        seconds = flags.model_config_file_poll_wait_seconds
        threading.Thread(target=polled.run, args=(seconds,), name="config-poll", daemon=True).start()
    healths = Healths() if flags.enable_grpc_healthcheck_service else None
    shown = Pages(models, observer.metrics, metrics_path, flags.enable_model_listing)
    parts = _Parts(models, observer, shown, healths, credentials)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(flags, parts, http, began))
    requests.stop()


def _models(flags: Flags, configs: list[config.ModelConfig], observer: Observer) -> Models:
    policy = LoadPolicy(
        flags.max_num_load_retries,
        flags.load_retry_interval_micros / 1e6,
        flags.num_load_threads,
        flags.num_unload_threads,
    )
    options = Options(
        flags.allow_version_labels_for_unavailable_models,
        flags.unload_on_empty_base_path,
        memory.Budget(flags.memory_budget_bytes) if flags.memory_budget_bytes else None,
    )
    return Models(configs, _loader(flags, observer), policy, options)


def _check(flags: Flags) -> None:
    if not flags.port and not flags.grpc_socket_path:
        raise invalid(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
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


def _loader(flags: Flags, observer: Observer) -> Callable[[Path], Model]:
    """What loads a version: its session, then its warm-up."""
    framework.lean()
    from serve import loading, session, warmup

    framework.settle()
    both = flags.tensorflow_session_parallelism
    options = session.SessionOptions(
        tuple(flags.saved_model_tags.split(",")),
        intra_op_threads=flags.tensorflow_intra_op_parallelism or both,
        inter_op_threads=flags.tensorflow_inter_op_parallelism or both,
        check_method_names=flags.enable_signature_method_name_check,
    )

    queue = queueing.maker(flags, BatchObserver(observer.metrics) if flags.monitoring_config_file else None)

    def load(path: Path) -> Model:
        model = loading.load(path, options, prefer_tflite=flags.prefer_tflite_model)
        try:
            if flags.enable_model_warmup and (path / warmup.FILE).is_file():
                with observer.warming(path):
                    warmup.replay(model, path, flags.num_request_iterations_for_warmup)
            return queue(model, path)
        except BaseException:
            model.close()
            raise

    return load


async def _serve(flags: Flags, parts: _Parts, http: socket.socket | None, began: float) -> None:
    stop = asyncio.Event()
    lines.wake_once_a_turn(asyncio.get_running_loop().call_soon)
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if parts.models.stopping:
        log.info("stopped before it was ready")
        return
    grpc_server = _open_grpc(flags, parts)
    http_server = await _open_http(flags, parts, http) if http else None
    log.info(
        "ready",
        address=flags.address,
        grpc=flags.port or flags.grpc_socket_path,
        rest=flags.rest_api_port if http else "off",
        tls="grpc" if parts.credentials else "off",
        metrics=parts.pages.metrics_path or "off",
        seconds=time.monotonic() - began,
    )
    await stop.wait()
    await _give_notice(parts.healths, flags.drain_notice_seconds)
    log.info("draining", seconds=flags.drain_seconds)
    began = time.monotonic()
    await _drain(http_server, grpc_server, flags.drain_seconds)
    log.info("stopped", seconds=time.monotonic() - began)


async def _give_notice(healths: Healths | None, seconds: float) -> None:
    """Says by the health service that the server will end, and serves on for a while."""
    if healths:
        healths.set_all(Health.NOT_SERVING)
    if seconds:
        log.info("stopping soon; still serving", seconds=seconds)
        await asyncio.sleep(seconds)
    if healths:
        healths.end()


def _open_grpc(flags: Flags, parts: _Parts) -> Any:
    from serve import grpc_server, profiler

    server = grpc_server.server(
        parts.models,
        flags.grpc_max_threads or 4 * len(os.sched_getaffinity(0)),
        observer=parts.observer,
        healths=parts.healths,
        is_profiled=flags.enable_profiler and profiler.is_for(flags.address),
        as_content=flags.enable_serialization_as_tensor_content,
        arguments=grpc_arguments.read(flags.grpc_channel_arguments),
        message_bytes_at_most=flags.grpc_message_bytes_at_most,
        calls_at_most=flags.grpc_calls_at_most,
    )
    listeners.open_grpc(server, flags.address, flags.port, flags.grpc_socket_path, parts.credentials)
    return server


async def _open_http(flags: Flags, parts: _Parts, listener: socket.socket) -> rest_server.RestServer:
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
        parts.models,
        limits,
        options,
        threads=flags.rest_api_num_threads,
        cors=flags.rest_api_enable_cors_support,
        observer=parts.observer,
        pages=parts.pages,
    )
    json_parse.limit_depth(flags.json_depth_at_most)
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
