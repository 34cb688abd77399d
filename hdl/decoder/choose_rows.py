# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""The choice of the next token while logits arrive, R at a time."""

from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.registers import data_register
from .plan import Plan
from .row_ports import rows_of


class ChooseRows(wiring.Component):
    """The token of the largest logit, or score, of those that come R at a time.

    Equation: the lowest index of the maximum. Latency: `ceil(log2 R) + 1` cycles from the last
    logits.

    Attributes:
        latency: See above.
        i: In, R logits with `valid`, in order.
        last: In, 1 bit: with the last of them.
        o: Out, the token with `valid`, for one cycle.
    """

    def __init__(self, plan: Plan, bits: int):
        self.rows, self.vocabulary = plan.rows, plan.model.vocab_size
        self.bits = bits
        self.latency = ceil_log2(self.rows) + 1
        token = unsigned(ceil_log2(max(self.vocabulary, 2)))
        super().__init__(
            {
                "i": In(rows_of(signed(bits), self.rows)),
                "last": In(1),
                "o": Out(data.StructLayout({"valid": 1, "token": token})),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        sets = -(-self.vocabulary // self.rows)
        number = Signal(range(sets))
        with m.If(self.i.valid):
            m.d.sync += number.eq(Mux(self.last, 0, number + 1))
        candidate = data.StructLayout({"real": 1, "value": signed(self.bits), "row": range(max(self.rows, 2))})
        level: list[data.View] = []
        left_over = self.vocabulary - (sets - 1) * self.rows  # rows of the last set
        for row in range(self.rows):
            one = Signal(candidate, name=f"logit_{row}")
            m.d.comb += [
                one.real.eq(1 if row < left_over else number != sets - 1),
                one.value.eq(self.i.values[row]),
                one.row.eq(row),
            ]
            level.append(one)
        depth = 0
        while len(level) > 1:
            winners = []
            for left in range(0, len(level), 2):
                pair = level[left : left + 2]
                winner = data_register(candidate, name=f"winner_{depth}_{left}")
                if len(pair) == 1:
                    m.d.sync += winner.eq(pair[0])
                else:
                    higher = pair[1].real & (~pair[0].real | (pair[1].value > pair[0].value))
                    m.d.sync += winner.eq(Mux(higher, pair[1], pair[0]))
                winners.append(winner)
            level, depth = winners, depth + 1
        m.submodules.tags = tags = Delay(
            data.StructLayout({"valid": 1, "first": 1, "last": 1, "number": number.shape()}), depth
        )
        m.d.comb += [
            tags.en.eq(1),
            tags.i.valid.eq(self.i.valid),
            tags.i.first.eq(number == 0),
            tags.i.last.eq(self.last),
            tags.i.number.eq(number),
        ]
        best = data_register(signed(self.bits))
        token = data_register(self.o.token)
        with m.If(tags.o.valid & (tags.o.first | (level[0].value > best))):
            m.d.sync += [best.eq(level[0].value), token.eq(tags.o.number * self.rows + level[0].row)]
        m.d.sync += self.o.valid.eq(tags.o.valid & tags.o.last)
        m.d.comb += self.o.token.eq(token)
        self.internals = Internals(tags=tags)
        return m
