"""FastAPI with uvicorn: the plain application that somebody would write."""

from bench.serve.peers.base import Launch, Peer, Place, in_rows


def _launch(place: Place) -> Launch:
    uvicorn = (
        "-m",
        "uvicorn",
        "fastapi_app:app",
        "--workers",
        "2",
        "--loop",
        "uvloop",
        "--http",
        "httptools",
    )
    quiet = ("--no-access-log", "--log-level", "warning", "--host", "127.0.0.1", "--port", str(place.port))
    return Launch((str(place.python), *uvicorn, *quiet))


PEER = Peer(
    "FastAPI",
    ("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson==3.13.0"),
    "uvicorn with 2 workers, uvloop, httptools; orjson both ways",
    _launch,
    in_rows("/predict"),
)
