"""Base-2 exponentials as a circuit: a table for the fraction, a shifter for the whole part."""

from itertools import pairwise

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint
from fixedpoint import QFormat

from .arithmetic import shape_of, shift_right_half_up
from .internals import Internals
from .parameter_checks import check_whole
from .registers import data_register
from .stream_parts import stall_together
from .table import BlockTable

WIDEST_DISTANCE = 32
# up to 256 entries cost some hundred LUTs; larger tables are worth a block RAM
LOGIC_TABLE_BITS = 8


class Exponential(wiring.Component):
    """`fixedpoint.Exponential` as a circuit: `2**-distance`, in units of
    `1 / (2**output_bits - 1)`.

    Equation: `u = round(i / 2**(fraction - table_bits))`,
    `o = round(table[u % 2**table_bits] / 2**(u // 2**table_bits))`, both rounded half up.

    Latency: `latency` = 3 cycles from a distance taken to its exponential offered, 5 with a table
    in block RAM. Throughput: one a cycle; the whole pipeline stalls while a result waits.
    Resources: a table of `2**table_bits` entries of `output_bits` bits (logic up to 256 entries,
    else block RAM), a shifter of `output_bits` bits, no multiplier.

    Attributes:
        parameters: Formats and table.
        width: Bits of the distance.
        latency: 3 or 5.
        i: In, stream of distances, unsigned with `parameters.fraction` fraction bits.
        o: Out, stream of exponentials, unsigned, `output_bits` bits.

    Internals:
        Stages: round and split the distance; read the table; shift and round. A table in block RAM
        is read through a register of its own, and its results are shifted and rounded in two steps.
    """

    def __init__(self, parameters: fixedpoint.Exponential, width: int):
        if not isinstance(parameters, fixedpoint.Exponential):
            raise TypeError(f"parameters must be a fixedpoint.Exponential, not {type(parameters).__name__}")
        check_whole("an exponential's width", width, 1, WIDEST_DISTANCE)
        self.parameters = parameters
        self.width = width
        self._block_table = parameters.table_bits > LOGIC_TABLE_BITS
        self.latency = 5 if self._block_table else 3
        super().__init__(
            {
                "i": In(stream.Signature(shape_of(QFormat(width, parameters.fraction, signed=False)))),
                "o": Out(stream.Signature(unsigned(parameters.output_bits))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        table_bits, output_bits = parameters.table_bits, parameters.output_bits

        enable = stall_together(m, self.i, self.o, self.latency)

        # Round to the table's step; from `output_bits + 1` whole steps on, the result is 0.
        steps = shift_right_half_up(self.i.payload, parameters.shift)
        rounded = Signal(unsigned(max(len(steps), table_bits + 1)))
        whole_in = rounded[table_bits:]
        index = data_register(unsigned(table_bits))
        whole = data_register(range(output_bits + 2))
        m.d.comb += rounded.eq(steps)
        with m.If(enable):
            m.d.sync += [index.eq(rounded), whole.eq(Mux(whole_in > output_bits, output_bits + 1, whole_in))]

        values = parameters.table.tolist()
        entry = data_register(unsigned(output_bits))
        if self._block_table:
            m.submodules.table = table = BlockTable(values, output_bits)
            table_stages = table.latency
            m.d.comb += [table.en.eq(enable), table.address.eq(index), entry.eq(table.o)]
        else:
            m.submodules.table = table = memory.Memory(
                shape=unsigned(output_bits), depth=len(values), init=values, attrs={"ram_style": "logic"}
            )
            port, table_stages = table.read_port(), 1
            m.d.comb += [port.en.eq(enable), port.addr.eq(index), entry.eq(port.data)]
        shifts = [data_register(whole, name=f"shift_{stage}") for stage in range(table_stages)]
        # shift_right_half_up_by, in two steps where results are wide, as those of large tables are.
        doubled = data_register(unsigned(output_bits + 1))
        result = data_register(self.o.payload)
        if self._block_table:
            with m.If(enable):
                m.d.sync += doubled.eq((entry << 1) >> shifts[-1])
        else:
            m.d.comb += doubled.eq((entry << 1) >> shifts[-1])
        with m.If(enable):
            m.d.sync += [after.eq(before) for before, after in pairwise([whole, *shifts])]
            m.d.sync += result.eq((doubled + 1) >> 1)
        m.d.comb += self.o.payload.eq(result)
        self.internals = Internals(valid=m.submodules.valid)
        return m
