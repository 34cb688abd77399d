"""What always holds between the parts of a core: invariants, with which induction proves a core's accounts for all time.

Induction begins in any state. What no reset leads to, a word in one queue of which another knows nothing, must therefore be excluded, and each function
here says how: which numbers agree. The invariants are asserted, never assumed, so that they are proven together with what follows from them.
"""

from collections.abc import Callable, Sequence

from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Const, Module, Mux, Signal, Value
from amaranth.lib import wiring

from hdl.argmax import ArgMax
from hdl.engine import Engine
from hdl.key_value_cache import KeyValueCache
from hdl.matrix_vector import MatrixVector
from hdl.multiplier import Multiplier
from hdl.row_norm import RowNorm
from hdl.row_numerators import RowNumerators
from hdl.sampler import Sampler
from hdl.softmax import Softmax
from hdl.stream_parts import StreamQueue, StreamRegister, WidthConverter
from hdl.uart import UART

from .proof_inside import UNNAMED, Inside, Slot, how_many, pipeline
from .stream_rules import Environment, has_last

Claim = tuple[Value, str]  # and its words


class Accounts(Environment):
    """What entered a core and has not left it is in it; nothing is lost, made up or overrun, however long it runs.

    Counts are compared modulo `2**COUNTER_BITS`, which is more than any core here holds.
    """

    asserts_rules = False

    def claims(self, m: Module) -> None:
        """Assert the core's invariants, what follows from them, and the cores' own assertions."""
        for claim, words in invariants(self, m):
            m.d.comb += Assert(claim, words)

    def passed(self, m: Module, name: str, *, rows: bool = False) -> Signal:
        """Return the number of payloads, or of ends of rows, that a stream has transferred, modulo `2**COUNTER_BITS`."""
        count = Signal(self.COUNTER_BITS, name=f"{name}_passed_{'rows' if rows else 'payloads'}")
        end = getattr(self.core, name).payload.last if rows else Const(1, 1)
        m.d.sync += count.eq(count + (self.taken[name] & end))
        return count

    def inside_now(self, m: Module, entered: str, left: str, *, rows: bool = False) -> Value:
        """Return how many more payloads, or rows, have entered than left."""
        return (self.passed(m, entered, rows=rows) - self.passed(m, left, rows=rows))[: self.COUNTER_BITS]


def invariants(environment: Accounts, m: Module) -> list[Claim]:
    """Return the claims about the core of an environment."""
    for kind, function in _INVARIANTS.items():
        if isinstance(environment.inside.part(), kind):
            return function(environment, m)
    raise NotImplementedError(f"no invariants are known for {type(environment.inside.part()).__name__}")


def _fifo(inside: Inside, path: str) -> list[Claim]:
    """A FIFO's pointers are as far apart as it is full, and it never overruns."""
    fifo = inside.part(path)
    if not hasattr(fifo, "r_rdy"):
        raise LookupError(f"{path!r} is no FIFO")
    buffered = "Buffered" in type(fifo).__name__
    depth = fifo.depth - buffered
    level = inside.signal(f"{path}.inner_level") if buffered else fifo.level
    produce, consume = (inside.signal(f"{path}.{name}") for name in ("produce", "consume"))
    apart = Mux(produce >= consume, produce - consume, produce + depth - consume)
    return [
        (level <= depth, f"{path}: the level is within the depth"),
        ((produce < depth) & (consume < depth), f"{path}: the addresses are within the memory"),
        (Mux(produce == consume, (level == 0) | (level == depth), level == apart), f"{path}: addresses and level agree"),
    ]


def _register(inside: Inside, path: str) -> list[Claim]:
    """A stream register's spare place is used only behind its first."""
    first, spare = inside.register(path)
    return [(~spare.full | first.full, f"{path}: the spare place is behind the first")]


def _stream_queue(environment: Accounts, m: Module) -> list[Claim]:
    inside = environment.inside
    slots = inside.queue("")
    return [*_fifo(inside, "memory"), *_in_order(environment, m, slots)]


