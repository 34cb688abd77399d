# amaranth: UnusedElaboratable=no
from itertools import pairwise

import numpy as np
import pytest
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.sim import Simulator
from core_bench import STALLS, ResetOnce, every_row, needs_compiler, run, run_compiled
from verilog_benches import EVERY_VERILOG_SIMULATOR

import hdl.parts.dot_product
from fixedpoint import QFormat
from fixedpoint.operators.dot_product_engine import Commands, Operation
from hdl import CircuitError
from hdl.catalog.engine_vectors import command_columns, engine_vectors, result_columns
from hdl.catalog.vectors import Vectors
from hdl.cores.engine import Engine
from hdl.cores.tile import Tile
from sim.bench.bench import BenchFailure, StreamBench
from sim.bench.payload import pack_all
from sim.simulators.runner import simulate
from sim.simulators.tools import missing_for

DOT, PAIRS, ACCUMULATE, WRITE = Operation


def engine_bench(core, vectors, **settings):
    words = [
        {name: pack_all(getattr(core, name).payload.shape(), columns) for name, columns in ports.items()}
        for ports in (vectors.inputs, vectors.outputs)
    ]
    return StreamBench("engine", core, *words, watchdog_cycles=1000, **settings)


def vectors_of(core, commands):
    """Return the vectors of commands (operation, tap, first, last, address, activations)."""
    *fields, activations = zip(*commands, strict=True)
    commands = Commands(*map(np.array, fields), np.array(activations))
    results = core.parameters.compute(core.parameters.unpack(core.init, core.depth), commands)
    return Vectors({"i": command_columns(commands)}, result_columns(core, results))


def random_bench(core, count=40, seed=0, **settings):
    return engine_bench(core, engine_vectors(core, np.random.default_rng(seed), count), **settings)


# lanes, columns, depth, terms and further arguments
SHAPES = [
    (8, (2, 8), 12, 5, {"activation_bits": 9}),
    (6, (1, 3, 6), 4, 3, {}),
    (1, (1,), 1, 1, {}),
    (12, (3, 6), 7, 9, {"activation_bits": 9}),
    (8, (4,), 9, 4, {"operations": (PAIRS,), "init": [0x0123456789ABCDEF, 0x8888888877777777, 0]}),
    (4, (4,), 9, 2, {"operations": (DOT, WRITE), "element_bits": 5, "activation_bits": 18}),
    (4, (1,), 9, 9, {"operations": (ACCUMULATE,), "element_bits": 7, "init": list(range(9))}),
    (4, (4,), 3, 2, {"operations": (PAIRS, ACCUMULATE, WRITE), "element_bits": 4, "activation_bits": 12}),
    (2, (2,), 1030, 3, {"init": range(600)}),
]


@pytest.mark.parametrize(("lanes", "columns", "depth", "terms", "more"), SHAPES)
def test_every_sum_equals_the_definition(lanes, columns, depth, terms, more, tmp_path):
    for seed, stalls in enumerate(((0.0, 0.0), (0.3, 0.3))):
        core = Engine(lanes, columns, depth, terms, **more)
        run(random_bench(core, 30, seed), tmp_path, *stalls, seed)


@pytest.mark.parametrize("stalls", STALLS[1:3])
def test_a_stall_on_one_side_loses_nothing(stalls, tmp_path):
    run(random_bench(Engine(4, (2, 4), 8, 3), 40), tmp_path, *stalls, 7)


@pytest.mark.campaign
@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_other_simulators_agree(simulator, tmp_path):
    if missing_for(simulator):
        pytest.skip(f"{simulator} is not installed")
    core = Engine(4, (2, 4), 8, 3, activation_bits=9)
    for stall in (0.0, 0.3):
        simulate(random_bench(core, 150), simulator, build_directory=tmp_path, source_stall=stall, sink_stall=stall)


@pytest.mark.parametrize(("mode", "bits"), [(DOT, 8), (PAIRS, 4)])
def test_the_largest_sums_do_not_overflow(mode, bits, tmp_path):
    # the most negative weights
    word = sum((1 << (bits - 1)) << place for place in range(0, 64, bits))
    core = Engine(8, (8,), 1, 4, operations=(mode,), init=[word])
    commands = [(mode, 0, term == 0, term == 3, 0, np.full(8, -128)) for term in range(4)]
    vectors = vectors_of(core, commands)
    assert vectors.outputs["o"]["lower"][0] == [8 * 4 << (7 + bits - 1)]
    run(engine_bench(core, vectors), tmp_path)


