"""Invariants of the cores whose accounts need no memory's contents, except queues themselves: see
`proof_accounts`.
"""

from collections.abc import Sequence

from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Const, Module, Mux, Signal, Value

from hdl.cores.engine import Operation
from hdl.parts.amaranth_internals import write_address

from .conservation import Accounts, WholeSums, fifo_claims, register_claims
from .inside import UNNAMED, Inside, Slot, how_many, pipeline


def stream_queue(environment: Accounts, m: Module) -> list[Assert]:
    """What leaves a `StreamQueue` is what entered it, in order."""
    inside = environment.inside
    slots = inside.queue("")
    return [*fifo_claims(inside, "memory"), *_in_order(environment, m, slots)]


def stream_register(environment: Accounts, m: Module) -> list[Assert]:
    """What leaves a `StreamRegister` is what entered it, in order."""
    slots = environment.inside.register("")
    return [*register_claims(environment.inside, ""), *_in_order(environment, m, slots)]


def _in_order(environment: Accounts, m: Module, slots: Sequence[Slot]) -> list[Assert]:
    """What leaves is what entered, in order: any one payload that enters is watched, with the
    number of those before it, until it leaves.
    """
    held, count = how_many(slot.full for slot in slots), environment.inside_now(m, "i", "o")
    i, o = environment.core.i, environment.core.o
    watched, before, payload = Signal(), Signal(range(len(slots) + 1)), Signal.like(Value.cast(i.payload))
    leaves = environment.taken["o"]
    with m.If(~watched & environment.taken["i"] & AnySeq(1)):
        m.d.sync += [watched.eq(1), before.eq(held - leaves), payload.eq(Value.cast(i.payload))]
    with m.If(watched & leaves):
        m.d.sync += before.eq(before - 1)
        with m.If(before == 0):
            m.d.sync += watched.eq(0)
    places, place = [], Const(0, 1)
    for slot in slots:
        places.append(~(slot.full & (before == place)) | (Value.cast(slot.payload) == payload))
        place = place + slot.full
    return [
        Assert(count == held, "as many payloads are inside as entered and have not left"),
        Assert(~watched | (before < held), "a payload that entered is inside until it leaves"),
        *(Assert(~watched | there, "a payload inside is what entered, in its place") for there in places),
        Assert(~(watched & leaves & (before == 0)) | (Value.cast(o.payload) == payload), "what leaves is what entered"),
    ]


def width_converter(environment: Accounts, m: Module) -> list[Assert]:
    """Each element passes a `WidthConverter` once."""
    inside, core = environment.inside, environment.inside.part()
    part = inside.signal("part")
    ratio = max(core.i_lanes, core.o_lanes) // min(core.i_lanes, core.o_lanes)
    entered, left = environment.passed(m, "i"), environment.passed(m, "o")
    if core.o_lanes > core.i_lanes:
        account = entered - (left + core.o.valid) * ratio - part
        framed = Assert(environment.index["i"] % ratio == part, "the circuit counts as its neighbour does")
    else:
        account = entered * ratio - left - Mux(core.o.valid, ratio - part, 0)
        framed = Assert(core.o.valid | (part == 0), "part: 0 without a word")
    return [
        framed,
        Assert(part < ratio, "part: within a word"),
        Assert(account[: environment.COUNTER_BITS] == 0, "each element passes once"),
    ]


def argmax(environment: Accounts, m: Module) -> list[Assert]:
    """Each row gives a token of `ArgMax`, and its counters stay below the row's length."""
    inside, core = environment.inside, environment.inside.part()
    counters = [inside.signal(name) for name in ("place", "index", "best_index", "token")]
    ended = Signal(environment.COUNTER_BITS)
    m.d.sync += ended.eq(ended + (environment.taken["i"] & core.i.payload.last))
    tokens = environment.passed(m, "o")
    held = (inside.signal(UNNAMED) & inside.signal("last")) + core.o.valid
    return [
        *(Assert(counter < core.length, f"{counter.name}: below the row's length") for counter in counters),
        Assert(environment.index["i"] == inside.signal("place"), "the circuit counts as its neighbour does"),
        Assert((ended - tokens)[: environment.COUNTER_BITS] == held, "each row gives a token"),
    ]


def key_value_cache(environment: Accounts, m: Module) -> list[Assert]:
    """Each token of a `KeyValueCache` gives the rows so far, from the addresses where they are."""
    inside, core = environment.inside, environment.inside.part()
    words, rows = core.words, core.context_length
    giving, value = inside.signal(UNNAMED), inside.signal("value")
    word, row, position, base, address = (
        inside.signal(name) for name in ("word", "row", "position", "base", "address")
    )
    place = Mux(value, words, 0) + word
    half = Mux(value, rows * words, 0)
    cache = inside._fragment("cache")
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
        Assert(
            Mux(giving, environment.index["i"] == 0, environment.index["i"] == place),
            "the circuit counts as its neighbour does",
        ),
        Assert(write_address(cache) < 2 * rows * words, "no address is beyond the memory"),
        Assert(
            owed == to_give + how_many(tag.valid for tag in pipeline(inside.part("tags"))),
            "each token gives the rows so far",
        ),
    ]


