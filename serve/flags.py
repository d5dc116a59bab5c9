"""The command line: TF Serving's flags, and a few of this server's own.

`--name=value`, and bare `--name` for a bool. An unknown argument is told and passed over, as TF Serving does.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from serve import log, ranges

USAGE = """usage: python -m serve --model_name=NAME --model_base_path=DIR [--name=value ...]

Serves TensorFlow SavedModels over gRPC and REST as TF Serving does. DIR holds a folder per version
(DIR/1/saved_model.pb); a new one is loaded when it appears, and takes over when it is ready. The ports
open when every model has a version that is available.

  python -m serve --model_name=digits --model_base_path=/models/digits --port=8500 --rest_api_port=8501
  curl -d '{"instances": [1.0, 2.0]}' localhost:8501/v1/models/digits:predict

REST is off unless --rest_api_port is given. Both ports are this machine's own unless --address opens them;
there is no password, and no TLS but gRPC's (--ssl_config_file). SIGTERM refuses new requests, finishes those
that run, and ends at most --drain_seconds (and one) later.

Flags with a * are this server's own; the others, and their defaults, are TF Serving's.
"""


class UsageError(Exception):
    """A value that cannot be read for its flag."""


def _flag(default: Any, group: str, text: str, *, acts: bool = True, own: bool = False) -> Any:
    facts = {"group": group, "help": text, "acts": acts, "own": own}
    return dataclasses.field(default=default, metadata=facts)


def _idle(default: Any, text: str) -> Any:
    """A flag of TF Serving that is accepted and cannot apply here; the text says why."""
    return _flag(default, "Accepted, and without effect here", text, acts=False)


@dataclass(frozen=True)
class Flags:
    """What the command line asks for. Each field is a flag; its metadata is its help."""

    # fmt: off
    model_name: str = _flag("default", "Models", "name of the one model (without --model_config_file)")
    model_base_path: str = _flag("", "Models", "folder above the model's version folders")
    model_version_policy: str = _flag("latest", "Models", "versions of that model to load: latest, latest:N, all, or "
                                      "specific:1,3", own=True)
    model_config_file: str = _flag("", "Models", "text-format ModelServerConfig; replaces the three flags above")
    saved_model_tags: str = _flag("serve", "Models", "comma-separated tags of the meta graph to load")
    prefer_tflite_model: bool = _flag(False, "Models", "serve a version's model.tflite where it has one")
    enable_signature_method_name_check: bool = _flag(False, "Models", "call a signature only by what its method_name "
                                                     "says")
    enable_model_warmup: bool = _flag(True, "Models", "replay assets.extra/tf_serving_warmup_requests before a version "
                                      "is available")
    num_request_iterations_for_warmup: int = _flag(0, "Models", "how often each warm-up record is replayed (0: once)")
    max_num_load_retries: int = _flag(5, "Models", "tries after the first failed load of a version")
    load_retry_interval_micros: int = _flag(60_000_000, "Models", "time between these; negative: none")
    file_system_poll_wait_seconds: int = _flag(1, "Models", "time between looks for versions below the base paths; 0: "
                                               "look once, at the start and for each new config; negative: never")
    model_config_file_poll_wait_seconds: int = _flag(0, "Models", "time between looks at the model config file; 0: it "
                                                     "is read once")
    allow_version_labels_for_unavailable_models: bool = _flag(False, "Models", "let a new label point to a version "
                                                              "that is not available")
    num_load_threads: int = _flag(0, "Models", "threads that load (0: one load at a time, each with all of its tries); "
                                  "the first load takes 4 x CPUs")
    num_unload_threads: int = _flag(0, "Models", "threads that unload (0: one at a time)")
    memory_budget_bytes: int = _flag(0, "Models", "memory of the process above which no further version is loaded: it "
                                     "ends with RESOURCE_EXHAUSTED (0: no bound)", own=True)
    unload_on_empty_base_path: bool = _flag(False, "Models", "as TF Serving: unload a model whose base path is there "
                                            "and has no version left, and drop a look at all base paths if one cannot "
                                            "be read; otherwise neither touches what serves", own=True)

    port: int = _flag(8500, "gRPC", "TCP port; 0: none")
    grpc_socket_path: str = _flag("", "gRPC", "Unix socket to listen on, too")
    grpc_max_threads: int = _flag(0, "gRPC", "threads for large requests and answers, and for calls that run no model "
                                  "(0: 4 x CPUs)")
    ssl_config_file: str = _flag("", "gRPC", "text-format SSLConfig: TLS on the gRPC port and socket; REST is plain "
                                 "HTTP, as in TF Serving")
    enable_grpc_healthcheck_service: bool = _flag(False, "gRPC", "grpc.health.v1.Health for ModelService, "
                                                  "PredictionService and the whole server")
    enable_profiler: bool = _flag(True, "gRPC", "tensorflow.ProfilerService, for TensorBoard's \"capture profile\"; "
                                  "it writes files where clients say, so only where --address is this machine's own")
    grpc_channel_arguments: str = _flag("", "gRPC", "further channel arguments: k=v,k=v; other entries are left "
                                        "out, with a warning")
    enable_serialization_as_tensor_content: bool = _flag(False, "gRPC", "answer in tensor_content, not in typed fields")

    rest_api_port: int = _flag(0, "REST", "HTTP port; 0: REST is off")
    rest_api_num_threads: int = _flag(0, "REST", "threads that read large requests and write large answers (0: 2)")
    rest_api_timeout_in_ms: int = _flag(30_000, "REST", "time that a request may wait and run, once its body was "
                                        "read; reading and writing bodies do not count (--rest_receive_seconds, "
                                        "--rest_send_seconds); 0 or less: no limit")
    rest_api_enable_cors_support: bool = _flag(False, "REST", "add CORS headers to answers")

    enable_batching: bool = _flag(False, "Batching", "join requests as TF Serving does, by the parameters below; "
                                  "without it they are joined as --adaptive_batching says")
    batching_parameters_file: str = _flag("", "Batching", "text-format BatchingParameters; needs --enable_batching")
    enable_per_model_batching_parameters: bool = _flag(False, "Batching", "read batching_params.pbtxt in the version's "
                                                       "folder instead; a version without it is not batched")
    adaptive_batching: bool = _flag(True, "Batching", "join the requests that wait while a model is busy, where its "
                                    "signatures allow; nothing waits for others to come", own=True)
    adaptive_batch_rows: int = _flag(512, "Batching", "rows that are joined at most", own=True)
    adaptive_batch_mb: int = _flag(16, "Batching", "MiB of inputs that are joined at most: what a run needs grows with "
                                   "them", own=True)
    max_waiting_requests: int = _flag(1024, "Batching", "requests that may wait for a version, without "
                                      "--enable_batching; more are refused (429, RESOURCE_EXHAUSTED); 0: no limit",
                                      own=True)
    max_waiting_mb: int = _flag(1024, "Batching", "the same for what these hold, in MiB; 0: no limit", own=True)

    rest_body_bytes_at_most: int = _flag(64 << 20, "Limits", "size of a body (TF Serving: no limit)", own=True)
    rest_inflated_bytes_at_most: int = _flag(64 << 20, "Limits", "size that a gzip body may inflate to", own=True)
    rest_all_bodies_bytes_at_most: int = _flag(512 << 20, "Limits", "size of the bodies of all requests together that "
                                               "arrive or wait", own=True)
    rest_head_bytes_at_most: int = _flag(64 << 10, "Limits", "size of a request's path and headers", own=True)
    rest_requests_at_most: int = _flag(4096, "Limits", "requests under way at once; more get 429", own=True)
    rest_connections_at_most: int = _flag(12_000, "Limits", "open connections (fewer where files are limited); for one "
                                          "more, the one that rests longest is closed", own=True)
    rest_receive_seconds: float = _flag(30.0, "Limits", "time from a request's first byte to its last; each 16 KiB of "
                                        "body give a second more", own=True)
    rest_send_seconds: float = _flag(30.0, "Limits", "time that a client may take nothing of its answer", own=True)
    rest_idle_seconds: float = _flag(3900.0, "Limits", "time that a connection may rest between requests", own=True)
    json_depth_at_most: int = _flag(1_000_000, "Limits", "nesting of a request's JSON", own=True)
    grpc_message_bytes_at_most: int = _flag(2**31 - 1, "Limits", "size of a request over gRPC", own=True)
    grpc_calls_at_most: int = _flag(4096, "Limits", "calls over gRPC under way at once; more get RESOURCE_EXHAUSTED",
                                    own=True)
    enable_model_listing: bool = _flag(False, "REST", "GET /v1/models lists all models with their versions; without "
                                       "this flag it is an error, as in TF Serving", own=True)

    monitoring_config_file: str = _flag("", "Metrics and logs", "text-format MonitoringConfig; with prometheus_config "
                                        "{ enable: true } metrics are shown on the REST port, at "
                                        "/monitoring/prometheus/metrics or its `path`")
    log_format: str = _flag("text", "Metrics and logs", "text or json: a JSON object per line on stderr "
                            "(TensorFlow's own lines stay as they are)", own=True)
    log_requests: bool = _flag(False, "Metrics and logs", "a log line per request: model, code, time, trace; "
                               "never contents", own=True)
    request_log_prefix: str = _flag("", "Metrics and logs", "write a sample of the model's requests and answers to "
                                    "PREFIX.MODEL.*.tfrecord, as PredictionLog; the folder must be there (with "
                                    "--model_config_file: its logging_config, type \"tfrecord\")", own=True)
    request_log_sampling_rate: float = _flag(0.01, "Metrics and logs", "the part that is written: 0 to 1", own=True)
    request_log_max_mib: int = _flag(64, "Metrics and logs", "size at which the next file is begun", own=True)
    request_log_max_age_seconds: int = _flag(3600, "Metrics and logs", "age at which the next file is begun", own=True)

    address: str = _flag("127.0.0.1", "Process", "address that both ports are opened on", own=True)
    drain_seconds: float = _flag(5.0, "Process", "time that running requests have to finish on SIGTERM", own=True)
    drain_notice_seconds: float = _flag(0.0, "Process", "time before that in which requests are still taken, and the "
                                        "health service says NOT_SERVING", own=True)
    tensorflow_session_parallelism: int = _flag(0, "Process", "threads of a session, both kinds (0: automatic)")
    tensorflow_intra_op_parallelism: int = _flag(0, "Process", "threads within an operation (0: automatic)")
    tensorflow_inter_op_parallelism: int = _flag(0, "Process", "operations at once (0: automatic; negative: one "
                                                 "after another, in the caller's thread)")
    flush_filesystem_caches: bool = _flag(True, "Process", "accepted; nothing is kept that could be flushed")
    version: bool = _flag(False, "Process", "print versions and end")
    help: bool = _flag(False, "Process", "print this text and end")

    per_process_gpu_memory_fraction: float = _idle(0.0, "memory of GPUs is TensorFlow's to take")
    thread_pool_factory_config_file: str = _idle("", "thread pools are TensorFlow's own")
    remove_unused_fields_from_bundle_metagraph: bool = _idle(True, "nothing of the kind is kept")
    enforce_session_run_timeout: bool = _idle(True, "a run cannot be interrupted; who waits for it is answered in time")
    xla_cpu_compilation_enabled: bool = _idle(False, "models are compiled as they were exported")
    xla_gpu_compilation_enabled: bool = _idle(False, "models are compiled as they were exported")
    mixed_precision: str = _idle("", "models run as they were exported")
    skip_initialize_tpu: bool = _idle(False, "there is no TPU")

    # fmt: on


@dataclass(frozen=True)
class CommandLine:
    """A command line that was read: its flags, what was not known, what has no effect yet."""

    flags: Flags
    unknown: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


_FIELDS = {field.name: field for field in dataclasses.fields(Flags)}


def parse(arguments: Sequence[str]) -> CommandLine:
    """Reads a command line. Raises UsageError for a value that its flag cannot take."""
    values: dict[str, Any] = {}
    unknown, idle = [], []
    for argument in arguments:
        name, given, text = argument.removeprefix("--").partition("=")
        field = _FIELDS.get(name)
        if field is None or not argument.startswith("--"):
            unknown.append(argument)
            continue
        values[name] = _READERS[field.type](name, text if given else None)
        if not field.metadata["acts"]:
            idle.append(name)
    flags = Flags(**values)
    _check(flags)
    return CommandLine(flags, tuple(unknown), tuple(idle))


def _check(flags: Flags) -> None:
    if flags.log_format not in log.FORMATS:
        raise UsageError(f"--log_format is {' or '.join(log.FORMATS)}, and not {flags.log_format!r}")
    for name in ranges.RANGES:
        told = ranges.fault(name, getattr(flags, name))
        if told:
            raise UsageError(told)


def _text(name: str, text: str | None) -> str:
    if text is None:
        raise UsageError(f"--{name} wants a value: --{name}=VALUE")
    return text


def _bool(name: str, text: str | None) -> bool:
    words = {None: True, "true": True, "1": True, "false": False, "0": False}
    if text is not None:
        text = text.lower()
    if text not in words:
        raise UsageError(f"--{name} is true or false, and not {text!r}")
    return words[text]


def _number(kind: Callable[[str], Any], what: str) -> Callable[[str, str | None], Any]:
    def read(name: str, text: str | None) -> Any:
        try:
            return kind(_text(name, text))
        except ValueError:
            raise UsageError(f"--{name} is {what}, and not {text!r}") from None

    return read


_READERS: dict[Any, Callable[[str, str | None], Any]] = {
    str: _text,
    bool: _bool,
    int: _number(int, "a whole number"),
    float: _number(float, "a number"),
}


def usage() -> str:
    """The help text: flags by group, with their defaults."""
    groups: dict[str, list[str]] = {}
    for field in _FIELDS.values():
        groups.setdefault(field.metadata["group"], []).append(_line(field))
    return USAGE + "".join(f"\n{group}\n" + "".join(lines) for group, lines in groups.items())


def _line(field: dataclasses.Field) -> str:
    default = str(field.default).lower() if field.type is bool else field.default
    shown = f"{'*' if field.metadata['own'] else ' '} --{field.name}={default}"
    text = textwrap.wrap(field.metadata["help"], 66)
    gap = "\n" + " " * 42
    return (f"{shown:<42}" if len(shown) < 42 else shown + gap) + gap.join(text) + "\n"
