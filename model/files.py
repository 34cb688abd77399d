"""Reading and writing files; a reader never sees a partly written one."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import IO, Any

from .errors import InputError

# A configuration or tokenizer file beyond this size is damaged or something else.
LARGEST_JSON = 256 * 1024 * 1024


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    r"""Write a file beside `path` and put it in its place when the block ends without an exception.

    Whoever opens `path` sees the old content or the new one. The data are on the disk before the
    rename, so this also holds across a power failure.

    Args:
        path: Where the file is to be; its directory must exist.
        mode: `"w"` for UTF-8 text with `\n` line ends, `"wb"` for bytes.

    Yields:
        The open temporary file.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f'mode must be "w" or "wb", not {mode!r}')
    target = Path(path)
    encoding, newline = ("utf-8", "\n") if mode == "w" else (None, None)
    descriptor, path_text = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = Path(path_text)
    try:
        with os.fdopen(descriptor, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_permissions(target))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(target.parent)


def _permissions(target: Path) -> int:
    """Return the mode of the file that is replaced, or the default one (mkstemp gives 0600)."""
    try:
        return target.stat().st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _sync_directory(directory: Path) -> None:
    """Make a rename durable where directories can be opened (not on Windows)."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the rename itself has happened
    finally:
        os.close(descriptor)


def read_text(path: str | Path) -> str:
    """Return the content of a UTF-8 text file.

    Raises:
        InputError: The file is missing, a directory, empty, unreadable, or not UTF-8 text.
    """
    data = read_bytes(path)
    if not data:
        raise InputError(f"{path} is empty; a text file with at least a few thousand characters is wanted")
    if b"\0" in data:
        raise InputError(f"{path} is a binary file (it holds NUL bytes); a UTF-8 text file is wanted")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}); "
            f"convert it, for example: iconv -f LATIN1 -t UTF-8 {quote(str(path))}"
        ) from None
    return text.replace("\r\n", "\n")


def read_bytes(path: str | Path, largest: int | None = None) -> bytes:
    """Return a file's content.

    Raises:
        InputError: The file is missing, a directory, unreadable, or larger than `largest` bytes.
    """
    file = Path(path)
    try:
        if largest is not None and file.stat().st_size > largest:
            raise InputError(f"{path} has {file.stat().st_size:,} bytes, more than such a file can have ({largest:,})")
        return file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a directory; a file is wanted") from None
    except PermissionError:
        raise InputError(f"{path} cannot be read: permission denied") from None


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        InputError: The file is missing or cannot be read.
    """
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        InputError: The file is missing or does not hold a JSON object.
    """
    data = read_bytes(path, LARGEST_JSON)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it was damaged or edited") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write an object as indented JSON, atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as file:
        file.write(text + "\n")
