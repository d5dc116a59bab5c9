"""CRC-32C, and the masked form of it that TFRecords hold.

In Python, as the standard library has only another CRC (zlib's) and loading TensorFlow's takes more than a second.
Reads some 10 MB/s.
"""

import functools
import struct

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, with its bits reversed. Source: RFC 3720, appendix B.4.
_WORD = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8  # Source: tsl/lib/hash/crc32c.h
_ALL_BITS = 0xFFFFFFFF


def crc32c(data: bytes | memoryview) -> int:
    """The CRC-32C of the bytes."""
    low, high = _tables()
    whole = len(data) - len(data) % _WORD.size
    crc = _ALL_BITS
    for (word,) in _WORD.iter_unpack(data[:whole]):
        crc ^= word
        crc = low[crc & 0xFFFF] ^ high[crc >> 16]
    for byte in data[whole:]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ _ALL_BITS


def masked(data: bytes | memoryview) -> int:
    """The checksum that a TFRecord has of these bytes: turned and shifted, so that none is taken of another."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & _ALL_BITS


@functools.cache
def _tables() -> tuple[list[int], list[int]]:
    """What 32 steps make of the lower half of the register, and of the upper one."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    found = [halves, halves << np.uint32(16)]
    for _ in range(32):
        found = [each >> np.uint32(1) ^ (each & np.uint32(1)) * np.uint32(_POLYNOMIAL) for each in found]
    return found[0].tolist(), found[1].tolist()
