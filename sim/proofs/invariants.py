"""Invariants of stream parts, engine, matrix-vector product, argmax, cache and UART."""

from collections.abc import Sequence
from typing import Any

from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Const, Module, Mux, Signal, Value

from hdl.cores.engine import Engine, Operation
from hdl.cores.uart import FRAME_BITS

from .conservation import CONSERVED, Conservation, WholeSums, fifo_claims, register_claims
from .internals import ElaboratedCore, Slot, count_full, count_ones, register_slots, stages

ROW_COUNTERS = "the circuit counts a row's elements as its source does"


def stream_queue(environment: Conservation, m: Module) -> list[Assert]:
    """What leaves a `StreamQueue` is what entered it, in order."""
    elaborated, core = environment.elaborated, environment.elaborated.core
    claims = fifo_claims(elaborated, core.internals.memory, "memory")
    return [*claims, *_in_order(environment, m, elaborated.queue_slots(core))]


def stream_register(environment: Conservation, m: Module) -> list[Assert]:
    """What leaves a `StreamRegister` is what entered it, in order."""
    core = environment.elaborated.core
    return [*register_claims(core, "register"), *_in_order(environment, m, register_slots(core))]


def _in_order(environment: Conservation, m: Module, slots: Sequence[Slot]) -> list[Assert]:
    """Track any one payload from entering to leaving: what leaves is what entered, in order."""
    stored, count = count_full(slots), environment.accepted_minus_delivered(m, "i", "o")
    i, o = environment.core.i, environment.core.o
    watched, before, payload = Signal(), Signal(range(len(slots) + 1)), Signal.like(Value.cast(i.payload))
    leaves = environment.taken["o"]
    with m.If(~watched & environment.taken["i"] & AnySeq(1)):
        m.d.sync += [watched.eq(1), before.eq(stored - leaves), payload.eq(Value.cast(i.payload))]
    with m.If(watched & leaves):
        m.d.sync += before.eq(before - 1)
        with m.If(before == 0):
            m.d.sync += watched.eq(0)
    places, place = [], Const(0, 1)
    for slot in slots:
        places.append(~(slot.full & (before == place)) | (Value.cast(slot.payload) == payload))
        place = place + slot.full
    return [
        Assert(count == stored, CONSERVED),
        Assert(~watched | (before < stored), "a payload that entered is stored until it leaves"),
        *(Assert(~watched | there, "a stored payload is what entered, in its place") for there in places),
        Assert(~(watched & leaves & (before == 0)) | (Value.cast(o.payload) == payload), "what leaves is what entered"),
    ]


def width_converter(environment: Conservation, m: Module) -> list[Assert]:
    """Each element passes a `WidthConverter` once."""
    core = environment.elaborated.core
    part = core.internals.part
    ratio = max(core.i_lanes, core.o_lanes) // min(core.i_lanes, core.o_lanes)
    accepted, delivered = environment.transfers(m, "i"), environment.transfers(m, "o")
    if core.o_lanes > core.i_lanes:
        difference = accepted - (delivered + core.o.valid) * ratio - part
        framed = Assert(environment.index["i"] % ratio == part, ROW_COUNTERS)
    else:
        difference = accepted * ratio - delivered - Mux(core.o.valid, ratio - part, 0)
        framed = Assert(core.o.valid | (part == 0), "part: 0 without a word")
    return [
        framed,
        Assert(part < ratio, "part: within a word"),
        Assert(difference[: environment.COUNTER_BITS] == 0, "each element passes once"),
    ]


def argmax(environment: Conservation, m: Module) -> list[Assert]:
    """Each row gives a token of `ArgMax`, and its counters stay below the row's length."""
    core, internals = environment.elaborated.core, environment.elaborated.internals
    counters = [internals.place, internals.best_index, internals.token]
    counters += [tag.index for tag in internals.tags.taps[1:]]
    ended = Signal(environment.COUNTER_BITS)
    m.d.sync += ended.eq(ended + (environment.taken["i"] & core.i.payload.last))
    tokens = environment.transfers(m, "o")
    stored = count_ones(tag.valid & tag.last for tag in internals.tags.taps[1:]) + core.o.valid
    return [
        *(Assert(counter < core.length, "below the row's length") for counter in counters),
        Assert(environment.index["i"] == internals.place, ROW_COUNTERS),
        Assert((ended - tokens)[: environment.COUNTER_BITS] == stored, "each row gives a token"),
    ]


