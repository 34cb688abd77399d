"""Directories that are complete or absent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Fill a directory beside `path` and put it in `path`'s place when the block ends without an exception.

    Whoever looks sees the old directory or the new one, never half of either; an exception or Ctrl-C leaves the old one
    as it was. A killed process leaves at most a directory `.NAME.*.tmp`, which the next call for `path` removes.

    Yields:
        The directory to fill, empty, on the same file system.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock out whoever shares the project
        if target.exists():
            discarded = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
            target.replace(discarded / "old")
            temporary.replace(target)
            shutil.rmtree(discarded)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
