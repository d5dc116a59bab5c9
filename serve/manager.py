"""Brings what is loaded to what is wanted, one action a tick, as TF Serving's manager does."""

import contextlib
import functools
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from serve import log, threads
from serve.leases import Handle, Routes
from serve.memory import Budget, Refused
from serve.model import Model, Servable
from serve.status import Code, ServingError, not_found
from serve.versions import Action, State, Version, next_action

TICK_S = 0.1

# A tenth of the CPU time of what serves, where both want it.
_NICENESS = 10


@dataclass(frozen=True)
class LoadPolicy:
    """How often a version is tried, and how long between; threads that load and unload (0: the manager's own)."""

    retries: int = 5
    interval_s: float = 60.0
    load_threads: int = 0
    unload_threads: int = 0


class Manager:
    """All versions of all models, with their states. `tick` is called by one thread, all else by any."""

    def __init__(
        self,
        load: Callable[[Path], Model],
        routes: Routes,
        policy: LoadPolicy,
        budget: Budget | None = None,
    ):
        self._load = load
        self._routes = routes
        self._policy = policy
        self._budget = budget
        self._loads: threads.Runner = threads.runner(policy.load_threads, "loads")
        self._unloads: threads.Runner = threads.runner(policy.unload_threads, "unloads")
        self._seen: dict[str, dict[int, Version]] = {}  # every version there ever was, in its last state
        self._managed: dict[str, dict[int, Version]] = {}
        self._wishes: dict[str, Mapping[int, Path]] = {}
        self._started = False
        # A signal's handler may stop the manager in a thread that holds this: it must be reentrant, and it is.
        self.changed = threading.Condition()
        self.stopped = False

    # --- what is wanted ---

    def want(self, name: str, paths: Mapping[int, Path]) -> None:
        """Makes these the wanted versions of a model, from the next tick on; none unloads it."""
        with self.changed:
            self._wishes[name] = paths
            for version in self._managed.get(name, {}).values():
                # The tick may be busy with this very load, so it is told here.
                if version.number not in paths and version.state is State.LOADING:
                    version.cancelled = True
            self.changed.notify_all()

    def stop(self) -> None:
        """Ends retries and starts nothing more. A load that runs is not waited for."""
        self.stopped = True
        with self.changed:
            self.changed.notify_all()

    def sleep(self, seconds: float) -> bool:
        """Waits that long, or until stopped; whether it goes on."""
        with self.changed:
            return not self.changed.wait_for(lambda: self.stopped, seconds)

    # --- what there is ---

    def versions(self, name: str, number: int | None = None) -> list[Version]:
        """The versions of a model that there are or ever were, newest first; or that one. Raises NOT_FOUND."""
        with self.changed:
            versions = self._seen.get(name, {})
            if not versions:
                raise not_found(f"Could not find any versions of model {name}")
            if number is None:
                return [versions[each] for each in sorted(versions, reverse=True)]
            if number not in versions:
                raise not_found(f"Could not find version {number} of model {name}")
            return [versions[number]]

    def names(self) -> list[str]:
        """The models that there are or ever were."""
        with self.changed:
            return sorted(self._seen)

    def settled(self, name: str) -> Version | None:
        """The highest wanted version of a model that is available or ended; None if there is none yet."""
        with self.changed:
            wish = self._wishes.get(name)
            done = (State.AVAILABLE, State.END)
            versions = [
                version
                for version in self._managed.get(name, {}).values()
                if version.wanted and version.state in done and (wish is None or version.number in wish)
            ]
            return max(versions, key=lambda version: version.number, default=None)

    # --- the tick ---

    def tick(self) -> bool:
        """Does one action, if there is one to do; whether there was."""
        with self.changed:
            self._flush()
            self._adopt()
            gone = self._quiesced()
            action = next_action(self._managed.values())
            if action:
                self._begin(action)
        for version in gone:
            self._unloads.submit(functools.partial(self._unload, version))
        if action and not action.unload:
            self._loads.submit(lambda: self._load_apart(action.version))
        return action is not None or bool(gone)

    def start(self, settled: Callable[[], bool], threads_at_first: int) -> None:
        """Ticks without pause and loads in many threads until `settled` or stopped; from then on a thread ticks."""
        usual, pool = self._loads, threads.Pool(threads_at_first, "first-loads")
        self._loads = pool
        while not self.stopped:
            while self.tick():
                pass
            with self.changed:
                if settled():
                    break
                self.changed.wait(TICK_S)
        self._loads = usual
        pool.close()
        self._started = True
        threading.Thread(target=self.run, name="manager", daemon=True).start()

    def run(self) -> None:
        """Ticks until it is stopped."""
        while self.sleep(TICK_S):
            try:
                self.tick()
            except Exception:  # noqa: BLE001 (a bug must not end the manager)
                log.error("bug", where="the manager's tick", trace=traceback.format_exc())

    def _flush(self) -> None:
        """Forgets versions that are not wanted and of which nothing is loaded; they stay listed as ended."""
        for versions in self._managed.values():
            for version in [each for each in versions.values() if not each.wanted]:
                if version.state is State.START:
                    self._set(version, State.END)
                if version.state is State.END:
                    del versions[version.number]

    def _adopt(self) -> None:
        for name, paths in list(self._wishes.items()):
            managed = self._managed.setdefault(name, {})
            # A version on its way out is loaded anew once it is gone; until then the others stay as they are.
            if any(managed[number].leaving for number in paths.keys() & managed.keys()):
                continue
            for version in managed.values():
                version.wanted = version.number in paths
            for number in paths.keys() - managed.keys():
                managed[number] = Version(name, number, paths[number])
                self._seen.setdefault(name, {})[number] = managed[number]
            del self._wishes[name]
        self._flush()

    def _quiesced(self) -> list[Version]:
        """Versions on their way out that no request uses any more."""
        gone = [
            version
            for versions in self._managed.values()
            for version in versions.values()
            if version.state is State.UNLOADING
            and not version.closing
            and version.handle
            and version.handle.idle
        ]
        for version in gone:
            version.closing = True
        return gone

    def _begin(self, action: Action) -> None:
        self._set(action.version, State.UNLOADING if action.unload else State.LOADING)
        if action.unload:
            self._route(action.version.name)
            if action.version.handle:
                action.version.handle.close()

    def _route(self, name: str) -> None:
        versions = self._managed[name].values()
        self._routes.replace(
            name, [each.handle for each in versions if each.state is State.AVAILABLE and each.handle]
        )

    # --- loading and unloading, in the threads of their runners ---

    def _niceness(self) -> int:
        # TensorFlow makes the threads that all versions share at the first load: these must not be slowed down.
        return _NICENESS if self._started and self._routes.any() else 0

    def _load_apart(self, version: Version) -> None:
        threads.apart(lambda: self._load_version(version), self._niceness())

    def _load_version(self, version: Version) -> None:
        error = ServingError(Code.CANCELLED, "the server was stopped")
        for attempt in range(1, self._policy.retries + 2):
            began = time.monotonic()
            found = self._try(version)
            if not isinstance(found, ServingError):
                took = time.monotonic() - began
                log.info("available", model=version.name, version=version.number, seconds=took)
                self._make_available(version, found)
                return
            error = found
            again = attempt <= self._policy.retries and not isinstance(error, Refused)
            self._tell_failure(version, error, attempt, again)
            if not again or not self._wait_for_next_try(version):
                break
        self._end(version, error)

    def _tell_failure(self, version: Version, error: ServingError, attempt: int, again: bool) -> None:
        tries = f"{attempt}/{self._policy.retries + 1}"
        facts = {"model": version.name, "version": version.number, "attempt": tries}
        if again:
            facts["next_try_s"] = max(0.0, self._policy.interval_s)
        log.error("load failed", **facts, error=error)

    def _try(self, version: Version) -> Model | ServingError:
        try:
            if self._budget is None:
                return self._load(version.path)
            with self._budget.room(str(version), version.path):
                return self._load(version.path)
        except ServingError as error:
            return error
        except MemoryError:
            return ServingError(Code.RESOURCE_EXHAUSTED, "not enough memory to load this version")
        except Exception as error:  # noqa: BLE001 (a broken model must not take the others with it)
            return ServingError(Code.UNKNOWN, f"{type(error).__name__}: {error}")

    def _wait_for_next_try(self, version: Version) -> bool:
        """Waits between two tries; whether there is to be another."""
        with self.changed:
            self.changed.wait_for(
                lambda: version.cancelled or self.stopped, max(0.0, self._policy.interval_s)
            )
            return not version.cancelled and not self.stopped

    def _make_available(self, version: Version, model: Model) -> None:
        with self.changed:
            version.handle = Handle(Servable(version.name, version.number, model))
            version.cancelled = False
            self._set(version, State.AVAILABLE)
            self._route(version.name)

    def _end(self, version: Version, error: ServingError | None) -> None:
        with self.changed:
            self._set(version, State.END, error)

    def _unload(self, version: Version) -> None:
        handle, version.handle = version.handle, None
        try:
            with self._budget.leaving(str(version)) if self._budget else contextlib.nullcontext():
                if handle:
                    handle.servable.model.close()
        except Exception as error:  # noqa: BLE001 (what cannot be closed is gone all the same)
            log.error("unload failed", model=version.name, version=version.number, error=error)
        log.info("unloaded", model=version.name, version=version.number)
        self._end(version, None)

    def _set(self, version: Version, state: State, error: ServingError | None = None) -> None:
        version.state, version.error = state, error
        self.changed.notify_all()
