"""The report's histograms: how every tensor of the integer model uses its format's range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from fixedpoint import QuantizedTransformer
from fixedpoint.operators.embedding import Embedding
from fixedpoint.operators.linear import Linear
from fixedpoint.operators.row_norm import RowNorm
from fixedpoint.qformat import IntegerArray, QFormat
from fixedpoint.quantization.analysis import tensor_formats

BARS = 64
TOKENS = 2048  # of held-out text, through which the activations are gathered


@dataclass(frozen=True)
class Usage:
    """How often a tensor's integers are where in the range of their format.

    Attributes:
        name: The tensor.
        format: Q-format, or bits where every row has its own scale.
        counts: Integers in each of at most `BARS` equal parts of the range, the smallest first.
        at_ends: Fraction of them that are the smallest or the largest integer.
    """

    name: str
    format: str
    counts: IntegerArray
    at_ends: float


def usage(name: str, shown: str, values: IntegerArray, bits: int) -> Usage:
    """Count integers of `bits` bits."""
    code = QFormat(bits, 0)
    bars = min(BARS, 1 << bits)
    places = (values.reshape(-1) - code.minimum_integer) * bars >> bits
    ends = np.count_nonzero((values == code.minimum_integer) | (values == code.maximum_integer))
    return Usage(name, shown, np.bincount(places, minlength=bars), ends / values.size)


def weights_used(quantized: QuantizedTransformer) -> Iterator[Usage]:
    """Yield the histograms of all tables, matrices and scales."""
    for operation in quantized.operations:
        operator, name = operation.operator, operation.name
        if isinstance(operator, Embedding):
            for part, table in operator.tables.items():
                yield usage(f"{name}.{part}", f"{table.weight_bits} bits", table.weight, table.weight_bits)
        elif isinstance(operator, Linear):
            yield usage(f"{name}.weight", f"{operator.weight_bits} bits", operator.weight, operator.weight_bits)
        elif isinstance(operator, RowNorm):
            form = operator.scale_format
            yield usage(f"{name}.scale", str(form), operator.scale, form.bits)


def activations_used(quantized: QuantizedTransformer, held_out: np.ndarray) -> list[Usage]:
    """Return the histograms of all tensors between the layers, over some held-out text (N,)."""
    length = min(quantized.context_length, len(held_out))
    count = max(1, min(TOKENS, len(held_out)) // length)
    found: dict[str, IntegerArray] = {}
    quantized.forward(held_out[: count * length].reshape(count, length), found.__setitem__)
    return [usage(name, str(form), found[name], form.bits) for name, form in tensor_formats(quantized).items()]


def histograms(rows: list[Usage]) -> str:
    """Return a small chart for each tensor, side by side: the root of the counts over the range."""
    return f'<div class="histograms">{"".join(map(histogram, rows))}</div>'


def histogram(row: Usage) -> str:
    """Return one chart."""
    heights = np.sqrt(row.counts / max(1, int(row.counts.max())))
    width = 128 / len(heights)
    bars = "".join(
        f"M{index * width:.4g} 40v{-36 * height:.1f}h{width * 0.86:.4g}V40z"
        for index, height in enumerate(heights)
        if height
    )
    said = f"{row.name}, {row.format}: {np.count_nonzero(row.counts)} of {len(heights)} parts of the range are used, "
    return (
        f'<figure><svg viewBox="0 0 128 41" role="img" aria-label="{escape(said)}{row.at_ends:.2%} at its ends">'
        f'<path class="bars" d="{bars}"/><path class="grid" d="M0 40.5h128M64 40.5v-3"/></svg>'
        f"<figcaption><b>{escape(row.name)}</b> {escape(row.format)}, {row.at_ends:.2%} at the ends</figcaption></figure>"
    )
