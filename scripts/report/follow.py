"""What the page's panel that follows a token reads: the float model's tensors, units and cycles.

The integers are not among it: the page computes them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fixedpoint.quantization.analysis import tensor_formats
from fixedpoint.quantization.calibration import integer_factor
from fixedpoint.transformer import QuantizedTransformer
from model import Transformer

LARGEST_BYTES = 500_000  # of floats, before base64
# The unit of the decoder circuit that gives a tensor, and the engine's work that causes it.
MADE_BY = {
    "attention.query": ("requantize", "query, key, value"),
    "attention.key": ("requantize", "query, key, value"),
    "attention.value": ("requantize", "query, key, value"),
    "attention.rotated_query": ("rotate", "query, key, value"),
    "attention.rotated_key": ("rotate", "query, key, value"),
    "attention.context": ("divide", "values"),
    "attention.output": ("requantize", "output"),
    "attention_residual": ("residual", "output"),
    "feed_forward_norm": ("norms", "output"),
    "feed_forward.gate": ("requantize", "up"),
    "feed_forward.up": ("requantize", "up"),
    "feed_forward.gate_activation": ("hidden", "up"),
    "feed_forward.activation": ("hidden", "up"),
    "feed_forward.down": ("requantize", "down"),
    "feed_forward_residual": ("residual", "down"),
}


def followed(
    model: Transformer, quantized: QuantizedTransformer, tokens: Sequence[int], timeline: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Return the first tokens' floats of every tensor, as the integer model scales them, and when
    the circuit has the integers; None where there is no token, or no room for one.

    Args:
        model: The float model.
        quantized: The integer model.
        tokens: A text, at most as long as the context.
        timeline: Of `simulation/results.json`.
    """
    operations = quantized.operations
    count = min(len(tokens), LARGEST_BYTES // (4 * sum(operation.channels for operation in operations)))
    if count == 0:
        return None
    floats: dict[str, np.ndarray] = {}
    model.forward(np.asarray(tokens[:count])[None], observe=floats.__setitem__)
    names = tensor_formats(quantized)
    attention = [floats[name.replace("context", "weights")] for name in names if name.endswith("attention.context")]
    return {
        "tokens": list(tokens[:count]),
        "floats": {name: packed_floats(floats[name] * integer_factor(model.config, name)) for name in names},
        # each (1, H, T, T) -> (L, H, T, T)
        "attention": packed_floats(np.concatenate(attention)),
        "cycles": cycles(names, timeline) if timeline else {},
        "position": timeline["position"] if timeline else None,
    }


def cycles(names: Iterable[str], timeline: Mapping[str, Any]) -> dict[str, Any]:
    """Return for each tensor the unit that gives it, and its first and last cycle."""
    spans: dict[tuple[str, str, int], tuple[int, int]] = {}
    for span in timeline["spans"]:
        key = span["unit"], span["work"], span["layer"]
        begin, end = spans.get(key, (span["begin"], span["end"]))
        spans[key] = min(begin, span["begin"]), max(end, span["end"])
    last = max(layer for _, _, layer in spans)
    found = {}
    for name in names:
        key = made_by(name, last)
        if key in spans:
            found[name] = [key[0], *spans[key]]
    return found


def made_by(name: str, last: int) -> tuple[str, str, int]:
    """Return the unit, the work and the block that a tensor's integers come from.

    Args:
        name: The tensor.
        last: Index of the last block.
    """
    if name == "embedding":
        return "residual", "embedding", 0
    if name == "final_norm":
        return "norms", "down", last
    if not name.startswith("blocks."):
        return "requantize", "logits", last
    _, number, tensor = name.split(".", 2)
    if tensor == "attention_norm":  # of what the block before gave
        return ("norms", "embedding", 0) if number == "0" else ("norms", "down", int(number) - 1)
    return *MADE_BY[tensor], int(number)


def packed_floats(values: np.ndarray) -> str:
    """Return base64 of float32 values, little-endian, in their order."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode()
