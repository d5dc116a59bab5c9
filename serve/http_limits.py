"""How much one HTTP client, and all of them together, may ask of the server."""

from dataclasses import dataclass

KIB, MIB = 1024, 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. What goes over them is answered by 408, 413, 429 or 431, and closed."""

    head_bytes: int = 64 * KIB
    body_bytes: int = 64 * MIB
    all_bodies_bytes: int = 512 * MIB
    """Of the bodies of all requests that are being received or wait for their answers."""
    connections: int = 12_000
    receive_s: float = 30.0
    """From a request's first byte to its last; each RECEIVED_A_SECOND bytes of its body give a second more."""
    send_s: float = 30.0
    """That a client may take nothing of its answer."""
    idle_s: float = 3900.0
    """Longer than the hour that Envoy keeps an idle connection: if clients close first, no request is on its way."""
    linger_s: float = 2.0
    """That what a refused client still sends is read and dropped, so that it can see why it was refused."""


RECEIVED_A_SECOND = 16 * KIB


class Room:
    """What the bodies of all requests take, in bytes, and may take."""

    __slots__ = ("at_most", "used")

    def __init__(self, at_most: int):
        self.at_most = at_most
        self.used = 0
