"""Where requantized results go: queries, keys, values, hidden rows, and the residual stream."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, ShapeLike, Signal, Value, signed
from amaranth.lib import data

from ..parts.banked_memory import BankedMemory
from ..parts.dot_product import Delay
from ..parts.registers import data_register
from .program import Destination, Event
from .residual import ResidualRows
from .row_ports import each
from .states import State, belongs, select
from .units import AttentionUnits, Units

Events = Mapping[tuple[int, Event], Signal]


@dataclass
class Results:
    """Rows that come out of the requantizers.

    Attributes:
        places: {valid, destination, layer, final, sequence} of a cycle's rows; its taps are the
            same up to `requantize.latency` cycles ahead.
    """

    places: Delay

    def ahead(self, cycles: int) -> data.View:
        """Return the place of the rows that come in so many cycles."""
        return self.places.taps[self.places.stages - cycles]

    def going_to(self, destination: Destination, cycles: int = 0) -> Value:
        """Return whether rows that go there come in so many cycles."""
        place = self.ahead(cycles)
        return place.valid & (place.destination == destination)


def requantized(m: Module, units: AttentionUnits, result: data.View, valid: Value) -> Results:
    """Return what comes out, of rows with their command's tag that go into the requantizers."""
    names = ("destination", "layer", "final", "sequence")
    shapes: dict[str, ShapeLike] = {name: result.shape()[name].shape for name in names}
    m.submodules.places = places = Delay(data.StructLayout({"valid": 1, **shapes}), units.requantize.latency)
    m.d.comb += [places.en.eq(1), places.i.valid.eq(valid)]
    m.d.comb += [places.i[name].eq(result[name]) for name in names]
    return Results(places)


def next_chunk(m: Module, name: str, write: Value, chunks: int) -> Signal:
    """Return which of so many chunks is written, one after the other and again from the first."""
    chunk = Signal(range(chunks), name=name)
    with m.If(write):
        m.d.sync += chunk.eq(Mux(chunk == chunks - 1, 0, chunk + 1))
    return chunk


