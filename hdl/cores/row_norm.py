# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""What LayerNorm and RMSNorm have in common as circuits: a row waits in a FIFO for the root that it
is divided by.
"""

from itertools import pairwise

from amaranth.hdl import Assert, Const, Format, Module, Mux, Shape, ShapeLike, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

import fixedpoint

from ..errors import CircuitError
from ..parts.arithmetic import multiply, saturate, shape_of
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, Multiplier
from ..parts.reciprocal import ReciprocalSquareRoot
from ..parts.registers import data_register
from ..parts.row_statistics import RowStatistics
from ..parts.stream_parts import word_shape

# of a difference: an unsigned part that fits a hard multiplier beside the root's mantissa
LOW_BITS = 16
LOGIC_WORDS = 64  # of scale and shift that are cheaper in lookup tables than in block RAM
READ_STAGES = 2  # a block RAM's latch and its output register
OUTPUT_STAGES = 12  # stages from a difference to its result
FINE_BITS = 2  # of the shift by the exponent that are left to its second stage


class RowNorm(wiring.Component):
    """The circuit under `LayerNorm` and `RMSNorm`, which differ in S and in the shift.

    Attributes:
        parameters: Formats, scale and shift.
        lanes: Elements a cycle.
        words: Words a row.
        latency: Cycles from a row's last word taken to its first result offered.

    Internals:
        Words of `lanes` elements go into a FIFO and through `RowStatistics`; its v becomes a root,
        and what belongs to a row (root, S) queues beside its words. Statistics and root take a
        known time, so a row's words begin to leave the FIFO just early enough to meet their root,
        one a cycle, through one pipeline of two multiplications. The FIFO holds a row and all that
        arrives until the row begins to leave, so that rows pass without a gap.
    """

    specification: type

    def __init__(self, parameters: "fixedpoint.LayerNorm | fixedpoint.RMSNorm", lanes: int = 1):
        name = type(self).__name__
        if not isinstance(parameters, self.specification):
            raise TypeError(f"parameters must be a fixedpoint.{name}, not {type(parameters).__name__}")
        if isinstance(lanes, bool) or not isinstance(lanes, int) or lanes < 1 or parameters.channels % lanes:
            raise CircuitError(f"{name} lanes must divide the row's {parameters.channels} channels, not be {lanes!r}")
        if parameters.reciprocal_square_root.mantissa_bits < parameters.normalized.fraction:
            raise CircuitError(
                f"{name} of {parameters.channels} channels needs a reciprocal square root with at least "
                f"{parameters.normalized.fraction} mantissa bits, not {parameters.reciprocal_square_root.mantissa_bits}: "
                f"normalization would have to shift left"
            )
        if parameters.reciprocal_square_root.mantissa_bits >= OPERAND_BITS:
            raise CircuitError(
                f"{name} needs a reciprocal square root of at most {OPERAND_BITS - 1} mantissa bits, for a hard multiplier with a sign, "
                f"not {parameters.reciprocal_square_root.mantissa_bits}"
            )
        self.parameters = parameters
        self.lanes = lanes
        self.words = parameters.channels // lanes
        self._statistics = RowStatistics(parameters, lanes)
        self._root = ReciprocalSquareRoot(parameters.reciprocal_square_root, parameters.variance_bits)
        root_cycles = self._statistics.settle + self._root.latency
        self.latency = root_cycles + 2 + OUTPUT_STAGES
        # Stages from a word's address to its difference: reading, then C·x, which is a choice of
        # wires where C is a power of two, and − S.
        self._scaling = 0 if parameters.channels & (parameters.channels - 1) == 0 else Multiplier.latency
        self._difference_stages = READ_STAGES + self._scaling + 1
        # A root may be multiplied two cycles after it was found: one in its queue, one in a
        # register.
        self._lead = root_cycles + 1 - self._difference_stages
        # A word's place is free again in the cycle after its address; a power of two, so that the
        # level tells with one bit.
        self._depth = 1 << ceil_log2(self.words + self._lead + 1)
        super().__init__(
            {"i": In(self._stream(shape_of(parameters.input))), "o": Out(self._stream(shape_of(parameters.output)))}
        )

    def _stream(self, element: ShapeLike) -> stream.Signature:
        return stream.Signature(data.StructLayout({"data": word_shape(element, self.lanes), "last": 1}))

    def _lane(self, word: Value | data.View, lane: int) -> Value:
        return word if self.lanes == 1 else word[lane]

    def cycles(self, rows: int = 1) -> int:
        """Return the cycles from the first word taken to the last result given, for rows offered
        without a pause.
        """
        return (rows + 1) * self.words - 2 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        parameters, words = self.parameters, self.words
        centered = isinstance(parameters, fixedpoint.LayerNorm)
        m.submodules.statistics = statistics = self._statistics
        m.submodules.root = root = self._root
        depth, difference_stages = self._depth, self._difference_stages

        # Take a row.
        place = Signal(range(max(words, 2)))  # an assertion's message wants at least a bit
        final = place == words - 1
        taken = Signal()
        level = Signal(range(depth + 1))  # words that are in the FIFO
        m.d.comb += [
            self.i.ready.eq(~level[-1]),
            taken.eq(self.i.valid & self.i.ready),
            statistics.valid.eq(taken),
            statistics.first.eq(place == 0),
            statistics.last.eq(final),
            statistics.elements.eq(self.i.payload.data),
            root.i.valid.eq(statistics.variance_valid),
            root.i.payload.eq(statistics.variance),
            root.o.ready.eq(1),
        ]
        with m.If(taken):
            m.d.sync += place.eq(Mux(final, 0, place + 1))
            m.d.sync += Assert(
                self.i.payload.last == final,
                Format(f"{type(self).__name__} input: last is {{}} on word {{}}", self.i.payload.last, place),
            )

        # Give it, as soon as its root will be there when it is needed.
        tag = data.StructLayout({"valid": 1, "last": 1, "index": range(words)})
        m.submodules.tags = tags = Delay(tag, difference_stages + OUTPUT_STAGES)
        m.submodules.lead = lead = Delay(unsigned(1), self._lead)
        # Rows whose last word is in the FIFO, or has left it and not met its root.
        rows = -(-(depth + difference_stages) // words)
        due = Signal(range(rows + 1))  # rows that may leave
        index = Signal(range(words))
        last = index == words - 1
        enable, issue = Signal(), Signal()
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            issue.eq(enable & (due != 0)),
            lead.en.eq(1),
            lead.i.eq(taken & final),
            tags.en.eq(enable),
            tags.i.valid.eq(issue),
            tags.i.last.eq(last),
            tags.i.index.eq(index),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.last.eq(tags.o.last),
        ]
        m.d.sync += [due.eq(due + lead.o - (issue & last)), level.eq(level + taken - issue)]
        with m.If(issue):
            m.d.sync += index.eq(Mux(last, 0, index + 1))
        word = self._row_memory(m, taken, issue, enable)

        # What belongs to a row leaves its queue with the row's last word, stages after the FIFO
        # gave the word.
        queues = {"roots": (root.o.valid, root.o.payload, difference_stages - 1)}
        if centered:
            queues["totals"] = (statistics.total_valid, statistics.total, difference_stages - 2)
        read = {}
        for name, (valid, value, stages) in queues.items():
            m.submodules[name] = read[name] = queue = SyncFIFO(width=len(Value.cast(value)), depth=rows)
            leaving = tags.taps[stages]
            m.d.comb += [
                queue.w_en.eq(valid),
                queue.w_data.eq(value),
                queue.r_en.eq(enable & leaving.valid & leaving.last),
            ]
            m.d.sync += [
                Assert(~valid | queue.w_rdy, f"{type(self).__name__}: {name} lost a row"),
                Assert(~leaving.valid | queue.r_rdy, f"{type(self).__name__}: a word came before its {name}"),
            ]

        def held(value: Value, stages: int, name: str) -> Value:
            """Return a value as it was some stages ago."""
            for number in range(stages):
                register = data_register(value.shape(), name=f"{name}_{number + 1}")
                with m.If(enable):
                    m.d.sync += register.eq(value)
                value = register
            return value

        # A row's numbers are delayed beside its words, each up to the stage that uses it.
        scale = data.View(root.o.payload.shape(), read["roots"].r_data)
        offset = held(read["totals"].r_data.as_signed(), 1, "offset") if centered else 0
        mantissa = held(scale.mantissa, 1, "mantissa")
        excess = held((scale.exponent - len(scale.mantissa))[: self._excess_bits], 5, "excess")
        shifts = excess[FINE_BITS:], held(excess[:FINE_BITS], 1, "fine")

        m.submodules.affine = affine = self._affine_memory()
        port = affine.read_port()
        m.d.comb += [port.addr.eq(tags.taps[difference_stages + 5].index), port.en.eq(enable)]
        for lane in range(self.lanes):
            scaled = self._scaled(m, f"lane_{lane}", enable, word[lane])
            result = self._lane(self.o.payload.data, lane)
            self._lane_pipeline(m, f"lane_{lane}", enable, scaled, offset, mantissa, shifts, port.data[lane], result)
        counters = {"place": place, "index": index, "level": level, "due": due}
        parts = {"row": m.submodules.row, "tags": tags, "lead": lead, "statistics": statistics, "root": root}
        self.internals = Internals(**counters, **parts, queues=read, depth=depth, difference_stages=difference_stages)
        return m

    def _row_memory(self, m: Module, taken: Signal, issue: Signal, enable: Signal) -> data.View:
        """Build the FIFO's memory and return the word issued `READ_STAGES` ago.

        A word is read long after it was written, so what a read in the cycle of a write gives does
        not matter. Without being told, Yosys would build a detour around each block RAM that gives
        the old word.
        """
        arrays = data.ArrayLayout(shape_of(self.parameters.input), self.lanes)
        m.submodules.row = row = memory.Memory(shape=arrays, depth=self._depth, init=[], attrs={"no_rw_check": 1})
        write, read = row.write_port(), row.read_port(domain="comb")
        latch, word = data_register(arrays), data_register(arrays, name="word")
        m.d.comb += [write.en.eq(taken), Value.cast(write.data).eq(self.i.payload.data)]
        with m.If(taken):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(issue):
            m.d.sync += read.addr.eq(read.addr + 1)
        with m.If(enable):
            m.d.sync += [latch.eq(read.data), word.eq(latch)]
        collides = taken & issue & (write.addr == read.addr)
        m.d.sync += Assert(~collides, f"{type(self).__name__}: a word is read while it is written")
        return word

    def _scaled(self, m: Module, name: str, enable: Signal, element: Value) -> Value:
        """Return C·x."""
        channels = self.parameters.channels
        if self._scaling:
            return multiply(m, f"{name}_scaled", element, Const(channels, unsigned(channels.bit_length())), enable)
        return element << (channels.bit_length() - 1)

    @property
    def _excess_bits(self) -> int:
        """Width of what a root's exponent has beyond its mantissa's bits."""
        return ((self.parameters.variance_bits - 1) // 2).bit_length()

    @property
    def _half(self) -> int:
        """Half a unit of the output, in units of the product: adding it makes the cast round."""
        return (1 << self.parameters.output_shift) >> 1 if self.parameters.output_shift > 0 else 0

    @property
    def _total_shape(self) -> Shape:
        """Shape of product, shift and half a unit added up."""
        return signed(max(self.parameters.product_bits, self._half.bit_length()) + 1)

    def _affine_memory(self) -> memory.Memory:
        """Return the words of scale and, in LayerNorm, of shift with half an output unit."""
        parameters = self.parameters
        columns = {"scale": parameters.scale.tolist()}
        shapes = {"scale": shape_of(parameters.scale_format)}
        if isinstance(parameters, fixedpoint.LayerNorm):
            columns["shift"] = [shift + self._half for shift in parameters.shift.tolist()]
            shapes["shift"] = self._total_shape
        elements = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        init = [elements[start : start + self.lanes] for start in range(0, len(elements), self.lanes)]
        word = data.ArrayLayout(data.StructLayout(shapes), self.lanes)
        # A few wide words would leave most of many block RAMs empty.
        style = {"ram_style": "logic"} if self.words <= LOGIC_WORDS else {}
        return memory.Memory(shape=word, depth=self.words, init=init, attrs=style)

    def _lane_pipeline(
        self,
        m: Module,
        name: str,
        enable: Signal,
        scaled: Value,
        offset: Value | int,
        mantissa: Value,
        shifts: tuple[Value, Value],
        affine: data.View,
        result: Value,
    ) -> None:
        """Build one lane's last 13 stages: C·x − S, times the root (3), its two halves added, shift
        (2), round, times scale (3), plus shift, cast.

        The shift leaves one bit more than the result for rounding (shift_right_half_up_by's
        doubling). No element exceeds sqrt(C) standard deviations, the normalized format goes at
        least so far, and the root is wrong by less than a half: so the shifted product never
        reaches twice the format's range, and of its bits only the lowest ones and one above them
        need to be chosen.
        """
        parameters = self.parameters
        normalized_format, output_shift = parameters.normalized, parameters.output_shift
        split = min(LOW_BITS, parameters.difference_bits - 1)
        bits = normalized_format.bits + 2

        def register(stage: str, shape: ShapeLike) -> Signal:
            return data_register(shape, name=f"{name}_{stage}")

        difference = register("difference", signed(parameters.difference_bits))
        low = multiply(m, f"{name}_low", difference[:split], mantissa, enable)
        high = multiply(m, f"{name}_high", difference[split:].as_signed(), mantissa, enable)
        quotient = register("quotient", signed(parameters.difference_bits + len(mantissa)))
        coarse = register("coarse", signed(bits + (1 << FINE_BITS) - 1))
        doubled = register("doubled", signed(bits))
        scale = register("scale", affine.scale.shape())
        addend = Const(self._half, self._total_shape)
        if isinstance(parameters, fixedpoint.LayerNorm):
            betas = [register(f"beta_{stage}", self._total_shape) for stage in range(Multiplier.latency + 1)]
            addend = betas[-1]
            with m.If(enable):
                m.d.sync += [after.eq(before) for before, after in pairwise([affine.shift, *betas])]
        normalized = register("normalized", shape_of(normalized_format))
        product = multiply(m, f"{name}_product", normalized, scale, enable)
        total = register("total", self._total_shape)
        output = register("output", result.shape())
        cast = total >> output_shift if output_shift > 0 else total << -output_shift
        # The least shift is a choice of wires.
        least = len(mantissa) - normalized_format.fraction
        with m.If(enable):
            m.d.sync += [
                difference.eq(scaled - offset),
                quotient.eq((high << split) + low),
                coarse.eq((quotient << 1 >> least) >> (shifts[0] << FINE_BITS)),
                doubled.eq(coarse >> shifts[1]),
                normalized.eq(saturate((doubled + 1) >> 1, normalized_format)),
                scale.eq(affine.scale),
                total.eq(product + addend),
                output.eq(saturate(cast, parameters.output)),
            ]
        m.d.comb += result.eq(output)
