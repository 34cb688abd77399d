# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator

import hdl.parts.dot_product
from fixedpoint import QFormat
from fixedpoint.operators.dot_product_engine import Commands, DotProductEngine, Operation
from fixedpoint.qformat import Overflow
from hdl import CircuitError
from hdl.cores.engine_datapath import EngineDatapath

DOT, PAIRS, ACCUMULATE, WRITE = Operation
EVERY = (DOT, PAIRS, ACCUMULATE)


def random_commands(core, generator, count):
    """Return commands of sums, words included, in the order of issue, with what each idle cycle
    before a command is: sums of groups and of lanes lie between each other, and half of the words
    and activations are at the ends of their ranges.
    """
    parameters = core.parameters
    kinds = {False: [one for one in (DOT, PAIRS) if one in core.operations], True: [ACCUMULATE] * core.accumulates}
    begun, order = {}, []
    while len(order) < count or begun:
        possible = [kind for kind, choices in kinds.items() if choices and (len(order) < count or kind in begun)]
        lanes = possible[generator.integers(len(possible))]
        if lanes not in begun:
            operation = kinds[lanes][generator.integers(len(kinds[lanes]))]
            terms = int(generator.choice([1, parameters.terms, generator.integers(1, parameters.terms + 1)]))
            begun[lanes] = [operation, int(generator.integers(len(parameters.columns))), terms, True]
        operation, tap, left, first = begun[lanes]
        order.append((operation, tap, first, left == 1))
        begun[lanes] = [operation, tap, left - 1, False]
        if left == 1:
            del begun[lanes]
    operation, tap, first, last = (np.array(column) for column in zip(*order, strict=True))

    def numbers(bits):
        ends = generator.choice([-(1 << bits - 1), (1 << bits - 1) - 1], (len(order), parameters.lanes))
        anything = generator.integers(-(1 << bits - 1), 1 << bits - 1, ends.shape)
        return np.where(generator.integers(2, size=(len(order), 1)), ends, anything)

    return (
        Commands(operation, tap, first, last, np.arange(len(order)), numbers(parameters.activation_bits)),
        numbers(parameters.element_bits),
    )


def expected(core, commands, words):
    """Return the specification's results; where the upper weight begins below half of an element,
    from words whose halves are the weights.
    """
    parameters, width = core.parameters, core.weight_bits
    if core.pairs and width != parameters.element_bits // 2:
        weight = QFormat(width, 0)
        lower, upper = (weight.fit(words >> place, Overflow.WRAP) for place in (0, width))
        wide = parameters.element_bits // 2
        pairs = QFormat(parameters.element_bits, 0).fit((lower & (1 << wide) - 1) + (upper << wide), Overflow.WRAP)
        words = np.where((commands.operation == PAIRS)[:, None], pairs, words)
    return parameters.compute(words, commands)


def run(core, commands, words, generator, announced=True):
    """Return (cycle, lower, upper) and (cycle, sums) of the results, and the cycle of each command.

    Commands come one a cycle, with a pause where `lanes_gap` asks for one and now and then at
    random.
    """
    issued, groups, lanes = [], [], []

    async def feed(context):
        cycle, lanes_free = 0, 0
        for place in range(len(words)):
            operation = commands.operation[place]
            pause = int(generator.integers(4)) if generator.random() < 0.1 else 0
            if operation == ACCUMULATE and commands.first[place]:
                pause = max(pause, lanes_free - cycle)
            for waiting in range(pause + 1):
                here = waiting == pause
                if core.pairs and core.whole:
                    context.set(core.pairs_next, bool(here and operation == PAIRS and announced))
                await context.tick()
                cycle += 1
                context.set(core.i.dot, bool(here and operation in (DOT, PAIRS)))
                context.set(core.i.accumulate, bool(here and operation == ACCUMULATE))
                context.set(core.i.pairs, bool(here and operation == PAIRS))
                context.set(core.i.tap, int(commands.tap[place]))
                context.set(core.i.first, bool(commands.first[place]))
                context.set(core.i.last, bool(commands.last[place]))
                mask = (1 << core.parameters.element_bits) - 1
                context.set(core.word, [int(element) & mask for element in words[place]])
                context.set(core.activations, commands.activations[place].tolist())
            issued.append(cycle)
            if operation == ACCUMULATE and commands.last[place]:
                lanes_free = cycle - 1 + core.lanes_gap
        await context.tick()
        for name in ("dot", "accumulate"):
            context.set(core.i[name], 0)
        await context.tick().repeat(core.latency + 1)

    async def watch(context):
        cycle = 0
        while True:
            if core.sums and context.get(core.o.valid):
                result = context.get(core.o)
                groups.append((cycle, list(result.lower), list(result.upper) if core.pairs else None))
            if core.accumulates and context.get(core.o_lanes.valid):
                lanes.append((cycle, list(context.get(core.o_lanes.sums))))
            await context.tick()
            cycle += 1

    simulation = Simulator(core)
    simulation.add_clock(1e-6)
    simulation.add_testbench(feed)
    simulation.add_testbench(watch, background=True)
    simulation.run()
    return groups, lanes, np.array(issued)


