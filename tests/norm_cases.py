"""What the tests of LayerNorm's and RMSNorm's circuits share: rows, and a bench for any number of
lanes.
"""

import dataclasses

import numpy as np
from core_bench import bench

from fixedpoint import QFormat, requantize
from sim.bench.payload import pack_all

RESIDUAL = QFormat(16, 10)
NORMED = QFormat(8, 5)


def special_rows(parameters):
    """Rows at the rails, rows without variance, and the extremes of difference and of variance."""
    lowest, highest, channels = parameters.input.minimum_integer, parameters.input.maximum_integer, parameters.channels
    place = np.arange(channels)
    return [
        np.full(channels, lowest),
        np.full(channels, highest),
        np.zeros(channels, dtype=int),
        np.where(place == 0, highest, lowest),  # one-hot: the largest normalized value
        np.where(place == channels - 1, lowest, highest),
        np.where(place == channels // 2, lowest, 0),  # RMSNorm saturates here if C is a power of 4
        np.where(place % 2, lowest, highest),  # the largest variance
        np.where(place == 0, 1, 0),  # the smallest variance above none
        place % 2 - 1,
        np.linspace(lowest, highest, channels).astype(int),
    ]


def random_rows(parameters, generator, count):
    rows = []
    for _ in range(count):
        spread = generator.choice([2, 30, 1000, parameters.input.maximum_integer + 1])
        spread = min(int(spread), parameters.input.maximum_integer + 1)
        row = generator.integers(-spread, spread, parameters.channels) + generator.integers(-spread, spread)
        rows.append(np.clip(row, parameters.input.minimum_integer, parameters.input.maximum_integer))
    return rows


def one_hot_rows(parameters):
    """Every row of zeros but for one element, which then is as large as any can be."""
    values = np.arange(parameters.input.minimum_integer, parameters.input.maximum_integer + 1)
    rows = np.zeros((len(values), parameters.channels), dtype=int)
    rows[np.arange(len(values)), np.arange(len(values)) % parameters.channels] = values
    return list(rows)


def normalized_beyond_the_range(parameters, difference, variance):
    """The elements d / sqrt(v) outside the normalized format, which the root's error alone can
    bring there.
    """
    root = parameters.reciprocal_square_root.compute(variance)
    wide = dataclasses.replace(parameters.normalized, bits=32)
    normalized = requantize(difference * root.mantissa, root.exponent - parameters.normalized.fraction, wide)
    return normalized[np.abs(normalized) > parameters.normalized.maximum_integer]


def pack_words(port, rows, lanes):
    """Raw words of rows for a stream of {data, last} whose words have `lanes` elements."""
    words = np.concatenate(rows).reshape(-1, lanes)
    each = len(rows[0]) // lanes
    last = np.arange(len(words)) % each == each - 1
    values = words[:, 0] if lanes == 1 else list(words.T)
    return pack_all(port.payload.shape(), {"data": values, "last": last.astype(int)})


def norm_bench(name, core, rows, component=None, **settings):
    """Return the bench of a norm's core, or of `component` around it."""
    expected = [core.parameters.compute(row) for row in rows]
    inputs, outputs = (pack_words(port, data, core.lanes) for port, data in ((core.i, rows), (core.o, expected)))
    return bench(name, component or core, inputs, {"o": outputs}, **settings)
