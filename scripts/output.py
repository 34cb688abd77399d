"""What the commands share in showing results: text tables, JSON files, durations."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.files import atomic_write
from scripts.text import path_text

NUMBER = re.compile(r"[-+]?[\d,]+(\.\d+)?(e[-+]\d+)?%?|[-+]?inf|–")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE`."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures to this JSON file")


def write_json(path: Path, figures: Any) -> None:
    """Write figures as JSON, atomically; NaN and infinities become null."""
    text = json.dumps(to_json(figures), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "w") as file:
        file.write(text)


def to_json(value: Any) -> Any:
    """Return a value as what JSON can hold (RFC 8259 knows neither NaN nor infinities)."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy arrays and scalars
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Path):
        return path_text(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def format_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a text table: columns of numbers right-aligned, all others left-aligned."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(headings, *cells, strict=True)]
    numeric = [bool(rows) and all(NUMBER.fullmatch(line[index]) for line in cells) for index in range(len(headings))]

    def line(texts: Sequence[str]) -> str:
        aligned = (
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(texts, widths, numeric, strict=True)
        )
        return "  ".join(aligned).rstrip()

    return "\n".join([line(headings), line(["-" * width for width in widths]), *map(line, cells)])


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < math.inf else f"{value:.4g}"
    return str(value)


def format_duration(seconds: float) -> str:
    """Return a duration as a person says it: `0.4 s`, `12 s`, `3 min 05 s`, `1 h 02 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


@contextmanager
def compiling(what: str, build_directory: Path) -> Iterator[Callable[[], None]]:
    """Show on a terminal for how long a circuit is being compiled, and how far that is; the
    function that is given takes the line away again.

    Args:
        what: Begins the line.
        build_directory: Where builds are made, each in a scratch directory `building-…`.
    """
    with tqdm(bar_format="{desc}, {elapsed}", desc=what, leave=False, disable=None) as bar:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                sources, objects = (
                    sum(1 for _ in build_directory.glob(f"building-*/**/*.{suffix}")) for suffix in ("cpp", "o")
                )
                stage = f"compiling, {min(objects, sources)} of {sources} files" if sources else "running"
                bar.set_description_str(f"{what}: {stage}")

        thread = threading.Thread(target=watch, daemon=True)
        if not bar.disable:
            thread.start()

        def end() -> None:
            if not ended.is_set():
                ended.set()
                if not bar.disable:
                    thread.join()
                bar.close()

        try:
            yield end
        finally:
            end()
