"""The HTTP server: its connections, their limits, and its end."""

import asyncio
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace

from serve import http_message, log
from serve.http_limits import Limits, Room
from serve.http_protocol import Connection
from serve.rest import Answer, Request

# A request may be on its way on a connection that rests; it is answered, and told that it was the last.
_CROSSING_S = 0.1
_FILES_OF_OTHERS = 512


class Server:
    """Serves HTTP/1.1 on a socket. To be used in one thread, that of its loop."""

    def __init__(
        self,
        handle: Callable[[Request, Callable[[Answer], None]], None],
        limits: Limits,
        *,
        cors: bool = False,
    ):
        self.limits = replace(limits, connections=min(limits.connections, _connections_that_fit()))
        self.handle = handle
        self.room = Room(max(limits.all_bodies_bytes, limits.body_bytes))
        self.writer = http_message.Writer(cors)
        self.draining = False
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._all: set[Connection] = set()
        self._resting: dict[Connection, None] = {}
        self._watched: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begins to answer on a socket that listens."""
        self._server = await self._loop.create_server(
            lambda: Connection(self, self._loop), sock=listener, ssl=tls, backlog=2048
        )
        self._sweep()

    async def drain(self, seconds: float, then: Callable[[], None]) -> None:
        """Accepts no more and ends when all is answered. After `seconds` calls `then`, and ends."""
        self.draining = True
        if self._server:
            self._server.close()
        if self._resting:
            await asyncio.sleep(min(_CROSSING_S, seconds))
        for connection in list(self._resting):
            connection.close()
        if not await self._wait_empty(seconds):
            then()
            for connection in list(self._all):
                connection.close()
            await self._wait_empty(0.3)
        for connection in list(self._all):
            connection.abort()
        if self._sweeper:
            self._sweeper.cancel()

    async def _wait_empty(self, seconds: float) -> bool:
        if not self._all:
            return True
        self._empty.clear()
        try:
            await asyncio.wait_for(self._empty.wait(), seconds)
        except TimeoutError:
            return False
        return True

    # --- what connections call: see http_protocol.Hub ---

    def opened(self, connection: Connection) -> bool:
        """Whether it may stay. The one that rests longest makes room for it."""
        if len(self._all) >= self.limits.connections:
            if not self._resting:
                return False
            longest = next(iter(self._resting))
            self.works(longest)
            longest.close()
        self._all.add(connection)
        return True

    def closed(self, connection: Connection) -> None:
        """It is gone."""
        self._all.discard(connection)
        self._resting.pop(connection, None)
        self._watched.discard(connection)
        if not self._all:
            self._empty.set()

    def rests(self, connection: Connection) -> None:
        """Nothing is on its way on it."""
        connection.rests_since = self._loop.time()
        self._resting[connection] = None

    def works(self, connection: Connection) -> None:
        """Something is."""
        self._resting.pop(connection, None)

    def watch(self, connection: Connection) -> None:
        """It waits for its client."""
        self._watched.add(connection)

    def _sweep(self) -> None:
        """Ends connections whose clients take too long, and those that rest too long."""
        now = self._loop.time()
        for connection in list(self._watched):
            if not connection.check(now):
                self._watched.discard(connection)
        while self._resting:
            longest = next(iter(self._resting))
            if now - longest.rests_since < self.limits.idle_s:
                break
            self.works(longest)
            longest.close()
        limits = self.limits
        pause_s = min(1.0, limits.receive_s / 4, limits.send_s / 4, limits.idle_s / 4)
        self._sweeper = self._loop.call_later(pause_s, self._sweep)


def _connections_that_fit() -> int:
    """How many connections the limit of open files allows, which is raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, 1 << 16)
    if soft < hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:
            log.warning("the limit of open files stays as it is", limit=soft, reason=error)
            hard = soft
    return max(64, hard - _FILES_OF_OTHERS)
