"""A small file that gives single layers and tensors other widths or formats than the rest.

Its tables are named by what they change, exactly or with `*` and `?`; a later table wins over an
earlier one. In TOML:

    ["blocks.0.*"]
    weight_bits = 8

    ["*.feed_forward.activation"]
    activation_bits = 6

    ["final_norm"]
    format = "Q4.4"

and the same as objects in JSON. Names are the float model's; `weight_bits` is about a layer's
weights or a table, `activation_bits` and `format` about what a layer produces. `logits` and
`residual` have a format only.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..checks import is_whole, plain
from ..errors import QuantizationError
from ..qformat import QFormat
from ..row_scales import WeightBits, storage_bits

# An engine's activation operand has room for 10 bits beside two 4-bit weights in one multiplier.
ACTIVATION_BITS = (4, 10)
KEYS = ("weight_bits", "activation_bits", "format")
WIDE = ("residual", "logits")  # 8 to 16 bits; every other activation has 4 to 10
TABLES = ("token_embedding", "position_embedding")


@dataclass(frozen=True)
class Overrides:
    """What a file wants changed, checked but for the names.

    Attributes:
        tables: Pattern and what it changes, in the file's order.
    """

    tables: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Overrides:
        """Read a `.toml` or `.json` file.

        Raises:
            QuantizationError: The file cannot be read, or holds something else.
        """
        path = Path(path)
        read = {".toml": tomllib.loads, ".json": json.loads}.get(path.suffix)
        if read is None:
            raise QuantizationError(f"overrides are a .toml or .json file, not {path.name}")
        try:
            content = read(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise QuantizationError(f"{path} cannot be read: {error.strerror}") from None
        except ValueError as error:  # both parsers' errors, and UTF-8's
            raise QuantizationError(f"{path} is not valid {path.suffix[1:].upper()}: {error}") from None
        try:
            return cls.from_dict(content)
        except QuantizationError as error:
            raise QuantizationError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, content: object) -> Overrides:
        """Check a mapping from patterns to tables.

        Raises:
            QuantizationError: It is none, or keys are unknown or values impossible; the message
                names all.
        """
        if not isinstance(content, Mapping):
            raise QuantizationError(f"overrides are tables by layer name, not {type(content).__name__}")
        problems = [problem for pattern, table in content.items() for problem in _problems(pattern, table)]
        if problems:
            raise QuantizationError("; ".join(problems))
        return cls(
            tuple((pattern, {key: plain(value) for key, value in table.items()}) for pattern, table in content.items())
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `from_dict` takes."""
        return {pattern: dict(table) for pattern, table in self.tables}

    def resolve(self, layers: Collection[str], activations: Collection[str]) -> ResolvedOverrides:
        """Return what changes for each name.

        Args:
            layers: Names of all that has weights.
            activations: Names of all that has a format of its own.

        Raises:
            QuantizationError: A pattern matches nothing that it could change, or a value is not one
                for it; the message says it of all.
        """
        narrow = [name for name in activations if name not in WIDE]
        places: dict[str, Collection[str]] = {"weight_bits": layers, "activation_bits": narrow, "format": activations}
        resolved, problems = ResolvedOverrides(), []
        for pattern, table in self.tables:
            for key, value in table.items():
                names = [name for name in places[key] if fnmatchcase(name, pattern)]
                if not names:
                    problems.append(
                        f"override {pattern!r} matches nothing that has {key}; names are: {', '.join(sorted(places[key]))}"
                    )
                problems += filter(None, (resolved.set(name, key, value) for name in names))
        if problems:
            raise QuantizationError("; ".join(problems))
        return resolved


@dataclass(frozen=True)
class ResolvedOverrides:
    """What changes, by exact name.

    Attributes:
        weight_bits: Widths of layers and tables.
        activation_bits: Widths of activations whose format calibration chooses.
        formats: Formats that are given.
    """

    weight_bits: dict[str, WeightBits] = field(default_factory=dict)
    activation_bits: dict[str, int] = field(default_factory=dict)
    formats: dict[str, QFormat] = field(default_factory=dict)

    def set(self, name: str, key: str, value: Any) -> str | None:
        """Change one name; the last change wins.

        Returns:
            Why this name cannot have the value, though others can; else None.
        """
        if key == "weight_bits":
            if name in TABLES and value == "ternary":
                return f"{name} cannot be ternary: weight_bits of a table are 2 to 8"
            self.weight_bits[name] = value
        elif key == "activation_bits":
            self.formats.pop(name, None)
            self.activation_bits[name] = value
        else:
            target, (lowest, highest) = QFormat.parse(value), (8, 16) if name in WIDE else ACTIVATION_BITS
            if not target.signed or not lowest <= target.bits <= highest:
                return f"{name} needs a signed format of {lowest} to {highest} bits, not {target}"
            self.formats[name] = target
        return None


def _problems(pattern: str, table: object) -> Iterator[str]:
    """Yield what is wrong with a table whatever it is for."""
    if not isinstance(table, Mapping) or not table:
        yield f"override {pattern!r} must be a table with some of {', '.join(KEYS)}"
        return
    for key, value in table.items():
        if key not in KEYS:
            yield f"override {pattern!r} has {key!r}; keys are {', '.join(KEYS)}"
        elif key == "activation_bits":
            if not is_whole(value) or not ACTIVATION_BITS[0] <= value <= ACTIVATION_BITS[1]:
                yield f"override {pattern!r}: activation_bits must be a whole number from 4 to 10, not {value!r}"
        else:
            try:
                storage_bits(value) if key == "weight_bits" else QFormat.parse(value)
            except QuantizationError as error:
                yield f"override {pattern!r}: {error}"
    if "format" in table and "activation_bits" in table:
        yield f"override {pattern!r} gives a format, which has its own width: drop activation_bits"
