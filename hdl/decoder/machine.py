# amaranth: UnusedElaboratable=no
# (the machine may be built only to ask for its cycles)
"""The whole decoder as one circuit: a token in, the next token out.

    token ─ embedding ─ residual stream ─ norm ─ vector ─┐
                              │                          ├─ engine ─ requantize ─ rotate ─ query
      hidden ─ activation ────┼──────────────────────────┤             │            └─── key, value
      query, numerators ──────┼──────────────────────────┘             ├─ residual, hidden
                              └────────────────────────────────────────┴─ choice ─ token

One engine multiplies everything: weights, keys, values. The units around it serve all layers, and
both sequences where two are interleaved; what differs between layers (formats, scales, tables) is
looked up by layer. Nothing stalls, so the program alone decides when what happens.
"""

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, ShapeLike, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from fixedpoint.operators.sampling import MULTIPLIER_BITS

from ..errors import CircuitError
from ..parts.dot_product import Delay
from ..parts.internals import Internals
from ..parts.multiplier import Multiplier
from .execute import execute
from .interleave import check_order, interleave
from .plan import Plan
from .program import Destination, Work, make_program
from .results import Results, activate, add_to_stream
from .row_ports import each
from .score_rows import RANDOM_BITS
from .sequencer import Sequencer
from .states import State, belongs, make_states, select, take_token
from .units import Units


