"""The whole quantized decoder: integer tokens in, integer logits out, all of it in integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .arithmetic import Integers
from .errors import QuantizationError
from .operators.activation import TableActivation
from .operators.attention import Attention, AttentionCache, CausalAttention
from .operators.embedding import Embedding
from .operators.layer_norm import LayerNorm
from .operators.linear import Linear
from .operators.operator import Operator, ResidualAdd
from .operators.product import Product
from .operators.rms_norm import RMSNorm
from .operators.rotation import Rotation, RotationTable
from .qformat import IntegerArray, QFormat, as_int64
from .topology import EMBEDDING, LOGITS, TOKENS, Step, block_steps, final_norm_step, in_decoder

Norm = LayerNorm | RMSNorm
Observer = Callable[[str, IntegerArray], None]
Cache = tuple[AttentionCache, ...]  # one a block


def ignore(name: str, values: IntegerArray) -> None:
    """Observe nothing."""


@dataclass(frozen=True)
class Operation:
    """A step of the decoder with the operator that computes it.

    Attributes:
        step: What is read and made.
        operator: How.
        channels: Of the tensor that is made.
    """

    step: Step
    operator: Operator
    channels: int

    @property
    def name(self) -> str:
        """The tensor that it makes."""
        return self.step.name

    @property
    def inputs(self) -> tuple[str, ...]:
        """The tensors that it reads."""
        return self.step.inputs


def run_operations(
    pairs: Sequence[tuple[Step, Operator]], source: str, values: IntegerArray, cache: Cache, observe: Observer = ignore
) -> tuple[IntegerArray, Cache]:
    """Compute steps one after the other on the next tokens of sequences.

    Args:
        pairs: The steps and their operators.
        source: Name of the tensor that the first steps read.
        values: Its integers.
        cache: Keys and values of the tokens before, one for each attention.
        observe: Called with the name and the integers of every tensor that is made.

    Returns:
        The last tensor, and the longer cache.
    """
    last_use = {name: index for index, (step, _) in enumerate(pairs) for name in step.inputs}
    tensors, caches, longer = {source: values}, iter(cache), []
    for index, (step, operator) in enumerate(pairs):
        inputs = [tensors.pop(name) if last_use[name] == index else tensors[name] for name in step.inputs]
        if isinstance(operator, Embedding | Rotation):
            result = operator.compute(inputs[0], cache[0].length)
        elif isinstance(operator, CausalAttention):
            query, key, value = inputs
            result, extended = operator.extend(query, key, value, next(caches))
            longer.append(extended)
        else:
            result = operator.compute(*inputs)
        tensors[step.name] = result
        observe(step.name, result)
    return result, tuple(longer)


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm decoder block: `x += attention(norm(x))`, `x += down(a)` with
    `a = activation(up(norm(x)))`, or with a gate `a = activation(gate(norm(x))) · up(norm(x))`.
    """

    attention_norm: Norm
    attention: Attention
    feed_forward_norm: Norm
    up: Linear
    activation: TableActivation
    down: Linear
    gate: Linear | None = None
    product: Product | None = None

    def __post_init__(self) -> None:
        if (self.gate is None) != (self.product is None):
            raise QuantizationError("a gate and the product with it come together")

    @classmethod
    def from_operators(cls, operators: Mapping[str, Any]) -> Block:
        """Return the block of operators that are given by their steps' names in `block_steps`."""
        query, key, value, output = (operators[f"attention.{name}"] for name in ("query", "key", "value", "output"))
        core, gate = operators["attention.context"], operators.get("feed_forward.gate")
        rotations = None
        if "attention.rotated_query" in operators:
            rotations = operators["attention.rotated_query"], operators["attention.rotated_key"]
        return cls(
            attention_norm=operators["attention_norm"],
            attention=Attention(
                query, key, value, output, core.num_heads, core.context_length, core.reciprocal, rotations
            ),
            feed_forward_norm=operators["feed_forward_norm"],
            up=operators["feed_forward.up"],
            activation=operators["feed_forward.activation" if gate is None else "feed_forward.gate_activation"],
            down=operators["feed_forward.down"],
            gate=gate,
            product=None if gate is None else operators["feed_forward.activation"],
        )

    @cached_property
    def operations(self) -> tuple[tuple[Step, Operator], ...]:
        """What the block computes, in order, from `INPUT` to the block's output."""
        attention = self.attention
        add = ResidualAdd(self.attention_norm.input)
        operators: dict[str, Operator] = {
            "attention_norm": self.attention_norm,
            "attention.query": attention.query,
            "attention.key": attention.key,
            "attention.value": attention.value,
            "attention.context": attention.core,
            "attention.output": attention.output,
            "attention_residual": add,
            "feed_forward_norm": self.feed_forward_norm,
            "feed_forward.up": self.up,
            "feed_forward.down": self.down,
            "feed_forward_residual": add,
        }
        if attention.rotations is not None:
            operators["attention.rotated_query"], operators["attention.rotated_key"] = attention.rotations
        if self.gate is None or self.product is None:
            operators["feed_forward.activation"] = self.activation
        else:
            operators["feed_forward.gate"] = self.gate
            operators["feed_forward.gate_activation"] = self.activation
            operators["feed_forward.activation"] = self.product
        steps = block_steps(rotary=attention.rotations is not None, gated=self.gate is not None)
        return tuple((step, operators[step.name]) for step in steps)


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
        self._check_joints()
        attention = self.blocks[0].attention
        for index, block in enumerate(self.blocks):
            sizes, expected = (
                (one.num_heads, one.core.num_kv_heads, one.context_length) for one in (block.attention, attention)
            )
            if sizes != expected:
                raise QuantizationError(
                    f"block {index} has (heads, key and value heads, context) {sizes}, block 0 {expected}"
                )
            self._check_positions(block)
        if len(self.embedding.token.weight) != self.vocab_size:
            raise QuantizationError(
                f"{len(self.embedding.token.weight)} tokens are embedded, but there are logits for {self.vocab_size}"
            )

    def _check_positions(self, block: Block) -> None:
        """Refuse a block that knows other positions than the first, or too few."""
        first, rotations = self.rotation, block.attention.rotations or ()
        if bool(rotations) != (first is not None):
            raise QuantizationError("all blocks have rotary positions or none")
        if first is not None and not all(one.table is first or one.table.equals(first) for one in rotations):
            raise QuantizationError("all blocks must have the same rotation table")
        tables = [] if self.embedding.position is None else [len(self.embedding.position.weight)]
        for positions in [*tables, *([] if first is None else [first.context_length])]:
            if positions < self.context_length:
                raise QuantizationError(f"there are {positions} positions, but the context has {self.context_length}")

    def _check_joints(self) -> None:
        """Refuse an operation that expects other formats than its inputs have."""
        formats: dict[str, QFormat] = {}
        for operation in self.operations:
            read = [name for name in operation.inputs if name != TOKENS]
            for name, expected in zip(read, operation.operator.inputs, strict=True):
                if formats[name] != expected:
                    raise QuantizationError(
                        f"{name} has the format {formats[name]}, but {operation.name} expects {expected}"
                    )
            formats[operation.name] = operation.operator.output

    @cached_property
    def operations(self) -> tuple[Operation, ...]:
        """All that the model computes, in order, from the tokens to the logits.

        Raises:
            QuantizationError: An operator does not suit the channels of what it reads.
        """
        pairs: list[tuple[Step, Operator]] = [(EMBEDDING, self.embedding)]
        for index, block in enumerate(self.blocks):
            steps = in_decoder((step for step, _ in block.operations), index, pairs[-1][0].name)
            pairs += zip(steps, (operator for _, operator in block.operations), strict=True)
        pairs += (final_norm_step(pairs[-1][0].name), self.final_norm), (LOGITS, self.logits)
        operations: list[Operation] = []
        channels: dict[str, int] = {}
        for step, operator in pairs:
            try:
                made = operator.output_channels(*(channels[name] for name in step.inputs if name != TOKENS))
            except QuantizationError as error:
                raise QuantizationError(f"{step.name} {error}") from None
            channels[step.name] = made
            operations.append(Operation(step, operator, made))
        return tuple(operations)

    @property
    def context_length(self) -> int:
        """The longest sequence."""
        return self.blocks[0].attention.context_length

    @property
    def rotation(self) -> RotationTable | None:
        """The table of rotary positions; None where there are none."""
        rotations = self.blocks[0].attention.rotations
        return None if rotations is None else rotations[0].table

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        return self.logits.rows

    def empty_cache(self, *batch: int) -> Cache:
        """Return the cache of sequences that have no token yet, for tokens (*batch, N)."""
        return tuple(block.attention.core.empty_cache(*batch) for block in self.blocks)

    def extend(self, tokens: Integers, cache: Cache, observe: Observer = ignore) -> tuple[IntegerArray, Cache]:
        """Run the next tokens of sequences: in parts of any size, the same logits as `forward`.

        Args:
            tokens: Integers (B, N), N >= 1.
            cache: Each block's keys and values of the tokens before, from `empty_cache` or an
                earlier call.
            observe: See `forward`.

        Returns:
            Logits, int64 (B, N, V) of format `logits.output`, and the longer cache.

        Raises:
            ValueError: A token outside the vocabulary, none at all, or more than the context holds.
        """
        pairs = [(operation.step, operation.operator) for operation in self.operations]
        return run_operations(pairs, TOKENS, as_int64(tokens), cache, observe)

    def forward(self, tokens: Integers, observe: Observer = ignore) -> IntegerArray:
        """Run whole sequences.

        Args:
            tokens: Integers (B, T), T <= context_length.
            observe: Called with the name (the float model's) and integers (B, T, ·) of every tensor
                on the way.

        Returns:
            Logits, int64 (B, T, V) of format `logits.output`.
        """
        return self.extend(tokens, self.empty_cache(*np.shape(tokens)[:-1]), observe)[0]
