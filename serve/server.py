"""Start, serve, drain: the life of the server process."""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from serve import config, framework, listeners, log, memory, pages, reload, rest_server, tls
from serve.flags import Flags
from serve.health import Health, Healths
from serve.metrics import Metrics
from serve.model import Model
from serve.models import LoadPolicy, Models, Options
from serve.observe import Observer
from serve.pages import Pages
from serve.request_log import RequestLog, Rotation
from serve.status import invalid

# Longer than the hour that Envoy keeps an idle connection: if clients close first, no request is on its way.
_KEEP_ALIVE_S = 3900
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

    both = flags.tensorflow_session_parallelism
    options = session.SessionOptions(
        tuple(flags.saved_model_tags.split(",")),
        intra_op_threads=flags.tensorflow_intra_op_parallelism or both,
        inter_op_threads=flags.tensorflow_inter_op_parallelism or both,
        check_method_names=flags.enable_signature_method_name_check,
    )

    def load(path: Path) -> Model:
        model = loading.load(path, options, prefer_tflite=flags.prefer_tflite_model)
        if not flags.enable_model_warmup or not (path / warmup.FILE).is_file():
            return model
        try:
            with observer.warming(path):
                warmup.replay(model, path, flags.num_request_iterations_for_warmup)
        except BaseException:
            model.close()
            raise
        return model

    return load


async def _serve(flags: Flags, parts: _Parts, http: socket.socket | None, began: float) -> None:
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if parts.models.stopping:
        log.info("stopped before it was ready")
        return
    http_server, grpc_server = _open(flags, parts, http)
    waiting: list[asyncio.Task] = [asyncio.create_task(stop.wait())]
    if http_server and http:
        waiting.append(asyncio.create_task(http_server.serve(sockets=[http])))
    log.info(
        "ready",
        address=flags.address,
        grpc=flags.port or flags.grpc_socket_path,
        rest=flags.rest_api_port if http else "off",
        tls="grpc" if parts.credentials else "off",
        metrics=parts.pages.metrics_path or "off",
        seconds=time.monotonic() - began,
    )
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    await _give_notice(parts.healths, flags.drain_notice_seconds)
    log.info("draining", seconds=flags.drain_seconds)
    began = time.monotonic()
    await _drain(http_server, grpc_server, waiting[1:], flags.drain_seconds)
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


def _open(flags: Flags, parts: _Parts, http: socket.socket | None) -> tuple["_RestServer | None", Any]:
    from serve import grpc_server

    if http:
        listeners.open_http(http)
    arguments = grpc_server.channel_arguments(flags.grpc_channel_arguments)
    server = grpc_server.server(
        parts.models,
        _threads(flags.grpc_max_threads),
        observer=parts.observer,
        healths=parts.healths,
        as_content=flags.enable_serialization_as_tensor_content,
        arguments=arguments,
    )
    listeners.open_grpc(server, flags.address, flags.port, flags.grpc_socket_path, parts.credentials)
    return (_rest_server(flags, parts) if http else None), server


def _threads(asked: int) -> int:
    return asked or 4 * len(os.sched_getaffinity(0))


class _RestServer(uvicorn.Server):
    """uvicorn, without its own signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _rest_server(flags: Flags, parts: _Parts) -> _RestServer:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    timeout_s = flags.rest_api_timeout_in_ms / 1000 if flags.rest_api_timeout_in_ms > 0 else None
    pool = ThreadPoolExecutor(_threads(flags.rest_api_num_threads), thread_name_prefix="rest")
    application = rest_server.Application(
        parts.models, pool, timeout_s, flags.rest_api_enable_cors_support, parts.observer, parts.pages
    )
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
