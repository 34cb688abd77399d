"""Text from the command line and the file system with undecodable bytes (PEP 383 surrogates)."""

from __future__ import annotations

import os
from pathlib import Path

from model.errors import InputError


def prompt_text(prompt: str) -> str:
    """Return what `--prompt` says, whatever the terminal's encoding is.

    Raises:
        InputError: It is not UTF-8.
    """
    try:
        return _read_again(prompt, "strict")
    except UnicodeDecodeError as error:
        raise InputError(
            f"--prompt is not UTF-8 text (byte 0x{error.object[error.start]:02x} at offset {error.start})"
        ) from None


def path_text(path: str | Path) -> str:
    """Return a path as text to write into a file; undecodable bytes become U+FFFD."""
    return _read_again(str(path), "replace")


def _read_again(text: str, errors: str) -> str:
    """Return text whose lone surrogates are decoded again as UTF-8, which most of them are."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", errors)
    return text
