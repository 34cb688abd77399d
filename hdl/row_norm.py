# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""What LayerNorm and RMSNorm have in common as circuits: a row waits in a FIFO for the root that it is divided by."""

from itertools import pairwise

from amaranth.hdl import Assert, Const, Format, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

import fixedpoint
from fixedpoint import QFormat

from .arithmetic import multiply, saturate, shape_of
from .dot_product import Delay
from .errors import CircuitError
from .multiplier import OPERAND_BITS, Multiplier
from .reciprocal import ReciprocalSquareRoot
from .row_statistics import RowStatistics
from .stream_parts import StreamQueue, word_shape

LOW_BITS = 16  # of a difference: an unsigned part that fits a hard multiplier beside the root's mantissa
LOGIC_WORDS = 64  # of scale and shift that are cheaper in lookup tables than in block RAM
OUTPUT_MOVES = 12  # stages from C·x to its result


class RowNorm(wiring.Component):
    """The circuit under `LayerNorm` and `RMSNorm`, which differ in S and in the shift.

    Words of `lanes` elements go into a FIFO and through `RowStatistics`; its v becomes a root, and what belongs to a row (root, S) queues beside
    its words.  When a row's root is there its words leave the FIFO one a cycle, through one pipeline of two multiplications.
    The FIFO holds a row and all that arrives while its root is made, so that rows pass without a gap.

    Attributes:
        parameters: Formats, scale and shift.
        lanes: Elements a cycle.
        words: Words a row.
        latency: Cycles from a row's last word taken to its first result offered.
    """

    specification: type

    def __init__(self, parameters: "fixedpoint.LayerNorm | fixedpoint.RMSNorm", lanes: int = 1):
        name = type(self).__name__
        if not isinstance(parameters, self.specification):
            raise TypeError(f"parameters must be a fixedpoint.{name}, not {type(parameters).__name__}")
        if not isinstance(lanes, int) or lanes < 1 or parameters.channels % lanes:
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
        # C·x is a choice of wires behind one register where C is a power of two, else a product.
        self._scaled_moves = 1 if parameters.channels & (parameters.channels - 1) == 0 else Multiplier.latency
        root_cycles = self._statistics.settle + self._root.latency
        self.latency = root_cycles + 1 + self._scaled_moves + OUTPUT_MOVES
        # The memory of the FIFO inside the queue is a power of two; the FIFO's output holds one word more, the queue's another one.
        self._depth = (1 << ceil_log2(self.words + root_cycles)) + 1
        super().__init__(
            {"i": In(self._stream(shape_of(parameters.input))), "o": Out(self._stream(shape_of(parameters.output)))}
        )

    def _stream(self, element) -> stream.Signature:
        return stream.Signature(data.StructLayout({"data": word_shape(element, self.lanes), "last": 1}))

    def _lane(self, word, lane: int):
        return word if self.lanes == 1 else word[lane]

    def cycles(self, rows: int = 1) -> int:
        """Return the cycles from the first word taken to the last result given, for rows offered without a pause."""
        return (rows + 1) * self.words - 2 + self.latency

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        parameters, words = self.parameters, self.words
        centered = isinstance(parameters, fixedpoint.LayerNorm)
        m.submodules.statistics = statistics = self._statistics
        m.submodules.root = root = self._root
        arrays = data.ArrayLayout(shape_of(parameters.input), self.lanes)
        m.submodules.row = row = StreamQueue(arrays, self._depth)

        # Take a row.
        place = Signal(range(max(words, 2)))  # an assertion's message wants at least a bit
        final = place == words - 1
        taken = Signal()
        m.d.comb += [
            self.i.ready.eq(row.i.ready),
            taken.eq(self.i.valid & self.i.ready),
            row.i.valid.eq(self.i.valid),
            Value.cast(row.i.payload).eq(self.i.payload.data),
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

        # What belongs to a row leaves with its last word, so there is never more of it than rows of which the FIFO holds a word.
        rows = -(-(self._depth + 1) // words)
        queues = [("roots", root.o.valid, root.o.payload)]
        if centered:
            queues.append(("totals", statistics.total_valid, statistics.total))
        read = {}
        index = Signal(range(words))
        last = index == words - 1
        issue = Signal()
        for name, valid, value in queues:
            m.submodules[name] = read[name] = queue = SyncFIFO(width=len(Value.cast(value)), depth=rows)
            m.d.comb += [queue.w_en.eq(valid), queue.w_data.eq(value), queue.r_en.eq(issue & last)]
            m.d.sync += Assert(~valid | queue.w_rdy, f"{type(self).__name__}: {name} lost a row")

        # Give it.
        tag = data.StructLayout({"valid": 1, "last": 1, "index": range(words)})
        m.submodules.tags = tags = Delay(tag, self._scaled_moves + OUTPUT_MOVES)
        move = Signal()
        m.d.comb += [
            move.eq(~self.o.valid | self.o.ready),
            issue.eq(move & row.o.valid & read["roots"].r_rdy),
            row.o.ready.eq(issue),
            tags.en.eq(move),
            tags.i.valid.eq(issue),
            tags.i.last.eq(last),
            tags.i.index.eq(index),
            self.o.valid.eq(tags.o.valid),
            self.o.payload.last.eq(tags.o.last),
        ]
        with m.If(issue):
            m.d.sync += index.eq(Mux(last, 0, index + 1))

        def held(value, moves, name):
            """Return a value as it was some moves ago."""
            for number in range(moves):
                register = Signal(value.shape(), name=f"{name}_{number + 1}", reset_less=True)
                with m.If(move):
                    m.d.sync += register.eq(value)
                value = register
            return value

        # A row's numbers travel beside its words, each up to the stage that uses it.
        moves = self._scaled_moves
        scale = data.View(root.o.payload.shape(), read["roots"].r_data)
        offset = held(read["totals"].r_data.as_signed(), moves, "offset") if centered else 0
        mantissa = held(scale.mantissa, moves, "mantissa")
        exponent = held(scale.exponent - parameters.normalized.fraction, 1, "exponent")
        shift = held(exponent[: len(scale.exponent)], moves + 3, "shift")

        m.submodules.affine = affine = self._affine_memory()
        port = affine.read_port()
        m.d.comb += [port.addr.eq(tags.taps[moves + 5].index), port.en.eq(move)]
        for lane in range(self.lanes):
            element = row.o.payload[lane]
            scaled = self._scaled(m, f"lane_{lane}", move, element)
            result = self._lane(self.o.payload.data, lane)
            self._lane_pipeline(m, f"lane_{lane}", move, scaled, offset, mantissa, shift, port.data[lane], result)
        return m

    def _scaled(self, m, name, move, element):
        """Return C·x."""
        channels = self.parameters.channels
        if self._scaled_moves == Multiplier.latency:
            return multiply(m, f"{name}_scaled", element, Const(channels, unsigned(channels.bit_length())), move)
        register = Signal(element.shape(), name=f"{name}_element", reset_less=True)
        with m.If(move):
            m.d.sync += register.eq(element)
        return register << (channels.bit_length() - 1)

    @property
    def _half(self) -> int:
        """Half a unit of the output, in units of the product: adding it makes the cast round."""
        return (1 << self.parameters.output_shift) >> 1 if self.parameters.output_shift > 0 else 0

    @property
    def _total_shape(self):
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

    def _lane_pipeline(self, m, name, move, scaled, offset, mantissa, shift, affine, result):
        """Build one lane's last 12 stages: C·x − S times the root (3), its two halves added, shift, clip, round, times scale (3), plus shift, cast.

        The shift leaves one bit more than the result for rounding (shift_right_half_up_by's doubling).  Saturating to the result's range and
        this bit first keeps the adder short; rounding can then exceed the range by one at most.
        """
        parameters = self.parameters
        normalized_format, output_shift = parameters.normalized, parameters.output_shift
        split = min(LOW_BITS, parameters.difference_bits - 1)

        def register(stage, shape):
            return Signal(shape, name=f"{name}_{stage}", reset_less=True)

        difference = Signal(signed(parameters.difference_bits), name=f"{name}_difference")
        m.d.comb += difference.eq(scaled - offset)
        low = multiply(m, f"{name}_low", difference[:split], mantissa, move)
        high = multiply(m, f"{name}_high", difference[split:].as_signed(), mantissa, move)
        quotient = register("quotient", signed(parameters.difference_bits + len(mantissa)))
        doubled = register("doubled", signed(len(quotient) + 1))
        clipped = register("clipped", signed(normalized_format.bits + 1))
        scale = register("scale", affine.scale.shape())
        addend = Const(self._half, self._total_shape)
        if isinstance(parameters, fixedpoint.LayerNorm):
            betas = [register(f"beta_{stage}", self._total_shape) for stage in range(Multiplier.latency + 1)]
            addend = betas[-1]
            with m.If(move):
                m.d.sync += [after.eq(before) for before, after in pairwise([affine.shift, *betas])]
        normalized = register("normalized", shape_of(normalized_format))
        product = multiply(m, f"{name}_product", normalized, scale, move)
        total = register("total", self._total_shape)
        output = register("output", result.shape())
        cast = total >> output_shift if output_shift > 0 else total << -output_shift
        with m.If(move):
            m.d.sync += [
                quotient.eq((high << split) + low),
                doubled.eq((quotient << 1) >> shift),
                clipped.eq(saturate(doubled, QFormat(normalized_format.bits + 1, 0))),
                normalized.eq(saturate((clipped + 1) >> 1, normalized_format)),
                scale.eq(affine.scale),
                total.eq(product + addend),
                output.eq(saturate(cast, parameters.output)),
            ]
        m.d.comb += result.eq(output)
