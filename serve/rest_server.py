"""The REST API on its port: connections (`serve.http_server`) and the calls that they bring (`serve.rest_calls`)."""

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

from serve import rest_calls
from serve.http_limits import Limits
from serve.http_server import Server
from serve.models import Models
from serve.observe import Observer
from serve.pages import Pages
from serve.rest_calls import Calls

# Reading and writing JSON hold the interpreter: more threads would need more memory, and be no faster.
_THREADS_ASIDE = 2


class RestServer:
    """Serves models over REST. To be made and used in the thread of a running loop."""

    def __init__(
        self,
        models: Models,
        limits: Limits | None = None,
        options: rest_calls.Options | None = None,
        *,
        threads: int = 0,
        cors: bool = False,
        observer: Observer | None = None,
        pages: Pages | None = None,
    ):
        self._aside = ThreadPoolExecutor(threads or _THREADS_ASIDE, thread_name_prefix="rest")
        loop = asyncio.get_running_loop()
        self._calls = Calls(models, loop, self._aside, options or rest_calls.Options(), observer, pages)
        self._server = Server(self._calls.start, limits or Limits(), cors=cors)

    async def start(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begins to answer on a socket that listens."""
        await self._server.start(listener, tls)

    async def drain(self, seconds: float) -> None:
        """Refuses new requests, and gives those that run `seconds` to finish; the others get 503."""
        await self._server.drain(seconds, self._calls.stop)
        self._aside.shutdown(wait=False, cancel_futures=True)
