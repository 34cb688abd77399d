"""The machine's program for one token: what the engine works on, in order, and what it waits for.

One object gives the sequencer its steps, the predicted cycles, and the timeline. Nothing in the
machine stalls, so the time of every event follows from the issues of the engine's commands and the
units' latencies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum

from .layout import Layout

DIVISION_ROWS = 2  # that the division has room for
# Cycles from a step that leaves the sequencer's table to the next one that can, and from there to
# the register of the step that is executed.
LOOK_UP = 3
SHOWN = 2


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

    NORMALIZED = 0  # the norm's row, or attention's input, stands in the vector
    QUERY = 1  # the query stands in its vector
    KEY = 2  # the token's key can be read
    VALUE = 3  # the token's value can be read
    SCORES = 4  # a row of scores is complete
    CONTEXT = 5  # attention's result stands in the vector
    HIDDEN = 6  # the activated row stands in its vector
    ROOM = 7  # the division has room for a row; common to all sequences, counts from DIVISION_ROWS


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
        sequence: Whose token.
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
    sequence: int = 0

    def key(self, event: Event) -> tuple[int, Event]:
        """Return whose event this step waits for, and which."""
        return (0 if event == Event.ROOM else self.sequence), event


@dataclass(frozen=True)
class Latencies:
    """Cycles from a step's last issue until an event can be waited for, and the like.

    Attributes:
        events: By destination, from a matrix's last issue to the event that it causes; `NORMALIZED`
            for the residual stream. Attention alone ends with the latter and has none.
        scores: From the last word of scores to `SCORES`.
        values_delay: From the cycle in which values' step begins to its first issue.
        context: From the last word of values to the first contexts, where sums come last and the
            division is free.
        divide: From there to the event.
        divide_words: Cycles that the division is busy with a pass.
        denominators: As `context`, where denominators come last.
        divide_heads: Cycles that the reciprocals are busy with a pass.
        room: From the first contexts to `ROOM`.
        embedding: From the token taken to `NORMALIZED`.
        next_embedding: From there to `NORMALIZED` of the other sequence.
        token: From the last issue to the token given.
    """

    events: dict[Destination, int]
    scores: int
    values_delay: int
    context: int
    divide: int
    divide_words: int
    denominators: int
    divide_heads: int
    room: int
    embedding: int
    next_embedding: int
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


class Execution:
    """A program as the sequencer executes it, step by step, and when its events happen.

    Args:
        slots: Positions of a word of keys or values.
        passes: Query heads that share a key head.
        positions: Of each sequence's token, 0 for a sequence's first; None where there is none.
        latencies: The units'.
    """

    def __init__(self, slots: int, passes: int, positions: Sequence[int | None], latencies: Latencies):
        self.slots, self.passes, self.positions, self.latencies = slots, passes, positions, latencies
        self.now = self._division_free = self._reciprocals_free = self._passes_done = 0
        # When the last step came to be executed, and the next one can leave the table.
        self._shown, self._looked_up = 0, LOOK_UP
        self._times: dict[tuple[int, Event], deque[int]] = {(0, Event.ROOM): deque([0] * DIVISION_ROWS)}
        embedded = latencies.embedding
        for sequence, position in enumerate(positions):
            if position is not None:
                self._happens((sequence, Event.NORMALIZED), embedded)
                embedded += latencies.next_embedding

    def _happens(self, key: tuple[int, Event], cycle: int) -> None:
        self._times.setdefault(key, deque()).append(cycle)

    def begin_of(self, step: Step) -> int:
        """Return when a step would begin."""
        # Steps follow each other without a gap, but for several of one word that wait for nothing;
        # events are looked at from the first cycle on.
        shown = max(self.now, self._leaves() + SHOWN)
        begin = max([shown, *(self._times[step.key(event)][0] for event in step.wait)])
        return begin + (self.latencies.values_delay if step.work == Work.VALUES else 0)

    def _leaves(self) -> int:
        """Return when the next step leaves the table, once the last one has made room for it."""
        return max(self._looked_up, self._shown)

    def issue(self, step: Step) -> Issue:
        """Execute a step."""
        latencies, position = self.latencies, self.positions[step.sequence]
        assert position is not None
        begin = self.begin_of(step)
        for event in step.wait:
            self._times[step.key(event)].popleft()
        end = begin + (position // self.slots if step.words is None else step.words - 1)
        end = max([end, *(self._times[step.key(event)].popleft() for event in step.wait_last)])
        if step.work == Work.SCORES:
            self._happens(step.key(Event.SCORES), end + latencies.scores)
        elif step.work == Work.VALUES:
            divided = max(end + latencies.denominators, self._reciprocals_free)
            self._reciprocals_free = divided + latencies.divide_heads
            entered = max(end + latencies.context, divided, self._division_free)
            self._division_free = entered + latencies.divide_words
            self._happens(step.key(Event.ROOM), entered + latencies.room)
            self._passes_done = (self._passes_done + 1) % self.passes
            if self._passes_done == 0:
                self._happens(step.key(Event.CONTEXT), entered + latencies.divide)
        elif step.destination in latencies.events:
            event = EVENT_OF[step.destination]
            self._happens(step.key(event), end + latencies.events[step.destination])
        leaves = self._leaves()
        self._looked_up, self._shown = leaves + LOOK_UP, max(self.now, leaves + SHOWN)
        self.now = end + 1
        return Issue(step, begin, end)


@dataclass(frozen=True)
class Program:
    """The steps of one token, or of one of each sequence.

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

    def timeline(self, positions: int | Sequence[int | None], latencies: Latencies) -> tuple[list[Issue], int]:
        """Execute the program: return when each step ran, and the cycle of the last token given,
        counted from the tokens taken.

        Args:
            positions: The token's, 0 for a sequence's first, or those of all sequences' tokens.
            latencies: The units'.
        """
        places = [positions] if isinstance(positions, int) else positions
        execution = Execution(self.slots, self.passes, places, latencies)
        issues = [execution.issue(step) for step in self.steps]
        return issues, issues[-1].end + latencies.token

    def cycles(self, positions: int | Sequence[int | None], latencies: Latencies) -> int:
        """Return the cycles from the tokens taken to the last of the next ones given; see
        `timeline`.
        """
        return self.timeline(positions, latencies)[1]


