# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its cycles)
"""The attention accelerator: the decoder's machine with the steps of one layer's attention.

    row ─ vector ─┬─ engine ─ requantize ─ rotate ─ query, key, value
          query ──┤     │
      numerators ─┘     ├─ scores ─ softmax units ─ numerators
                        ├─ sums ─ division ─ vector
                        └─ output ─ queue ─ a channel a cycle

Sequencer, engine, memory and the units of attention are the whole decoder's; what differs is how a
row comes in and goes out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

import fixedpoint

from ..errors import CircuitError
from ..parts.arithmetic import shape_of, wide_multipliers
from ..parts.payload import connect
from ..parts.stream_parts import CreditQueue, WidthConverter, word_shape
from .execute import execute
from .layout import Layout, Part
from .program import Destination, Event, make_program
from .results import next_chunk
from .row_ports import each
from .sequencer import Sequencer
from .states import make_states, take_token
from .units import AttentionUnits

CONTEXT_LANES = (4, 2, 1)  # of the division, the first that suits
START_CYCLES = 5  # from a row's first element taken to the earliest issue


@dataclass(frozen=True, eq=False)
class AttentionPlan(Layout):
    """One layer's attention on a machine of so many lanes.

    Attributes:
        attention: What is computed.
        lanes: Multipliers of the engine L.
        context_lanes: Channels that the division gives a cycle.
    """

    attention: fixedpoint.Attention
    lanes: int
    context_lanes: int

    def __post_init__(self) -> None:
        """Raise a CircuitError, with all reasons, for what the machine cannot do."""
        self._check_lanes()

    @property
    def attentions(self) -> tuple[fixedpoint.Attention, ...]:
        """The only one."""
        return (self.attention,)

    @property
    def context_length(self) -> int:
        """Positions T of a sequence."""
        return self.attention.context_length

    def _parts(self) -> Iterator[Part]:
        return self._attention_parts(0, "")


def plan_attention(attention: fixedpoint.Attention) -> AttentionPlan:
    """Return the plan of the fewest lanes that work on whole rows, at least as many as channels."""
    channels, core = attention.embed_dim, attention.core
    of_head = [lanes for lanes in CONTEXT_LANES if core.kv_channels % lanes == 0]
    context_lanes = next(lanes for lanes in of_head if core.head_dim % lanes == 0 or lanes % core.head_dim == 0)
    try:
        return AttentionPlan(attention, channels, context_lanes)
    except CircuitError:  # rotation needs two rows at a time
        return AttentionPlan(attention, 2 * channels, context_lanes)


class Attention(AttentionUnits, wiring.Component):
    """`fixedpoint.Attention` as a circuit: normalized tokens in, projected attention results out.

    Equation: `fixedpoint.Attention.compute_stream`. A token starts a new sequence when `restart`
    is set on its first element, after reset, and after `context_length` tokens of a sequence.

    Throughput: `token_cycles(p)` cycles for the token at position p, from its first element taken
    to the next token's. Latency: `output_latency` clock edges from the end of that to its last
    result.
    Resources: `multipliers` hard multipliers; block RAM for 4·C² weights and 2·T keys and values.

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762.

    Attributes:
        parameters: Weights, formats and sizes.
        program: What the engine works on, for a token.
        i: In, stream of {data: input format, restart}: C elements a token.
        o: Out, stream of {data: residual format, last}: C elements a token, `last` on the C-th.

    Internals:
        Results wait in a queue for a token's; the next token arrives meanwhile, and is worked on
        once the queue is empty. So nothing else ever has to stall.
    """

    def __init__(self, parameters: fixedpoint.Attention):
        if not isinstance(parameters, fixedpoint.Attention):
            raise TypeError(f"parameters must be a fixedpoint.Attention, not {type(parameters).__name__}")
        self.parameters = parameters
        plan = plan_attention(parameters)
        AttentionUnits.__init__(self, plan)
        self.latencies = self._latencies(
            {}, embedding=max(plan.channels, START_CYCLES), next_embedding=0, token=self.result_latency + 1
        )
        self.program = make_program(plan)
        self.sequencer = Sequencer([self.program], plan, self.latencies.values_delay)
        result = shape_of(parameters.output.output)
        self._queue = CreditQueue(
            data.StructLayout({"data": word_shape(result, plan.rows), "last": 1}), max(3, plan.channels // plan.rows)
        )
        self._converter = WidthConverter(result, plan.rows, 1) if plan.rows > 1 else None
        wiring.Component.__init__(
            self,
            {
                "i": In(stream.Signature(data.StructLayout({"data": shape_of(parameters.query.input), "restart": 1}))),
                "o": Out(stream.Signature(data.StructLayout({"data": result, "last": 1}))),
            },
        )

    @property
    def multipliers(self) -> int:
        """Hard multipliers of engine, division and rotation."""
        plan = self.plan
        divide = plan.context_lanes * wide_multipliers(self.parameters.weighted_sum_bits)
        return plan.lanes + divide + (2 * plan.rows if plan.rotary else 0)

    @property
    def output_latency(self) -> int:
        """Clock edges from a token's last result computed to the last one given."""
        # R results come a cycle, one goes.
        channels, rows = self.plan.channels, self.plan.rows
        first = self._queue.latency + (0 if self._converter is None else self._converter.latency)
        return first - 1 + channels - channels // rows

    def token_cycles(self, position: int) -> int:
        """Return the clock edges from a token's first element taken to the next token's.

        Args:
            position: The token's place in its sequence, 0 for the first.
        """
        return self.program.cycles(position, self.latencies)

    def cycles(self, positions: Iterable[int]) -> int:
        """Return the clock edges from the first element taken to the last result given, without
        stalls.

        Args:
            positions: Each token's place in its sequence, 0 for the first.
        """
        tokens = Counter(map(int, positions))
        return sum(count * self.token_cycles(place) for place, count in tokens.items()) + self.output_latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        plan, sequencer = self.plan, self.sequencer
        states = make_states(plan, self.i.payload.shape())
        (state,) = states
        _, results, events, _ = execute(m, self, sequencer, states)

        # Take a row.
        m.submodules.queue = queue = self._queue
        running, whole, start = Signal(), Signal(), Signal()
        take = self.i.valid & self.i.ready
        place = next_chunk(m, "place", take, plan.channels)
        first, last = take & (place == 0), take & (place == plan.channels - 1)
        m.d.comb += self.i.ready.eq(~whole & ~running)
        with m.If(take):
            vector = state.vector
            m.d.sync += [here.eq(after) for here, after in zip(vector, [*vector[1:], self.i.payload.data], strict=True)]
        take_token(m, plan, state, first, self.i.payload, start)
        m.d.sync += start.eq(first)
        m.d.comb += sequencer.start.eq(start)
        # Its results will find room.
        normalized = events[0, Event.NORMALIZED]
        m.d.comb += normalized.eq((whole | last) & (queue.level == 0))
        m.d.sync += whole.eq((whole | last) & ~normalized)

        # Give its results.
        given = results.going_to(Destination.RESIDUAL)
        with m.If(normalized):
            m.d.sync += running.eq(1)
        with m.Elif(given & results.places.o.final):
            m.d.sync += running.eq(0)
        m.d.comb += [
            queue.write.eq(given),
            queue.data.last.eq(results.places.o.final),
        ]
        values = self.requantize.o.values
        if self._converter is None:
            m.d.comb += queue.data.data.eq(values[0])
            connect(m, queue.o, wiring.flipped(self.o))
        else:
            m.submodules.converter = converter = self._converter
            m.d.comb += each(queue.data.data, values)
            connect(m, queue.o, converter.i)
            connect(m, converter.o, wiring.flipped(self.o))
        return m
