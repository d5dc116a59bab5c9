"""The models that are served: which versions there are, the state of each, and the one that a request means."""

import enum
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from serve import log
from serve.config import ModelConfig, versions_on_disk
from serve.model import Model, Servable
from serve.status import Code, ServingError, invalid, not_found


class State(enum.IntEnum):
    """The states of a version, with their numbers in tensorflow.serving.ModelVersionStatus."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclass
class Version:
    """One version of a model. An END with an error is a load that failed for good."""

    number: int
    path: Path
    state: State = State.START
    error: ServingError | None = None
    model: Model | None = None
    users: int = 0


class Lease:
    """A version in use by one request. It is given back by `release`, once; until then it stays loaded."""

    def __init__(self, servable: Servable, give_back: Callable[[], None]):
        self.servable = servable
        self._give_back = give_back

    @property
    def model(self) -> Model:
        """What can be run."""
        return self.servable.model

    def release(self) -> None:
        """Says that nothing runs any more."""
        self._give_back()

    def __enter__(self) -> Servable:
        return self.servable

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class LoadPolicy:
    """How often a version is tried, and how long between."""

    retries: int = 5
    interval_s: float = 60.0


class NotAvailable(ServingError):
    """A model has no version that could be loaded."""


class Models:
    """All models and their versions. Safe to use from several threads."""

    def __init__(self, configs: Iterable[ModelConfig], load: Callable[[Path], Model], policy: LoadPolicy):
        self._configs = {config.name: config for config in configs}
        self._versions: dict[str, dict[int, Version]] = {name: {} for name in self._configs}
        self._load = load
        self._policy = policy
        self._changed = threading.Condition()
        self._stopping = threading.Event()

    def start(self, poll_s: float) -> None:
        """Loads the wanted versions and returns when every model has one that is available.

        Base paths without versions are looked at again every `poll_s` seconds, for ever; with 0, once.
        Raises NotAvailable when all versions of a model failed, or none was there with `poll_s` 0.
        Returns early if `stop` is called.
        """
        told: set[str] = set()
        while not self._stopping.is_set():
            empty = [name for name in self._configs if not self._versions[name] and not self._look(name)]
            if not empty:
                break
            if not poll_s > 0:
                raise NotAvailable(
                    Code.NOT_FOUND, f"No versions of {', '.join(empty)} found below their base paths"
                )
            for name in set(empty) - told:
                base = self._configs[name].base_path
                log.warning("no versions to load yet", model=name, base_path=base, looking_again_s=poll_s)
            told.update(empty)
            self._stopping.wait(poll_s)
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() or self._settled())
            self._refuse_failures()

    def stop(self) -> None:
        """Ends waiting and retrying. A load that runs is not waited for."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def find(self, name: str, version: int | None = None, label: str | None = None) -> Servable:
        """The servable that a request means, to be looked at: that version, or the highest available one."""
        with self._changed:
            return self._find(name, version, label)[0]

    def acquire(self, name: str, version: int | None = None, label: str | None = None) -> Lease:
        """The same, to be run: it stays loaded until the lease is released."""
        with self._changed:
            servable, found = self._find(name, version, label)
            found.users += 1
            return Lease(servable, lambda: self._release(found))

    def _release(self, version: Version) -> None:
        with self._changed:
            version.users -= 1
            if not version.users:
                self._changed.notify_all()

    def _find(self, name: str, version: int | None, label: str | None) -> tuple[Servable, Version]:
        if label:
            raise invalid(f"Unrecognized servable version label: {label}")
        available = [
            (Servable(name, each.number, each.model), each)
            for each in self._versions.get(name, {}).values()
            if each.state is State.AVAILABLE and each.model is not None
        ]
        if version is not None:
            available = [each for each in available if each[0].version == version]
        if not available:
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise not_found(f"Servable not found for request: {wanted}")
        return max(available, key=lambda each: each[0].version)

    def status(self, name: str, version: int | None = None) -> list[Version]:
        """The versions of a model, newest first; or only that one. Raises NOT_FOUND."""
        with self._changed:
            versions = self._versions.get(name, {})
            if not versions:
                raise not_found(f"Could not find any versions of model {name}")
            if version is None:
                return [versions[number] for number in sorted(versions, reverse=True)]
            if version not in versions:
                raise not_found(f"Could not find version {version} of model {name}")
            return [versions[version]]

    def _look(self, name: str) -> bool:
        """Looks for a model's wanted versions and begins to load them; whether there are any."""
        config = self._configs[name]
        try:
            paths = versions_on_disk(config.base_path)
        except OSError:
            return False
        wanted = config.policy.wanted(paths)
        for absent in sorted((config.policy.specific or frozenset()) - set(wanted)) if paths else ():
            log.warning("version is not there", model=name, version=absent, base_path=config.base_path)
        with self._changed:
            self._versions[name] = {number: Version(number, paths[number]) for number in wanted}
        for version in self._versions[name].values():
            threading.Thread(target=self._load_version, args=(name, version), daemon=True).start()
        return bool(wanted)

    def _load_version(self, name: str, version: Version) -> None:
        self._set(version, State.LOADING)
        tries = self._policy.retries + 1
        for attempt in range(1, tries + 1):
            began = time.monotonic()
            error = self._try(version)
            if error is None:
                took = time.monotonic() - began
                log.info("available", model=name, version=version.number, seconds=took)
                self._set(version, State.AVAILABLE)
                return
            facts = {"model": name, "version": version.number, "attempt": f"{attempt}/{tries}"}
            if attempt < tries:
                facts["next_try_s"] = max(0.0, self._policy.interval_s)
            log.error("load failed", **facts, error=error)
            if attempt < tries and self._stopping.wait(max(0.0, self._policy.interval_s)):
                error = ServingError(Code.CANCELLED, "the server was stopped")
                break
        self._set(version, State.END, error)

    def _try(self, version: Version) -> ServingError | None:
        try:
            version.model = self._load(version.path)
        except ServingError as error:
            return error
        except Exception as error:  # noqa: BLE001 (a broken model must not take the others with it)
            return ServingError(Code.UNKNOWN, f"{type(error).__name__}: {error}")
        return None

    def _set(self, version: Version, state: State, error: ServingError | None = None) -> None:
        with self._changed:
            version.state, version.error = state, error
            self._changed.notify_all()

    def _settled(self) -> bool:
        return all(_available(versions) or _ended(versions) for versions in self._versions.values())

    def _refuse_failures(self) -> None:
        failed = [
            f"{{{{name: {name} version: {max(versions)}}} due to error: {versions[max(versions)].error}}}, "
            for name, versions in self._versions.items()
            if versions and not _available(versions) and _ended(versions)
        ]
        if failed and not self._stopping.is_set():
            raise NotAvailable(
                Code.UNKNOWN, f"{len(failed)} servable(s) did not become available: {{{''.join(failed)}}}"
            )


def _available(versions: dict[int, Version]) -> bool:
    return any(version.state is State.AVAILABLE for version in versions.values())


def _ended(versions: dict[int, Version]) -> bool:
    return all(version.state is State.END for version in versions.values())
