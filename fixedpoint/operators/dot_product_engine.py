r"""Sums of products of activations and the words of a memory: the dot-product engine.

A memory word holds an element for each of L lanes, and a command multiplies L activations by it.
*Dot product*: groups of lanes sum their products, \(\sum_w \sum_{l \in g} a_{wl} m_{wl}\).
*Accumulate*: each lane sums its own, \(\sum_w a_{wl} m_{wl}\). A matrix-vector product is a
sequence of dot products, whose sums `Linear` requantizes; attention weighs values by accumulating.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ..checks import is_whole
from ..errors import QuantizationError
from ..qformat import IntegerArray, Overflow, QFormat


class Operation(IntEnum):
    """What a command does with the word at its address."""

    DOT = 0  # one weight or key element a lane
    PAIRS = 1  # two weights a lane, each half as wide
    ACCUMULATE = 2  # one value element a lane, summed lane by lane
    WRITE = 3  # the activations become the word


@dataclass(frozen=True)
class Commands:
    """N commands in their order.

    Attributes:
        operation: Values of `Operation` (N,).
        tap: Which of the engine's `columns` a dot product's groups have (N,).
        first, last: Whether a sum begins, and ends, with the command (N,); 0 or 1.
        address: The word's (N,).
        activations: Integers of `activation_bits` bits (N, L).
    """

    operation: IntegerArray
    tap: IntegerArray
    first: IntegerArray
    last: IntegerArray
    address: IntegerArray
    activations: IntegerArray


@dataclass(frozen=True)
class Results:
    """What commands give, in their order.

    Attributes:
        lower, upper: The sums of D dot products (D, groups); 0 beyond the tap's groups, and in
            `upper` without PAIRS.
        lanes: The sums of S accumulations (S, L).
        memory: The words afterwards (depth, L).
    """

    lower: IntegerArray
    upper: IntegerArray
    lanes: IntegerArray
    memory: IntegerArray


@dataclass(frozen=True)
class DotProductEngine:
    """The specification of `hdl.cores.engine.Engine`.

    Equations, with activations a and word m of L elements each; group g of tap t is its
    `columns[t]` lanes from `g * columns[t]`:

    - DOT: `lower[g] = sum over words, sum over lanes of group g of a * m`, `upper = 0`.
    - PAIRS: the same for the lower halves of m in `lower` and for the upper halves in `upper`.
    - ACCUMULATE: `lanes[l] = sum over words of a[l] * m[l]`.
    - WRITE: `memory[address] = a`, as many low bits as an element has; later commands read it.

    A sum extends over one or more commands, of one operation and tap, from `first` to `last`, and
    is ended before another dot product, or another accumulation, begins.

    Formats: all values are signed integers; activations with f fraction bits and elements with w
    give sums with f + w.
    Widths: `group_sum_bits`, `pair_sum_bits` and `lane_sum_bits`; no sum overflows them, and
    nothing is rounded.

    Attributes:
        lanes: L, products a command.
        columns: Lanes of a group, for each tap; each divides the next, the last divides L.
        terms: Words that a sum may extend over.
        activation_bits, element_bits: Widths; with PAIRS an element is even.
    """

    lanes: int
    columns: tuple[int, ...]
    terms: int
    activation_bits: int = 8
    element_bits: int = 8

    def __post_init__(self) -> None:
        for name in ("lanes", "terms", "activation_bits", "element_bits"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise QuantizationError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not self.columns:
            raise QuantizationError("columns must name at least one tap")
        for smaller, larger in zip(self.columns, (*self.columns[1:], self.lanes), strict=True):
            if not is_whole(smaller) or smaller < 1 or larger % smaller:
                raise QuantizationError(
                    f"each of columns must divide the next, and the last the {self.lanes} lanes; "
                    f"{smaller!r} does not divide {larger}"
                )
        if len(set(self.columns)) != len(self.columns):
            raise QuantizationError(f"columns must differ, not {self.columns}")

    @property
    def groups(self) -> int:
        """Sums of a dot product with the narrowest tap."""
        return self.lanes // self.columns[0]

    @property
    def product_bits(self) -> int:
        """Width of a product."""
        return self.activation_bits + self.element_bits

    @property
    def lane_sum_bits(self) -> int:
        """Width of the sums of ACCUMULATE."""
        return self.product_bits + (self.terms - 1).bit_length()

    @property
    def tree_levels(self) -> int:
        """Levels of the adder trees up to the last tap; a sum gains a bit at each."""
        widths = zip((1, *self.columns), self.columns, strict=False)
        return sum((wide // narrow - 1).bit_length() for narrow, wide in widths)

    @property
    def group_sum_bits(self) -> int:
        """Width of the sums of DOT."""
        return self.lane_sum_bits + self.tree_levels

    @property
    def pair_sum_bits(self) -> int:
        """Width of the sums of PAIRS."""
        return self.group_sum_bits - self.element_bits // 2

    def unpack(self, words: Sequence[int], depth: int) -> IntegerArray:
        """Return memory words, lane 0 in the lowest bits, as elements (depth, L); zeros follow."""
        bits = self.element_bits
        elements = np.zeros((depth, self.lanes), dtype=np.int64)
        for word, row in zip(words, elements, strict=False):
            row[:] = [word >> (lane * bits) & ((1 << bits) - 1) for lane in range(self.lanes)]
        return QFormat(bits, 0).fit(elements, Overflow.WRAP)

    def halves(self, words: IntegerArray) -> tuple[IntegerArray, IntegerArray]:
        """Return the lower and the upper weight of each pair, of the shape of `words`."""
        half = QFormat(self.element_bits // 2, 0)
        lower, upper = words, words >> half.bits
        return half.fit(lower, Overflow.WRAP), half.fit(upper, Overflow.WRAP)

    def compute(self, memory: IntegerArray, commands: Commands) -> Results:
        """Return what commands give.

        Args:
            memory: Signed elements (depth, L); not changed.
            commands: N of them.

        Raises:
            QuantizationError: An activation is too wide, or a sum does not run from `first` to
                `last` within `terms` words.
        """
        if not QFormat(self.activation_bits, 0).holds(commands.activations):
            raise QuantizationError(f"an activation does not fit {self.activation_bits} bits")
        operation, activations = commands.operation, commands.activations
        words, memory = self._words(memory, commands)
        lower, upper = words, np.zeros_like(words)  # (N, L)
        if (paired := operation == Operation.PAIRS).any():
            halves = self.halves(words)
            lower, upper = np.where(paired[:, None], halves, (lower, upper))  # (N,) -> (N, 1)
        dots = (operation == Operation.DOT) | paired
        taps = commands.tap[dots & (commands.first != 0)]
        return Results(
            self._grouped(self._sums(activations * lower, commands, dots), taps),
            self._grouped(self._sums(activations * upper, commands, dots), taps),
            self._sums(activations * words, commands, operation == Operation.ACCUMULATE),
            memory,
        )

    def _words(self, memory: IntegerArray, commands: Commands) -> tuple[IntegerArray, IntegerArray]:
        """Return the word that each command finds (N, L), and the memory after the last one."""
        memory = memory.copy()
        words = memory[commands.address]
        for place in np.flatnonzero(commands.operation == Operation.WRITE):
            address = commands.address[place]
            memory[address] = QFormat(self.element_bits, 0).fit(commands.activations[place], Overflow.WRAP)
            words[place:][commands.address[place:] == address] = memory[address]
        return words, memory

    def _sums(self, products: IntegerArray, commands: Commands, chosen: np.ndarray) -> IntegerArray:
        """Return sums (S, L), each from a `first` to its `last`, of the chosen products (N, L)."""
        first, last = np.flatnonzero(commands.first[chosen]), np.flatnonzero(commands.last[chosen])
        ends = np.append(first[1:], np.count_nonzero(chosen)) if len(first) else first
        if (first[:1] != 0).any() or not np.array_equal(ends - 1, last):
            raise QuantizationError("a sum must run from `first` to `last`, one after another")
        if (ends - first > self.terms).any():
            raise QuantizationError(f"a sum of {(ends - first).max()} words is longer than {self.terms}")
        return np.add.reduceat(products[chosen], first)  # (N, L) -> (S, L)

    def _grouped(self, sums: IntegerArray, taps: IntegerArray) -> IntegerArray:
        """Return the sums of each tap's groups (S, groups) from sums of lanes (S, L)."""
        grouped = np.zeros((len(sums), self.groups), dtype=np.int64)
        for tap, columns in enumerate(self.columns):
            # (S, L) -> (S, L / columns, columns) -> (S, L / columns)
            totals = sums[taps == tap].reshape(-1, self.lanes // columns, columns).sum(axis=-1)
            grouped[taps == tap, : totals.shape[1]] = totals
        return grouped
