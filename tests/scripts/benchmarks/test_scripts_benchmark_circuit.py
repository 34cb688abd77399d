import json
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from scripts import cli
from scripts.benchmarks.circuit import fastest, float_layer, measure


def test_figures_are_printed_and_written(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert cli.main(["benchmark", "circuit", str(tiny_run), "--frequency", "80", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["megahertz"] == 80
    assert figures["circuit"] == pytest.approx(80e6 / figures["cycles_per_token"])
    assert figures["float"] > 0
    assert figures["integer"] > 0
    assert "tokens/s" in capsys.readouterr().out


def test_circuits_figure_follows_its_clock(tiny_run: Path) -> None:
    parameters = load_export(tiny_run / "quantized").blocks[0].attention
    assert measure(parameters, 100)["circuit"] == pytest.approx(2 * measure(parameters, 50)["circuit"])


def test_float_layer_computes_the_same_attention(tiny_run: Path) -> None:
    """The float layer equals the integer one to a few units on the same weights (no biases)."""
    attention = load_export(tiny_run / "quantized").blocks[0].attention
    generator = np.random.default_rng(0)
    integers = generator.integers(-60, 60, (1, attention.context_length, attention.embed_dim))
    values = attention.query.input.dequantize(integers).astype(np.float32)
    exact = attention.output.output.dequantize(attention.compute(integers))
    approximate = float_layer(attention)(values)
    assert np.corrcoef(exact.ravel(), approximate.ravel())[0, 1] > 0.98


def test_fastest_is_positive_and_repeats() -> None:
    calls = []
    assert fastest(lambda: calls.append(None)) > 0
    assert len(calls) > 10
