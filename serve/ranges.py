"""The numbers that flags may have: beyond them threads, timers or the libraries below would fail without a word."""

_INT32_AT_MOST = 2**31 - 1
_INT64_AT_MOST = 2**63 - 1

THREADS_AT_MOST = 4096
"""More than any machine has processors; each takes address space, and systems bound how many there may be."""

MICROS_AT_MOST = 10**15
"""31 years. Python's timers take ten times as much."""

_PORT = (0, 65_535)
_THREADS = (0, THREADS_AT_MOST)
_INT32 = (-_INT32_AT_MOST - 1, _INT32_AT_MOST)
_COUNT = (0, _INT32_AT_MOST)
_LIMIT = (1, _INT32_AT_MOST)
_BYTES = (1, _INT64_AT_MOST)
_TIME_LIMIT_S = (0.001, _INT32_AT_MOST)

RANGES: dict[str, tuple[float, float]] = {
    "port": _PORT,
    "rest_api_port": _PORT,
    "num_request_iterations_for_warmup": _INT32,
    "max_num_load_retries": _COUNT,
    "load_retry_interval_micros": (-MICROS_AT_MOST, MICROS_AT_MOST),
    "file_system_poll_wait_seconds": _INT32,
    "model_config_file_poll_wait_seconds": _INT32,
    "num_load_threads": _THREADS,
    "num_unload_threads": _THREADS,
    "memory_budget_bytes": (0, _INT64_AT_MOST),
    "grpc_max_threads": _THREADS,
    "rest_api_num_threads": _THREADS,
    "rest_api_timeout_in_ms": _INT32,
    "adaptive_batch_rows": _COUNT,
    "adaptive_batch_mb": _COUNT,
    "max_waiting_requests": _COUNT,
    "max_waiting_mb": _COUNT,
    "rest_body_bytes_at_most": _BYTES,
    "rest_inflated_bytes_at_most": _BYTES,
    "rest_all_bodies_bytes_at_most": _BYTES,
    "rest_head_bytes_at_most": _BYTES,
    "rest_requests_at_most": _LIMIT,
    "rest_connections_at_most": _LIMIT,
    "rest_receive_seconds": _TIME_LIMIT_S,
    "rest_send_seconds": _TIME_LIMIT_S,
    "rest_idle_seconds": _TIME_LIMIT_S,
    "json_depth_at_most": _LIMIT,
    "grpc_message_bytes_at_most": _LIMIT,
    "grpc_calls_at_most": _LIMIT,
    "request_log_sampling_rate": (0, 1),
    "request_log_max_mib": _LIMIT,
    "request_log_max_age_seconds": _LIMIT,
    "drain_seconds": _COUNT,
    "drain_notice_seconds": _COUNT,
    "tensorflow_session_parallelism": _THREADS,
    "tensorflow_intra_op_parallelism": _THREADS,
    # TensorFlow runs operations in the caller's thread where this is negative.
    "tensorflow_inter_op_parallelism": (-_INT32_AT_MOST - 1, THREADS_AT_MOST),
}


def fault(name: str, value: float) -> str | None:
    """What to say of a flag's number that is out of its range, or is none (nan)."""
    least, most = RANGES[name]
    if least <= value <= most:
        return None
    return f"--{name} is {value}; give a number from {least} to {most}"
