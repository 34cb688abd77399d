"""Softmax numerators of one head for all layers of a decoder, several positions a cycle."""

from collections.abc import Sequence

from amaranth.hdl import Array, Assert, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint import Softmax

from ..errors import CircuitError
from ..parts.arithmetic import add_three, choose, shift_right_by, ternary_depth, ternary_sums
from ..parts.dot_product import Delay
from ..parts.exponential import LOGIC_TABLE_BITS
from ..parts.internals import Internals
from ..parts.parameter_checks import check_whole
from ..parts.registers import data_register

ROWS = 2  # that the memory holds
READ_CYCLES = 3  # from a row's last word to its first one behind the memory's output register


class SoftmaxRows(wiring.Component):
    """`fixedpoint.Softmax.numerators` as a circuit, and a row's sum of numerators, for rows of
    several softmaxes that differ in the scores' fraction.

    Equations: `u[j] = round((max(i) - i[j]) / 2**(fraction - table_bits))`,
    `o[j] = round(table[u[j] % 2**table_bits] / 2**(u[j] // 2**table_bits))`, both rounded half up,
    `o_denominator = sum_j o[j]`.

    Half a table's step is added to the maximum once a row, so that rounding the distance is
    cutting it off. The memory is read ahead: a row's first word stands beside the subtraction when
    `start` comes. Stages from there: subtract, choose the layer's bits; look up the table; shift
    and round.

    Latency, in edges: `ready_latency` = max(3, 1 + max(1, ceil(log2 scores))) from a row's last
    word to the earliest `start`, `numerator_latency` = 3 from there to its first numerators,
    `denominator_latency` = 1 + T from its last ones to their sum, T = 0, 1, 2 for up to 2, 6, 18
    scores. Throughput: one word a cycle, in and out, of different rows.
    Resources: a memory of 2·ceil(length / scores) words of scores, a subtractor and a table of
    `2**table_bits` entries for each of the scores, no multiplier. The tables are logic: in block
    RAM, one for two of them, numerators would come a cycle later, and the block RAMs are what
    weights need; 256 entries of 8 bits cost some 100 LUTs.

    Source: base 2 instead of e: Stevens et al., "Softermax: Hardware/Software Co-Design of an
    Efficient Softmax for Transformers", arXiv:2103.09301.

    Attributes:
        softmaxes: One of each layer; the same width of scores, length and table.
        scores: S, how many are taken and given at a time.
        ready_latency, numerator_latency, denominator_latency: The formulas above.
        i: In, {valid, scores, count, last, layer}: a row of 1 to `length` scores; all words but the
            last have S of them, the last one the first `count`. `layer` is the same in all words of
            a row. A row may begin when the one before the previous one has been given.
        start: In, 1 bit. Give the oldest complete row, not before the last word of the one before
            it is given: W cycles after the latter's own `start`, W its words, or later.
        o: Out, {valid, numerators, last}: the row's words without a gap, 0 where there was no
            score.
        o_denominator: Out, {valid, value}: their sum, for one cycle.
    """

    numerator_latency = 3

    def __init__(self, softmaxes: Sequence[Softmax], scores: int):
        if not isinstance(softmaxes, Sequence) or not softmaxes or not all(isinstance(s, Softmax) for s in softmaxes):
            raise CircuitError("softmaxes must be one fixedpoint.Softmax or more")
        check_whole("scores", scores)

        def common(softmax: Softmax) -> tuple[int, ...]:
            exponential = softmax.exponential
            return softmax.score.bits, softmax.length, exponential.table_bits, exponential.output_bits

        if len({common(softmax) for softmax in softmaxes}) > 1:
            raise CircuitError("softmaxes must have the same score bits, length and exponential table")
        self.softmaxes, self.scores = list(softmaxes), scores
        self._score_bits, self._length, self._table_bits, self._output_bits = common(softmaxes[0])
        if self._table_bits > LOGIC_TABLE_BITS:
            raise CircuitError(
                f"the exponential's table must be one of at most {LOGIC_TABLE_BITS} bits, not {self._table_bits}"
            )
        self._words = -(-self._length // scores)
        self._shifts = sorted({softmax.exponential.shift for softmax in softmaxes})
        self._levels = max(1, ceil_log2(scores))
        self.ready_latency = max(READ_CYCLES, self._levels + 1)
        self.denominator_latency = ternary_depth(scores, 2) + 1
        word = data.ArrayLayout(signed(self._score_bits), scores)
        numerators = data.ArrayLayout(unsigned(self._output_bits), scores)
        taken = {"valid": 1, "scores": word, "count": range(scores + 1), "last": 1, "layer": range(len(softmaxes))}
        super().__init__(
            {
                "i": In(data.StructLayout(taken)),
                "start": In(1),
                "o": Out(data.StructLayout({"valid": 1, "numerators": numerators, "last": 1})),
                "o_denominator": Out(data.StructLayout({"valid": 1, "value": unsigned(softmaxes[0].denominator_bits)})),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        scores, words, name = self.scores, self._words, type(self).__name__
        index_bits = ceil_log2(words)

        # Take words, into the half of the memory that is this row's.
        shift_of_layer = Array(self._shifts.index(softmax.exponential.shift) for softmax in self.softmaxes)
        shift_shape = range(len(self._shifts))
        place, half = Signal(range(words)), Signal()
        about = [
            data_register(
                data.StructLayout({"final": range(words), "count": range(scores + 1), "shift": shift_shape}),
                name=f"row_{row}",
            )
            for row in range(ROWS)
        ]
        # Rows that are to be read, and those whose last word has not been used.
        complete, held = Signal(ROWS), Signal(ROWS)
        completed, read, used = Signal(ROWS), Signal(ROWS), Signal(ROWS)
        m.d.comb += completed.eq(Mux(self.i.valid & self.i.last, 1 << half, 0))
        m.d.sync += [
            complete.eq((complete | completed) & ~read),
            held.eq((held | completed) & ~used),
            Assert(~self.i.valid | ~held.bit_select(half, 1), f"{name}: a row began before there was room for it"),
            Assert(~self.i.valid | self.i.last | (place != words - 1), f"{name}: a row is longer than its memory"),
        ]
        with m.If(self.i.valid):
            m.d.sync += [place.eq(Mux(self.i.last, 0, place + 1)), half.eq(half ^ self.i.last)]
        for row in range(ROWS):
            with m.If(completed[row]):
                m.d.sync += [about[row].final.eq(place), about[row].count.eq(self.i.count)]
                m.d.sync += about[row].shift.eq(shift_of_layer[self.i.layer])
        maxima = self._maxima(m, place == 0, half, shift_of_layer[self.i.layer])

        # Read ahead: up to three words wait for `start`, in the address, the memory and a register.
        m.submodules.row = row_memory = memory.Memory(
            shape=self.i.scores.shape(), depth=ROWS << index_bits, init=[], attrs={"no_rw_check": 1}
        )
        write, port = row_memory.write_port(), row_memory.read_port(domain="comb")
        tag = data.StructLayout({"valid": 1, "last": 1, "half": 1})
        address, next_half = Signal(range(words)), Signal()
        issued, latched, waiting = Signal(tag), Signal(tag), Signal(tag)
        latch, word = data_register(port.data), data_register(port.data)
        running, consumed, refill, advance = (
            Signal(name=role) for role in ("running", "consumed", "refill", "advance")
        )
        final = Mux(next_half, about[1].final, about[0].final)
        m.d.comb += [
            write.en.eq(self.i.valid),
            write.addr.eq(Cat(place, half)) if index_bits else write.addr.eq(half),
            Value.cast(write.data).eq(Value.cast(self.i.scores)),
            port.addr.eq(Cat(address, next_half)) if index_bits else port.addr.eq(next_half),
            consumed.eq(waiting.valid & (self.start | running)),
            refill.eq(~waiting.valid | consumed),
            advance.eq(~latched.valid | refill),
            issued.valid.eq(Mux(next_half, complete[1], complete[0])),
            issued.last.eq(address == final),
            issued.half.eq(next_half),
            read.eq(Mux(advance & issued.valid & issued.last, 1 << next_half, 0)),
            used.eq(Mux(consumed & waiting.last, 1 << waiting.half, 0)),
        ]
        with m.If(advance):
            m.d.sync += [latched.eq(issued), latch.eq(port.data)]
            with m.If(issued.valid):
                m.d.sync += [address.eq(Mux(issued.last, 0, address + 1)), next_half.eq(next_half ^ issued.last)]
        belongs = data_register(about[0], name="belongs")
        with m.If(refill):
            m.d.sync += [waiting.eq(latched), word.eq(latch), belongs.eq(Mux(latched.half, about[1], about[0]))]
        with m.If(consumed):
            m.d.sync += running.eq(~waiting.last)
        m.d.sync += Assert(~self.start | (waiting.valid & ~running), f"{name}: started without a complete row")

        # Distances below the maximum, numerators, their sum.
        m.submodules.tags = tags = Delay(tag, self.numerator_latency)
        m.submodules.sums = sums = Delay(data.StructLayout({"valid": 1, "last": 1}), self.denominator_latency)
        m.d.comb += [
            tags.en.eq(1),
            tags.i.eq(waiting),
            tags.i.valid.eq(consumed),
            self.o.valid.eq(tags.o.valid),
            self.o.last.eq(tags.o.valid & tags.o.last),
            sums.en.eq(1),
            sums.i.valid.eq(self.o.valid),
            sums.i.last.eq(self.o.last),
            self.o_denominator.valid.eq(sums.o.last),
        ]
        maximum = Mux(waiting.half, maxima[1], maxima[0])
        for lane in range(scores):
            # Not `<= lane`: a 0 there has no bits, and Yosys writes that operand as an open wire.
            missing = belongs.count < lane + 1
            self._numerator(m, lane, maximum - word[lane], belongs.shift, waiting.last & missing)
        self._denominator(m, sums)
        self.internals = Internals(place=place, complete=complete, held=held, running=running, waiting=waiting)
        return m

    def _maxima(self, m: Module, first: Value, half: Signal, shift: Value) -> list[Signal]:
        """Return the maximum of each row in the memory, with half a step of its layer's table added
        to it; it is complete `_levels` + 1 cycles after the row's last word.
        """
        layout = data.StructLayout({"valid": 1, "first": 1, "half": 1, "shift": range(len(self._shifts))})
        m.submodules.arrivals = arrivals = Delay(layout, self._levels)
        m.d.comb += [
            arrivals.en.eq(1),
            arrivals.i.valid.eq(self.i.valid),
            arrivals.i.first.eq(first),
            arrivals.i.half.eq(half),
            arrivals.i.shift.eq(shift),
        ]
        halves = Array(1 << shift >> 1 if shift > 0 else 0 for shift in self._shifts)
        addend = halves[arrivals.taps[-2].shift]
        # A distance has as many bits as a score, but may be raised by half a step.
        bits = max(self._score_bits, max(self._shifts) + 1) + 1
        # The first scores are the valid ones: where one is, so is every one before it.
        level = [(self.i.scores[lane], self.i.count >= lane + 1) for lane in range(self.scores)]
        for number in range(self._levels):
            add = addend if number == self._levels - 1 else Const(0, 1)
            larger = []
            for left in range(0, len(level), 2):
                (one, valid), *others = level[left : left + 2]
                register = data_register(
                    signed(bits if number == self._levels - 1 else self._score_bits), name=f"larger_{number}_{left}"
                )
                kept = data_register(name=f"valid_{number}_{left}")
                chosen = one + add
                for other, other_valid in others:
                    chosen = Mux(other_valid & (other > one), other + add, chosen)
                m.d.sync += [register.eq(chosen), kept.eq(valid)]
                larger.append((register, kept))
            level = larger
        ((candidate, _),) = level
        maxima = [data_register(candidate, name=f"maximum_{row}") for row in range(ROWS)]
        arrived = arrivals.o
        # Each row is compared by itself: choosing one before the comparison would take too long.
        for row, maximum in enumerate(maxima):
            with m.If(arrived.valid & (arrived.half == row) & (arrived.first | (candidate > maximum))):
                m.d.sync += maximum.eq(candidate)
        return maxima

    def _numerator(self, m: Module, lane: int, distance: Value, shift: Value, none: Value) -> None:
        """Build the three stages of one of the scores."""
        table_bits, output_bits = self._table_bits, self._output_bits
        values = self.softmaxes[0].exponential.table.tolist()
        m.submodules[f"table_{lane}"] = table = memory.Memory(
            shape=unsigned(output_bits), depth=len(values), init=values, attrs={"ram_style": "logic"}
        )
        port = table.read_port(domain="comb")
        distance = distance.as_unsigned()  # none is negative
        choices = [distance >> shift if shift >= 0 else distance << -shift for shift in self._shifts]
        steps = data_register(unsigned(len(distance) - min(0, self._shifts[0])), name=f"steps_{lane}")
        absent = data_register(name=f"absent_{lane}")
        entry = data_register(unsigned(output_bits), name=f"entry_{lane}")
        whole = data_register(range(output_bits + 1), name=f"whole_{lane}")
        zero = data_register(name=f"zero_{lane}")
        numerator = data_register(unsigned(output_bits), name=f"numerator_{lane}")
        m.d.comb += [port.addr.eq(steps), self.o.numerators[lane].eq(numerator)]
        m.d.sync += [
            steps.eq(choose(choices, shift)),
            absent.eq(none),
            entry.eq(port.data),
            whole.eq(steps >> table_bits),
            # From output_bits + 1 whole steps on the numerator is 0.
            zero.eq(absent | ((steps >> table_bits) > output_bits)),
            # shift_right_half_up_by
            numerator.eq(Mux(zero, 0, (shift_right_by(entry << 1, whole, output_bits + 1) + 1) >> 1)),
        ]

    def _denominator(self, m: Module, sums: Delay) -> None:
        """Add up numerators."""
        total = data_register(self.o_denominator.value)
        first = Signal(init=1)
        arriving = sums.taps[self.denominator_latency - 1]
        partial = ternary_sums(m, "sum", [self.o.numerators[lane] for lane in range(self.scores)], 2)
        base = Mux(first, 0, total)
        with m.If(arriving.valid):
            m.d.sync += first.eq(arriving.last)
            m.d.sync += total.eq(add_three(len(total), base, *partial) if len(partial) == 2 else base + partial[0])
        m.d.comb += self.o_denominator.value.eq(total)
