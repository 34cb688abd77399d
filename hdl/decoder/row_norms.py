# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""All LayerNorms or RMSNorms of a decoder in one unit, with the least wait from a row's last word
to its first result.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from amaranth.hdl import Array, Assert, Cat, Const, Format, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint import LayerNorm, QFormat, RMSNorm

from ..errors import CircuitError
from ..parts.arithmetic import (
    add_three,
    choose,
    extended,
    multiply,
    multiply_wide,
    round_and_saturate,
    shape_of,
    ternary_depth,
    ternary_sums,
)
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS, Multiplier
from ..parts.parameter_checks import check_whole
from ..parts.reciprocal_lookup import ReciprocalLookup
from ..parts.registers import data_register

READ_STAGES = 2  # a memory's latch and the register behind it
LOGIC_WORDS = 64  # of scale and shift that are cheaper in lookup tables than in block RAM
ROWS = 2  # that the memory holds


def operand_bits(norm: LayerNorm | RMSNorm) -> int:
    """Return the bits of what is multiplied with the root: d, less the factors of two in C where no
    S is subtracted from it.
    """
    if isinstance(norm, LayerNorm):
        return norm.difference_bits
    odd = norm.channels // (norm.channels & -norm.channels)
    return norm.input.bits + (odd - 1).bit_length()


