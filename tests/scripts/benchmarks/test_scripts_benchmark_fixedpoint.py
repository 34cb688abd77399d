import json
from pathlib import Path

import numpy as np
import pytest

from fixedpoint.errors import CompilerError
from fixedpoint.export.c_program import find_compiler
from model import InputError, ModelConfig, Transformer, generate
from scripts import cli
from scripts.benchmarks import fixedpoint as benchmark_fixedpoint


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_fixedpoint, "SETTLE_SECONDS", 0)


def benchmark(path: Path, *words: object) -> dict:
    assert cli.main(["benchmark", "fixedpoint", *map(str, words), "--seconds", "0", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_runs_figures(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = benchmark(tmp_path / "figures.json", tiny_run)
    evaluation, generation = figures["evaluation"], figures["generation"]
    assert evaluation["turns"] == generation["turns"] == benchmark_fixedpoint.MINIMUM_TURNS
    assert evaluation["contestants"]["float forward pass"]["ratio"] == 1
    assert all(row["seconds_per_token"] > 0 for row in evaluation["contestants"].values())
    assert all(row["tokens_per_second"] > 0 for row in generation["contestants"].values())
    assert generation["skipped"] or "integer, C program" in generation["contestants"]
    out = capsys.readouterr().out
    assert f"evaluating {evaluation['windows']} windows" in out
    assert "generating one sequence" in out


def test_without_a_compiler(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    figures = benchmark(tmp_path / "figures.json", tiny_run)
    assert set(figures["generation"]["contestants"]) == {"float", "integer"}
    assert "the C program is skipped: " in capsys.readouterr().out


def test_the_float_program_takes_the_float_models_tokens(tmp_path: Path) -> None:
    llama = {"norm": "rms", "activation": "swiglu", "position": "rotary", "use_bias": False, "num_kv_heads": 2}
    sizes = {"vocab_size": 50, "embed_dim": 24, "num_heads": 4, "num_layers": 2, "ff_dim": 40, "max_seq_len": 20}
    try:
        find_compiler()
    except CompilerError:
        pytest.skip("no C compiler")
    for tied in (True, False):
        model = Transformer(ModelConfig(**sizes, **llama, tie_embeddings=tied), seed=2)
        model.parameters.flat += np.random.default_rng(3).normal(size=model.parameters.flat.size) / 3
        program = benchmark_fixedpoint.FloatProgram(model, tmp_path)
        tokens, seconds = program.timed(7, 19)
        assert tokens == generate(model, [7], 19, temperature=0)
        assert len(set(tokens)) > 3
        assert 0 < seconds < 10
    quantized = benchmark_fixedpoint._quantize(model, np.arange(200) % 50)
    times = benchmark_fixedpoint.measure_generation(model, quantized, 0)["contestants"]
    assert {"integer, C program, likeliest", "float, C program, likeliest"} <= set(times)
    with pytest.raises(InputError, match=r"llama2\.c has norm"):
        benchmark_fixedpoint.FloatProgram(Transformer(ModelConfig(**sizes)), tmp_path)


def test_ratios_are_medians_of_turns() -> None:
    times = benchmark_fixedpoint._take_turns({"a": iter([0.0, 1, 2, 3, 4, 90]).__next__, "b": lambda: 2.0}, 0)
    assert times == {"a": [1, 2, 3, 4, 90], "b": [2.0] * 5}
    assert benchmark_fixedpoint._ratio(times["a"], times["b"]) == 1.5
