"""Floats as JSON texts by TF Serving's rule, many at once without a loop over them.

A number has six significant digits if these read back equal, else as many as its type needs (9 for 32 bits, 17 for
64), and `.0` where neither `.` nor `e` would be there.
"""

from array import array

import numpy as np

from serve import json_digits

_FORMATS = {np.dtype(np.float32): ("f", "%.9g"), np.dtype(np.float64): ("d", "%.17g")}
# Below, setting up numpy's passes takes longer than a loop.
_MANY = 48


def rows(values: np.ndarray) -> list[str]:
    """The numbers of each row of a [rows, numbers] array of 32-bit or 64-bit floats, joined by comma and space."""
    if values.dtype == np.float32 and values.size >= _MANY:
        return json_digits.rows(values)
    found = texts(values.reshape(-1))
    width = values.shape[1]
    return (
        [", ".join(found[at : at + width]) for at in range(0, len(found), width)]
        if width
        else [""] * len(values)
    )


def texts(values: np.ndarray) -> list[str]:
    """The texts of a one-dimensional array."""
    if values.dtype == np.float32 and values.size >= _MANY:
        return json_digits.rows(values.reshape(-1, 1))
    code, exact = _FORMATS[values.dtype]
    numbers = values.tolist()
    found = ["%.6g" % number for number in numbers]  # noqa: UP031 (half the time of format())
    try:
        back = array(code, map(float, found))
    except OverflowError:  # six digits of the largest doubles are more than a double holds
        back = array(code, [_read(text, code) for text in found])
    return [
        json_digits.as_double(text if read == number else exact % number)
        for text, read, number in zip(found, back, numbers, strict=True)
    ]


def _read(text: str, code: str) -> float:
    try:
        return array(code, [float(text)])[0]
    except OverflowError:
        return float("inf")
