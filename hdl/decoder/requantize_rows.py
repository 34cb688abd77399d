# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""Sums of products become activations, R at a time."""

from amaranth.hdl import Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..parts.dot_product import Delay
from ..parts.registers import data_register
from ..parts.requantize import ShiftRoundSaturate
from .layout import Layout
from .row_ports import rows_of, table_stages, table_word
from .states import belongs, select


class RequantizeRows(wiring.Component):
    """Sums become activations: R of them a cycle, each row with its own bias, shift and width.

    Equation: `fixedpoint.Linear`'s, `o[r] = requantize(i[r] + bias[row], shift[row])`. Rows come in
    the order of the plan's matrices, so their table needs no address from outside, but a count for
    each sequence.

    Latency: 5 cycles. Throughput: R a cycle.

    Internals: the table is read while the engine still works on the rows: `soon` comes
    `table_stages` cycles before `i.valid`.

    Attributes:
        latency: 5.
        table_stages: Cycles that the table takes.
        soon: In, 1 bit: a set of rows comes in so many cycles.
        sequence: In: with it, whose.
        i, o: In and Out, R values with `valid`.
    """

    latency = 1 + ShiftRoundSaturate.latency

    def __init__(self, plan: Layout, sum_bits: int):
        self.rows = rows = plan.rows
        self.sum_bits = max(sum_bits, *(linear.accumulator_bits for linear in plan.linears))
        self.widths = sorted({int(width) for matrix in plan.matrices for width in matrix.widths})
        shifts = [int(shift) for matrix in plan.matrices for shift in matrix.shift]
        biases = [int(bias) for matrix in plan.matrices for bias in matrix.bias]
        self._lowest = min(shifts)
        self._casts = [ShiftRoundSaturate(self.sum_bits, self._lowest, max(shifts), self.widths) for _ in range(rows)]
        bias_shape = Shape.cast(range(min(*biases, -1), max(*biases, 0) + 1))
        entry = data.StructLayout(
            {"bias": bias_shape, "amount": self._casts[0].amount.shape(), "width": self._casts[0].width.shape()}
        )
        self.entry = data.ArrayLayout(entry, rows)
        self.entries = []
        for matrix in plan.matrices:
            padded = matrix.sets * rows
            columns = (
                list(map(int, matrix.bias)),
                [int(shift) - self._lowest for shift in matrix.shift],
                [self.widths.index(width) for width in matrix.widths],
            )
            bias, amount, width = (column + [0] * (padded - len(column)) for column in columns)
            for first in range(0, padded, rows):
                self.entries.append(
                    [
                        {"bias": bias[row], "amount": amount[row], "width": width[row]}
                        for row in range(first, first + rows)
                    ]
                )
        self.sequences = plan.sequences
        # of several sequences a register has the address of the one that is wanted
        self.table_stages = table_stages(len(self.entries)) + (plan.sequences > 1)
        super().__init__(
            {
                "soon": In(1),
                "sequence": In(range(plan.sequences)),
                "i": In(rows_of(signed(sum_bits), rows)),
                "o": Out(rows_of(signed(self.widths[-1]), rows)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        counts = [Signal(range(len(self.entries)), name=f"address_{number}") for number in range(self.sequences)]
        for number, count in enumerate(counts):
            with m.If(self.soon & belongs(self.sequence, number)):
                m.d.sync += count.eq(Mux(count == len(self.entries) - 1, 0, count + 1))
        address = counts[0]
        if self.sequences > 1:
            address = data_register(counts[0], name="address")
            m.d.sync += address.eq(select(counts, self.sequence))
        entry = table_word(m, "table", self.entry, self.entries, address)
        m.submodules.valid = valid = Delay(unsigned(1), self.latency)
        m.d.comb += [valid.en.eq(1), valid.i.eq(self.i.valid), self.o.valid.eq(valid.o)]
        for row, cast in enumerate(self._casts):
            m.submodules[f"cast_{row}"] = cast
            total = data_register(signed(self.sum_bits), name=f"total_{row}")
            amount = data_register(cast.amount, name=f"amount_{row}")
            width = data_register(cast.width, name=f"width_{row}")
            m.d.sync += [
                total.eq(self.i.values[row] + entry[row].bias),
                amount.eq(entry[row].amount),
                width.eq(entry[row].width),
            ]
            m.d.comb += [
                cast.en.eq(1),
                cast.i.eq(total),
                cast.amount.eq(amount),
                cast.width.eq(width),
                self.o.values[row].eq(cast.o),
            ]
        return m
