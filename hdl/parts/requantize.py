# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""From accumulators to activations: shift right, round half up, saturate; alone, and after a row's
bias and scale have been looked up.
"""

from collections.abc import Sequence

from amaranth.hdl import Assert, Cat, Const, Format, Module, Shape, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import Linear, QFormat

from ..errors import CircuitError
from .arithmetic import saturate, shape_of
from .dot_product import Delay
from .parameter_checks import check_whole
from .registers import data_register
from .stream_parts import stall_together

FINE_BITS = 2  # of a shift: what the second of the two shifters does
WIDEST_INPUT = 48
LARGEST_SHIFT = 62


class ShiftRoundSaturate(wiring.Component):
    """`fixedpoint.requantize` for a shift that is known only when the circuit runs, without a
    handshake.

    Equation: `o = saturate(floor((floor(2i / 2**s) + 1) / 2))` with `s = lowest + amount`, which is
    i / 2**s rounded half up. A negative s shifts left.

    Latency: 4 stages. Throughput: one number a cycle.

    Attributes:
        latency: 4.
        en: In, 1 bit. Enables every stage.
        i: In, signed.
        amount: In, unsigned: the shift less `lowest`.
        width: In, unsigned: which of `widths` saturates; no bit of it when there is one.
        o: Out, signed, as wide as the widest.

    Internals:
        Stages: coarse shift, fine shift, round, saturate. All numbers are first shifted by the
        constant `1 - lowest`, in wires, so that every variable shift goes to the right.
    """

    latency = 4

    def __init__(self, bits: int, lowest: int, highest: int, widths: Sequence[int]):
        self.lowest, self.widths = lowest, tuple(widths)
        super().__init__(
            {
                "en": In(1),
                "i": In(signed(bits)),
                "amount": In(unsigned((highest - lowest).bit_length())),
                "width": In(unsigned((len(widths) - 1).bit_length())),
                "o": Out(signed(max(widths))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        doubled = self.i << (1 - self.lowest) if self.lowest <= 1 else self.i >> (self.lowest - 1)
        doubled = doubled.as_signed()
        coarse = data_register(doubled)
        fine = data_register(doubled)
        rounded = data_register(signed(len(doubled)))
        rest = data_register(unsigned(min(FINE_BITS, len(self.amount))))
        m.submodules.select = select = Delay(self.width.shape(), self.latency - 1)
        m.d.comb += [select.en.eq(self.en), select.i.eq(self.width)]
        with m.If(self.en):
            m.d.sync += [
                coarse.eq(doubled >> Cat(Const(0, FINE_BITS), self.amount[FINE_BITS:])),
                rest.eq(self.amount),
                fine.eq(coarse >> rest),
                rounded.eq((fine + 1) >> 1),
            ]
            with m.Switch(select.o):
                for index, bits in enumerate(self.widths):
                    with m.Case(index):
                        m.d.sync += self.o.eq(saturate(rounded, QFormat(bits, 0)))
        return m


class Requantize(wiring.Component):
    """`fixedpoint.requantize` as a stream core: casts of several accumulators at a time, each with
    its own shift.

    Equation: `o[l] = requantize(value[l], shift[l], target)`.

    Latency: 5 clock edges from a transfer taken to its results given. Throughput: one transfer a
    cycle, so one result a cycle and lane. The whole pipeline stalls while a result waits.
    Resources: no multiplier, no memory; a shifter of `bits` bits a lane.

    Attributes:
        bits: Signed width of an accumulator, at most 48.
        target: The format whose range saturates, signed.
        lowest, highest: The shifts that occur, −62 to 62; negative ones multiply. The shifted
            accumulator is at most 62 bits wide.
        lanes: Numbers at a time.
        latency: 5.
        i: In, stream of {value, shift}, arrays of `lanes`: signed accumulators of `bits` bits, and
            shifts.
        o: Out, stream of arrays of `lanes` results of format `target`.
    """

    latency = 1 + ShiftRoundSaturate.latency

    def __init__(self, bits: int, target: QFormat, lowest: int, highest: int, lanes: int = 1):
        check_whole("lanes", lanes)
        check_whole("bits", bits, 1, WIDEST_INPUT)
        if not isinstance(target, QFormat) or not target.signed:
            raise CircuitError(f"target must be a signed QFormat, not {target!r}")
        check_whole("lowest", lowest, -LARGEST_SHIFT, LARGEST_SHIFT)
        check_whole("highest", highest, lowest, LARGEST_SHIFT)
        if bits - lowest > LARGEST_SHIFT:
            raise CircuitError(
                f"{bits} bits shifted left by {-lowest} are {bits - lowest}; at most {LARGEST_SHIFT} are supported"
            )
        self.bits, self.target, self.lowest, self.highest, self.lanes = bits, target, lowest, highest, lanes
        shift = Shape.cast(range(lowest, highest + 1))
        super().__init__(
            {
                "i": In(
                    stream.Signature(
                        data.StructLayout(
                            {"value": data.ArrayLayout(signed(bits), lanes), "shift": data.ArrayLayout(shift, lanes)}
                        )
                    )
                ),
                "o": Out(stream.Signature(data.ArrayLayout(shape_of(target), lanes))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        enable = stall_together(m, self.i, self.o, self.latency)
        for lane in range(self.lanes):
            unit = ShiftRoundSaturate(self.bits, self.lowest, self.highest, [self.target.bits])
            m.submodules[f"lane_{lane}"] = unit
            value = data_register(unit.i, name=f"value_{lane}")
            amount = data_register(unit.amount, name=f"amount_{lane}")
            shift = self.i.payload.shift[lane]
            with m.If(enable):
                m.d.sync += [value.eq(self.i.payload.value[lane]), amount.eq(shift - self.lowest)]
                m.d.sync += Assert(
                    ~self.i.valid | ((shift >= self.lowest) & (shift <= self.highest)),
                    Format(f"requantize: a shift of {{}} is not within {self.lowest} to {self.highest}", shift),
                )
            m.d.comb += [unit.en.eq(enable), unit.i.eq(value), unit.amount.eq(amount), self.o.payload[lane].eq(unit.o)]
        return m


class RowRequantize(wiring.Component):
    """Casts the accumulators of one or several linear layers whose rows follow each other.

    Equation: `o = requantize(i + bias[row], shift[row])`, `fixedpoint.Linear`'s. Latency: 7 stages.
    Throughput: one row a cycle.

    Attributes:
        latency: 7.
        en: In, 1 bit. Enables every stage.
        row: In, unsigned: which row `i` belongs to, counted over all layers.
        i: In, signed: the sum of products.
        o: Out, signed, as wide as the widest output.

    Internals:
        Bias and shift stand in one memory. Stages: memory, its register, bias, then
        `ShiftRoundSaturate`.
    """

    latency = 3 + ShiftRoundSaturate.latency

    def __init__(self, layers: Sequence[Linear]):
        if not isinstance(layers, Sequence) or not layers or not all(isinstance(layer, Linear) for layer in layers):
            raise CircuitError("layers must be one fixedpoint.Linear or more")
        self.layers = tuple(layers)
        self.widths = sorted({layer.output.bits for layer in layers})
        shifts = [int(shift) for layer in layers for shift in layer.shift]
        biases = [int(bias) for layer in layers for bias in layer.bias]
        selects = [self.widths.index(layer.output.bits) for layer in layers for _ in range(layer.rows)]
        self.sum_bits = max(layer.accumulator_bits for layer in layers)
        self._cast = ShiftRoundSaturate(self.sum_bits, min(shifts), max(shifts), self.widths)
        self.entry = data.StructLayout(
            {"bias": signed(self.sum_bits), "amount": self._cast.amount.shape(), "width": self._cast.width.shape()}
        )
        self.entries = [
            {"bias": bias, "amount": shift - min(shifts), "width": select}
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

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.rows = rows = memory.Memory(shape=self.entry, depth=len(self.entries), init=self.entries)
        m.submodules.cast = cast = self._cast
        port = rows.read_port()
        m.d.comb += [port.addr.eq(self.row), port.en.eq(self.en)]

        products = [data_register(signed(self.sum_bits), name=f"products_{stage}") for stage in range(2)]
        # accumulator_bits covers products and bias
        total = data_register(signed(self.sum_bits))
        entry, late = data_register(self.entry), data_register(self.entry)
        with m.If(self.en):
            m.d.sync += [
                products[0].eq(self.i),
                products[1].eq(products[0]),
                entry.eq(port.data),
                total.eq(products[1] + entry.bias),
                late.eq(entry),
            ]
        m.d.comb += [
            cast.en.eq(self.en),
            cast.i.eq(total),
            cast.amount.eq(late.amount),
            cast.width.eq(late.width),
            self.o.eq(cast.o),
        ]
        return m
