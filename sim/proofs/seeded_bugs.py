"""Cores with a bug on purpose: what each kind of proof must refute."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeAlias
from unittest import mock

from amaranth.hdl import Fragment, Module, Signal, Value
from amaranth.lib import stream, wiring

from hdl.cores.uart import UARTReceiver

Build: TypeAlias = Callable[[], wiring.Component]


class Wrapped(wiring.Component):
    """A core inside another one with the same ports; a subclass puts a bug into the streams."""

    def __init__(self, core: wiring.Component):
        self.core = core
        super().__init__(core.signature)

    def elaborate(self, platform: object) -> Module:
        """Connect all ports, then put the bug in."""
        m = Module()
        m.submodules.core = core = self.core
        for name, member in core.signature.members.items():
            outer, inner = getattr(self, name), getattr(core, name)
            if not member.is_port and isinstance(member.signature, stream.Signature) and member.flow is wiring.Out:
                m.d.comb += [outer.valid.eq(inner.valid), outer.payload.eq(inner.payload), inner.ready.eq(outer.ready)]
                self._change_output(m, name, outer, inner)
            elif not member.is_port:
                m.d.comb += [inner.valid.eq(outer.valid), inner.payload.eq(outer.payload), outer.ready.eq(inner.ready)]
                self._change_input(m, name, outer, inner)
            elif member.flow is wiring.In:
                m.d.comb += Value.cast(inner).eq(Value.cast(outer))
            else:
                m.d.comb += Value.cast(outer).eq(Value.cast(inner))
        return m

    def _change_output(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        """Put the bug into an output."""

    def _change_input(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        """Put the bug into an input."""


class Withdrawing(Wrapped):
    """Withdraws an offer for a cycle after it was refused."""

    def _change_output(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        refused = Signal(name=f"{name}_refused")
        m.d.sync += refused.eq(outer.valid & ~outer.ready)
        m.d.comb += outer.valid.eq(inner.valid & ~refused)
        m.d.comb += inner.ready.eq(outer.ready & ~refused)


class Blocking(Wrapped):
    """Offers nothing more once it was refused in two cycles in a row."""

    def _change_output(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        refused, stuck = Signal(name=f"{name}_refused"), Signal(name=f"{name}_stuck")
        m.d.sync += [refused.eq(outer.valid & ~outer.ready), stuck.eq(stuck | (refused & outer.valid & ~outer.ready))]
        m.d.comb += [outer.valid.eq(inner.valid & ~stuck), inner.ready.eq(outer.ready & ~stuck)]


class Losing(Wrapped):
    """Accepts the first payload of each input and drops it."""

    def _change_input(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        begun = Signal(name=f"{name}_begun")
        with m.If(outer.valid & outer.ready):
            m.d.sync += begun.eq(1)
        m.d.comb += inner.valid.eq(outer.valid & begun)


class Waiting(Wrapped):
    """Offers a payload only while it can be taken."""

    def _change_output(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        m.d.comb += outer.valid.eq(inner.valid & outer.ready)


class Silent(Wrapped):
    """Offers nothing, ever."""

    def _change_output(self, m: Module, name: str, outer: Any, inner: Any) -> None:
        m.d.comb += [outer.valid.eq(0), inner.ready.eq(1)]


def slow_receiver(divisor: int) -> UARTReceiver:
    """Return a receiver that counts a cycle too many for each bit."""
    return UARTReceiver(divisor + 1)


def build_patched(build: Build, module: ModuleType, **names: Any) -> wiring.Component:
    """Return a core that is built and elaborated with other values for names of its module.

    Raises:
        AttributeError: The module has no such name.
    """
    with mock.patch.multiple(module, **names):
        core = build()
    elaborate = core.elaborate

    def changed(platform: object) -> Fragment:
        with mock.patch.multiple(module, **names):
            return Fragment.get(elaborate(platform), platform)

    core.elaborate = changed
    return core
