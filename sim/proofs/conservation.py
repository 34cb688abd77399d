"""Accounts: what entered a core and has not left it is inside, for all time.

Induction begins in any state. What no reset leads to, a word in one queue of which another knows
nothing, must therefore be excluded: invariants say which numbers inside a core agree. One proof
asserts them, together with what follows from them; another one, about rows that end, builds upon
it.
"""

from collections.abc import Callable, Mapping

from amaranth.hdl import Assert, Assume, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import SyncFIFOBuffered

from hdl.parts.stream_parts import PromisedQueue

from .claims import finishes
from .inside import Inside
from .stream_rules import Environment


class Accounts(Environment):
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
        invariants: "Callable[[Accounts, Module], list[Assert]]",
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

    def passed(self, m: Module, name: str, *, rows: bool = False) -> Signal:
        """Return the number of payloads, or of ends of rows, that a stream has transferred, modulo
        `2**COUNTER_BITS`.
        """
        count = Signal(self.COUNTER_BITS, name=f"{name}_passed_{'rows' if rows else 'payloads'}")
        end = getattr(self.core, name).payload.last if rows else Const(1, 1)
        m.d.sync += count.eq(count + (self.taken[name] & end))
        return count

    def inside_now(self, m: Module, entered: str, left: str, *, rows: bool = False) -> Value:
        """Return how many more payloads, or rows, have entered than left."""
        return (self.passed(m, entered, rows=rows) - self.passed(m, left, rows=rows))[: self.COUNTER_BITS]

    def conserved(self, m: Module, held: Value) -> Assert:
        """Return the claim that as many payloads are inside as entered and have not left."""
        return Assert(self.inside_now(m, "i", "o") == held, "as many payloads are inside as entered and have not left")


class WholeSums(Accounts):
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


def no_invariants(environment: Accounts, m: Module) -> list[Assert]:
    """Return no invariants, for a core of which only its own assertions are claimed."""
    return []


def fifo_claims(inside: Inside, path: str) -> list[Assert]:
    """Return that the pointers of a FIFO at a path are as far apart as it is full."""
    fifo = inside.part(path)
    buffered = isinstance(fifo, (SyncFIFOBuffered, PromisedQueue))
    depth = fifo.depth - buffered
    level = inside.signal(f"{path}.inner_level") if buffered else fifo.level
    produce, consume = (inside.signal(f"{path}.{name}") for name in ("produce", "consume"))
    apart = Mux(produce >= consume, produce - consume, produce + depth - consume)
    return [
        Assert(level <= depth, f"{path}: the level is within the depth"),
        Assert((produce < depth) & (consume < depth), f"{path}: the addresses are within the memory"),
        Assert(
            Mux(produce == consume, (level == 0) | (level == depth), level == apart),
            f"{path}: addresses and level agree",
        ),
    ]


def register_claims(inside: Inside, path: str) -> list[Assert]:
    """Return that the spare place of a stream register at a path is used only behind its first."""
    first, spare = inside.register(path)
    return [Assert(~spare.full | first.full, f"{path}: the spare place is behind the first")]
