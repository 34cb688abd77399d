"""The rules of streams as assumptions about a core's inputs and assertions about its outputs.

The rules (Amaranth's, docs/stdlib/stream): once valid, a stream stays valid and its payload stays
the same until the transfer. That valid does not wait for ready is a claim of its own, proven of
pipelines; simulation finds it everywhere, with stalls that last until valid was seen.
"""

from collections.abc import Mapping
from typing import Any

from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Assume, Elaboratable, Format, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring

from .internals import ElaboratedCore


def has_last(payload: Any) -> bool:
    """Say whether a payload has a field `last`, which marks the end of a row."""
    return isinstance(payload, data.View) and "last" in dict(payload.shape())


class Environment(Elaboratable):
    """A core among streams that may do anything the rules allow.

    Inputs and readiness are the solver's free choice at every cycle. Claims are added by
    `elaborate` of a subclass through `claims`, which sees:

    Attributes:
        core: The circuit.
        elaborated: The circuit with its internals, for invariants; there from `elaborate` on.
        row_lengths: For an input with a `last` field: the length of its rows; `(1, n)` lets the
            solver choose from 1 to n.
        taken: Per stream port, a signal: a transfer happens at this edge.
        counts: Per stream port, the number of transfers so far, saturating.
        index: Per stream port with `last`, the place of the next element in its row.
    """

    COUNTER_BITS = 8
    # A subclass with other claims leaves the rules, and the data they speak of, to their own proof.
    asserts_rules = True
    asserts_payload = True
    # Outputs with `last` finish with it; where it passes unchanged and an input may leave it out,
    # any payload will do, and an offer is enough.
    ends_rows = True
    # Streams that must not rest, where they are not the outputs.
    finishing: tuple[str, ...] = ()

    def __init__(self, core: wiring.Component, row_lengths: Mapping[str, tuple[int, int]] | None = None):
        self.core = core
        self.row_lengths = dict(row_lengths or {})
        self.taken: dict[str, Signal] = {}
        self.counts: dict[str, Signal] = {}
        self.index: dict[str, Signal] = {}
        self.wires: dict[str, str] = {}  # plain inputs that are joined to plain outputs

    def elaborate(self, platform: object) -> Module:
        """Build the circuit around the core."""
        m = Module()
        m.submodules.core = self.elaborated = ElaboratedCore(self.core)
        for name, member in self.core.signature.members.items():
            if not isinstance(member.signature if member.is_signature else None, stream.Signature):
                if member.flow is wiring.In:
                    port = Value.cast(getattr(self.core, name))
                    m.d.comb += port.eq(
                        getattr(self.core, self.wires[name]) if name in self.wires else AnySeq(len(port))
                    )
                continue
            port = getattr(self.core, name)
            taken = self.taken[name] = Signal(name=f"{name}_taken")
            count = self.counts[name] = Signal(self.COUNTER_BITS, name=f"{name}_count")
            m.d.comb += taken.eq(port.valid & port.ready)
            with m.If(taken & ~count.all()):
                m.d.sync += count.eq(count + 1)
            if member.flow is wiring.In:
                self._drive(m, name, port)
            else:
                self._watch(m, name, port)
        self.claims(m)
        return m

    def streams(self, flow: wiring.Flow) -> list[str]:
        """Return the names of the core's input or output streams."""
        members = self.core.signature.members
        return [name for name in self.taken if members[name].flow is flow]

    def claims(self, m: Module) -> None:
        """Add further assumptions and assertions; the rules alone by default."""

    def _drive(self, m: Module, name: str, port: Any) -> None:
        """Feed an input with anything that the rules allow."""
        payload = Value.cast(port.payload)
        before = self._remember(m, name, port)
        m.d.comb += [port.valid.eq(AnySeq(1)), payload.eq(AnySeq(len(payload)))]
        with m.If(before["waiting"]):
            m.d.comb += [Assume(port.valid), Assume(payload == before["payload"])]
        if name in self.row_lengths:
            self._frame(m, name, port, *self.row_lengths[name])

    def _watch(self, m: Module, name: str, port: Any) -> None:
        """Take an output at any time, and assert the rules."""
        m.d.comb += port.ready.eq(AnySeq(1))
        if not self.asserts_rules:
            return
        before = self._remember(m, name, port)
        with m.If(before["waiting"]):
            m.d.comb += Assert(port.valid, Format("{} withdrew its offer", name))
            if self.asserts_payload:
                same = Value.cast(port.payload) == before["payload"]
                m.d.comb += Assert(same, Format("{} changed its offer", name))

    def _remember(self, m: Module, name: str, port: Any) -> dict[str, Signal]:
        """Return whether the last cycle had an offer that was not taken, and its payload."""
        waiting, payload = Signal(name=f"{name}_waiting"), Signal(len(Value.cast(port.payload)), name=f"{name}_offered")
        m.d.sync += [waiting.eq(port.valid & ~port.ready), payload.eq(Value.cast(port.payload))]
        return {"waiting": waiting, "payload": payload}

    def _frame(self, m: Module, name: str, port: Any, shortest: int, longest: int) -> None:
        """Put `last` where rows of the allowed lengths have it."""
        index = self.index[name] = Signal(range(longest + 1), name=f"{name}_index")
        with m.If(self.taken[name]):
            m.d.sync += index.eq(Mux(port.payload.last, 0, index + 1))
        with m.If(index < shortest - 1):
            m.d.comb += Assume(~port.payload.last)
        with m.If(index == longest - 1):
            m.d.comb += Assume(port.payload.last)
        m.d.comb += Assert(index < longest)
