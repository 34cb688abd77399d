"""Locks of directories and files: one process at a time, whose end in any form frees the lock."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nobody is kept out
    fcntl = None  # type: ignore[assignment]

LONGEST_OWNER = 200  # characters of another process's command line in a message
_held: set[Path] = set()


class InUseError(BlockingIOError):
    """Another process is at work there; the message names it."""


@contextmanager
def lock_directory(path: str | Path) -> Iterator[None]:
    """Keep other processes out of a directory; within this process it may be locked again.

    It is made if it is missing, and then removed at the end if it is still empty.

    Raises:
        InUseError: Another process is in it.
    """
    directory = Path(path)
    existed = directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(directory, directory / ".lock"):
            yield
    finally:
        if not existed:
            with suppress(OSError):
                directory.rmdir()


@contextmanager
def lock_target(path: str | Path) -> Iterator[None]:
    """Keep other processes from making a file or directory, whose parent must exist.

    Raises:
        InUseError: Another process is making it.
    """
    target = Path(path)
    with _locked(target, target.parent / f".{target.name}.lock"):
        yield


@contextmanager
def _locked(place: Path, file: Path) -> Iterator[None]:
    key = file.parent.resolve() / file.name
    if fcntl is None or key in _held:
        yield
        return
    descriptor = _acquire(place, file)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(place: Path, file: Path) -> int:
    """Return the open, locked file, in which this process is named."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 4096, 0).decode("utf-8", "replace") or "another process"
            os.close(descriptor)
            raise InUseError(f"{place} is in use by {owner}: wait until that has ended, or end it") from None
        except OSError:
            pass  # a network file system without locks; working there alone is then up to the user
        # The process that had it removes the file before it lets go; then the name stands for
        # another file, or none.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                break
        os.close(descriptor)
    command = " ".join(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).split())
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} ({command[:LONGEST_OWNER]})".encode("utf-8", "replace"), 0)
    return descriptor