def _store(
    m: Module,
    name: str,
    vectors: Sequence[list[Any]],
    write: Value,
    final: Value,
    values: data.View,
    sequence: Value,
) -> None:
    """Write a cycle's values into a sequence's vector, from its beginning until `final`."""
    count = len(values)
    chunks = -(-len(vectors[0]) // count)
    chunk = Signal(range(chunks), name=f"{name}_chunk")
    with m.If(write):
        m.d.sync += chunk.eq(Mux(final, 0, chunk + 1))
    for owner, vector in enumerate(vectors):
        with m.If(write & belongs(sequence, owner)), m.Switch(chunk):
            for number in range(chunks):
                with m.Case(number):
                    places = vector[number * count : (number + 1) * count]
                    m.d.sync += [place.eq(value) for place, value in zip(places, values, strict=False)]


def store_projections(
    m: Module, units: AttentionUnits, results: Results, states: Sequence[State], cache: BankedMemory
) -> None:
    """Store queries, keys and values, the former two rotated where positions are.

    Values then wait as long as the rotation takes, so that they never overtake a key.
    """
    plan, requantize, here = units.plan, units.requantize, results.places.o
    element = signed(plan.activation_bits)
    stages = 0 if units.rotate is None else units.rotate.latency
    shapes = {"layer": here.layer.shape(), "sequence": here.sequence.shape()}
    place = data.StructLayout({"query": 1, "key": 1, "value": 1, "final": 1, **shapes})
    m.submodules.projected = projected = Delay(place, stages)
    m.submodules.projected_rows = rows = Delay(data.ArrayLayout(element, plan.rows), stages)
    m.d.comb += [
        projected.en.eq(1),
        projected.i.query.eq(results.going_to(Destination.QUERY)),
        projected.i.key.eq(results.going_to(Destination.KEY)),
        projected.i.value.eq(results.going_to(Destination.VALUE)),
        projected.i.final.eq(here.final),
        projected.i.layer.eq(here.layer),
        projected.i.sequence.eq(here.sequence),
        rows.en.eq(1),
        *each(rows.i, requantize.o.values),
    ]
    result = projected.o
    values = Signal(data.ArrayLayout(element, plan.rows))
    m.d.comb += values.eq(rows.o)
    if units.rotate is not None:
        m.submodules.rotate = rotate = units.rotate
        ahead = rotate.table_stages
        position = states[0].position
        if len(states) > 1:
            position = data_register(position, name="rotated_position")
            m.d.sync += position.eq(select([one.position for one in states], results.ahead(ahead + 1).sequence))
        m.d.comb += [
            rotate.soon.eq(results.going_to(Destination.QUERY, ahead) | results.going_to(Destination.KEY, ahead)),
            rotate.position.eq(position),
            rotate.i.valid.eq(projected.i.query | projected.i.key),
            *each(rotate.i.values, requantize.o.values),
            rotate.key.eq(projected.i.key),
            rotate.layer.eq(here.layer),
        ]
        with m.If(~result.value):
            m.d.comb += each(values, rotate.o.values)
    queries = [state.hidden[: plan.channels] for state in states]
    _store(m, "query", queries, result.query, result.final, values, result.sequence)
    # A key or a value is assembled, then written in one cycle into its slot.
    assembly = [data_register(element, name=f"assembly_{number}") for number in range(plan.kv_channels)]
    stored = result.key | result.value
    _store(m, "assembly", [assembly], stored, result.final, values, Const(0, 0))
    whole, sequence = Signal(), data_register(result.sequence.shape())
    bases = [
        Array(
            plan.cache_address(number, values=values, sequence=one.number)
            for number in range(plan.layers)
            for values in (False, True)
        )[Cat(result.value, result.layer)]
        for one in states
    ]
    base = data_register(cache.write_address)
    m.d.sync += [whole.eq(stored & result.final), sequence.eq(result.sequence), base.eq(select(bases, result.sequence))]
    slot = select([one.slot for one in states], sequence)
    m.d.comb += [
        cache.write_address.eq(base + select([one.row for one in states], sequence)),
        cache.write_data.eq(Cat(*assembly).replicate(plan.slots)),
        cache.write_enable.eq(Mux(whole, 1 << slot, 0)),
    ]


def activate(m: Module, units: Units, results: Results, states: Sequence[State]) -> None:
    """Activate the hidden row and store it."""
    m.submodules.hidden = unit = units.hidden
    here = results.places.o
    m.d.comb += [
        unit.i.valid.eq(results.going_to(Destination.HIDDEN)),
        *each(unit.i.values, units.requantize.o.values),
        unit.layer.eq(here.layer),
    ]
    tag = data.StructLayout({"final": 1, "sequence": here.sequence.shape()})
    m.submodules.hidden_tags = tags = Delay(tag, unit.latency)
    m.d.comb += [tags.en.eq(1), tags.i.final.eq(here.final), tags.i.sequence.eq(here.sequence)]
    hidden = [state.hidden for state in states]
    _store(m, "hidden", hidden, unit.o.valid, tags.o.final, unit.o.values, tags.o.sequence)


def add_to_stream(
    m: Module, units: Units, results: Results, states: Sequence[State], start: Value, events: Events
) -> None:
    """Embed, add to the residual stream, normalize; of two tokens one after the other is embedded.

    Args:
        m: The machine's module.
        units: Its units.
        results: What is added.
        states: The sequences'.
        start: A bit for each sequence: a token of it has been taken.
        events: `NORMALIZED` is driven.
    """
    plan, here, soon = units.plan, results.places.o, results.ahead(ResidualRows.READ_STAGES)
    m.submodules.embedding, m.submodules.residual = embedding, residual = units.embedding, units.residual
    m.submodules.norms = norms = units.norms
    ended = residual.o.valid & residual.last
    begin, embedded = start[0], Signal(range(plan.sequences))
    if len(states) > 1:
        follows, second = Signal(), Signal()
        m.d.sync += second.eq(follows & ended)
        with m.If(start.any()):
            m.d.sync += follows.eq(start.all())
        with m.Elif(ended):
            m.d.sync += follows.eq(0)
        current = Signal()
        m.d.comb += embedded.eq(Mux(start.any(), ~start[0], current | second))
        m.d.sync += current.eq(embedded)
        begin = start.any() | second
    m.d.comb += [
        embedding.start.eq(begin),
        embedding.token.eq(select([state.choice.token for state in states], embedded)),
        embedding.position.eq(select([state.position for state in states], embedded)),
        residual.load.eq(embedding.o),
        residual.soon.eq(results.going_to(Destination.RESIDUAL, ResidualRows.READ_STAGES)),
        residual.soon_sequence.eq(soon.sequence),
        residual.i.valid.eq(results.going_to(Destination.RESIDUAL)),
        residual.sequence.eq(Mux(embedding.o.valid, embedded, here.sequence)),
        *each(residual.i.values, units.requantize.o.values),
    ]
    # of each sequence's next norm
    numbers = [Signal(range(len(plan.norms)), name=f"number_{state.number}") for state in states]
    for owner, number in enumerate(numbers):
        with m.If(ended & belongs(residual.o_sequence, owner)):
            m.d.sync += number.eq(Mux(number == len(plan.norms) - 1, 0, number + 1))
    m.d.comb += [
        norms.i.valid.eq(residual.o.valid),
        *each(norms.i.data, residual.o.values),
        norms.i.last.eq(residual.last),
        norms.i.norm.eq(select(numbers, residual.o_sequence)),
    ]
    tag = data.StructLayout({"valid": 1, "sequence": range(plan.sequences)})
    delays = {"normalized": units.after_norm - units.memory_latency}
    if len(states) > 1:
        delays["norm"] = norms.latency - 1
    late = {}
    for name, stages in delays.items():
        m.submodules[f"{name}_timer"] = timer = Delay(tag, stages)
        m.d.comb += [timer.en.eq(1), timer.i.valid.eq(ended), timer.i.sequence.eq(residual.o_sequence)]
        late[name] = timer.o
    normalized = late["normalized"]
    m.d.comb += [
        events[state.number, Event.NORMALIZED].eq(normalized.valid & belongs(normalized.sequence, state.number))
        for state in states
    ]
    owner = data_register(range(plan.sequences), name="norm_owner")
    if len(states) > 1:
        with m.If(late["norm"].valid):
            m.d.sync += owner.eq(late["norm"].sequence)
    chunk = next_chunk(m, "norm_chunk", norms.o.valid, plan.channels // plan.norm_lanes)
    for state in states:
        for place, register in enumerate(state.vector):
            number, lane = divmod(place, plan.norm_lanes)
            with m.If(norms.o.valid & belongs(owner, state.number) & (chunk == number)):
                m.d.sync += register.eq(norms.o.data[lane])
