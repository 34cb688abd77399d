"""Tables in block RAM, read through the register that every block RAM has behind it."""

from collections.abc import Sequence

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..errors import CircuitError
from .parameter_checks import check_whole
from .registers import data_register

# Of an ECP5 block RAM: how many bits its words have, for address bits up to this number.
WORD_BITS = {10: 18, 11: 9, 12: 4}
BLOCK_ADDRESS_BITS = 14  # a block RAM's address counts bits; words leave out the lowest of them
# in one of 64 parameters of initial content
INIT_WORDS, INIT_WORD_BITS, INIT_SLOT_BITS = 16, 18, 20


class BlockTable(wiring.Component):
    """A read-only table in block RAM.

    Equation: `o = values[address]`. Latency: 2 stages. Throughput: one value a cycle.

    A block RAM answers some 5.6 ns after the clock, its own output register some 1 ns after it.
    Yosys never uses that register, so on ECP5 the cell is instantiated by hand; everywhere else a
    memory and a register of the same latency stand in its place. A test compares the two.
    Resources: one DP16KD (ECP5) for 1,024 words of up to 18 bits, more for more; what the tools
    infer elsewhere. Source: Lattice FPGA-TN-02204, "ECP5 and ECP5-5G Memory Usage Guide".

    Attributes:
        latency: 2.
        en: In, 1 bit. Enables both registers.
        address: In, unsigned.
        o: Out, unsigned.
    """

    latency = 2

    def __init__(self, values: Sequence[int], bits: int):
        if not isinstance(values, Sequence) or not all(isinstance(value, int) for value in values):
            raise CircuitError(f"a block table's values must be a sequence of whole numbers, not {values!r}")
        if not 1 <= len(values) <= 1 << max(WORD_BITS):
            raise CircuitError(f"a block table has 1 to {1 << max(WORD_BITS)} values, not {len(values)}")
        check_whole("a block table's bits", bits)
        if min(values) < 0 or max(values) >= 1 << bits:
            raise CircuitError(
                f"a block table of {bits} bits holds 0 to {(1 << bits) - 1}, not {min(values)} to {max(values)}"
            )
        self.values = list(values)
        self.bits = bits
        super().__init__({"en": In(1), "address": In(range(len(self.values))), "o": Out(unsigned(bits))})

    def elaborate(self, platform: object) -> Module:
        """Build the cells where there are some, else a behavioural model."""
        m = Module()
        if getattr(platform, "family", None) == "ecp5":
            word_bits = next(bits for depth, bits in WORD_BITS.items() if ceil_log2(len(self.values)) <= depth)
            parts = []
            for low in range(0, self.bits, word_bits):
                part = [value >> low & ((1 << word_bits) - 1) for value in self.values]
                parts.append(self._cell(m, f"cell_{low}", part, word_bits))
            m.d.comb += self.o.eq(Cat(parts)[: self.bits])
            return m
        m.submodules.words = words = memory.Memory(
            shape=unsigned(self.bits), depth=len(self.values), init=self.values, attrs={"ram_style": "block"}
        )
        port = words.read_port()
        word = data_register(unsigned(self.bits))
        m.d.comb += [port.en.eq(self.en), port.addr.eq(self.address), self.o.eq(word)]
        with m.If(self.en):
            m.d.sync += word.eq(port.data)
        return m

    def _cell(self, m: Module, name: str, words: list[int], word_bits: int) -> Signal:
        """Add a block RAM and return what it reads; its second port is unused."""
        out = Signal(unsigned(word_bits))
        address = Signal(BLOCK_ADDRESS_BITS)
        # Words of 18 bits, each with two bytes of 9; of narrower ones several lie in each, and
        # those of 4 bits leave the ninths out.
        bits = 0
        for index, word in enumerate(words):
            if word_bits == 4:
                place = index // 4 * INIT_WORD_BITS + index // 2 % 2 * 9 + index % 2 * 4
            else:
                place = index * word_bits
            bits |= word << place
        slots = {
            f"p_INITVAL_{row:02X}": Const(
                sum(
                    (bits >> (row * INIT_WORDS + slot) * INIT_WORD_BITS & (1 << INIT_WORD_BITS) - 1)
                    << slot * INIT_SLOT_BITS
                    for slot in range(INIT_WORDS)
                ),
                INIT_WORDS * INIT_SLOT_BITS,
            )
            for row in range(64)
        }
        still = {f"i_{pin}{side}": Const(0, 1) for pin in ("WE", "RST") for side in "AB"}
        still |= {f"i_CS{side}{bit}": Const(0, 1) for side in "AB" for bit in range(3)}
        still |= {f"i_DI{side}{bit}": Const(0, 1) for side in "AB" for bit in range(18)}
        still |= {f"i_ADB{bit}": Const(0, 1) for bit in range(BLOCK_ADDRESS_BITS)}
        lowest = BLOCK_ADDRESS_BITS - next(depth for depth, bits in WORD_BITS.items() if bits == word_bits)
        m.submodules[name] = Instance(
            "DP16KD",
            **{f"p_{name}_{side}": value for side in "AB" for name, value in self._modes(word_bits).items()},
            p_RESETMODE="SYNC",
            p_ASYNC_RESET_RELEASE="SYNC",
            p_CLKAMUX="CLKA",
            p_CLKBMUX="CLKB",
            p_GSR="DISABLED",  # the global set/reset net belongs to the board
            **slots,
            **still,
            i_CLKA=ClockSignal(),
            i_CLKB=ClockSignal(),
            i_CEA=self.en,
            i_OCEA=self.en,
            i_CEB=Const(0, 1),
            i_OCEB=Const(0, 1),
            **{f"i_ADA{bit}": address[bit] for bit in range(BLOCK_ADDRESS_BITS)},
            **{f"o_DOA{bit}": out[bit] for bit in range(word_bits)},
        )
        m.d.comb += address.eq(self.address << lowest)
        return out

    @staticmethod
    def _modes(word_bits: int) -> dict[str, object]:
        return {"DATA_WIDTH": word_bits, "REGMODE": "OUTREG", "CSDECODE": "0b000", "WRITEMODE": "NORMAL"}
