"""Directories that are complete or absent."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .lock import lock_target


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Fill a directory beside `path`, and put it in `path`'s place when the block has ended.

    Whoever opens `path` never finds half of a directory. An exception or Ctrl-C, whenever it comes,
    leaves the old one as it was. No file system replaces a directory that is not empty in one step,
    so for the moment between two renames there is none; a process killed in just that moment leaves
    the old one in `.NAME.XXXXXXXX.old`, and the next call puts it back. Whatever else a killed
    process leaves, the next call for `path` removes. One process at a time may fill a `path`.

    Yields:
        The directory to fill, empty, on the same file system.

    Raises:
        InUseError: Another process is filling it.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock_target(target), _filled(target) as temporary:
        yield temporary


@contextmanager
def _filled(target: Path) -> Iterator[Path]:
    # mkdtemp's names have eight random characters; `*` would also match the directories of a target
    # called NAME.something.
    for leftover in target.parent.glob(f".{glob.escape(target.name)}.????????.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    for discarded in target.parent.glob(f".{glob.escape(target.name)}.????????.old"):
        _restore(discarded / target.name, target)
        shutil.rmtree(discarded, ignore_errors=True)
    temporary = _beside(target, ".tmp")
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's 0700 would lock out whoever shares the project
        if not target.exists():
            temporary.replace(target)
            return
        discarded = _beside(target, ".old")
        try:
            target.replace(discarded / target.name)
            temporary.replace(target)
        finally:
            _restore(discarded / target.name, target)
            shutil.rmtree(discarded, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(target: Path, suffix: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=suffix, dir=target.parent))


def _restore(old: Path, target: Path) -> None:
    """Put a directory that was moved away back, unless its place is taken."""
    if old.exists() and not target.exists():
        old.replace(target)
