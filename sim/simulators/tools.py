"""Which simulators this machine has, and what the others lack."""

from collections.abc import Iterable
from importlib.util import find_spec

from hdl import ToolError
from hdl.tools.toolchain import INSTALL_EXTRA, TOOLS, find_tool

SIMULATORS = ("verilator", "icarus", "amaranth")
NEEDED_TOOLS = {
    "verilator": ("yosys", "verilator", "perl", "make", "c++"),
    "icarus": ("yosys", "iverilog"),
    "amaranth": (),
}


def missing_tools(names: Iterable[str]) -> list[str]:
    """Return the missing ones of tools, each with what to install, as words for a message."""
    return [f"{name} (install it: {TOOLS[name].install})" for name in names if find_tool(name) is None]


def missing_for(simulator: str) -> list[str]:
    """Return what a simulator lacks on this machine, as words for a message; empty if it can run.

    Raises:
        ToolError: There is no such simulator.
    """
    if simulator not in SIMULATORS:
        raise ToolError(f"unknown simulator {simulator!r}; choose one of {', '.join(SIMULATORS)}")
    needed = NEEDED_TOOLS[simulator]
    missing = missing_tools(needed)
    if needed and find_spec("cocotb") is None:
        missing.append(f"cocotb (install it: {INSTALL_EXTRA})")
    return missing


def default_simulator() -> tuple[str, str]:
    """Return the simulator to use by default, and why it is not Verilator (empty when it is)."""
    missing = missing_for("verilator")
    if not missing:
        return "verilator", ""
    return "amaranth", f"Simulating with Amaranth's own simulator, because Verilator lacks {', '.join(missing)}."
