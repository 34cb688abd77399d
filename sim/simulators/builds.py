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
from dataclasses import dataclass
from pathlib import Path

from hdl import ToolError
from hdl.tools.toolchain import require_tool, run_tool, tool_environment, tool_version

HEADER = "runtime.h"
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
    return {**tool_environment(), "PYTHONPATH": os.pathsep.join(map(str, _python_path()))}


def _python_path() -> list[Path | str]:
    """Return the simulator's Python path: `sim`'s parent directory, then this process's path."""
    return [Path(__file__).resolve().parents[2], *(entry for entry in sys.path if entry)]


@dataclass(frozen=True)
class Compilation:
    """How Verilator's C++ is compiled.

    Attributes:
        options: Verilator's, those that decide the C++ compiler's flags or what the library holds.
        optimization: The C++ compiler's, such as -O1.
        header: Text of the header that is precompiled and comes before every source.
        more: Objects of Verilator's library that not every circuit needs.
    """

    options: tuple[str, ...]
    optimization: str
    header: str = '#include "verilated.h"\n'
    more: str = ""

    def flags(self, library: Path | None = None) -> list[str]:
        """Return make's arguments for a circuit; `library` is what `library` has returned."""
        levels = [f"OPT_{part}={self.optimization}" for part in ("FAST", "SLOW", "GLOBAL")]
        return levels if library is None else [*levels, f"CXXFLAGS=-include {library / HEADER}"]

    def library(self, otherwise: Path, tick: Callable[[], None] | None = None) -> Path:
        """Return the directory of what is the same for every circuit and takes most of the time:
        Verilator's library, compiled, and its headers, precompiled. It is kept in the user's cache.

        Args:
            otherwise: Where it is made if the user has no cache that can be used.
            tick: Called about five times a second; what it raises ends the compilation.
        """

        def make(work: Path, log: Path) -> list[Path]:
            (work / "empty.v").write_text("module empty; initial #1 $finish; endmodule\n", encoding="utf-8")
            (work / "library.mk").write_text(f"library: $(VK_GLOBAL_OBJS) {self.more}\n", encoding="utf-8")
            header = work / HEADER
            for file in (header, work / "header.cpp"):
                file.write_text(self.header, encoding="utf-8")
            run_tool("verilator", ("--cc", *self.options, "-Wno-STMTDLY", "-Mdir", ".", "empty.v"), work, tick)
            compile_all = ("-s", "-f", "Vempty.mk", "-f", "library.mk", *self.flags())
            run_tool("make", (*compile_all, "library"), work, tick)
            # With the flags of make's own rule, or the compiler would not take it. Both GCC and
            # Clang look for HEADER.gch before HEADER.
            run_tool("make", (*compile_all, "CXXFLAGS=-x c++-header", "header.o"), work, tick)
            return [*work.glob("verilat*.o"), header, (work / "header.o").rename(work / f"{HEADER}.gch")]

        tools = (f"{tool} {require_tool(tool)} {tool_version(tool)}" for tool in ("verilator", "c++"))
        key = hash_texts(*self.options, *self.flags(), self.header, self.more, *tools)
        name = f"verilator-library-{key}"
        with contextlib.suppress(OSError):
            directory = cache_directory()
            if " " not in str(directory):  # make takes a blank for the end of a name
                return kept_build(directory, name, make)
        return kept_build(otherwise, name, make)


def copy_library(library: Path, objects: Path) -> None:
    """Put a compiled library where make finds it up to date.

    The makefile counts as a prerequisite of the library and may be yet to be written: the objects
    must be newer still.
    """
    later = time.time() + NEWER_SECONDS
    for file in library.glob("*.o"):
        os.utime(shutil.copy(file, objects), (later, later))
