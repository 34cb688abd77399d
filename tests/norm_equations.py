"""The equations of LayerNorm and RMSNorm in Python's integers and in float64, beside which
`fixedpoint` is tested.
"""

import math
from fractions import Fraction

import numpy as np

from fixedpoint import LayerNorm, QFormat

INPUT = QFormat(16, 10)
OUTPUT = QFormat(8, 5)
WIDE = QFormat(16, 10)
SCALE_FORMAT = QFormat(8, 6)
CHANNELS = [1, 2, 3, 4, 5, 16, 17, 64, 100, 128]


def norm_from_float(kind, scale, shift, epsilon=1e-5, input_format=INPUT, output=OUTPUT):
    """A LayerNorm, or an RMSNorm, which has no shift."""
    shifts = (shift,) if kind is LayerNorm else ()
    return kind.from_float(scale, *shifts, epsilon, input_format, output, 8)


def random_norm(kind, channels, input_format=INPUT, output=OUTPUT):
    generator = np.random.default_rng(0)
    scale, shift = generator.uniform(-2, 2, channels), generator.normal(size=channels)
    return norm_from_float(kind, scale, shift, 1e-5, input_format, output)


def identity(kind, channels, input_format=INPUT, output=WIDE, **fields):
    """A norm with gamma 1 and beta 0."""
    if kind is LayerNorm:
        fields["shift"] = np.zeros(channels, dtype=np.int64)
    return kind(
        input=input_format,
        scale=np.full(channels, 64),
        scale_format=SCALE_FORMAT,
        output=output,
        epsilon=1,
        **fields,
    )


def intermediates(norm, row):
    """The docstrings' equations in Python integers: S, Q, all C·x_i, d_i, v, n_i, products and the
    outputs. RMSNorm has S = 0 and no shift.
    """
    row = [int(x) for x in row]
    channels, centered = len(row), isinstance(norm, LayerNorm)
    total, squares = sum(row) if centered else 0, sum(x * x for x in row)
    scaled = [channels * x for x in row]
    differences = [x - total for x in scaled]
    variance = channels * squares - total * total + norm.epsilon
    root = norm.reciprocal_square_root.compute(np.array([variance]))
    mantissa, exponent = int(root.mantissa[0]), int(root.exponent[0])

    def cast(value, shift, target):
        rounded = math.floor(Fraction(value) / Fraction(2) ** shift + Fraction(1, 2))
        return max(target.minimum_integer, min(target.maximum_integer, rounded))

    normalized = [cast(d * mantissa, exponent - norm.normalized.fraction, norm.normalized) for d in differences]
    shifts = norm.shift if centered else [0] * channels
    products = [n * int(s) + int(b) for n, s, b in zip(normalized, norm.scale, shifts, strict=True)]
    shift = norm.normalized.fraction + norm.scale_format.fraction - norm.output.fraction
    return {
        "sums": [total, *scaled],
        "squares": squares,
        "differences": differences,
        "variance": variance,
        "normalized": normalized,
        "products": products,
        "outputs": [cast(product, shift, norm.output) for product in products],
    }


def normalized_in_float(norm, rows):
    """Return what n stands for, float64 (..., C), with the norm's epsilon, which is rounded to
    whole units of v.
    """
    values = norm.input.dequantize(rows)
    if isinstance(norm, LayerNorm):
        values = values - values.mean(axis=-1, keepdims=True)
    epsilon = norm.epsilon / norm.channels**2 * norm.input.resolution**2
    return values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + epsilon)


def rows_of_many_spreads(channels, generator, smallest_exponent):
    """Return 300 rows of format INPUT whose deviations range over powers of ten, and whose means
    are not 0.
    """
    spreads = 10.0 ** generator.uniform(smallest_exponent, 4, size=(300, 1))
    rows = np.rint(spreads * generator.normal(size=(300, channels)) + 500 * generator.normal(size=(300, 1)))
    return np.clip(rows, INPUT.minimum_integer, INPUT.maximum_integer).astype(np.int64)


def every_row_of_two_bytes():
    codes = np.arange(-128, 128)
    return np.stack(np.meshgrid(codes, codes), axis=-1).reshape(-1, 2)


def errors_in_units(norm, rows, exact):
    """Return the distances of the outputs from float64 values (..., C), in units of the output."""
    exact = np.clip(exact, norm.output.minimum, norm.output.maximum)
    return np.abs(norm.output.dequantize(norm.compute(rows)) - exact) / norm.output.resolution
