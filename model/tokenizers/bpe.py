"""Byte-level byte-pair encoding: 256 bytes and learned merges; any text survives a round trip."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Self

from ..checks import is_whole
from ..errors import InputError
from .bpe_training import count_words, learn_merges
from .token_cells import Pair, TokenCells
from .tokenizer import LARGEST_VOCABULARY, Tokenizer, as_texts, check_characters

# Contractions; a word, number or run of marks with the space before it; the white space in between.
# `[^\W\d_]` is a letter.
PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
# Encoded words are remembered up to this number, so that text with endless new words does not fill
# the memory.
CACHE_SIZE = 1 << 18
# Pieces of so many bytes are merged in time that grows with their length; in shorter ones looking
# through all of the piece is faster.
LONG_PIECE = 100


class BPETokenizer(Tokenizer):
    """Tokens 0 to 255 are bytes, then come merges in the order learned, then special tokens.

    Args:
        vocab_size: Tokens to learn, bytes and special tokens included; fewer come out of a text
            with too few repetitions.
        special_tokens: Texts that are one token wherever they stand, for example `<|endoftext|>`.
    """

    kind = "bpe"

    def __init__(self, vocab_size: int = 1024, special_tokens: Sequence[str] = ()) -> None:
        lowest = 256 + len(special_tokens)
        if not is_whole(vocab_size) or not lowest <= vocab_size <= LARGEST_VOCABULARY:
            raise InputError(
                f"vocab_size must be a whole number from {lowest} (256 bytes and the special tokens) to {LARGEST_VOCABULARY:,}, "
                f"not {vocab_size!r}"
            )
        if not all(isinstance(token, str) and token for token in special_tokens) or len(set(special_tokens)) != len(
            special_tokens
        ):
            raise InputError("special tokens must be different texts that are not empty")
        for token in special_tokens:
            check_characters(token)
        self.wanted_vocab_size = int(vocab_size)
        self.special_tokens = list(special_tokens)
        self.merges: list[Pair] = []
        self._trained = False
        self._set([])

    def train(self, texts: str | Iterable[str], progress: bool = False) -> None:
        """Learn merges from one text or several."""
        pieces: list[str] = []
        for text in as_texts(texts):
            for part in self._split(text):
                if part not in self._special:
                    pieces.extend(self._pieces(part))
        num_merges = self.wanted_vocab_size - 256 - len(self.special_tokens)
        self._set(learn_merges(count_words(pieces), num_merges, progress))
        self._trained = True

    def _set(self, merges: list[Pair]) -> None:
        self.merges = merges
        self._bytes = [bytes([value]) for value in range(256)]
        for first, second in merges:
            self._bytes.append(self._bytes[first] + self._bytes[second])
        self._special = {text: len(self._bytes) + index for index, text in enumerate(self.special_tokens)}
        self._bytes += [text.encode("utf-8") for text in self.special_tokens]
        self._new_token = {pair: 256 + index for index, pair in enumerate(merges)}
        self._cache: dict[str, list[int]] = {}
        longest_first = sorted(map(re.escape, self.special_tokens), key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(longest_first)})") if longest_first else None

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._bytes) if self._trained else 0

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        self._check_text(text)
        tokens: list[int] = []
        for part in self._split(text):
            if part in self._special:
                tokens.append(self._special[part])
            else:
                tokens.extend(self._encode_part(part))
        return tokens

    def _encode_part(self, text: str) -> Iterable[int]:
        """Return the tokens of a text without special tokens.

        Each different piece is encoded once; the text is then put together without any more Python
        per piece.
        """
        pieces = self._pieces(text)
        known = {piece: self._cache.get(piece) or self._encode_piece(piece) for piece in set(pieces)}
        return itertools.chain.from_iterable(map(known.__getitem__, pieces))

    def token_bytes(self, token: int) -> bytes:
        """Return a byte, the bytes that were merged, or a special token's."""
        return self._bytes[token]

    def _split(self, text: str) -> list[str]:
        return [text] if self._special_pattern is None else self._special_pattern.split(text)

    def _pieces(self, text: str) -> list[str]:
        """Cut a text into the pieces within which pairs are merged."""
        return PIECE.findall(text)

    def _encode_piece(self, piece: str) -> list[int]:
        """Merge the piece's bytes, the earliest learned pair first."""
        word = piece.encode("utf-8")
        tokens = self._merge_short(word) if len(word) < LONG_PIECE else self._merge_long(word)
        if len(self._cache) < CACHE_SIZE:
            self._cache[piece] = tokens
        return tokens

    def _merge_short(self, word: bytes) -> list[int]:
        """Look through all of a word for each merge."""
        tokens = list(word)
        new_token = self._new_token
        while len(tokens) > 1:
            merged = min([new_token.get(pair, LARGEST_VOCABULARY) for pair in itertools.pairwise(tokens)])
            if merged == LARGEST_VOCABULARY:
                break
            first, second = self.merges[merged - 256]
            position = 0
            last = len(tokens) - 1
            while position < last:
                if tokens[position] == first and tokens[position + 1] == second:
                    tokens[position : position + 2] = [merged]
                    last -= 1
                position += 1
        return tokens

    def _merge_long(self, word: bytes) -> list[int]:
        """Do the same as `_merge_short` in near-linear time: visit only the places of each pair.

        A pair that a merge creates was learned later than that merge, so a heap gives the merges in
        their order.
        """
        cells = TokenCells([word])
        new_token = self._new_token
        waiting = {new_token[pair]: places for pair, places in cells.pairs().items() if pair in new_token}
        order = list(waiting)
        heapq.heapify(order)
        while order:
            merged = heapq.heappop(order)
            before, after = cells.join(self.merges[merged - 256], merged, waiting.pop(merged))
            created = {(merged, token): places for token, places in after.items()}
            created.update({(token, merged): places for token, places in before.items()})
            for pair, places in created.items():
                if pair in new_token:
                    waiting[new_token[pair]] = places
                    heapq.heappush(order, new_token[pair])
        return cells.tokens()

    def to_dict(self) -> dict[str, Any]:
        """Return the merges and special tokens."""
        return {
            "vocab_size": self.wanted_vocab_size,
            "special_tokens": self.special_tokens,
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Rebuild from a file's content."""
        tokenizer = cls(content["vocab_size"], content["special_tokens"])
        merges = content["merges"]
        if (
            not isinstance(merges, list)
            or 256 + len(merges) + len(tokenizer.special_tokens) > tokenizer.wanted_vocab_size
        ):
            raise InputError("the merges are not a list, or more than vocab_size allows")
        pairs: list[Pair] = []
        length = [1] * 256
        for index, pair in enumerate(merges):
            known = range(256 + index)
            if (
                not isinstance(pair, list)
                or len(pair) != 2
                or any(type(token) is not int or token not in known for token in pair)
            ):
                raise InputError(f"merge {index} is {pair!r}; wanted two tokens below {256 + index}")
            length.append(length[pair[0]] + length[pair[1]])
            if length[-1] > 1 << 20:  # a few dozen doublings would claim all memory
                raise InputError(f"merge {index} makes a token of {length[-1]:,} bytes")
            pairs.append((pair[0], pair[1]))
        if len(set(pairs)) != len(pairs):
            raise InputError("a merge is listed twice")
        tokenizer._set(pairs)
        tokenizer._trained = True
        return tokenizer
