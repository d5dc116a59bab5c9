"""Files in protobuf's text format, and the messages for them that TF Serving's Python package lacks.

Names and types are those of TF Serving's session_bundle_config.proto, monitoring_config.proto and ssl_config.proto.
"""

import sys
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from serve import protos
from serve.status import invalid

_MESSAGES = {
    # Text names its fields, so the numbers of the last two, which TF Serving added later, are of no account here.
    "BatchingParameters": """
        google.protobuf.Int64Value max_batch_size 1
        google.protobuf.Int64Value batch_timeout_micros 2
        google.protobuf.Int64Value max_enqueued_batches 3
        google.protobuf.Int64Value num_batch_threads 4
        google.protobuf.StringValue thread_pool_name 5
        repeated_int64 allowed_batch_sizes 6
        bool pad_variable_length_inputs 7
        google.protobuf.BoolValue enable_large_batch_splitting 8
        google.protobuf.Int64Value max_execution_batch_size 9
    """,
    "PrometheusConfig": """
        bool enable 1
        string path 2
    """,
    "MonitoringConfig": """
        tensorflow.serving.PrometheusConfig prometheus_config 1
    """,
    "SSLConfig": """
        string server_key 1
        string server_cert 2
        string custom_ca 3
        bool client_verify 4
    """,
}


def read(path: str | Path, kind: type) -> Any:
    """The message of that kind in a text-format file. Raises INVALID_ARGUMENT; what is wrong in it goes to stderr."""
    message = kind()
    try:
        text_format.Parse(Path(path).read_bytes().decode(), message)
    except (OSError, ValueError, text_format.ParseError) as error:
        name = message.DESCRIPTOR.full_name
        print(f"Error parsing text-format {name}: {_reason(error)}", file=sys.stderr, flush=True)
        raise invalid(f"Invalid protobuf file: '{path}'") from error
    return message


def _reason(error: Exception) -> object:
    if not isinstance(error, UnicodeDecodeError):
        return error
    at = error.start
    return (
        f"byte {at} of the file is {error.object[at]:#04x} and no UTF-8; write it in protobuf's text format"
    )


_KINDS = protos.make("tensorflow.serving", _MESSAGES)
BatchingParameters = _KINDS["BatchingParameters"]
MonitoringConfig = _KINDS["MonitoringConfig"]
PrometheusConfig = _KINDS["PrometheusConfig"]
SSLConfig = _KINDS["SSLConfig"]
