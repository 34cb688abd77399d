"""Late normalization of attention: the engine's lane sums become contexts, several a cycle."""

from collections.abc import Sequence

from amaranth.hdl import Array, Assert, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint import QFormat
from fixedpoint.operators.attention import CausalAttention

from ..errors import CircuitError
from ..parts.arithmetic import (
    add_three,
    multiply_wide,
    round_and_saturate,
    shift_right_by,
    ternary_depth,
    ternary_sums,
)
from ..parts.copies import Copies
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import OPERAND_BITS
from ..parts.parameter_checks import check_whole
from ..parts.reciprocal_lookup import ReciprocalLookup
from ..parts.registers import data_register

ROWS = 2  # that are kept
COPY_READERS = 8  # sums that one copy of a register shifts


class DivideRows(wiring.Component):
    """`fixedpoint.CausalAttention.normalize` as a circuit, for the attentions of all layers, which
    differ in the fractions of values and contexts.

    Equation: `o[c] = requantize(sum_s i[s, c] * mantissa, exponent + f)` with mantissa and exponent
    the reciprocal of the denominator of channel c's head, f the value's fraction less the
    context's.

    A row is K·d channels of K heads, which arrive at once: S partial sums of each channel, and K
    denominators, before or after them. The partial sums are added up before they are stored. The
    denominators pass one after the other through one `ReciprocalLookup`.

    Latency, of the first contexts: the later one of `latency` edges from the sums and
    `denominator_latency` from the denominators. `latency` = A + 1 (shifting register) + 2 (times
    mantissa) + 1 (both parts of a wide sum) + 1 (shift) + 1 (round), A = 1, 2 (add up) for up to 3,
    9 slots. `denominator_latency` = 1 (register) + 3 (reciprocal) + 1 (memory) + `latency` - A, and
    as many more as K exceeds the words W = K·d / lanes.
    Throughput: a word of `lanes` contexts a cycle, W words a row without a gap. Resources: hard
    multipliers: one a lane (two for sums of more than 26 bits). K·d·(S − 1) adders; two rows of
    K·d sums in flip-flops, one of which shifts; the reciprocal's table.

    Attributes:
        attentions: One of each layer, alike in sizes, widths and reciprocal.
        slots: S, partial sums of each channel.
        lanes: Contexts a word; divides d, or is a multiple of d that divides K·d.
        input_registers: The multiplication takes a cycle more, for a larger circuit around this one
            whose operands come from further away.
        sequences: How many a row may belong to.
        latency, denominator_latency: The formulas above, for a unit without an earlier row.
        i: In, {valid, sums, layer, sequence}: a row's S·K·d signed partial sums, slot by slot,
            `weighted_sum_bits` bits each. Sums and denominators of a third row must not come before
            the first's contexts have left the register that shifts.
        i_denominators: In, {valid, values}: a row's K denominators, unsigned and positive.
        o: Out, {valid, data, last, sequence}: contexts, channel 0 first.
        output_stages: Cycles from a row's last word leaving its register to its contexts; then a
            third row may come.
    """

    def __init__(
        self,
        attentions: Sequence[CausalAttention],
        slots: int,
        lanes: int,
        input_registers: bool = False,
        *,
        sequences: int = 1,
    ):
        attentions = list(attentions)
        if not attentions or not all(isinstance(one, CausalAttention) for one in attentions):
            raise CircuitError("attentions must be one fixedpoint.CausalAttention or more")

        def common(one: CausalAttention) -> tuple[object, ...]:
            sizes = one.head_dim, one.num_kv_heads, one.context_length, one.value.bits, one.output.bits
            return *sizes, one.reciprocal, one.softmax.exponential.output_bits

        if len({common(one) for one in attentions}) > 1:
            raise CircuitError("attentions must have the same sizes, widths and reciprocal")
        self.attentions, self.slots, self.lanes = attentions, slots, lanes
        self._first = first = attentions[0]
        check_whole("slots", slots)
        check_whole("lanes", lanes)
        head_dim, heads = first.head_dim, first.num_kv_heads
        if head_dim % lanes and (lanes % head_dim or heads * head_dim % lanes):
            raise CircuitError(
                f"lanes must divide the heads' {head_dim} channels or be a multiple of them that divides "
                f"{heads * head_dim}, not {lanes}"
            )
        if first.reciprocal.mantissa_bits >= OPERAND_BITS:
            raise CircuitError(
                f"the reciprocal must have at most {OPERAND_BITS - 1} mantissa bits, for a hard multiplier with a sign, "
                f"not {first.reciprocal.mantissa_bits}"
            )
        self._words = heads * head_dim // lanes
        self._word_heads = max(1, lanes // head_dim)  # heads in a word
        self._head_words = max(1, head_dim // lanes)  # words in a head
        self._sum_bits = first.weighted_sum_bits
        self._registered, self._multiplication = input_registers, 2 + input_registers
        self._groups = heads // self._word_heads
        depth = ternary_depth(slots, 3)
        # As few summands of the last addition as take no stage more.
        self._kept = min(kept for kept in (1, 2, 3) if ternary_depth(slots, kept) == depth)
        self._stored = depth + 1
        self._product_stages = self._multiplication + (self._sum_bits > OPERAND_BITS)
        self.output_stages = 1 + self._product_stages + 2
        self.latency = self._stored + self.output_stages
        # from a denominator in the first register to all reciprocals in time for their words
        self._reciprocals_ready = ReciprocalLookup.latency + 1 + max(0, heads - self._words)
        self.denominator_latency = 1 + self._reciprocals_ready + self.output_stages
        owner = range(sequences)
        sums = data.ArrayLayout(signed(self._sum_bits), slots * heads * head_dim)
        values = data.ArrayLayout(unsigned(first.softmax.denominator_bits), heads)
        contexts = data.ArrayLayout(signed(first.output.bits), lanes)
        super().__init__(
            {
                "i": In(
                    data.StructLayout({"valid": 1, "sums": sums, "layer": range(len(attentions)), "sequence": owner})
                ),
                "i_denominators": In(data.StructLayout({"valid": 1, "values": values})),
                "o": Out(data.StructLayout({"valid": 1, "data": contexts, "last": 1, "sequence": owner})),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        name = type(self).__name__

        # A row's sums wait, then shift word by word to the first multiplication; `active` when its
        # reciprocals are there too, and a word goes on.
        summed, divided, loaded, active, half = Signal(), Signal(ROWS), Signal(), Signal(), Signal()
        part, group = Signal(range(self._head_words)), Signal(range(self._groups))
        last_part, last_word = part == self._head_words - 1, Signal()
        next_loaded, next_active, next_half, next_last = (
            Signal(name=f"next_{n}") for n in ("loaded", "active", "half", "last")
        )
        next_part, next_group = Signal.like(part), Signal.like(group)
        final = active & last_word
        free = ~loaded | final
        arrived, sums, layer, sequence = self._add_up(m)
        rows_divided, reciprocals = self._reciprocals(m, Cat(next_group, next_half))
        now_divided = (divided & ~(final << half)) | rows_divided
        m.d.comb += [
            last_word.eq(last_part & (group == self._groups - 1)),
            next_loaded.eq(~free | summed),
            next_half.eq(half ^ final),
            next_active.eq(next_loaded & Mux(next_half, now_divided[1], now_divided[0])),
            next_part.eq(Mux(active, Mux(last_part, 0, part + 1), part)),
            next_group.eq(Mux(active & last_part, Mux(last_word, 0, group + 1), group)),
            next_last.eq((next_part == self._head_words - 1) & (next_group == self._groups - 1)),
        ]
        m.d.sync += [
            loaded.eq(next_loaded),
            active.eq(next_active),
            half.eq(next_half),
            part.eq(next_part),
            group.eq(next_group),
            summed.eq(arrived | (summed & ~free)),
            divided.eq(now_divided),
            Assert(~arrived | ~summed | free, f"{name}: sums of a third row"),
            Assert(~(divided & rows_divided).any(), f"{name}: denominators of a third row"),
        ]
        words = self._words_of(m, sums, ~next_loaded | next_active, ~next_loaded | next_last)
        owner = data_register(sequence)
        with m.If(free):
            m.d.sync += owner.eq(sequence)
        m.submodules.tags = tags = Delay(
            data.StructLayout({"valid": 1, "last": 1, "sequence": sequence.shape()}), self.output_stages - 1
        )
        m.d.comb += [
            tags.en.eq(1),
            tags.i.valid.eq(active),
            tags.i.last.eq(final),
            tags.i.sequence.eq(owner),
            self.o.sequence.eq(tags.o.sequence),
            self.o.valid.eq(tags.o.valid),
            self.o.last.eq(tags.o.last),
        ]

        # A word of sums, its heads' reciprocals, and what its layer adds to their digits; no
        # denominator is smaller than the full-scale numerator of the row's maximum.
        first, lanes = self._first, self.lanes
        fractions = [one.value.fraction - one.output.fraction for one in self.attentions]
        least_digit = first.softmax.exponential.output_bits - 1
        least = least_digit + first.reciprocal.mantissa_bits + min(fractions)
        largest = len(self.i_denominators.values[0]) - 1 - least_digit + max(fractions) - min(fractions)
        amount_shape = unsigned(largest.bit_length())
        further = Array(Const(fraction - min(fractions) - least_digit, signed(8)) for fraction in fractions)
        extra = data_register(signed(8))
        with m.If(free):
            m.d.sync += extra.eq(further[layer])
        amounts = []
        mantissas = []
        for number, reciprocal in enumerate(reciprocals):
            mantissa = data_register(reciprocal.mantissa, name=f"mantissa_{number}")
            digit = data_register(reciprocal.digit, name=f"digit_{number}")
            m.d.sync += [mantissa.eq(reciprocal.mantissa), digit.eq(reciprocal.digit)]
            amount = digit + extra
            for stage in range(self._product_stages):
                later = data_register(amount_shape, name=f"amount_{number}_{stage}")
                m.d.sync += later.eq(amount)
                amount = later
            mantissas.append(mantissa)
            amounts.append(amount)
        for lane in range(lanes):
            head = lane * len(reciprocals) // lanes
            product = multiply_wide(m, f"lane_{lane}", words[lane], mantissas[head], self._registered)
            aligned = product >> (least - 1) if least else product << 1
            doubled = data_register(signed(len(aligned)), name=f"doubled_{lane}")
            output = data_register(self.o.data[lane], name=f"output_{lane}")
            m.d.sync += [
                doubled.eq(shift_right_by(aligned, amounts[head], len(doubled))),
                output.eq(round_and_saturate(doubled, 1, QFormat(first.output.bits, 0))),
            ]
            m.d.comb += self.o.data[lane].eq(output)
        self.internals = Internals(
            summed=summed, divided=divided, loaded=loaded, active=active, half=half, part=part, group=group, tags=tags
        )
        return m

    def _words_of(self, m: Module, sums: data.View, enable: Value, load: Value) -> data.View:
        """Return a register that shifts a row down by a word, or loads one; `enable` and `load`
        come a cycle early, and are copied, since very many bits wait for them.
        """
        m.submodules.copies = copies = Copies(2, -(-len(sums) // COPY_READERS))
        m.d.comb += copies.i.eq(Cat(enable, load))
        shifted = data_register(sums)
        for channel in range(len(sums)):
            following, control = channel + self.lanes, copies.o[channel // COPY_READERS]
            later = Mux(control[1], sums[channel], shifted[following]) if following < len(sums) else sums[channel]
            with m.If(control[0]):
                m.d.sync += shifted[channel].eq(later)
        return shifted

    def _add_up(self, m: Module) -> tuple[Value, data.View, Signal, Signal]:
        """Add a row's partial sums up; return whether a row is stored in this cycle, its sums, its
        layer and its sequence.
        """
        channels = len(self.i.sums) // self.slots
        layout = data.StructLayout({"valid": 1, "layer": self.i.layer.shape(), "sequence": self.i.sequence.shape()})
        m.submodules.arrivals = arrivals = Delay(layout, self._stored - 1)
        m.d.comb += [arrivals.en.eq(1), arrivals.i.valid.eq(self.i.valid), arrivals.i.layer.eq(self.i.layer)]
        m.d.comb += arrivals.i.sequence.eq(self.i.sequence)
        stored = data_register(data.ArrayLayout(signed(self._sum_bits), channels))
        layer, sequence = data_register(self.i.layer, name="layer"), data_register(self.i.sequence, name="sequence")
        totals = []
        for channel in range(channels):
            sums = [self.i.sums[slot * channels + channel] for slot in range(self.slots)]
            sums = ternary_sums(m, f"sum_{channel}", sums, self._kept)
            totals.append(add_three(self._sum_bits, *sums) if len(sums) == 3 else sum(sums[1:], start=sums[0]))
        with m.If(arrivals.o.valid):
            m.d.sync += [layer.eq(arrivals.o.layer), sequence.eq(arrivals.o.sequence)]
            m.d.sync += [stored[channel].eq(total) for channel, total in enumerate(totals)]
        return arrivals.o.valid, stored, layer, sequence

    def _reciprocals(self, m: Module, address: Value) -> tuple[Value, list[data.View]]:
        """Pass a row's denominators through the table one by one; return which row's reciprocals
        are there in time from this cycle on, and those of the word's heads that is addressed.
        """
        heads, given = self._first.num_kv_heads, self.i_denominators
        m.submodules.lookup = lookup = ReciprocalLookup(self._first.reciprocal, len(given.values[0]))
        current, waiting = data_register(given.values), data_register(given.values)
        busy, waits, half = Signal(), Signal(), Signal()
        member, group = Signal(range(self._word_heads)), Signal(range(self._groups))
        final_member = member == self._word_heads - 1
        final = final_member & (group == self._groups - 1)
        free = ~busy | final
        tag = data.StructLayout({"valid": 1, "first": 1, "member": member.shape(), "group": group.shape(), "half": 1})
        m.submodules.heads = passing = Delay(tag, max(lookup.latency, self._reciprocals_ready))
        m.d.comb += [
            lookup.valid.eq(busy),
            lookup.i.eq(current[0]),
            passing.en.eq(1),
            passing.i.valid.eq(busy),
            passing.i.first.eq(busy & (member == 0) & (group == 0)),
            passing.i.member.eq(member),
            passing.i.group.eq(group),
            passing.i.half.eq(half),
        ]
        with m.If(free):
            m.d.sync += [
                busy.eq(waits | given.valid),
                waits.eq(0),
                current.eq(Mux(waits, Value.cast(waiting), Value.cast(given.values))),
            ]
        with m.Else():
            m.d.sync += [
                waits.eq(waits | given.valid),
                *(current[head].eq(current[head + 1]) for head in range(heads - 1)),
            ]
        with m.If(given.valid):
            m.d.sync += [waiting.eq(given.values), Assert(~waits, "DivideRows: denominators of a third row")]
        with m.If(busy):
            m.d.sync += [member.eq(Mux(final_member, 0, member + 1)), half.eq(half ^ final)]
            with m.If(final_member):
                m.d.sync += group.eq(Mux(final, 0, group + 1))

        found = passing.taps[lookup.latency]
        layout = data.StructLayout({"mantissa": lookup.mantissa.shape(), "digit": lookup.digit.shape()})
        read = []
        for number in range(self._word_heads):
            m.submodules[f"reciprocals_{number}"] = rows = memory.Memory(
                shape=layout, depth=ROWS << ceil_log2(self._groups), init=[]
            )
            write, port = rows.write_port(), rows.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(found.valid & (found.member == number)),
                write.addr.eq(Cat(found.group, found.half)),
                write.data.mantissa.eq(lookup.mantissa),
                write.data.digit.eq(lookup.digit),
                port.addr.eq(address),
            ]
            read.append(port.data)
        ready = passing.taps[self._reciprocals_ready]
        return ready.first << ready.half, read
