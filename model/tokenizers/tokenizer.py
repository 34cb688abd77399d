"""What the tokenizers share: the interface, the file format, and loading by class."""

from __future__ import annotations

import codecs
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from ..checks import checked_tokens
from ..errors import InputError
from ..files import read_json, write_json

FORMAT = "positron-tokenizer"
VERSION = 1
LARGEST_VOCABULARY = 1 << 24


class Tokenizer(ABC):
    """Text to token numbers and back. `train` fixes the vocabulary; before, nothing can be encoded.

    Attributes:
        special_tokens: Texts that are one token wherever they stand.
        can_be_cut: Whether a text may be encoded a part at a time, as `model.data.text_parts` cuts.
    """

    kind: ClassVar[str]
    can_be_cut: ClassVar[bool] = True
    special_tokens: Sequence[str] = ()
    _kinds: ClassVar[dict[str, type[Tokenizer]]] = {}

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        Tokenizer._kinds[cls.kind] = cls

    @abstractmethod
    def train(self, texts: str | Iterable[str], progress: bool = False) -> None:
        """Build the vocabulary from one text or several.

        Args:
            texts: The text or the texts.
            progress: Show a bar on a terminal while learning byte pairs.
        """

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """Return a token's UTF-8 bytes, which may be a part of a character."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return what the file holds besides format, version and kind."""

    @classmethod
    @abstractmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Rebuild from `to_dict`'s result; may raise anything for content that is wrong."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens; bytes that are not UTF-8 (half a character) become U+FFFD.

        Raises:
            InputError: A token is outside the vocabulary.
        """
        return self.incremental_decoder().decode(ids, final=True)

    def incremental_decoder(self, previous: int | None = None) -> TokenDecoder:
        """Return a decoder for tokens that come one after the other, the first after `previous`."""
        return TokenDecoder(self, previous)

    def beginning(self) -> int:
        """Return the token before a text without a prompt: a line end if there is one, else 0."""
        try:
            return (self.encode("\n") or [0])[0]
        except InputError:
            return 0

    def fingerprint(self) -> str:
        """Return a SHA-256 of the vocabulary, the same for every file that holds it."""
        return hashlib.sha256(json.dumps([self.kind, self.to_dict()], sort_keys=True).encode()).hexdigest()

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the tokens of several texts."""
        return [self.encode(text) for text in texts]

    def save(self, path: str | Path) -> None:
        """Write a versioned JSON file."""
        write_json(path, {"format": FORMAT, "version": VERSION, "kind": self.kind, **self.to_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file of `save`.

        Raises:
            InputError: The file is missing, damaged, or of another kind of tokenizer.
        """
        tokenizer = load_tokenizer(path)
        if not isinstance(tokenizer, cls):
            raise InputError(f"{path} holds a {tokenizer.kind} tokenizer, not a {cls.kind} tokenizer")
        return tokenizer

    def _join(self, tokens: Sequence[int], previous: int | None) -> bytes:
        """Return what tokens stand for after the token `previous`, None where none was."""
        return b"".join(map(self.token_bytes, tokens))

    def _check_ids(self, ids: Sequence[int]) -> list[int]:
        return checked_tokens(ids, self.vocab_size, "token")

    def _check_text(self, text: str) -> None:
        """Refuse a text that cannot be encoded now, or by no tokenizer."""
        if self.vocab_size == 0:
            raise InputError("the tokenizer has no vocabulary yet; call train(texts) or load(path) first")
        check_characters(text)


class TokenDecoder:
    """Decodes tokens as they arrive; the pieces together are what `Tokenizer.decode` returns.

    As `codecs.IncrementalDecoder` does with bytes, it keeps the first bytes of a character until
    the others are there.

    Args:
        tokenizer: Whose tokens they are.
        previous: The token before the first, None where that begins the text.
    """

    def __init__(self, tokenizer: Tokenizer, previous: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._previous = previous
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, ids: Sequence[int], final: bool = False) -> str:
        """Return the characters that these tokens complete; `final`: U+FFFD for a partial one.

        Raises:
            InputError: A token is outside the vocabulary.
        """
        tokens = self._tokenizer._check_ids(ids)
        data = self._tokenizer._join(tokens, self._previous)
        self._previous = tokens[-1] if tokens else self._previous
        return self._decoder.decode(data, final)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a file, of the class that wrote it.

    Raises:
        InputError: The file is missing, damaged, or of a newer version.
    """
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is not a tokenizer file (its format is {content.get('format')!r}, not {FORMAT!r})")
    if content.get("version") != VERSION:
        raise InputError(f"{path} has version {content.get('version')!r}; this program reads version {VERSION}")
    kind = content.get("kind")
    if not isinstance(kind, str) or kind not in Tokenizer._kinds:
        raise InputError(
            f"{path} names an unknown kind of tokenizer, {kind!r}; known are {', '.join(Tokenizer._kinds)}"
        )
    try:
        return Tokenizer._kinds[kind].from_dict(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is damaged or was edited: {type(error).__name__}: {error}") from None


def as_texts(texts: str | Iterable[str]) -> list[str]:
    """Return one text or several as a list.

    Raises:
        InputError: There is no character in them, or something that is none.
    """
    result = [texts] if isinstance(texts, str) else list(texts)
    if not any(result):
        raise InputError("the text is empty; a tokenizer needs text to learn its vocabulary from")
    for text in result:
        check_characters(text)
    return result


def check_characters(text: str) -> None:
    """Refuse a text that UTF-8 cannot hold.

    Raises:
        InputError: There is a lone surrogate in it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds U+{ord(text[error.start]):04X} at position {error.start:,}, half of a surrogate pair and no "
            "character; read it as UTF-8, or leave that out"
        ) from None


def checked_vocabulary(content: dict[str, Any]) -> list[str]:
    """Return the list of distinct strings in a tokenizer file."""
    vocabulary = content["vocabulary"]
    if not isinstance(vocabulary, list) or not all(isinstance(entry, str) for entry in vocabulary):
        raise InputError("the vocabulary is not a list of strings")
    if len(set(vocabulary)) != len(vocabulary) or not 0 < len(vocabulary) <= LARGEST_VOCABULARY:
        raise InputError("the vocabulary is empty or has an entry twice")
    for entry in vocabulary:
        check_characters(entry)
    return vocabulary
