# amaranth: UnusedElaboratable=no
# (a memory may be built only to ask for its latency)
"""A memory of wide words, cut into banks that block RAMs can be fast as."""

import reprlib
from collections.abc import Sequence

from amaranth.hdl import Array, Module, Signal, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..errors import CircuitError
from .copies import Copies
from .dot_product import Delay
from .internals import Internals
from .parameter_checks import check_collection, check_whole
from .registers import data_register

LOGIC_WORDS = 16  # that a LUT of four inputs holds a bit of
BITS_PER_COPY = 128  # of the word, for one copy of the number of the bank that is chosen


class BankedMemory(wiring.Component):
    """Words in block RAM; one is read in every cycle, and one may be written.

    Equation: `word = memory[address]`, `latency` cycles later. What is written in a cycle is read
    from the next cycle on; reading a word in the cycle in which it is written gives anything.

    A memory of more words than a block RAM has is made by synthesis as a multiplexer directly
    behind the block RAMs, whose output registers can then not be used. Here each bank has an output
    register of its own, which becomes the block RAM's, and the choice among the banks has a stage.

    Latency: 2 clock edges with one bank: block RAM and its output register. 4 with several: a copy
    of the address for each bank before, the choice of the bank after. Throughput: a word a cycle.
    Resources: `ceil(width / 36)` block RAMs a bank of 512 words, `ceil(width / 18)` a bank of
    1,024, where a part that is written counts as a multiple of 9 bits; with several banks a
    register of the word, and another one if it is written. A bank of at most 16 words that is only
    read is logic, a LUT a bit, for it would waste as many block RAMs.

    Attributes:
        width: Bits of a word.
        depth: Words.
        init: The first words, unsigned; the rest is zero.
        bank_words: Words of a bank, a power of two; the last bank has what is left.
        write_parts: Equal parts of a word, each written or not; 0 for a memory that is only read.
        writable_from: The first address that is ever written; banks below it have no write port.
        banks: Number of banks.
        latency: See above.
        address: In, the word to read.
        word: Out, `width` bits.
        write_address, write_data, write_enable: In, only with `write_parts`; a bit of
            `write_enable` for each part, the lowest bits of the word first.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        init: Sequence[int] = (),
        *,
        bank_words: int = 512,
        write_parts: int = 0,
        writable_from: int = 0,
    ):
        check_whole("width", width)
        check_whole("depth", depth)
        check_whole("bank_words", bank_words)
        check_whole("write_parts", write_parts, 0, width, "a part is at least a bit")
        check_whole("writable_from", writable_from, 0, depth - 1, "the last word")
        if bank_words & (bank_words - 1):
            raise CircuitError(f"bank_words must be a power of two, not {bank_words}")
        if write_parts and width % write_parts:
            raise CircuitError(f"words of {width} bits cannot be written in {write_parts} equal parts")
        check_words(init, depth, width)
        self.width, self.depth, self.init = width, depth, list(init)
        self.bank_words, self.write_parts, self.writable_from = bank_words, write_parts, writable_from
        self.banks = -(-depth // bank_words)
        self.latency = 2 if self.banks == 1 else 4
        ports = {"address": In(range(depth)), "word": Out(width)}
        if write_parts:
            ports |= {"write_address": In(range(depth)), "write_data": In(width), "write_enable": In(write_parts)}
        super().__init__(ports)

    def in_block_ram(self, words: int) -> bool:
        """Return whether a bank of so many words is block RAM, not logic."""
        return self.write_parts > 0 or words > LOGIC_WORDS

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        several = self.banks > 1
        within = (self.bank_words - 1).bit_length()  # address bits within a bank
        reads = self._spread(m, "address", within)
        if self.write_parts:
            writes = self._spread(m, "write_address", within)
            data = data_register(self.width, name="data") if several else self.write_data
            if several:
                m.d.sync += data.eq(self.write_data)
        answers, banks = [], []
        for bank in range(self.banks):
            start = bank * self.bank_words
            depth = min(self.bank_words, self.depth - start)
            # What an asynchronous port and a register give becomes the block RAM's own synchronous
            # port; without the check no multiplexer is added for a word read while it is written.
            m.submodules[f"bank_{bank}"] = words = memory.Memory(
                shape=unsigned(self.width),
                depth=depth,
                init=self.init[start : start + depth],
                attrs={"ram_style": "block" if self.in_block_ram(depth) else "logic", "no_rw_check": 1},
            )
            read_port = words.read_port(domain="comb")
            answer, result = (data_register(self.width, name=f"{name}_{bank}") for name in ("answer", "result"))
            m.d.comb += read_port.addr.eq(reads[bank])
            m.d.sync += [answer.eq(read_port.data), result.eq(answer)]
            answers.append(result)
            banks.append(words)
            if self.write_parts and start + depth > self.writable_from:
                write_port = words.write_port(granularity=self.width // self.write_parts)
                enable = Signal(self.write_parts, name=f"enable_{bank}") if several else self.write_enable
                if several:
                    here = self.write_address[within:] == bank
                    m.d.sync += enable.eq(self.write_enable & here.replicate(self.write_parts))
                m.d.comb += [write_port.addr.eq(writes[bank]), write_port.data.eq(data), write_port.en.eq(enable)]
        self.internals = Internals(banks=banks)
        if not several:
            m.d.comb += self.word.eq(answers[0])
            return m
        number = self.address[within:]
        m.submodules.numbers = numbers = Delay(number.shape(), self.latency - 2)
        m.submodules.chosen = chosen = Copies(len(number), -(-self.width // BITS_PER_COPY))
        m.d.comb += [numbers.en.eq(1), numbers.i.eq(number), chosen.i.eq(numbers.o)]
        word = data_register(self.width, name="word_register")
        for copy, choice in enumerate(chosen.o):
            bits = slice(copy * BITS_PER_COPY, (copy + 1) * BITS_PER_COPY)
            m.d.sync += word[bits].eq(Array(answer[bits] for answer in answers)[choice])
        m.d.comb += self.word.eq(word)
        return m

    def _spread(self, m: Module, name: str, within: int) -> list:
        """Return for each bank the address within it; of several banks each has its own copy."""
        address = getattr(self, name)[:within]
        if self.banks == 1:
            return [address]
        m.submodules[f"{name}_copies"] = copies = Copies(len(address), self.banks)
        m.d.comb += copies.i.eq(address)
        return list(copies.o)


def check_words(init: Sequence[int], depth: int, width: int) -> None:
    """Refuse what cannot be the first words of a memory.

    Raises:
        CircuitError: It is something else than at most `depth` unsigned numbers of `width` bits.
    """
    check_collection("init", init)
    if len(init) > depth or any(not isinstance(word, int) or not 0 <= word < 1 << width for word in init):
        wanted = f"{depth} words of {width} bits, unsigned"
        raise CircuitError(f"init must be at most {wanted}, not {reprlib.repr(list(init))}")
