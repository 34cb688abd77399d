"""How a matrix is cut into memory words for a row of multipliers."""

from dataclasses import dataclass

import numpy as np

from fixedpoint.packing import pack_rows

from ..errors import CircuitError
from ..parts.parameter_checks import check_whole


@dataclass(frozen=True)
class Tile:
    """The rows × columns of a matrix that one memory word holds.

    The lanes form `groups` groups of `columns` lanes. A group works on one row, or on two when
    every element of a word is a pair of weights. A matrix of R rows and K columns takes `slices(K)`
    words for each set of `rows` rows: longer rows go slice by slice, shorter ones share the lanes
    among several.

    Attributes:
        lanes: Multipliers, and elements of a word.
        columns: Lanes of a group; divides `lanes`.
        pairs: An element is two weights, of two rows, which share a multiplier.
    """

    lanes: int
    columns: int
    pairs: bool = False

    def __post_init__(self) -> None:
        """Refuse a tile that does not fill the lanes."""
        check_whole("lanes", self.lanes)
        check_whole("columns", self.columns)
        if not isinstance(self.pairs, bool):
            raise CircuitError(f"pairs must be a bool, not {self.pairs!r}")
        if self.lanes % self.columns:
            raise CircuitError(f"a tile's columns must divide its {self.lanes} lanes; {self.columns!r} does not")

    @property
    def groups(self) -> int:
        """Groups of lanes."""
        return self.lanes // self.columns

    @property
    def rows(self) -> int:
        """Rows of the matrix in a word."""
        return self.groups << self.pairs

    def slices(self, columns: int) -> int:
        """Return the words that a row of a matrix of so many columns extends over."""
        return -(-columns // self.columns)

    def num_words(self, rows: int, columns: int) -> int:
        """Return the words, and so the cycles, of a matrix."""
        return -(-rows // self.rows) * self.slices(columns)

    def utilization(self, rows: int, columns: int) -> float:
        """Return the share of the products that are the matrix's; the others multiply by zero."""
        return rows * columns / (self.num_words(rows, columns) * (self.lanes << self.pairs))

    def elements(self, matrix: np.ndarray, weight_bits: int) -> np.ndarray:
        """Return a matrix (R, K) as words (words, lanes) of unsigned elements, `weight_bits` bits
        each, twice as many in pairs.

        Words follow each other slice by slice, then by sets of rows. Of a set, group g works on
        row g, and with the upper weights of pairs on row `groups + g`. What is beyond the matrix
        is zero.
        """
        rows, columns = matrix.shape
        sets, slices = -(-rows // self.rows), self.slices(columns)
        padded = np.zeros((sets * self.rows, slices * self.columns), dtype=np.int64)
        padded[:rows, :columns] = matrix
        # (sets, half, group, slice, column) → (sets, slice, half, group, column)
        halves = padded.reshape(sets, 1 + self.pairs, self.groups, slices, self.columns).transpose(0, 3, 1, 2, 4)
        fields = halves.reshape(sets * slices, 1 + self.pairs, self.lanes) & ((1 << weight_bits) - 1)
        return fields[:, 0] | (fields[:, 1] << weight_bits if self.pairs else 0)

    def words(self, matrix: np.ndarray, weight_bits: int) -> list[int]:
        """Return `elements` as memory words, lane 0 in the least significant bits."""
        return pack_rows(self.elements(matrix, weight_bits), weight_bits << self.pairs)
