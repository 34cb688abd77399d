"""Words as tokens that are joined in pairs, for learning merges and for encoding long pieces.

The words lie one behind the other in a list of cells, one for each byte, with a border between
them. A token stands in its first and in its last cell; what the cells between hold is never looked
at. So the neighbours of a token are found from its place and its length, and joining two tokens
costs the same wherever they are.

A list of places where a pair begins may be out of date: tokens only grow, so a place that held the
pair once either holds it still or never again, and one look at both tokens tells.
"""

from __future__ import annotations

import itertools
from array import array
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]
Places = Sequence[int]

# stands between two words, and in the first cell of a token that has become the end of a longer one
BORDER = -1


class TokenCells:
    """Words, at first of one token a byte.

    Args:
        words: Any number of words of at least one byte.
    """

    def __init__(self, words: Sequence[bytes]) -> None:
        cells = np.frombuffer(b"".join([b"\0" + word for word in words]) + b"\0", np.uint8).astype(np.int32)
        cells[np.cumsum([0] + [len(word) + 1 for word in words])] = BORDER
        self._cells: list[int] = cells.tolist()
        self._lengths = dict.fromkeys(range(256), 1)

    def pairs(self) -> dict[Pair, Places]:
        """Return where each pair of bytes begins, ascending. Only before the first `join`."""
        cells = np.array(self._cells, np.int32)
        places = np.flatnonzero((cells[:-1] != BORDER) & (cells[1:] != BORDER))
        pairs = cells[places] << 8 | cells[places + 1]
        order = np.argsort(pairs, kind="stable")
        places, pairs = places[order], pairs[order]
        bounds = np.flatnonzero(np.diff(pairs, prepend=-1, append=-1)).tolist()
        return {
            divmod(int(pairs[begin]), 256): array("q", places[begin:end].tobytes())
            for begin, end in itertools.pairwise(bounds)
        }

    def join(self, pair: Pair, new: int, places: Places) -> tuple[dict[int, Places], dict[int, Places]]:
        """Replace a pair of tokens by the token `new`, from left to right.

        Args:
            pair: The tokens.
            new: A token that was never there before.
            places: Where the pair begins, in ascending order; places that hold it no longer are
                passed over.

        Returns:
            For each neighbour before, where the pairs (neighbour, new) begin; for each neighbour
                after, where the pairs (new, neighbour) begin; in ascending order. Where two of the
                new tokens are adjacent, the place is in both: as (new, first) and as (new, new).
        """
        first, second = pair
        cells, lengths = self._cells, self._lengths
        first_length = lengths[first]
        length = lengths[new] = first_length + lengths[second]
        before: defaultdict[int, array[int]] = defaultdict(_no_places)
        after: defaultdict[int, array[int]] = defaultdict(_no_places)
        for start in places:
            middle = start + first_length
            if cells[start] != first or cells[middle] != second:
                continue
            stop = start + length
            cells[middle] = BORDER
            cells[start] = cells[stop - 1] = new
            neighbour = cells[start - 1]
            if neighbour != BORDER:
                before[neighbour].append(start - lengths[neighbour])
            neighbour = cells[stop]
            if neighbour != BORDER:
                after[neighbour].append(start)
        return dict(before), dict(after)

    def tokens(self) -> list[int]:
        """Return the tokens of all words, one after the other."""
        cells, lengths = self._cells, self._lengths
        tokens = []
        place = 0
        while place < len(cells):
            token = cells[place]
            if token == BORDER:
                place += 1
            else:
                tokens.append(token)
                place += lengths[token]
        return tokens


def _no_places() -> array[int]:
    return array("q")
