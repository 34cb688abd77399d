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
from ..decoder.units import Units
from ..errors import CircuitError
from ..parts.arithmetic import wide_multipliers
from ..parts.banked_memory import BankedMemory
from .boards import Board
from .decoder_logic import luts_of
from .requirements import Requirements, block_rams

SMALLEST_BLOCK_BITS = 4096  # of a memory that becomes block RAM rather than lookup tables
MOST_ROWS = 16  # results a cycle; each has a shifter of its own
MOST_EXPONENTIALS = 16  # numerators a cycle
LOGIC_WEIGHT = 0.2  # a fifth of the logic is worth 4 % of the cycles
LAYER_LATENCY = 130  # cycles that a layer waits, about
LUT_SHARE = 0.9  # of a chip's lookup tables that place and route may be able to use
ROW_LANES = (1, 2, 3, 4, 6, 8, 12, 16)  # of norms, and of the division


@dataclass(frozen=True)
class Estimate:
    """A machine for a model.

    Attributes:
        plan: Lanes and layout.
        needs: Block RAMs and multipliers.
        luts: Lookup tables, about.
        first, middle, last: Cycles of a token at the first position, in the middle of the context,
            and at its end; of two sequences half of a pair's, both at that position.
        reason: Why these lanes and this layout, two sentences.
    """

    plan: Plan
    needs: Requirements
    luts: int
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


def requirements_of(machine: Units) -> Requirements:
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
    if isinstance(machine, Machine):
        rams += _rams(len(machine.sequencer.entries()), machine.sequencer.fields.size)
    return Requirements(rams, multipliers_of(plan))


def multipliers_of(plan: Plan) -> int:
    """Return the multipliers of a plan's machine: engine, norms, division, rotation, products."""
    norm = plan.norms[0]
    count = plan.lanes + plan.rows + plan.norm_lanes * (1 + wide_multipliers(operand_bits(norm)))
    count += 3 if isinstance(norm, LayerNorm) else 0
    count += plan.context_lanes * wide_multipliers(plan.first.attention.weighted_sum_bits)
    count += plan.rows if plan.sampling else 0
    return count + (2 * plan.rows if plan.rotary else 0) + (plan.rows // 2 if plan.gated else 0)


def plans(
    model: QuantizedTransformer, multipliers: int, *, sampling: bool = False, smallest: bool = False
) -> Iterator[Plan]:
    """Yield for each number of lanes the plan with so many multipliers whose norms and division
    take few cycles without much logic, or with `smallest` the least logic.
    """
    for lanes in range(1, multipliers):
        found: list[tuple[float, Plan]] = []
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
            if multipliers_of(plan) <= multipliers:
                norms = (2 * plan.layers + 1) * plan.channels // norm_lanes
                cycles = plan.weight_depth + norms + plan.layers * (plan.kv_channels // context_lanes + LAYER_LATENCY)
                luts = luts_of(plan)
                found.append((luts if smallest else cycles * luts**LOGIC_WEIGHT, plan))
        if found:
            yield min(found, key=lambda one: one[0])[1]


def estimate(plan: Plan) -> Estimate:
    """Return what a plan's machine needs, and its cycles.

    Raises:
        CircuitError: A unit cannot be made for this model.
    """
    machine = Machine(plan)
    last = plan.context_length - 1
    first, middle, end = (
        -(-machine.cycles([place] * plan.sequences) // plan.sequences) for place in (0, last // 2, last)
    )
    return Estimate(plan, requirements_of(machine), luts_of(plan), first, middle, end)


def best_estimate(
    model: QuantizedTransformer,
    board: Board,
    lanes: int | None = None,
    *,
    sampling: bool = False,
    smallest: bool = False,
) -> Estimate:
    """Return the machine of fewest cycles in the middle of the context that a board has room for.

    Args:
        model: What it computes.
        board: Where it shall run.
        lanes: Multipliers of its engine; None for the best number.
        sampling: Whether it can sample.
        smallest: The machine of the least logic instead.

    Raises:
        CircuitError: There is none; the message says what the one with the fewest block RAMs needs,
            or why there is none at all.

    Returns:
        The machine, with its `reason`.
    """
    found: list[Estimate] = []
    reasons: list[str] = []
    for plan in plans(model, board.multipliers, sampling=sampling, smallest=smallest):
        if lanes is not None and plan.lanes != lanes:
            continue
        try:
            found.append(estimate(plan))
        except CircuitError as error:
            reasons.append(str(error))
    fitting = [one for one in found if fits(one, board)]
    if fitting:
        chosen = min(fitting, key=lambda one: one.luts if smallest else (one.middle, one.needs.block_rams))
        return replace(chosen, reason=_reason(chosen, found, board, smallest))
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
    nearest = min(found, key=lambda one: max(one.needs.block_rams / board.block_rams, one.luts / board.luts))
    raise CircuitError(
        f"the decoder does not fit {board.name}: with {nearest.plan.lanes} lanes it needs "
        f"{nearest.needs.block_rams} block RAMs, the board has {board.block_rams}, and about {nearest.luts:,} LUTs of "
        f"{board.luts:,}; a narrower model, fewer layers, narrower weights or a shorter context need fewer"
    )


def fits(one: Estimate, board: Board) -> bool:
    """Return whether a board has room for a machine; the last LUTs of a chip cannot be routed."""
    return one.needs.block_rams <= board.block_rams and one.luts <= LUT_SHARE * board.luts


def _reason(chosen: Estimate, found: list[Estimate], board: Board, smallest: bool) -> str:
    plan = chosen.plan
    others = [
        f"{one.plan.lanes} ({one.middle:,} cycles, {one.needs.block_rams} block RAMs, {one.luts:,} LUTs)"
        for one in found
        if one is not chosen
    ]
    beside = f" beside {', '.join(others)}" if others else ", the only number that suits the model's sizes"
    best = "least logic" if smallest else "fewest cycles"
    rest = "" if smallest else ": more would gain little, or need more multipliers than the lanes leave"
    memories = "one memory" if plan.one_memory else "two memories, since their words differ,"
    return (
        f"{plan.lanes} lanes: the {best} with what {board.name} has, {chosen.middle:,} cycles in the middle of the "
        f"context, about {chosen.luts:,} LUTs{beside}. A word has tiles of {plan.rows} x {plan.columns} weights or keys of "
        f"{plan.slots} positions, in {memories} of weights, keys and values; {row_lanes(plan)}{rest}."
    )


def row_lanes(plan: Plan) -> str:
    """Say how fast norms and division are."""
    elements = "element" if plan.norm_lanes == 1 else "elements"
    return f"norms give {plan.norm_lanes} {elements} a cycle, the division {plan.context_lanes}"
