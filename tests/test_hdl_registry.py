# amaranth: UnusedElaboratable=no
import dataclasses

import pytest

from hdl import CircuitError
from hdl.example_model import SMALL, TYPICAL, example_model
from hdl.registry import CORES, find_core
from sim.bench import BenchFailure
from sim.core_cases import Wired, core_bench
from sim.runner import simulate

COUNT = 12


@pytest.mark.parametrize("name", CORES)
def test_every_core_equals_its_specification(name, tmp_path):
    entry = CORES[name]
    for source_stall, sink_stall in ((0.0, 0.0), (0.3, 0.0 if entry.wires else 0.3)):
        bench = core_bench(entry, entry.example(), COUNT, seed=1)
        stalls = {"source_stall": source_stall, "sink_stall": sink_stall}
        result = simulate(bench, "amaranth", build_directory=tmp_path, **stalls)
        assert sum(result.transfers.values()) >= COUNT


@pytest.mark.parametrize("name", CORES)
def test_every_core_exists_in_the_typical_size_and_says_what_it_is(name):
    entry = CORES[name]
    core = entry.example(TYPICAL)
    assert type(core) is type(entry.example())
    assert len(entry.summary) > 20
    assert entry.latency
    assert entry.throughput


def test_a_wrong_core_is_caught(tmp_path):
    """The vectors are the specification's, not the circuit's: a core with one other weight fails."""
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
