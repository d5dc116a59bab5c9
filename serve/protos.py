"""Protocol messages that no installed package brings, made from descriptors at run time.

Each in a pool of its own, so that a package that brings them one day is not in the way.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_FIELD = descriptor_pb2.FieldDescriptorProto
_REPEATED = "repeated_"


def make(package: str, messages: Mapping[str, str]) -> dict[str, Any]:
    """The message classes by name. A message's text has a line per field: `TYPE NAME NUMBER`.

    TYPE is a scalar (`int64`), `repeated_` and one, or a message's full name: one of these, or of wrappers.proto.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"serve/{package}.proto",
        package=package,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, text in messages.items():
        file.message_type.add(name=name, field=_fields(text))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    found = {name: pool.FindMessageTypeByName(f"{package}.{name}") for name in messages}
    return {name: message_factory.GetMessageClass(message) for name, message in found.items()}


def _fields(text: str) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    for line in filter(None, map(str.strip, text.splitlines())):
        kind, name, number = line.split()
        field = _FIELD(name=name, number=int(number), label=_FIELD.LABEL_OPTIONAL)
        if kind.startswith(_REPEATED):
            field.label = _FIELD.LABEL_REPEATED
        if "." in kind:
            field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{kind}"
        else:
            field.type = _FIELD.Type.Value(f"TYPE_{kind.removeprefix(_REPEATED).upper()}")
        yield field
