"""What a machine needs of a board, and how fast it is, without building it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from fixedpoint import LayerNorm, QuantizedTransformer

from ..decoder.machine import Machine
from ..decoder.plan import Plan
from ..errors import CircuitError
from ..parts.banked_memory import BankedMemory
from ..parts.multiplier import OPERAND_BITS
from .boards import Board
from .requirements import Requirements, block_rams

SMALLEST_BLOCK_BITS = 4096  # of a memory that becomes block RAM rather than lookup tables
MOST_ROWS = 16  # results a cycle; each has a shifter of its own
MOST_EXPONENTIALS = 16  # numerators a cycle
ROW_LANES = (2, 3, 4, 6, 8, 12, 16)  # of norms, and of the division


@dataclass(frozen=True)
class Estimate:
    """A machine for a model.

    Attributes:
        plan: Lanes and layout.
        needs: Block RAMs and multipliers.
        first, middle, last: Cycles of a token at the first position, in the middle of the context,
            and at its end.
    """

    plan: Plan
    needs: Requirements
    first: int
    middle: int
    last: int


def _rams(depth: int, width: int) -> int:
    return block_rams(depth, width) if depth * width >= SMALLEST_BLOCK_BITS else 0


def _banked(memory: BankedMemory) -> int:
    parts = memory.write_parts or 1
    banks = [min(memory.bank_words, memory.depth - start) for start in range(0, memory.depth, memory.bank_words)]
    return sum(parts * block_rams(words, memory.width // parts) for words in banks if memory.in_block_ram(words))


def requirements_of(machine: Machine) -> Requirements:
    """Return the block RAMs and multipliers that a machine needs at least."""
    plan = machine.plan
    rams = _banked(machine.weights) + _banked(machine.cache)
    rams += _rams(len(machine.requantize.entries), machine.requantize.entry.size)
    for table in plan.model.embedding.tables.values():
        rams += _rams(len(table.weight) * plan.channels // plan.rows, plan.rows * table.weight_bits)
    score_bits = plan.first.attention.softmax.score.bits
    rams += plan.kv_heads * _rams(2 * plan.cache_words, plan.slots * score_bits)
    tables = machine.hidden.table_values()
    rams += machine.hidden.count * _rams(len(tables), machine.hidden.table_bits)
    norm = plan.norms[0]
    centered = isinstance(norm, LayerNorm)
    words = len(plan.norms) * plan.channels // plan.norm_lanes
    rams += _rams(words, plan.norm_lanes * (norm.scale_format.bits + (norm.product_bits if centered else 0)))
    multipliers = plan.lanes + plan.rows + plan.norm_lanes * (3 if norm.difference_bits > OPERAND_BITS else 2)
    multipliers += 3 * centered
    multipliers += plan.context_lanes * (2 if plan.first.attention.weighted_sum_bits > OPERAND_BITS else 1)
    if plan.rotary:
        multipliers += 2 * plan.rows
        words = max(1, plan.head_dim // plan.rows)
        rams += _rams(plan.context_length * words, 16 * min(plan.rows, plan.head_dim))
    if plan.gated:
        multipliers += plan.rows // 2
    return Requirements(rams, multipliers)


def plans(model: QuantizedTransformer, most_lanes: int) -> Iterator[Plan]:
    """Yield the plans of a model with at most so many lanes."""
    for lanes in range(1, most_lanes + 1):
        for norm_lanes, context_lanes in product(ROW_LANES, ROW_LANES):
            try:
                plan = Plan(model, lanes, norm_lanes, context_lanes)
            except CircuitError:
                continue
            if plan.rows <= MOST_ROWS and plan.slots * plan.kv_heads <= MOST_EXPONENTIALS:
                yield plan


def estimate(plan: Plan) -> Estimate:
    """Return what a plan's machine needs, and its cycles.

    Raises:
        CircuitError: A unit cannot be made for this model.
    """
    machine = Machine(plan)
    last = plan.context_length - 1
    return Estimate(plan, requirements_of(machine), machine.cycles(0), machine.cycles(last // 2), machine.cycles(last))


def best_estimate(model: QuantizedTransformer, board: Board) -> Estimate:
    """Return the machine of fewest cycles in the middle of the context that a board has room for.

    Raises:
        CircuitError: There is none; the message says what the smallest machine needs.
    """
    best: Estimate | None = None
    smallest: Estimate | None = None
    reasons: list[str] = []
    for plan in plans(model, board.multipliers):
        try:
            one = estimate(plan)
        except CircuitError as error:
            reasons.append(str(error))
            continue
        if smallest is None or one.needs.block_rams < smallest.needs.block_rams:
            smallest = one
        fits = one.needs.block_rams <= board.block_rams and one.needs.multipliers <= board.multipliers
        if fits and (best is None or (one.middle, one.needs.multipliers) < (best.middle, best.needs.multipliers)):
            best = one
    if best is not None:
        return best
    if smallest is None:
        reason = reasons[0] if reasons else f"no number of lanes up to {board.multipliers} suits its channels and heads"
        raise CircuitError(f"there is no decoder machine of this model for {board.name}: {reason}")
    needs = smallest.needs
    raise CircuitError(
        f"the decoder does not fit {board.name}: with {smallest.plan.lanes} lanes it needs {needs.block_rams} block RAMs and "
        f"{needs.multipliers} multipliers, the board has {board.block_rams} and {board.multipliers}"
    )
