"""Learning byte-pair merges (Sennrich et al. 2016): join the most frequent neighbouring pair of tokens, again and again.

The text is first reduced to its different words with their counts, and a merge only touches the words that hold its pair:
- `pair_counts`: how often each pair occurs, kept up to date;
- `pair_words`: which words may hold a pair (a word that no longer does is noticed when it is visited);
- a heap of (−count, pair), where an entry whose count is no longer the true one is dropped or renewed when it comes up.
So a merge costs as much as the words it changes, not as much as the text.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

Pair = tuple[int, int]


def learn_merges(word_counts: Iterable[tuple[bytes, int]], num_merges: int) -> list[Pair]:
    """Return up to `num_merges` pairs in the order of their merging; merge i makes token 256 + i.

    Of equally frequent pairs the one with the smaller token numbers comes first. Pairs that occur only once are not merged.

    Args:
        word_counts: Different words as bytes, with their counts.
        num_merges: How many merges are wanted.
    """
    words: list[list[int]] = []
    counts: list[int] = []
    pair_counts: dict[Pair, int] = defaultdict(int)
    pair_words: dict[Pair, list[int]] = defaultdict(list)
    for word, count in word_counts:
        if len(word) < 2:
            continue
        index = len(words)
        words.append(list(word))
        counts.append(count)
        for pair in itertools.pairwise(word):
            pair_counts[pair] += count
            pair_words[pair].append(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < num_merges:
        negative, pair = heapq.heappop(heap)
        count = pair_counts.get(pair, 0)
        if count != -negative:
            if count > 1:
                heapq.heappush(heap, (-count, pair))
            continue
        if count < 2:
            break
        new = 256 + len(merges)
        merges.append(pair)
        fresh = _apply(pair, new, words, counts, pair_counts, pair_words)
        for other in fresh:
            if pair_counts[other] > 1:
                heapq.heappush(heap, (-pair_counts[other], other))
    return merges


def _apply(
    pair: Pair,
    new: int,
    words: list[list[int]],
    counts: list[int],
    pair_counts: dict[Pair, int],
    pair_words: dict[Pair, list[int]],
) -> set[Pair]:
    """Replace a pair by a token in all words, and return the pairs that this created."""
    first, second = pair
    fresh: set[Pair] = set()
    for index in pair_words.pop(pair):
        word = words[index]
        if first not in word:
            continue  # merged away since, or visited before: a word is listed once for each place
        count = counts[index]
        position = 0
        while True:
            try:
                position = word.index(first, position)
            except ValueError:
                break
            if position + 1 >= len(word) or word[position + 1] != second:
                position += 1
                continue
            word[position : position + 2] = [new]
            if position > 0:
                before = word[position - 1]
                pair_counts[before, first] -= count
                created = (before, new)
                pair_counts[created] += count
                pair_words[created].append(index)
                fresh.add(created)
            if position + 1 < len(word):
                after = word[position + 1]
                pair_counts[second, after] -= count
                created = (new, after)
                pair_counts[created] += count
                pair_words[created].append(index)
                fresh.add(created)
            position += 1
    del pair_counts[pair]
    return fresh


def count_words(pieces: Iterable[str]) -> list[tuple[bytes, int]]:
    """Return the different pieces as UTF-8 with their counts."""
    return [(piece.encode("utf-8", "surrogatepass"), count) for piece, count in Counter(pieces).items()]
