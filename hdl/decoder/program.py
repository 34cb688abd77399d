"""The machine's program for one token: what the engine works on, in order, and what it waits for.

One object gives the sequencer its steps, the predicted cycles, and the timeline. Nothing in the
machine stalls, so the time of every event follows from the issues of the engine's commands and the
units' latencies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

from .plan import Plan


class Work(IntEnum):
    """What the engine does in a step."""

    WEIGHTS = 0  # rows of a matrix
    SCORES = 1  # queries times all keys so far
    VALUES = 2  # values weighed by the numerators


class Destination(IntEnum):
    """Where a matrix's results go."""

    QUERY = 0
    KEY = 1
    VALUE = 2
    RESIDUAL = 3
    HIDDEN = 4
    LOGITS = 5


class Event(IntEnum):
    """What a step may wait for; each is counted up once and consumed once."""

    NORMALIZED = 0  # the norm's row stands in the vector
    QUERY = 1  # the query stands in its vector
    KEY = 2  # the token's key can be read
    VALUE = 3  # the token's value can be read
    SCORES = 4  # a row of scores is complete
    CONTEXT = 5  # attention's result stands in the vector
    HIDDEN = 6  # the activated row stands in its vector


class Source(Enum):
    """Which vector a matrix multiplies."""

    VECTOR = 0
    HIDDEN = 1


@dataclass(frozen=True)
class Step:
    """One stretch of the engine's work, a word a cycle.

    Attributes:
        name: For people.
        work: What it does.
        layer: Of which block; formats of the results follow from it.
        address: First word, of the weights or of the cache.
        words: How many; None for one word for each `slots` positions so far.
        slices: Words of a row.
        source: What a matrix multiplies.
        part: The pass, of scores and values.
        destination: Where a matrix's results go.
        wait: Events before the first word.
        wait_last: Events before the last word.
    """

    name: str
    work: Work
    layer: int
    address: int
    words: int | None
    slices: int = 1
    source: Source = Source.VECTOR
    part: int = 0
    destination: Destination = Destination.QUERY
    wait: tuple[Event, ...] = ()
    wait_last: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Latencies:
    """Cycles from a step's last issue until an event can be waited for, and the like.

    Attributes:
        events: By destination, from a matrix's last issue to the event that it causes; `NORMALIZED`
            for the residual stream.
        scores: From the last word of scores to `SCORES`.
        values_delay: From the cycle in which values' step begins to its first issue.
        context: From the last word of values to the first contexts, when the division is free.
        divide: From there to the event.
        divide_words: Cycles that the division is busy with a pass.
        embedding: From the token taken to `NORMALIZED`.
        token: From the last issue to the token given.
    """

    events: dict[Destination, int]
    scores: int
    values_delay: int
    context: int
    divide: int
    divide_words: int
    embedding: int
    token: int


@dataclass(frozen=True)
class Issue:
    """When a step ran.

    Attributes:
        step: The step.
        begin, end: Cycles of its first and last issue.
    """

    step: Step
    begin: int
    end: int


EVENT_OF = {
    Destination.QUERY: Event.QUERY,
    Destination.KEY: Event.KEY,
    Destination.VALUE: Event.VALUE,
    Destination.RESIDUAL: Event.NORMALIZED,
    Destination.HIDDEN: Event.HIDDEN,
}


@dataclass(frozen=True)
class Program:
    """The steps of one token.

    Attributes:
        steps: In order.
        slots: Positions of a word of keys or values.
        passes: Query heads that share a key head.
    """

    steps: tuple[Step, ...]
    slots: int
    passes: int

    def words(self, step: Step, position: int) -> int:
        """Return a step's issues for the token at `position`, 0 for a sequence's first."""
        return position // self.slots + 1 if step.words is None else step.words

    def timeline(self, position: int, latencies: Latencies) -> tuple[list[Issue], int]:
        """Execute the program: return when each step ran, and the cycle of the token given, counted
        from the token taken.
        """
        counts: dict[Event, list[int]] = {event: [] for event in Event}
        counts[Event.NORMALIZED].append(latencies.embedding)
        now, issues, division_free, passes_done = 0, [], 0, 0
        for step in self.steps:
            number = self.words(step, position)
            # Steps follow each other without a gap; events are looked at from the first cycle on.
            begin = max([now, *(counts[event].pop(0) for event in step.wait)])
            if step.work == Work.VALUES:
                begin += latencies.values_delay
            end = begin + number - 1
            end = max([end, *(counts[event].pop(0) for event in step.wait_last)])
            if step.work == Work.SCORES:
                counts[Event.SCORES].append(end + latencies.scores)
            elif step.work == Work.VALUES:
                entered = max(end + latencies.context, division_free)
                division_free = entered + latencies.divide_words
                passes_done = (passes_done + 1) % self.passes
                if passes_done == 0:
                    counts[Event.CONTEXT].append(entered + latencies.divide)
            elif step.destination in EVENT_OF:
                counts[EVENT_OF[step.destination]].append(end + latencies.events[step.destination])
            issues.append(Issue(step, begin, end))
            now = end + 1
        return issues, issues[-1].end + latencies.token

    def cycles(self, position: int, latencies: Latencies) -> int:
        """Return the cycles from the token taken at `position` to the next token given."""
        return self.timeline(position, latencies)[1]


def make_program(plan: Plan) -> Program:
    """Return the program of a model on a machine.

    In a layer: query, key and value, so that the latter two hide the query's latency; scores, of
    which only the last word waits for the key; a pass's scores hide the softmax of the pass before;
    then the values.
    """
    steps: list[Step] = []
    matrices = iter(plan.matrices)

    def weights(layer: int, destination: Destination, source: Source, wait: Iterable[Event] = ()) -> None:
        matrix = next(matrices)
        steps.append(
            Step(
                matrix.name,
                Work.WEIGHTS,
                layer,
                matrix.address,
                matrix.words,
                matrix.slices,
                source,
                destination=destination,
                wait=tuple(wait),
            )
        )

    def scores(layer: int, part: int) -> None:
        wait, last = ((Event.QUERY,), (Event.KEY,)) if part == 0 else ((), ())
        address = plan.cache_address(layer, values=False)
        name = f"blocks.{layer}.attention.scores"
        steps.append(Step(name, Work.SCORES, layer, address, None, part=part, wait=wait, wait_last=last))

    def values(layer: int, part: int) -> None:
        wait = (Event.SCORES, Event.VALUE) if part == 0 else (Event.SCORES,)
        address = plan.cache_address(layer, values=True)
        steps.append(Step(f"blocks.{layer}.attention.context", Work.VALUES, layer, address, None, part=part, wait=wait))

    for layer in range(plan.layers):
        weights(layer, Destination.QUERY, Source.VECTOR, [Event.NORMALIZED])
        weights(layer, Destination.KEY, Source.VECTOR)
        weights(layer, Destination.VALUE, Source.VECTOR)
        scores(layer, 0)
        for part in range(1, plan.passes):
            scores(layer, part)
            values(layer, part - 1)
        values(layer, plan.passes - 1)
        weights(layer, Destination.RESIDUAL, Source.VECTOR, [Event.CONTEXT])
        weights(layer, Destination.HIDDEN, Source.VECTOR, [Event.NORMALIZED])
        weights(layer, Destination.RESIDUAL, Source.HIDDEN, [Event.HIDDEN])
    weights(plan.layers - 1, Destination.LOGITS, Source.VECTOR, [Event.NORMALIZED])
    return Program(tuple(steps), plan.slots, plan.passes)
