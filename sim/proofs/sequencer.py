"""What is proven of the decoder's sequencer: it issues what its program says, in order, and ends.

The units around it are free: an event happens any number of cycles after the issue that causes it.
So the claims hold for all latencies.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

from amaranth.hdl import Array, Assert, Assume, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring

import hdl.decoder.sequencer
from fixedpoint.quantization.calibration import QuantizationSettings
from hdl.decoder.plan import Plan
from hdl.decoder.program import DIVISION_ROWS, EVENT_OF, LOOK_UP, SHOWN, Event, Program, Step, Work, make_program
from hdl.decoder.sequencer import Sequencer
from model.config import ModelConfig

from ..decoder_models import random_decoder
from .proof import Proof
from .seeded_bugs import build_patched
from .stream_rules import Environment

NAME = "decoder-sequencer"
VALUES_DELAY = 2
PENDING_BITS = 3
PATIENCE = 2  # cycles without an issue until pending events happen one after the other
# then an event is counted, a step begins, values wait; and a step is looked up and handed on
BOUND = PATIENCE + 1 + VALUES_DELAY + LOOK_UP + SHOWN


@cache
def tiny_plan() -> Plan:
    """Return a layer of three query heads that share a key head of one channel; 2 words of keys."""
    config = ModelConfig(vocab_size=2, embed_dim=3, num_heads=3, num_kv_heads=1, num_layers=1, max_seq_len=5, ff_dim=2)
    return Plan(random_decoder(config, QuantizationSettings(), 1), 3, 1, 1)


def tiny_sequencer(change: Callable[[Step], Step] = lambda step: step) -> Sequencer:
    """Return its sequencer, with changed steps."""
    program = make_program(tiny_plan())
    return Sequencer(
        [replace(program, steps=tuple(map(change, program.steps)))], tiny_plan(), values_delay=VALUES_DELAY
    )


class Follows(Environment):
    """A sequencer of one program among units that may take any time.

    Attributes:
        bound: None to claim what is issued; or the cycles within which something must be, while a
            step is left and pending events happen.
        invariants: Whether what holds of the sequencer's state is claimed (with a bound: assumed).
    """

    asserts_rules = False

    def __init__(self, core: wiring.Component, bound: int | None = None, *, invariants: bool = True):
        super().__init__(core)
        self.program: Program = make_program(tiny_plan())
        self.bound, self.invariants = bound, invariants

    def _causes(self, number: int) -> list[int]:
        """Return how many of each event the end of a step causes."""
        step, steps = self.program.steps[number], self.program.steps
        events: list[Event] = []
        if step.work == Work.SCORES:
            events = [Event.SCORES]
        elif step.work == Work.VALUES:
            passes = sum(one.work == Work.VALUES for one in steps[: number + 1])
            events = [Event.ROOM, *([Event.CONTEXT] if passes % self.program.passes == 0 else [])]
        elif step.destination in EVENT_OF:
            events = [EVENT_OF[step.destination]]
        return [events.count(event) for _, event in self.core.keys]

    def claims(self, m: Module) -> None:
        """Follow the program beside the sequencer."""
        core, steps = self.core, self.program.steps
        end = len(steps)
        place, word = Signal(range(end + 1), init=end), Signal(range(1 << len(core.issued.address)))
        row, started = Signal.like(core.rows[0]), core.start[0]
        running = place != end

        def of_step(values: list[int]) -> Value:
            return Array([*values, 0])[place]

        last_word = Mux(
            of_step([step.words is None for step in steps]), row, of_step([(s.words or 1) - 1 for s in steps])
        )
        ended = core.issued.valid & (word == last_word)
        with m.If(started):
            m.d.sync += [place.eq(0), word.eq(0), row.eq(core.rows[0])]
        with m.Elif(core.issued.valid):
            m.d.sync += [word.eq(word + 1)]
            with m.If(ended):
                m.d.sync += [word.eq(0), place.eq(place + 1)]
        m.d.comb += [
            Assume(~started | ~running),
            Assume(~running | (core.rows[0] == row)),
            Assume(core.rows[0] < tiny_plan().cache_words),
        ]
        pending = self._events(m, place, started, ended)
        if self.bound is None:
            slice_ = Signal(range(max(step.slices for step in steps) + 1))
            slices = of_step([step.slices for step in steps])
            with m.If(started | ended):
                m.d.sync += slice_.eq(0)
            with m.Elif(core.issued.valid):
                m.d.sync += slice_.eq(Mux(slice_ + 1 == slices, 0, slice_ + 1))
            m.d.comb += self._issues(place, word, last_word, slice_, pending)
            if self.invariants:
                m.d.comb += self._state(place, word, row, slice_, slices, pending)
            return
        slice_ = self.elaborated.internals.part
        if self.invariants:
            slices = of_step([step.slices for step in steps])
            state = self._state(place, word, row, slice_, slices, pending)
            m.d.comb += [Assume(one.test) for one in state]
            with m.If(Const(0, 1)):  # what is assumed is not claimed once more
                m.d.comb += state
        stuck = Signal(range(self.bound + 2))
        with m.If(~running | core.issued.valid):
            m.d.sync += stuck.eq(0)
        with m.Elif(stuck <= self.bound):
            m.d.sync += stuck.eq(stuck + 1)
        happens = [~count.any() | core.events[bit] for bit, count in enumerate(pending)]
        m.d.comb += [Assume((stuck < PATIENCE) | one) for one in happens]
        m.d.comb += Assert(stuck <= self.bound, "something is issued")

    def _events(self, m: Module, place: Signal, started: Value, ended: Value) -> list[Signal]:
        """Let pending events happen at any time; return how many are."""
        pending = []
        causes = [self._causes(number) for number in range(len(self.program.steps))]
        for bit, (_, event) in enumerate(self.core.keys):
            count = Signal(PENDING_BITS, name=f"{event.name.lower()}_pending")
            more = ended & Array([*(one[bit] for one in causes), 0])[place]
            if event == Event.NORMALIZED:
                more = more | started
            m.d.comb += Assume(~self.core.events[bit] | count.any())
            m.d.sync += count.eq(count + more - self.core.events[bit])
            pending.append(count)
        return pending

    def _issues(
        self, place: Signal, word: Signal, last_word: Value, slice_: Signal, pending: list[Signal]
    ) -> list[Assert]:
        """Return what is claimed of an issue."""
        core, steps = self.core, self.program.steps
        issued = core.issued
        wanted: dict[str, list[int]] = {
            "work": [step.work for step in steps],
            "layer": [step.layer for step in steps],
            "part": [step.part for step in steps],
            "destination": [step.destination for step in steps],
        }
        claims = [
            Assert(~issued.valid | (issued[name] == Array([*values, 0])[place]), f"the program's {name}")
            for name, values in wanted.items()
        ]
        address = Array([*(step.address for step in steps), 0])[place]
        claims += [
            Assert(~issued.valid | (place != len(steps)), "nothing behind the program"),
            Assert(~issued.valid | (issued.address == address + word), "word after word"),
            Assert(~issued.valid | (issued.final == (word == last_word)), "the last word is final"),
            Assert(~issued.valid | (issued.slice == slice_), "slice after slice"),
        ]
        reads = {Event.KEY: (Work.SCORES, issued.final), Event.VALUE: (Work.VALUES, Const(1, 1))}
        for event, (work, new) in reads.items():
            missing = pending[core.keys.index((0, event))].any()
            read = issued.valid & (issued.work == work) & new
            claims.append(Assert(~read | ~missing, f"no {event.name.lower()} is read before it is written"))
        return claims

    def _state(
        self, place: Signal, word: Signal, row: Signal, slice_: Value, slices: Value, pending: list[Signal]
    ) -> list[Assert]:
        """Return what holds of the sequencer's registers."""
        core, inside, steps = self.core, self.elaborated.internals, self.program.steps
        valid, following, taken = inside.now_valid, inside.following_valid, inside.taken
        counted, looked_up = inside.counted, inside.looked_up
        table = Array([Const(entry, core.fields.size) for entry in [*core.entries(), 0, 0, 0]])
        now, then = (core.fields(table[place + offset]) for offset in (0, valid))
        last = Mux(now.each_position, row, now.last_word)
        claims = [
            Assert((place <= len(steps)) & (inside.number <= len(steps)), "no step behind the program"),
            Assert(inside.number + taken == place + valid + following, "the steps looked up are the next ones"),
            Assert(~following | (inside.following.as_value() == then.as_value()), "the step that follows"),
            Assert(~looked_up | (inside.entry == table[inside.number]), "the step behind the table"),
            Assert(taken + counted + looked_up <= 1, "one thing is done with the table's entry"),
            Assert(taken | counted | looked_up | (inside.number == len(steps)), "a step that is left is on its way"),
            Assert(~looked_up | (inside.number != len(steps)), "no step behind the last one"),
            Assert(~valid | (inside.now.last_word + word == last), "the step's words that are left"),
            Assert(~valid | (inside.now.address == now.address + word), "the step's address"),
            Assert(~inside.begun | valid, "a step that has begun is there"),
            Assert(~valid | (inside.first == (word == 0)), "the first word is"),
            Assert(~valid | (inside.final == (word == last)), "and so is the last one"),
            Assert(~valid | (inside.part == slice_), "the slice is the next one"),
            Assert(valid | (word == 0), "a step that has not come has no words"),
            Assert((word == 0) | inside.begun, "words come after the beginning"),
            Assert(word <= Mux(place == len(steps), 0, last), "not more words than there are"),
            Assert((slice_ < slices) | (place == len(steps)), "not more slices than there are"),
            Assert(inside.pause < VALUES_DELAY, "pauses are short"),
            Assert(~inside.pause.any() | (inside.begun & (word == 0)), "only values wait, before their first word"),
            Assert((row < tiny_plan().cache_words), "the row is within the cache"),
        ]
        claims += [
            Assert(~valid | (inside.now[name] == now[name]), f"the step's {name}")
            for name in core.fields.members
            if name not in ("address", "last_word")
        ]
        for bit, (_, event) in enumerate(core.keys):
            balance = [DIVISION_ROWS * (event == Event.ROOM) + (event == Event.NORMALIZED)]
            for number, step in enumerate(steps):
                used = (event in step.wait) + (event in step.wait_last)
                balance.append(balance[-1] - used + self._causes(number)[bit])
            consumed = inside.begun & now.wait[bit]
            claims.append(
                Assert(
                    pending[bit] + inside.counts[bit][0] + inside.counts[bit][1] + consumed == Array(balance)[place],
                    f"{event.name.lower()}: pending and counted are what the steps so far left",
                )
            )
            claims.append(Assert(inside.counts[bit] != 0b10, f"{event.name.lower()}: no second one without a first"))
        return claims


