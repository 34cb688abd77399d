"""Whether memories became what they were meant to be: a block RAM that turned into logic is an
error, not a surprise.

What a memory was meant to be stands in its circuit (`attrs={"ram_style": "block"}`); what it became
stands in Yosys's log, how it is used in the netlist.
"""

import re
from dataclasses import dataclass

from ..errors import CircuitError

BLOCK = "block"
SMALLEST_WRITTEN_BITS, SMALLEST_TABLE_BITS = 4096, 16384

_MODULE = re.compile(r"^module \\(\S+)$(.*?)^end$", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(r"^((?:  attribute \S+ .*\n)*)  memory\s+(.*?)\\(\S+)\s*$", re.MULTILINE)
_WRITTEN = re.compile(
    r'cell \$memwr\S* \S+\s*$(?:\s*parameter [^\n]*\n)*?\s*parameter \\MEMID "\\{1,2}(\S+)"', re.MULTILINE
)
_STYLE = re.compile(r'attribute \\ram_style "(\S+)"')
_MAPPED = re.compile(r"^mapping memory (\S+) via (\S+)$", re.MULTILINE)
_FLIP_FLOPS = re.compile(r"^using FF mapping for memory (\S+)$", re.MULTILINE)
# Yosys's names for block RAM, in the families that are built for.
_BLOCK_CELLS = re.compile(r"DP16KD|PDPW16KD|SB_RAM40|ICE40_RAM|BRAM|_DP_|_SP_|_SDP_")
_NO_MAPPING = re.compile(r"ERROR: no valid mapping found for memory (\S+)")


@dataclass(frozen=True)
class MemoryIntent:
    """What a memory of a circuit was meant to be.

    Attributes:
        style: Its `ram_style`, None without one.
        bits: Its size.
        written: Whether it has a write port.
    """

    style: str | None
    bits: int
    written: bool


def memories(rtlil: str) -> dict[str, MemoryIntent]:
    """Return every memory of a circuit's RTLIL by its path."""
    found = {}
    for module, body in _MODULE.findall(rtlil):
        for attributes, words, name in _MEMORY.findall(body):
            parts = words.split()
            options = dict(zip(parts[::2], map(int, parts[1::2]), strict=True))
            style = _STYLE.search(attributes)
            bits = options.get("width", 1) * options.get("size", 0)
            written = any(memory == name for memory in _WRITTEN.findall(body))
            found[f"{module}.{name}"] = MemoryIntent(style.group(1) if style else None, bits, written)
    return found


def in_block_ram(log: str) -> set[str]:
    """Return the memories that became block RAM, by their paths.

    Args:
        log: Yosys's log of the synthesis.
    """
    return {path for path, cell in _MAPPED.findall(log) if _BLOCK_CELLS.search(cell)}


def refuse_lost_block_rams(rtlil: str, log: str) -> None:
    """Compare what memories were meant to be with what they became.

    A memory with the style `block` must have become block RAM. One without a style may be what
    Yosys found cheapest, but from 16,384 bits on, a block RAM's worth, not flip-flops and lookup
    tables; from 4,096 bits on if it is written, because each bit is then a flip-flop.

    Args:
        rtlil: The circuit.
        log: Yosys's log of its synthesis.

    Raises:
        CircuitError: A memory became logic, with its path and what to do.
    """
    mapped = dict(_MAPPED.findall(log))
    flip_flops = set(_FLIP_FLOPS.findall(log))
    for path, memory in memories(rtlil).items():
        if memory.style == BLOCK and path in mapped and _BLOCK_CELLS.search(mapped[path]):
            continue
        became = mapped.get(path, "logic" if path in flip_flops else "nothing")
        if memory.style == BLOCK:
            raise CircuitError(
                f"the memory {path} was to be block RAM and became {became}: "
                "read it with a clock, or do not ask for ram_style block"
            )
        smallest = SMALLEST_WRITTEN_BITS if memory.written else SMALLEST_TABLE_BITS
        if memory.style is None and memory.bits >= smallest and path in flip_flops:
            raise CircuitError(
                f"the memory {path} of {memory.bits:,} bits became logic: "
                'read it with a clock, or say that logic is wanted, attrs={"ram_style": "logic"}'
            )


def refuse_block_ram_resets(name: str, design: dict) -> None:
    """Refuse an ECP5 netlist that resets the output of a block RAM: on silicon such a read can give
    zero.

    Yosys makes one of a register with a reset directly behind a read port; `reset_less=True` on
    that register avoids it.

    Args:
        name: The core's, for the message.
        design: The core's module in Yosys's JSON.

    Raises:
        CircuitError: There is such a block RAM.
    """
    for cell, body in design["cells"].items():
        resets = body["connections"].get("RSTA", ["0"]) + body["connections"].get("RSTB", ["0"])
        if body["type"] == "DP16KD" and set(resets) - {"0", "x", "z"}:
            raise CircuitError(
                f"{name}: the block RAM {cell} resets its output, which reads zero on silicon at times; "
                "the register behind its read port needs reset_less=True"
            )


def unmappable_memory(output: str) -> str | None:
    """Return the path of the memory for which Yosys found no block RAM that does what it needs;
    None where that was not what went wrong.
    """
    match = _NO_MAPPING.search(output)
    return match.group(1) if match else None
