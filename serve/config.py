"""Which models to serve, and which of their versions: from flags, or from a model config file."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve import sampling
from serve.flags import Flags
from serve.sampling import Sampling
from serve.status import invalid

_INT64_AT_MOST = 2**63 - 1
_PLATFORM = "tensorflow"
_FILE = "file://"


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
    """A model to serve: its name, the folder above its versions, which versions, their labels, what is logged of it."""

    name: str
    base_path: Path
    policy: Policy = Policy()
    labels: Mapping[str, int] = field(default_factory=dict)
    sampling: Sampling | None = None


def versions_on_disk(base_path: Path) -> dict[int, Path]:
    """The versions below a base path; any child counts whose whole name is a number (`007` is 7).

    Of two names of the same number the one that sorts last wins. Raises OSError if the path cannot be listed.
    """
    numbered = {_version(name): base_path / name for name in sorted(os.listdir(base_path))}  # noqa: PTH208 (ten times faster)
    return {version: path for version, path in numbered.items() if version is not None}


def _version(name: str) -> int | None:
    digits = name.removeprefix("-")
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) <= _INT64_AT_MOST
    return int(name) if is_number else None


def from_flags(flags: Flags) -> list[ModelConfig]:
    """The models that the command line asks for. Raises INVALID_ARGUMENT."""
    if flags.model_config_file:
        return read_file(flags.model_config_file) or []
    if not flags.model_base_path:
        raise invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    policy = parse_policy(flags.model_version_policy)
    logged = None
    if flags.request_log_prefix:
        logged = sampling.checked(flags.request_log_sampling_rate, flags.request_log_prefix)
    return [ModelConfig(flags.model_name, Path(flags.model_base_path).absolute(), policy, sampling=logged)]


def check_logs(configs: Iterable[ModelConfig], from_file: bool) -> None:
    """Raises INVALID_ARGUMENT for a request log that cannot be written, naming the flag, or the file's field."""
    for config in configs:
        reason = config.sampling and sampling.trouble(config.sampling.prefix)
        if config.sampling and reason:
            place = f"model {config.name}: filename_prefix: " if from_file else "--request_log_prefix="
            remedy = "Make the folder and let the server write into it, or choose another prefix"
            raise invalid(f"{place}{config.sampling.prefix} cannot be written: {reason}. {remedy}")


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


def read_file(path: str, known: Iterable[str] = ()) -> list[ModelConfig] | None:
    """The models of a text-format ModelServerConfig; None if it says nothing. Raises INVALID_ARGUMENT.

    What protobuf cannot read is told on stderr in its C++ library's words, as TF Serving's clients look for these.
    """
    from tensorflow_serving.config import model_server_config_pb2

    from serve import text_protos

    config = text_protos.read(path, model_server_config_pb2.ModelServerConfig)
    if config.HasField("custom_model_config"):
        raise invalid("custom_model_config is not supported; list the models in model_config_list")
    return models(config.model_config_list.config, known) if config.HasField("model_config_list") else None


def models(configs: Iterable[Any], known: Iterable[str] = ()) -> list[ModelConfig]:
    """The models of a ModelConfigList's `config`. `known` are those served now. Raises INVALID_ARGUMENT."""
    listed = list(configs)
    names = [config.name for config in listed]
    for config in listed:
        if names.count(config.name) > 1:
            raise invalid(f"Illegal to list model {config.name} multiple times in config list")
        _check_base_path(config)
    for config in listed:
        _check_platform(config, config.name in known)
    return [
        ModelConfig(
            config.name,
            Path(config.base_path.removeprefix(_FILE)),
            _policy(config),
            dict(config.version_labels),
            sampling.read(config.logging_config) if config.HasField("logging_config") else None,
        )
        for config in listed
    ]


def _check_base_path(config: Any) -> None:
    path = config.base_path.removeprefix(_FILE)
    if "://" in path:
        raise invalid(f"model {config.name}: this server reads local folders only; got base_path()={path}")
    if "\0" in path:
        raise invalid(f"model {config.name}: no file's path has a null character; got base_path()={path!r}")
    if not Path(path).is_absolute():
        raise invalid(
            f"Expected model {config.name} to have an absolute path or URI; got base_path()={config.base_path}"
        )


def _check_platform(config: Any, is_known: bool) -> None:
    both = "ModelServerConfig::model_type (deprecated) {} ModelServerConfig::model_platform."
    if config.model_type and config.model_platform:
        raise invalid("Illegal setting both " + both.format("and"))
    if not config.model_type and not config.model_platform:
        raise invalid("Illegal setting neither " + both.format("nor"))
    platform = config.model_platform or {1: _PLATFORM}.get(config.model_type, "other")
    if platform != _PLATFORM and is_known:
        raise invalid(
            f"Illegal to change a model's platform. For model {config.name} platform was {_PLATFORM} "
            f"and new platform requested is {platform}"
        )
    if platform != _PLATFORM:
        raise invalid(f"Model {config.name} requests unsupported platform {platform}")


def _policy(config: Any) -> Policy:
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return Policy(latest=0)
    if choice == "specific":
        return Policy(specific=frozenset(policy.specific.versions))
    return Policy(latest=max(1, policy.latest.num_versions))