def key_value_cache(environment: Conservation, m: Module) -> list[Assert]:
    """Each token of a `KeyValueCache` gives the rows so far, from the addresses where they are."""
    core, internals = environment.elaborated.core, environment.elaborated.internals
    words, rows = core.words, core.context_length
    giving, value, word, row = internals.giving, internals.value, internals.word, internals.row
    position, base, address = internals.position, internals.base, internals.address
    place = Mux(value, words, 0) + word
    half = Mux(value, rows * words, 0)
    left_of_row = (position - row) * words + words - word
    to_give = Mux(giving, left_of_row + Mux(value, 0, (position + 1) * words), 0)
    owed = Signal(range(2 * rows * words + 8))
    token = environment.taken["i"] & value & (word == words - 1)
    new_position = Mux(core.i.payload.restart & (place == 0), 0, position)
    m.d.sync += owed.eq(owed + Mux(token, 2 * (new_position + 1) * words, 0) - environment.taken["o"])
    return [
        Assert((word < words) & (row < rows) & (position < rows), "counters are within their range"),
        Assert(row <= position, "no row is read that has not been written"),
        Assert(base == position * words, "a token's address is that of its position"),
        Assert(address == Mux(giving, half + row * words + word, 0), "a word's address is that of its row"),
        Assert(giving | (row == 0), "reading begins with the first row"),
        Assert(Mux(giving, environment.index["i"] == 0, environment.index["i"] == place), ROW_COUNTERS),
        Assert(internals.cache.write_ports[0].addr < 2 * rows * words, "no address is beyond the memory"),
        Assert(
            owed == to_give + count_ones(tag.valid for tag in stages(internals.tags)),
            "each token gives the rows so far",
        ),
    ]


def _commands(core: Engine) -> list[Any]:
    """Return the tags of an engine's commands, the last one taken first."""
    return [*core.internals.fetching.taps[1:], *core.internals.datapath.internals.tags.taps[1:]]


def _results(elaborated: ElaboratedCore, core: Engine) -> tuple[list[Assert], Value]:
    """Return the claims about an engine's credits, and its results."""
    fifo, credits = core.internals.results, core.internals.credits
    results = count_ones(tag.dot & tag.last for tag in _commands(core)) + fifo.level
    return [
        *fifo_claims(elaborated, fifo, "results"),
        Assert(credits + results == core.latency + 1, "credits: each result has its place"),
    ], results


def _lane_sums(environment: WholeSums, m: Module) -> list[Assert]:
    """The register of lane sums belongs to one sum from its last word to the transfer of its
    result, and the lanes are clear when another one reaches them.
    """
    core, internals = environment.elaborated.core, environment.elaborated.internals
    path = internals.datapath
    # From the last command taken to that whose sums are given by the datapath.
    tags = _commands(core)[: core.lanes_latency - 1]
    lanes, ends = [tag.accumulate for tag in tags], [tag.accumulate & tag.last for tag in tags]
    free, valid = internals.lanes_free, environment.core.o_lanes.valid
    add, clear = Value.cast(path.internals.add.o), Value.cast(path.internals.clear.o)
    fresh, ending = path.internals.fresh, path.internals.ending
    # The copies have no reset: for a cycle after one they may add what the lanes forget then.
    settled = Signal()
    m.d.sync += settled.eq(~fresh)
    return [
        Assert(count_ones(ends) + valid == ~free, "lanes: taken means that a result is there or on its way"),
        *(
            Assert(~end | ~count_ones(lanes[:place]).bool(), "lanes: no sum follows before the transfer")
            for place, end in enumerate(ends)
        ),
        Assert(~valid | ~count_ones(lanes).bool(), "lanes: no sum follows a result that waits"),
        Assert(
            environment.between | (environment.operation != Operation.ACCUMULATE) | free, "lanes: owned by a sum begun"
        ),
        Assert(fresh | (add == lanes[-2].replicate(len(add))), "lanes: added is what has come so far"),
        Assert(ending == ends[-2], "lanes: the end of a sum is seen a cycle before"),
        Assert(~settled | (clear == ends[-1].replicate(len(clear))), "lanes: cleared while they are given"),
        Assert(~(settled & fresh), "lanes: cleared once after a reset"),
        Assert(~fresh | ~(count_ones(lanes).bool() | valid), "lanes: empty after a reset"),
    ]


