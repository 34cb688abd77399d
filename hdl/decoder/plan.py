"""How a decoder is laid out on the machine: lanes, memory words, tables, and what cannot be built.

All layers share one engine of L lanes. A memory word holds as many weights as there are lanes, in
tiles of rows × columns; a word of keys, or of values, holds those of `slots` positions. Query heads
that share a key head are worked on in passes, one head of each group at a time, so that the lanes
always multiply whole words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fixedpoint import Linear, QuantizedTransformer
from fixedpoint.qformat import IntegerArray
from fixedpoint.transformer import Block

from ..cores.tile import Tile
from ..errors import CircuitError
from ..parts.multiplier import OPERAND_BITS, pair_spacing
from ..parts.parameter_checks import check_whole

PAIR_WEIGHT_BITS = 4  # up to these, two weights share a multiplier


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix, or a gate and `up` in alternate rows, as it stands in the weight memory.

    Attributes:
        name: For people.
        weight: Integers (R, K), rows and columns in the machine's order.
        bias: Integers (R,) in accumulator units.
        shift: Right shifts (R,).
        address: Of its first word.
        tile: How it is cut.
    """

    name: str
    weight: IntegerArray
    bias: IntegerArray
    shift: IntegerArray
    address: int
    tile: Tile

    @property
    def slices(self) -> int:
        """Words that a row extends over."""
        return self.tile.slices(self.weight.shape[1])

    @property
    def sets(self) -> int:
        """Sets of rows that come out together."""
        return -(-len(self.weight) // self.tile.rows)

    @property
    def words(self) -> int:
        """Words of memory."""
        return self.sets * self.slices


@dataclass(frozen=True, eq=False)
class Plan:
    """A model on a machine of so many lanes.

    Attributes:
        model: What is computed.
        lanes: Multipliers of the engine L.
        norm_lanes: Elements that a norm gives a cycle.
        context_lanes: Channels that attention's division gives a cycle.
        sampling: Whether tokens may be sampled at a temperature; else always the likeliest.
        sequences: 1, or 2 that share the machine, each with its own keys and values.
        context: Positions that keys and values have room for; None for the model's.
    """

    model: QuantizedTransformer
    lanes: int
    norm_lanes: int = 4
    context_lanes: int = 4
    sampling: bool = False
    sequences: int = 1
    context: int | None = None

    def __post_init__(self) -> None:
        """Raise a CircuitError, with all reasons, for what the machine cannot do."""
        check_whole("lanes", self.lanes)
        check_whole("norm_lanes", self.norm_lanes)
        check_whole("context_lanes", self.context_lanes)
        check_whole("sequences", self.sequences, 1, 2, "so many can be interleaved")
        if self.context is not None:
            check_whole("context", self.context, 1, self.model.context_length, "the model's")
        if reasons := list(self._refusals()):
            raise CircuitError(f"{self.lanes} lanes do not suit this model: {'; '.join(reasons)}")

    def _refusals(self) -> Iterator[str]:
        lanes, channels, head = self.lanes, self.channels, self.head_dim
        if lanes % channels and channels % lanes:
            yield f"lanes and {channels} channels must divide one another"
            return
        if lanes % head:
            yield f"lanes must be a multiple of the head size {head}"
        if lanes % self.kv_channels:
            yield f"lanes must be a multiple of the {self.kv_channels} channels of keys"
        rows = self.rows
        for name, number in (("channels", channels), ("channels of keys", self.kv_channels)):
            if number % rows:
                yield f"{rows} rows a word do not divide the {number} {name}"
        if (self.rotary or self.gated) and rows % 2:
            yield f"rotary positions and gates need an even number of rows a word, not {rows}"
        if self.rotary and head % rows and rows % head:
            yield f"with rotary positions {rows} rows a word and the head size {head} must divide one another"
        if channels % self.norm_lanes:
            yield f"norm_lanes of {self.norm_lanes} must divide {channels} channels"
        elif rows % self.norm_lanes and self.norm_lanes % rows:
            yield f"norm_lanes of {self.norm_lanes} and {rows} rows a word must divide one another"
        if self.kv_channels % self.context_lanes:
            yield f"context_lanes of {self.context_lanes} must divide the {self.kv_channels} channels of keys"
        elif head % self.context_lanes and self.context_lanes % head:
            yield f"context_lanes of {self.context_lanes} and the head size {head} must divide one another"
        # A sequence's row may follow the other's as fast as its matrix gives it.
        if self.sequences > 1 and self.norm_lanes * channels < rows * self.columns:
            yield f"norm_lanes of {self.norm_lanes} are too few for two sequences with {rows} rows a word"

    # Sizes of the model.
    @property
    def first(self) -> Block:
        """The first block; all have its sizes."""
        return self.model.blocks[0]

    @property
    def channels(self) -> int:
        """Width of the residual stream C."""
        return self.first.attention.embed_dim

    @property
    def head_dim(self) -> int:
        """Channels of a head d."""
        return self.first.attention.head_dim

    @property
    def kv_heads(self) -> int:
        """Key and value heads K."""
        return self.first.attention.core.num_kv_heads

    @property
    def kv_channels(self) -> int:
        """Channels of a key K·d."""
        return self.first.attention.core.kv_channels

    @property
    def passes(self) -> int:
        """Query heads that share a key head."""
        return self.first.attention.num_heads // self.kv_heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward network."""
        return self.first.down.columns

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate."""
        return self.first.gate is not None

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are rotated."""
        return self.model.rotation is not None

    @property
    def layers(self) -> int:
        """Blocks."""
        return len(self.model.blocks)

    @property
    def context_length(self) -> int:
        """Positions T of a sequence."""
        return self.model.context_length if self.context is None else self.context

    @cached_property
    def norms(self) -> tuple[Any, ...]:
        """All LayerNorms, or RMSNorms, in order."""
        pairs = ((block.attention_norm, block.feed_forward_norm) for block in self.model.blocks)
        return (*(norm for pair in pairs for norm in pair), self.model.final_norm)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """All linear layers."""
        found = [operation.operator for operation in self.model.operations]
        return tuple(one for one in found if isinstance(one, Linear))

    # Sizes of the machine.
    @property
    def weight_bits(self) -> int:
        """Bits of a weight in memory: those of the widest."""
        return max(linear.weight_bits for linear in self.linears)

    @property
    def pairs(self) -> bool:
        """Whether two weights share a multiplier: narrow ones, where its operand has room for both
        and whole words of results are left.
        """
        if self.weight_bits > PAIR_WEIGHT_BITS:
            return False
        activation_bits = max(self.activation_bits, self.first.attention.softmax.exponential.output_bits + 1)
        operand_bits = pair_spacing(activation_bits, self.weight_bits) + self.weight_bits + 1
        rows = Tile(self.lanes, self.columns, True).rows
        return operand_bits <= OPERAND_BITS and self.channels % rows == 0 and self.kv_channels % rows == 0

    @property
    def columns(self) -> int:
        """Columns of a tile."""
        return min(self.lanes, self.channels)

    @property
    def tile(self) -> Tile:
        """How matrices are cut."""
        return Tile(self.lanes, self.columns, self.pairs)

    @property
    def rows(self) -> int:
        """Rows that come out together R."""
        return self.tile.rows

    @property
    def weight_element_bits(self) -> int:
        """Bits of a lane of a weight word."""
        return self.weight_bits << self.pairs

    @property
    def activation_bits(self) -> int:
        """Bits of a key, a value, and what matrices multiply."""
        return max(linear.input.bits for linear in self.linears)

    @property
    def slots(self) -> int:
        """Positions of a word of keys or values S."""
        return self.lanes // self.kv_channels

    @property
    def cache_words(self) -> int:
        """Words of one layer's keys, or of its values."""
        return -(-self.context_length // self.slots)

    @property
    def cache_depth(self) -> int:
        """Words of keys and values of all layers and sequences."""
        return 2 * self.layers * self.cache_words * self.sequences

    @property
    def hidden_slices(self) -> int:
        """Tiles of columns of the last matrix of a block."""
        return self.tile.slices(self.hidden)

    @property
    def one_memory(self) -> bool:
        """Whether weights, keys and values stand in one memory: where their words are as wide."""
        return self.weight_element_bits == self.activation_bits

    def cache_address(self, layer: int, *, values: bool, sequence: int = 0) -> int:
        """Return the first word of a layer's keys or values."""
        number = 2 * (sequence * self.layers + layer) + values
        return (self.weight_depth if self.one_memory else 0) + number * self.cache_words

    @cached_property
    def query_order(self) -> IntegerArray:
        """The query's channels (C,) in the machine's order: pass, key head, channel of the head."""
        channel = np.arange(self.channels).reshape(self.kv_heads, self.passes, self.head_dim)
        return channel.transpose(1, 0, 2).ravel()  # (K, G, d) -> (G, K, d) -> (C,)

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """All matrices, in the order in which the machine works on them."""
        order, found, address = self.query_order, [], 0

        def add(
            name: str, *linears: Linear, rows: IntegerArray | None = None, columns: IntegerArray | None = None
        ) -> None:
            nonlocal address
            weight, bias, shift = (
                _alternate([getattr(one, part) for one in linears]) for part in ("weight", "bias", "shift")
            )
            if rows is not None:
                weight, bias, shift = weight[rows], bias[rows], shift[rows]
            if columns is not None:
                weight = weight[:, columns]
            found.append(Matrix(name, weight, bias, shift, address, self.tile))
            address += found[-1].words

        for index, block in enumerate(self.model.blocks):
            attention, prefix = block.attention, f"blocks.{index}."
            add(prefix + "attention.query", attention.query, rows=order)
            add(prefix + "attention.key", attention.key)
            add(prefix + "attention.value", attention.value)
            add(prefix + "attention.output", attention.output, columns=order)
            add(prefix + "feed_forward.up", *([] if block.gate is None else [block.gate]), block.up)
            add(prefix + "feed_forward.down", block.down)
        add("logits", self.model.logits)
        return tuple(found)

    @property
    def weight_depth(self) -> int:
        """Words of weights."""
        last = self.matrices[-1]
        return last.address + last.words

    def weight_words(self) -> list[int]:
        """Return the weight memory."""
        bits = self.weight_bits
        return [word for one in self.matrices for word in one.tile.words(one.weight, bits)]


def _alternate(arrays: list[np.ndarray]) -> np.ndarray:
    """Return the rows of arrays in turn: of two, the first of each, then the second of each."""
    return arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])
