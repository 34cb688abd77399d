# amaranth: UnusedElaboratable=no
import dataclasses
import random
from functools import cache

import pytest
from amaranth.hdl import Signal
from verilog_benches import EVERY_SIMULATOR

import hdl.cores.argmax
from hdl import CircuitError
from hdl.catalog.example_model import SMALL, TYPICAL, example_model
from hdl.catalog.registry import CORES, find_core
from sim.bench.bench import BenchFailure
from sim.bench.core_benches import Wired, core_bench
from sim.bench.stalls import Stalls
from sim.simulators.runner import simulate, simulate_each
from sim.simulators.tools import missing_for

COUNT = 12
# Probabilities (source, sink) of a pause; full speed comes first because it also checks the cycle
# count.
LEVELS = ((0.0, 0.0), (0.4, 0.0), (0.0, 0.4), (0.3, 0.3))
SLOW_SINK = (0.1, 0.6)
# Runs with a reset in the middle, at full speed and, so that results wait where it comes, with a
# slow sink in turn: as many pairs as take about so many cycles.
RESET_PAIRS, CYCLES_OF_RESETS = (3, 15), 4000


def stalls_of(entry, cycles):
    """Return the stalls of a core's runs: all levels, then resets at random moments of a run of
    so many cycles.

    At last a reset when all waits that can, because the sinks have been silent for so long as a
    whole run takes, and are again.
    """
    moments = random.Random(entry.name)
    fewest, most = RESET_PAIRS
    pairs = min(most, max(fewest, CYCLES_OF_RESETS // cycles))
    levels = [*LEVELS, *(LEVELS[0], SLOW_SINK) * pairs]
    resets = [0] * len(LEVELS) + [moments.randrange(1, cycles) for _ in range(2 * pairs)]
    # What leaves by a wire does not wait: a receiver whose sink pauses would lose bytes.
    stalls = [
        Stalls(seed, source, 0.0 if entry.wires else sink, reset_after)
        for seed, ((source, sink), reset_after) in enumerate(zip(levels, resets, strict=True))
    ]
    return stalls if entry.wires else [*stalls, Stalls(len(stalls), reset_after=cycles, sink_delay=cycles)]


def simulate_all(bench, stalls, simulator, builds):
    """Run a core's bench in every way; return the results."""
    if missing := missing_for(simulator):
        pytest.skip(f"{simulator} lacks {', '.join(missing)}")
    return simulate_each(bench, stalls, simulator, build_directory=builds)


def bench_and_stalls(name, builds):
    """Return a core's bench and how its runs are disturbed."""
    entry = CORES[name]
    bench = core_bench(entry, entry.example(), COUNT, seed=1)
    cycles = simulate(bench, "amaranth", build_directory=builds).total_cycles - bench.idle_cycles
    return bench, stalls_of(entry, cycles)


@cache
def reference(name, builds):
    """Return the same with the results of Amaranth's simulator, which the others must equal."""
    bench, stalls = bench_and_stalls(name, builds)
    return bench, stalls, simulate_all(bench, stalls, "amaranth", builds)


@pytest.mark.parametrize("simulator", EVERY_SIMULATOR)
@pytest.mark.parametrize("name", CORES)
def test_every_core_equals_its_specification(name, simulator, simulation_builds):
    """Back to back, with stalls on either side, and after resets in the middle; the simulators
    agree on every cycle.
    """
    bench, stalls, golden = reference(name, simulation_builds)
    if simulator == "icarus":  # by far the slowest: of the random resets only one pair
        kept = [*range(len(LEVELS) + 2), *([] if CORES[name].wires else [len(stalls) - 1])]
        stalls, golden = [stalls[index] for index in kept], [golden[index] for index in kept]
    results = golden if simulator == "amaranth" else simulate_all(bench, stalls, simulator, simulation_builds)
    assert all(sum(result.transfers.values()) >= COUNT for result in results)
    cycles, golden_cycles = ([(one.cycles, one.total_cycles) for one in runs] for runs in (results, golden))
    assert cycles == golden_cycles


@pytest.mark.parametrize("simulator", EVERY_SIMULATOR)
def test_a_core_that_remembers_its_place_across_a_reset_is_caught(simulator, simulation_builds, monkeypatch):
    """Argmax's count of a row's elements is made a register without reset: rows are right until one
    is cut short.
    """

    def forgetful(*arguments, **settings):
        # named after the variable in the core
        signal = Signal(*arguments, src_loc_at=1, **settings)
        return Signal.like(signal, name=signal.name, reset_less=True) if signal.name == "place" else signal

    monkeypatch.setattr(hdl.cores.argmax, "Signal", forgetful)
    bench, stalls = bench_and_stalls("argmax", simulation_builds)
    with pytest.raises(BenchFailure, match=rf"\({simulator}, .*reset after") as failure:
        simulate_all(bench, stalls, simulator, simulation_builds)
    assert failure.value.kind in ("value", "assertion")


@pytest.mark.parametrize("name", CORES)
def test_every_core_exists_in_the_typical_size_and_says_what_it_is(name):
    entry = CORES[name]
    core = entry.example(TYPICAL)
    assert type(core) is type(entry.example())
    assert len(entry.summary) > 20
    assert entry.latency
    assert entry.throughput


def test_a_wrong_core_is_caught(tmp_path):
    """The vectors are the specification's, not the circuit's: a core with one other weight
    fails.
    """
    entry = CORES["matrix-vector"]
    bench = core_bench(entry, entry.example(), COUNT, seed=1)
    up = example_model(SMALL).blocks[0].up
    weight = up.weight.copy()
    weight[3, 2] ^= 64
    wrong = type(bench.component)(dataclasses.replace(up, weight=weight), bench.component.lanes)
    with pytest.raises(BenchFailure, match=r"o\[3\]|o\[\d+\]: expected"):
        simulate(dataclasses.replace(bench, component=wrong), "amaranth", build_directory=tmp_path)


def test_the_example_model_is_the_same_each_time():
    example_model.cache_clear()
    first = example_model(SMALL).blocks[0].attention.digest
    example_model.cache_clear()
    assert example_model(SMALL).blocks[0].attention.digest == first


def test_what_is_not_there_is_refused_by_name():
    with pytest.raises(CircuitError, match="there is no core 'sofmax'; choose one of activation, argmax, "):
        find_core("sofmax")
    with pytest.raises(CircuitError, match="there is no layer 1; the model has layers 0 to 0"):
        CORES["softmax"].for_model(example_model(SMALL), 1)
    with pytest.raises(CircuitError, match="needs at least one vector, not 0"):
        core_bench(CORES["uart"], CORES["uart"].example(), 0, 1)
    with pytest.raises(CircuitError, match="from a plain output to a plain input, not from rx to tx"):
        Wired(CORES["uart"].example(), {"tx": "rx"})
