"""Many 32-bit floats as JSON texts: their digits by arithmetic on whole arrays.

Each number gets a line of characters that has a place for everything a number may show; which of them it shows
follows from its power of ten and how many digits it has, so one look into a table and one selection make the text.
A number whose digits a double does not tell for certain is written by the C library.
"""

import numpy as np

_POWERS = np.array([10.0**power for power in range(60)])

# The line: sign, "0.000", nine digits with a point after each but the last, ".0", "e+00", and what separates.
_LINE = np.frombuffer(b"-0.000" + b"0." * 8 + b"0" + b".0" + b"e+00" + b", ", np.uint8)
_ZEROS, _DIGITS, _POINT_ZERO, _EXPONENT, _SEPARATOR = 1, 6, 23, 25, 29
_WIDTH = len(_LINE)

# A power of ten below -4, or of 6 and more (9 where there are nine digits), is written as an exponent.
_LOWEST, _AS_EXPONENT = -4, 13


def _shown() -> np.ndarray:
    """Which places are shown, by [(power + 4, or 13 for an exponent) * 9 + digits - 1]."""
    table = np.zeros((14 * 9, _WIDTH), bool)
    for power in range(14):
        for digits in range(1, 10):
            line = table[power * 9 + digits - 1]
            line[_SEPARATOR:] = True
            before = 1 if power == _AS_EXPONENT else max(power + _LOWEST + 1, 0)
            if power < -_LOWEST:
                line[_ZEROS : _ZEROS + 1 - (power + _LOWEST)] = True
            line[_DIGITS : _DIGITS + 2 * max(before, digits) : 2] = True
            if 0 < before < digits:
                line[_DIGITS + 2 * before - 1] = True
            if power == _AS_EXPONENT:
                line[_EXPONENT:_SEPARATOR] = True
            elif digits <= before:
                line[_POINT_ZERO:_EXPONENT] = True
    return table


_SHOWN = _shown()
_THREE_DIGITS = np.array([list(b"%03d" % number) for number in range(1000)], np.uint8)
_TRAILING_ZEROS = np.array([3 - len((b"%03d" % number).rstrip(b"0")) for number in range(1000)])


def rows(values: np.ndarray) -> list[str]:
    """The numbers of each row of a [rows, numbers] array, joined by comma and space."""
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        lines, shown = _lines(flat)
    ends = slice(values.shape[1] - 1, None, values.shape[1])
    lines[ends, _SEPARATOR] = ord("\n")
    shown[ends, _SEPARATOR + 1] = False
    return lines[shown].tobytes().decode("ascii").split("\n")[:-1]


def _lines(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Characters, and which of them are shown, by [number, place]."""
    wide = values.astype(np.float64)
    size = np.abs(wide)
    power = np.where(size > 0, np.floor(np.log10(size)), 0.0)
    is_sure = np.isfinite(power)
    power = np.where(is_sure, power, 0).astype(np.int64)
    six, power_of_six = _rounded(size, power, 5)
    is_short = (_scaled(six, power_of_six - 5)).astype(np.float32) == np.abs(values)
    nine, power_of_nine = _rounded(size, power, 8)
    digits = np.where(is_short, six * 1000, nine)
    power = np.where(is_short, power_of_six, power_of_nine)
    is_sure &= is_short | _is_clear(size, power_of_nine)
    digits = np.where(is_sure, digits, 0).astype(np.int64)
    lines, shown = _written(digits, power, np.where(is_short, 6, 9))
    shown[:, 0] = np.signbit(wide)
    for at in np.flatnonzero(~is_sure).tolist():
        _write_alone(wide[at].item(), lines[at], shown[at])
    return lines, shown


def _scaled(numbers: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Numbers times powers of ten. Exact where number and power are whole and the result fits; else rounded once."""
    return np.where(by >= 0, numbers * _POWERS[np.maximum(by, 0)], numbers / _POWERS[np.maximum(-by, 0)])


def _rounded(size: np.ndarray, power: np.ndarray, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """One digit and `digits` more as a whole number, and the power of ten of the first."""
    found = np.rint(_scaled(size, digits - power))
    over = found >= _POWERS[digits + 1]
    return np.where(over, _POWERS[digits], found), power + over


def _is_clear(size: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Whether what comes after nine digits is certainly not a half, which rounding in a double could get wrong."""
    scaled = _scaled(size, 8 - power)
    return np.abs(scaled - np.floor(scaled) - 0.5) > 1e-4


def _written(digits: np.ndarray, power: np.ndarray, at_most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, rest = np.divmod(digits, 1_000_000)
    middle, last = np.divmod(rest, 1000)
    zeros = _TRAILING_ZEROS[last]
    zeros += np.where(zeros == 3, _TRAILING_ZEROS[middle], 0)
    zeros += np.where(zeros == 6, _TRAILING_ZEROS[first], 0)
    has_exponent = (power < _LOWEST) | (power >= at_most)
    layout = np.where(has_exponent, _AS_EXPONENT, power - _LOWEST) * 9 + 8 - np.minimum(zeros, 8)
    lines = np.empty((len(digits), _WIDTH), np.uint8)
    lines[:] = _LINE
    for place, three in enumerate((first, middle, last)):
        at = _DIGITS + 6 * place
        lines[:, at : at + 6 : 2] = _THREE_DIGITS[three]
    exponent = np.flatnonzero(has_exponent)
    lines[exponent, _EXPONENT + 1] = np.where(power[exponent] < 0, ord("-"), ord("+"))
    lines[exponent, _EXPONENT + 2 : _SEPARATOR] = _THREE_DIGITS[np.abs(power[exponent]), 1:]
    return lines, _SHOWN[layout]


_NOT_FINITE = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


def _write_alone(number: float, line: np.ndarray, shown: np.ndarray) -> None:
    text = _NOT_FINITE.get(f"{number:g}") or (f"{number:.9g}").encode()
    if number.is_integer() and b"e" not in text:
        text += b".0"
    shown[:_SEPARATOR] = False
    shown[: len(text)] = True
    line[: len(text)] = np.frombuffer(text, np.uint8)
