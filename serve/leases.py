"""Which version a request means, and that it stays loaded while the request runs. On every request's way."""

import threading
from collections.abc import Iterable, Mapping

from serve.model import Model, Queue, Servable
from serve.queues import queue_of
from serve.status import invalid, not_found


class Handle:
    """An available version: what can be run, and how many use it. No more leases are given once it is closed."""

    __slots__ = ("_closed", "_lock", "_users", "servable")

    def __init__(self, servable: Servable):
        self.servable = servable
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False

    def lease(self) -> "Lease | None":
        """A lease, unless this is closed."""
        with self._lock:
            if self._closed:
                return None
            self._users += 1
        return Lease(self)

    def give_back(self) -> None:
        """Ends one lease."""
        with self._lock:
            self._users -= 1

    def close(self) -> None:
        """Gives no more leases."""
        with self._lock:
            self._closed = True

    @property
    def idle(self) -> bool:
        """Whether nothing runs, nor can any more."""
        with self._lock:
            return self._closed and not self._users


class Lease:
    """A version in use by one request. It is given back by `release`, once; until then it stays loaded."""

    __slots__ = ("_handle", "servable")

    def __init__(self, handle: Handle):
        self.servable = handle.servable
        self._handle = handle

    @property
    def model(self) -> Model:
        """What can be run."""
        return self.servable.model

    @property
    def queue(self) -> Queue:
        """What runs it."""
        return queue_of(self.servable.model)

    def release(self) -> None:
        """Says that nothing runs any more."""
        self._handle.give_back()

    def __enter__(self) -> Servable:
        return self.servable

    def __exit__(self, *_: object) -> None:
        self._handle.give_back()


class _Route:
    """The available versions of one model; it is never changed, only replaced."""

    __slots__ = ("by_number", "highest")

    def __init__(self, by_number: dict[int, Handle]):
        self.by_number = by_number
        self.highest = by_number[max(by_number)]


class Routes:
    """The available versions of all models, and their labels. Read without a lock; one thread at a time writes."""

    def __init__(self) -> None:
        self._routes: dict[str, _Route] = {}
        self._labels: Mapping[str, Mapping[str, int]] = {}

    def replace(self, name: str, handles: Iterable[Handle]) -> None:
        """Makes these the available versions of a model."""
        by_number = {handle.servable.version: handle for handle in handles}
        routes = {other: route for other, route in self._routes.items() if other != name}
        if by_number:
            routes[name] = _Route(by_number)
        self._routes = routes

    def relabel(self, labels: Mapping[str, Mapping[str, int]]) -> None:
        """Replaces all labels: model -> label -> version."""
        self._labels = labels

    @property
    def labels(self) -> Mapping[str, Mapping[str, int]]:
        """The labels in use."""
        return self._labels

    def any(self) -> bool:
        """Whether anything is available."""
        return bool(self._routes)

    def has(self, name: str, version: int) -> bool:
        """Whether that version is available."""
        route = self._routes.get(name)
        return route is not None and version in route.by_number

    def find(self, name: str, version: int | None, label: str | None) -> Handle:
        """That version, or the one that the label stands for, or the highest available. Raises ServingError."""
        if label:
            version = self._labels.get(name, {}).get(label)
            if version is None:
                raise invalid(f"Unrecognized servable version label: {label}")
        route = self._routes.get(name)
        if version is None:
            if route is None:
                raise not_found(f"Servable not found for request: Latest({name})")
            return route.highest
        handle = route.by_number.get(version) if route is not None else None
        if handle is None:
            raise not_found(f"Servable not found for request: Specific({name}, {version})")
        return handle

    def acquire(self, name: str, version: int | None, label: str | None) -> Lease:
        """The same, to be run."""
        while True:
            lease = self.find(name, version, label).lease()
            if lease is not None:
                return lease
            # It was closed since it was found; its routes were replaced before, so the next look finds another.
