"""The models that are served: what there should be, what there is, and the version that a request means."""

import os
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve import labels, log
from serve.config import ModelConfig
from serve.leases import Lease, Routes
from serve.manager import LoadPolicy, Manager
from serve.memory import Budget
from serve.model import Model, Servable
from serve.sources import Source
from serve.status import Code, ServingError
from serve.versions import State, Version

__all__ = ["Lease", "LoadPolicy", "Models", "NotAvailable", "Options", "State", "Version"]

_LOOK_FOR_LEFT_CLIENTS_S = 0.5

Configs = Mapping[str, ModelConfig]


@dataclass(frozen=True)
class Options:
    """What else may be chosen: labels for versions that are not available; TF Serving's way with an empty base path;
    a bound for memory."""

    unavailable_labels: bool = False
    unload_on_empty_base_path: bool = False
    budget: Budget | None = None


class NotAvailable(ServingError):
    """A model has no version that could be loaded."""


class Models:
    """All models and their versions. Safe to use from several threads."""

    def __init__(
        self,
        configs: Iterable[ModelConfig],
        load: Callable[[Path], Model],
        policy: LoadPolicy,
        options: Options | None = None,
    ):
        self._options = options or Options()
        self._routes = Routes()
        self._manager = Manager(load, self._routes, policy, self._options.budget)
        self._source = Source(self._manager.want, self._options.unload_on_empty_base_path)
        self._first = list(configs)
        self._watchers: list[Callable[[Configs], None]] = []
        self._poll_s = 0.0
        self._applying = threading.Lock()  # one look at the file system, or one new config, at a time

    def start(self, poll_s: float) -> None:
        """Loads the wanted versions and returns when every model has one that is available.

        Base paths are looked at every `poll_s` seconds from now on; with 0 once, with less never.
        Raises FAILED_PRECONDITION for a label that may not be given, and NotAvailable when a model's first version to
        end its loading failed, or no version is there and none will be looked for.
        Returns early if `stop` is called.
        """
        self._poll_s = poll_s
        names = [config.name for config in self._first]
        empty = self._apply(self._first)
        if empty and poll_s <= 0:
            raise NotAvailable(
                Code.NOT_FOUND, f"No versions of {', '.join(empty)} found below their base paths"
            )
        if poll_s > 0:
            threading.Thread(target=self._poll, name="poll", daemon=True).start()
        self._manager.start(
            lambda: all(self._manager.settled(name) for name in names), 4 * len(os.sched_getaffinity(0))
        )
        self._refuse_failures("servable(s)", names)

    def stop(self) -> None:
        """Ends waiting, polling and retrying. A load that runs is not waited for."""
        self._manager.stop()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._manager.stopped

    def sleep(self, seconds: float) -> bool:
        """Waits that long, or until `stop`; whether it goes on."""
        return self._manager.sleep(seconds)

    # --- what a request means ---

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The servable that a request means, to be looked at: that version, or the highest available one."""
        return self._routes.find(name, version, label).servable

    def acquire(self, name: str, version: int | None = None, label: str | None = None) -> Lease:
        """The same, to be run: it stays loaded until the lease is released."""
        return self._routes.acquire(name, version, label)

    def status(self, name: str, version: int | None = None) -> list[Version]:
        """The versions of a model, newest first; or only that one. Ended ones stay listed. Raises NOT_FOUND."""
        return self._manager.versions(name, version)

    def names(self) -> list[str]:
        """The models of which there are, or ever were, versions."""
        return self._manager.names()

    # --- what there should be ---

    @property
    def configs(self) -> Configs:
        """The config in force, by model."""
        return self._source.configs

    def watch(self, changed: Callable[[Configs], None]) -> None:
        """Calls this with the config in force, now and whenever another one was accepted."""
        with self._applying:
            self._watchers.append(changed)
            changed(self._source.configs)

    def reload(self, configs: Iterable[ModelConfig], awaited: Callable[[], bool] = lambda: True) -> None:
        """Replaces the whole config; returns when every model with a new name is available.

        Raises FAILED_PRECONDITION for a label that may not be given (nothing is changed then), and UNKNOWN when a new
        model failed. Stops waiting, but changes nothing back, when `awaited` says that nobody waits for the answer.
        """
        wanted = list(configs)
        new = [config.name for config in wanted if config.name not in self._source.configs]
        empty = set(self._apply(wanted)) & set(new)
        if empty and self._poll_s <= 0:
            raise _unavailable("model(s)", [f"{{no versions of {name} found}}, " for name in sorted(empty)])
        while not self._manager.stopped and awaited():
            with self._manager.changed:
                new = [name for name in new if name in self._source.configs]
                if all(self._manager.settled(name) for name in new):
                    break
                self._manager.changed.wait(_LOOK_FOR_LEFT_CLIENTS_S)
        self._refuse_failures("model(s)", new)

    def _apply(self, configs: list[ModelConfig]) -> list[str]:
        """Checks the labels, then makes this the config; the names of models without a version on disk."""
        with self._applying:
            given = labels.checked(
                configs, self._routes.labels, self._routes.has, self._options.unavailable_labels
            )
            self._source.configure({config.name: config for config in configs})
            self._routes.relabel(given)
            for changed in self._watchers:
                changed(self._source.configs)
            return self._source.look() if self._poll_s >= 0 else list(self._source.configs)

    def _poll(self) -> None:
        while self._manager.sleep(self._poll_s):
            try:
                with self._applying:
                    self._source.look()
            except Exception:  # noqa: BLE001 (a bug must not end the polling)
                log.error("bug", where="looking at base paths", trace=traceback.format_exc())

    def _refuse_failures(self, what: str, names: Iterable[str]) -> None:
        settled = [self._manager.settled(name) for name in names]
        failed = [version for version in settled if version and version.state is State.END]
        if failed and not self._manager.stopped:
            raise _unavailable(what, [f"{{{version} due to error: {version.error}}}, " for version in failed])


def _unavailable(what: str, reasons: list[str]) -> NotAvailable:
    return NotAvailable(
        Code.UNKNOWN, f"{len(reasons)} {what} did not become available: {{{''.join(reasons)}}}"
    )
