"""One token for each frequent word, space run or punctuation mark of the training text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

from ..checks import is_whole
from ..errors import InputError
from .tokenizer import LARGEST_VOCABULARY, Tokenizer, as_texts, checked_vocabulary

UNKNOWN = "<UNK>"
# A word with the one space before it; or else a single character. Every text is the concatenation
# of its pieces.
PIECE = re.compile(r" ?\w+|[^\w]", re.UNICODE)


class WordTokenizer(Tokenizer):
    """The most frequent pieces of the training text; everything else becomes `<UNK>` (token 0).

    A piece is a word with the space before it, or one other character. Text whose pieces are all
    known survives a round trip unchanged.

    Args:
        max_vocab_size: Largest number of tokens, `<UNK>` included.
    """

    kind = "word"

    def __init__(self, max_vocab_size: int = 10_000) -> None:
        if not is_whole(max_vocab_size) or not 2 <= max_vocab_size <= LARGEST_VOCABULARY:
            raise InputError(
                f"max_vocab_size must be a whole number from 2 to {LARGEST_VOCABULARY:,}, not {max_vocab_size!r}"
            )
        self.max_vocab_size = int(max_vocab_size)
        self.pieces: list[str] = []
        self._tokens: dict[str, int] = {}

    def train(self, texts: str | Iterable[str], progress: bool = False) -> None:
        """Count the pieces of one text or several; keep the most frequent (ties by alphabet)."""
        counts: Counter[str] = Counter()
        for text in as_texts(texts):
            counts.update(PIECE.findall(text))
        counts.pop(UNKNOWN, None)
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        self._set([UNKNOWN, *(piece for piece, _ in ranked[: self.max_vocab_size - 1])])

    def _set(self, pieces: list[str]) -> None:
        self.pieces = pieces
        self._tokens = {piece: token for token, piece in enumerate(pieces)}

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; unknown pieces become token 0."""
        self._check_text(text)
        tokens = self._tokens
        return [tokens.get(piece, 0) for piece in PIECE.findall(text)]

    def token_bytes(self, token: int) -> bytes:
        """Return a piece, `<UNK>` for token 0."""
        return self.pieces[token].encode("utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary."""
        return {"max_vocab_size": self.max_vocab_size, "vocabulary": self.pieces}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Rebuild from a file's content."""
        tokenizer = cls(content["max_vocab_size"])
        pieces = checked_vocabulary(content)
        if pieces[0] != UNKNOWN or len(pieces) > tokenizer.max_vocab_size:
            raise InputError(f"the vocabulary must begin with {UNKNOWN} and have at most max_vocab_size entries")
        tokenizer._set(pieces)
        return tokenizer
