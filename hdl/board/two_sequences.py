# amaranth: UnusedElaboratable=no
# (a machine is built only to ask for its cycles and sizes)
"""What a machine of two interleaved sequences needs of a board, and the context that fits."""

from __future__ import annotations

from dataclasses import replace

from fixedpoint import QuantizedTransformer

from ..decoder.machine import Machine
from ..decoder.plan import Plan
from ..decoder.units import Units
from ..errors import CircuitError
from .boards import Board
from .decoder_estimate import LUT_SHARE, Estimate, estimate, plans, requirements_of, row_lanes
from .decoder_logic import luts_of


def estimate_of_two(
    model: QuantizedTransformer,
    board: Board,
    lanes: int | None = None,
    *,
    sampling: bool = False,
    smallest: bool = False,
) -> Estimate:
    """Return the machine of two sequences of the fewest cycles, or with `smallest` of the least
    logic, among those with room for half of the model's context, or else the one with room for most
    of it.

    Keys and values of two sequences take twice the room, so that the context may have to be shorter
    than the model's. Cycles are those of a token: half of a pair's, both at the same position.

    Raises:
        CircuitError: None has room for two positions, or the sequences cannot share any; the
            message says why.
    """
    found: list[Plan] = []
    reasons: list[str] = []
    for alone in plans(model, board.multipliers, sampling=sampling, smallest=smallest):
        if lanes in (None, alone.lanes):
            try:
                found.append(_with_context(replace(alone, sequences=2), board))
            except CircuitError as error:
                reasons.append(str(error))
    if not found:
        reasons = reasons or [
            "no number of lanes suits its sizes" if lanes is None else f"{lanes} lanes do not suit them"
        ]
        raise CircuitError(f"two sequences do not fit {board.name}: {reasons[-1]}")
    enough = min(model.context_length // 2, max(one.context_length for one in found))
    choice = [one for one in found if one.context_length >= enough]

    def cost(plan: Plan) -> int:
        return luts_of(plan) if smallest else Machine(plan).cycles([enough // 2] * 2)

    chosen = estimate(min(choice, key=cost))
    plan = chosen.plan
    reason = (
        f"two sequences of {plan.context_length} positions each, {plan.lanes} lanes: the "
        f"{'least logic' if smallest else 'fewest cycles'} with what {board.name} has, {chosen.middle:,} cycles a token in "
        f"the middle of the context, about {chosen.luts:,} LUTs; {row_lanes(plan)}."
    )
    return replace(chosen, reason=reason)


def _with_context(plan: Plan, board: Board) -> Plan:
    """Return a plan with the longest context that a board has room for."""
    if (luts := luts_of(plan)) > LUT_SHARE * board.luts:
        raise CircuitError(f"with {plan.lanes} lanes they need about {luts:,} LUTs, the board has {board.luts:,}")
    fitting, too_long, tried = 1, plan.context_length + 1, plan.context_length
    while too_long - fitting > 1:
        needs = requirements_of(Units(replace(plan, context=tried)))
        if needs.block_rams <= board.block_rams:
            fitting = tried
        else:
            too_long, least = tried, needs.block_rams
        tried = (fitting + too_long) // 2
    if fitting == 1:
        raise CircuitError(
            f"with {plan.lanes} lanes and {too_long} positions they need {least} block RAMs, the board has "
            f"{board.block_rams}"
        )
    return replace(plan, context=fitting)
