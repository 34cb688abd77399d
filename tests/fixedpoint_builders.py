"""Layers of integer models from random numbers, for the tests of `fixedpoint`; whole models:
model_kinds.py.
"""

import numpy as np

from fixedpoint import Attention, LayerNorm, Linear, QFormat
from fixedpoint.quantization.histogram import Histogram

RESIDUAL = QFormat(16, 10)
NORMED = QFormat(8, 5)


def histogram_of(values):
    histogram = Histogram()
    histogram.add(values)
    return histogram


def random_linear(generator, rows, columns, input_format, output, weight_bits=8):
    """A layer whose rows have different scales, and whose outputs use the range and sometimes leave
    it.
    """
    layer = Linear.from_float(
        generator.normal(size=(rows, columns)) * 2.0 ** generator.integers(-2, 2, size=(rows, 1)),
        generator.normal(size=rows),
        weight_bits,
        input_format,
        output,
    )
    assert len(set(layer.weight_fraction.tolist())) > 1 or rows <= 2  # few may be alike by chance
    return layer


def random_norm(generator, channels, input_format=RESIDUAL, output=NORMED):
    return LayerNorm.from_float(
        generator.uniform(-2, 2, size=channels), generator.normal(size=channels), 1e-5, input_format, output, 8
    )


def random_attention(generator, channels=12, num_heads=3, context_length=7, weight_bits=8, output=RESIDUAL):
    def projection(target, source=NORMED):
        return random_linear(generator, channels, channels, source, target, weight_bits)

    return Attention(
        query=projection(QFormat(8, 5)),
        key=projection(QFormat(8, 4)),
        value=projection(QFormat(8, 5)),
        output=projection(output, QFormat(8, 6)),
        num_heads=num_heads,
        context_length=context_length,
    )


def adversarial_rows(channels, input_format):
    """Rows for a norm, that reach the largest sums, differences and variances, and the smallest."""
    low, high = input_format.minimum_integer, input_format.maximum_integer
    rows = [np.full(channels, value) for value in (low, high, 0, -1)]
    for ones in {1, channels // 2, channels - 1} - {0, channels}:
        for a, b in ((low, high), (high, low), (0, 1), (-1, 0), (low, low + 1), (high, high - 1)):
            row = np.full(channels, a)
            row[:ones] = b
            rows.append(row)
    generator = np.random.default_rng(channels)
    rows.extend(generator.integers(low, high, size=(8, channels), endpoint=True))
    rows.extend(np.clip(np.rint(generator.normal(size=(8, channels)) * 300), low, high).astype(np.int64))
    return np.array(rows)
