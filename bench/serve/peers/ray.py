"""Ray Serve, with serve.batch."""

from bench.serve.peers.base import APPS, Launch, Peer, Place, in_rows


def _launch(place: Place) -> Launch:
    quiet = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_MEMORY_MONITOR": "1",
        "RAY_TMPDIR": str(place.room),
        "RAY_SERVE_LOG_TO_STDERR": "0",
    }
    return Launch((str(place.python), str(APPS / "ray_app.py"), "--port", str(place.port)), quiet)


PEER = Peer(
    "Ray Serve",
    ("ray[serve]==2.60.0", "orjson==3.13.0"),
    "serve.batch, max_batch_size 64, 1 ms wait; 1 replica, 1 proxy; orjson both ways",
    _launch,
    in_rows("/predict"),
)
