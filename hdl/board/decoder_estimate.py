# amaranth: UnusedElaboratable=no
# (a machine is built only to ask for its cycles and sizes)
"""What a machine needs of a board, and how fast it is, without building it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from fixedpoint import LayerNorm, QuantizedTransformer
from fixedpoint.operators.rotation import FACTOR

from ..decoder.machine import Machine
from ..decoder.plan import Plan
from ..decoder.row_norms import operand_bits
from ..errors import CircuitError
from ..parts.arithmetic import wide_multipliers
from ..parts.banked_memory import BankedMemory
from .boards import Board
from .requirements import Requirements, block_rams

SMALLEST_BLOCK_BITS = 4096  # of a memory that becomes block RAM rather than lookup tables
MOST_ROWS = 16  # results a cycle; each has a shifter of its own
MOST_EXPONENTIALS = 16  # numerators a cycle
ROW_LANES = (1, 2, 3, 4, 6, 8, 12, 16)  # of norms, and of the division


@dataclass(frozen=True)
class Estimate:
    """A machine for a model.

    Attributes:
        plan: Lanes and layout.
        needs: Block RAMs and multipliers.
        first, middle, last: Cycles of a token at the first position, in the middle of the context,
            and at its end.
        reason: Why these lanes and this layout, two sentences.
    """

    plan: Plan
    needs: Requirements
    first: int
    middle: int
    last: int
    reason: str = ""


def _rams(depth: int, width: int) -> int:
    return block_rams(depth, width) if depth * width >= SMALLEST_BLOCK_BITS else 0


def _banked(memory: BankedMemory) -> int:
    rams = 0
    for start in range(0, memory.depth, memory.bank_words):
        words = min(memory.bank_words, memory.depth - start)
        if memory.write_parts and start + words > memory.writable_from:
            # Bytes of nine bits are written, so that a part takes whole ones.
            rams += block_rams(words, memory.write_parts * -(-memory.width // memory.write_parts // 9) * 9)
        elif memory.in_block_ram(words):
            rams += block_rams(words, memory.width)
    return rams


def requirements_of(machine: Machine) -> Requirements:
    """Return the block RAMs and multipliers that a machine needs at least."""
    plan = machine.plan
    rams = sum(map(_banked, machine.memories))
    rams += _rams(len(machine.requantize.entries), machine.requantize.entry.size)
    for table in plan.model.embedding.tables.values():
        rams += _rams(len(table.weight) * plan.channels // plan.rows, plan.rows * table.weight_bits)
    score_bits = plan.first.attention.softmax.score.bits
    rams += plan.kv_heads * _rams(2 * plan.cache_words, plan.slots * score_bits)
    tables = machine.hidden.table_values()
    rams += machine.hidden.count * _rams(len(tables), machine.hidden.table_bits)
    norm = plan.norms[0]
    words = len(plan.norms) * plan.channels // plan.norm_lanes
    shift_bits = norm.product_bits if isinstance(norm, LayerNorm) else 0
    rams += _rams(words, plan.norm_lanes * (norm.scale_format.bits + shift_bits))
    if plan.rotary:
        words = max(1, plan.head_dim // plan.rows)
        rams += _rams(plan.context_length * words, FACTOR.bits * min(plan.rows, plan.head_dim))
    rams += plan.rows if plan.sampling else 0  # tables of noise
    return Requirements(rams, multipliers_of(plan))


def multipliers_of(plan: Plan) -> int:
    """Return the multipliers of a plan's machine: engine, norms, division, rotation, products."""
    norm = plan.norms[0]
    count = plan.lanes + plan.rows + plan.norm_lanes * (1 + wide_multipliers(operand_bits(norm)))
    count += 3 if isinstance(norm, LayerNorm) else 0
    count += plan.context_lanes * wide_multipliers(plan.first.attention.weighted_sum_bits)
    count += plan.rows if plan.sampling else 0
    return count + (2 * plan.rows if plan.rotary else 0) + (plan.rows // 2 if plan.gated else 0)


def plans(model: QuantizedTransformer, multipliers: int, *, sampling: bool = False) -> Iterator[Plan]:
    """Yield for each number of lanes the plan whose norms and division take the fewest cycles with
    so many multipliers.
    """
    for lanes in range(1, multipliers):
        best: tuple[int, Plan] | None = None
        for norm_lanes, context_lanes in product(ROW_LANES, ROW_LANES):
            try:
                plan = Plan(model, lanes, norm_lanes, context_lanes, sampling)
            except CircuitError:
                continue
            if plan.rows > MOST_ROWS or plan.slots * plan.kv_heads > MOST_EXPONENTIALS:
                break
            if max(plan.rows, norm_lanes) % min(plan.rows, norm_lanes):
                continue  # of a norm's inputs and outputs one divides the other
            if plan.head_dim % context_lanes and context_lanes % plan.head_dim:
                continue  # nor does the division cut heads
            cycles = 2 * plan.channels // norm_lanes + plan.kv_channels // context_lanes
            if multipliers_of(plan) <= multipliers and (best is None or cycles < best[0]):
                best = cycles, plan
        if best is not None:
            yield best[1]


def estimate(plan: Plan) -> Estimate:
    """Return what a plan's machine needs, and its cycles.

    Raises:
        CircuitError: A unit cannot be made for this model.
    """
    machine = Machine(plan)
    last = plan.context_length - 1
    return Estimate(plan, requirements_of(machine), machine.cycles(0), machine.cycles(last // 2), machine.cycles(last))


def best_estimate(
    model: QuantizedTransformer, board: Board, lanes: int | None = None, *, sampling: bool = False
) -> Estimate:
    """Return the machine of fewest cycles in the middle of the context that a board has room for.

    Args:
        model: What it computes.
        board: Where it shall run.
        lanes: Multipliers of its engine; None for the best number.
        sampling: Whether it can sample.

    Raises:
        CircuitError: There is none; the message says what the one with the fewest block RAMs needs,
            or why there is none at all.

    Returns:
        The machine, with its `reason`.
    """
    found: list[Estimate] = []
    reasons: list[str] = []
    for plan in plans(model, board.multipliers, sampling=sampling):
        if lanes is not None and plan.lanes != lanes:
            continue
        try:
            found.append(estimate(plan))
        except CircuitError as error:
            reasons.append(str(error))
    fitting = [one for one in found if one.needs.block_rams <= board.block_rams]
    if fitting:
        chosen = min(fitting, key=lambda one: (one.middle, one.needs.block_rams))
        return replace(chosen, reason=_reason(chosen, found, board))
    if not found:
        wanted = (
            f"no number of lanes below {board.multipliers} suits" if lanes is None else f"{lanes} lanes do not suit"
        )
        reason = reasons[0] if reasons else f"{wanted} its sizes and the board's {board.multipliers} multipliers"
        try:  # with the lanes that suit most, and what suits all
            Plan(model, lanes or model.blocks[0].attention.embed_dim, 1, 1, sampling)
        except CircuitError as error:
            reason += f"; {error}"
        raise CircuitError(f"there is no decoder machine of this model for {board.name}: {reason}")
    smallest = min(found, key=lambda one: one.needs.block_rams)
    raise CircuitError(
        f"the decoder does not fit {board.name}: with {smallest.plan.lanes} lanes it needs "
        f"{smallest.needs.block_rams} block RAMs, the board has {board.block_rams}; a narrower model, fewer layers, "
        "narrower weights or a shorter context need fewer"
    )


def _reason(chosen: Estimate, found: list[Estimate], board: Board) -> str:
    plan = chosen.plan
    others = [
        f"{one.plan.lanes} ({one.middle:,} cycles, {one.needs.block_rams} block RAMs)"
        for one in found
        if one is not chosen
    ]
    beside = f" beside {', '.join(others)}" if others else ", the only number that suits the model's sizes"
    memories = "one memory" if plan.one_memory else "two memories, since their words differ,"
    return (
        f"{plan.lanes} lanes: the fewest cycles in the middle of the context, {chosen.middle:,}, with the multipliers "
        f"and block RAMs of {board.name}{beside}. A word has tiles of {plan.rows} x {plan.columns} weights or keys of "
        f"{plan.slots} positions, in {memories} of weights, keys and values; norms give {plan.norm_lanes} elements a "
        f"cycle, the division {plan.context_lanes}: the fastest with the multipliers that the lanes leave."
    )
