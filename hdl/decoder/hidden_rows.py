# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""The activation between the matrices of a feed-forward network, R rows at a time."""

import numpy as np
from amaranth.hdl import Array, Cat, Module, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from fixedpoint.operators.product import Product

from ..parts.arithmetic import multiply
from ..parts.dot_product import Delay
from ..parts.multiplier import Multiplier
from ..parts.requantize import ShiftRoundSaturate
from ..parts.table import BlockTable
from .plan import Plan
from .row_ports import rows_of


class HiddenRows(wiring.Component):
    """The activation between the two matrices of a feed-forward network.

    Equations: `fixedpoint.TableActivation`'s for each of R rows; with a gate, rows come in turn and
    R / 2 values `fixedpoint.Product`'s of the activated gate and `up` go out.

    Latency: 2 cycles, 9 with a gate. Resources: a table of all layers for each activation a cycle;
    with a gate R / 2 hard multipliers.

    Attributes:
        latency: See above.
        count: Values a cycle.
        i: In, R values with `valid`.
        layer: In: whose table and formats.
        o: Out, `count` activations with `valid`.
    """

    def __init__(self, plan: Plan, bits: int):
        blocks = plan.model.blocks
        self.rows, self.gated = plan.rows, plan.gated
        self.count = plan.rows // 2 if plan.gated else plan.rows
        self._tables = [block.activation for block in blocks]
        self._products: list[Product] = [block.product for block in blocks if block.product is not None]
        self._input_bits = max(one.input.bits for one in self._tables)
        self.table_bits = max(one.output.bits for one in self._tables)
        output_bits = max(one.output.bits for one in (self._products or self._tables))
        self.latency = BlockTable.latency
        self._casts: list[ShiftRoundSaturate] = []
        if self.gated:
            shifts = [one.shift for one in self._products]
            self._up_bits = max(one.second.bits for one in self._products)
            product_bits = self.table_bits + self._up_bits
            self._casts = [
                ShiftRoundSaturate(product_bits, min(shifts), max(shifts), [output_bits]) for _ in range(self.count)
            ]
            self.latency += Multiplier.latency + ShiftRoundSaturate.latency
        super().__init__(
            {
                "i": In(rows_of(signed(bits), self.rows)),
                "layer": In(range(plan.layers)),
                "o": Out(rows_of(signed(output_bits), self.count)),
            }
        )

    def table_values(self) -> list[int]:
        """Return the tables of all layers, each in the order of x as an unsigned number."""
        values: list[int] = []
        size = 1 << self._input_bits
        for one in self._tables:
            table = np.zeros(size, dtype=np.int64)
            codes = np.arange(one.input.minimum_integer, one.input.maximum_integer + 1)
            table[codes % size] = one.table
            values += [int(value) & ((1 << self.table_bits) - 1) for value in table]
        return values

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.valid = valid = Delay(unsigned(1), self.latency)
        m.d.comb += [valid.en.eq(1), valid.i.eq(self.i.valid), self.o.valid.eq(valid.o)]
        values = self.table_values()
        for place in range(self.count):
            m.submodules[f"table_{place}"] = table = BlockTable(values, self.table_bits)
            source = self.i.values[2 * place if self.gated else place]
            m.d.comb += [table.en.eq(1), table.address.eq(Cat(source[: self._input_bits], self.layer))]
            if not self.gated:
                m.d.comb += self.o.values[place].eq(table.o.as_signed())
                continue
            m.submodules[f"up_{place}"] = up = Delay(signed(self._up_bits), table.latency)
            m.d.comb += [up.en.eq(1), up.i.eq(self.i.values[2 * place + 1])]
            cast = self._casts[place]
            m.submodules[f"cast_{place}"] = cast
            m.d.comb += [
                cast.en.eq(1),
                cast.i.eq(multiply(m, f"product_{place}", table.o.as_signed(), up.o)),
                cast.width.eq(0),
                self.o.values[place].eq(cast.o),
            ]
        if self.gated:
            amounts = [one.shift - self._casts[0].lowest for one in self._products]
            m.submodules.amount = amount = Delay(self._casts[0].amount.shape(), BlockTable.latency + Multiplier.latency)
            m.d.comb += [amount.en.eq(1), amount.i.eq(Array(amounts)[self.layer])]
            m.d.comb += [cast.amount.eq(amount.o) for cast in self._casts]
        return m
