"""Many 32-bit floats as JSON texts: their digits by arithmetic on whole arrays.

Each number gets a line of characters that has a place for everything a number may show; which of them it shows
follows from its power of ten and how many digits it has, so one look into a table and one selection make the text.
A number whose digits a double does not tell for certain is written by the C library.
"""

import numpy as np

_POWERS = np.array([float(f"1e{power}") for power in range(60)])

# What makes nine digits, or six, of a number, by its power of ten + _BIAS.
_BIAS = 46
_TO_NINE = np.array([float(f"1e{8 - power}") for power in range(-_BIAS, 40)])
_TO_SIX = np.array([float(f"1e{5 - power}") for power in range(-_BIAS, 40)])
_NEARLY_HALF = 0.4999


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


# So many at once stay in a processor's cache.
_AT_ONCE = 2048


def rows(values: np.ndarray) -> list[str]:
    """The numbers of each row of a [rows, numbers] array, joined by comma and space."""
    step = max(1, _AT_ONCE // values.shape[1])
    found: list[str] = []
    with np.errstate(all="ignore"):
        for at in range(0, len(values), step):
            found += _rows(values[at : at + step])
    return found


def _rows(values: np.ndarray) -> list[str]:
    lines, shown = _lines(values.reshape(-1))
    ends = slice(values.shape[1] - 1, None, values.shape[1])
    lines[ends, _SEPARATOR] = ord("\n")
    shown[ends, _SEPARATOR + 1] = False
    return lines[shown].tobytes().decode("ascii").split("\n")[:-1]


def some(values: np.ndarray) -> list[str]:
    """The texts of a one-dimensional array of a few hundred: as above, but written by the C library."""
    with np.errstate(all="ignore"):
        wide = values.astype(np.float64)
        size = np.abs(wide)
        power = np.floor(np.log10(size))
        if not np.isfinite(power).all():
            return rows(values.reshape(-1, 1))
        is_short = _short(size, power.astype(np.int64), values)[1]
        is_whole = (wide == np.rint(wide)) & (size < np.where(is_short, 1e6, 1e9))
    formats = [_FORMATS[kind] for kind in (is_short + 2 * is_whole).tolist()]
    return ("\n".join(formats) % tuple(wide.tolist())).split("\n")


_FORMATS = ("%.9g", "%.6g", "%.1f", "%.1f")


def _lines(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Characters, and which of them are shown, by [number, place]."""
    wide = values.astype(np.float64)
    size = np.abs(wide)
    power = np.floor(np.log10(size))
    is_odd = ~np.isfinite(power)
    if is_odd.any():
        power[is_odd] = 0
    power = power.astype(np.int64)
    nine = np.rint(size * _TO_NINE[power + _BIAS])
    six, is_short = _short(size, power, values)
    is_unsure = np.abs(size * _TO_NINE[power + _BIAS] - nine) > _NEARLY_HALF
    is_unsure &= ~is_short
    is_unsure |= is_odd & (size != 0)
    digits = np.where(is_short, six * 1000, nine).astype(np.int64)
    over = digits >= 1_000_000_000  # all nines, rounded up
    if over.any():
        digits[over] = 100_000_000
        power += over
    if is_unsure.any():
        digits[is_unsure] = 0
    lines, shown = _written(digits, power, np.where(is_short, 6, 9))
    shown[:, 0] = np.signbit(wide)
    for at in np.flatnonzero(is_unsure).tolist():
        _write_alone(wide[at].item(), lines[at], shown[at])
    return lines, shown


def _short(size: np.ndarray, power: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first six digits as a whole number, and where these read back equal.

    The product may be off by a few units of the last place of a double. Six digits that are wrong by that lie
    next to a half, and cannot read back equal. What they read back as has to be exact: one operation on numbers
    that are (powers of ten beyond 10^22 are not, but no decimal of six digits comes so close to the middle of two
    32-bit floats that it would matter).
    """
    six = np.rint(size * _TO_SIX[power + _BIAS])
    back = six / _POWERS[np.maximum(5 - power, 0)]
    if power.max() > 5:
        back = np.where(power > 5, six * _POWERS[np.maximum(power - 5, 0)], back)
    return six, back.astype(np.float32) == np.abs(values)


def _written(digits: np.ndarray, power: np.ndarray, at_most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lines = np.empty((len(digits), _WIDTH), np.uint8)
    lines[:] = _LINE
    first, rest = np.divmod(digits, 1_000_000)
    middle, last = np.divmod(rest, 1000)
    for place, three in enumerate((first, middle, last)):
        at = _DIGITS + 6 * place
        lines[:, at : at + 6 : 2] = _THREE_DIGITS[three]
    zeros = _TRAILING_ZEROS[last]
    for at, three in ((3, middle), (6, first)):
        longer = zeros == at
        if longer.any():
            zeros += np.where(longer, _TRAILING_ZEROS[three], 0)
    layout = power - _LOWEST
    has_exponent = (power < _LOWEST) | (power >= at_most)
    if has_exponent.any():
        layout[has_exponent] = _AS_EXPONENT
        powers = power[has_exponent]
        lines[has_exponent, _EXPONENT + 1] = np.where(powers < 0, ord("-"), ord("+"))
        lines[has_exponent, _EXPONENT + 2 : _SEPARATOR] = _THREE_DIGITS[np.abs(powers), 1:]
    return lines, _SHOWN[layout * 9 + 8 - np.minimum(zeros, 8)]


_NOT_FINITE = {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}


def _write_alone(number: float, line: np.ndarray, shown: np.ndarray) -> None:
    text = _NOT_FINITE.get(f"{number:g}") or (f"{number:.9g}").encode()
    if number.is_integer() and b"e" not in text:
        text += b".0"
    shown[:_SEPARATOR] = False
    shown[: len(text)] = True
    line[: len(text)] = np.frombuffer(text, np.uint8)
