"""`--grpc_channel_arguments`: gRPC's own options of a server, by name."""

import re

from serve import log

_INTEGER = re.compile(r"[+-]?[0-9]+")
_INT32 = range(-(2**31), 2**31)
_FLAG = "--grpc_channel_arguments"


def read(text: str) -> list[tuple[str, int | str]]:
    """Reads `k=v,k=v`; a value is a number if it reads as one that has 32 bits, as in TF Serving.

    What cannot act is told in the log: entries that are not k=v, which are left out, and larger numbers, which gRPC
    gets as text.
    """
    entries = [entry.partition("=") for entry in text.split(",") if entry]
    for key, sign, value in entries:
        if not key or not sign:
            log.warning("left out: an entry is key=value", flag=_FLAG, entry=key + sign + value)
    return [(key, _value(key, value)) for key, sign, value in entries if key and sign]


def _value(key: str, text: str) -> int | str:
    if not _INTEGER.fullmatch(text):
        return text
    if len(text) <= 20 and int(text) in _INT32:
        return int(text)
    log.warning("a number of 32 bits is wanted; gRPC gets text", flag=_FLAG, entry=f"{key}={text[:40]}")
    return text
