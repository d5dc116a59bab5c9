"""Looks at the base paths of models, and says which versions there should be."""

from collections.abc import Callable, Mapping
from pathlib import Path

from serve import log
from serve.config import ModelConfig, versions_on_disk

Want = Callable[[str, Mapping[int, Path]], None]


class Source:
    """The base paths of the configured models. `want` is told each model's wanted versions.

    A base path that cannot be read, or in which no wanted version is left, changes nothing for what serves; its model
    keeps the versions that it had. `as_tf_serving` instead drops a whole look, for all models, if one base path cannot
    be read, and unloads a model whose base path has no version left.
    """

    def __init__(self, want: Want, as_tf_serving: bool = False):
        self._want = want
        self._as_tf_serving = as_tf_serving
        self._configs: dict[str, ModelConfig] = {}
        self._told: dict[str, str] = {}  # the last trouble of each model, so that each is logged once

    @property
    def configs(self) -> Mapping[str, ModelConfig]:
        """The configured models by name."""
        return self._configs

    def configure(self, configs: Mapping[str, ModelConfig]) -> None:
        """Takes another set of models; those that are not in it any more are no longer wanted."""
        for name in self._configs.keys() - configs.keys():
            self._want(name, {})
            self._told.pop(name, None)
        self._configs = dict(configs)

    def look(self) -> list[str]:
        """Looks once at all base paths, and says what is wanted; the models of which no version was found."""
        found = {name: self._found(config) for name, config in self._configs.items()}
        if self._as_tf_serving and None in found.values():
            return [name for name, paths in found.items() if not paths]
        for name, paths in found.items():
            if paths or (paths is not None and self._may_end(self._configs[name])):
                self._want(name, paths)
        return [name for name, paths in found.items() if not paths]

    def _may_end(self, config: ModelConfig) -> bool:
        return self._as_tf_serving or config.policy.specific == frozenset()

    def _found(self, config: ModelConfig) -> dict[int, Path] | None:
        """The wanted versions on disk; None if the base path cannot be read."""
        try:
            paths = versions_on_disk(config.base_path)
        except OSError as error:
            self._tell(config, "base path cannot be read", error.strerror or str(error))
            return None
        wanted = {number: paths[number] for number in config.policy.wanted(paths)}
        absent = (config.policy.specific or frozenset()) - wanted.keys()
        if not paths:
            self._tell(config, "base path has no versions", "")
        elif absent:
            self._tell(config, "versions are not there", ",".join(map(str, sorted(absent))))
        else:
            self._told.pop(config.name, None)
        return wanted

    def _tell(self, config: ModelConfig, event: str, what: str) -> None:
        if self._told.get(config.name) != event + what:
            self._told[config.name] = event + what
            log.warning(event, model=config.name, base_path=config.base_path, what=what or "empty")
