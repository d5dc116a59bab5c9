"""Many 32-bit floats as JSON texts, by the rule of `serve.json_numbers`: their digits by arithmetic on whole arrays.

The digits of each number, six or nine of them, are made the double that is nearest to their decimal. orjson writes
the shortest decimal that reads back as that double: these digits. Where C's %g writes an exponent, which orjson does
elsewhere and otherwise, the double has another power of ten, and the exponent is replaced in the text. What is very
small or large, not finite, or not to be told for certain by arithmetic on doubles is written by the C library, in the
place of a null.
"""

import numpy as np
import orjson

# Tables by a number's power of ten + _BIAS. The first place is that of 0.
_BIAS = 46
_POWERS = range(-_BIAS, 40)


def _table(power_of_ten: list[int]) -> np.ndarray:
    return np.array([float(f"1e{power}") for power in power_of_ten])


_TO_NINE = _table([8 - power for power in _POWERS])  # what makes nine digits of a number
_TO_SIX = _table([5 - power for power in _POWERS])
# What makes the number of its six digits: multiplied by the one, divided by the other.
_SIX_TIMES = _table([max(power - 5, 0) for power in _POWERS])
_SIX_OVER = _table([max(5 - power, 0) for power in _POWERS])

_ZERO = -_BIAS
_POINT_FIVE = 0.4999

# Powers from 10^-19 to 10^-6 are written as 10^29 to 10^16, and 10^-5 as 10^30: what then has to be replaced.
_EXPONENTS = (
    (orjson.dumps(1e30).removeprefix(b"1"), b"e-05"),
    (orjson.dumps(1e16).removeprefix(b"1").removesuffix(b"6"), b"e-0"),
    (orjson.dumps(1e20).removeprefix(b"1").removesuffix(b"0"), b"e-1"),
)


def _written_as(power: int, plain_below: int) -> int | None:
    """The power of ten that orjson is to see; None where the C library has to write the number.

    Nine digits times 10^22, or by it, are exact but for one rounding: higher powers of ten are no doubles.
    """
    if power == _ZERO:
        return 8
    if -4 <= power < plain_below:
        return power
    return 30 if power == -5 else 10 - power if -19 <= power <= -6 else None


# The same for its nine digits; first for numbers of nine, then for those of which six are enough.
_WRITTEN_AS = [_written_as(power, plain_below) for plain_below in (9, 6) for power in _POWERS]
_NINE_TIMES = _table([0 if power is None else max(power - 8, 0) for power in _WRITTEN_AS])
_NINE_OVER = _table([0 if power is None else max(8 - power, 0) for power in _WRITTEN_AS])
_NINE_TIMES[[power is None for power in _WRITTEN_AS]] = np.nan

# So many at once stay in a processor's cache.
_AT_ONCE = 2048


def rows(values: np.ndarray) -> list[str]:
    """The numbers of each row of a [rows, numbers] array, joined by comma and space. Neither may be 0."""
    step = max(1, _AT_ONCE // values.shape[1])
    found: list[str] = []
    with np.errstate(all="ignore"):
        for at in range(0, len(values), step):
            found += _rows(values[at : at + step])
    return found


def _rows(values: np.ndarray) -> list[str]:
    wide = values.astype(np.float64)
    size = np.abs(wide)
    power = (np.floor(np.log10(size)) + _BIAS).astype(np.int64)
    digits, is_short = _digits(values, size, power)
    is_rounded_up = digits == 1e9  # from all nines
    if is_rounded_up.any():
        digits[is_rounded_up] = 1e8
        power += is_rounded_up
    at = power + is_short * len(_POWERS)
    exact = digits * _NINE_TIMES.take(at, mode="clip") / _NINE_OVER.take(at, mode="clip")
    text = orjson.dumps(np.copysign(exact, wide), option=orjson.OPT_SERIALIZE_NUMPY)
    for name, replacement in _EXPONENTS:
        text = text.replace(name, replacement)
    text = text[2:-2].replace(b",", b", ")
    is_odd = ~np.isfinite(exact)
    if is_odd.any():
        text = _filled(text, wide[is_odd].tolist(), is_short[is_odd].tolist())
    return text.decode("ascii").split("], [")


def _digits(values: np.ndarray, size: np.ndarray, power: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nine digits as a number, nan where they are uncertain; and where six are enough (then three zeros follow).

    A product may be off by a few units of the last place of a double. Six digits that are wrong by that lie
    next to a half, and cannot read back equal. What they read back as has to be exact: one operation on numbers
    that are (powers of ten beyond 10^22 are not, but no decimal of six digits comes so close to the middle of two
    32-bit floats that it would matter).
    """
    six = np.rint(size * _TO_SIX.take(power, mode="clip"))
    back = six * _SIX_TIMES.take(power, mode="clip") / _SIX_OVER.take(power, mode="clip")
    is_short = back.astype(np.float32) == np.abs(values)
    product = size * _TO_NINE.take(power, mode="clip")
    nine = np.rint(product)
    is_uncertain = np.abs(product - nine) > _POINT_FIVE
    if is_uncertain.any():
        nine[is_uncertain] = np.nan
    return np.where(is_short, six * 1000, nine), is_short


_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _filled(text: bytes, numbers: list[float], is_short: list[bool]) -> bytes:
    """The text with the numbers in the places of its nulls."""
    parts = text.split(b"null")
    filled = [b""] * (2 * len(parts) - 1)
    filled[::2] = parts
    filled[1::2] = [
        as_double(("%.6g" if short else "%.9g") % number).encode()
        for number, short in zip(numbers, is_short, strict=True)
    ]
    return b"".join(filled)


def as_double(text: str) -> str:
    """What `%g` wrote, as JSON has it: with a point or an exponent, or one of the names of what is not finite."""
    if "." in text or "e" in text:
        return text
    return _NOT_FINITE.get(text) or text + ".0"
