"""Text of the command line and of the file system, where Python has put bytes that it could not
read as lone surrogates (PEP 383).
"""

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
    """Return a path to be written into a file: what is no UTF-8 becomes U+FFFD. It may no longer
    name the file.
    """
    return _read_again(str(path), "replace")


def _read_again(text: str, errors: str) -> str:
    """Return text whose lone surrogates are read again, as the UTF-8 that they mostly are where the
    locale is not.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", errors)
    return text
