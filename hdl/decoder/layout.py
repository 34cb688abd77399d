"""How attention, and what surrounds it, is laid out on the machine: memory words and their tiles.

All layers share one engine of L lanes. A memory word holds as many weights as there are lanes, in
tiles of rows × columns; a word of keys, or of values, holds those of `slots` positions. Query heads
that share a key head are worked on in passes, one head of each group at a time, so that the lanes
always multiply whole words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fixedpoint import Attention, Linear
from fixedpoint.qformat import IntegerArray

from ..cores.tile import Tile
from ..errors import CircuitError
from ..parts.multiplier import OPERAND_BITS, pair_spacing
from ..parts.parameter_checks import check_whole

PAIR_WEIGHT_BITS = 4  # up to these, two weights share a multiplier
# Of a matrix: its name, layers whose rows alternate, and the order of rows and columns, None as
# they are.
Part = tuple[str, tuple[Linear, ...], IntegerArray | None, IntegerArray | None]


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix, or a gate and `up` in alternate rows, as it stands in the weight memory.

    Attributes:
        name: For people.
        weight: Integers (R, K), rows and columns in the machine's order.
        bias: Integers (R,) in accumulator units.
        shift: Right shifts (R,).
        widths: Bits of the results (R,).
        address: Of its first word.
        tile: How it is cut.
    """

    name: str
    weight: IntegerArray
    bias: IntegerArray
    shift: IntegerArray
    widths: IntegerArray
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


class Layout(ABC):
    """Attention of one layer or more on a machine of so many lanes.

    Attributes:
        lanes: Multipliers of the engine L.
        context_lanes: Channels that attention's division gives a cycle.
        sequences: 1, or 2 that share the machine, each with its own keys and values.
    """

    lanes: int
    context_lanes: int
    sequences: int = 1

    @property
    def gated(self) -> bool:
        """Whether there is a feed-forward part with a gate."""
        return False

    @property
    def hidden_slices(self) -> int:
        """Tiles of columns of the last matrix of a block; 0 where attention is all."""
        return 0

    @property
    @abstractmethod
    def attentions(self) -> tuple[Attention, ...]:
        """Of all layers, which have the same sizes."""

    @property
    @abstractmethod
    def context_length(self) -> int:
        """Positions T of a sequence."""

    @abstractmethod
    def _parts(self) -> Iterator[Part]:
        """Yield the matrices in the order in which the machine works on them."""

    def _check_lanes(self) -> None:
        """Raise a CircuitError, with all reasons, for what the machine cannot do."""
        check_whole("lanes", self.lanes)
        check_whole("context_lanes", self.context_lanes)
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
        if self.kv_channels % self.context_lanes:
            yield f"context_lanes of {self.context_lanes} must divide the {self.kv_channels} channels of keys"
        elif head % self.context_lanes and self.context_lanes % head:
            yield f"context_lanes of {self.context_lanes} and the head size {head} must divide one another"

    # Sizes of the model.
    @property
    def channels(self) -> int:
        """Width of the residual stream C."""
        return self.attentions[0].embed_dim

    @property
    def head_dim(self) -> int:
        """Channels of a head d."""
        return self.attentions[0].head_dim

    @property
    def kv_heads(self) -> int:
        """Key and value heads K."""
        return self.attentions[0].core.num_kv_heads

    @property
    def kv_channels(self) -> int:
        """Channels of a key K·d."""
        return self.attentions[0].core.kv_channels

    @property
    def passes(self) -> int:
        """Query heads that share a key head."""
        return self.attentions[0].num_heads // self.kv_heads

    @property
    def rotary(self) -> bool:
        """Whether queries and keys are rotated."""
        return self.attentions[0].rotations is not None

    @property
    def layers(self) -> int:
        """Blocks."""
        return len(self.attentions)

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """All linear layers."""
        return tuple(linear for _, linears, _, _ in self._parts() for linear in linears)

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
        activation_bits = max(self.activation_bits, self.attentions[0].softmax.exponential.output_bits + 1)
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

    def _attention_parts(self, layer: int, prefix: str) -> Iterator[Part]:
        """Yield the matrices of a layer's attention."""
        attention, order = self.attentions[layer], self.query_order
        yield prefix + "query", (attention.query,), order, None
        yield prefix + "key", (attention.key,), None, None
        yield prefix + "value", (attention.value,), None, None
        yield prefix + "output", (attention.output,), None, order

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """All matrices, in the order in which the machine works on them."""
        found, address = [], 0
        for name, linears, rows, columns in self._parts():
            widths = [np.full(one.rows, one.output.bits) for one in linears]
            of_rows = [_alternate([getattr(one, field) for one in linears]) for field in ("weight", "bias", "shift")]
            of_rows = [one if rows is None else one[rows] for one in [*of_rows, _alternate(widths)]]
            weight, bias, shift, bits = of_rows
            weight = weight if columns is None else weight[:, columns]
            found.append(Matrix(name, weight, bias, shift, bits, address, self.tile))
            address += found[-1].words
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