def _stream_register(environment: Accounts, m: Module) -> list[Claim]:
    slots = environment.inside.register("")
    return [*_register(environment.inside, ""), *_in_order(environment, m, slots)]


def _in_order(environment: Accounts, m: Module, slots: Sequence[Slot]) -> list[Claim]:
    """What leaves is what entered, in order: any one payload that enters is watched, with the number of those before it, until it leaves."""
    held, count = how_many(slot.full for slot in slots), environment.inside_now(m, "i", "o")
    i, o = environment.core.i, environment.core.o
    watched, before, payload = Signal(), Signal(range(len(slots) + 1)), Signal.like(Value.cast(i.payload))
    leaves = environment.taken["o"]
    with m.If(~watched):
        with m.If(environment.taken["i"] & AnySeq(1)):
            m.d.sync += [watched.eq(1), before.eq(held - leaves), payload.eq(Value.cast(i.payload))]
    with m.Elif(leaves):
        m.d.sync += before.eq(before - 1)
        with m.If(before == 0):
            m.d.sync += watched.eq(0)
    places, place = [], Const(0, 1)
    for slot in slots:
        places.append(~(slot.full & (before == place)) | (Value.cast(slot.payload) == payload))
        place = place + slot.full
    return [
        (count == held, "as many payloads are inside as entered and have not left"),
        (~watched | (before < held), "a payload that entered is inside until it leaves"),
        *((~watched | there, "a payload inside is what entered, in its place") for there in places),
        (~(watched & leaves & (before == 0)) | (Value.cast(o.payload) == payload), "what leaves is what entered"),
    ]


def _row_norm(environment: Accounts, m: Module) -> list[Claim]:
    """Words in the queue, and rows on their way to a root, are those that have entered."""
    inside, core = environment.inside, environment.inside.part()
    words, depth = core.words, core._depth
    place, index, level, due = (inside.signal(name) for name in ("place", "index", "level", "due"))
    write, read = inside._fragment("row")._write_ports[0]._addr, inside._fragment("row")._read_ports[0]._addr
    tags, lead = inside.part("tags"), inside.part("lead")
    coming = how_many(lead.taps[1:])  # rows whose words may not leave yet
    claims = [
        ((place < words) & (index < words), "words of a row are counted"),
        (level <= depth, "the level is within the depth"),
        ((write - read)[: len(level) - 1] == level[:-1], "addresses and level agree"),
        (level + index == words * (due + coming) + place, "the queue holds the words of rows that have not left"),
        (environment.index["i"] == place, "the circuit counts as its neighbour does"),
        *_conserved(environment, m, level + how_many(tag.valid for tag in pipeline(tags))),
    ]
    # A row's numbers meet its last word: what left the queue and has not met them, and what has not left it, are on their way to them or wait for them.
    statistics = [tag.valid & tag.last for tag in inside.part("statistics.tags").taps[1:]]
    made = {"roots": how_many(statistics) + how_many(inside.part("root.valid").taps[1:])}
    meets = {"roots": core._difference_moves - 1}
    if hasattr(core._statistics, "total"):
        made["totals"] = how_many(statistics[: core._statistics._square_tree.latency + Multiplier.latency - 1])
        meets["totals"] = core._difference_moves - 2
    for name, rows in made.items():
        ends = how_many(tag.valid & tag.last for tag in tags.taps[1 : meets[name] + 1])
        claims += _fifo(inside, name)
        claims.append((rows + inside.part(name).level == due + coming + ends, f"{name}: each row's arrive or wait for it"))
    return claims


def _conserved(environment: Accounts, m: Module, held: Value) -> list[Claim]:
    return [(environment.inside_now(m, "i", "o") == held, "as many payloads are inside as entered and have not left")]


