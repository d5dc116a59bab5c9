"""LitServe, batching on."""

from bench.serve.peers.base import APPS, Launch, Peer, Place, in_rows


def _launch(place: Place) -> Launch:
    return Launch((str(place.python), str(APPS / "litserve_app.py"), "--port", str(place.port)))


PEER = Peer(
    "LitServe",
    ("litserve==0.2.19",),
    "max_batch_size 64, batch_timeout 1 ms; 1 worker, 1 API server",
    _launch,
    in_rows("/predict"),
)
