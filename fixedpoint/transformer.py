"""The whole quantized decoder: integer tokens in, integer logits out, nothing in between but integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from .activation import TableActivation
from .arithmetic import Integers, residual_add
from .attention import Attention, KeyValueCache
from .embedding import Embedding
from .errors import QuantizationError
from .layer_norm import LayerNorm
from .linear import Linear
from .qformat import IntegerArray, QFormat
from .rms_norm import RMSNorm

if TYPE_CHECKING:
    from .engine import Engine

Norm = LayerNorm | RMSNorm
Observer = Callable[[str, IntegerArray], None]
Cache = tuple[KeyValueCache, ...]  # one a block


def ignore(name: str, values: IntegerArray) -> None:
    """Observe nothing."""


def _observe_in_block(observe: Observer, prefix: str, name: str, values: IntegerArray) -> None:
    observe(f"{prefix}.{name}", values)


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm decoder block: `x += attention(norm(x))`, `x += down(activation(up(norm(x))))`."""

    attention_norm: Norm
    attention: Attention
    feed_forward_norm: Norm
    up: Linear
    activation: TableActivation
    down: Linear

    def extend(
        self, x: Integers, residual: QFormat, cache: KeyValueCache, observe: Observer = ignore
    ) -> tuple[IntegerArray, KeyValueCache]:
        """Run the block on the residuals (..., N, C) of the next tokens, format `residual`; returns theirs and the longer cache."""

        def seen(name: str, values: IntegerArray) -> IntegerArray:
            observe(name, values)
            return values

        normed = seen("attention_norm", self.attention_norm.compute(x))
        attended, cache = self.attention.extend(normed, cache)
        x = seen("attention_residual", residual_add(x, seen("attention.output", attended), residual))
        normed = seen("feed_forward_norm", self.feed_forward_norm.compute(x))
        hidden = seen("feed_forward.up", self.up.compute(normed))
        activated = seen("feed_forward.activation", self.activation.compute(hidden))
        fed = seen("feed_forward.down", self.down.compute(activated))
        return seen("feed_forward_residual", residual_add(x, fed, residual)), cache

    def compute(self, x: Integers, residual: QFormat, observe: Observer = ignore) -> IntegerArray:
        """Run the block on the residuals (..., T, C) of whole sequences, format `residual`."""
        return self.extend(x, residual, self.attention.empty_cache(*x.shape[:-2]), observe)[0]