def _run(slots: Sequence[Slot], start: Value) -> tuple[Value, list[Value]]:
    """Return how many payloads stand behind the last end of a row in slots, `start` of them before these; and the numbers on the way."""
    runs, run = [], start
    for slot in slots:
        longer = Signal(range(64))
        runs.append((longer, run + slot.full))
        run = Mux(slot.last, 0, longer)
    return run, runs


def _numerators(environment: Accounts, m: Module, path: str, before: Sequence[Slot]) -> tuple[list[Claim], Value, Value]:
    """Return the claims about `RowNumerators` at a path, its numerators inside, and its denominators; `before` is what left it and has not left the core."""
    inside, prefix = environment.inside, f"{path}." if path else ""
    core = inside.part(path)
    row, maxima, denominators = (f"{prefix}{name}" for name in ("row", "maxima", "denominators"))
    index, found = inside.signal(f"{prefix}index"), inside.signal(f"{prefix}found")
    fifo = inside.part(maxima)
    scores = inside.queue(row)
    tags, valid = inside.part(f"{prefix}tags"), inside.part(f"{prefix}exponential.valid")
    skew = len(tags.taps) - len(valid.taps)
    in_pipeline = [Slot(tag.valid, tag) for tag in pipeline(tags)]
    ends = how_many(slot.last for slot in scores)
    waiting = inside.register(denominators)
    denominator = inside.part(denominators).i

    # The oldest row may have lost its beginning, so runs only ever are too short.
    unfinished, first_runs = _run([*before, *in_pipeline], Const(0, 1))
    trailing, runs = _run(scores, unfinished)
    arriving, own_runs = _run(scores, Const(0, 1))
    for longer, value in (*first_runs, *runs, *own_runs):
        m.d.comb += longer.eq(value)
    claims = [
        *_fifo(inside, f"{row}.memory"),
        *_fifo(inside, maxima),
        *_register(inside, denominators),
        (index < core.length, f"{prefix}index: scores of a row are counted"),
        (environment.index["i"] == index, "the circuit counts as its neighbour does"),
        (ends == fifo.level + found, f"{maxima}: each whole row has a maximum"),
        (~fifo.w_en | fifo.w_rdy, f"{maxima}: never overrun"),
        (~denominator.valid | denominator.ready, f"{denominators}: none is lost"),
        (arriving == index, f"{row}: it ends with the row that arrives"),
        (ends.bool() | (unfinished == 0), f"{row}: a row is read once it is whole"),
        *((longer <= core.length, "no row is longer than the longest") for longer, _ in (*first_runs, *runs)),
        *(
            (tags.taps[skew + stage].valid == valid.taps[stage], f"{prefix}exponential: tags move with numbers")
            for stage in range(1, len(valid.taps))
        ),
    ]
    held = how_many(slot.full for slot in scores) + how_many(slot.full for slot in in_pipeline)
    return claims, held, how_many(slot.full for slot in waiting)


def _row_numerators(environment: Accounts, m: Module) -> list[Claim]:
    claims, held, waiting = _numerators(environment, m, "", ())
    rows = environment.passed(m, "o", rows=True) - environment.passed(m, "o_denominator")
    return [
        *claims,
        *_conserved(environment, m, held),
        (rows[: environment.COUNTER_BITS] == waiting, "each row gives a denominator"),
    ]


def _softmax(environment: Accounts, m: Module) -> list[Claim]:
    inside = environment.inside
    numerators = inside.queue("queue")
    claims, held, waiting = _numerators(environment, m, "numerators", numerators)
    scales = how_many(inside.part("reciprocal.valid").taps[1:]) + how_many(slot.full for slot in inside.register("scales"))
    leaving = how_many(tag.valid for tag in pipeline(inside.part("tags")))
    return [
        *claims,
        *_fifo(inside, "queue.memory"),
        *_register(inside, "scales"),
        (how_many(slot.last for slot in numerators) == waiting + scales, "each row of numerators has a reciprocal"),
        *_conserved(environment, m, held + how_many(slot.full for slot in numerators) + leaving),
    ]