def _results(inside: Inside, prefix: str) -> tuple[list[Assert], Value]:
    """Return the claims about an engine's credits, and its results."""
    core, tags = inside.part(prefix.rstrip(".")), inside.part(f"{prefix}tags")
    fifo, credits = inside.part(f"{prefix}results"), inside.signal(f"{prefix}credits")
    results = how_many(tag.dot & tag.last for tag in pipeline(tags)) + fifo.level
    return [
        *fifo_claims(inside, f"{prefix}results"),
        Assert(credits + results == core.latency + 1, f"{prefix}credits: each result has its place"),
    ], results


def _lane_sums(environment: WholeSums, m: Module) -> list[Assert]:
    """The lanes' registers belong to one sum, from its first word to the transfer of its result."""
    inside, core = environment.inside, environment.inside.part()
    lanes = [tag.lanes for tag in inside.part("tags").taps[1 : core.lanes_latency]]
    ends = [tag.lanes & tag.last for tag in inside.part("tags").taps[1 : core.lanes_latency]]
    free, given, valid = inside.signal("lanes_free"), inside.signal("given"), environment.core.o_lanes.valid
    add, clear = (Value.cast(inside.part(name).o) for name in ("add", "clear"))
    # The copies of `add` have no reset: for a cycle after one they may add what the lanes forget in
    # the next.
    fresh = Signal(init=1)
    m.d.sync += fresh.eq(0)
    return [
        Assert(how_many(ends) + valid == ~free, "lanes: taken means that a result is there or on its way"),
        Assert(~valid | ~how_many(lanes).bool(), "lanes: nothing is added to a result"),
        *(
            Assert(~end | ~how_many(lanes[:place]).bool(), "lanes: no sum follows before the transfer")
            for place, end in enumerate(ends)
        ),
        Assert(
            environment.between | (environment.operation != Operation.ACCUMULATE) | free, "lanes: owned by a sum begun"
        ),
        Assert(fresh | (add == lanes[-1].replicate(len(add))), "lanes: added is what has come so far"),
        Assert(~fresh | ~(how_many(lanes).bool() | valid), "lanes: empty after a reset"),
        Assert(~given | ~(how_many(lanes).bool() | valid), "lanes: empty after a transfer"),
        Assert(~clear.any() | ~(how_many(lanes[1:]).bool() | valid), "lanes: cleared before another sum comes so far"),
    ]


def engine(environment: WholeSums, m: Module) -> list[Assert]:
    """Each sum of an `Engine` gives a result, for which there is room."""
    claims, results = _results(environment.inside, "")
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
    given = environment.passed(m, "o")
    return [
        *claims,
        *_lane_sums(environment, m),
        Assert((asked - given)[: environment.COUNTER_BITS] == results, "each sum gives one result"),
    ]


def matrix_vector(environment: Accounts, m: Module) -> list[Assert]:
    """Each vector gives all rows of a `MatrixVector`, once."""
    inside, core = environment.inside, environment.inside.part()
    tile, slices, rows = core.tile, core.slices, core.parameters.rows
    tiles = core.tile.num_words(*core.parameters.weight.shape) // slices  # of a vector
    claims, results = _results(inside, "engine.")
    loading, taken, address = (inside.signal(name) for name in ("loading", "taken", "address"))
    part, left, row = inside.signal("part"), inside.signal("left"), inside.signal("row", 1)
    tile_of_row, place = Signal(range(tiles + 1)), Signal(range(tile.rows + 1))
    m.d.comb += [tile_of_row.eq(row // tile.rows), place.eq(row % tile.rows)]
    issued, part_of_address = Signal(range(tiles + 1)), Signal(range(slices + 1))
    m.d.comb += [issued.eq(address // slices), part_of_address.eq(address % slices)]
    to_come = Mux(loading, 0, tiles - issued) + results + (left != 0)
    vectors = environment.inside_now(m, "i", "o", rows=True)
    leaving = how_many(tag.valid & tag.last for tag in pipeline(inside.part("tags")))
    return [
        *claims,
        Assert((taken < core.parameters.columns) & (address < core._engine.depth), "counters are within their range"),
        Assert(row < rows, "rows are counted"),
        Assert(part == part_of_address, "a slice is counted with its word"),
        Assert(loading | (taken == 0), "a vector is taken before it is multiplied"),
        Assert(~loading | (address == 0), "words are read when a vector is there"),
        Assert(Mux(left == 0, place == 0, left + place == tile.rows), "a tile's rows leave one after the other"),
        Assert(environment.index["i"] == taken, "the circuit counts as its neighbour does"),
        Assert(tiles * (vectors - leaving) == to_come + tile_of_row, "each vector gives all its tiles, once"),
    ]


def uart(environment: Accounts, m: Module) -> list[Assert]:
    """A `UART` counts no further than a bit's cycles and a frame's bits."""
    inside, core = environment.inside, environment.inside.part()
    sender, receiver = "0", "1"
    return [
        Assert(inside.signal(f"{sender}.timer") < core.divisor, "sender: cycles of a bit"),
        Assert(inside.signal(f"{sender}.remaining") <= 10, "sender: bits of a frame"),
        Assert(inside.signal(f"{receiver}.timer") < core.divisor, "receiver: cycles of a bit"),
    ]
