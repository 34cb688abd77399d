"""What a block of a quantized model computes on a text: the vectors of cores that are verified with
a trained model's own activations.
"""

from collections.abc import Callable

import numpy as np
from amaranth.lib import wiring

from fixedpoint import QuantizedTransformer
from fixedpoint.topology import block_prefix

from ..errors import CircuitError
from .vectors import Vectors, attention_tokens, cycles_of_rows, rows_through


class Activations:
    """The tensors of a forward pass over windows of a text that are drawn at random.

    Args:
        model: The quantized model.
        tokens: Text (n,), at least one context long.
        count: Vectors wanted; so many tokens, or a few more, are computed.
        generator: Draws the windows, then the rows of scores.
        layer: The block.

    Attributes:
        tensors: Name of an operation's result → integers (B, T, C).
        scores: `count` rows of the block's attention scores, each as long as its causal context.

    Raises:
        CircuitError: The text is too short.
    """

    def __init__(
        self, model: QuantizedTransformer, tokens: np.ndarray, count: int, generator: np.random.Generator, layer: int
    ):
        length = model.context_length
        if len(tokens) < length:
            raise CircuitError(f"the text has {len(tokens)} tokens; a bench needs one context of {length}")
        starts = generator.integers(0, len(tokens) - length + 1, -(-count // length))
        windows = np.asarray(tokens)[starts[:, None] + np.arange(length)].astype(np.int64)
        self.tensors: dict[str, np.ndarray] = {}
        model.forward(windows, observe=lambda name, values: self.tensors.update({name: values}))
        self._model, self._count, self._layer = model, count, layer
        # (B, H, T, T)
        scores = model.blocks[layer].attention.scores(self.tensors[block_prefix(layer) + "attention_norm"])
        drawn = zip(*(generator.integers(0, size, count) for size in scores.shape[:3]), strict=True)
        self.scores = [scores[window, head, position, : position + 1] for window, head, position in drawn]

    def rows(self, name: str) -> np.ndarray:
        """Return the first `count` vectors (count, C) of a tensor."""
        values = self.tensors[name]
        return values.reshape(-1, values.shape[-1])[: self._count]

    def input_of(self, part: str) -> np.ndarray:
        """Return the first `count` vectors of what an operation of the block reads."""
        name = block_prefix(self._layer) + part
        return self.rows(next(one.inputs[0] for one in self._model.operations if one.name == name))


# From a core and the activations of its model to its vectors.
ActivationsMaker = Callable[[wiring.Component, Activations], Vectors]


def part_activations(part: str) -> ActivationsMaker:
    """Return the maker for the core of one matrix or norm of a block."""

    def make(core: wiring.Component, seen: Activations) -> Vectors:
        rows = seen.input_of(part)
        return rows_through(core, list(rows), ("data", "data"), core.cycles(len(rows)))

    return make


def softmax_activations(core: wiring.Component, seen: Activations) -> Vectors:
    """Return rows of attention scores and their probabilities."""
    return rows_through(core, seen.scores, ("score", "probability"), cycles_of_rows(core, seen.scores))


def attention_activations(core: wiring.Component, seen: Activations) -> Vectors:
    """Return normalized tokens in sequences as long as the context, and attention's results."""
    tokens = seen.input_of("attention.query")
    return attention_tokens(core, tokens, np.arange(len(tokens)) % core.parameters.context_length == 0)