def _sampler(environment: Accounts, m: Module) -> list[Claim]:
    inside = environment.inside
    numerators = inside.queue("queue")
    claims, _, waiting = _numerators(environment, m, "numerators", numerators)
    made, thresholds = inside.part("made").taps[1:], inside.register("thresholds")
    thresholds_held = how_many(made) + how_many(slot.full for slot in thresholds)
    searched = pipeline(inside.part("tags"))
    ends_inside = how_many(slot.last for slot in numerators) + how_many(tag.valid & tag.last for tag in searched)
    random_numbers = (environment.passed(m, "i_random") - environment.passed(m, "o"))[: environment.COUNTER_BITS]
    searching = how_many(tag.valid & tag.last for tag in searched)
    return [
        *claims,
        *_fifo(inside, "queue.memory"),
        *_register(inside, "thresholds"),
        (ends_inside - searching == waiting + thresholds_held, "each row of numerators has a threshold"),
        (random_numbers == thresholds_held + searching, "each random number gives a token"),
    ]


def _results(inside: Inside, prefix: str) -> tuple[list[Claim], Value]:
    """Return the claims about an engine's credits, and its results."""
    core, tags = inside.part(prefix.rstrip(".")), inside.part(f"{prefix}tags")
    fifo, credits = inside.part(f"{prefix}results"), inside.signal(f"{prefix}credits")
    results = how_many(tag.dot & tag.last for tag in pipeline(tags)) + fifo.level
    return [
        *_fifo(inside, f"{prefix}results"),
        (credits + results == core.latency + 1, f"{prefix}credits: each result has its place"),
    ], results


def _lane_sums(environment: Accounts) -> list[Claim]:
    """The lanes' registers belong to one sum, from its first word to the transfer of its result."""
    inside, core = environment.inside, environment.inside.part()
    stages = inside.part("tags").taps[1 : core.lanes_latency]
    ends = [tag.lanes & tag.last for tag in stages]
    free, valid = inside.signal("lanes_free"), environment.core.o_lanes.valid
    open_sum = ~environment.between & (environment.operation == 2)
    return [
        (how_many(ends) + valid == ~free, "lanes: taken means that a result is there or on its way"),
        (~valid | ~how_many(tag.lanes for tag in stages).bool(), "lanes: nothing is added to a result"),
        *(
            (~end | ~how_many(tag.lanes for tag in stages[:place]).bool(), "lanes: no sum follows before the transfer")
            for place, end in enumerate(ends)
        ),
        (~open_sum | free, "lanes: a sum that has begun owns them"),
    ]


def _engine(environment: Accounts, m: Module) -> list[Claim]:
    claims, results = _results(environment.inside, "")
    asked = Signal(environment.COUNTER_BITS)
    command = environment.core.i.payload
    m.d.sync += asked.eq(asked + (environment.taken["i"] & command.last & ((command.operation == 0) | (command.operation == 1))))
    given = environment.passed(m, "o")
    return [
        *claims,
        *_lane_sums(environment),
        ((asked - given)[: environment.COUNTER_BITS] == results, "each sum gives one result"),
    ]


def _matrix_vector(environment: Accounts, m: Module) -> list[Claim]:
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
        ((taken < core.parameters.columns) & (address < core._engine.depth), "counters are within their range"),
        (row < rows, "rows are counted"),
        (part == part_of_address, "a slice is counted with its word"),
        (loading | (taken == 0), "a vector is taken before it is multiplied"),
        (~loading | (address == 0), "words are read when a vector is there"),
        (Mux(left == 0, place == 0, left + place == tile.rows), "a tile's rows leave one after the other"),
        (environment.index["i"] == taken, "the circuit counts as its neighbour does"),
        (tiles * (vectors - leaving) == to_come + tile_of_row, "each vector gives all its tiles, once"),
    ]