class Machine(Units, wiring.Component):
    """`fixedpoint.QuantizedTransformer` with the choice of a token as a circuit.

    A token goes in, the next one comes out; keys and values stay. It is the likeliest one, or with
    `plan.sampling` and `sample` one that `fixedpoint.Sampler` chooses: `random` is its number of
    this token, `multiplier` and `amount` are a `Temperature`'s. A token starts a new sequence when
    `restart` is set, after reset, and after `plan.context_length` tokens of a sequence.

    With two sequences, tokens go in and come out in pairs; a sequence without `active` sits out,
    and its next token is not to be looked at. At least one is active.

    Latency: `cycles(positions)` clock edges from a token, or a pair, taken to the next offered. The
    next is taken when that one has been taken.

    Attributes:
        program: What the engine works on, for a token of each sequence.
        programs: Of a token of one sequence alone, by sequence; then, of two, `program`.
        sequencer: What executes them.
        i: In, stream of {token, restart}; with `plan.sampling` {token, restart, sample, random,
            multiplier, amount}. With two sequences an array of two of these, with `active`.
        o: Out, stream of tokens; with two sequences of arrays of two.
    """

    def __init__(self, plan: Plan):
        Units.__init__(self, plan)
        self.programs = [make_program(plan, sequence) for sequence in range(plan.sequences)]
        if plan.sequences > 1:
            self.programs.append(interleave(self.programs, plan.context_length, self.latencies))
        self.program = self.programs[-1]
        check_order(self.program)
        self.sequencer = Sequencer(self.programs, plan, self.latencies.values_delay)
        token = unsigned(ceil_log2(max(plan.model.vocab_size, 2)))
        choice: dict[str, ShapeLike] = {"token": token, "restart": 1}
        if self.score is not None:
            choice |= {"sample": 1, "random": RANDOM_BITS, "multiplier": MULTIPLIER_BITS}
            choice["amount"] = self.score.amount.shape()
        if plan.sequences > 1:
            choice["active"] = 1
        self._choice = data.StructLayout(choice)
        taken: ShapeLike = self._choice
        given: ShapeLike = token
        if plan.sequences > 1:
            taken, given = (data.ArrayLayout(one, plan.sequences) for one in (self._choice, token))
        wiring.Component.__init__(self, {"i": In(stream.Signature(taken)), "o": Out(stream.Signature(given))})

    def cycles(self, positions: int | Sequence[int | None]) -> int:
        """Return the clock edges from tokens taken to the next ones offered.

        Args:
            positions: The token's place in its sequence, 0 for the first, with one sequence alone;
                of two, each one's, or None where it sits out.
        """
        places = [positions] if isinstance(positions, int) else list(positions)
        active = [sequence for sequence, place in enumerate(places) if place is not None]
        program = self.programs[active[0]] if len(active) == 1 else self.program
        return program.cycles(places, self.latencies)

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        plan, sequencer = self.plan, self.sequencer

        # A token of each sequence at a time.
        several = plan.sequences > 1
        busy, start, waiting = Signal(), Signal(plan.sequences), Signal(plan.sequences)
        states = make_states(plan, self._choice)
        choices = list(self.i.payload) if several else [self.i.payload]
        taken = Signal(plan.sequences)
        m.d.comb += taken.eq(
            Cat(choice.active if several else 1 for choice in choices)
            & (self.i.valid & self.i.ready).replicate(plan.sequences)
        )
        m.d.comb += [self.i.ready.eq(~busy), sequencer.start.eq(start)]
        m.d.sync += start.eq(taken)
        for state, choice in zip(states, choices, strict=True):
            take_token(m, plan, state, taken[state.number], choice, start[state.number])
        with m.If(taken.any()):
            m.d.sync += [busy.eq(1), waiting.eq(taken)]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += busy.eq(0)

        issued, results, events, cache = execute(m, self, sequencer, states)
        self.internals = Internals(cache=cache, busy=busy, start=start, issued=issued, places=results.places)
        activate(m, self, results, states)
        add_to_stream(m, self, results, states, start, events)
        self._choose(m, issued, results, states, waiting)
        return m

    def _choose(
        self, m: Module, issued: Sequence[data.View], results: Results, states: Sequence[State], waiting: Signal
    ) -> None:
        """Choose the tokens, and offer them when all are there that are `waiting`."""
        choose, here = self.choose, results.places.o
        m.submodules.choose = choose
        latency = choose.latency
        if self.score is None:
            m.d.comb += [
                *each(choose.i.values, self.requantize.o.values),
                choose.i.valid.eq(results.going_to(Destination.LOGITS)),
                choose.last.eq(here.final),
            ]
        else:
            latency += self.score.latency
            self._score(m, issued, results, states)
        if len(states) == 1:
            ended = choose.o.valid
            with m.If(ended):
                m.d.sync += self.o.payload.eq(choose.o.token)
        else:
            m.submodules.chosen_sequence = owner = Delay(here.sequence.shape(), latency)
            m.d.comb += [owner.en.eq(1), owner.i.eq(here.sequence)]
            left = waiting & ~(1 << owner.o)[: len(states)]
            ended = choose.o.valid & ~left.any()
            for state in states:
                with m.If(choose.o.valid & belongs(owner.o, state.number)):
                    m.d.sync += [waiting.eq(left), self.o.payload[state.number].eq(choose.o.token)]
        with m.If(ended):
            m.d.sync += self.o.valid.eq(1)
        with m.Elif(self.o.ready):
            m.d.sync += self.o.valid.eq(0)

    def _score(self, m: Module, issued: Sequence[data.View], results: Results, states: Sequence[State]) -> None:
        """Add noise to the logits, which the choice then compares."""
        score, choose, here = self.score, self.choose, results.places.o
        assert score is not None
        m.submodules.score = score
        ahead = self.memory_latency + self.engine.latency + self.requantize.latency
        if ahead < score.SOON_CYCLES:
            raise CircuitError(f"{self.plan.lanes} lanes are too few to sample")
        before = issued[ahead - score.SOON_CYCLES]
        soon = before.valid & before.last & (before.work == Work.WEIGHTS)
        m.submodules.scored_sequence = scored = Delay(here.sequence.shape(), score.latency - 1)
        m.d.comb += [scored.en.eq(1), scored.i.eq(here.sequence)]
        stages = {"multiplier": 0, "amount": Multiplier.latency, "sample": score.latency - 1}
        m.d.comb += [
            getattr(score, name).eq(select([state.choice[name] for state in states], scored.taps[stage]))
            for name, stage in stages.items()
        ]
        m.d.comb += [
            score.soon.eq(soon & (before.destination == Destination.LOGITS)),
            score.last_soon.eq(before.final),
            score.random.eq(select([state.choice.random for state in states], before.sequence)),
            *each(score.i.values, self.requantize.o.values),
            score.i.valid.eq(results.going_to(Destination.LOGITS)),
            score.last.eq(here.final),
            *each(choose.i.values, score.o.values),
            choose.i.valid.eq(score.o.valid),
            choose.last.eq(score.o_last),
        ]
