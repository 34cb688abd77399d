r"""The operators of the specification, prepared for speed: exact integers stored in floats.

A float holds every integer of magnitude up to \(2^{24}\) (float32) or \(2^{53}\) (float64), and
such an integer times a power of two. Sums and products whose exact results stay within that bound
are not rounded at all, in any order. Each class here derives the bound of its own intermediate
results from the actual weights when it is prepared, and takes the narrowest float that suffices.
Shifts then become factors of \(2^{-s}\), which fold into weights:

\[ \left\lfloor \frac{\sum_k W_{rk} x_k + b_r + 2^{s_r - 1}}{2^{s_r}} \right\rfloor
   = \left\lfloor \sum_k (W_{rk} 2^{-s_r})\, x_k + (b_r 2^{-s_r} + \tfrac12) \right\rfloor \]

so that a requantized product is a BLAS product, an addition, a floor and a clip. The results equal
those of `fixedpoint/operators`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..arithmetic import FLOAT32_EXACT, FLOAT64_EXACT
from ..operators.exponential import Exponential
from ..operators.layer_norm import LayerNorm
from ..operators.linear import Linear
from ..operators.reciprocal import Reciprocal, ReciprocalSquareRoot
from ..operators.rms_norm import RMSNorm
from ..qformat import QFormat

Floats = NDArray[np.float32] | NDArray[np.float64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


class Buffers:
    """Memory that every call reuses: fresh memory costs more than the arithmetic on it."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, np.dtype], np.ndarray] = {}

    def array(self, name: str, dtype: np.typing.DTypeLike, *shape: int) -> np.ndarray:
        """Return an array with undefined content; the next request for the same name and type may
        return the same memory.
        """
        key = (name, np.dtype(dtype))
        size = math.prod(shape)
        flat = self._arrays.get(key)
        if flat is None or flat.size < size:
            flat = self._arrays[key] = np.empty(size, dtype)
        return flat[:size].reshape(shape)  # (size,) -> shape


def exact_dtype(bound: int) -> np.dtype:
    """Return the narrowest float type that is exact for integers up to `bound` in magnitude, times
    a power of two.

    Raises:
        OverflowError: Not even float64 is.
    """
    if bound <= FLOAT32_EXACT:
        return np.dtype(np.float32)
    if bound <= FLOAT64_EXACT:
        return np.dtype(np.float64)
    raise OverflowError(f"integers up to {bound} are not exact in a float64")


class Product:
    """One or several linear layers that read the same input, as one product:
    `clip(floor(x · weight + offset), lowest, highest)`.

    Attributes:
        weight: `W · 2**-shift`, (K, R), of the narrowest exact float type.
        offset: `bias · 2**-shift + 1/2 + origin`, (R,); without the half where the shift rounds
            nothing.
        lowest, highest: Ends of the outputs' ranges, plus `origin`; (R,) where they differ.
        bound: Largest magnitude of an intermediate result, in units of the last place.
        saturates: Whether some input needs the clip.

    Args:
        layers: Layers of one input format.
        origin: Added to the results, for instance to make a table's index of them.
    """

    def __init__(self, layers: Sequence[Linear], origin: int = 0) -> None:
        largest = 1 << (layers[0].input.bits - 1)
        weight = np.concatenate([layer.weight for layer in layers])  # (R1, K), (R2, K), … -> (R, K)
        bias = np.concatenate([layer.bias for layer in layers])  # (R1,), (R2,), … -> (R,)
        shift = np.concatenate([layer.shift for layer in layers])  # (R1,), (R2,), … -> (R,)
        # below 2**32: an accumulator has at most 32 bits
        reach = np.abs(weight).sum(axis=1) * largest + np.abs(bias)
        half = np.where(shift > 0, np.int64(1) << np.clip(shift - 1, 0, 40), 0)
        idle = reach < half  # a row that always rounds to 0
        # (R,) -> (R, 1) for the weights
        weight, bias, shift = np.where(idle[:, None], 0, weight), np.where(idle, 0, bias), np.where(idle, 0, shift)
        half = np.where(idle, 0, half)
        # The origin is an integer in units of 2**-shift; for shifts to the left, the last place
        # is 1, the unit of the origin.
        units = [
            (int(most) << -int(s)) + abs(origin) if s < 0 and origin else int(most) + (abs(origin) << max(int(s), 0))
            for most, s in zip(reach + half, shift, strict=True)
        ]
        self.bound = max(units)
        dtype = exact_dtype(self.bound)
        self.weight: Floats = np.ldexp(weight.T.astype(np.float64), -shift).astype(dtype)
        self.offset: Floats = (np.ldexp((bias + half).astype(np.float64), -shift) + origin).astype(dtype)
        lowest, highest = (  # (R1,), (R2,), … -> (R,)
            np.concatenate([np.full(layer.rows, getattr(layer.output, end)) for layer in layers])
            for end in ("minimum_integer", "maximum_integer")
        )
        self.saturates = bool((np.ldexp((reach + half).astype(np.float64), -shift) >= highest + 1).any())
        equal = (highest == highest[0]).all()  # NumPy clips to one range ten times as fast
        ends = ((end[0] if equal else end) + origin for end in (lowest, highest))
        self.lowest, self.highest = (end.astype(dtype) for end in ends)

    @property
    def rows(self) -> int:
        """Outputs R."""
        return len(self.offset)

    def accumulate(self, x: Floats, buffers: Buffers, name: str) -> Floats:
        """Return `x · weight + offset`, (N, R), for x (N, K): neither rounded nor clipped."""
        result = buffers.array(name, self.weight.dtype, len(x), self.rows)
        np.matmul(x, self.weight, out=result)  # (N, K) @ (K, R) -> (N, R)
        result += self.offset
        return result

    def compute(self, x: Floats, buffers: Buffers, name: str) -> Floats:
        """Return the outputs (N, R) for x (N, K)."""
        result = self.accumulate(x, buffers, name)
        np.floor(result, out=result)
        if self.saturates:
            np.clip(result, self.lowest, self.highest, out=result)
        return result