def _key_value_cache(environment: Accounts, m: Module) -> list[Claim]:
    inside, core = environment.inside, environment.inside.part()
    words, rows = core.words, core.context_length
    giving, value = inside.signal(UNNAMED), inside.signal("value")
    word, row, position, base, address = (inside.signal(name) for name in ("word", "row", "position", "base", "address"))
    place = Mux(value, words, 0) + word
    half = Mux(value, rows * words, 0)
    cache = inside._fragment("cache")
    left_of_row = (position - row) * words + words - word
    to_give = Mux(giving, left_of_row + Mux(value, 0, (position + 1) * words), 0)
    owed = Signal(range(2 * rows * words + 8))
    token = environment.taken["i"] & value & (word == words - 1)
    new_position = Mux(core.i.payload.restart & (place == 0), 0, position)
    m.d.sync += owed.eq(
        owed + Mux(token, 2 * (new_position + 1) * words, 0) - environment.taken["o"]
    )
    return [
        ((word < words) & (row < rows) & (position < rows), "counters are within their range"),
        (row <= position, "no row is read that has not been written"),
        (base == position * words, "a token's address is that of its position"),
        (address == Mux(giving, half + row * words + word, 0), "a word's address is that of its row"),
        (giving | (row == 0), "reading begins with the first row"),
        (Mux(giving, environment.index["i"] == 0, environment.index["i"] == place), "the circuit counts as its neighbour does"),
        (cache._write_ports[0]._addr < 2 * rows * words, "no address is beyond the memory"),
        (owed == to_give + how_many(tag.valid for tag in pipeline(inside.part("tags"))), "each token gives the rows so far"),
    ]


def _argmax(environment: Accounts, m: Module) -> list[Claim]:
    inside, core = environment.inside, environment.inside.part()
    counters = [inside.signal(name) for name in ("place", "index", "best_index", "token")]
    rows = environment.inside_now(m, "i", "o") if not has_last(core.i.payload) else None
    del rows
    ended = Signal(environment.COUNTER_BITS)
    m.d.sync += ended.eq(ended + (environment.taken["i"] & core.i.payload.last))
    tokens = environment.passed(m, "o")
    held = (inside.signal(UNNAMED) & inside.signal("last")) + core.o.valid
    return [
        *((counter < core.length, f"{counter.name}: below the row's length") for counter in counters),
        (environment.index["i"] == inside.signal("place"), "the circuit counts as its neighbour does"),
        ((ended - tokens)[: environment.COUNTER_BITS] == held, "each row gives a token"),
    ]


def _width_converter(environment: Accounts, m: Module) -> list[Claim]:
    inside, core = environment.inside, environment.inside.part()
    part = inside.signal("part")
    ratio = max(core.i_lanes, core.o_lanes) // min(core.i_lanes, core.o_lanes)
    entered, left = environment.passed(m, "i"), environment.passed(m, "o")
    if core.o_lanes > core.i_lanes:
        account = entered - (left + core.o.valid) * ratio - part
        framed = [(environment.index["i"] % ratio == part, "the circuit counts as its neighbour does")]
    else:
        account = entered * ratio - left - Mux(core.o.valid, ratio - part, 0)
        framed = [(core.o.valid | (part == 0), "part: 0 without a word")]
    return [
        *framed,
        (part < ratio, "part: within a word"),
        (account[: environment.COUNTER_BITS] == 0, "each element passes once"),
    ]


def _uart(environment: Accounts, m: Module) -> list[Claim]:
    inside, core = environment.inside, environment.inside.part()
    return []


_INVARIANTS: dict[type[wiring.Component], Callable[[Accounts, Module], list[Claim]]] = {
    StreamQueue: _stream_queue,
    StreamRegister: _stream_register,
    WidthConverter: _width_converter,
    RowNorm: _row_norm,
    Sampler: _sampler,
    Softmax: _softmax,
    RowNumerators: _row_numerators,
    MatrixVector: _matrix_vector,
    Engine: _engine,
    KeyValueCache: _key_value_cache,
    ArgMax: _argmax,
    UART: _uart,
}
