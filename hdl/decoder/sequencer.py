"""The machine's sequencer: executes a program, a word of the engine's memory a cycle."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..parts.internals import Internals
from ..parts.registers import data_register
from .layout import Layout
from .program import DIVISION_ROWS, Destination, Event, Program, Source, Step, Work
from .states import select

WAITING = 2  # of an event wait to be consumed, at most


class Sequencer(wiring.Component):
    """Issues the engine's commands of a token, or of one of each sequence, in a program's order.

    A step begins when the events that it waits for have happened, and takes them; its last word may
    wait for others. Steps that wait for nothing follow each other without a gap.

    Latency: a command is given one cycle after its issue.

    Internals: a step stands in a register, the one that follows in another, and the next one behind
    the table of steps, where a new one is every `LOOK_UP` cycles. The step's address counts up and
    its `last_word` down as words are issued. What is decided in a cycle needs no comparison: a
    register says whether a word is the `first` or the `final` one, and of each event a bit says
    that it waits, and another that it does twice.

    Attributes:
        programs: For each set of sequences that start, as a number less 1, the steps.
        values_delay: Cycles from the beginning of a step of values to its first issue.
        keys: Whose events, and which, steps wait for.
        start: In, a bit for each sequence: a new token; only when no step is left.
        rows: In: each token's position in words of keys, counted from 0.
        events: In, a bit for each of `keys`: it happens.
        command: Out: what the engine does; `final` on a step's last word.
        begin_values: Out, 1 bit: a step of values has begun, a cycle ago.
        issued: Out: as `command`, a cycle earlier, for what counts cycles from an issue.
    """

    def __init__(self, programs: Sequence[Program], plan: Layout, values_delay: int):
        self.programs, self.values_delay = list(programs), values_delay
        self.sequences, cache_words = plan.sequences, plan.cache_words
        self._steps = steps = [step for program in programs for step in program.steps]
        self.keys = sorted({step.key(event) for step in steps for event in (*step.wait, *step.wait_last)})
        span = max(step.address + (cache_words if step.words is None else step.words) for step in steps)
        most = max(cache_words, *(step.words or 1 for step in steps))
        owner = range(plan.sequences)
        self.fields = data.StructLayout(
            {
                "work": Work,
                "layer": range(max(step.layer for step in steps) + 1),
                "address": range(span),
                "last_word": range(most),
                "each_position": 1,
                "last_slice": range(max(step.slices for step in steps)),
                "hidden": 1,
                "part": range(plan.passes),
                "destination": Destination,
                "sequence": owner,
                "wait": len(self.keys),
                "wait_last": len(self.keys),
            }
        )
        self.command_layout = data.StructLayout(
            {
                "valid": 1,
                "work": Work,
                "layer": self.fields["layer"].shape,
                "address": range(span),
                "first": 1,
                "last": 1,
                "slice": self.fields["last_slice"].shape,
                "hidden": 1,
                "part": self.fields["part"].shape,
                "destination": Destination,
                "sequence": owner,
                "final": 1,
            }
        )
        super().__init__(
            {
                "start": In(plan.sequences),
                "rows": In(data.ArrayLayout(range(cache_words), plan.sequences)),
                "events": In(len(self.keys)),
                "command": Out(self.command_layout),
                "issued": Out(self.command_layout),
                "begin_values": Out(1),
            }
        )

    def entries(self) -> list[int]:
        """Return the table of steps, as numbers of `fields.size` bits."""

        def mask(step: Step, events: tuple[Event, ...]) -> int:
            return sum(1 << self.keys.index(step.key(event)) for event in events)

        entries = [
            {
                "work": step.work,
                "layer": step.layer,
                "address": step.address,
                "last_word": (step.words or 1) - 1,
                "each_position": step.words is None,
                "last_slice": step.slices - 1,
                "hidden": step.source is Source.HIDDEN,
                "part": step.part,
                "destination": step.destination,
                "sequence": step.sequence,
                "wait": mask(step, step.wait),
                "wait_last": mask(step, step.wait_last),
            }
            for step in self._steps
        ]
        return [self.fields.const(entry).as_bits() for entry in entries]

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        entries = self.entries()
        number = Signal(range(len(entries) + 1), init=len(entries))  # of the step to be looked up
        ends = list(accumulate(len(program.steps) for program in self.programs))
        stop: Value | int = len(entries)
        if len(ends) > 1:
            stop = Signal.like(number, init=len(entries))
        now, following = data_register(self.fields), data_register(self.fields)
        now_valid, following_valid = Signal(), Signal()
        # Of the table's entry: it was taken; its address counts; it is there.
        taken, counted, looked_up = Signal(), Signal(), Signal()
        m.submodules.table = table = memory.Memory(shape=unsigned(self.fields.size), depth=len(entries), init=entries)
        port = table.read_port(domain="comb")
        entry = data_register(port.data)
        m.d.comb += port.addr.eq(number)
        begun, pause = Signal(), Signal(range(max(self.values_delay, 1)))
        first, final, part = data_register(), data_register(), data_register(now.last_slice)
        counts = [
            Signal(WAITING, init=(1 << DIVISION_ROWS * (event == Event.ROOM)) - 1, name=f"{event.name.lower()}_{owner}")
            for owner, event in self.keys
        ]
        present = Cat(count[0] for count in counts)

        allowed = ~(now.wait & ~present).any()
        held = final & (now.wait_last & ~present).any()
        begins, issue, finished = Signal(), Signal(), Signal()
        delayed = (now.work == Work.VALUES) if self.values_delay else Const(0, 1)
        m.d.comb += [
            begins.eq(now_valid & ~begun & allowed),
            issue.eq(now_valid & Mux(begun, pause == 0, allowed & ~delayed) & ~held),
            finished.eq(issue & final),
        ]
        m.d.sync += self.begin_values.eq(begins & (now.work == Work.VALUES))
        for bit, count in enumerate(counts):
            consumed, happens = (begins & now.wait[bit]) | (finished & now.wait_last[bit]), self.events[bit]
            m.d.sync += count.eq(Mux(happens == consumed, count, Mux(happens, Cat(1, count[0]), count[1])))
        with m.If(begins):
            m.d.sync += [begun.eq(1), pause.eq(Mux(delayed, max(self.values_delay - 1, 0), 0))]
        with m.Elif(pause != 0):
            m.d.sync += pause.eq(pause - 1)
        with m.If(issue):
            m.d.sync += [
                now.address.eq(now.address + 1),
                now.last_word.eq(now.last_word - 1),
                first.eq(0),
                final.eq(now.last_word == 1),
                part.eq(Mux(part == now.last_slice, 0, part + 1)),
            ]
        advance = Signal()
        m.d.comb += advance.eq(~now_valid | finished)
        last_word = Mux(following.each_position, select(list(self.rows), following.sequence), following.last_word)
        with m.If(advance):
            m.d.sync += [
                now.eq(following),
                now.last_word.eq(last_word),
                now_valid.eq(following_valid),
                begun.eq(0),
                first.eq(1),
                final.eq(last_word == 0),
                part.eq(0),
                following_valid.eq(0),
            ]
        m.d.sync += [
            entry.eq(port.data),
            taken.eq(looked_up & ~following_valid),
            counted.eq(taken | self.start.any()),
            looked_up.eq((counted & (number != stop)) | (looked_up & following_valid)),
        ]
        with m.If(~following_valid):
            m.d.sync += [following.as_value().eq(entry), following_valid.eq(looked_up)]
        with m.If(taken):
            m.d.sync += number.eq(number + 1)
        for started, (begin, end) in enumerate(pairwise([0, *ends]), start=1):
            with m.If(self.start == started):
                m.d.sync += number.eq(begin)
                if isinstance(stop, Value):
                    m.d.sync += stop.eq(end)

        whole = now.work != Work.WEIGHTS  # scores: each word a sum; values: one sum
        single = now.work == Work.SCORES
        issued = self.issued
        m.d.comb += [
            issued.valid.eq(issue),
            issued.work.eq(now.work),
            issued.layer.eq(now.layer),
            issued.address.eq(now.address),
            issued.first.eq(Mux(whole, single | first, part == 0)),
            issued.last.eq(Mux(whole, single | final, part == now.last_slice)),
            issued.slice.eq(part),
            issued.hidden.eq(now.hidden),
            issued.part.eq(now.part),
            issued.destination.eq(now.destination),
            issued.sequence.eq(now.sequence),
            issued.final.eq(final),
        ]
        m.d.sync += self.command.eq(issued)
        m.d.sync += self.command.valid.eq(issue)
        self.internals = Internals(
            number=number, now=now, now_valid=now_valid, following=following, following_valid=following_valid,
            taken=taken, counted=counted, looked_up=looked_up, entry=entry,
            begun=begun, pause=pause, first=first, final=final, part=part, counts=counts,
        )  # fmt: skip
        return m
