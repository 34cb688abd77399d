r"""Q-formats: integers that stand for fractions.

A value \(v\) is stored as the integer \(i = v \cdot 2^f\); `f` is the format's fraction. `Qm.n`
counts the sign among its `m` integer bits (the convention of ARM and AMD), so `Q4.4` is a signed
byte with a range of −8 … 7.9375. `UQm.n` is unsigned. `n` may be negative (steps larger than one)
or exceed the width (only small fractions).

Nothing here has a default: every cast names its rounding and its overflow, because these two decide
whether a circuit and its specification agree.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import is_whole
from .errors import QuantizationError

IntegerArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

# an int64 holds any value, and still any value with half a unit added for rounding
MAXIMUM_BITS = 62


class Rounding(Enum):
    """How a value between two representable ones is rounded."""

    HALF_UP = "half up"  # ties toward +infinity: one adder in hardware
    # ties to the even neighbour: no bias, one more gate level (IEEE 754's default)
    HALF_EVEN = "half even"
    FLOOR = "floor"  # toward −infinity: dropping bits, free in hardware
    TOWARD_ZERO = "toward zero"


class Overflow(Enum):
    """What becomes of a value outside the format's range."""

    SATURATE = "saturate"  # the nearest end of the range
    WRAP = "wrap"  # modulo 2**bits, as an adder without a guard does
    ERROR = "error"  # a `QuantizationError`


@dataclass(frozen=True)
class QFormat:
    """A fixed-point format of `bits` bits, `fraction` of them behind the binary point.

    Attributes:
        bits: Width in bits, 1 to 62, the sign included.
        fraction: Bits behind the binary point; any integer. The value of an integer `i` is
            `i * 2**-fraction`.
        signed: Two's complement when true.
    """

    bits: int
    fraction: int
    signed: bool = True

    def __post_init__(self) -> None:
        for name in ("bits", "fraction"):
            value = getattr(self, name)
            if not is_whole(value):
                raise TypeError(f"QFormat {name} must be an integer, not {value!r}")
            object.__setattr__(self, name, int(value))
        if not 1 <= self.bits <= MAXIMUM_BITS:
            raise ValueError(f"QFormat bits must be 1 to {MAXIMUM_BITS}, not {self.bits}")
        if not isinstance(self.signed, bool):
            raise TypeError(f"QFormat signed must be a bool, not {self.signed!r}")

    @classmethod
    def parse(cls, text: str) -> QFormat:
        """Read `Qm.n` or `UQm.n`, for instance `Q4.4`, `Q-2.10`, `UQ0.8`.

        Raises:
            QuantizationError: The text is no such format.
        """
        match = re.fullmatch(r"(U?)Q(-?\d+)\.(-?\d+)", text) if isinstance(text, str) else None
        if match is None:
            raise QuantizationError(f"a Q-format is written Qm.n or UQm.n, like Q4.4 or UQ0.8; got {text!r}")
        integer, fraction = int(match[2]), int(match[3])
        try:
            return cls(integer + fraction, fraction, signed=not match[1])
        except ValueError as error:
            raise QuantizationError(f"{text!r} is not a usable Q-format: {error}") from None

    def __str__(self) -> str:
        return f"{'' if self.signed else 'U'}Q{self.bits - self.fraction}.{self.fraction}"

    @property
    def minimum_integer(self) -> int:
        """The smallest stored integer."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def maximum_integer(self) -> int:
        """The largest stored integer."""
        return (1 << (self.bits - self.signed)) - 1

    @property
    def resolution(self) -> float:
        """The value of one unit in the last place, `2**-fraction`."""
        return 2.0**-self.fraction

    @property
    def minimum(self) -> float:
        """The smallest value."""
        return self.minimum_integer * self.resolution

    @property
    def maximum(self) -> float:
        """The largest value."""
        return self.maximum_integer * self.resolution

    def quantize(self, values: ArrayLike, rounding: Rounding, overflow: Overflow) -> IntegerArray:
        """Convert real values to this format's integers.

        Args:
            values: Real numbers of any shape. Scaling by a power of two is exact in float64 (of
                normal numbers).
            rounding: Which neighbour a value between two integers becomes.
            overflow: What a value out of range becomes. Infinities saturate; they are an error
                otherwise.

        Returns:
            int64 array of the same shape.

        Raises:
            QuantizationError: A NaN anywhere; a value out of range where `overflow` is `ERROR`; an
                infinity or a value beyond 2**62 units where `overflow` is `WRAP`.
        """
        # beyond float64 is beyond any format, and handled as an infinity
        with np.errstate(over="ignore"):
            scaled = np.ldexp(np.asarray(values, dtype=np.float64), self.fraction)
        if np.isnan(scaled).any():
            raise QuantizationError(f"cannot quantize NaN to {self}")
        # `+ 0.5` would itself round for values next to a tie; comparing the exact remainder does
        # not.
        whole = np.floor(scaled)
        # infinity − infinity; the remainder of an infinity is not used
        with np.errstate(invalid="ignore"):
            remainder = scaled - whole
        if rounding is Rounding.HALF_UP:
            whole = whole + (remainder >= 0.5)
        elif rounding is Rounding.HALF_EVEN:
            whole = np.rint(scaled)
        elif rounding is Rounding.TOWARD_ZERO:
            whole = np.trunc(scaled)
        if overflow is not Overflow.SATURATE and (np.abs(whole) > 2.0**62).any():
            raise QuantizationError(
                f"a value is too large for {self}: {float(np.abs(scaled).max()) * self.resolution:g}"
            )
        if overflow is Overflow.SATURATE:
            # Clipped before the conversion: a float beyond int64 has no defined one. Formats have
            # at most 62 bits.
            whole = np.clip(whole, -(2.0**62), 2.0**62)
        return self.fit(whole.astype(np.int64), overflow)

    def fit(self, integers: ArrayLike, overflow: Overflow) -> IntegerArray:
        """Bring integers that already count this format's units into its range.

        Raises:
            TypeError: The values are not integers; `quantize` rounds real ones.
            QuantizationError: A value is out of range and `overflow` is `ERROR`.
        """
        wide = as_int64(integers)
        if overflow is Overflow.SATURATE:
            return np.clip(wide, self.minimum_integer, self.maximum_integer)
        if overflow is Overflow.WRAP:
            modulus = 1 << self.bits
            return (wide - self.minimum_integer) % modulus + self.minimum_integer
        if not self.holds(wide):
            raise QuantizationError(
                f"{self} holds {self.minimum:g} to {self.maximum:g}; got "
                f"{float(wide.min()) * self.resolution:g} to {float(wide.max()) * self.resolution:g}"
            )
        return wide.copy()

    def holds(self, integers: ArrayLike) -> bool:
        """Whether every integer is in the format's range (true for an empty array)."""
        array = np.asarray(integers)
        return bool(((array >= self.minimum_integer) & (array <= self.maximum_integer)).all())

    def dequantize(self, integers: ArrayLike) -> FloatArray:
        """Return the real values of stored integers (float64, exact up to 53 bits)."""
        return np.ldexp(np.asarray(integers, dtype=np.float64), -self.fraction)

    def product(self, other: QFormat) -> QFormat:
        """Return the smallest format that holds every product of two values exactly."""
        signed = self.signed or other.signed
        extremes = [
            a * b
            for a in (self.minimum_integer, self.maximum_integer)
            for b in (other.minimum_integer, other.maximum_integer)
        ]
        return QFormat(bits_for(min(extremes), max(extremes), signed), self.fraction + other.fraction, signed)

    def sum(self, other: QFormat) -> QFormat:
        """Return the smallest format that holds every sum of two values exactly."""
        signed = self.signed or other.signed
        fraction = max(self.fraction, other.fraction)
        a, b = fraction - self.fraction, fraction - other.fraction
        lowest = (self.minimum_integer << a) + (other.minimum_integer << b)
        highest = (self.maximum_integer << a) + (other.maximum_integer << b)
        return QFormat(bits_for(lowest, highest, signed), fraction, signed)