class RowNorms(wiring.Component):
    """`fixedpoint.LayerNorm` or `fixedpoint.RMSNorm` as a circuit, for rows of several norms that
    differ in scale, shift, their formats, the output's, and epsilon.

    Equations: those of the norms. With S and Q a row's sums of elements and of squares (S = 0 in
    RMSNorm): `v = C·Q − S² + epsilon`, `d_i = C·x_i − S`, `n_i = requantize(d_i / sqrt(v))`,
    `y_i = requantize(n_i · scale_i + shift_i)`.

    Every word's squares are added up as it arrives, while the row is kept in a memory. Everything
    that does not depend on the root is read and made ahead of it.

    Latency: `latency` edges from a row's last word taken to its first result valid: the sum of
    2 (squares), T (adders), 1 (Q, with C and epsilon), 1 (LayerNorm: − S²), 3 (root), 2 (times the
    root), 1 (both parts of a wide d), 1 (shift), 3 (round, times scale), 1 (LayerNorm: + shift),
    1 (round). That is 13 + T for RMSNorm with C a power of two or three times one, 14 + T with
    another C, 16 + T for LayerNorm. T is the depth of trees that add three numbers at a time: where
    C is a power of two and epsilon the same in all norms, 0, 1, 2 for up to 2, 6, 18 input lanes.
    Throughput: one word a cycle. Resources: hard multipliers: one (square) an input lane, two an
    output lane (three where d has more than 26 bits), and 3 for S². A memory of two rows, one of
    the scales and shifts of all norms, the root's table.

    Attributes:
        norms: All of one kind, with one input format, one number of channels C and one root.
        i_lanes: Elements a word at the input.
        lanes: Elements a word at the output. One of both divides the other, both divide C.
        input_registers: Squares and products with the root take a cycle more each, for a larger
            circuit around this one whose operands come from further away.
        latency: The formula above.
        i: In, {valid, data, last, norm}: C / i_lanes words a row, `last` on the final one, at most
            one a cycle; `norm` counts with `last`. A row may begin when the one before the previous
            one has been given, and ends at least C / lanes cycles after the previous one.
        o: Out, {valid, data, last}: C / lanes words without a gap; elements are as wide as the
            widest output format.

    Internals:
        A scale is stored shifted left, as far as a multiplier's operand allows, so that the right
        shift behind the product is the same for all norms, if their formats are not far apart.
    """

    def __init__(
        self, norms: "Sequence[LayerNorm] | Sequence[RMSNorm]", i_lanes: int, lanes: int, input_registers: bool = False
    ):
        first = norms[0] if isinstance(norms, Sequence) and norms else None
        if not isinstance(first, (LayerNorm, RMSNorm)) or not all(type(norm) is type(first) for norm in norms):
            raise CircuitError("norms must be fixedpoint.LayerNorms or fixedpoint.RMSNorms, of one kind")
        common = first.input, first.channels, first.reciprocal_square_root
        for norm in norms:
            if (norm.input, norm.channels, norm.reciprocal_square_root) != common:
                raise CircuitError("norms must have the same input format, channels and reciprocal square root")
        channels = first.channels
        for name, value in (("i_lanes", i_lanes), ("lanes", lanes)):
            check_whole(name, value)
            if channels % value:
                raise CircuitError(f"{name} must divide the row's {channels} channels, not be {value}")
        if max(i_lanes, lanes) % min(i_lanes, lanes):
            raise CircuitError(f"one of i_lanes and lanes must divide the other, not be {i_lanes} and {lanes}")
        mantissa_bits = first.reciprocal_square_root.mantissa_bits
        if not first.normalized.fraction <= mantissa_bits < OPERAND_BITS:
            raise CircuitError(
                f"norms of {channels} channels need a reciprocal square root of {first.normalized.fraction} to "
                f"{OPERAND_BITS - 1} mantissa bits, not {mantissa_bits}"
            )
        self.norms, self.i_lanes, self.lanes = list(norms), i_lanes, lanes
        self._first, self._centered = first, isinstance(first, LayerNorm)
        self._registered, self._multiplication = input_registers, 2 + input_registers
        self._words = channels // lanes
        self._zeros = (channels & -channels).bit_length() - 1
        self._odd = channels >> self._zeros
        self._terms = [bit for bit in range(self._odd.bit_length()) if self._odd >> bit & 1]

        # Cycles after a row's last word. Q, and S, are there at `_squared` and `_summed`, v at
        # `_variance`, the root at `_rooted`, where the first word's d must be.
        epsilons = len({norm.epsilon for norm in norms}) > 1
        # What the accumulator adds at a time: two numbers, or one and an epsilon.
        self._kept = 1 if epsilons else 2
        one = 1 if len(self._terms) > 1 else self._kept
        self._tree_depth = ternary_depth(i_lanes, one)
        self._odd_depth = ternary_depth(len(self._terms), self._kept)
        self._squared = self._multiplication + self._tree_depth + self._odd_depth + 1
        self._summed = ternary_depth(i_lanes, 2) + 1
        self._variance = self._squared + self._centered
        self._rooted = self._variance + ReciprocalLookup.latency
        # Before the product: reading, choice of a narrower word, times the odd factor, minus S.
        self._multiple_depth = ternary_depth(len(self._terms), 1)
        self._operand_stages = READ_STAGES + (i_lanes > lanes) + self._multiple_depth + self._centered
        self._read = self._rooted - self._operand_stages
        self._operand_bits = operand_bits(first)
        self._quotient_stages = self._multiplication + (self._operand_bits > OPERAND_BITS)
        self._normalized = self._rooted + self._quotient_stages + 1
        self._scaled = self._normalized + Multiplier.latency
        self.latency = self._scaled + self._centered + 1

        self._plan_outputs()
        word = data.ArrayLayout(shape_of(first.input), i_lanes)
        results = data.ArrayLayout(signed(max(norm.output.bits for norm in norms)), lanes)
        super().__init__(
            {
                "i": In(data.StructLayout({"valid": 1, "data": word, "last": 1, "norm": range(len(norms))})),
                "o": Out(data.StructLayout({"valid": 1, "data": results, "last": 1})),
            }
        )

    def _plan_outputs(self) -> None:
        """Choose each norm's left shift of its scale and right shift of the product."""
        widest = max(norm.output_shift for norm in self.norms)
        self._scales, self._shifts, self._casts = [], [], []
        for norm in self.norms:
            values = norm.scale
            used = max(int(values.max()), ~int(values.min())).bit_length() + 1
            left = min(OPERAND_BITS - used, widest - norm.output_shift)
            right = norm.output_shift + left
            self._scales.append(values << left)
            if isinstance(norm, LayerNorm):
                self._shifts.append(norm.shift << left)
            self._casts.append((right, norm.output.bits))

    @staticmethod
    def _covering(columns: list[np.ndarray]) -> Shape:
        """Return the shape of the numbers in a list of arrays."""
        return signed(max(max(int(one.max()), ~int(one.min())).bit_length() + 1 for one in columns))

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        first, words, i_words = self._first, self._words, self._first.channels // self.i_lanes
        name = type(self).__name__

        # Take words, into the half of the memory that is this row's.
        row = data.StructLayout({"valid": 1, "norm": range(len(self.norms)), "half": 1})
        m.submodules.rows = rows = Delay(row, max(self._read, self._variance))
        place = Signal(range(max(i_words, 2)))  # an assertion's message wants at least a bit
        half = Signal()
        last = place == i_words - 1
        m.d.comb += [
            rows.en.eq(1),
            rows.i.valid.eq(self.i.valid & last),
            rows.i.norm.eq(self.i.norm),
            rows.i.half.eq(half),
        ]
        with m.If(self.i.valid):
            m.d.sync += [place.eq(Mux(last, 0, place + 1)), half.eq(half ^ last)]
            m.d.sync += Assert(
                self.i.last == last, Format(f"{name}: last is {{}} on word {{}} of a row", self.i.last, place)
            )

        variance = self._statistics(m, place == 0, last, rows)
        m.submodules.root = root = ReciprocalLookup(first.reciprocal_square_root, first.variance_bits)
        m.d.comb += [root.valid.eq(rows.taps[self._variance].valid), root.i.eq(variance)]

        # Read, so that the first word's d is there with the root.
        ratio = max(self.i_lanes // self.lanes, 1)
        tag = data.StructLayout(
            {
                "valid": 1,
                "last": 1,
                "norm": row["norm"].shape,
                "half": 1,
                "word": range(words // ratio),
                "part": range(ratio),
            }
        )
        m.submodules.tags = tags = Delay(tag, self.latency - self._read)
        reading, running = tags.i, Signal()
        word, part = Signal(tag["word"].shape), Signal(tag["part"].shape)
        about = data_register(row)
        start = rows.taps[self._read - 1]
        final_part = part == ratio - 1
        final = (word == words // ratio - 1) & final_part
        m.d.comb += [
            tags.en.eq(1),
            reading.eq(Cat(running, final, about.norm, about.half, word, part)),
            self.o.valid.eq(tags.o.valid),
            self.o.last.eq(tags.o.valid & tags.o.last),
        ]
        with m.If(start.valid):
            m.d.sync += [running.eq(1), about.eq(start), word.eq(0), part.eq(0)]
            m.d.sync += Assert(~running | final, f"{name}: a row ended while the previous one was read")
        with m.Elif(running):
            m.d.sync += [part.eq(Mux(final_part, 0, part + 1)), word.eq(word + final_part), running.eq(~final)]
        unread = Signal(ROWS)
        m.d.sync += [
            unread.eq(
                (unread | Cat(rows.i.valid & ~half, rows.i.valid & half))
                & ~Cat(running & final & ~about.half, running & final & about.half)
            ),
            Assert(~self.i.valid | ~unread.bit_select(half, 1), f"{name}: a row began before there was room for it"),
        ]
        elements = self._row_memory(m, place, half, reading)

        total = None
        if self._centered:
            # S of both rows, each until its own row has been read
            total = Mux(tags.taps[self._operand_stages - 1].half, *reversed(self._totals))
        digit = root.digit
        for stage in range(self._quotient_stages):
            later = data_register(digit, name=f"digit_{stage}")
            m.d.sync += later.eq(digit)
            digit = later

        m.submodules.affine = affine = self._affine_memory()
        port = affine.read_port()
        ahead = tags.taps[self._normalized - READ_STAGES - self._read]
        m.d.comb += port.addr.eq(Cat(ahead.part, ahead.word, ahead.norm))
        parameters = data_register(port.data)
        m.d.sync += parameters.eq(port.data)
        late_norm = tags.taps[-2].norm
        for lane in range(self.lanes):
            normalized = self._quotient(m, f"lane_{lane}", elements[lane], total, root.mantissa, digit)
            self._affine(m, f"lane_{lane}", normalized, parameters[lane], late_norm, self.o.data[lane])
        self.internals = Internals(place=place, running=running, word=word, part=part, rows=rows, tags=tags, root=root)
        return m

    def _statistics(self, m: Module, first_word: Value, last_word: Value, rows: Delay) -> Value:
        """Add up squares, and elements; return v, which is there `_variance` cycles after a row's
        last word.
        """
        norm, elements = self._first, self.i.data
        m.submodules.firsts = firsts = Delay(data.StructLayout({"valid": 1, "first": 1}), self._squared)
        m.d.comb += [firsts.en.eq(1), firsts.i.valid.eq(self.i.valid), firsts.i.first.eq(first_word)]

        # C·Q + epsilon: the odd factor of C is a sum of shifted copies, the rest a choice of wires.
        squares = [
            multiply(m, f"square_{lane}", elements[lane], elements[lane], input_registers=self._registered)[
                : 2 * norm.input.bits - 1
            ]
            for lane in range(self.i_lanes)
        ]
        if len(self._terms) > 1:
            (square_sum,) = ternary_sums(m, "squares", squares, 1)
            squares = [square_sum << bit for bit in self._terms]
            squares = ternary_sums(m, "multiple", squares, self._kept)
        else:
            squares = ternary_sums(m, "squares", squares, self._kept)
        summands = [square << self._zeros for square in squares]
        # a − b − c = a + ~b + ~c + 2
        correction = 2 if self._centered else 0
        begin = Const(self.norms[0].epsilon + correction, norm.variance_bits)
        if len({one.epsilon for one in self.norms}) > 1:
            before = rows.taps[self._squared - 2]
            epsilons = Array(Const(one.epsilon, norm.variance_bits) for one in self.norms)
            epsilon = data_register(begin)
            m.d.sync += epsilon.eq(Mux(before.valid, epsilons[before.norm], 0))
            summands.append(epsilon)
            begin = Const(correction, norm.variance_bits)
        accumulated = data_register(unsigned(norm.variance_bits))
        arriving = firsts.taps[self._squared - 1]
        with m.If(arriving.valid):
            base = Mux(arriving.first, begin, accumulated)
            m.d.sync += accumulated.eq(
                add_three(norm.variance_bits, base, *summands) if len(summands) == 2 else base + summands[0]
            )
        if not self._centered:
            return accumulated

        # S, whose square is made of three products of half its width.
        leaves = ternary_sums(m, "elements", [elements[lane] for lane in range(self.i_lanes)], 2)
        row_sum = data_register(signed(norm.scaled_bits))
        arriving = firsts.taps[self._summed - 1]
        with m.If(arriving.valid):
            base = Mux(arriving.first, 0, row_sum)
            m.d.sync += row_sum.eq(add_three(norm.scaled_bits, base, *leaves) if len(leaves) == 2 else base + leaves[0])
        finished = rows.taps[self._summed]
        self._totals = [data_register(row_sum, name=f"total_{half}") for half in range(ROWS)]
        for half, total in enumerate(self._totals):
            with m.If(finished.valid & (finished.half == half)):
                m.d.sync += total.eq(row_sum)
        for stage in range(self._squared - self._multiplication - self._summed):
            later = data_register(row_sum, name=f"row_sum_{stage}")
            m.d.sync += later.eq(row_sum)
            row_sum = later
        split = (norm.scaled_bits + 1) // 2
        wide = Signal(signed(2 * split))
        m.d.comb += wide.eq(row_sum)
        low, high = wide[:split], wide[split:].as_signed()
        products = [
            multiply(m, f"{name}_square", a, b, input_registers=self._registered)
            for name, a, b in (("low", low, low), ("high", high, high), ("cross", low, high))
        ]
        outer = Cat(*(product[: 2 * split] for product in products[:2]))
        cross = products[2] << (split + 1)
        variance = data_register(accumulated)
        bits = norm.variance_bits
        m.d.sync += variance.eq(add_three(bits, accumulated, ~extended(outer, bits), ~extended(cross, bits)))
        return variance

    def _row_memory(self, m: Module, place: Signal, half: Signal, reading: data.View) -> list[Value]:
        """Build the memory of two rows; return a word's elements, C·x less C's factors of two,
        some stages after its address.

        A word is read long after it was written, so what a read in the cycle of a write gives does
        not matter. Without being told, Yosys would build a detour around each block RAM that gives
        the old word.
        """
        element, lanes, i_lanes = shape_of(self._first.input), self.lanes, self.i_lanes
        wide = max(lanes, i_lanes)
        depth = self._first.channels // wide
        m.submodules.row = row = memory.Memory(
            shape=data.ArrayLayout(element, wide), depth=ROWS << ceil_log2(depth), init=[], attrs={"no_rw_check": 1}
        )
        write, read = row.write_port(granularity=i_lanes), row.read_port(domain="comb")
        m.d.comb += read.addr.eq(Cat(reading.word, reading.half))
        if i_lanes >= lanes:
            m.d.comb += [write.addr.eq(Cat(place[: ceil_log2(depth)], half)), write.en.eq(self.i.valid)]
            m.d.comb += write.data.eq(self.i.data)
        else:
            parts = lanes // i_lanes
            part, word = Signal(range(parts)), Signal(range(depth))
            final = part == parts - 1
            with m.If(self.i.valid):
                m.d.sync += [
                    part.eq(Mux(final, 0, part + 1)),
                    word.eq(Mux(final, Mux(word == depth - 1, 0, word + 1), word)),
                ]
            m.d.comb += write.addr.eq(Cat(word, half))
            m.d.comb += write.en.eq(Mux(self.i.valid, 1 << part, 0))
            m.d.comb += [write.data[lane].eq(self.i.data[lane % i_lanes]) for lane in range(wide)]
        latch, words = data_register(read.data), data_register(read.data)
        m.d.sync += [latch.eq(read.data), words.eq(latch)]
        if i_lanes > lanes:
            chosen = data_register(data.ArrayLayout(element, lanes))
            part = m.submodules.tags.taps[READ_STAGES].part
            bits = len(Value.cast(chosen))
            groups = [Value.cast(words).word_select(group, bits) for group in range(wide // lanes)]
            m.d.sync += Value.cast(chosen).eq(choose(groups, part))
            words = chosen
        multiples = []
        for lane in range(lanes):
            terms = [words[lane] << bit for bit in self._terms]
            multiples.extend(ternary_sums(m, f"lane_{lane}_multiple", terms, 1))
        return multiples

    def _affine_memory(self) -> memory.Memory:
        """Return the words of all norms' scales and, in LayerNorm, shifts."""
        shapes = {"scale": self._covering(self._scales)}
        columns = {"scale": self._scales}
        if self._centered:
            shapes["shift"], columns["shift"] = self._covering(self._shifts), self._shifts
        ratio = max(self.i_lanes // self.lanes, 1)
        part_bits, word_bits = ceil_log2(ratio), ceil_log2(self._words // ratio)
        init: list[object] = [None] * (len(self.norms) << (part_bits + word_bits))
        for norm in range(len(self.norms)):
            for word in range(self._words):
                place = (norm << word_bits | word // ratio) << part_bits | word % ratio
                places = range(word * self.lanes, (word + 1) * self.lanes)
                init[place] = [{key: int(column[norm][index]) for key, column in columns.items()} for index in places]
        layout = data.ArrayLayout(data.StructLayout(shapes), self.lanes)
        # A few wide words would leave most of many block RAMs empty.
        style = {"ram_style": "logic"} if len(init) <= LOGIC_WORDS else {}
        while init[-1] is None:
            init.pop()
        zeros = [dict.fromkeys(columns, 0)] * self.lanes
        init = [zeros if word is None else word for word in init]
        return memory.Memory(shape=layout, depth=len(init), init=init, attrs=style)

    def _quotient(
        self, m: Module, name: str, multiple: Value, total: Value | None, mantissa: Value, digit: Value
    ) -> Value:
        """Return d / sqrt(v) doubled, `_normalized` cycles after a row's last word for its first
        word.

        It has one bit more than the result for rounding (shift_right_half_up_by's doubling). No
        element exceeds sqrt(C) standard deviations, the normalized format goes at least so far, and
        the root is wrong by less than a half: so the shifted product never reaches twice the
        format's range, and of its bits only the lowest ones and one above them are needed.
        """
        norm = self._first
        operand, zeros = multiple, self._zeros
        if total is not None:
            operand = data_register(signed(norm.difference_bits), name=f"{name}_difference")
            m.d.sync += operand.eq((multiple << zeros) - total)
            zeros = 0
        operand = extended(operand, self._operand_bits).as_signed()
        product = multiply_wide(m, f"{name}_product", operand, mantissa, self._registered)
        # The least shift is a choice of wires.
        least = len(mantissa) - norm.normalized.fraction - zeros - 1
        aligned = product >> least if least >= 0 else product << -least
        doubled = data_register(signed(norm.normalized.bits + 2), name=f"{name}_doubled")
        m.d.sync += doubled.eq(aligned >> digit)
        return doubled

    def _affine(self, m: Module, name: str, doubled: Value, entry: data.View, norm: Value, result: Value) -> None:
        """Round, multiply by the scale, add the shift, cast to the norm's output format."""
        normalized = round_and_saturate(doubled, 1, self._first.normalized)
        total = multiply(m, f"{name}_scaled", normalized, entry.scale)
        if self._centered:
            shifts = [data_register(entry.shift, name=f"{name}_shift_{stage}") for stage in range(Multiplier.latency)]
            m.d.sync += [after.eq(before) for before, after in pairwise([entry.shift, *shifts])]
            product = total
            total = data_register(signed(max(len(product), len(entry.shift)) + 1), name=f"{name}_total")
            m.d.sync += total.eq(product + shifts[-1])
        output = data_register(result, name=f"{name}_output")
        casts = sorted(set(self._casts))
        with m.Switch(norm):
            for right, bits in casts:
                members = [index for index, cast in enumerate(self._casts) if cast == (right, bits)]
                with m.Case(*members) if len(casts) > 1 else m.Default():
                    m.d.sync += output.eq(round_and_saturate(total, right, QFormat(bits, 0)))
        m.d.comb += result.eq(output)
