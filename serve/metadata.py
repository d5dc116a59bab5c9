"""A version's signatures, as GetModelMetadata tells them."""

from typing import Any

from serve.model import Servable


def as_json(servable: Servable) -> bytes:
    """The answer over REST: proto names, defaults printed, int64 as strings."""
    import json

    from google.protobuf import json_format

    signatures = json_format.MessageToDict(
        servable.model.signature_defs,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    spec = {"name": servable.name, "signature_name": "", "version": str(servable.version)}
    answer = {"model_spec": spec, "metadata": {"signature_def": signatures}}
    return json.dumps(answer, indent=1, sort_keys=False).encode() + b"\n"


def fill(servable: Servable, response: Any) -> None:
    """Fills a GetModelMetadataResponse."""
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.metadata["signature_def"].Pack(servable.model.signature_defs)