class PreparedNorm:
    r"""LayerNorm or RMSNorm, on rows of float32 integers.

    The normalized element is one multiplication and one addition in float64,
    `floor(x · (C r) + (1/2 − S r))` with `r = mantissa · 2**-exponent`, and `r` itself is one
    table lookup: a float64's exponent and leading mantissa bits are its index. Where float64 does
    not suffice (more than some 2,000 channels of 16 bits), the specification's operator runs
    instead.

    Args:
        norm: The specification.

    Attributes:
        exact: Whether float64 suffices.
        saturates: Whether some input needs the clip of the normalized elements.
    """

    def __init__(self, norm: LayerNorm | RMSNorm) -> None:
        self.norm = norm
        self.channels = norm.channels
        self.centred = isinstance(norm, LayerNorm)
        self.epsilon = float(norm.epsilon)
        self.ones = np.ones(self.channels)
        root, normalized = norm.reciprocal_square_root, norm.normalized
        self.exact = self._is_exact()
        self.mantissa_shift = 53 - root.index_bits
        self.first_index = 1023 << (root.index_bits - 1)
        self.table = root_table(root) * 2.0**normalized.fraction
        # The largest quotient times the reciprocal's error: it usually fits 16 bits.
        largest = (self.channels - self.centred) ** 0.5 * (1 + 2.0**-root.index_bits + 2.0**-root.mantissa_bits)
        self.saturates = largest * 2.0**normalized.fraction + 1 >= normalized.maximum_integer
        self.lowest, self.highest = float(normalized.minimum_integer), float(normalized.maximum_integer)

        shift = norm.output_shift
        half = 1 << (shift - 1) if shift > 0 else 0
        offset = norm.shift if isinstance(norm, LayerNorm) else np.zeros_like(norm.scale)
        reach = np.abs(norm.scale) * (1 << (normalized.bits - 1)) + np.abs(offset)
        idle = np.array([int(most) < half for most in reach])  # a channel that always rounds to 0
        scale = np.where(idle, 0.0, norm.scale)
        offset = np.where(idle, 0.0, offset)
        bound = max((int(most) for most in reach[~idle]), default=0) + (0 if idle.all() else half)
        dtype = exact_dtype(bound)
        self.gain: Floats = np.ldexp(scale, -shift).astype(dtype)
        self.offset: Floats = (np.ldexp(offset, -shift) + (0.5 if half else 0.0)).astype(dtype)
        self.output_lowest = dtype.type(norm.output.minimum_integer)
        self.output_highest = dtype.type(norm.output.maximum_integer)

    def _is_exact(self) -> bool:
        """Return whether float64 holds every intermediate result of the normalization."""
        norm, root = self.norm, self.norm.reciprocal_square_root
        variance = (self.channels**2 << (2 * norm.input.bits - 2)) + norm.epsilon
        # the largest right shift
        finest = (variance.bit_length() >> 1) + root.mantissa_bits - norm.normalized.fraction
        product = 2 * self.channels << (norm.input.bits - 1 + root.mantissa_bits)
        whole = root.mantissa_bits > norm.normalized.fraction  # every shift is to the right
        return whole and variance <= FLOAT64_EXACT and product + (1 << finest) <= FLOAT64_EXACT

    def compute(self, x: Floats, buffers: Buffers) -> Floats:
        """Normalize rows x (N, C); the result is overwritten by the next norm of these buffers."""
        wide: Float64 = buffers.array("norm", np.float64, *x.shape)
        if not self.exact:
            np.copyto(wide, self.norm.compute(x.astype(np.int64)))
            return wide
        np.copyto(wide, x)
        factor = np.vecdot(wide, wide)  # (N, C) -> (N,)
        factor *= self.channels
        if self.centred:
            total = wide @ self.ones  # (N, C) @ (C,) -> (N,)
            factor -= total * total
        factor += self.epsilon  # v
        index = factor.view(np.int64) >> self.mantissa_shift
        index -= self.first_index
        root = self.table.take(index)
        np.multiply(root, self.channels, out=factor)
        wide *= factor[:, None]  # (N,) -> (N, 1)
        if self.centred:
            root *= total
            np.subtract(0.5, root, out=root)
            wide += root[:, None]  # (N,) -> (N, 1)
        else:
            wide += 0.5
        np.floor(wide, out=wide)
        if self.saturates:
            np.clip(wide, self.lowest, self.highest, out=wide)
        result: Floats = buffers.array("normalized", self.gain.dtype, *x.shape)
        np.copyto(result, wide)
        result *= self.gain
        result += self.offset
        np.floor(result, out=result)
        np.clip(result, self.output_lowest, self.output_highest, out=result)
        return result