def check(core, seed=0, count=80, announced=True):
    """Compare results and their cycles with the specification and the stated latencies."""
    generator = np.random.default_rng(seed)
    commands, words = random_commands(core, generator, count)
    results = expected(core, commands, words)
    groups, lanes, issued = run(core, commands, words, generator, announced)
    by_lane, last = commands.operation == ACCUMULATE, commands.last
    assert [cycle for cycle, _, _ in groups] == (issued[~by_lane & last] + core.latency).tolist()
    assert [cycle for cycle, _ in lanes] == (issued[by_lane & last] + core.lanes_latency).tolist()
    assert [lower for _, lower, _ in groups] == results.lower.tolist()
    if core.pairs:
        assert [upper for _, _, upper in groups] == results.upper.tolist()
    assert [sums for _, sums in lanes] == results.lanes.tolist()
    assert len(groups) + len(lanes) > count / 10


SHAPES = [
    (DotProductEngine(8, (2, 8), 5, 9), EVERY, None),
    (DotProductEngine(6, (1, 3, 6), 3), EVERY, None),
    (DotProductEngine(1, (1,), 1), EVERY, None),
    (DotProductEngine(12, (3, 6), 9, 9), (DOT, PAIRS), None),
    (DotProductEngine(8, (4,), 4), (PAIRS,), None),
    (DotProductEngine(4, (2, 4), 2, 18, 5), (DOT, WRITE), None),
    (DotProductEngine(4, (1,), 9, 8, 7), (ACCUMULATE,), None),
    (DotProductEngine(4, (4,), 2, 12, 4), (PAIRS, ACCUMULATE), None),
    (DotProductEngine(8, (2, 8), 5, 9), EVERY, 3),
    (DotProductEngine(8, (4, 8), 5, 4, 11), EVERY, 2),
    (DotProductEngine(4, (4,), 2, 1, 2), EVERY, None),
]


@pytest.mark.parametrize(("parameters", "operations", "weight_bits"), SHAPES)
def test_sums_and_their_cycles_are_as_specified(parameters, operations, weight_bits):
    check(EngineDatapath(parameters, operations, weight_bits=weight_bits))


@pytest.mark.parametrize(
    ("lanes", "columns", "levels", "registers"), [(8, (4, 8), 2, 2), (16, (16,), 3, 2), (6, (6,), 2, 2)]
)
def test_several_levels_of_a_tree_may_lie_between_registers(lanes, columns, levels, registers):
    core = EngineDatapath(DotProductEngine(lanes, columns, 3), EVERY, levels=levels)
    assert core.latency == 5 + registers
    check(core, count=40)


def test_a_one_that_was_borrowed_and_is_not_given_back_is_found(monkeypatch):
    monkeypatch.setattr(hdl.parts.dot_product, "add_owed", lambda one, other, owed: one + other)
    with pytest.raises(AssertionError):
        check(EngineDatapath(DotProductEngine(8, (2, 8), 5), EVERY))


def test_pairs_that_were_not_announced_are_noticed():
    with pytest.raises(AssertionError, match="pairs_next was not pairs"):
        check(EngineDatapath(DotProductEngine(4, (4,), 2), EVERY), announced=False)


def test_lanes_that_begin_too_early_are_noticed(monkeypatch):
    monkeypatch.setattr(EngineDatapath, "lanes_gap", 1)
    with pytest.raises(AssertionError, match="a sum of lanes began"):
        check(EngineDatapath(DotProductEngine(4, (4,), 2), (ACCUMULATE,)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"operations": (WRITE,)}, "more than WRITE"),
        ({"operations": ("dot",)}, "some of Operation"),
        ({"weight_bits": 5}, r"weight_bits must be a whole number from 1 to 4 \(half of an element\), not 5"),
        ({"parameters": DotProductEngine(8, (8,), 2, 10)}, "need operands of 19 bits"),
        ({"parameters": DotProductEngine(8, (8,), 2, 8, 7)}, "element_bits must be even"),
        ({"parameters": DotProductEngine(8, (8,), 1 << 32)}, "at most 48 can be requantized"),
    ],
)
def test_impossible_parameters_are_refused(change, message):
    arguments = {"parameters": DotProductEngine(8, (2, 8), 2), "operations": EVERY} | change
    with pytest.raises(CircuitError, match=message):
        EngineDatapath(**arguments)
