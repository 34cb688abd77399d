# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Cores as small as they can be with every part they have: what most proofs are about.

The solver's work grows with widths and lengths, while the control logic that the claims are about
is the same for all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from amaranth.hdl import signed, unsigned

import fixedpoint
import hdl.cores.softmax
from fixedpoint import QFormat
from hdl.catalog.example_model import ModelShape, example_model
from hdl.cores.argmax import ArgMax
from hdl.cores.engine import Engine
from hdl.cores.key_value_cache import KeyValueCache
from hdl.cores.layer_norm import LayerNorm
from hdl.cores.matrix_vector import MatrixVector
from hdl.cores.rms_norm import RMSNorm
from hdl.cores.sampler import Sampler
from hdl.cores.softmax import Softmax, SoftmaxNumerators
from hdl.decoder.attention import Attention
from hdl.parts.stream_parts import StreamQueue, StreamRegister, WidthConverter

from . import invariants, row_invariants
from .conservation import Conservation, Invariants, WholeSums
from .seeded_bugs import Build, build_patched

FEW_MAXIMA = 4  # so that rows of one score fill the FIFO of maxima


def tiny_engine() -> Engine:
    """Return 2 lanes of 2-bit numbers with every operation."""
    return Engine(2, (1, 2), 2, 2, activation_bits=2, element_bits=2)


def tiny_softmax(length: int = 2) -> fixedpoint.Softmax:
    """Return rows of at most `length` scores of 4 bits."""
    return fixedpoint.Softmax(
        QFormat(4, 1), length, fixedpoint.Exponential(1, 1, 2), fixedpoint.Reciprocal(2, 3), QFormat(3, 3, signed=False)
    )


def tiny_norm(channels: int = 2, bits: int = 4) -> fixedpoint.LayerNorm:
    """Return a LayerNorm of few short numbers."""
    ones, zeros = np.ones(channels), np.zeros(channels)
    return fixedpoint.LayerNorm.from_float(ones, zeros, 1e-5, QFormat(bits, 2), QFormat(4, 2), 4)


def tiny_rms_norm(channels: int = 2, bits: int = 4) -> fixedpoint.RMSNorm:
    """Return an RMSNorm of few short numbers."""
    return fixedpoint.RMSNorm.from_float(np.ones(channels), 1e-5, QFormat(bits, 2), QFormat(4, 2), 4)


def tiny_linear() -> fixedpoint.Linear:
    """Return a matrix of 3 rows and 3 columns, not divided evenly by a tile."""
    weight = np.array([[7.0, 7.0, 7.0], [-8.0, -8.0, -8.0], [1.0, 0.0, -1.0]])
    return fixedpoint.Linear.from_float(weight, np.array([5.0, -5.0, 0.0]), 4, QFormat(3, 0), QFormat(3, -3))


def tiny_attention() -> Attention:
    """Return attention of 2 channels and 1 head over 2 tokens."""
    shape = ModelShape(channels=2, heads=1, context_length=2, hidden=2, vocabulary=2, weight_bits=4)
    return Attention(example_model(shape).blocks[0].attention)


def few_maxima(build: Build) -> Build:
    """Return a builder of a core whose FIFO of maxima holds `FEW_MAXIMA`."""
    return lambda: build_patched(build, hdl.cores.softmax, MAXIMA=FEW_MAXIMA)


@dataclass(frozen=True)
class TinyCore:
    """A core, its environment and its invariants.

    Attributes:
        build: Makes it.
        invariants: Its invariants.
        bound: Cycles within which a row ends, from any state that can be reached, while nobody
            stalls.
        row_lengths: Shortest and longest rows of each input with `last`.
        environment: `Conservation`, or a subclass that assumes more.
    """

    build: Build
    invariants: Invariants
    bound: int
    row_lengths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    environment: type[Conservation] = Conservation


def _rows(shortest: int, longest: int) -> dict[str, tuple[int, int]]:
    return {"i": (shortest, longest)}


TINY_CORES: dict[str, TinyCore] = {
    "matrix-vector": TinyCore(lambda: MatrixVector(tiny_linear(), 2), invariants.matrix_vector, 36, _rows(3, 3)),
    "engine": TinyCore(tiny_engine, invariants.engine, 14, environment=WholeSums),
    "softmax": TinyCore(few_maxima(lambda: Softmax(tiny_softmax())), row_invariants.softmax, 24, _rows(1, 2)),
    "softmax-numerators": TinyCore(
        few_maxima(lambda: SoftmaxNumerators(tiny_softmax())), row_invariants.row_numerators, 11, _rows(1, 2)
    ),
    "layer-norm": TinyCore(lambda: LayerNorm(tiny_norm()), row_invariants.row_norm, 30, _rows(2, 2)),
    "layer-norm-lanes": TinyCore(lambda: LayerNorm(tiny_norm(4), 2), row_invariants.row_norm, 31, _rows(2, 2)),
    "rms-norm": TinyCore(lambda: RMSNorm(tiny_rms_norm()), row_invariants.row_norm, 28, _rows(2, 2)),
    "argmax": TinyCore(lambda: ArgMax(QFormat(3, 0), 3), invariants.argmax, 5, _rows(1, 3)),
    "sampler": TinyCore(
        lambda: Sampler(fixedpoint.Sampler(QFormat(4, 0), 0.8), 2), row_invariants.sampler, 24, _rows(1, 2)
    ),
    "key-value-cache": TinyCore(lambda: KeyValueCache(signed(2), 2, 2, 1), invariants.key_value_cache, 10, _rows(4, 4)),
    "stream-queue": TinyCore(lambda: StreamQueue(unsigned(3), 4), invariants.stream_queue, 4),
    "stream-register": TinyCore(lambda: StreamRegister(unsigned(3)), invariants.stream_register, 3),
    "width-converter": TinyCore(lambda: WidthConverter(signed(2), 1, 4), invariants.width_converter, 5, _rows(4, 4)),
}
