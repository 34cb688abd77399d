# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""Rotary positions, R channels at a time."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint.operators.rotation import FACTOR, Rotation

from ..parts.arithmetic import multiply
from ..parts.dot_product import Delay
from ..parts.multiplier import Multiplier
from ..parts.registers import data_register
from ..parts.requantize import ShiftRoundSaturate
from .layout import Layout
from .row_ports import rows_of, table_stages, table_word


class RotateRows(wiring.Component):
    """Queries and keys turned to their position, R channels of a head, or of several, a cycle.

    Equation: `fixedpoint.Rotation`'s. Latency: 8 cycles: products, sum, shift and saturation.
    Resources: 2·R hard multipliers; a memory of T · d / R words of R / 2 pairs of factors.

    Attributes:
        latency: 8.
        table_stages: Cycles that the table of factors takes.
        soon: In, 1 bit: rows come in so many cycles.
        position: In: the token's; stable while a query and a key come.
        i: In, R values with `valid`, in the order of their rows.
        key: In, 1 bit: they are a key's.
        layer: In: whose formats.
        o: Out, R activations with `valid`.
    """

    latency = Multiplier.latency + 1 + ShiftRoundSaturate.latency

    def __init__(self, plan: Layout):
        self.rows, self.plan = plan.rows, plan
        rotations = [attention.rotations for attention in plan.attentions]
        self._pairs: list[tuple[Rotation, Rotation]] = [pair for pair in rotations if pair is not None]
        bits = max(rotation.input.bits for pair in self._pairs for rotation in pair)
        self._bits = max(rotation.output.bits for pair in self._pairs for rotation in pair)
        shifts = [rotation.shift for pair in self._pairs for rotation in pair]
        self._sum_bits = max(rotation.sum_bits for pair in self._pairs for rotation in pair)
        self._casts = [
            ShiftRoundSaturate(self._sum_bits, min(shifts), max(shifts), [self._bits]) for _ in range(self.rows)
        ]
        words = max(1, plan.head_dim // plan.rows)
        self.table_stages = table_stages(plan.context_length * words)
        super().__init__(
            {
                "soon": In(1),
                "position": In(range(plan.context_length)),
                "i": In(rows_of(signed(bits), self.rows)),
                "key": In(1),
                "layer": In(range(plan.layers)),
                "o": Out(rows_of(signed(self._bits), self.rows)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        rows, head = self.rows, self.plan.head_dim
        table = self._pairs[0][0].table
        held = min(rows, head) // 2  # pairs of factors in a word
        words = head // 2 // held  # of a position
        factor = data.StructLayout({"cosine": signed(FACTOR.bits), "sine": signed(FACTOR.bits)})
        init = [
            [
                {"cosine": int(table.cosine[position, pair]), "sine": int(table.sine[position, pair])}
                for pair in range(word * held, (word + 1) * held)
            ]
            for position in range(self.plan.context_length)
            for word in range(words)
        ]
        word = Signal(range(words))
        with m.If(self.soon):
            m.d.sync += word.eq(0 if words == 1 else Mux(word == words - 1, 0, word + 1))
        address = self.position * words + word
        factors = table_word(m, "factors", data.ArrayLayout(factor, held), init, address)
        # Shifts differ by layer, and for queries and keys.
        lowest = self._casts[0].lowest
        amounts = [rotation.shift - lowest for pair in self._pairs for rotation in pair]
        m.submodules.amount = amount = Delay(self._casts[0].amount.shape(), Multiplier.latency + 1)
        m.d.comb += [amount.en.eq(1), amount.i.eq(Array(amounts)[Cat(self.key, self.layer)])]
        m.submodules.valid = valid = Delay(unsigned(1), self.latency)
        m.d.comb += [valid.en.eq(1), valid.i.eq(self.i.valid), self.o.valid.eq(valid.o)]
        for row, cast in enumerate(self._casts):
            m.submodules[f"cast_{row}"] = cast
            pair = row // 2
            even, odd = self.i.values[2 * pair], self.i.values[2 * pair + 1]
            with_cosine, with_sine = (odd, even) if row % 2 else (even, odd)
            place = factors[pair % held]
            first = multiply(m, f"cosine_{row}", with_cosine, place.cosine)
            second = multiply(m, f"sine_{row}", with_sine, place.sine)
            total = data_register(signed(self._sum_bits), name=f"sum_{row}")
            m.d.sync += total.eq(first + second if row % 2 else first - second)
            m.d.comb += [
                cast.en.eq(1),
                cast.i.eq(total),
                cast.amount.eq(amount.o),
                cast.width.eq(0),
                self.o.values[row].eq(cast.o),
            ]
        return m
