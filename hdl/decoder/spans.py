"""When each unit of a machine is at work on a token, and what the engine waits for between."""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Machine
from .program import Destination, Issue, Source, Work
from .units import ISSUE_STAGES

# Names of what the engine does with a matrix, by destination.
MATRICES = {
    Destination.QUERY: "query, key, value",
    Destination.KEY: "query, key, value",
    Destination.VALUE: "query, key, value",
    Destination.HIDDEN: "up",
    Destination.LOGITS: "logits",
}


@dataclass(frozen=True)
class Span:
    """A stretch of cycles, counted from the token taken.

    Attributes:
        unit: Which works; "engine" or a unit behind it.
        work: What the engine does, or did, in the step that causes it.
        layer: Of which block.
        begin, end: First and last cycle.
    """

    unit: str
    work: str
    layer: int
    begin: int
    end: int


@dataclass(frozen=True)
class Gap:
    """Cycles in which the engine has nothing to do.

    Attributes:
        event: What the next step waits for.
        begin: The first of them.
        cycles: How many.
    """

    event: str
    begin: int
    cycles: int


def work_of(issue: Issue) -> str:
    """Return the name of a step's kind of work."""
    step = issue.step
    if step.work != Work.WEIGHTS:
        return step.work.name.lower()
    if step.destination == Destination.RESIDUAL:
        return "down" if step.source == Source.HIDDEN else "output"
    return MATRICES[step.destination]


def spans_and_gaps(machine: Machine, position: int) -> tuple[list[Span], list[Gap], int]:
    """Return when the units work on the token at a position, where the engine waits, and the cycle
    in which the next token is given.

    A unit is at work from its first input to its last output. All follows from the program and the
    units' latencies.
    """
    plan, latencies, memory = machine.plan, machine.latencies, machine.memory_latency
    issues, total = machine.programs[0].timeline(position, latencies)
    embedding_words = plan.channels // plan.rows
    embedded = 2 + machine.embedding.latency  # cycle of the first word of the embedding
    rows_end = embedded + embedding_words - 1
    spans = [
        Span("embedding", "embedding", 0, 2, rows_end),
        Span("residual", "embedding", 0, embedded, rows_end + machine.residual.latency),
        Span("norms", "embedding", 0, embedded + machine.residual.latency, latencies.embedding + memory - 1),
    ]
    gaps: list[Gap] = []
    free = 0
    for issue in issues:
        step, work = issue.step, work_of(issue)
        words = machine.programs[0].words(step, position)
        if issue.begin > free:
            gaps.append(Gap(_events(step.wait) or "numerators", free, issue.begin - free))
        idle = issue.end - issue.begin + 1 - words
        if idle:
            gaps.append(Gap(_events(step.wait_last), issue.end - idle, idle))
        free = issue.end + 1

        def span(unit: str, begin: int, end: int, work: str = work, layer: int = step.layer) -> None:
            spans.append(Span(unit, work, layer, begin, end))

        span("engine", issue.begin, issue.end)
        summed = ISSUE_STAGES + memory + machine.engine.latency
        if step.work == Work.SCORES:
            span("softmax", issue.begin + summed, issue.end + latencies.scores)
        elif step.work == Work.VALUES:
            span("softmax", issue.begin - latencies.values_delay, issue.end + ISSUE_STAGES + memory)
            given = issue.end + max(latencies.context, latencies.denominators)
            span("divide", issue.end + latencies.context - machine.divide.latency, given + latencies.divide_words - 1)
        else:
            first = issue.begin + step.slices - 1 + summed
            begin, end = first + machine.requantize.latency, issue.end + summed + machine.requantize.latency
            span("requantize", first, end)
            if step.destination in (Destination.QUERY, Destination.KEY) and machine.rotate is not None:
                span("rotate", begin, end + machine.rotate.latency)
            elif step.destination == Destination.HIDDEN:
                span("hidden", begin, end + machine.hidden.latency)
            elif step.destination == Destination.RESIDUAL:
                span("residual", begin, end + machine.residual.latency)
                span("norms", begin + machine.residual.latency, end + machine.residual.latency + machine.after_norm)
            elif step.destination == Destination.LOGITS:
                span("choice", begin, total)
    return spans, gaps, total


def _events(events: tuple) -> str:
    return " and ".join(event.name.lower() for event in events)
