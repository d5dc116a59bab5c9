"""orjson on bodies of any size."""

import gc
import time

import orjson

LARGE = 1 << 17


def loads(body: bytes) -> object:
    """What orjson reads. Raises orjson.JSONDecodeError.

    None of it is garbage: to look for some again and again takes longer than to read it.
    """
    if len(body) <= LARGE:
        return orjson.loads(body)
    gc.disable()
    try:
        value = orjson.loads(body)
        time.sleep(0)  # others have their turn before the objects are looked through once
        return value
    finally:
        gc.enable()
