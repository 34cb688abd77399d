"""Gumbel noise as a circuit: from a random number and a token's index, a value a cycle."""

from amaranth.hdl import Cat, Const, Module, Mux, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint.operators.gumbel import (
    FRACTION,
    INDEX_BITS,
    OCTAVES,
    REST_BITS,
    ROUNDS,
    SEGMENT_BITS,
    SLOPE_BITS,
    SLOPE_FRACTION,
    VALUE_BITS,
    WORD_BITS,
    noise_table,
)

from .dot_product import Delay
from .registers import data_register
from .table import BlockTable

NOISE_BITS = 18  # 7 before the point, one of them the sign
LEVELS = ceil_log2(WORD_BITS)  # of the normalization
LINE_STAGES = 4  # three to add up value and products, one for the octave and the sign
SCALE = REST_BITS + 1 - (FRACTION - SLOPE_FRACTION)  # bits of a product below the noise's


class GumbelNoise(wiring.Component):
    """`fixedpoint.operators.gumbel` as a circuit: `gumbel_noise(random_words(random, …)[index])`.

    Equation: see there.

    Latency: 17 stages. Throughput: one a cycle. No handshake: what uses it, delays its own words
    as long, and any number of them may work side by side, as each has its index.
    Registers hold data only and have no reset. Resources: one block RAM of 1,024 × 18; five
    additions of 32 bits and six of up to 20; no hard multiplier, since a slope has five bits.

    Source: see `fixedpoint.operators.gumbel`.

    Attributes:
        latency: 17.
        en: In, 1 bit. Enables every stage.
        random: In, 32 bits.
        index: In, 16 bits.
        o: Out, signed, 18 bits, 11 of them fraction bits.

    Internals:
        Stages: five rounds of the hash; the half's sign; five levels that bring the leading one to
        the top; the table; value plus slope times the rest; octave and sign.
    """

    latency = len(ROUNDS) + 1 + LEVELS + BlockTable.latency + LINE_STAGES

    def __init__(self) -> None:
        super().__init__(
            {
                "en": In(1),
                "random": In(unsigned(WORD_BITS)),
                "index": In(unsigned(INDEX_BITS)),
                "o": Out(signed(NOISE_BITS)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()

        def register(value: Value, name: str, shape: object = None) -> Value:
            after = data_register(value if shape is None else shape, name=name)
            with m.If(self.en):
                m.d.sync += after.eq(value)
            return after

        # A round's exclusive or with its own shifted bits is done together with the next key's.
        key, word = self.random, self.index
        for place, (rotation, left, _) in enumerate(ROUNDS):
            keyed = word ^ key.rotate_left(rotation)
            word = register((keyed + (keyed << left))[:WORD_BITS], f"sum_{place}")
            key = register(key, f"key_{place}")
            word = word ^ (word >> ROUNDS[place][2])
        half = word[-1]
        odd = register(Cat(Const(1, 1), word[:-1] ^ half.replicate(WORD_BITS - 1)), "odd")
        tag = data.StructLayout({"half": 1, "octave": LEVELS, "rest": REST_BITS})
        halves = register(half, "half_0")

        # Bits that no later level can bring into the mantissa are left out.
        octave = Cat()
        for level in reversed(range(LEVELS)):
            empty = odd[-(1 << level) :] == 0
            kept = (1 << level) + SEGMENT_BITS + REST_BITS
            odd = register(Mux(empty, odd << (1 << level), odd)[: len(odd)][-kept:], f"odd_{level}")
            octave = register(Cat(empty, octave), f"octave_{level}")
            halves = register(halves, f"half_{LEVELS - level}")
        segment, rest = odd[REST_BITS:-1], odd[:REST_BITS]

        m.submodules.table = table = BlockTable(noise_table().tolist(), VALUE_BITS + SLOPE_BITS)
        m.submodules.tags = tags = Delay(tag, BlockTable.latency + LINE_STAGES - 1)
        last_octave = octave[ceil_log2(OCTAVES) :].any()
        row = octave[: ceil_log2(OCTAVES)] | last_octave.replicate(ceil_log2(OCTAVES))
        m.d.comb += [
            table.en.eq(self.en),
            table.address.eq(Cat(segment, row, halves)),
            tags.en.eq(self.en),
            tags.i.half.eq(halves),
            tags.i.octave.eq(octave),
            tags.i.rest.eq(rest),
        ]

        # size = value − round(slope · (2·rest − 127) / 2**6); the odd number is negated bit by bit.
        slope, value = table.o[:SLOPE_BITS], table.o[SLOPE_BITS:]
        at = tags.taps[BlockTable.latency].rest
        against = Cat(Const(1, 1), ~at[:-1], at[-1]).as_signed()
        parts = [Mux(bit, against << place, 0) for place, bit in enumerate(slope)]
        upper = register(Cat(Const((1 << (SCALE - 1)) - 1, SCALE), value) + parts[4], "upper")
        middle = register(parts[3] + parts[2], "middle")
        lower = register(parts[1] + parts[0], "lower")
        both = register(upper + middle, "both")
        lower = register(lower, "lower_1")
        size = register((both + lower) >> SCALE, "size")
        after = tags.o
        whole = Cat(Const(0, FRACTION), Mux(after.half, 0, after.octave))
        signed_size = size ^ after.half.replicate(len(size)).as_signed()
        m.d.comb += self.o.eq(register((whole + signed_size + after.half)[:NOISE_BITS].as_signed(), "noise"))
        return m
