"""Files in protobuf's text format, and the messages for them that TF Serving's Python package lacks.

The messages are made from descriptors at run time, in a pool of their own: a later release of the package may bring
them itself. Names and types are those of TF Serving's session_bundle_config.proto, monitoring_config.proto and
ssl_config.proto.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from serve.status import invalid

_PACKAGE = "tensorflow.serving"
_KINDS = descriptor_pb2.FieldDescriptorProto
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
        text_format.Parse(Path(path).read_bytes(), message)
    except (OSError, ValueError, text_format.ParseError) as error:
        name = message.DESCRIPTOR.full_name
        print(f"Error parsing text-format {name}: {error}", file=sys.stderr, flush=True)
        raise invalid(f"Invalid protobuf file: '{path}'") from error
    return message


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="serve/text_protos.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, text in _MESSAGES.items():
        file.message_type.add(name=name, field=_fields(text))
    return file


def _fields(text: str) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    for line in text.split("\n"):
        if not line.strip():
            continue
        kind, name, number = line.split()
        field = _KINDS(name=name, number=int(number), label=_KINDS.LABEL_OPTIONAL)
        if kind.startswith("repeated_"):
            field.label = _KINDS.LABEL_REPEATED
        if "." in kind:
            field.type, field.type_name = _KINDS.TYPE_MESSAGE, f".{kind}"
        else:
            field.type = _KINDS.Type.Value(f"TYPE_{kind.removeprefix('repeated_').upper()}")
        yield field


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_file().SerializeToString())
    return pool


_POOL = _pool()


def _kind(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


BatchingParameters = _kind("BatchingParameters")
MonitoringConfig = _kind("MonitoringConfig")
PrometheusConfig = _kind("PrometheusConfig")
SSLConfig = _kind("SSLConfig")