@needs_compiler
@pytest.mark.parametrize("mode", [DOT, PAIRS])
def test_every_product_of_8_bits_and_a_word_of_8(mode, simulation_builds):
    """One lane: 8 × 8 bits, or 8 bits by both halves of the word."""
    core = Engine(1, (1,), 256, 1, operations=(mode,), init=range(256))
    activations, words = every_row(QFormat(8, 0), 2).T
    one = np.ones(len(words), dtype=np.int64)
    commands = {"operation": mode.value * one, "tap": 0 * one, "first": one, "last": one, "address": words & 255}
    factors = (words,) if mode is DOT else ((words & 15 ^ 8) - 8, words >> 4)
    sums = {half: [activations * factor] for half, factor in zip(("lower", "upper"), factors, strict=False)}
    inputs = {"i": pack_all(core.i.payload.shape(), {**commands, "activations": [activations]})}
    outputs = {"o": pack_all(core.o.payload.shape(), sums)}
    bench = StreamBench("products", core, inputs, outputs, expected_cycles=core.cycles(len(words)))
    run_compiled(bench, simulation_builds)


def one_word_sums(core, mode, count, seed=0):
    """`count` commands, each a sum of its own, with rows of non-zero activations."""
    rows = np.random.default_rng(seed).integers(1, 128, (count, core.lanes))
    return vectors_of(core, [(mode, 0, 1, 1, index % core.depth, row) for index, row in enumerate(rows)])


@pytest.mark.parametrize("mode", [DOT, PAIRS])
@pytest.mark.parametrize(("lanes", "columns"), [(8, (8,)), (4, (1, 4)), (6, (3,))])
def test_cycles_are_as_predicted(mode, lanes, columns, tmp_path):
    core = Engine(lanes, columns, 4, 2, operations=(mode,), init=[0x12345678] * 4)
    run(engine_bench(core, one_word_sums(core, mode, 100), expected_cycles=core.cycles(100)), tmp_path)


def test_lane_sums_come_after_their_latency(tmp_path):
    core = Engine(4, (4,), 6, 6, operations=(ACCUMULATE,), init=[0x01020304 + index for index in range(6)])
    rows = np.arange(24).reshape(6, 4)
    commands = [(ACCUMULATE, 0, term == 0, term == 5, term, rows[term]) for term in range(6)]
    run(engine_bench(core, vectors_of(core, commands), expected_cycles=5 + core.lanes_latency), tmp_path)