def as_int64(values: ArrayLike) -> IntegerArray:
    """Return integers of any type as int64. NumPy's own conversion would cut real values off.

    Raises:
        TypeError: The values are not integers, or of a type that int64 does not hold.
    """
    array = np.asarray(values)
    if array.size and not np.can_cast(array.dtype, np.int64):
        raise TypeError(f"integers that int64 holds are wanted, not {array.dtype}; QFormat.quantize rounds real values")
    return array.astype(np.int64, copy=False)


def bits_for(lowest: int, highest: int, signed: bool) -> int:
    """Return how many bits hold every integer from `lowest` to `highest`, at least one."""
    if not signed:
        if lowest < 0:
            raise ValueError(f"an unsigned number cannot be {lowest}")
        return max(1, highest.bit_length())
    return max((end if end >= 0 else ~end).bit_length() for end in (lowest, highest)) + 1


def covering_fraction(magnitude: float, bits: int, signed: bool = True) -> int:
    """Return the largest fraction at which `bits` bits represent ±`magnitude` unsaturated.

    Raises:
        QuantizationError: `magnitude` is NaN, infinite or negative.
    """
    if not np.isfinite(magnitude) or magnitude < 0:
        raise QuantizationError(f"cannot choose a format for a magnitude of {magnitude}")
    largest = (1 << (bits - signed)) - 1
    if magnitude == 0 or largest == 0:
        return bits - signed
    # magnitude = mantissa · 2**exponent with 0.5 <= mantissa < 1, so this is the answer or one too
    # many.
    mantissa, exponent = math.frexp(magnitude)
    fraction = largest.bit_length() - exponent
    return fraction if math.ldexp(mantissa, largest.bit_length()) <= largest else fraction - 1
