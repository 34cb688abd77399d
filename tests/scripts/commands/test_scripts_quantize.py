"""`quantize` and `evaluate`: what they write is what they measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from fixedpoint.fast.transformer import prepared
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
    assert comparison["fixed_loss"] == pytest.approx(prepared(quantized).loss(*windows(tokens, 16)), abs=1e-9)
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
    reversed_logits = replace(quantized.logits, weight=-np.maximum(quantized.logits.weight, -127))
    bad = compare(model, replace(quantized, logits=reversed_logits), tokens)
    assert bad.fixed_loss > good.fixed_loss + 0.5
    assert bad.same_choice < good.same_choice
    assert bad.float_loss == good.float_loss


def test_accumulators_are_listed_and_none_overflows(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quantize", str(tiny_run)]) == 0
    result = capsys.readouterr().out
    assert cli.main(["quantize", str(tiny_run), "--verbose"]) == 0
    rows = json.loads((tiny_run / "quantization.json").read_text())["accumulators"]
    assert all(row["headroom"] >= 0 and row["bits"] + row["headroom"] == row["declared"] for row in rows)
    output = capsys.readouterr().out
    assert output.startswith(result), "the result comes first"
    for name in ("blocks.*.attention.scores", "blocks.*.feed_forward.down", "logits"):
        assert name in output.removeprefix(result)
        assert name not in result
    assert {"blocks.0.attention.scores", "blocks.1.attention.scores"} <= {row["name"] for row in rows}


def test_options_reach_the_model(tiny_run: Path) -> None:
    words = "--weight-bits ternary --residual-bits 12 --embedding-bits 6 --scales tensor --calibration maximum --rounding nearest"
    assert cli.main(["quantize", str(tiny_run), *words.split()]) == 0
    settings = json.loads((tiny_run / "quantization.json").read_text())["settings"]
    assert settings == {
        "weight_bits": "ternary",
        "activation_bits": 8,
        "residual_bits": 12,
        "embedding_bits": 6,
        "calibration": "maximum",
        "scales": "tensor",
        "rounding": "nearest",
    }
    quantized = load_export(RunDirectory(tiny_run).quantized)
    assert quantized.residual.bits == 12
    assert quantized.embedding.token.weight_bits == 6
    assert set(np.unique(quantized.blocks[1].up.weight)) == {-1, 0, 1}
    assert len(set(quantized.blocks[1].up.weight_fraction.tolist())) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--weight-bits 9", 'weight_bits must be a whole number from 2 to 8, or "ternary", not 9'),
        ("--residual-bits 7", "residual_bits must be a whole number from 8 to 16"),
        ("--overrides missing.toml", "missing.toml cannot be read"),
        ("--calibration-windows 0", "--calibration-windows must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    before = (tiny_run / "quantization.json").read_bytes()
    assert cli.main(["quantize", str(tiny_run), *words.split()]) == 1
    assert message in capsys.readouterr().err
    assert (tiny_run / "quantization.json").read_bytes() == before


def test_calibration_text_shorter_than_the_context_is_refused(
    tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = RunDirectory(tiny_run).path / "train_tokens.npy"
    np.save(path, np.load(path)[:16])
    assert cli.main(["quantize", str(tiny_run)]) == 1
    assert "16 tokens do not fill one window of 16 tokens and its targets" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tiny_run)
    model = run.load_model()
    model.parameters["blocks.1.attention.key.weight"][0, 0] = np.nan
    run.save_model(model)
    assert cli.main(["quantize", str(tiny_run)]) == 1
    assert "NaN or infinite" in capsys.readouterr().err
