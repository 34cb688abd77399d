"""Learning byte-pair merges (Sennrich et al. 2016): repeatedly join the most frequent pair.

The text is first reduced to its different words with their counts. A merge then visits the places
of its pair alone:
- `TokenCells`: the words, as tokens whose neighbours are found without a search;
- `counts`: how often each pair occurs, kept up to date;
- `places`: where each pair began when it came into being (a place that holds it no longer is
  noticed there);
- a heap of (−count, pair), where an entry whose count is no longer the true one is dropped or
  renewed when it comes up.
So a merge costs as much as the places it changes, not as much as the text, nor as the words that
they are in.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

import numpy as np
from tqdm import tqdm

from .token_cells import Pair, Places, TokenCells


def learn_merges(word_counts: Iterable[tuple[bytes, int]], num_merges: int, progress: bool = False) -> list[Pair]:
    """Return up to `num_merges` pairs in the order of their merging; merge i makes token 256 + i.

    Of equally frequent pairs the one with the smaller token numbers comes first. Pairs that occur
    only once are not merged.

    Args:
        word_counts: Different words as bytes, with their counts.
        num_merges: How many merges are wanted.
        progress: Show a bar on a terminal.
    """
    words = _Words(word_counts)
    heap = [(-count, pair) for pair, count in words.counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    with tqdm(
        total=num_merges, desc="learning tokens", unit="token", leave=False, disable=None if progress else True
    ) as bar:
        while heap and len(merges) < num_merges:
            negative, pair = heapq.heappop(heap)
            count = words.counts[pair]
            if count < 2:
                continue
            if count != -negative:
                heapq.heappush(heap, (-count, pair))
                continue
            merges.append(pair)
            for created in words.merge(pair):
                heapq.heappush(heap, (-words.counts[created], created))
            bar.update()
    return merges


class _Words:
    """The words as tokens, and the pairs in them.

    Attributes:
        counts: Occurrences of each pair that was there more than once when it came into being; no
            pair ever becomes more frequent.
    """

    def __init__(self, word_counts: Iterable[tuple[bytes, int]]) -> None:
        words = [(word, count) for word, count in word_counts if len(word) > 1]
        self._cells = TokenCells([word for word, _ in words])
        lengths = [len(word) + 1 for word, _ in words]  # with the border before
        weights = np.append(np.repeat(np.array([count for _, count in words], np.int64), lengths), 0)
        self._weights: list[int] = weights.tolist()
        self._next_token = 256
        self.counts: dict[Pair, int] = {}
        self._places: dict[Pair, Places] = self._cells.pairs()
        self._keep(list(self._places))

    def merge(self, pair: Pair) -> list[Pair]:
        """Replace a pair by the next token everywhere; return the new pairs that may be merged."""
        first, second = pair
        new, counts = self._next_token, self.counts
        self._next_token += 1
        before, after = self._cells.join(pair, new, self._places.pop(pair))
        del counts[pair]
        created = {(new, token): places for token, places in after.items()}
        created.update({(token, new): places for token, places in before.items()})
        self._places.update(created)
        kept = self._keep(created)
        for token, places in after.items():
            if (second, token) in counts:
                counts[second, token] -= self._weigh(places)
        for token, places in before.items():
            if (token, first) in counts:
                counts[token, first] -= self._weigh(places)
        return kept

    def _keep(self, pairs: Iterable[Pair]) -> list[Pair]:
        """Count pairs, forget those that occur once, and return the others."""
        kept = []
        for pair in pairs:
            count = self._weigh(self._places[pair])
            if count > 1:
                self.counts[pair] = count
                kept.append(pair)
            else:
                del self._places[pair]
        return kept

    def _weigh(self, places: Places) -> int:
        return sum(map(self._weights.__getitem__, places))


def count_words(pieces: Iterable[str]) -> list[tuple[bytes, int]]:
    """Return the different pieces as UTF-8 with their counts."""
    return [(piece.encode("utf-8"), count) for piece, count in Counter(pieces).items()]
