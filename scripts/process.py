"""Ctrl-C, output encoding and BLAS threads of a command; importing this package changes none.

Ctrl-C at any moment gives one line or none and exit status 130, never a traceback. While Python
imports modules, a KeyboardInterrupt can come up anywhere, also where somebody's `except` swallows
it or where it can only be printed. So before a command has begun, and after it has ended, Ctrl-C
ends the process at once: there is nothing to clean up then. Between the two it is the
KeyboardInterrupt that commands handle.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
import warnings
from types import FrameType

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
STANDARD_ERROR = 2
WRITE_ANYTHING = "positron.write-anything"
# BLAS threads wait for each other by spinning: where other programs use the cores too, 32 sequences
# are generated 20 times as slowly with two threads as with one. Training has worker processes.
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
NOTHING_STARTED = b"\nstopped: nothing was started; run the command again\n"


def prepare() -> None:
    r"""Take over Ctrl-C, let the output's encoding refuse nothing, give NumPy one BLAS thread.

    What a terminal or pipe cannot show is written as an escape like `\u2014`, and the name of a
    file that is not text as the bytes that it is. Ctrl-C stays ignored where whoever started the
    process wants it so, and so do numbers of threads that the environment has.
    """
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")
    codecs.register_error(WRITE_ANYTHING, _bytes_or_escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=WRITE_ANYTHING)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_with_message)


def during_command() -> None:
    """Let Ctrl-C raise KeyboardInterrupt, if `prepare` has taken it over."""
    if signal.getsignal(signal.SIGINT) is _exit_with_message:
        signal.signal(signal.SIGINT, _interrupt)


def after_command() -> None:
    """Let Ctrl-C end the process at once again, if `prepare` has taken it over."""
    if signal.getsignal(signal.SIGINT) is _interrupt:
        signal.signal(signal.SIGINT, _exit)
        warnings.simplefilter("ignore")  # of circuits that an exception has left unused


def _bytes_or_escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what to write for an unencodable character: its byte (PEP 383), or an escape."""
    assert isinstance(error, UnicodeEncodeError)
    value = ord(error.object[error.start])
    if 0xDC80 <= value <= 0xDCFF:
        return bytes([value - 0xDC00]), error.start + 1
    error.end = error.start + 1  # the next one may be a byte
    return codecs.backslashreplace_errors(error)


def _exit_with_message(number: int, frame: FrameType | None) -> None:
    # bypasses all buffers, whose locks the interrupted code may hold
    os.write(STANDARD_ERROR, NOTHING_STARTED)
    os._exit(EXIT_INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _exit(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)
