"""Labels of versions: which may be given, by TF Serving's rules."""

from collections.abc import Callable, Iterable, Mapping

from serve.config import ModelConfig
from serve.status import Code, ServingError

Labels = Mapping[str, Mapping[str, int]]


def checked(
    configs: Iterable[ModelConfig],
    old: Labels,
    available: Callable[[str, int], bool],
    unavailable_allowed: bool,
) -> Labels:
    """The labels of a config: model -> label -> version. Raises FAILED_PRECONDITION.

    A label goes to a version that is available now. With `unavailable_allowed` (the flag
    allow_version_labels_for_unavailable_models) a new or unchanged one may go anywhere; one in use still may not move
    to a version that is not available.
    """
    labels = {config.name: dict(config.labels) for config in configs if config.labels}
    for name, wanted in labels.items():
        for label, version in wanted.items():
            moved = old.get(name, {}).get(label, version) != version
            if not available(name, version) and (moved or not unavailable_allowed):
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {name}, "
                    "which is not currently available for inference",
                )
    return labels
