"""Invariants of the cores that rows pass: softmax, its numerators, sampler and norms."""

from collections.abc import Sequence

from amaranth.hdl import Assert, Const, Module, Mux, Signal, Value

from hdl.cores.softmax import SoftmaxNumerators
from hdl.parts.multiplier import Multiplier

from .conservation import Conservation, fifo_claims, register_claims
from .internals import Slot, count_full, count_ones, register_slots, stages
from .invariants import ROW_COUNTERS


def row_norm(environment: Conservation, m: Module) -> list[Assert]:
    """Words in the queue and rows without a root are those accepted and not delivered."""
    core, internals = environment.elaborated.core, environment.elaborated.internals
    words, depth, tags, lead = core.words, internals.depth, internals.tags, internals.lead
    place, index, level, due = internals.place, internals.index, internals.level, internals.due
    write, read = internals.row.write_ports[0].addr, internals.row.read_ports[0].addr
    coming = count_ones(lead.taps[1:])  # rows whose words may not leave yet
    claims = [
        Assert((place < words) & (index < words), "words of a row are counted"),
        Assert(level <= depth, "the level is within the depth"),
        Assert((write - read)[: len(level) - 1] == level[:-1], "addresses and level agree"),
        Assert(level + index == words * (due + coming) + place, "the queue holds the words of rows that have not left"),
        Assert(environment.index["i"] == place, ROW_COUNTERS),
        environment.conserved(m, level + count_ones(tag.valid for tag in stages(tags))),
    ]
    sums, root = internals.statistics.internals, internals.root.internals
    statistics = [tag.valid & tag.last for tag in sums.tags.taps[1:]]
    # The stages in which a row's value may be, and the stage of its words that reads it.
    on_the_way = {"roots": [*statistics, *root.valid.taps[1:]]}
    read_at = {"roots": internals.difference_stages - 1}
    if "totals" in internals.queues:
        on_the_way["totals"] = statistics[: sums.square_tree.latency + Multiplier.latency - 1]
        read_at["totals"] = internals.difference_stages - 2
    claims += [
        Assert(early == stage, "words leave when their root is so far")
        for early, stage in zip(lead.taps[1:], on_the_way["roots"], strict=False)
    ]
    # Begun, as seen from each stage: the newest word that has come so far does not end its row.
    begun = [index != 0]
    for tag in tags.taps[1 : read_at["roots"]]:
        begun.append(Mux(tag.valid, tag.index != 0, begun[-1]))
    claims += [
        Assert(
            ~tag.valid | ((tag.last == (tag.index == words - 1)) & (tag.last != open_row)),
            "words of a row leave one after the other",
        )
        for tag, open_row in zip(tags.taps[1:], begun, strict=False)
    ]
    for name, held in on_the_way.items():
        level, met = internals.queues[name].level, read_at[name]
        ends = [tag.valid & tag.last for tag in tags.taps[1 : met + 1]]
        claims += [
            *fifo_claims(environment.elaborated, internals.queues[name], name),
            Assert(
                count_ones(held) + level == due + coming + count_ones(ends),
                f"{name}: on their way or there for each row",
            ),
        ]
        claims += [
            Assert(
                count_ones(held[lead.stages + place + 1 :]) + level >= count_ones(ends[place:]) + begun[place],
                f"{name}: ahead of the words that meet them",
            )
            for place in range(met)
        ]
    return claims


def _run(slots: Sequence[Slot], start: Value) -> tuple[Value, list[Value]]:
    """Return the payloads after the last end of a row in slots, `start` before them, and steps."""
    runs, run = [], start
    for slot in slots:
        longer = Signal(range(64))
        runs.append((longer, run + slot.full))
        run = Mux(slot.last, 0, longer)
    return run, runs


