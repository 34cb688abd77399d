"""GPT-2's tokenizer (Radford et al. 2019): byte-level byte-pair encoding with numbers of its own.

`vocab.json` maps each token's spelling to its number, `merges.txt` lists the pairs in the order of
merging. In both a byte is spelled as one printable character.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any, Self

from ..errors import InputError
from ..files import atomic_write, read_bytes, read_json
from .bpe import BPETokenizer

VOCABULARY_NAME, MERGES_NAME = "vocab.json", "merges.txt"
END_OF_TEXT = "<|endoftext|>"
# Bytes that are printable in Latin-1 spell themselves, the others characters from U+0100 on.
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = [value for value in range(256) if value not in _PRINTABLE]
SPELLING = [chr(256 + _OTHERS.index(value)) if value in _OTHERS else chr(value) for value in range(256)]


@cache
def piece_pattern() -> re.Pattern[str]:
    r"""Return GPT-2's pattern of pieces, which is written with `\p{L}` and `\p{N}`.

    `re` has neither: its letters count numbers such as ½, which are no digits, and its white space
    counts U+001C to U+001F.
    """
    numbers = "".join(c for c in map(chr, range(0x110000)) if unicodedata.category(c) in ("Nl", "No"))
    letter, number, space = rf"[^\W\d_{numbers}]", rf"[\d{numbers}]", r"[^\S\x1c-\x1f]"
    mark = r"(?:[^\s\w]|[_\x1c-\x1f])"
    return re.compile(rf"'(?:[sdmt]|ll|ve|re)| ?{letter}+| ?{number}+| ?{mark}+|{space}+(?!(?!{space})[\s\S])|{space}+")


class GPT2Tokenizer(BPETokenizer):
    """Byte-pair encoding with any numbers for bytes, merges and special tokens.

    Attributes:
        numbers: The number of each byte, then of each merge, then of each special token.
    """

    kind = "gpt2"
    numbers: list[int]

    def _pieces(self, text: str) -> list[str]:
        return piece_pattern().findall(text)

    def train(self, texts: object, progress: bool = False) -> None:
        """Refuse: the vocabulary is GPT-2's."""
        raise InputError("GPT-2's tokenizer is not trained here; read its files with GPT2Tokenizer.read(path)")

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(map(self.numbers.__getitem__, super().encode(text)))

    def token_bytes(self, token: int) -> bytes:
        """Return a byte, the bytes that were merged, or a special token's."""
        return super().token_bytes(self._order[token])

    def beginning(self) -> int:
        """Return the token that stands between texts."""
        return self.encode(END_OF_TEXT)[0] if END_OF_TEXT in self.special_tokens else super().beginning()

    def _number(self, numbers: object) -> Self:
        """Give each token its number."""
        if not isinstance(numbers, list) or set(map(type, numbers)) != {int}:
            raise InputError("the tokens' numbers are not a list of whole numbers")
        if sorted(numbers) != list(range(self.vocab_size)):
            raise InputError(f"the tokens' numbers are not 0 to {self.vocab_size - 1}, each once")
        self.numbers = numbers
        self._order = sorted(range(len(numbers)), key=numbers.__getitem__)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the merges, the special tokens and the numbers of all tokens."""
        return {**super().to_dict(), "numbers": self.numbers}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Self:
        """Rebuild from a file's content."""
        return super().from_dict(content)._number(content["numbers"])

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Return the tokenizer of a `vocab.json` and the `merges.txt` beside it.

        Raises:
            InputError: A file is missing or damaged, or they do not belong together.
        """
        spellings = read_json(path)
        merges_path = Path(path).with_name(MERGES_NAME)
        lines = _text(merges_path).splitlines()
        pairs = [
            tuple(line.split(" ")) for line in lines[lines[:1] != [] and lines[0].startswith("#version") :] if line
        ]
        known = {spelling: value for value, spelling in enumerate(SPELLING)}
        merges = []
        for index, pair in enumerate(pairs):
            if len(pair) != 2 or not all(part in known for part in pair):
                raise InputError(f"{merges_path}: merge {index} is {' '.join(pair)!r}; wanted two tokens made before")
            if "".join(pair) in known:
                raise InputError(f"{merges_path}: merge {index} makes {''.join(pair)!r}, which was there before")
            known["".join(pair)] = 256 + index
            merges.append([known[pair[0]], known[pair[1]]])
        special = sorted(spellings.keys() - known.keys())
        missing = [spelling for spelling in known if spelling not in spellings]
        if missing:
            raise InputError(f"{path} does not fit {MERGES_NAME}: it lacks {', '.join(map(repr, missing[:5]))}")
        numbers = [spellings[spelling] for spelling in (*known, *special)]
        content = {"vocab_size": len(numbers), "special_tokens": special, "merges": merges, "numbers": numbers}
        try:
            return cls.from_dict(content)
        except InputError as error:
            raise InputError(f"{path} is not the vocabulary of a GPT-2: {error}") from None

    def write(self, directory: str | Path) -> None:
        """Write `vocab.json` and `merges.txt`."""
        spelled = ["".join(SPELLING[value] for value in self._bytes[token]) for token in range(256 + len(self.merges))]
        vocabulary = dict(
            sorted(zip((*spelled, *self.special_tokens), self.numbers, strict=True), key=lambda it: it[1])
        )
        with atomic_write(Path(directory) / VOCABULARY_NAME) as file:
            json.dump(vocabulary, file, ensure_ascii=False)
        with atomic_write(Path(directory) / MERGES_NAME) as file:
            file.write("#version: 0.2\n")
            file.writelines(f"{spelled[first]} {spelled[second]}\n" for first, second in self.merges)


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text") from None
