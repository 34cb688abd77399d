"""Claims that something happens within a bound: rows end, bytes arrive, ends are reachable."""

from collections.abc import Iterable, Mapping

from amaranth.hdl import Assert, Assume, Const, Cover, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring

from .stream_rules import Environment, has_last


class Finishes(Environment):
    """With inputs always offered and results always taken, every output gives the end of a row at
    least once in `bound` cycles, from any state.

    Outputs without a `last` field must give a payload.
    """

    asserts_rules = False

    def __init__(self, core: wiring.Component, bound: int):
        super().__init__(core)
        self.bound = bound

    def claims(self, m: Module) -> None:
        """Claim it of every output."""
        finishes(self, m, self.bound)


class FinishesAfterReset(Finishes):
    """The same for the cycles after one reset, without stalls."""

    def claims(self, m: Module) -> None:
        """Assume no stalls as well."""
        super().claims(m)
        assume_no_stalls(self, m)


def assume_no_stalls(environment: Environment, m: Module) -> None:
    """Assume no stall and no further reset, so that the solver has less to choose."""
    core = environment.core
    m.d.comb += [Assume(~ResetSignal())]
    m.d.comb += [Assume(getattr(core, name).valid) for name in environment.streams(wiring.In)]
    m.d.comb += [Assume(getattr(core, name).ready) for name in environment.streams(wiring.Out)]


def finishes(environment: Environment, m: Module, bound: int) -> None:
    """Count cycles without the end of a row, or a transfer of `finishing`, while nothing stalls.

    Where `ends_rows` is false, count cycles without an offer while no input stalls: `valid` must
    not wait for `ready`.
    """
    core = environment.core
    inputs, outputs = environment.streams(wiring.In), environment.streams(wiring.Out)
    flowing = Signal()
    taking = [getattr(core, name).ready for name in outputs if environment.ends_rows]
    m.d.comb += flowing.eq(all_of([getattr(core, name).valid for name in inputs] + taking))
    for name in environment.finishing or outputs:
        payload, end = getattr(core, name).payload, environment.taken[name]
        if not environment.ends_rows:
            end = getattr(core, name).valid
        elif has_last(payload) and not environment.finishing:
            end = end & payload.last
        cycles = Signal(range(bound + 2), name=f"{name}_cycles")
        with m.If(~flowing | end):
            m.d.sync += cycles.eq(0)
        with m.Elif(cycles <= bound):
            m.d.sync += cycles.eq(cycles + 1)
        m.d.comb += Assert(cycles <= bound)


def all_of(values: Iterable[Value]) -> Value:
    """Return the conjunction of one-bit values."""
    result = Const(1, 1)
    for value in values:
        result = result & value
    return result


class Loopback(Environment):
    """The first byte that a UART sends to itself arrives unchanged within `bound` cycles."""

    asserts_rules = False

    def __init__(self, core: wiring.Component, bound: int):
        super().__init__(core)
        self.wires = {"rx": "tx"}
        self.bound = bound

    def claims(self, m: Module) -> None:
        """Store the byte and wait for it."""
        core, sent = self.core, Signal(8)
        cycles = Signal(range(self.bound + 2))
        with m.If(self.taken["i"] & (self.counts["i"] == 0)):
            m.d.sync += sent.eq(core.i.payload)
        with m.If((self.counts["i"] != 0) & (self.counts["o"] == 0) & (cycles <= self.bound)):
            m.d.sync += cycles.eq(cycles + 1)
        first = self.taken["o"] & (self.counts["o"] == 0)
        m.d.comb += [
            Assume(core.o.ready),
            Assert(~first | (core.o.payload == sent)),
            Assert(cycles <= self.bound),
            Assert(~core.framing_error & ~core.overrun),
        ]


class ReachesEndOfRow(Environment):
    """Some rows can end at `o`: what the other claims assume leaves the core something to do."""

    asserts_rules = False

    def __init__(self, core: wiring.Component, rows: int, row_lengths: Mapping[str, tuple[int, int]] | None = None):
        super().__init__(core, row_lengths)
        self.rows = rows

    def claims(self, m: Module) -> None:
        """Count the ends."""
        ends = Signal(range(self.rows + 1))
        payload = self.core.o.payload
        with m.If(self.taken["o"] & (payload.last if has_last(payload) else 1) & (ends != self.rows)):
            m.d.sync += ends.eq(ends + 1)
        m.d.comb += Cover(ends == self.rows)
