"""The machine's work on a program: commands, the engine, and where its results go."""

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data

from ..parts.banked_memory import BankedMemory
from ..parts.dot_product import Delay
from .contexts import attend
from .operands import memory_word, operands
from .program import EVENT_OF, Destination, Event, Work
from .results import Events, Results, requantized, store_projections
from .sequencer import Sequencer
from .states import State, belongs
from .units import AttentionUnits


def execute(
    m: Module, units: AttentionUnits, sequencer: Sequencer, states: Sequence[State]
) -> tuple[Sequence[data.View], Results, Events, BankedMemory]:
    """Connect sequencer, memory, engine, requantizers and attention's units.

    Args:
        m: The machine's module.
        units: Its units.
        sequencer: Its sequencer; `start` is left to the caller.
        states: The sequences'.

    Returns:
        Commands, by cycles since they were given; what comes out of the requantizers; the events,
        of which `NORMALIZED` is left to the caller; the memory of keys and values.
    """
    plan, engine, requantize = units.plan, units.engine, units.requantize
    m.submodules.sequencer, m.submodules.engine, m.submodules.requantize = sequencer, engine, requantize
    m.d.comb += [sequencer.rows[state.number].eq(state.row) for state in states]
    # Commands, and what is known of them as they go through.
    memory = units.memory_latency
    command = sequencer.command
    stages = memory + engine.latency
    m.submodules.tags = tags = Delay(command.shape(), stages)
    m.d.comb += [tags.en.eq(1), tags.i.eq(command)]
    issued = tags.taps
    weights = [tag.valid & (tag.work == Work.WEIGHTS) & tag.last for tag in issued]

    events = {key: Signal(name=f"{key[1].name.lower()}_{key[0]}") for key in sequencer.keys}
    m.d.comb += sequencer.events.eq(Cat(events.values()))
    _count_down(m, units, command, events)

    word, cache = memory_word(m, units, command)
    of_weights = issued[memory].work == Work.WEIGHTS
    m.d.comb += [
        engine.word.eq(word),
        engine.activations.eq(operands(m, units, [sequencer.issued, *issued], states)),
        engine.i.dot.eq(issued[memory].valid & (issued[memory].work != Work.VALUES)),
        engine.i.accumulate.eq(issued[memory].valid & (issued[memory].work == Work.VALUES)),
        engine.i.tap.eq(Mux(of_weights, len(engine.parameters.columns) - 1, 0)),
        engine.i.first.eq(issued[memory].first),
        engine.i.last.eq(issued[memory].last),
        engine.i.pairs.eq(of_weights if plan.pairs else 0),
        *([engine.pairs_next.eq(issued[memory - 1].work == Work.WEIGHTS)] if plan.pairs else []),
    ]

    # Results: requantized, then to where they go.
    groups = plan.lanes // plan.columns
    for number in range(plan.rows):
        sums = engine.o.lower if number < groups else engine.o.upper
        m.d.comb += requantize.i.values[number].eq(sums[number % groups])
    soon = stages - requantize.table_stages
    m.d.comb += [
        requantize.soon.eq(weights[soon]),
        requantize.sequence.eq(issued[soon].sequence),
        requantize.i.valid.eq(weights[stages]),
    ]
    results = requantized(m, units, issued[stages], weights[stages])
    store_projections(m, units, results, states, cache)
    attend(m, units, issued, sequencer.begin_values, states, events)
    return issued, results, events, cache


def _count_down(m: Module, units: AttentionUnits, command: data.View, events: Events) -> None:
    """Let events happen a known time after the last issue that they follow from."""
    latencies = units.latencies
    final = command.valid & command.final  # a cycle after the issue

    def later(key: tuple[int, Event], condition: Value, cycles: int) -> None:
        # what happens in a cycle can be waited for in the next
        m.submodules[f"{events[key].name}_timer"] = timer = Delay(unsigned(1), cycles - 2)
        m.d.comb += [timer.en.eq(1), events[key].eq(timer.o)]
        m.d.comb += timer.i.eq(final & condition & belongs(command.sequence, key[0]))

    for sequence in range(units.plan.sequences):
        for destination, cycles in latencies.events.items():
            if destination != Destination.RESIDUAL:  # the norms tell when theirs happens
                ended = (command.work == Work.WEIGHTS) & (command.destination == destination)
                later((sequence, EVENT_OF[destination]), ended, cycles)
        later((sequence, Event.SCORES), command.work == Work.SCORES, latencies.scores)
