"""From accumulators to activations: add a row's bias, shift by the row's scale, round half up, saturate."""

from collections.abc import Sequence

from amaranth.hdl import Module, Shape, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import Linear, QFormat

from .arithmetic import saturate
from .errors import CircuitError


class RowRequantize(wiring.Component):
    """Casts the accumulators of one or several linear layers whose rows follow each other.

    Equation: `o = requantize(i + bias[row], shift[row])`, `fixedpoint.Linear`'s.  Bias and shift stand in one memory.
    Latency: 4 moves (memory, bias, shift, round and saturate).  Throughput: one row a move.
    A row that shifts to the left is served by shifting all rows left first: `x << p >> (s + p)` is the same number.

    Attributes:
        latency: 4.
        en: In, 1 bit. The pipeline moves.
        row: In, unsigned: which row `i` belongs to, counted over all layers.
        i: In, signed: the sum of products.
        o: Out, signed, as wide as the widest output.
    """

    latency = 4

    def __init__(self, layers: Sequence[Linear]):
        if not layers:
            raise CircuitError("RowRequantize needs at least one layer")
        self.layers = tuple(layers)
        self.widths = sorted({layer.output.bits for layer in layers})
        shifts = [int(shift) for layer in layers for shift in layer.shift]
        biases = [int(bias) for layer in layers for bias in layer.bias]
        selects = [self.widths.index(layer.output.bits) for layer in layers for _ in range(layer.rows)]
        self.left_shift = max(0, -min(shifts))
        self.sum_bits = max(layer.accumulator_bits for layer in layers)
        self.entry = data.StructLayout(
            {
                "bias": signed(self.sum_bits),
                "shift": unsigned((max(shifts) + self.left_shift).bit_length()),
                "width": unsigned((len(self.widths) - 1).bit_length()),
            }
        )
        self.entries = [
            {"bias": bias, "shift": shift + self.left_shift, "width": select}
            for bias, shift, select in zip(biases, shifts, selects, strict=True)
        ]
        super().__init__(
            {
                "en": In(1),
                "row": In(range(len(self.entries))),
                "i": In(signed(self.sum_bits)),
                "o": Out(signed(self.widths[-1])),
            }
        )

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        m.submodules.rows = rows = memory.Memory(shape=self.entry, depth=len(self.entries), init=self.entries)
        port = rows.read_port()
        m.d.comb += [port.addr.eq(self.row), port.en.eq(self.en)]

        products = Signal(signed(self.sum_bits), reset_less=True)
        total = Signal(
            signed(self.sum_bits), reset_less=True
        )  # cannot overflow: accumulator_bits covers products and bias
        late = Signal(self.entry, reset_less=True)
        doubled = Signal(Shape(self.sum_bits + self.left_shift + 1, signed=True), reset_less=True)
        select = Signal(self.entry["width"].shape, reset_less=True)
        result = Signal.like(self.o, reset_less=True)
        with m.If(self.en):
            m.d.sync += [
                products.eq(self.i),
                total.eq(products + port.data.bias),
                late.eq(port.data),
                # shift_right_half_up_by, cut in two by this register
                doubled.eq((total << (self.left_shift + 1)) >> late.shift),
                select.eq(late.width),
            ]
        rounded = (doubled + 1) >> 1
        with m.If(self.en), m.Switch(select):
            for index, bits in enumerate(self.widths):
                with m.Case(index):
                    m.d.sync += result.eq(saturate(rounded, QFormat(bits, 0)))
        m.d.comb += self.o.eq(result)
        return m
