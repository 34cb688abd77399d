# amaranth: UnusedElaboratable=no
# (an accelerator may be built only to ask for its cycles)
"""The decoder behind the serial link: tokens as bytes, their cycles, and what the machine's units
gave.
"""

from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Module, Mux, ShapeLike, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint.operators.sampling import MULTIPLIER_BITS

from ..parts.registers import data_register
from .machine import Machine
from .probe import COUNT_BITS, Probe
from .score_rows import RANDOM_BITS, Temperature

RESULT_BITS = 16
TOKEN: dict[str, ShapeLike] = {"token": 16}
PROBE: dict[str, ShapeLike] = {"unit": 8, "last": COUNT_BITS}  # a `Probe`'s inputs
SAMPLE: dict[str, ShapeLike] = {"sample": 8, "random": RANDOM_BITS, "multiplier": MULTIPLIER_BITS, "amount": 8}


def request_layout(sequences: int, sampling: bool) -> data.StructLayout:
    """Return a request's bytes on the wire, lowest first.

    One sequence: token, the probe's `unit` and `last`, and where the machine can sample `sample`
    and its numbers. Two: `unit`, `last`, and `turns`, one of each sequence, with `active` and
    `restart` before these fields.
    """
    sample = SAMPLE if sampling else {}
    if sequences == 1:
        return data.StructLayout({**TOKEN, **PROBE, **sample})
    turn = data.StructLayout({"active": 8, "restart": 8, **TOKEN, **sample})
    return data.StructLayout({**PROBE, "turns": data.ArrayLayout(turn, sequences)})


def results_of(sequences: int) -> int:
    """Return the numbers of an answer: each sequence's next token, the cycles, lower and upper half
    of the checksum, words counted.
    """
    return sequences + 4


@dataclass(frozen=True)
class Turn:
    """What a sequence gives the machine.

    Attributes:
        token: Its next token.
        restart: It begins a sequence.
        choice: The random number and the temperature to sample with; None for the likeliest token.
    """

    token: int
    restart: bool
    choice: tuple[int, Temperature] | None = None

    def fields(self) -> dict[str, int]:
        """Return the machine's input, and `restart`; nothing of sampling where nothing is."""
        given = {"token": self.token, "restart": int(self.restart)}
        if self.choice is None:
            return given
        number, heat = self.choice
        return given | {"sample": 1, "random": number, "multiplier": heat.multiplier, "amount": heat.amount}


class DecoderAccelerator(wiring.Component):
    """A `Machine` for `hdl.board.link.HostLink`.

    A token, or one of each sequence, arrives as `request_layout` says; out come `results` numbers
    of 16 bits: the next tokens, the clock edges from those taken to the others offered, at most
    65,535, and a `Probe`'s checksum and count. A sequence that sits out has the next token 0. Where
    neither is active the first one is.

    Attributes:
        machine: The decoder.
        request: The layout of a request's bytes.
        results: Numbers of an answer.
        i: In, stream of {data: signed byte, restart}: a request; `restart` begins every sequence
            that is active.
        o: Out, stream of {data: 16 bits signed, last}: an answer.
    """

    def __init__(self, machine: Machine):
        self.machine = machine
        self.request = request_layout(machine.plan.sequences, machine.plan.sampling)
        self.results = results_of(machine.plan.sequences)
        self._probe = Probe(machine)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": signed(8), "restart": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": signed(RESULT_BITS), "last": 1}))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.machine = machine = self.machine
        m.submodules.probe = probe = self._probe
        size = self.request.size // 8
        received, restart = data_register(self.request), data_register(1)
        asked, running = Signal(), Signal()
        place = Signal(range(size))
        cycles, number = Signal(RESULT_BITS), Signal(range(self.results))
        m.d.comb += [
            self.i.ready.eq(~asked & ~running),
            machine.i.valid.eq(asked),
            probe.unit.eq(received.unit),
            probe.last.eq(received.last),
            probe.start.eq(machine.i.valid & machine.i.ready),
        ]
        following: list[Value] = [machine.o.payload]
        if machine.plan.sequences == 1:
            turns, wanted = [received], [machine.i.payload]
            m.d.comb += wanted[0].restart.eq(restart)
        else:
            turns, wanted = list(received.turns), list(machine.i.payload)
            active = [turns[0].active[0] | ~turns[1].active[0], turns[1].active[0]]
            following = [Mux(one, token, 0) for one, token in zip(active, machine.o.payload, strict=True)]
            for turn, choice, one in zip(turns, wanted, active, strict=True):
                m.d.comb += [choice.active.eq(one), choice.restart.eq(restart | turn.restart[0])]
        for turn, choice in zip(turns, wanted, strict=True):
            names = (*TOKEN, *(SAMPLE if machine.plan.sampling else {}))
            m.d.comb += [choice[name].eq(turn[name]) for name in names]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                received.as_value().eq(Cat(received.as_value()[8:], self.i.payload.data)),
                restart.eq(self.i.payload.restart),
                place.eq(place + 1),
            ]
            with m.If(place == size - 1):
                m.d.sync += [asked.eq(1), place.eq(0)]
        with m.If(probe.start):
            m.d.sync += [asked.eq(0), running.eq(1), cycles.eq(1)]
        with m.Elif(~machine.o.valid & ~cycles.all()):
            m.d.sync += cycles.eq(cycles + 1)
        halves = probe.checksum[:RESULT_BITS], probe.checksum[RESULT_BITS:]
        results = Array([*following, cycles, *halves, probe.count])
        m.d.comb += [
            self.o.valid.eq(machine.o.valid),
            self.o.payload.last.eq(number == self.results - 1),
            self.o.payload.data.eq(results[number]),
            machine.o.ready.eq(self.o.ready & self.o.payload.last),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += number.eq(number + 1)
            with m.If(self.o.payload.last):
                m.d.sync += [number.eq(0), running.eq(0)]
        return m
