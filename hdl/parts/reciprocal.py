"""Reciprocals and reciprocal square roots: shift the leading one to the top, read a table."""

from amaranth.hdl import Assert, Cat, Format, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

import fixedpoint

from .internals import Internals
from .parameter_checks import check_whole
from .registers import data_register
from .stream_parts import stall_together
from .table import BlockTable

WIDEST_ARGUMENT = 62  # as the specification's integers


class _NormalizedTable(wiring.Component):
    """A function of a positive integer by normalization and table; the circuit under both classes
    below.

    Attributes:
        levels: Levels of the normalization, `ceil(log2(digits))`.
        latency: Cycles from an argument taken to its result offered, `levels + 2`.

    Internals:
        The argument counts as `digits` digits of `digit_bits` bits. Level k of the normalization
        shifts out 2**k digits if they are all zero, largest k first, so that the leading digit ends
        up at the top whatever it was; what was shifted out is the exponent.
    """

    def __init__(self, width: int, digit_bits: int, index_bits: int, table: list[int], mantissa_bits: int):
        check_whole("a reciprocal's width", width, 1, WIDEST_ARGUMENT)
        self.width = width
        self._digit_bits = digit_bits
        self._digits = -(-width // digit_bits)
        self._index_bits = index_bits
        self._table = table
        self._largest_exponent = self._digits - 1 + mantissa_bits
        self.levels = ceil_log2(self._digits)
        self.latency = self.levels + 2
        result = data.StructLayout(
            {"mantissa": unsigned(mantissa_bits), "exponent": unsigned(self._largest_exponent.bit_length())}
        )
        super().__init__({"i": In(stream.Signature(unsigned(width))), "o": Out(stream.Signature(result))})

    def _index(self, normalized: Signal) -> Value:
        """Return the table's index for an argument whose leading digit stands at the top."""
        raise NotImplementedError

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()

        enable = stall_together(m, self.i, self.o, self.latency)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += Assert(self.i.payload != 0, Format("a reciprocal needs a positive argument, not 0"))

        # A register behind every level; `skipped` collects the number of digits shifted out, most
        # significant bit first.
        normalized, skipped = Signal(unsigned(self._digits * self._digit_bits)), Cat()
        m.d.comb += normalized.eq(self.i.payload)
        for level in reversed(range(self.levels)):
            bits = self._digit_bits << level
            empty = normalized[-bits:] == 0
            shifted = data_register(normalized, name=f"normalized_{level}")
            flags = data_register(unsigned(self.levels - level), name=f"skipped_{level}")
            with m.If(enable):
                m.d.sync += [shifted.eq(Mux(empty, normalized << bits, normalized)), flags.eq(Cat(empty, skipped))]
            normalized, skipped = shifted, flags

        # The block RAM's own register is the last stage.
        m.submodules.table = table = BlockTable(self._table, len(self.o.payload.mantissa))
        exponents = [data_register(range(self._largest_exponent + 1), name=f"exponent_{stage}") for stage in (0, 1)]
        m.d.comb += [
            table.en.eq(enable),
            table.address.eq(self._index(normalized)),
            self.o.payload.mantissa.eq(table.o),
            self.o.payload.exponent.eq(exponents[1]),
        ]
        with m.If(enable):
            m.d.sync += [exponents[0].eq(self._largest_exponent - skipped), exponents[1].eq(exponents[0])]
        self.internals = Internals(valid=m.submodules.valid)
        return m


class Reciprocal(_NormalizedTable):
    """`fixedpoint.Reciprocal` as a circuit: `1 / i`, i >= 1, as `mantissa * 2**-exponent`.

    Equation: `e = floor(log2 i)`, `mantissa = table[the index_bits bits below the leading one]`,
    `exponent = e + mantissa_bits`.

    Latency: `ceil(log2 width) + 2` cycles from an argument taken to its result offered.
    Throughput: one a cycle; the whole pipeline stalls while a result waits.
    Resources: `ceil(log2 width)` rows of `width` multiplexers and registers, one table of
    `2**index_bits` entries in block RAM, no multiplier. In simulation an argument of 0 is an
    assertion's failure; in hardware its result means nothing.

    Source: tables of midpoints: DasSarma, Matula, "Measuring the Accuracy of ROM Reciprocal
    Tables", IEEE Transactions on Computers 43(8), 1994.

    Attributes:
        parameters: Index and mantissa widths, and the table.
        width: Bits of the argument.
        latency: The formula above.
        i: In, stream of unsigned arguments, `width` bits.
        o: Out, stream of {mantissa, exponent}, both unsigned; the mantissa has `mantissa_bits`
            bits.

    Internals:
        Levels of multiplexers shift the leading one to the top; the bits below it address the
        table.
    """

    def __init__(self, parameters: fixedpoint.Reciprocal, width: int):
        if not isinstance(parameters, fixedpoint.Reciprocal):
            raise TypeError(f"parameters must be a fixedpoint.Reciprocal, not {type(parameters).__name__}")
        self.parameters = parameters
        super().__init__(width, 1, parameters.index_bits, parameters.table.tolist(), parameters.mantissa_bits)

    def _index(self, normalized: Signal) -> Value:
        """Return the bits below the leading one, zeros appended where there are too few."""
        below = Cat(normalized[:-1])
        missing = self._index_bits - len(below)
        return below << missing if missing >= 0 else below[-missing:]


class ReciprocalSquareRoot(_NormalizedTable):
    """`fixedpoint.ReciprocalSquareRoot` as a circuit: `1 / sqrt(i)`, i >= 1, as
    `mantissa * 2**-exponent`.

    Equation: `e = floor(log2 i)` with its lowest bit cleared,
    `mantissa = table[the leading index_bits bits of i / 2**e - start]`,
    `exponent = e / 2 + mantissa_bits`.

    Latency: `ceil(log2 ceil(width / 2)) + 2` cycles from an argument taken to its result offered.
    Throughput: one a cycle; the whole pipeline stalls while a result waits.
    Resources: as `Reciprocal`, one level less. In simulation an argument of 0 is an assertion's
    failure; in hardware its result means nothing.

    Attributes:
        parameters: Index and mantissa widths, and the table.
        width: Bits of the argument.
        latency: The formula above.
        i: In, stream of unsigned arguments, `width` bits.
        o: Out, stream of {mantissa, exponent}, both unsigned; the mantissa has `mantissa_bits`
            bits.

    Internals:
        Normalization moves pairs of bits, since a pair more halves the root once more. The table
        has `2**index_bits` words, of which the first quarter never is read: that saves the
        subtraction of `start`, and the block RAM is the same.
    """

    def __init__(self, parameters: fixedpoint.ReciprocalSquareRoot, width: int):
        if not isinstance(parameters, fixedpoint.ReciprocalSquareRoot):
            raise TypeError(f"parameters must be a fixedpoint.ReciprocalSquareRoot, not {type(parameters).__name__}")
        self.parameters = parameters
        table = [0] * parameters.start + parameters.table.tolist()
        super().__init__(width, 2, parameters.index_bits, table, parameters.mantissa_bits)

    def _index(self, normalized: Signal) -> Value:
        """Return the leading bits, zeros appended where there are too few."""
        missing = self._index_bits - len(normalized)
        return normalized << missing if missing >= 0 else normalized[-self._index_bits :]
