"""Cores with a bug on purpose: what each kind of proof must refute."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import stream, wiring

from hdl.payload import connect


class _Wrapped(wiring.Component):
    """A core inside another one with the same ports, through which `elaborate` of a subclass leads the output streams with a bug."""

    def __init__(self, core: wiring.Component):
        self._core = core
        super().__init__(core.signature)

    def elaborate(self, platform):
        """Connect all ports straight through, except output streams."""
        m = Module()
        m.submodules.core = core = self._core
        for name, member in core.signature.members.items():
            outer, inner = getattr(self, name), getattr(core, name)
            if not member.is_port and isinstance(member.signature, stream.Signature) and member.flow is wiring.Out:
                m.d.comb += [outer.valid.eq(inner.valid), outer.payload.eq(inner.payload), inner.ready.eq(outer.ready)]
                self._spoil(m, name, outer, inner)
            elif not member.is_port:
                connect(m, wiring.flipped(outer), inner)
            elif member.flow is wiring.In:
                m.d.comb += Value.cast(inner).eq(Value.cast(outer))
            else:
                m.d.comb += Value.cast(outer).eq(Value.cast(inner))
        return m

    def _spoil(self, m: Module, name: str, outer, inner) -> None:
        raise NotImplementedError


class Withdrawing(_Wrapped):
    """Takes an offer back for a cycle after it was refused."""

    def _spoil(self, m, name, outer, inner):
        refused = Signal(name=f"{name}_refused")
        m.d.sync += refused.eq(outer.valid & ~outer.ready)
        m.d.comb += outer.valid.eq(inner.valid & ~refused)
        m.d.comb += inner.ready.eq(outer.ready & ~refused)


class Blocking(_Wrapped):
    """Stops offering anything once it was refused in two cycles one after the other."""

    def _spoil(self, m, name, outer, inner):
        refused, stuck = Signal(name=f"{name}_refused"), Signal(name=f"{name}_stuck")
        m.d.sync += [refused.eq(outer.valid & ~outer.ready), stuck.eq(stuck | (refused & outer.valid & ~outer.ready))]
        m.d.comb += [outer.valid.eq(inner.valid & ~stuck), inner.ready.eq(outer.ready & ~stuck)]


class Repeating(_Wrapped):
    """Gives the first result of all twice."""

    def _spoil(self, m, name, outer, inner):
        repeated = Signal(name=f"{name}_repeated")
        with m.If(outer.valid & outer.ready):
            m.d.sync += repeated.eq(1)
        m.d.comb += inner.ready.eq(outer.ready & repeated)


class Silent(_Wrapped):
    """Offers nothing, ever."""

    def _spoil(self, m, name, outer, inner):
        m.d.comb += [outer.valid.eq(0), inner.ready.eq(1)]
