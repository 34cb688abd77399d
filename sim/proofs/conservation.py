"""Conservation: accepted − delivered = stored, for all time.

Induction begins in any state. Those that no reset leads to, such as a word in one queue without its
partner in another, must be excluded: invariants say which numbers inside a core agree. One proof
asserts them, together with what follows from them; another, that rows end, assumes them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from amaranth.hdl import Assert, Assume, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFO

from hdl.parts.stream_parts import StreamRegister

from .internals import FIFO, ElaboratedCore, register_slots
from .liveness import finishes
from .stream_rules import Environment

CONSERVED = "accepted - delivered = stored"


class Conservation(Environment):
    """A core with its invariants; counts are compared modulo `2**COUNTER_BITS`, which is more than
    any core here holds.

    Attributes:
        invariants: Returns the assertions, given this environment and the module around the core.
        bound: None, to claim that the invariants hold; or the cycles within which a row must end
            while nobody stalls, from any state in which they do.
    """

    asserts_rules = False

    def __init__(
        self,
        core: wiring.Component,
        invariants: "Invariants",
        row_lengths: Mapping[str, tuple[int, int]] | None = None,
        bound: int | None = None,
    ):
        super().__init__(core, row_lengths)
        self.invariants = invariants
        self.bound = bound

    def claims(self, m: Module) -> None:
        """Assert the invariants, or that rows end from wherever they hold."""
        claims = self.invariants(self, m)
        if self.bound is None:
            m.d.comb += claims
        else:
            m.d.comb += [Assume(claim.test) for claim in claims]
            with m.If(Const(0, 1)):  # what is assumed is not claimed once more
                m.d.comb += claims
            finishes(self, m, self.bound)

    def transfers(self, m: Module, name: str, *, rows: bool = False) -> Signal:
        """Return the payloads, or ends of rows, transferred so far, modulo `2**COUNTER_BITS`."""
        count = Signal(self.COUNTER_BITS, name=f"{name}_passed_{'rows' if rows else 'payloads'}")
        end = getattr(self.core, name).payload.last if rows else Const(1, 1)
        m.d.sync += count.eq(count + (self.taken[name] & end))
        return count

    def accepted_minus_delivered(self, m: Module, source: str, sink: str, *, rows: bool = False) -> Value:
        """Return how many more payloads, or rows, were accepted than delivered."""
        return (self.transfers(m, source, rows=rows) - self.transfers(m, sink, rows=rows))[: self.COUNTER_BITS]

    def conserved(self, m: Module, stored: Value) -> Assert:
        """Return the claim that so many payloads are stored as were accepted and not delivered."""
        return Assert(self.accepted_minus_delivered(m, "i", "o") == stored, CONSERVED)


class WholeSums(Conservation):
    """An engine among commands that come in sums: `first` after each `last`, one operation and tap
    from first to last.

    Attributes:
        between: The next command begins a sum.
        operation, tap: Of the last command.
    """

    asserts_rules = True
    finishing = ("i",)  # an output rests while only other operations are asked for

    def claims(self, m: Module) -> None:
        """Assume whole sums."""
        command = self.core.i.payload
        self.between, self.operation = Signal(init=1), Signal.like(command.operation)
        self.tap = Signal.like(command.tap)
        with m.If(self.taken["i"]):
            m.d.sync += [self.between.eq(command.last), self.operation.eq(command.operation), self.tap.eq(command.tap)]
        m.d.comb += Assume(command.first == self.between)
        with m.If(~self.between):
            m.d.comb += [Assume(command.operation == self.operation), Assume(command.tap == self.tap)]
        super().claims(m)


# From a core's environment and the module around the core to what holds in every state.
Invariants = Callable[[Any, Module], list[Assert]]


def no_invariants(environment: Conservation, m: Module) -> list[Assert]:
    """Return no invariants, for a core of which only its own assertions are claimed."""
    return []


def fifo_claims(elaborated: ElaboratedCore, fifo: FIFO, name: str) -> list[Assert]:
    """Return that a FIFO's level is the distance of its addresses; `name` stands in messages."""
    depth = fifo.depth if isinstance(fifo, SyncFIFO) else fifo.depth - 1
    state = elaborated.fifo_state(fifo)
    level, produce, consume = state.inner_level, state.produce, state.consume
    apart = Mux(produce >= consume, produce - consume, produce + depth - consume)
    return [
        Assert(level <= depth, f"{name}: the level is within the depth"),
        Assert((produce < depth) & (consume < depth), f"{name}: the addresses are within the memory"),
        Assert(
            Mux(produce == consume, (level == 0) | (level == depth), level == apart),
            f"{name}: addresses and level agree",
        ),
    ]


def register_claims(register: StreamRegister, name: str) -> list[Assert]:
    """Return that the spare place of a stream register is used only behind its first."""
    first, spare = register_slots(register)
    return [Assert(~spare.full | first.full, f"{name}: the spare place is behind the first")]
