# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Sampling a token at a temperature, and the random numbers for it, as circuits."""

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint
from fixedpoint.operators.sampling import EXPONENTIAL

from ..errors import CircuitError
from ..parts.arithmetic import multiply, shape_of
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import Multiplier
from ..parts.payload import connect
from ..parts.registers import data_register
from ..parts.row_numerators import RowNumerators
from ..parts.stream_parts import StreamQueue, StreamRegister
from .argmax import check_row

RANDOM_BITS = 32
HALF_BITS = 16  # of a random number or a sum: fits a hard multiplier
THRESHOLD_STAGES = Multiplier.latency + 2
SEARCH_STAGES = 3  # numerator, cumulative sum, comparison


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


class _LogitNumerators(RowNumerators):
    _noun = "sampler"


class Sampler(wiring.Component):
    """`fixedpoint.Sampler.choose` as a circuit: rows of logits and a random number each in, tokens
    out.

    Equations: `t_j = (max(i) - i[j]) · multiplier / 2**shift`, `e_j = exponential(t_j)`,
    `threshold = floor(random · Σe / 2**32)`; the token is the number of places whose cumulative sum
    of e does not exceed the threshold.

    Latency: `latency(n)` = 2·n + 17 + E cycles from the last logit of a row of n taken to its token
    offered, with E = `Exponential`'s latency, if the random number is there in time.
    Throughput: a logit a cycle, rows of one length back to back without a gap. Short rows right
    behind a long one may wait. Resources: FIFOs of `length` + 2 logits and `length` + 10 numerators
    of 16 bits, a table of 1,024 exponentials, 5 hard multipliers: 1 to scale, 4 for the threshold.
    In simulation a row without `last` on its `length`-th logit is an assertion's failure; in
    hardware it ends there.

    Source: inversion by sequential search: Devroye, "Non-Uniform Random Variate Generation",
    Springer, 1986, chapter III.

    Attributes:
        parameters: Format and temperature.
        length: The longest row, for instance the vocabulary's size.
        i: In, stream of {data: `parameters.logits`, last}: rows of 1 to `length` logits, `last` on
            the final one.
        i_random: In, stream of unsigned 32-bit numbers, one a row.
        o: Out, stream of {token}, one a row.

    Internals:
        Two passes over a row: when its maximum is known its logits leave a FIFO and become
        numerators; when their sum and so the threshold is known, the numerators leave a second FIFO
        and are added up again. Other rows pass through the earlier stages meanwhile.
    """

    def __init__(self, parameters: fixedpoint.Sampler, length: int):
        if not isinstance(parameters, fixedpoint.Sampler):
            raise TypeError(f"parameters must be a fixedpoint.Sampler, not {type(parameters).__name__}")
        check_row("sampler", length)
        if not parameters.temperature:
            raise CircuitError("a sampler's temperature must be positive; with temperature 0 ArgMax chooses")
        self.parameters = parameters
        self.length = length
        scale = (parameters.multiplier, parameters.shift)
        self._numerators = _LogitNumerators(parameters.logits, length, EXPONENTIAL, scale, "data")
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(parameters.logits), "last": 1}))),
                "i_random": In(stream.Signature(unsigned(RANDOM_BITS))),
                "o": Out(stream.Signature(data.StructLayout({"token": range(length)}))),
            }
        )

    def latency(self, elements: int) -> int:
        """Return the cycles from a row's last logit taken to its token offered."""
        return 2 * elements - 1 + self._numerators.latency + THRESHOLD_STAGES + 1 + SEARCH_STAGES

    def cycles(self, elements: int, rows: int = 1) -> int:
        """Return the cycles from the first logit taken to the last token given, for rows of
        `elements` offered without a pause.
        """
        return rows * elements - 1 + self.latency(elements)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.numerators = numerators = self._numerators
        numerator = numerators.o.payload.shape()
        # A row's first numerator waits for its last one, for the threshold, and for its own turn.
        m.submodules.queue = queue = StreamQueue(numerator, self.length + THRESHOLD_STAGES + 5)
        m.submodules.thresholds = thresholds = StreamRegister(unsigned(RANDOM_BITS))
        connect(m, wiring.flipped(self.i), numerators.i)
        connect(m, numerators.o, queue.i)

        # The threshold: the upper half of a product of 32 by 32 bits, from four of 16 by 16.
        sums, randoms = numerators.o_denominator, self.i_random
        step = Signal()
        m.submodules.made = made = Delay(unsigned(1), THRESHOLD_STAGES)
        m.d.comb += [
            step.eq(~made.o | thresholds.i.ready),
            made.en.eq(step),
            made.i.eq(sums.valid & randoms.valid),
            sums.ready.eq(step & randoms.valid),
            randoms.ready.eq(step & sums.valid),
            thresholds.i.valid.eq(made.o),
        ]
        product = {
            (high, other): multiply(
                m,
                f"product_{high}{other}",
                randoms.payload[HALF_BITS * high :][:HALF_BITS],
                sums.payload[HALF_BITS * other :][:HALF_BITS],
                step,
            )
            for high in (0, 1)
            for other in (0, 1)
        }
        middle = data_register(unsigned(2 * HALF_BITS + 2))
        upper = data_register(unsigned(2 * HALF_BITS))
        threshold = data_register(unsigned(RANDOM_BITS))
        with m.If(step):
            m.d.sync += [
                middle.eq(product[0, 1] + product[1, 0] + product[0, 0][HALF_BITS:]),
                upper.eq(product[1, 1]),
                threshold.eq(upper + middle[HALF_BITS:]),
            ]
        m.d.comb += thresholds.i.payload.eq(threshold)

        # The search: numerator, cumulative sum, comparison.
        waiting = queue.o.payload
        enable, issue = Signal(), Signal()
        tag = data.StructLayout({"valid": 1, "first": 1, "last": 1})
        m.submodules.tags = tags = Delay(tag, SEARCH_STAGES)
        begins = Signal(init=1)
        m.d.comb += [
            enable.eq(~self.o.valid | self.o.ready),
            issue.eq(enable & queue.o.valid & thresholds.o.valid),
            queue.o.ready.eq(issue),
            thresholds.o.ready.eq(issue & waiting.last),
            tags.en.eq(enable),
            tags.i.valid.eq(issue),
            tags.i.first.eq(begins),
            tags.i.last.eq(waiting.last),
        ]
        with m.If(issue):
            m.d.sync += begins.eq(waiting.last)
        share = data_register(numerator["numerator"].shape)
        cumulative = data_register(unsigned(RANDOM_BITS))
        limits = [data_register(unsigned(RANDOM_BITS), name=f"limit_{stage}") for stage in range(2)]
        # places whose cumulative sum does not exceed the threshold
        passed = data_register(range(self.length + 1))
        m.d.comb += [self.o.valid.eq(tags.o.valid & tags.o.last), self.o.payload.token.eq(passed)]
        with m.If(enable):
            m.d.sync += [share.eq(waiting.numerator), limits[0].eq(thresholds.o.payload), limits[1].eq(limits[0])]
            with m.If(tags.taps[1].valid):
                m.d.sync += cumulative.eq(share + Mux(tags.taps[1].first, 0, cumulative))
            with m.If(tags.taps[2].valid):
                m.d.sync += passed.eq(Mux(tags.taps[2].first, 0, passed) + (cumulative <= limits[1]))
        self.internals = Internals(numerators=numerators, queue=queue, thresholds=thresholds, made=made, tags=tags)
        return m
