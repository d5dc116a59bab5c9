"""What a request's model_spec asks for."""

from typing import Any

from serve.model import Servable
from serve.models import Lease, Models
from serve.status import invalid


def required(request: Any) -> Any:
    """The request's model_spec. Raises INVALID_ARGUMENT where it has none."""
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def find(models: Models, request: Any) -> Servable:
    """The servable that is meant, to be looked at. Raises INVALID_ARGUMENT or NOT_FOUND."""
    return models.find(*_asked(required(request)))


def acquire(models: Models, spec: Any) -> Lease:
    """The servable that a model_spec means, to be run."""
    return models.acquire(*_asked(spec))


def _asked(spec: Any) -> tuple[str, int | None, str]:
    if not spec.name:
        raise invalid("ModelSpec has no name specified.")
    return spec.name, version(spec), spec.version_label


def version(spec: Any) -> int | None:
    """The version that is named; None where none is."""
    return spec.version.value if spec.HasField("version") else None


def answer(servable: Servable, response: Any) -> Any:
    """The response (or a part of one) with the name and version of what answered."""
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    return response