def _numerators(
    environment: Conservation, m: Module, core: SoftmaxNumerators, before: Sequence[Slot]
) -> tuple[list[Assert], Value, Value]:
    """Return a part's claims, numerators and denominators; `before` are the slots behind it."""
    elaborated, internals = environment.elaborated, core.internals
    index, maxima, tags = internals.index, internals.maxima, internals.tags
    scores = elaborated.queue_slots(internals.row)
    valid = internals.exponential.internals.valid
    skew = len(tags.taps) - len(valid.taps)
    in_pipeline = [Slot(tag.valid, tag) for tag in stages(tags)]
    ends = count_ones(slot.last for slot in scores)
    denominator = internals.denominators.i

    # The oldest row may have lost its beginning, so runs only ever are too short.
    unfinished, first_runs = _run([*before, *in_pipeline], Const(0, 1))
    _, runs = _run(scores, unfinished)
    arriving, own_runs = _run(scores, Const(0, 1))
    for longer, value in (*first_runs, *runs, *own_runs):
        m.d.comb += longer.eq(value)
    claims = [
        *fifo_claims(elaborated, internals.row.internals.memory, "row"),
        *fifo_claims(elaborated, maxima, "maxima"),
        *register_claims(internals.denominators, "denominators"),
        Assert(index < core.parameters.length, "index: scores of a row are counted"),
        Assert(environment.index["i"] == index, ROW_COUNTERS),
        Assert(ends == maxima.level + internals.found, "maxima: each whole row has a maximum"),
        Assert(~maxima.w_en | maxima.w_rdy, "maxima: never overrun"),
        Assert(~denominator.valid | denominator.ready, "denominators: none is lost"),
        Assert(arriving == index, "row: it ends with the row that arrives"),
        Assert(ends.bool() | (unfinished == 0), "row: a row is read once it is whole"),
        *(
            Assert(longer <= core.parameters.length, "no row is longer than the longest")
            for longer, _ in (*first_runs, *runs)
        ),
        *(
            Assert(tags.taps[skew + stage].valid == valid.taps[stage], "exponential: tags stay beside numbers")
            for stage in range(1, len(valid.taps))
        ),
    ]
    stored = count_full(scores) + count_full(in_pipeline)
    return claims, stored, count_full(register_slots(internals.denominators))


def row_numerators(environment: Conservation, m: Module) -> list[Assert]:
    """Each row gives its numerators and a denominator."""
    claims, stored, waiting = _numerators(environment, m, environment.elaborated.core, ())
    rows = environment.transfers(m, "o", rows=True) - environment.transfers(m, "o_denominator")
    return [
        *claims,
        environment.conserved(m, stored),
        Assert(rows[: environment.COUNTER_BITS] == waiting, "each row gives a denominator"),
    ]


def softmax(environment: Conservation, m: Module) -> list[Assert]:
    """Each row of numerators has a reciprocal, and leaves `Softmax` as probabilities."""
    internals = environment.elaborated.internals
    queue, scales = internals.queue, internals.scales
    numerators = environment.elaborated.queue_slots(queue)
    claims, stored, waiting = _numerators(environment, m, internals.numerators, numerators)
    reciprocals = count_ones(internals.reciprocal.internals.valid.taps[1:]) + count_full(register_slots(scales))
    leaving = count_ones(tag.valid for tag in stages(internals.tags))
    rows = count_ones(slot.last for slot in numerators)
    return [
        *claims,
        *fifo_claims(environment.elaborated, queue.internals.memory, "queue"),
        *register_claims(scales, "scales"),
        Assert(rows == waiting + reciprocals, "each row of numerators has a reciprocal"),
        environment.conserved(m, stored + count_full(numerators) + leaving),
    ]


def sampler(environment: Conservation, m: Module) -> list[Assert]:
    """Each row gives a token of `Sampler`, and so does each random number."""
    core, internals = environment.elaborated.core, environment.elaborated.internals
    maximum, place = internals.maximum.internals, internals.place
    scores = [Slot(tag.valid, tag) for tag in stages(internals.tags)]
    arriving, runs = _run(scores, maximum.place)
    for longer, value in runs:
        m.d.comb += longer.eq(value)
    compared = maximum.tags.taps[1:]
    ends = [slot.last for slot in scores] + [tag.valid & tag.last for tag in compared]
    stored = (count_ones(ends) + core.o.valid + internals.held)[: environment.COUNTER_BITS]
    counters = [place, maximum.place, maximum.best_index, maximum.token, *(tag.index for tag in compared)]
    return [
        *(Assert(counter < core.length, "below the row's length") for counter in counters),
        *(
            Assert((longer < core.length) | (longer == core.length) & (slot.last | ~slot.full), "no row is too long")
            for slot, (longer, _) in zip(scores, runs, strict=True)
        ),
        Assert(arriving == place, "scores on their way belong to the row that arrives"),
        Assert(environment.index["i"] == place, ROW_COUNTERS),
        Assert(environment.accepted_minus_delivered(m, "i_random", "o") == stored, "each random number gives a token"),
    ]
