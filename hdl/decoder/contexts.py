"""Attention around the engine: scores to the softmax units, sums to the division, contexts back."""

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data

from ..parts.registers import data_register
from .program import Event, Work
from .results import Events, next_chunk
from .row_ports import each
from .states import State, belongs, select
from .units import AttentionUnits


def attend(
    m: Module,
    units: AttentionUnits,
    issued: Sequence[data.View],
    begin_values: Signal,
    states: Sequence[State],
    events: Events,
) -> None:
    """Connect softmax units and division.

    Args:
        m: The machine's module, which has the softmax units.
        units: Its units.
        issued: Commands, by cycles since they were given.
        begin_values: A step of values has begun, a cycle ago.
        states: The sequences'.
        events: `CONTEXT`, and `ROOM` where a step waits for it, are driven.
    """
    plan, engine = units.plan, units.engine
    result = issued[units.memory_latency + engine.latency]
    # The last word's scores are counted a cycle early: what compares them has no time for it.
    before = issued[units.memory_latency + engine.latency - 1]
    slot, count = select([state.slot for state in states], before.sequence), data_register(range(plan.slots + 1))
    m.d.sync += count.eq(Mux(before.final, slot + 1, plan.slots))
    for head, unit in enumerate(units.softmax):
        m.d.comb += [
            unit.start.eq(begin_values),
            unit.i.valid.eq(result.valid & (result.work == Work.SCORES)),
            unit.i.last.eq(result.final),
            unit.i.count.eq(count),
            unit.i.layer.eq(result.layer),
        ]
        m.d.comb += [
            unit.i.scores[place].eq(engine.o.lower[place * plan.kv_heads + head]) for place in range(plan.slots)
        ]
    m.submodules.divide = divide = units.divide
    summed = issued[units.memory_latency + engine.lanes_latency]
    m.d.comb += [
        divide.i.valid.eq(engine.o_lanes.valid),
        *each(divide.i.sums, engine.o_lanes.sums),
        divide.i.layer.eq(summed.layer),
        divide.i.sequence.eq(summed.sequence),
        divide.i_denominators.valid.eq(units.softmax[0].o_denominator.valid),
    ]
    m.d.comb += [
        divide.i_denominators.values[head].eq(unit.o_denominator.value) for head, unit in enumerate(units.softmax)
    ]
    # Contexts of all passes fill the vector; the event comes before the last of them.
    contexts = divide.o
    words = plan.channels // plan.context_lanes
    done = next_chunk(m, "context_chunk", contexts.valid, words)
    soon = contexts.valid & (done == words - 1 - units.context_lead)
    for state in states:
        own = belongs(contexts.sequence, state.number)
        m.d.comb += events[state.number, Event.CONTEXT].eq(soon & own)
        for place, register in enumerate(state.vector):
            chunk, lane = divmod(place, plan.context_lanes)
            with m.If(contexts.valid & own & (done == chunk)):
                m.d.sync += register.eq(contexts.data[lane])
    if (0, Event.ROOM) in events:
        row_words = plan.kv_channels // plan.context_lanes
        word = next_chunk(m, "division_chunk", contexts.valid, row_words)
        m.d.comb += events[0, Event.ROOM].eq(contexts.valid & (word == row_words - 1 - units.room_lead))