def sequencer_proofs() -> list[Proof]:
    """Return what is proven of the sequencer."""

    def elsewhere(step: Step) -> Step:
        return replace(step, address=step.address + (step.work == Work.VALUES))

    def impatient(step: Step) -> Step:
        return replace(step, wait_last=(Event.KEY,) if step.work == Work.SCORES and step.part == 1 else ())

    claimed = partial(Follows, invariants=False)
    return [
        Proof(
            NAME,
            "issues the program's words, each once and in order; its counters stay within their ranges",
            lambda: Follows(tiny_sequencer()),
            "prove",
            2,
            "the values of a layer begin a word later",
            lambda: claimed(tiny_sequencer(elsewhere)),
            bug_depth=64,
        ),
        Proof(
            NAME,
            "reads a token's key and value only once they are written, however long that takes",
            lambda: Follows(tiny_sequencer()),
            "prove",
            2,
            "not the first pass of scores waits for the key, but the second",
            lambda: claimed(tiny_sequencer(impatient)),
            bug_depth=40,
        ),
        Proof(
            NAME,
            f"issues a word within {BOUND} cycles while a step is left, once what is pending happens, from any state",
            lambda: Follows(tiny_sequencer(), BOUND),
            "prove",
            BOUND + 2,
            "the division's room is not counted from the beginning",
            lambda: claimed(build_patched(tiny_sequencer, hdl.decoder.sequencer, DIVISION_ROWS=0), BOUND),
            bug_depth=64,
        ),
    ]
