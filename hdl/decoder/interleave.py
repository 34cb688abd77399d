"""Two sequences' programs merged into one: a sequence's steps fill the gaps of the other's.

The order is fixed when the program is made. It is found by executing both programs, each time with
the step that can begin first, at several positions and with several rules for ties; the order of
the fewest cycles is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from ..errors import CircuitError
from .program import Execution, Latencies, Program, Step, Work

PATIENCE = (0, 4, 8, 16, 32)  # cycles that a step is preferred for although the other could begin
HEAD_STARTS = (0, 2, 4, 6)  # steps that one sequence is ahead before the other is as good


def interleave(programs: Sequence[Program], context_length: int, latencies: Latencies) -> Program:
    """Return the merged program of the fewest cycles among those tried.

    Args:
        programs: One of each of two sequences.
        context_length: Positions T; the cycles counted are those at 0, T / 2 and T - 1.
        latencies: The units'.
    """
    places = sorted({0, context_length // 2, context_length - 1})
    orders = {
        _merge(programs, place, latencies, patience, ahead): None
        for place, patience, ahead in product(places, PATIENCE, HEAD_STARTS)
    }
    first = programs[0]
    merged = [Program(order, first.slots, first.passes) for order in orders]
    return min(merged, key=lambda one: sum(one.cycles([place, place], latencies) for place in places))


def _merge(
    programs: Sequence[Program], place: int, latencies: Latencies, patience: int, ahead: int
) -> tuple[Step, ...]:
    """Merge with both tokens at `place`; sequence 0, `ahead` steps before 1, may take its turn up
    to `patience` cycles later than 1 could.
    """
    first = programs[0]
    execution = Execution(first.slots, first.passes, [place] * len(programs), latencies)
    done = [0, 0]
    steps: list[Step] = []
    busy: int | None = None  # whose attention the softmax units and the division work on
    while True:
        left = [one for one in (0, 1) if done[one] < len(programs[one].steps)]
        if not left:
            return tuple(steps)

        def cost(sequence: int) -> int:
            preferred = (done[0] - done[1] <= ahead) == (sequence == 0)
            return execution.begin_of(programs[sequence].steps[done[sequence]]) - (patience if preferred else 0)

        free = [one for one in left if busy in (None, one) or programs[one].steps[done[one]].work == Work.WEIGHTS]
        chosen = min(free, key=cost)
        step = programs[chosen].steps[done[chosen]]
        execution.issue(step)
        steps.append(step)
        done[chosen] += 1
        if step.work == Work.SCORES:
            busy = chosen
        elif step.work == Work.VALUES and step.part == first.passes - 1:
            busy = None


def check_order(program: Program) -> None:
    """Refuse an order in which a unit without room for it would get a row.

    The softmax units hold two rows of scores and give them in the order in which they came; the
    division's results of all passes go to one sequence. Norms, tables and registers that gather a
    row serve any order, since a step's rows come without another's between them.

    Raises:
        CircuitError: Attentions overlap, or a third row of scores comes too early.
    """
    rows: list[Step] = []  # of scores, whose values have not been weighed
    last_part = program.passes - 1
    owner: int | None = None
    for step in program.steps:
        if step.work == Work.WEIGHTS:
            continue
        if owner not in (None, step.sequence):
            raise CircuitError(f"{step.name} of sequence {step.sequence} overlaps the other's attention")
        owner = step.sequence
        if step.work == Work.SCORES:
            rows.append(step)
            if len(rows) > 2:
                raise CircuitError(f"{step.name}: a third row of scores")
        else:
            if not rows or rows.pop(0).part != step.part:
                raise CircuitError(f"{step.name}: its scores are not the oldest ones")
            if step.part == last_part:
                owner = None
