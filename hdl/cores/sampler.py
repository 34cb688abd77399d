# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Sampling a token at a temperature, and the random numbers for it, as circuits."""

from amaranth.hdl import Assert, Cat, Const, Format, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

import fixedpoint
from fixedpoint import QFormat
from fixedpoint.operators.gumbel import FRACTION

from ..errors import CircuitError
from ..parts.arithmetic import multiply, shape_of, shift_right_half_up
from ..parts.dot_product import Delay
from ..parts.gumbel import GumbelNoise
from ..parts.internals import Internals
from ..parts.multiplier import Multiplier
from ..parts.payload import connect
from ..parts.registers import data_register
from ..parts.stream_parts import word_shape
from .argmax import ArgMax, check_row

RANDOM_BITS = 32
SCORE_STAGES = GumbelNoise.latency + 1
WAIT_STAGES = GumbelNoise.latency - Multiplier.latency - 1  # of a logit, until its noise is as far


class XorShift32(wiring.Component):
    """`fixedpoint.XorShift32` as a circuit: a request in, a random number out.

    Equation: `x ^= x << 13; x ^= x >> 17; x ^= x << 5`; the number is the new x. A request with
    `restart` first sets x to its `state`.

    Latency: 1 cycle from a request taken to its number offered. Throughput: one a cycle.
    Resources: 32 registers and three exclusive ors a bit, no multiplier. The state after reset
    is 1. A state of 0 would give nothing but 0; `fixedpoint.operators.sampling.mix` never makes
    one.

    Source: Marsaglia, "Xorshift RNGs", Journal of Statistical Software 8(14), 2003.

    Attributes:
        latency: 1.
        i: In, stream of {restart, state}: requests; `state` counts only with `restart`.
        o: Out, stream of unsigned 32-bit numbers.
    """

    latency = 1

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"restart": 1, "state": RANDOM_BITS}))),
                "o": Out(stream.Signature(unsigned(RANDOM_BITS))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        state = Signal(RANDOM_BITS, init=1)
        words = [Signal(RANDOM_BITS, name=f"word_{step}") for step in range(4)]
        m.d.comb += [
            words[0].eq(Mux(self.i.payload.restart, self.i.payload.state, state)),
            words[1].eq(words[0] ^ (words[0] << 13)),
            words[2].eq(words[1] ^ (words[1] >> 17)),
            words[3].eq(words[2] ^ (words[2] << 5)),
            self.i.ready.eq(~self.o.valid | self.o.ready),
            self.o.payload.eq(state),
        ]
        with m.If(self.i.ready):
            m.d.sync += self.o.valid.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += state.eq(words[3])
        return m


class Sampler(wiring.Component):
    """`fixedpoint.Sampler.choose` as a circuit: rows of logits and a random number each in, tokens
    out, in one pass.

    Equation: the token is the lowest index of the largest
    `i[j] · multiplier / 2**shift + GumbelNoise(i_random, j)`, the quotient rounded half up.

    Latency: `latency` = 20 cycles and one for each doubling of `lanes`, from a row's last word
    taken to its token offered; a row waits for its random number. Throughput: a word a cycle, rows
    back to back without a gap; everything stalls while a token waits. Resources: for each lane a
    hard multiplier, a `GumbelNoise` and 13 logits on their way; an `ArgMax` of scores.
    In simulation a row without `last` on its last word is an assertion's failure; in hardware it
    ends there.

    Source: see `fixedpoint.operators.gumbel`.

    Attributes:
        parameters: Format and temperature.
        length: The longest row, for instance the vocabulary's size.
        lanes: Logits in a word, a power of two. A row is whole words, but for those beyond
            `length`, which are left out.
        latency: The formula above.
        i: In, stream of {data: `parameters.logits`, last}: rows of 1 to `length` logits, `last` on
            the final word; with several lanes `data` is an array.
        i_random: In, stream of unsigned 32-bit numbers, one a row.
        o: Out, stream of {token}, one a row.

    Internals:
        Logits wait in registers until their noise is almost there; an `ArgMax` takes the sums.
    """

    def __init__(self, parameters: fixedpoint.Sampler, length: int, lanes: int = 1):
        if not isinstance(parameters, fixedpoint.Sampler):
            raise TypeError(f"parameters must be a fixedpoint.Sampler, not {type(parameters).__name__}")
        check_row("sampler", length, lanes)
        if not parameters.temperature:
            raise CircuitError("a sampler's temperature must be positive; with temperature 0 ArgMax chooses")
        self.parameters = parameters
        self.length = length
        self._maximum = ArgMax(QFormat(parameters.score_bits, FRACTION), length, lanes)
        self.lanes = lanes
        self.latency = SCORE_STAGES + self._maximum.latency
        logits = word_shape(shape_of(parameters.logits), lanes)
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": logits, "last": 1}))),
                "i_random": In(stream.Signature(unsigned(RANDOM_BITS))),
                "o": self._maximum.signature.members["o"],
            }
        )

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first word taken to the last token given, for rows of
        `elements` offered without a pause.
        """
        return rows * -(-elements // self.lanes) - 1 + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        words = -(-self.length // self.lanes)
        m.submodules.maximum = maximum = self._maximum
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), SCORE_STAGES)
        place = Signal(range(max(words, 2)))  # an assertion's message wants at least a bit
        enable, taken, held = Signal(), Signal(), Signal()
        number = data_register(unsigned(RANDOM_BITS))
        final = self.i.payload.last | (place == words - 1)
        m.d.comb += [
            enable.eq(~maximum.i.valid | maximum.i.ready),
            self.i.ready.eq(enable & (held | self.i_random.valid)),
            self.i_random.ready.eq(~held),
            taken.eq(self.i.valid & self.i.ready),
            tags.en.eq(enable),
            tags.i.valid.eq(taken),
            tags.i.last.eq(final),
            maximum.i.valid.eq(tags.o.valid),
            maximum.i.payload.last.eq(tags.o.last),
        ]
        # A row's number is taken as soon as it comes, and held until the row ends.
        with m.If(~held):
            m.d.sync += number.eq(self.i_random.payload)
        m.d.sync += held.eq((held | self.i_random.valid) & ~(taken & final))
        with m.If(taken):
            m.d.sync += place.eq(Mux(final, 0, place + 1))
            m.d.sync += Assert(
                self.i.payload.last | (place != words - 1),
                Format("sampler input: no last on element {} of a row of at most {}", place, words),
            )

        connect(m, maximum.o, wiring.flipped(self.o))

        for lane in range(self.lanes):
            logit, score = self.i.payload.data, maximum.i.payload.data
            if self.lanes > 1:
                logit, score = logit[lane], score[lane]
            m.submodules[f"noise_{lane}"] = noise = GumbelNoise()
            m.submodules[f"logits_{lane}"] = logits = Delay(unsigned(self.parameters.logits.bits), WAIT_STAGES)
            m.d.comb += [
                noise.en.eq(enable),
                noise.random.eq(Mux(held, number, self.i_random.payload)),
                noise.index.eq(Cat(Const(lane, ceil_log2(self.lanes)), place)),
                logits.en.eq(enable),
                logits.i.eq(logit),
            ]
            product = multiply(m, f"scale_{lane}", logits.o.as_signed(), self.parameters.multiplier, enable)
            rounded = shift_right_half_up(product, self.parameters.shift)
            scaled = data_register(rounded, name=f"scaled_{lane}")
            total = data_register(score, name=f"score_{lane}")
            with m.If(enable):
                m.d.sync += [scaled.eq(rounded), total.eq(scaled + noise.o)]
            m.d.comb += score.eq(total)
        self.internals = Internals(place=place, held=held, tags=tags, maximum=maximum)
        return m
