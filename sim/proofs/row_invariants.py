"""Invariants of the cores through which rows pass: softmax, its numerators, the sampler and the
norms; see `proof_accounts`.
"""

from collections.abc import Sequence

from amaranth.hdl import Assert, Const, Module, Mux, Signal, Value

from hdl.parts.amaranth_internals import read_address, write_address
from hdl.parts.multiplier import Multiplier

from .conservation import Accounts, fifo_claims, register_claims
from .inside import Slot, how_many, pipeline


def row_norm(environment: Accounts, m: Module) -> list[Assert]:
    """Words in the queue, and rows on their way to a root, are those that have entered."""
    inside, core = environment.inside, environment.inside.part()
    words, depth = core.words, core._depth
    place, index, level, due = (inside.signal(name) for name in ("place", "index", "level", "due"))
    write, read = write_address(inside._fragment("row")), read_address(inside._fragment("row"))
    tags, lead = inside.part("tags"), inside.part("lead")
    coming = how_many(lead.taps[1:])  # rows whose words may not leave yet
    claims = [
        Assert((place < words) & (index < words), "words of a row are counted"),
        Assert(level <= depth, "the level is within the depth"),
        Assert((write - read)[: len(level) - 1] == level[:-1], "addresses and level agree"),
        Assert(level + index == words * (due + coming) + place, "the queue holds the words of rows that have not left"),
        Assert(environment.index["i"] == place, "the circuit counts as its neighbour does"),
        environment.conserved(m, level + how_many(tag.valid for tag in pipeline(tags))),
    ]
    statistics = [tag.valid & tag.last for tag in inside.part("statistics.tags").taps[1:]]
    way = {"roots": [*statistics, *inside.part("root.valid").taps[1:]]}
    meets = {"roots": core._difference_moves - 1}
    if hasattr(core._statistics, "total"):
        way["totals"] = statistics[: core._statistics._square_tree.latency + Multiplier.latency - 1]
        meets["totals"] = core._difference_moves - 2
    claims += [
        Assert(early == stage, "words leave when their root is so far")
        for early, stage in zip(lead.taps[1:], way["roots"], strict=False)
    ]
    # Begun, as seen from each stage: the newest word that has come so far does not end its row.
    begun = [index != 0]
    for tag in tags.taps[1 : meets["roots"]]:
        begun.append(Mux(tag.valid, tag.index != 0, begun[-1]))
    claims += [
        Assert(
            ~tag.valid | ((tag.last == (tag.index == words - 1)) & (tag.last != open_row)),
            "words of a row leave one after the other",
        )
        for tag, open_row in zip(tags.taps[1:], begun, strict=False)
    ]
    for name, stages in way.items():
        level, met = inside.part(name).level, meets[name]
        ends = [tag.valid & tag.last for tag in tags.taps[1 : met + 1]]
        claims += [
            *fifo_claims(inside, name),
            Assert(
                how_many(stages) + level == due + coming + how_many(ends), f"{name}: on their way or there for each row"
            ),
        ]
        claims += [
            Assert(
                how_many(stages[core._lead + place + 1 :]) + level >= how_many(ends[place:]) + begun[place],
                f"{name}: ahead of the words that meet them",
            )
            for place in range(met)
        ]
    return claims


def _run(slots: Sequence[Slot], start: Value) -> tuple[Value, list[Value]]:
    """Return how many payloads stand behind the last end of a row in slots, `start` of them before
    these; and the numbers on the way.
    """
    runs, run = [], start
    for slot in slots:
        longer = Signal(range(64))
        runs.append((longer, run + slot.full))
        run = Mux(slot.last, 0, longer)
    return run, runs


def _numerators(
    environment: Accounts, m: Module, path: str, before: Sequence[Slot]
) -> tuple[list[Assert], Value, Value]:
    """Return the claims about `RowNumerators` at a path, its numerators inside, and its
    denominators; `before` is what left it and has not left the core.
    """
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
    _, runs = _run(scores, unfinished)
    arriving, own_runs = _run(scores, Const(0, 1))
    for longer, value in (*first_runs, *runs, *own_runs):
        m.d.comb += longer.eq(value)
    claims = [
        *fifo_claims(inside, f"{row}.memory"),
        *fifo_claims(inside, maxima),
        *register_claims(inside, denominators),
        Assert(index < core.length, f"{prefix}index: scores of a row are counted"),
        Assert(environment.index["i"] == index, "the circuit counts as its neighbour does"),
        Assert(ends == fifo.level + found, f"{maxima}: each whole row has a maximum"),
        Assert(~fifo.w_en | fifo.w_rdy, f"{maxima}: never overrun"),
        Assert(~denominator.valid | denominator.ready, f"{denominators}: none is lost"),
        Assert(arriving == index, f"{row}: it ends with the row that arrives"),
        Assert(ends.bool() | (unfinished == 0), f"{row}: a row is read once it is whole"),
        *(Assert(longer <= core.length, "no row is longer than the longest") for longer, _ in (*first_runs, *runs)),
        *(
            Assert(tags.taps[skew + stage].valid == valid.taps[stage], f"{prefix}exponential: tags move with numbers")
            for stage in range(1, len(valid.taps))
        ),
    ]
    held = how_many(slot.full for slot in scores) + how_many(slot.full for slot in in_pipeline)
    return claims, held, how_many(slot.full for slot in waiting)


def row_numerators(environment: Accounts, m: Module) -> list[Assert]:
    """Each row gives its numerators and a denominator."""
    claims, held, waiting = _numerators(environment, m, "", ())
    rows = environment.passed(m, "o", rows=True) - environment.passed(m, "o_denominator")
    return [
        *claims,
        environment.conserved(m, held),
        Assert(rows[: environment.COUNTER_BITS] == waiting, "each row gives a denominator"),
    ]


def softmax(environment: Accounts, m: Module) -> list[Assert]:
    """Each row of numerators has a reciprocal, and leaves `Softmax` as probabilities."""
    inside = environment.inside
    numerators = inside.queue("queue")
    claims, held, waiting = _numerators(environment, m, "numerators", numerators)
    scales = how_many(inside.part("reciprocal.valid").taps[1:]) + how_many(
        slot.full for slot in inside.register("scales")
    )
    leaving = how_many(tag.valid for tag in pipeline(inside.part("tags")))
    return [
        *claims,
        *fifo_claims(inside, "queue.memory"),
        *register_claims(inside, "scales"),
        Assert(
            how_many(slot.last for slot in numerators) == waiting + scales, "each row of numerators has a reciprocal"
        ),
        environment.conserved(m, held + how_many(slot.full for slot in numerators) + leaving),
    ]


def sampler(environment: Accounts, m: Module) -> list[Assert]:
    """Each row of numerators has a threshold, each random number gives a token of `Sampler`."""
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
        *fifo_claims(inside, "queue.memory"),
        *register_claims(inside, "thresholds"),
        Assert(ends_inside - searching == waiting + thresholds_held, "each row of numerators has a threshold"),
        Assert(random_numbers == thresholds_held + searching, "each random number gives a token"),
    ]
