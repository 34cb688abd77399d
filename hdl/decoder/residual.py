# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""The residual stream: a token's embedding, and what blocks add to it, R channels a cycle."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint.operators.embedding import EmbeddingTable

from ..parts.arithmetic import saturate
from ..parts.dot_product import Delay
from ..parts.registers import data_register
from ..parts.requantize import ShiftRoundSaturate
from .plan import Plan
from .row_ports import rows_of, table_stages, table_word


class EmbeddingRows(wiring.Component):
    """A token's row of the embedding, plus its position's where positions are learned.

    Equation: `fixedpoint.Embedding`'s. Latency: 9 cycles from `start` to the first R channels, 11
    with tables of more than 1,024 words; the others in the cycles after. Resources: memories of V
    and T words a token of R bytes.

    Attributes:
        latency: See above.
        start: In, 1 bit.
        token, position: In; stable from `start` to the last word.
        o: Out, R channels with `valid`, C / R times.
    """

    def __init__(self, plan: Plan):
        embedding = plan.model.embedding
        self.rows, self.words, self.output = plan.rows, plan.channels // plan.rows, embedding.output
        self._tables = embedding.tables
        lengths = (len(table.weight) * self.words for table in self._tables.values())
        self._table_stages = max(table_stages(length) for length in lengths)
        self.latency = 2 + self._table_stages + ShiftRoundSaturate.latency + 1
        super().__init__(
            {
                "start": In(1),
                "token": In(range(len(embedding.token.weight))),
                "position": In(range(plan.context_length)),
                "o": Out(rows_of(signed(embedding.output.bits), plan.rows)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        running, word = Signal(), Signal(range(self.words))
        with m.If(self.start):
            m.d.sync += [running.eq(1), word.eq(0)]
        with m.Elif(running):
            m.d.sync += word.eq(word + 1)
            with m.If(word == self.words - 1):
                m.d.sync += running.eq(0)
        m.submodules.valid = valid = Delay(unsigned(1), self.latency - 1)
        m.d.comb += [valid.en.eq(1), valid.i.eq(running), self.o.valid.eq(valid.o)]
        parts = [
            self._table(m, name, table, self.token if name == "token" else self.position, word)
            for name, table in self._tables.items()
        ]
        for row in range(self.rows):
            total = sum((part[row] for part in parts[1:]), start=parts[0][row])
            channel = data_register(signed(self.output.bits), name=f"channel_{row}")
            m.d.sync += channel.eq(saturate(total, self.output))
            m.d.comb += self.o.values[row].eq(channel)
        return m

    def _table(self, m: Module, name: str, table: EmbeddingTable, index: Signal, word: Signal) -> list[Signal]:
        """Return R entries of a table's row in units of the output, not saturated."""
        length = len(table.weight)
        elements = table.weight.reshape(length * self.words, self.rows).tolist()
        base, address = data_register(range(len(elements))), data_register(range(len(elements)))
        m.d.sync += [base.eq(index * self.words), address.eq(base + word)]
        layout = data.ArrayLayout(signed(table.weight_bits), self.rows)
        word = table_word(m, name, layout, elements, address)
        m.submodules[f"{name}_wait"] = wait = Delay(layout, self._table_stages - table_stages(len(elements)))
        m.d.comb += [wait.en.eq(1), wait.i.eq(word)]
        entries = wait.o
        shifts = [int(fraction) - self.output.fraction for fraction in table.weight_fraction]
        lowest, highest = min(shifts), max(shifts)
        # wide enough that nothing saturates before the sum
        wide = table.weight_bits + max(0, -lowest) + 1
        amounts = [shift - lowest for shift in shifts]
        amount = table_word(m, f"{name}_shift", unsigned(max(1, (highest - lowest).bit_length())), amounts, index)
        results = []
        for row in range(self.rows):
            cast = ShiftRoundSaturate(table.weight_bits, lowest, highest, [wide])
            m.submodules[f"{name}_cast_{row}"] = cast
            m.d.comb += [cast.en.eq(1), cast.i.eq(entries[row]), cast.amount.eq(amount), cast.width.eq(0)]
            results.append(cast.o)
        return results


class ResidualRows(wiring.Component):
    """The residual stream of a sequence's token: set by the embedding, added to by blocks.

    Equation: `fixedpoint.ResidualAdd`'s, `x += i`, saturated. Rows come in order, C / R words.

    Latency: 1 cycle. Resources: a memory of C / R words a sequence.

    Attributes:
        latency: 1.
        soon: In, 1 bit: words to be added come in `READ_STAGES` cycles.
        soon_sequence: In: with it, whose.
        load: In, R channels with `valid`, from the embedding.
        i: In, R channels with `valid`, to be added.
        sequence: In: with `load` or `i`, whose.
        o: Out, R channels of the new stream with `valid`.
        last: Out, 1 bit: with the last of them.
        o_sequence: Out: with `o`, whose.
    """

    latency = 1
    READ_STAGES = 2  # of the memory, and the register behind it

    def __init__(self, plan: Plan):
        residual = plan.model.residual
        self.rows, self.words, self.format = plan.rows, plan.channels // plan.rows, residual
        shape, owner = rows_of(signed(residual.bits), plan.rows), range(plan.sequences)
        self.depth = self.words if plan.sequences == 1 else plan.sequences << ceil_log2(self.words)
        super().__init__(
            {
                "soon": In(1),
                "soon_sequence": In(owner),
                "load": In(shape),
                "i": In(shape),
                "sequence": In(owner),
                "o": Out(shape),
                "last": Out(1),
                "o_sequence": Out(owner),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        layout = self.o.values.shape()
        m.submodules.stream = stream = memory.Memory(shape=layout, depth=self.depth, init=[])
        read, write = stream.read_port(), stream.write_port()
        held = data_register(layout)
        reading, writing = Signal(range(self.words)), Signal(range(self.words))
        m.d.comb += read.addr.eq(Cat(reading, self.soon_sequence))
        m.d.sync += held.eq(read.data)
        with m.If(self.soon):
            m.d.sync += reading.eq(Mux(reading == self.words - 1, 0, reading + 1))
        with m.If(self.o.valid):
            m.d.sync += writing.eq(Mux(writing == self.words - 1, 0, writing + 1))
        sums = data_register(layout)
        m.d.sync += [self.o.valid.eq(self.load.valid | self.i.valid), self.o_sequence.eq(self.sequence)]
        for row in range(self.rows):
            m.d.sync += sums[row].eq(
                Mux(self.load.valid, self.load.values[row], saturate(held[row] + self.i.values[row], self.format))
            )
        m.d.comb += [
            self.o.values.eq(sums),
            self.last.eq(writing == self.words - 1),
            write.en.eq(self.o.valid),
            write.addr.eq(Cat(writing, self.o_sequence)),
            write.data.eq(sums),
        ]
        return m
