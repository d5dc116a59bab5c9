"""Which models to serve, and which of their versions: from flags, or from a model config file."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve import log, request_log
from serve.flags import Flags
from serve.request_log import Sampling
from serve.status import invalid

_INT64_AT_MOST = 2**63 - 1


@dataclass(frozen=True)
class Policy:
    """Which versions of those on disk are wanted: the latest `latest`, all (0), or only `specific` ones."""

    latest: int = 1
    specific: frozenset[int] | None = None

    def wanted(self, on_disk: Iterable[int]) -> list[int]:
        """The wanted versions among those on disk, highest first."""
        versions = sorted(on_disk, reverse=True)
        if self.specific is not None:
            return [version for version in versions if version in self.specific]
        return versions[: self.latest or None]


@dataclass(frozen=True)
class ModelConfig:
    """A model to serve: its name, the folder above its versions, which versions, what of its requests is logged."""

    name: str
    base_path: Path
    policy: Policy = Policy()
    sampling: Sampling | None = None


def versions_on_disk(base_path: Path) -> dict[int, Path]:
    """The version folders below a base path; a name counts if it is a whole number (`007` is 7).

    Of two names of the same number the one that sorts last wins. Raises OSError if the path cannot be listed.
    """
    children = sorted(child for child in base_path.iterdir() if child.is_dir())
    numbered = {_version(child.name): child for child in children}
    return {version: path for version, path in numbered.items() if version is not None}


def _version(name: str) -> int | None:
    digits = name.removeprefix("-")
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= _INT64_AT_MOST
    return int(name) if is_number else None


def from_flags(flags: Flags) -> list[ModelConfig]:
    """The models that the command line asks for. Raises INVALID_ARGUMENT."""
    if flags.model_config_file:
        return _from_file(flags.model_config_file)
    if not flags.model_base_path:
        raise invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    policy = parse_policy(flags.model_version_policy)
    sampling = None
    if flags.request_log_prefix:
        sampling = request_log.checked(flags.request_log_sampling_rate, flags.request_log_prefix)
    return [ModelConfig(flags.model_name, Path(flags.model_base_path).absolute(), policy, sampling)]


def parse_policy(text: str) -> Policy:
    """Reads `latest`, `latest:N`, `all` or `specific:1,3`."""
    kind, _, numbers = text.partition(":")
    try:
        if kind == "all" and not numbers:
            return Policy(latest=0)
        if kind == "latest":
            return Policy(latest=max(1, int(numbers or 1)))
        if kind == "specific":
            return Policy(specific=frozenset(int(number) for number in numbers.split(",")))
    except ValueError:
        pass
    raise invalid(f"--model_version_policy={text} is none of latest, latest:N, all, specific:1,3")


def _from_file(path: str) -> list[ModelConfig]:
    from tensorflow_serving.config import model_server_config_pb2

    from serve import text_protos

    config = text_protos.read(path, model_server_config_pb2.ModelServerConfig)
    if config.HasField("custom_model_config"):
        raise invalid("custom_model_config is not supported; list the models in model_config_list")
    return models(config.model_config_list.config)


def models(configs: Iterable[Any]) -> list[ModelConfig]:
    """The models of a ModelConfigList's `config`. Raises INVALID_ARGUMENT."""
    found: dict[str, ModelConfig] = {}
    for config in configs:
        if config.name in found:
            raise invalid(f"Illegal to list model {config.name} multiple times in config list")
        _check(config)
        sampling = request_log.sampling(config.logging_config) if config.HasField("logging_config") else None
        found[config.name] = ModelConfig(config.name, Path(config.base_path), _policy(config), sampling)
    return list(found.values())


def _check(config: Any) -> None:
    if config.model_type and config.model_platform:
        raise invalid("Illegal setting both ModelServerConfig::model_type (deprecated) and model_platform.")
    if not config.model_type and not config.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor model_platform."
        )
    platform = config.model_platform or {1: "tensorflow"}.get(config.model_type, "other")
    if platform != "tensorflow":
        raise invalid(f"Model {config.name} requests unsupported platform {platform}")
    if not Path(config.base_path).is_absolute():
        raise invalid(
            f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
        )
    if config.version_labels:
        log.warning("without effect yet", model=config.name, config="version_labels")


def _policy(config: Any) -> Policy:
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return Policy(latest=0)
    if choice == "specific":
        return Policy(specific=frozenset(policy.specific.versions))
    return Policy(latest=max(1, policy.latest.num_versions))
