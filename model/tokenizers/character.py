"""One token for each character of the training text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from ..errors import InputError
from .tokenizer import Tokenizer, as_texts, checked_vocabulary


class CharacterTokenizer(Tokenizer):
    """The vocabulary is the training text's sorted characters; an unknown one is an error."""

    kind = "character"

    def __init__(self) -> None:
        self.characters: list[str] = []
        self._tokens: dict[str, int] = {}

    def train(self, texts: str | Iterable[str], progress: bool = False) -> None:
        """Take the characters of one text or several."""
        self._set(sorted(set().union(*as_texts(texts))))

    def _set(self, characters: list[str]) -> None:
        self.characters = characters
        self._tokens = {character: token for token, character in enumerate(characters)}

    @property
    def vocab_size(self) -> int:
        """Number of different characters."""
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text.

        Raises:
            InputError: A character is not in the vocabulary; the message names it.
        """
        self._check_text(text)
        try:
            return [self._tokens[character] for character in text]
        except KeyError:
            unknown = sorted(set(text) - self._tokens.keys())
            named = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:10])
            more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
            raise InputError(
                f"unknown character{'s' if len(unknown) > 1 else ''}: {named}{more}; "
                f"the model was trained on {self.vocab_size} characters: {''.join(filter(str.isprintable, self.characters))}"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        """Return a character."""
        return self.characters[token].encode("utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary."""
        return {"vocabulary": self.characters}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Rebuild from a file's content."""
        characters = checked_vocabulary(content)
        if any(len(character) != 1 for character in characters):
            raise InputError("an entry of the vocabulary is not one character")
        tokenizer = cls()
        tokenizer._set(characters)
        return tokenizer