@dataclass(frozen=True, eq=False)
class QuantizedTransformer:
    """A decoder in integers. Build it with `quantize_transformer` or `load_export`.

    Attributes:
        embedding: Token and position embedding.
        blocks: The decoder blocks.
        final_norm: LayerNorm or RMSNorm before the logits.
        logits: Projection (V, C) to the vocabulary.
        residual: The residual stream's format, one for the whole network.
    """

    embedding: Embedding
    blocks: tuple[Block, ...]
    final_norm: Norm
    logits: Linear
    residual: QFormat

    def __post_init__(self) -> None:
        if not self.blocks:
            raise QuantizationError("a transformer needs at least one block")
        if self.embedding.output != self.residual:
            raise QuantizationError(
                f"the embedding produces {self.embedding.output}, the residual stream is {self.residual}"
            )
        for index, block in enumerate(self.blocks):
            joints = (
                ("residual", "attention_norm", self.residual, block.attention_norm.input),
                ("attention_norm", "attention", block.attention_norm.output, block.attention.query.input),
                ("attention", "residual", block.attention.output.output, self.residual),
                ("residual", "feed_forward_norm", self.residual, block.feed_forward_norm.input),
                ("feed_forward_norm", "up", block.feed_forward_norm.output, block.up.input),
                ("up", "activation", block.up.output, block.activation.input),
                ("activation", "down", block.activation.output, block.down.input),
                ("down", "residual", block.down.output, self.residual),
            )
            for source, target, produced, expected in joints:
                if produced != expected:
                    raise QuantizationError(
                        f"block {index}: {source} produces {produced}, but {target} expects {expected}"
                    )
        channels, attention = self.embedding.token.weight.shape[1], self.blocks[0].attention
        for index, block in enumerate(self.blocks):
            shapes = (
                ("attention_norm", (channels,), block.attention_norm.scale.shape),
                ("attention", (channels, channels), block.attention.query.weight.shape),
                ("feed_forward_norm", (channels,), block.feed_forward_norm.scale.shape),
                ("up", (block.up.rows, channels), block.up.weight.shape),
                ("down", (channels, block.up.rows), block.down.weight.shape),
            )
            for name, expected_shape, shape in shapes:
                if shape != expected_shape:
                    raise QuantizationError(f"block {index}: {name} must have shape {expected_shape}, not {shape}")
            sizes = (block.attention.num_heads, block.attention.context_length)
            if sizes != (attention.num_heads, attention.context_length):
                raise QuantizationError(
                    f"block {index} has (heads, context) {sizes}, block 0 {(attention.num_heads, attention.context_length)}"
                )
        if len(self.embedding.position.weight) < self.context_length:
            raise QuantizationError(
                f"{len(self.embedding.position.weight)} positions are embedded, but the context has {self.context_length}"
            )
        if self.final_norm.channels != channels or self.logits.weight.shape != (self.vocab_size, channels):
            raise QuantizationError(
                f"final norm and logits must have {channels} channels, not {self.final_norm.channels} and {self.logits.columns}"
            )
        if len(self.embedding.token.weight) != self.vocab_size:
            raise QuantizationError(
                f"{len(self.embedding.token.weight)} tokens are embedded, but there are logits for {self.vocab_size}"
            )
        if self.final_norm.input != self.residual or self.final_norm.output != self.logits.input:
            raise QuantizationError("the final norm's formats do not join the residual stream and the logits")

    @property
    def context_length(self) -> int:
        """The longest sequence."""
        return self.blocks[0].attention.context_length

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.logits.rows

    def empty_cache(self, *batch: int) -> Cache:
        """Return the cache of sequences that have no token yet, for tokens (*batch, N)."""
        return tuple(block.attention.empty_cache(*batch) for block in self.blocks)

    def extend(self, tokens: Integers, cache: Cache, observe: Observer = ignore) -> tuple[IntegerArray, Cache]:
        """Run the next tokens of sequences; however they are cut into parts, the logits are those of `forward` on the whole.

        Args:
            tokens: Integers (B, N), N >= 1.
            cache: Each block's keys and values of the tokens before, from `empty_cache` or an earlier call.
            observe: See `forward`.

        Returns:
            Logits, int64 (B, N, V) of format `logits.output`, and the longer cache.

        Raises:
            ValueError: A token outside the vocabulary, none at all, or more than the context holds.
        """
        x = self.embedding.compute(tokens, cache[0].length)
        observe("embedding", x)
        longer = []
        for index, block in enumerate(self.blocks):
            x, block_cache = block.extend(
                x, self.residual, cache[index], partial(_observe_in_block, observe, f"blocks.{index}")
            )
            longer.append(block_cache)
        normed = self.final_norm.compute(x)
        observe("final_norm", normed)
        logits = self.logits.compute(normed)
        observe("logits", logits)
        return logits, tuple(longer)

    def forward(self, tokens: Integers, observe: Observer = ignore) -> IntegerArray:
        """Run whole sequences.

        Args:
            tokens: Integers (B, T), T <= context_length.
            observe: Called with the name (the float model's) and integers (B, T, ·) of every tensor on the way.

        Returns:
            Logits, int64 (B, T, V) of format `logits.output`.
        """
        return self.extend(tokens, self.empty_cache(*np.shape(tokens)[:-1]), observe)[0]

    @cached_property
    def engine(self) -> Engine:
        """The same model prepared for speed; bit for bit the same logits."""
        from .engine import Engine  # which needs this module

        return Engine(self)

    def loss(self, inputs: Integers, targets: Integers) -> float:
        """Return the mean cross-entropy in nats over windows (N, T); the only floating-point step is on the final logits.

        Raises:
            ValueError: No window.
        """
        return self.engine.loss(inputs, targets)
