"""The tokenizer of karpathy/llama2.c: byte-pair encoding by score, as SentencePiece's.

Its file (`tokenizer.bin`): int32 length of the longest piece in bytes; then for each token float32
score, int32 length, UTF-8. Tokens 1 and 2 begin and end a text; tokens 3 to 258 are the bytes 0 to
255, spelled `<0x00>` to `<0xFF>`, for characters that the vocabulary lacks. All little-endian.
"""

from __future__ import annotations

import heapq
import math
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from ..checks import is_real
from ..errors import InputError
from ..files import atomic_write, read_bytes
from .tokenizer import Tokenizer, checked_vocabulary

BEGINNING = 1
FIRST_BYTE = 3
BYTE_PIECES = [f"<0x{value:02X}>" for value in range(256)]
LOWEST_SCORE = -1e10  # a piece has to score more to be merged
LONGEST = struct.Struct("<i")
HEAD = struct.Struct("<fi")
# Encoded parts are remembered up to this number, so that endless new words do not fill the memory.
CACHE_SIZE = 1 << 18


class Llama2cTokenizer(Tokenizer):
    """Joins adjacent tokens whose joined spelling is a token: best score first, then leftmost.

    A text begins with token 1, and a space stands before it; decoding drops both.

    Args:
        pieces: The spelling of each token.
        scores: As many finite numbers.

    Raises:
        InputError: The vocabulary lacks a byte or the space, or has an entry twice.
    """

    kind = "llama2c"
    can_be_cut = False

    def __init__(self, pieces: Sequence[str], scores: Sequence[float]) -> None:
        self.pieces = checked_vocabulary({"vocabulary": list(pieces)})
        if len(scores) != len(pieces) or not all(is_real(score) and math.isfinite(score) for score in scores):
            raise InputError("the vocabulary must have one finite score for each token")
        self.scores = [float(score) for score in scores]
        if self.pieces[FIRST_BYTE : FIRST_BYTE + 256] != BYTE_PIECES:
            raise InputError("tokens 3 to 258 of the vocabulary are not the bytes <0x00> to <0xFF>")
        self._tokens = {piece: token for token, piece in enumerate(self.pieces)}
        if "" in self._tokens or " " not in self._tokens:
            raise InputError("the vocabulary has an empty token, or none for the space")
        self._bytes = [piece.encode("utf-8") for piece in self.pieces]
        self._bytes[FIRST_BYTE : FIRST_BYTE + 256] = [bytes([value]) for value in range(256)]
        # Letters that are neighbours in a piece. Between any others no merge can ever reach across.
        self._neighbours = {first + second for piece in self.pieces for first, second in pairwise(piece)}
        self._cache: dict[str, list[int]] = {}

    def train(self, texts: str | Iterable[str], progress: bool = False) -> None:
        """Refuse: such a vocabulary comes from SentencePiece."""
        raise InputError("llama2.c's tokenizer is not trained here; read its file with Llama2cTokenizer.read(path)")

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, token 1 before them."""
        self._check_text(text)
        tokens = [BEGINNING]
        for part in self._parts(f" {text}" if text else ""):
            found = self._cache.get(part)
            if found is None:
                found = self._merge(part)
                if len(self._cache) < CACHE_SIZE:
                    self._cache[part] = found
            tokens += found
        return tokens

    def _parts(self, text: str) -> list[str]:
        """Cut a text at all places that no merge can reach across."""
        known, neighbours = self._tokens, self._neighbours
        # the ends of a character's spelling, which is <0x..><0x..> where the vocabulary lacks it
        lasts = [character if character in known else ">" for character in text]
        firsts = [character if character in known else "<" for character in text[1:]]
        places = enumerate(zip(lasts, firsts, strict=False), 1)
        cuts = [place for place, (last, first) in places if last + first not in neighbours]
        return [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]

    def _merge(self, part: str) -> list[int]:
        """Return the tokens of a part of a text.

        A heap holds all neighbouring tokens that can be joined. Joining changes a token for good,
        so one look at both tells whether an entry is out of date.
        """
        known, pieces, scores = self._tokens, self.pieces, self.scores
        tokens: list[int] = []
        for character in part:
            if character in known:
                tokens.append(known[character])
            else:
                tokens += [FIRST_BYTE + value for value in character.encode("utf-8")]
        before, after = list(range(-1, len(tokens) - 1)), list(range(1, len(tokens) + 1))
        heap: list[tuple[float, int, int, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            joined = known.get(pieces[tokens[left]] + pieces[tokens[right]])
            if joined is not None and scores[joined] > LOWEST_SCORE:
                heapq.heappush(heap, (-scores[joined], left, right, tokens[left], tokens[right], joined))

        for left in range(len(tokens) - 1):
            offer(left, left + 1)
        while heap:
            _, left, right, first, second, joined = heapq.heappop(heap)
            if (tokens[left], tokens[right]) != (first, second):
                continue
            tokens[left], tokens[right] = joined, -1
            following = after[left] = after[right]
            if following < len(tokens):
                before[following] = left
                offer(left, following)
            if before[left] >= 0:
                offer(before[left], left)
        return [token for token in tokens if token >= 0]

    def token_bytes(self, token: int) -> bytes:
        """Return a byte, or a piece's UTF-8."""
        return self._bytes[token]

    def _join(self, tokens: Sequence[int], previous: int | None) -> bytes:
        """Leave out the token that begins a text, and the space of the one after it."""
        parts = []
        for token in tokens:
            part = b"" if previous is None and token == BEGINNING else self._bytes[token]
            drop_space = previous == BEGINNING and self.pieces[token].startswith(" ")
            parts.append(part[1:] if drop_space else part)
            previous = token
        return b"".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary and its scores."""
        return {"vocabulary": self.pieces, "scores": self.scores}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Rebuild from a file's content."""
        return cls(content["vocabulary"], content["scores"])

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the tokenizer in a file of llama2.c.

        Raises:
            InputError: The file is missing, truncated, or something else.
        """
        data = read_bytes(path)
        pieces: list[str] = []
        scores: list[float] = []
        place = LONGEST.size
        try:
            (longest,) = LONGEST.unpack_from(data)
            while place < len(data):
                score, length = HEAD.unpack_from(data, place)
                place += HEAD.size
                if not 0 < length <= longest:
                    raise InputError(f"token {len(pieces)} has {length:,} bytes; the longest has {longest:,}")
                if place + length > len(data):
                    raise InputError(f"it ends within token {len(pieces)}")
                pieces.append(data[place : place + length].decode("utf-8"))
                scores.append(score)
                place += length
            return cls(pieces, scores)
        except struct.error:
            raise InputError(f"{path} is not a whole llama2.c tokenizer: it ends within token {len(pieces)}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is not a llama2.c tokenizer: token {len(pieces)} is not UTF-8") from None
        except InputError as error:
            raise InputError(f"{path} is not a whole llama2.c tokenizer: {error}") from None

    def write(self, path: str | Path) -> None:
        """Write llama2.c's file."""
        spelled = [piece.encode("utf-8") for piece in self.pieces]
        with atomic_write(path, "wb") as file:
            file.write(LONGEST.pack(max(map(len, spelled))))
            for piece, score in zip(spelled, self.scores, strict=True):
                file.write(HEAD.pack(score, len(piece)) + piece)
