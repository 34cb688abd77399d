"""What each command needs beyond the base installation, and which of it is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

from hdl.tools.toolchain import INSTALL_EXTRA, TOOLS, find_tool, is_known_bad_yosys, tool_version

# Import name of a package → name of its distribution.
DISTRIBUTIONS = {"amaranth": "amaranth", "amaranth_boards": "amaranth-boards", "serial": "pyserial"}


@dataclass(frozen=True)
class Needs:
    """What a command cannot do without.

    Attributes:
        packages: Python packages, as they are imported.
        tools: Programs, names of `hdl.tools.toolchain.TOOLS`.
    """

    packages: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Packages as pip calls them, and tools."""
        return [*(DISTRIBUTIONS[name] for name in self.packages), *self.tools]

    def missing(self) -> list[str]:
        """Return the names of what is not installed, or in a version that does not work."""
        packages = [DISTRIBUTIONS[name] for name in self.packages if importlib.util.find_spec(name) is None]
        return packages + [name for name in self.tools if not _is_usable(name)]


SYNTHESIS_TOOLS = ("yosys", "nextpnr-ecp5", "ecppack")
# Other commands need only the base installation. `simulate` falls back to Amaranth's simulator.
NEEDS = {
    "simulate": Needs(("amaranth",)),
    "synthesize": Needs(("amaranth", "amaranth_boards"), SYNTHESIS_TOOLS),
    "export-verilog": Needs(("amaranth",), ("yosys",)),
    "prove": Needs(("amaranth",), ("yosys", "sby", "smtbmc", "z3")),
    "campaign": Needs(("amaranth",), ("yosys", "verilator", "perl", "make", "c++")),
    "netlist": Needs(("amaranth", "amaranth_boards"), ("yosys",)),
    "cores": Needs(("amaranth", "amaranth_boards"), SYNTHESIS_TOOLS[:2]),
    "load": Needs(("amaranth", "amaranth_boards")),
    "selftest": Needs(("amaranth", "amaranth_boards", "serial")),
    "host": Needs(("amaranth", "serial")),
    "benchmark circuit": Needs(("amaranth", "amaranth_boards")),
    "benchmark decoder": Needs(("amaranth", "amaranth_boards")),
    "generate --device PORT": Needs(("amaranth", "amaranth_boards", "serial")),
    "generate --device": Needs(("amaranth", "amaranth_boards"), ("yosys", "verilator", "perl", "make", "c++")),
}


def missing_packages(command: str) -> list[str]:
    """Return the Python packages that a command lacks, as pip calls them."""
    return Needs(NEEDS.get(command, Needs()).packages).missing()


def missing_for(command: str) -> list[str]:
    """Return all that a command lacks: Python packages, as pip calls them, and tools."""
    return NEEDS.get(command, Needs()).missing()


def _is_usable(tool: str) -> bool:
    if tool == "yosys" and is_known_bad_yosys(tool_version(tool) or ""):
        return False
    return find_tool(tool) is not None


def how_to_install(missing: Iterable[str]) -> str:
    """Return the commands that install what is missing."""
    return " && ".join(dict.fromkeys(TOOLS[name].install if name in TOOLS else INSTALL_EXTRA for name in missing))