class Busy(wiring.Component):
    """An engine and, each cycle, how many of its multipliers work on a command, with two operands
    that are not zero.
    """

    def __init__(self, core):
        self.core = core
        super().__init__(dict(core.signature.members) | {"busy": wiring.Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = core = self.core
        for name in ("i", "o"):
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(core, name))
        products = core._datapath._products
        lanes = [(products.a[lane] != 0) & (products.b[lane] != 0) for lane in range(core.lanes)]
        stages = range(core.fetch_stages)
        at_work = [self.i.valid & self.i.ready, *(Signal(name=f"at_work_{stage}") for stage in stages)]
        m.d.sync += [after.eq(before) for before, after in pairwise(at_work)]
        m.d.comb += self.busy.eq(Mux(at_work[-1], sum(lanes), 0))
        return m


@pytest.mark.parametrize(("mode", "products"), [(DOT, 8), (PAIRS, 16)])
def test_every_multiplier_works_in_every_cycle(mode, products):
    """A matrix that fills its tiles: as many busy cycles as words, all lanes in each, without a
    pause between.
    """
    weight_bits = 8 if mode is DOT else 4
    tile = Tile(8, 8, pairs=mode is PAIRS)
    matrix = np.random.default_rng(0).integers(1, 8, (16, 24))
    assert tile.utilization(*matrix.shape) == 1
    words = tile.words(matrix, weight_bits)
    assert len(words) == 16 * 24 / products
    core = Engine(8, (8,), len(words), 3, operations=(mode,), init=words)
    vectors = np.random.default_rng(1).integers(1, 128, (2, 24))
    busy, counts, results = Busy(core), [], []

    async def feed(context):
        for vector in vectors:
            for address in range(len(words)):
                part = address % 3
                command = {"operation": mode, "first": part == 0, "last": part == 2, "address": address}
                command["activations"] = vector[part * 8 : part * 8 + 8].tolist()
                context.set(busy.i.valid, 1)
                context.set(busy.i.payload, command)
                await context.tick().until(busy.i.ready)
        context.set(busy.i.valid, 0)

    async def watch(context):
        context.set(busy.o.ready, 1)
        async for _, _, count, valid, payload in context.tick().sample(busy.busy, busy.o.valid, busy.o.payload):
            counts.append(count)
            if valid:
                results.extend([*payload.lower, *(payload.upper if core.pairs else ())])
            if len(results) == 32:
                return

    simulation = Simulator(busy)
    simulation.add_clock(1e-6)
    simulation.add_testbench(feed, background=True)
    simulation.add_testbench(watch)
    simulation.run()
    assert results == (vectors @ matrix.T).reshape(-1).tolist()
    working = np.flatnonzero(counts)
    assert len(working) == 2 * len(words) == working[-1] - working[0] + 1
    assert set(np.array(counts)[working]) == {8}


def test_commands_wait_for_room(tmp_path):
    """A sink that takes nothing for long stops the commands, and no result is lost."""
    core = Engine(4, (4,), 4, 1, operations=(DOT,), init=[0x01020304, 0x7F80FF00, 3, 4])
    run(engine_bench(core, one_word_sums(core, DOT, 120)), tmp_path, 0.0, 0.95, 3)


@pytest.mark.parametrize("taken", [1, 17, 40])
def test_a_reset_in_the_middle_forgets_what_was_begun(taken, tmp_path):
    core = Engine(4, (2, 4), 8, 3, operations=(DOT, PAIRS), init=list(range(0x10203040, 0x10203048)))
    before, after = (engine_vectors(core, np.random.default_rng(seed), 25) for seed in range(2))
    first = pack_all(core.i.payload.shape(), before.inputs["i"])[:taken]
    ends = int(sum(before.inputs["i"]["last"][:taken]))
    given = pack_all(core.o.payload.shape(), before.outputs["o"])[:ends]
    inputs = first + pack_all(core.i.payload.shape(), after.inputs["i"])
    outputs = given + pack_all(core.o.payload.shape(), after.outputs["o"])
    reset = ResetOnce(core, taken, ends)
    run(StreamBench("engine", reset, {"i": inputs}, {"o": outputs}, watchdog_cycles=1000), tmp_path)


def test_one_flipped_bit_of_a_word_is_found(tmp_path):
    words = list(range(0x10203040, 0x10203048))
    core = Engine(4, (4,), 8, 3, operations=(DOT, PAIRS), init=words)
    vectors = engine_vectors(core, np.random.default_rng(0), 30)
    words[5] ^= 1 << 12
    with pytest.raises(BenchFailure) as failure:
        run(engine_bench(Engine(4, (4,), 8, 3, operations=(DOT, PAIRS), init=words), vectors), tmp_path)
    assert failure.value.kind == "value"


def test_an_uncorrected_upper_product_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(hdl.parts.dot_product, "add_owed", lambda one, other, owed: one + other)
    with pytest.raises(BenchFailure) as failure:
        run(random_bench(Engine(4, (4,), 8, 3)), tmp_path)
    assert failure.value.kind == "value"


def test_an_operation_that_was_left_out_is_refused(tmp_path):
    core = Engine(4, (4,), 2, 1, operations=(DOT,), init=[1, 2])
    with pytest.raises(BenchFailure, match="made without PAIRS"):
        run(engine_bench(core, vectors_of(core, [(PAIRS, 0, 1, 1, 0, [1] * 4)])), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "lanes must be a whole number"),
        ({"depth": 0}, "depth must be a whole number"),
        ({"terms": 2.5}, "terms must be a whole number"),
        ({"terms": 1 << 32}, "terms of 4294967296 words need sums of 51 bits; at most 48 can be requantized"),
        ({"columns": 8}, "columns must be a collection, not 8"),
        ({"operations": WRITE}, "operations must be a collection, not "),
        ({"init": "0000"}, "init must be a collection, not '0000'"),
        ({"init": [0.5]}, "init must be at most 4 words of 64 bits"),
        ({"columns": ()}, "at least one tap"),
        ({"columns": (3,)}, "3 does not divide 8"),
        ({"columns": (4, 2)}, "4 does not divide 2"),
        ({"columns": (4, 4)}, "columns must differ"),
        ({"element_bits": 7}, "element_bits must be even"),
        ({"element_bits": 0}, "element_bits must be a whole number"),
        ({"activation_bits": 10}, "need operands of 19 bits"),
        ({"activation_bits": 7}, "cannot be written"),
        ({"operations": (WRITE,)}, "more than WRITE"),
        ({"operations": ()}, "more than WRITE"),
        ({"operations": ("dot",)}, "some of Operation"),
        ({"init": [1 << 64]}, r"at most 4 words of 64 bits, unsigned, not \[18446744073709551616\]"),
        ({"init": [0] * 5}, "at most 4 words"),
    ],
)
def test_impossible_parameters_are_refused(change, message):
    arguments = {"lanes": 8, "columns": (2, 8), "depth": 4, "terms": 2} | change
    with pytest.raises(CircuitError, match=message):
        Engine(**arguments)
