"""What a circuit needs at least, read from its RTLIL, so that what cannot fit is refused in a
second and not after minutes of synthesis.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import CircuitError
from .boards import BOARDS, Board

# An ECP5 block RAM's shapes, (depth, width).
BLOCK_RAM_SHAPES = ((16384, 1), (8192, 2), (4096, 4), (2048, 9), (1024, 18), (512, 36))
MULTIPLIER_BITS = 18
# Fields of `Board` in words.
RESOURCES = {"luts": "LUTs", "flip_flops": "flip-flops", "block_rams": "block RAMs", "multipliers": "multipliers"}
# Smaller memories may end up in lookup tables: Yosys prefers those when a block RAM would be mostly
# empty.
SMALLEST_BLOCK_BITS = 4096

_MEMORY = re.compile(r"^\s*memory\s+(.*?)\\\S+\s*$", re.MULTILINE)
_CELL = re.compile(r"^\s*cell\s+(\S+)\s+\S+\s*$(.*?)^\s*end\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Requirements:
    """The least that a circuit needs of what cannot be made from lookup tables."""

    block_rams: int
    multipliers: int


def block_rams(depth: int, width: int) -> int:
    """Return the ECP5 block RAMs of a memory with one read and one write port."""
    return min(-(-depth // rows) * -(-width // columns) for rows, columns in BLOCK_RAM_SHAPES)


def requirements(rtlil: str) -> Requirements:
    """Count the block RAMs and multipliers that an Amaranth design's RTLIL asks for.

    Multiplications by constants and memories of less than 4,096 bits count nothing; they may become
    lookup tables.
    """
    rams = 0
    for match in _MEMORY.finditer(rtlil):
        words = match.group(1).split()
        options = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        width, depth = options.get("width", 1), options.get("size", 0)
        if width * depth >= SMALLEST_BLOCK_BITS:
            rams += block_rams(depth, width)
    multipliers = 0
    for kind, body in _CELL.findall(rtlil):
        if kind == "$mul":
            multipliers += _multipliers(body)
        multipliers += kind == "\\MULT18X18D"
        rams += kind in ("\\DP16KD", "\\PDPW16KD")
    return Requirements(rams, multipliers)


def _multipliers(body: str) -> int:
    if re.search(r"connect\s+\\[AB]\s+\d+'", body):
        return 0
    sides = [int(width) for width in re.findall(r"parameter\s+\\[AB]_WIDTH\s+(\d+)", body)]
    if min(sides) < 2:
        return 0
    return (-(-sides[0] // MULTIPLIER_BITS)) * (-(-sides[1] // MULTIPLIER_BITS))


class DoesNotFit(CircuitError):
    """A circuit needs more than a board has.

    Attributes:
        needs: What it needs.
    """

    def __init__(self, message: str, needs: Requirements):
        super().__init__(message)
        self.needs = needs


def refuse_if_too_large(rtlil: str, board: Board) -> Requirements:
    """Return what a circuit needs.

    Raises:
        DoesNotFit: The board has less; the message names all that it has too little of, and the
            boards that have enough.
    """
    needs = requirements(rtlil)
    message = shortage(board, {"multipliers": needs.multipliers, "block_rams": needs.block_rams})
    if message is not None:
        raise DoesNotFit(message, needs)
    return needs


def shortage(board: Board, needed: Mapping[str, int]) -> str | None:
    """Return what a board has too little of and what to do, None where it has enough.

    Args:
        board: The board.
        needed: How many a circuit needs, by the names of `Board`'s fields.
    """
    lacking = [
        f"{count:,} {RESOURCES[name]}, {board.name} has {getattr(board, name):,}"
        for name, count in needed.items()
        if count > getattr(board, name)
    ]
    if not lacking:
        return None
    fitting = [
        other.name for other in BOARDS.values() if all(getattr(other, name) >= count for name, count in needed.items())
    ]
    boards = f"; choose a larger board ({', '.join(fitting)}) or" if fitting else ", and no board has enough;"
    return f"the design needs {' and '.join(lacking)}{boards} train a model with a smaller embed_dim"
