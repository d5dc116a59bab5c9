"""Lends an image of an OCI layout to the engine, which pulls from registries alone.

For the time of one pull a registry listens on a free loopback port, which every engine takes without TLS. It answers
for this one image, by digest, and only to reads: https://github.com/opencontainers/distribution-spec (pull).
"""

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterator

from deploy.oci import MANIFEST, Image, Layout


@contextlib.contextmanager
def lend(layout: Layout, image: Image, name: str) -> Iterator[str]:
    """Serves the image as `HOST:PORT/NAME@DIGEST`, which is yielded, until the block ends.

    The manifest's bytes are verified by whoever loaded it, the blobs' by the engine that fetches them.
    """
    server = _Server(_Lent(layout, image, f"/v2/{name}/"))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}/{name}@{image.digest}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Lent:
    """What may be read: paths to what lies behind them."""

    def __init__(self, layout: Layout, image: Image, top: str):
        self.layout = layout
        self.manifests = {f"{top}manifests/{image.digest}": image}
        self.blobs = {f"{top}blobs/{blob.digest}": blob for blob in image.blobs}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, lent: _Lent):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lent = lent


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        lent = self.server.lent
        if self.path == "/v2/":
            self._head(200, "application/json", 2)
            self.wfile.write(b"{}" if with_body else b"")
        elif self.path in lent.manifests:
            image = lent.manifests[self.path]
            self._head(200, MANIFEST, len(image.body), image.digest)
            self.wfile.write(image.body if with_body else b"")
        elif self.path in lent.blobs:
            blob = lent.blobs[self.path]
            with lent.layout.open(blob) as stream:
                self._head(200, "application/octet-stream", blob.size, blob.digest)
                if with_body:
                    shutil.copyfileobj(stream, self.wfile, 1 << 20)
        else:
            self._head(404, "application/json", 0)

    def _head(self, status: int, kind: str, size: int, digest: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        if digest:
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing: the engine tells what it could not fetch."""
