# amaranth: UnusedElaboratable=no
# (a unit may be built only to ask for its latency)
"""Logits become scores with Gumbel noise, R at a time, so that the maximum is a sampled token."""

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from fixedpoint import QFormat, Sampler
from fixedpoint.operators.gumbel import INDEX_BITS
from fixedpoint.operators.sampling import MULTIPLIER_BITS

from ..errors import CircuitError
from ..parts.arithmetic import multiply
from ..parts.dot_product import Delay
from ..parts.gumbel import GumbelNoise
from ..parts.multiplier import Multiplier
from ..parts.registers import data_register
from ..parts.requantize import ShiftRoundSaturate
from .plan import Plan
from .row_ports import rows_of

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1 / 16, 16.0
RANDOM_BITS = 32


@dataclass(frozen=True)
class Temperature:
    """A temperature as the circuit takes it.

    Attributes:
        multiplier: `Sampler.multiplier`.
        amount: `Sampler.shift` less the lowest that occurs.
    """

    multiplier: int
    amount: int

    @classmethod
    def of(cls, logits: QFormat, temperature: float) -> "Temperature":
        """Return a temperature for logits of a format.

        Raises:
            CircuitError: It is too low or too high for the circuit.
        """
        if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
            raise CircuitError(
                f"the circuit samples at temperatures of {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}, "
                f"or takes the likeliest token at 0; not {temperature:g}"
            )
        sampler = Sampler(logits, temperature)
        return cls(sampler.multiplier, sampler.shift - Sampler(logits, LOWEST_TEMPERATURE).shift)


class ScoreRows(wiring.Component):
    """`fixedpoint.Sampler.scores` as a circuit, for temperatures that are known when it runs; or
    the logits themselves.

    Equation: see there, for temperatures of 1/16 to 16. Without `sample`, o = i.

    Latency: 8 cycles: product, shift, sum. Throughput: R a cycle. Resources: R hard multipliers and
    R units of noise.

    Internals: the noise depends on the index alone, so it is made while the engine works: `soon`
    comes `SOON_CYCLES` before `i.valid`.

    Attributes:
        latency: 8.
        bits: Width of a score, signed.
        soon: In, 1 bit: logits come in `SOON_CYCLES` cycles.
        last_soon: In, 1 bit: with `soon`, they are the last ones.
        random, multiplier, amount, sample: In; stable while a token's logits come.
        i: In, R logits with `valid`, in order.
        last: In, 1 bit: with the last of them.
        o: Out, R scores with `valid`.
        o_last: Out, 1 bit.
    """

    latency = Multiplier.latency + ShiftRoundSaturate.latency + 1
    SOON_CYCLES = GumbelNoise.latency + 1 - latency

    def __init__(self, plan: Plan, bits: int):
        logits = plan.model.logits.output
        self.rows, self.vocabulary, self.logits = plan.rows, plan.model.vocab_size, logits
        coldest = Sampler(logits, LOWEST_TEMPERATURE)
        self.bits = max(coldest.score_bits, logits.bits)
        product_bits = logits.bits + MULTIPLIER_BITS + 1
        shifts = coldest.shift, Sampler(logits, HIGHEST_TEMPERATURE).shift
        self._casts = [ShiftRoundSaturate(product_bits, *shifts, [self.bits]) for _ in range(self.rows)]
        super().__init__(
            {
                "soon": In(1),
                "last_soon": In(1),
                "random": In(RANDOM_BITS),
                "multiplier": In(MULTIPLIER_BITS),
                "amount": In(self._casts[0].amount.shape()),
                "sample": In(1),
                "i": In(rows_of(signed(bits), self.rows)),
                "last": In(1),
                "o": Out(rows_of(signed(self.bits), self.rows)),
                "o_last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.tags = tags = Delay(data.StructLayout({"valid": 1, "last": 1}), self.latency)
        m.d.comb += [
            tags.en.eq(1),
            tags.i.valid.eq(self.i.valid),
            tags.i.last.eq(self.last),
            self.o.valid.eq(tags.o.valid),
            self.o_last.eq(tags.o.last),
        ]
        first = Signal(range(max(self.vocabulary + self.rows, 2)))  # index of a set's first logit
        with m.If(self.soon):
            m.d.sync += first.eq(Mux(self.last_soon, 0, first + self.rows))
        for row, cast in enumerate(self._casts):
            m.submodules[f"noise_{row}"] = noise = GumbelNoise()
            m.submodules[f"cast_{row}"] = cast
            logit = self.i.values[row]
            m.submodules[f"logit_{row}"] = late = Delay(signed(self.logits.bits), self.latency - 1)
            m.d.comb += [
                noise.en.eq(1),
                noise.random.eq(self.random),
                noise.index.eq((first + row)[:INDEX_BITS]),
                late.en.eq(1),
                late.i.eq(logit),
                cast.en.eq(1),
                cast.i.eq(multiply(m, f"scale_{row}", late.taps[0], self.multiplier)),
                cast.amount.eq(self.amount),
                cast.width.eq(0),
            ]
            score = data_register(signed(self.bits), name=f"score_{row}")
            m.d.sync += score.eq(Mux(self.sample, cast.o + noise.o, late.o))
            m.d.comb += self.o.values[row].eq(score)
        return m