def make_program(plan: Layout, sequence: int = 0) -> Program:
    """Return the program of one sequence's token; of attention alone, it ends with its output.

    In a layer: query, key and value, so that the latter two hide the query's latency; scores, of
    which only the last word waits for the key; a pass's scores hide the softmax of the pass before;
    then the values.
    """
    steps: list[Step] = []
    room = plan.sequences * plan.passes > DIVISION_ROWS  # or no third row can come too early
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
                sequence=sequence,
            )
        )

    def add(
        work: Work, name: str, layer: int, part: int, wait: tuple[Event, ...], last: tuple[Event, ...] = ()
    ) -> None:
        address = plan.cache_address(layer, values=work == Work.VALUES, sequence=sequence)
        name = f"blocks.{layer}.attention.{name}"
        steps.append(
            Step(name, work, layer, address, None, 1, Source.VECTOR, part, Destination.QUERY, wait, last, sequence)
        )

    def scores(layer: int, part: int) -> None:
        wait, last = ((Event.QUERY,), (Event.KEY,)) if part == 0 else ((), ())
        add(Work.SCORES, "scores", layer, part, wait, last)

    def values(layer: int, part: int) -> None:
        wait = [Event.SCORES, *([Event.VALUE] if part == 0 else []), *([Event.ROOM] if room else [])]
        add(Work.VALUES, "context", layer, part, tuple(wait))

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
        if plan.hidden_slices:
            weights(layer, Destination.HIDDEN, Source.VECTOR, [Event.NORMALIZED])
            weights(layer, Destination.RESIDUAL, Source.HIDDEN, [Event.HIDDEN])
    if plan.hidden_slices:
        weights(plan.layers - 1, Destination.LOGITS, Source.VECTOR, [Event.NORMALIZED])
    return Program(tuple(steps), plan.slots, plan.passes)
