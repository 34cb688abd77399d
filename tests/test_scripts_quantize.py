"""`quantize` and `evaluate`: what they write is what they measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from model import RunDirectory, evaluate_loss
from model.data import windows
from scripts import cli
from scripts.evaluation import compare, cross_entropy_sum


def test_losses_are_the_models_own(tiny_run: Path, tmp_path: Path) -> None:
    assert cli.main(["quantize", str(tiny_run), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tiny_run / "quantization.json").read_text())
    run = RunDirectory(tiny_run)
    model, tokens = run.load_model(), run.load_validation_tokens()
    quantized = load_export(run.quantized)
    comparison = figures["comparison"]
    assert comparison["float_loss"] == pytest.approx(evaluate_loss(model, tokens), abs=1e-5)
    assert comparison["fixed_loss"] == pytest.approx(quantized.loss(*windows(tokens, 16)), abs=1e-9)
    assert comparison["difference"] == pytest.approx(comparison["fixed_loss"] - comparison["float_loss"], abs=1e-12)
    assert comparison["tokens"] == (len(tokens) - 1) // 16 * 16
    assert 0.9 < comparison["same_choice"] <= 1
    assert abs(comparison["difference"]) < 0.05


def test_fewer_bits_cost_more_and_say_so(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    differences = {}
    for bits in (8, 3):
        assert cli.main(["quantize", str(tiny_run), "--weight-bits", str(bits)]) == 0
        figures = json.loads((tiny_run / "quantization.json").read_text())
        differences[bits] = abs(figures["comparison"]["difference"])
        assert figures["settings"]["weight_bits"] == bits
        assert f"difference {figures['comparison']['difference']:+.4f} nats" in capsys.readouterr().out
        assert figures["weight_bytes"] == sum(np.prod(row["shape"]) for row in figures["weights"]) * bits // 8
    assert differences[3] > differences[8]


def test_table_names_every_tensor(tiny_run: Path) -> None:
    figures = json.loads((tiny_run / "quantization.json").read_text())
    names = [row["name"] for row in figures["weights"]]
    assert names.count("logits.weight") == 1
    assert sum("attention.query" in name for name in names) == 2
    assert all(row["format"].startswith(("Q", "U")) for row in figures["weights"] + figures["activations"])


def test_calibration_windows_change_the_formats_only(tiny_run: Path) -> None:
    assert cli.main(["quantize", str(tiny_run), "--calibration-windows", "1"]) == 0
    assert json.loads((tiny_run / "quantization.json").read_text())["calibration_windows"] == 1


def test_evaluation_of_the_held_out_text_agrees_with_quantize(tiny_run: Path, tmp_path: Path) -> None:
    assert cli.main(["evaluate", str(tiny_run), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tiny_run / "evaluation.json").read_text())
    assert figures["comparison"] == json.loads((tiny_run / "quantization.json").read_text())["comparison"]


def test_evaluation_of_another_text(tiny_run: Path, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text("the house saw the dogs and the dogs saw the house " * 10, encoding="utf-8")
    assert cli.main(["evaluate", str(tiny_run), "--text", str(text)]) == 0
    figures = json.loads((tiny_run / "evaluation.json").read_text())
    assert figures["text"] == "other.txt"
    assert figures["comparison"]["tokens"] == 496
    assert (
        figures["comparison"]["float_loss"]
        > json.loads((tiny_run / "quantization.json").read_text())["comparison"]["float_loss"]
    )


def test_cross_entropy_against_the_definition() -> None:
    generator = np.random.default_rng(0)
    logits, targets = generator.normal(0, 50, (2, 3, 5)), generator.integers(0, 5, (2, 3))
    expected = 0.0
    for row, target in zip(logits.reshape(-1, 5), targets.reshape(-1), strict=True):
        expected -= row[target] - np.logaddexp.reduce(row)
    assert cross_entropy_sum(logits, targets) == pytest.approx(expected)


def test_comparison_sees_a_wrong_integer_model(tiny_run: Path) -> None:
    run = RunDirectory(tiny_run)
    model, quantized, tokens = run.load_model(), load_export(run.quantized), run.load_validation_tokens()
    good = compare(model, quantized, tokens)
    quantized.logits.weight[...] = -quantized.logits.weight
    bad = compare(model, quantized, tokens)
    assert bad.fixed_loss > good.fixed_loss + 0.5
    assert bad.same_choice < good.same_choice
    assert bad.float_loss == good.float_loss