@lru_cache(maxsize=8)
def root_table(root: ReciprocalSquareRoot) -> Float64:
    """Return `mantissa · 2**-exponent` for all integers from 1 to 2**53 in float64, by exponent
    and leading `index_bits − 1` mantissa bits.
    """
    bits = root.index_bits - 1
    leading = np.arange(1 << bits, 2 << bits)
    # with an even and an odd exponent
    even, odd = (leading, leading * 2) if bits % 2 == 0 else (leading * 2, leading)
    mantissas = [root.compute(even).mantissa, root.compute(odd).mantissa]
    rows = [np.ldexp(mantissas[e % 2].astype(np.float64), -((e >> 1) + root.mantissa_bits)) for e in range(54)]
    return np.concatenate(rows)  # 54 of (2**bits,) -> (54·2**bits,)


@lru_cache(maxsize=8)
def reciprocal_table(reciprocal: Reciprocal, largest: int) -> Float64:
    """Return `mantissa · 2**-exponent` of the reciprocals of 0 to `largest`; entry 0 is unused."""
    scaled = reciprocal.compute(np.maximum(np.arange(largest + 1), 1))
    return np.ldexp(scaled.mantissa.astype(np.float64), -scaled.exponent)


def exponential_table(exponential: Exponential, dtype: np.typing.DTypeLike) -> tuple[int, Floats]:
    """Return `s` and the numerators at distances `j · 2**s`, j = 0, 1, …, up to the first that is 0
    like all beyond it.

    `2**s` is half a step of the exponential's own table, so dropping the bits below it decides
    every rounding alike: `numerator(t) = table[t >> s]`.
    """
    shift = max(exponential.shift - 1, 0)
    last = -(-((exponential.output_bits + 1) << max(exponential.fraction, 0)) >> max(-exponential.fraction, 0) + shift)
    return shift, exponential.compute(np.arange(last + 1) << shift).astype(dtype)


def round_half_up(exact: Floats, output: QFormat, result: Floats) -> Floats:
    """Store numbers in `result`, rounded and saturated to integers of format `output`.

    Args:
        exact: The numbers, overwritten. Integers up to 2**31 in magnitude times any power of two
            are allowed: a sum with a half that float64 cannot hold is then near the half.
        output: Their format.
        result: Memory of the same shape.

    Returns:
        The result.
    """
    exact += 0.5
    np.floor(exact, out=exact)
    exact.clip(output.minimum_integer, output.maximum_integer, out=exact)
    np.copyto(result, exact, casting="same_kind")
    return result


def whole(values: Floats, buffers: Buffers) -> NDArray[np.int64]:
    """Return floats below 2**31 in magnitude truncated to integers, through int32: three times as
    fast as directly.
    """
    narrow = buffers.array("narrow", np.int32, *values.shape)
    wide: NDArray[np.int64] = buffers.array("index", np.int64, *values.shape)
    np.copyto(narrow, values, casting="unsafe")
    np.copyto(wide, narrow)
    return wide
