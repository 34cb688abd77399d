"""The benches of a run: fed with the model's own activations, and red when a weight, a rounding or
a result is wrong.
"""

from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Fragment

import fixedpoint
from fixedpoint import QFormat, load_export
from hdl import CircuitError
from model import RunDirectory
from sim.bench.bench import BenchFailure
from sim.bench.cases import CIRCUITS, activations, benches_for_run, norm_bench, windows
from sim.bench.payload import unpack
from sim.simulators.runner import simulate


@pytest.fixture(scope="module")
def run(tiny_run_original: Path):
    directory = RunDirectory(tiny_run_original)
    return load_export(directory.quantized), directory.load_validation_tokens()


def bench_of(run, name: str, **settings):
    """Return one bench; its circuit counts as used, though a test may only look at the words."""
    quantized, tokens = run
    (bench,) = benches_for_run(quantized, tokens, **{"num_vectors": 20, "seed": 1, "only": (name,), **settings})
    Fragment.get(bench.component, None)
    assert bench.name == name
    return bench


@pytest.mark.parametrize("stall", [0.0, 0.3])
@pytest.mark.parametrize("name", CIRCUITS)
def test_every_circuit_equals_the_golden_model(run, name: str, stall: float, tmp_path: Path) -> None:
    bench = bench_of(run, name)
    result = simulate(bench, "amaranth", build_directory=tmp_path, seed=2, source_stall=stall, sink_stall=stall)
    assert sum(result.transfers.values()) >= 20


@pytest.mark.parametrize("layer", [0, 1])
def test_vectors_are_the_models_own(run, layer: int) -> None:
    quantized, tokens = run
    bench = bench_of(run, "attention", layer=layer)
    length, block = quantized.context_length, quantized.blocks[layer]
    seen = activations(quantized, windows(tokens, length, 20, np.random.default_rng(1)))
    shape = bench.component.i.payload.shape()
    fed = [unpack(shape, word) for word in bench.inputs["i"]]
    channels = block.attention.embed_dim
    np.testing.assert_array_equal(
        np.array([payload["data"] for payload in fed]).reshape(-1, channels),
        seen[f"blocks.{layer}.attention_norm"].reshape(-1, channels)[:20],
    )
    starts = [index for index, payload in enumerate(fed) if payload["restart"]]
    assert starts == [0, length * channels]


@pytest.mark.parametrize("count", [1, 16, 17, 50])
def test_as_many_vectors_as_asked_for(run, count: int) -> None:
    channels, hidden = run[0].blocks[0].up.columns, run[0].blocks[0].up.rows
    matrix, softmax, norm, attention = (bench_of(run, name, num_vectors=count) for name in CIRCUITS)
    assert len(matrix.inputs["i"]) == len(norm.inputs["i"]) == len(attention.inputs["i"]) == count * channels
    assert len(matrix.outputs["o"]) == count * hidden
    shape = softmax.component.i.payload.shape()
    assert sum(unpack(shape, word)["last"] for word in softmax.inputs["i"]) == count


def test_seed_draws_other_windows(run) -> None:
    same, again, other = (bench_of(run, "attention", seed=seed).inputs["i"] for seed in (1, 1, 2))
    assert same == again != other


def test_a_wrong_expectation_is_found(run, tmp_path: Path) -> None:
    for name in CIRCUITS:
        bench = bench_of(run, name)
        bench.outputs["o"][-1] ^= 1
        with pytest.raises(BenchFailure) as failure:
            simulate(bench, "amaranth", build_directory=tmp_path)
        assert failure.value.kind == "value"
        assert failure.value.index == len(bench.outputs["o"]) - 1


def test_short_text_and_missing_layer_are_refused(run) -> None:
    quantized, tokens = run
    with pytest.raises(CircuitError, match="5 tokens; a bench needs one context of 16"):
        benches_for_run(quantized, tokens[:5], num_vectors=1, seed=0)
    with pytest.raises(CircuitError, match="no layer 2; the model has layers 0 to 1"):
        benches_for_run(quantized, tokens, num_vectors=1, seed=0, layer=2)
    with pytest.raises(CircuitError, match="no circuit 'softmacs' to simulate; there are matrix-vector, softmax"):
        benches_for_run(quantized, tokens, num_vectors=1, seed=0, only=["softmacs"])


def test_one_circuit_alone_gets_the_same_vectors(run) -> None:
    quantized, tokens = run
    benches = benches_for_run(quantized, tokens, num_vectors=20, seed=1)
    for bench in benches:
        Fragment.get(bench.component, None)
        assert bench.inputs == bench_of(run, bench.name).inputs
        assert bench.outputs == bench_of(run, bench.name).outputs


def test_a_model_with_rms_norm_has_its_bench(tmp_path):
    generator = np.random.default_rng(1)
    norm = fixedpoint.RMSNorm.from_float(generator.uniform(0.5, 2, 4), 1e-5, QFormat(16, 10), QFormat(8, 5), 8)
    bench = norm_bench(norm, generator.integers(-30000, 30000, (3, 4)))
    assert bench.name == "rms-norm"
    assert simulate(bench, "amaranth", build_directory=tmp_path).transfers == {"o": 12}
