"""The benches of a run: fed with the model's own activations, and red when a weight, a rounding or
a result is wrong.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import Fragment

import fixedpoint
from fixedpoint import load_export
from hdl import CircuitError
from hdl.catalog.activations import Activations
from hdl.catalog.names import RUN_CORES
from hdl.catalog.registry import CORES, run_core
from model import RunDirectory
from sim.bench.bench import BenchFailure
from sim.bench.core_benches import run_benches
from sim.bench.payload import unpack
from sim.simulators.runner import simulate


@pytest.fixture(scope="module")
def run(tiny_run_original: Path):
    directory = RunDirectory(tiny_run_original)
    return load_export(directory.quantized), directory.load_validation_tokens()


def bench_of(run, name: str, **settings):
    """Return one bench; its circuit counts as used, though a test may only look at the words."""
    quantized, tokens = run
    (bench,) = run_benches(quantized, tokens, **{"num_vectors": 20, "seed": 1, "only": (name,), **settings})
    Fragment.get(bench.component, None)
    assert bench.name == name
    return bench


@pytest.mark.parametrize("stall", [0.0, 0.3])
@pytest.mark.parametrize("name", RUN_CORES)
def test_every_circuit_equals_the_golden_model(run, name: str, stall: float, tmp_path: Path) -> None:
    bench = bench_of(run, name)
    result = simulate(bench, "amaranth", build_directory=tmp_path, seed=2, source_stall=stall, sink_stall=stall)
    assert sum(result.transfers.values()) >= 20


@pytest.mark.parametrize("layer", [0, 1])
def test_vectors_are_the_models_own(run, layer: int) -> None:
    quantized, tokens = run
    seen = Activations(quantized, tokens, 20, np.random.default_rng(1), layer)
    core = CORES["attention"].for_model(quantized, layer)
    data = CORES["attention"].activations(core, seen).inputs["i"]
    made: dict[str, np.ndarray] = {}
    starts = np.random.default_rng(1).integers(0, len(tokens) - quantized.context_length + 1, 2)
    windows = np.stack([tokens[start : start + quantized.context_length] for start in starts])
    quantized.forward(windows, observe=lambda name, values: made.update({name: values}))
    channels = quantized.blocks[layer].attention.embed_dim
    expected = made[f"blocks.{layer}.attention_norm"].reshape(-1, channels)[:20]
    np.testing.assert_array_equal(data["data"].reshape(-1, channels), expected)
    assert np.flatnonzero(data["restart"]).tolist() == [0, quantized.context_length * channels]
    residual = "embedding" if layer == 0 else f"blocks.{layer - 1}.feed_forward_residual"
    np.testing.assert_array_equal(seen.input_of("attention_norm"), made[residual].reshape(-1, channels)[:20])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("attention", "blocks.0.attention_norm"),
        ("layer-norm", "embedding"),
        ("matrix-vector", "blocks.0.feed_forward_norm"),
    ],
)
def test_a_run_simulates_its_first_block(run, name: str, tensor: str) -> None:
    quantized, tokens = run
    bench = bench_of(run, name)
    seen = Activations(quantized, tokens, 20, np.random.default_rng(1), 0)
    shape = bench.component.i.payload.shape()
    fed = [unpack(shape, word)["data"] for word in bench.inputs["i"]]
    assert fed == seen.rows(tensor).reshape(-1).tolist()


@pytest.mark.parametrize("count", [1, 16, 17, 50])
def test_as_many_vectors_as_asked_for(run, count: int) -> None:
    channels, hidden = run[0].blocks[0].up.columns, run[0].blocks[0].up.rows
    matrix, softmax, norm, attention = (bench_of(run, name, num_vectors=count) for name in RUN_CORES)
    assert len(matrix.inputs["i"]) == len(norm.inputs["i"]) == len(attention.inputs["i"]) == count * channels
    assert len(matrix.outputs["o"]) == count * hidden
    shape = softmax.component.i.payload.shape()
    assert sum(unpack(shape, word)["last"] for word in softmax.inputs["i"]) == count


def test_seed_draws_other_windows(run) -> None:
    same, again, other = (bench_of(run, "attention", seed=seed).inputs["i"] for seed in (1, 1, 2))
    assert same == again != other


def test_a_wrong_expectation_is_found(run, tmp_path: Path) -> None:
    for name in RUN_CORES:
        bench = bench_of(run, name)
        bench.outputs["o"][-1] ^= 1
        with pytest.raises(BenchFailure) as failure:
            simulate(bench, "amaranth", build_directory=tmp_path)
        assert failure.value.kind == "value"
        assert failure.value.index == len(bench.outputs["o"]) - 1


def test_short_text_and_unknown_circuits_are_refused(run) -> None:
    quantized, tokens = run
    with pytest.raises(CircuitError, match="5 tokens; a bench needs one context of 16"):
        run_benches(quantized, tokens[:5], num_vectors=1, seed=0)
    with pytest.raises(CircuitError, match="no circuit 'softmacs' to simulate; there are matrix-vector, softmax"):
        run_benches(quantized, tokens, num_vectors=1, seed=0, only=["softmacs"])


def test_one_circuit_alone_gets_the_same_vectors(run) -> None:
    quantized, tokens = run
    benches = run_benches(quantized, tokens, num_vectors=20, seed=1)
    for bench in benches:
        Fragment.get(bench.component, None)
        assert bench.inputs == bench_of(run, bench.name).inputs
        assert bench.outputs == bench_of(run, bench.name).outputs


def test_a_model_with_rms_norm_has_its_bench(run, tmp_path):
    quantized, tokens = run
    blocks = []
    for block in quantized.blocks:
        norm = block.attention_norm
        fields = {field.name: getattr(norm, field.name) for field in dataclasses.fields(fixedpoint.RMSNorm)}
        blocks.append(dataclasses.replace(block, attention_norm=fixedpoint.RMSNorm(**fields)))
    model = dataclasses.replace(quantized, blocks=tuple(blocks))
    (bench,) = run_benches(model, tokens, num_vectors=3, seed=1, only=["layer-norm"])
    assert bench.name == run_core("layer-norm", model).name == "rms-norm"
    result = simulate(bench, "amaranth", build_directory=tmp_path)
    assert result.transfers == {"o": 3 * model.blocks[0].attention.embed_dim}
