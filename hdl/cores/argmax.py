"""Argmax as a circuit: the most likely token of a row of logits."""

from amaranth.hdl import Assert, Format, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import QFormat

from ..parts.arithmetic import shape_of
from ..parts.internals import Internals
from ..parts.parameter_checks import check_whole
from ..parts.registers import data_register

LONGEST_ROW = 1 << 16


def check_row(name: str, length: int) -> None:
    """Refuse a longest row that makes no circuit.

    Raises:
        CircuitError: It is not a whole number from 1 to 65,536.
    """
    check_whole(f"{name} length", length, 1, LONGEST_ROW)


class ArgMax(wiring.Component):
    """`fixedpoint.argmax` as a circuit: rows of logits in, the lowest index of each row's maximum
    out.

    Equation: `o = min {j : i[j] = max(i)}`.

    Latency: 2 cycles from a row's last logit taken to its token offered: logit, comparison.
    Throughput: a logit a cycle, rows back to back without a gap; everything stalls while a
    token waits.
    Resources: a comparator and registers for two logits and two indices.
    In simulation a row without `last` on its `length`-th logit is an assertion's failure; in
    hardware it ends there.

    Attributes:
        logits: Format of the logits.
        length: The longest row.
        latency: 2.
        i: In, stream of {data: `logits`, last}: rows of 1 to `length` logits, `last` on the final
            one.
        o: Out, stream of {token}, unsigned indices, one a row.
    """

    latency = 2

    def __init__(self, logits: QFormat, length: int):
        if not isinstance(logits, QFormat):
            raise TypeError(f"logits must be a fixedpoint.QFormat, not {type(logits).__name__}")
        check_row("argmax", length)
        self.logits = logits
        self.length = length
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(logits), "last": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"token": range(length)}))),
            }
        )

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first logit taken to the last token given, for rows of
        `elements` offered without a pause.
        """
        return rows * elements - 1 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        # An assertion's message wants at least a bit.
        indices = ("place", "index", "best_index")
        place, index, best_index = (Signal(range(max(self.length, 2)), name=name) for name in indices)
        logit, best = (data_register(shape_of(self.logits), name=name) for name in ("logit", "best"))
        token = data_register(range(self.length))
        valid, last = Signal(), Signal()
        enable = Signal()
        final = self.i.payload.last | (place == self.length - 1)
        m.d.comb += [enable.eq(~self.o.valid | self.o.ready), self.i.ready.eq(enable), self.o.payload.token.eq(token)]
        with m.If(enable):
            m.d.sync += [
                valid.eq(self.i.valid),
                last.eq(final),
                logit.eq(self.i.payload.data),
                index.eq(place),
                self.o.valid.eq(valid & last),
            ]
            with m.If(self.i.valid):
                m.d.sync += place.eq(Mux(final, 0, place + 1))
                m.d.sync += Assert(
                    self.i.payload.last | (place != self.length - 1),
                    Format("argmax input: no last on element {} of a row of at most {}", place, self.length),
                )
            # Only a larger logit takes over: of equal ones the first stays.
            with m.If(valid):
                m.d.sync += token.eq(best_index)
                with m.If((index == 0) | (logit > best)):
                    m.d.sync += [best.eq(logit), best_index.eq(index), token.eq(index)]
        self.internals = Internals(place=place, index=index, best_index=best_index, token=token, valid=valid, last=last)
        return m
