"""Whether memories became what they were meant to be: a block RAM that turned into logic is an error, not a surprise.

What a memory was meant to be stands in its circuit (`attrs={"ram_style": "block"}`); what it became stands in Yosys's log.
"""

import re

from .errors import CircuitError
from .requirements import SMALLEST_BLOCK_BITS

BLOCK = "block"

_MODULE = re.compile(r"^module \\(\S+)$(.*?)^end$", re.MULTILINE | re.DOTALL)
_MEMORY = re.compile(r"^((?:  attribute \S+ .*\n)*)  memory\s+(.*?)\\(\S+)\s*$", re.MULTILINE)
_STYLE = re.compile(r'attribute \\ram_style "(\S+)"')
_MAPPED = re.compile(r"^mapping memory (\S+) via (\S+)$", re.MULTILINE)
_FLIP_FLOPS = re.compile(r"^using FF mapping for memory (\S+)$", re.MULTILINE)
# Yosys's names for block RAM, in the families that are built for.
_BLOCK_CELLS = re.compile(r"DP16KD|PDPW16KD|SB_RAM40|ICE40_RAM|BRAM|_DP_|_SP_|_SDP_")
_NO_MAPPING = re.compile(r"ERROR: no valid mapping found for memory (\S+)")


def memories(rtlil: str) -> dict[str, tuple[str | None, int]]:
    """Return every memory of a circuit's RTLIL by its path, with its `ram_style` and its bits."""
    found = {}
    for module, body in _MODULE.findall(rtlil):
        for attributes, words, name in _MEMORY.findall(body):
            parts = words.split()
            options = dict(zip(parts[::2], map(int, parts[1::2]), strict=True))
            style = _STYLE.search(attributes)
            bits = options.get("width", 1) * options.get("size", 0)
            found[f"{module}.{name}"] = (style.group(1) if style else None, bits)
    return found


def refuse_lost_block_rams(rtlil: str, log: str) -> None:
    """Compare what memories were meant to be with what they became.

    A memory with the style `block` must have become block RAM. One without a style may be what Yosys found cheapest, but from 4,096 bits on not
    flip-flops and lookup tables.

    Args:
        rtlil: The circuit.
        log: Yosys's log of its synthesis.

    Raises:
        CircuitError: A memory became logic, with its path and what to do.
    """
    mapped = dict(_MAPPED.findall(log))
    flip_flops = set(_FLIP_FLOPS.findall(log))
    for path, (style, bits) in memories(rtlil).items():
        if style == BLOCK and path in mapped and _BLOCK_CELLS.search(mapped[path]):
            continue
        became = mapped.get(path, "logic" if path in flip_flops else "nothing")
        if style == BLOCK:
            raise CircuitError(
                f"the memory {path} was to be block RAM and became {became}: "
                "read it with a clock, or do not ask for ram_style block"
            )
        if style is None and bits >= SMALLEST_BLOCK_BITS and path in flip_flops:
            raise CircuitError(
                f"the memory {path} of {bits:,} bits became logic: "
                'read it with a clock, or say that logic is wanted, attrs={"ram_style": "logic"}'
            )


def unmappable_memory(output: str) -> str | None:
    """Return the path of the memory for which Yosys found no block RAM that does what it needs; None where that was not what went wrong."""
    match = _NO_MAPPING.search(output)
    return match.group(1) if match else None