def engine(environment: WholeSums, m: Module) -> list[Assert]:
    """Each sum of an `Engine` gives a result, for which there is room."""
    claims, results = _results(environment.elaborated, environment.elaborated.core)
    asked = Signal(environment.COUNTER_BITS)
    command = environment.core.i.payload
    m.d.sync += asked.eq(
        asked
        + (
            environment.taken["i"]
            & command.last
            & ((command.operation == Operation.DOT) | (command.operation == Operation.PAIRS))
        )
    )
    given = environment.transfers(m, "o")
    internals = environment.elaborated.core.internals
    announced = internals.datapath.internals.announced
    return [
        Assert(announced == internals.fetching.o.pairs, "pairs are announced"),
        *claims,
        *_lane_sums(environment, m),
        Assert((asked - given)[: environment.COUNTER_BITS] == results, "each sum gives one result"),
    ]


def matrix_vector(environment: Conservation, m: Module) -> list[Assert]:
    """Each vector gives all rows of a `MatrixVector`, once."""
    elaborated, core, internals = environment.elaborated, environment.elaborated.core, environment.elaborated.internals
    tile, slices, rows = core.tile, core.slices, core.parameters.rows
    tiles = core.tile.num_words(*core.parameters.weight.shape) // slices  # of a vector
    claims, results = _results(elaborated, internals.engine)
    loading, taken, address = internals.loading, internals.taken, internals.address
    part, left, row = internals.part, internals.left, internals.row
    tile_of_row, place = Signal(range(tiles + 1)), Signal(range(tile.rows + 1))
    m.d.comb += [tile_of_row.eq(row // tile.rows), place.eq(row % tile.rows)]
    issued, part_of_address = Signal(range(tiles + 1)), Signal(range(slices + 1))
    m.d.comb += [issued.eq(address // slices), part_of_address.eq(address % slices)]
    to_come = Mux(loading, 0, tiles - issued) + results + (left != 0)
    vectors = environment.accepted_minus_delivered(m, "i", "o", rows=True)
    leaving = count_ones(tag.valid & tag.last for tag in stages(internals.tags))
    depth = internals.engine.depth
    return [
        *claims,
        Assert((taken < core.parameters.columns) & (address < depth), "counters are within their range"),
        Assert(row < rows, "rows are counted"),
        Assert(part == part_of_address, "a slice is counted with its word"),
        Assert(loading | (taken == 0), "a vector is taken before it is multiplied"),
        Assert(~loading | (address == 0), "words are read when a vector is there"),
        Assert(Mux(left == 0, place == 0, left + place == tile.rows), "a tile's rows leave one after the other"),
        Assert(environment.index["i"] == taken, ROW_COUNTERS),
        Assert(tiles * (vectors - leaving) == to_come + tile_of_row, "each vector gives all its tiles, once"),
    ]


def uart(environment: Conservation, m: Module) -> list[Assert]:
    """A `UART` counts no further than a bit's cycles and a frame's bits."""
    core = environment.elaborated.core
    transmitter, receiver = core.internals.transmitter.internals, core.internals.receiver.internals
    return [
        Assert(transmitter.timer < core.divisor, "transmitter: cycles of a bit"),
        Assert(transmitter.remaining <= FRAME_BITS, "transmitter: bits of a frame"),
        Assert(receiver.timer < core.divisor, "receiver: cycles of a bit"),
    ]
