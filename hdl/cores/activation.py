"""Pointwise activations as a circuit: a table of every result."""

import numpy as np
from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from ..parts.arithmetic import shape_of
from ..parts.dot_product import Delay
from ..parts.parameter_checks import check_whole
from ..parts.registers import data_register
from ..parts.stream_parts import word_shape


class TableActivation(wiring.Component):
    """`fixedpoint.TableActivation` as a circuit: any function of up to 8 bits, `lanes` elements a
    cycle.

    Equation: `o = table[i - minimum(i)]`.

    Latency: 2 cycles from a word taken to its results offered: element, table. Throughput: a word
    a cycle; both stages stall while a result waits.
    Resources: a table of `2**input.bits` results a lane, in logic; no multiplier, no block RAM.

    Attributes:
        parameters: Formats and table.
        lanes: Elements a cycle.
        latency: 2.
        i: In, stream of {data: input format, last}; with several lanes `data` is an array. `last`
            passes unchanged.
        o: Out, stream of {data: output format, last}, of the same form.

    Internals:
        A table in memory begins with 0: an element's bits, taken as an unsigned number, are its
        address.
    """

    latency = 2

    def __init__(self, parameters: fixedpoint.TableActivation, lanes: int = 1):
        if not isinstance(parameters, fixedpoint.TableActivation):
            raise TypeError(f"parameters must be a fixedpoint.TableActivation, not {type(parameters).__name__}")
        check_whole("activation lanes", lanes)
        self.parameters = parameters
        self.lanes = lanes
        super().__init__(
            {
                side: direction(
                    stream.Signature(data.StructLayout({"data": word_shape(shape_of(element), lanes), "last": 1}))
                )
                for side, direction, element in (("i", In, parameters.input), ("o", Out, parameters.output))
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters = self.parameters
        enable = Signal()
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), self.latency)
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            self.i.ready.eq(enable),
            tags.en.eq(enable),
            tags.i.valid.eq(self.i.valid),
            tags.i.last.eq(self.i.payload.last),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.last.eq(tags.o.last),
        ]
        init = np.roll(parameters.table, parameters.input.minimum_integer).tolist()
        for lane in range(self.lanes):
            arriving, result = self.i.payload.data, self.o.payload.data
            if self.lanes > 1:
                arriving, result = arriving[lane], result[lane]
            address = data_register(unsigned(parameters.input.bits), name=f"address_{lane}")
            with m.If(enable):
                m.d.sync += address.eq(arriving)
            m.submodules[f"table_{lane}"] = table = memory.Memory(
                shape=shape_of(parameters.output), depth=len(init), init=init, attrs={"ram_style": "logic"}
            )
            port = table.read_port()
            m.d.comb += [port.en.eq(enable), port.addr.eq(address), result.eq(port.data)]
        return m
