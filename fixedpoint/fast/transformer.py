"""A fast executor of quantized transformers, equal to `QuantizedTransformer` bit for bit.

The specification's operators are written to be read; these run the same integers at the speed of
BLAS, for whole sequences (`FastTransformer.forward`) and one token at a time (`FastDecoder`).
How, and why nothing is rounded: docs/fixedpoint/fast.md.

Sizes: B sequences, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from model.threads import one_blas_thread

from ..arithmetic import Integers
from ..operators.attention import AttentionCache
from ..qformat import IntegerArray, QFormat
from ..topology import INPUT, block_steps
from ..transformer import Block, QuantizedTransformer, run_operations
from .attention import PreparedAttention
from .layers import Buffers, Float64, Floats, PreparedNorm, Product, round_half_up, whole
from .token import TokenAttention, TokenNorm, TokenProduct

# tokens that are computed together: their activations fit the processor's cache
BLOCK_ROWS = 512


def is_standard(block: Block) -> bool:
    """Return whether a block computes the operations of `block_steps`, which `PreparedBlock` merges
    into fewer.
    """
    rotary, gated = block.attention.rotations is not None, block.gate is not None
    return tuple(step for step, _ in block.operations) == block_steps(rotary=rotary, gated=gated)


class PreparedBlock:
    """A decoder block ready to run.

    Args:
        block: The specification.
        residual: Format of the residual stream.
    """

    def __init__(self, block: Block, residual: QFormat) -> None:
        self.attention_norm, self.feed_forward_norm = (
            PreparedNorm(block.attention_norm),
            PreparedNorm(block.feed_forward_norm),
        )
        self.attention = PreparedAttention(block.attention)
        # indexes the activation's table
        self.index = Product([block.gate or block.up], origin=-block.activation.input.minimum_integer)
        self.activation: Floats = block.activation.table.astype(np.float32)
        self.factor: Product | None = None
        if block.product is not None:
            self.activation = np.ldexp(block.activation.table.astype(np.float64), -block.product.shift)
            self.factor, self.gated = Product([block.up]), block.product.output
        self.down = Product([block.down])
        self.lowest, self.highest = float(residual.minimum_integer), float(residual.maximum_integer)

    def new_cache(self, batch: int) -> Floats:
        """Return memory for the keys and values of `batch` sequences."""
        return self.attention.new_cache(batch)

    def forward(self, x: Floats, batch: int, buffers: Buffers, cache: Floats | None = None, position: int = 0) -> None:
        """Add both branches to the residual stream x (B·T, C), in place.

        Args:
            x: Rows of the tokens at `position` and after.
            batch: Sequences B.
            buffers: Memory for what comes between.
            cache: Keys and values of the tokens before, to which these tokens' are added; None for
                whole sequences.
            position: Tokens in the cache.
        """
        normed = self.attention_norm.compute(x, buffers)
        self._add(x, self.attention.compute(normed, batch, buffers, cache, position))
        normed = self.feed_forward_norm.compute(x, buffers)
        hidden = self.index.accumulate(normed, buffers, "hidden")
        # not negative: truncation is the floor
        np.clip(hidden, self.index.lowest, self.index.highest, out=hidden)
        activated: Floats = self.activation.take(whole(hidden, buffers))
        if self.factor is not None:
            activated = self.gate(activated, self.factor.compute(normed, buffers, "factor"), buffers)
        self._add(x, self.down.compute(activated, buffers, "update"))

    def gate(self, activated: Floats, factor: Floats, buffers: Buffers) -> Floats:
        """Return the products of both, rounded; the first is overwritten."""
        activated *= factor
        return round_half_up(activated, self.gated, buffers.array("gated", np.float32, *factor.shape))

    def _add(self, x: Floats, update: Floats) -> None:
        x += update
        np.clip(x, self.lowest, self.highest, out=x)


class SpecifiedBlock:
    """A decoder block of other operations than those of `BLOCK`, run by the operators of the
    specification.

    Args:
        block: The specification.
    """

    def __init__(self, block: Block) -> None:
        self.block = block

    def new_cache(self, batch: int) -> list[AttentionCache]:
        """Return where `forward` keeps the keys and values of `batch` sequences."""
        return [self.block.attention.core.empty_cache(batch)]

    def forward(
        self, x: Floats, batch: int, buffers: Buffers, cache: list[AttentionCache] | None = None, position: int = 0
    ) -> None:
        """Run the block on the residual stream x (B·T, C), in place; the arguments are those of
        `PreparedBlock.forward`.
        """
        empty = self.block.attention.core.empty_cache(batch)
        known = cache[0] if cache is not None and position else empty
        rows = x.reshape(batch, -1, x.shape[-1]).astype(np.int64)  # (B·T, C) -> (B, T, C)
        result, (longer,) = run_operations(self.block.operations, INPUT, rows, (known,))
        if cache is not None:
            cache[0] = longer
        x[...] = result.reshape(x.shape)  # (B, T, C) -> (B·T, C)


class FastTransformer:
    """A quantized transformer ready to run whole sequences.

    It keeps memory between calls, so one thread at a time may use it.

    Args:
        model: The specification, whose weights are copied.
    """

    def __init__(self, model: QuantizedTransformer) -> None:
        self.model = model
        self.buffers = Buffers()
        self.blocks = [
            PreparedBlock(block, model.residual) if is_standard(block) else SpecifiedBlock(block)
            for block in model.blocks
        ]
        self.final_norm, self.logits = PreparedNorm(model.final_norm), Product([model.logits])
        self.lowest, self.highest = float(model.residual.minimum_integer), float(model.residual.maximum_integer)
        embedding = model.embedding  # 8 bits, shifted to the left by at most 28: exact in float64
        vocabulary, positions = np.arange(model.vocab_size), np.arange(model.context_length)
        self.tokens: Float64 = embedding.token.compute(vocabulary, model.residual).astype(np.float64)
        self.positions: Float64 = np.zeros((model.context_length, 1))
        if embedding.position is not None:
            self.positions = embedding.position.compute(positions, model.residual).astype(np.float64)

    def forward(self, tokens: Integers) -> IntegerArray:
        """Run whole sequences.

        Args:
            tokens: Integers (B, T), 1 <= T <= context_length.

        Returns:
            Logits, int64 (B, T, V) of format `logits.output`, as from
                `QuantizedTransformer.forward`.

        Raises:
            ValueError: A token is not in the vocabulary, or a sequence is empty or longer than the
                context.
        """
        tokens = self._checked(tokens)
        result = np.empty((*tokens.shape, self.logits.rows), np.int64)
        for rows, logits in self._blocks(tokens):
            result[rows] = logits
        return result

    def loss(
        self, inputs: Integers, targets: Integers, progress: Callable[[int], object] = lambda count: None
    ) -> float:
        """Return the mean cross-entropy in nats over windows (N, T); the only rounding is in this
        last step, in float64.

        `progress` is called with a number of windows when these are done.

        Raises:
            ValueError: No window, tokens that `forward` refuses, or targets of another shape or
                outside the vocabulary.
        """
        tokens, wanted = self._checked(inputs), np.asarray(targets)
        if len(tokens) == 0:
            raise ValueError("the loss needs at least one window of tokens")
        if wanted.shape != tokens.shape:
            raise ValueError(f"targets must have the inputs' shape {tokens.shape}, not {wanted.shape}")
        self._check_vocabulary("target", wanted)
        resolution = self.model.logits.output.resolution
        total = 0.0
        for rows, logits in self._blocks(tokens):
            values = logits.astype(np.float64)
            values -= values.max(axis=-1, keepdims=True)
            values *= resolution
            # (b, T) -> (b, T, 1) of (b, T, V)
            correct = np.take_along_axis(values, wanted[rows, :, None], axis=-1)
            total += float(np.log(np.exp(values, out=values).sum(axis=-1)).sum() - correct.sum())
            progress(len(logits))
        return float(np.maximum(total / wanted.size, 0))  # rounding may leave a little less

    def _blocks(self, tokens: IntegerArray) -> Iterator[tuple[slice, Floats]]:
        """Yield the logits (b, T, V) of a few sequences at a time."""
        step = max(1, BLOCK_ROWS // max(1, tokens.shape[1]))
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            with one_blas_thread(part.size * self.model.blocks[0].up.weight.size):
                x = self.embed(part)
                for block in self.blocks:
                    block.forward(x, len(part), self.buffers)
                logits = self.head(x).reshape(*part.shape, -1)  # (b·T, V) -> (b, T, V)
            yield slice(start, start + step), logits

    def embed(self, tokens: Integers, position: int = 0) -> Floats:
        """Return the residual stream (B·T, C) of tokens (B, T), the first one at `position`."""
        x = self.tokens[tokens]  # (B, T) -> (B, T, C)
        x += self.positions[position : position + tokens.shape[1]]
        np.clip(x, self.lowest, self.highest, out=x)
        return x.astype(np.float32).reshape(tokens.size, -1)  # (B, T, C) -> (B·T, C)

    def head(self, x: Floats) -> Floats:
        """Return the logits (N, V) of rows x (N, C); the next call overwrites them."""
        return self.logits.compute(self.final_norm.compute(x, self.buffers), self.buffers, "logits")

    def _checked(self, tokens: Integers) -> IntegerArray:
        array = np.asarray(tokens)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise ValueError(f"tokens must be integers (B, T), not {array.dtype} of shape {array.shape}")
        if not 1 <= array.shape[1] <= self.model.context_length:
            raise ValueError(f"sequences have 1 to {self.model.context_length} tokens, not {array.shape[1]}")
        self._check_vocabulary("token", array)
        return array.astype(np.int64, copy=False)

    def _check_vocabulary(self, what: str, tokens: Integers) -> None:
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.model.vocab_size:
            raise ValueError(
                f"a {what} must be 0 to {self.model.vocab_size - 1}; got {int(tokens.min())} to {int(tokens.max())}"
            )


@lru_cache(maxsize=4)  # models are told apart by identity; the last few stay prepared
def prepared(model: QuantizedTransformer) -> FastTransformer:
    """Return a model prepared for speed, the same one for the same model."""
    return FastTransformer(model)


class FastDecoder:
    """A transformer ready to make tokens for `batch` sequences that all stand at the same position,
    with cached keys and values.

    Args:
        model: The specification.
        batch: Sequences B. A single one takes the path of `token.py`.

    Attributes:
        length: Tokens in the cache.
    """

    def __init__(self, model: QuantizedTransformer, batch: int = 1) -> None:
        self.model, self.batch, self.length = model, batch, 0
        self.fast = prepared(model)
        self.caches: list[Any] = [block.new_cache(batch) for block in self.fast.blocks]
        standard = [block for block in self.fast.blocks if isinstance(block, PreparedBlock)]
        alone = batch == 1 and len(standard) == len(self.caches)
        self.single = _SingleSequence(self.fast, standard, self.caches) if alone else None

    def prefill(self, tokens: ArrayLike) -> Floats:
        """Start again with tokens (B, t), 1 <= t <= context_length, and return the logits (B, V)
        after the last one, integers in floats.
        """
        self.length = 0
        return self._extend(np.asarray(tokens))

    def step(self, tokens: Sequence[int] | Integers) -> Floats:
        """Append one token to each sequence, (B,), and return the logits (B, V) after it, which the
        next call overwrites.

        Raises:
            ValueError: The cache is full.
        """
        if self.length >= self.model.context_length:
            raise ValueError("the cache is full; prefill again with fewer tokens")
        if self.single is None:
            return self._extend(np.asarray(tokens)[:, None])  # (B,) -> (B, 1)
        logits = self.single.step(int(tokens[0]), self.length)
        self.length += 1
        return logits[None]

    def _extend(self, tokens: Integers) -> Floats:
        batch, count = tokens.shape
        x = self.fast.embed(tokens, self.length)
        for block, cache in zip(self.fast.blocks, self.caches, strict=True):
            block.forward(x, batch, self.fast.buffers, cache, self.length)
        self.length += count
        return self.fast.head(x.reshape(batch, count, -1)[:, -1])  # (B·t, C) -> (B, C) -> (B, V)


class _SingleSequence:
    """The network for one token of one sequence."""

    def __init__(self, fast: FastTransformer, blocks: list[PreparedBlock], caches: list[Floats]) -> None:
        self.fast = fast
        self.blocks = [_TokenBlock(block, cache, fast.buffers) for block, cache in zip(blocks, caches, strict=True)]
        self.final_norm, self.logits = TokenNorm(fast.final_norm), TokenProduct(fast.logits)
        self.lowest, self.highest = fast.lowest, fast.highest

    def step(self, token: int, position: int) -> Floats:
        """Return the logits (V,) after a token."""
        x = self.fast.tokens[token] + self.fast.positions[position]
        np.minimum(x, self.highest, out=x)
        np.maximum(x, self.lowest, out=x)
        for block in self.blocks:
            self._add(x, block.attention.compute(block.attention_norm.compute(x), position))
            normed = block.feed_forward_norm.compute(x)
            activated: Floats = block.activation.take(block.index.accumulate(normed).astype(np.int64), mode="clip")
            if block.factor is not None:
                activated = block.gate(activated, block.factor.compute(normed), self.fast.buffers)
            self._add(x, block.down.compute(activated))
        return self.logits.compute(self.final_norm.compute(x))

    def _add(self, x: Float64, update: Floats) -> None:
        np.add(x, update, out=x)
        np.minimum(x, self.highest, out=x)
        np.maximum(x, self.lowest, out=x)


class _TokenBlock:
    def __init__(self, block: PreparedBlock, cache: Floats, buffers: Buffers) -> None:
        self.attention_norm, self.feed_forward_norm = (
            TokenNorm(block.attention_norm),
            TokenNorm(block.feed_forward_norm),
        )
        self.attention = TokenAttention(block.attention, cache, buffers)
        self.index, self.down = TokenProduct(block.index), TokenProduct(block.down)
        self.factor = None if block.factor is None else TokenProduct(block.factor)
        self.activation, self.gate = block.activation, block.gate
