"""`train --resume RUN`: fine-tuning and quantization-aware training on the command line."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from fixedpoint import load_export
from fixedpoint.fast.transformer import prepared
from fixedpoint.quantization.quantization_aware import QuantizationAware
from model import RunDirectory
from model.data import windows
from model.training.trainer import Trainer
from scripts import cli


def train(*words: object) -> int:
    return cli.main(["train", "--workers", "1", *map(str, words)])


@pytest.fixture(scope="module")
def quantized_run(tiny_run_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of the tiny run's quantization-aware training. Not to be changed."""
    source = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(tiny_run_original, source)
    assert train("--resume", source, "--quantize", 3, "--activation-bits", 6, "--steps", 30) == 0
    return source.with_name("tiny-3bit-6bit-activations")


def test_default_directory_has_everything_and_the_source_is_as_it_was(
    quantized_run: Path, tiny_run_original: Path
) -> None:
    source = quantized_run.with_name("tiny")
    for path in tiny_run_original.rglob("*"):
        assert path.is_dir() or (source / path.relative_to(tiny_run_original)).read_bytes() == path.read_bytes()
    run = RunDirectory(quantized_run)
    number_format = QuantizationAware.load(run)
    assert (number_format.settings.weight_bits, number_format.settings.activation_bits) == (3, 6)
    inputs, targets = windows(run.load_validation_tokens(), 16)
    record = run.load_training_record()
    assert (
        prepared(number_format.quantize(run.load_model())).loss(inputs, targets) == record["results"]["validation_loss"]
    )
    assert record["training"]["num_steps"] == 30
    assert record["training"]["batch_size"] == 8  # the source's
    assert record["source"] == RunDirectory(source).load_training_record()["source"]
    for path in (run.loss_plot, run.log_csv, run.sample, run.tokenizer):
        assert path.stat().st_size > 0


def test_quantizing_it_gives_the_integers_that_it_was_trained_as(
    quantized_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(quantized_run, tmp_path / "run"))
    run = RunDirectory(directory)
    assert cli.main(["quantize", str(directory)]) == 0
    printed = run.load_training_record()["results"]["validation_loss"]
    assert prepared(load_export(run.quantized)).loss(*windows(run.load_validation_tokens(), 16)) == printed
    figures = json.loads((directory / "quantization.json").read_text())
    assert figures["comparison"]["fixed_loss"] == pytest.approx(printed, abs=1e-12)
    assert f"{printed:.4f}" in capsys.readouterr().out
    number_format = QuantizationAware.load(run)
    assert (figures["settings"]["weight_bits"], figures["settings"]["activation_bits"]) == (3, 6)
    formats = {row["name"]: row["format"] for row in figures["activations"]}
    assert formats["blocks.1.attention.key"] == str(number_format.formats["blocks.1.attention.key"])
    assert formats["blocks.0.attention_residual"] == str(number_format.formats["residual"])
    assert cli.main(["evaluate", str(directory)]) == 0
    capsys.readouterr()
    for words in (["--weight-bits", "4"], ["--rounding", "nearest"], ["--sweep"]):
        assert cli.main(["quantize", str(directory), *words]) == 1
        assert "was trained for its own number format" in capsys.readouterr().err


def test_fine_tuning_in_floats(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--resume", tiny_run, "--steps", 10, "--learning-rate", 1e-3, "--seed", 9) == 0
    run = RunDirectory(tiny_run.with_name("tiny-tuned"))
    record = run.load_training_record()
    assert not run.number_format.exists()
    assert (record["training"]["num_steps"], record["training"]["seed"]) == (10, 9)
    assert record["training"]["learning_rate"] == 1e-3
    output = capsys.readouterr().out
    assert f"\nheld-out loss {record['results']['validation_loss']:.4f}" in output
    assert train("--resume", tiny_run, "--steps", 10) == 1  # never over a model
    assert "holds a model already" in capsys.readouterr().err


def test_interrupted_quantization_aware_run_is_resumed(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--resume", tiny_run, "--quantize", "ternary", "--steps", 25)
    assert train(*words, "--out", tmp_path / "whole") == 0
    take = Trainer._take

    def stop_at_first(self, executor, results, bar):
        take(self, executor, results, bar)
        self.stop_requested = True

    monkeypatch.setattr(Trainer, "_take", stop_at_first)
    assert train(*words, "--out", tmp_path / "parts") == 130
    assert f"positron train --resume --out {tmp_path / 'parts'}" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "_take", take)
    assert train("--resume", "--out", tmp_path / "parts") == 0
    assert "integer model's held-out loss" in capsys.readouterr().out
    whole, parts = (RunDirectory(tmp_path / name) for name in ("whole", "parts"))
    assert whole.model_weights.read_bytes() == parts.model_weights.read_bytes()
    losses = [run.load_training_record()["results"]["validation_loss"] for run in (whole, parts)]
    assert losses[0] == losses[1]
    (tmp_path / "parts" / "teacher_weights.npz").unlink()
    assert train("--resume", "--out", tmp_path / "parts") == 1
    assert "teacher_weights.npz does not exist" in capsys.readouterr().err


def test_training_from_the_start_drops_the_number_format(tiny_run: Path, tmp_path: Path) -> None:
    assert train("--resume", tiny_run, "--quantize", 4, "--steps", 2, "--out", tmp_path / "run") == 0
    run = RunDirectory(tmp_path / "run")
    assert run.number_format.exists()
    text = tmp_path / "text.txt"
    text.write_text("Round and round it goes. " * 100, encoding="utf-8")
    small = ("--embed-dim", 8, "--num-heads", 2, "--num-layers", 1, "--max-seq-len", 8, "--steps", 2)
    assert train("--text", text, "--out", run.path, "--force", *small) == 0
    assert not run.number_format.exists()
    assert not run.teacher_weights.exists()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--quantize", "9"), 1, 'must be a whole number from 2 to 8, or "ternary", not 9'),
        (("--quantize", "1.5"), 2, "argument --quantize: invalid weight_bits value: '1.5'"),
        (("--quantize", "4"), 1, "begins with a trained model"),
        (("--quantize", "4", "--resume", "--out", "x"), 1, "begins with a trained model"),
        (("--activation-bits", "6"), 1, "give --quantize BITS too"),
        (("--resume", "nowhere", "--quantize", "4"), 1, "nowhere is not a run directory"),
    ],
)
def test_what_is_refused(words, status, message, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) if status == 2 else nullcontext() as stopped:
        assert train(*words) == status
    assert stopped is None or stopped.value.code == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_widths_that_do_not_exist_are_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--resume", tiny_run, "--quantize", 4, "--activation-bits", 3) == 1
    assert "activation_bits must be a whole number from 4 to 10" in capsys.readouterr().err
    config = json.loads((tiny_run / "model_config.json").read_text())
    np.testing.assert_equal(config["model"]["num_layers"], 2)
    (tiny_run / "train_tokens.npy").unlink()
    assert train("--resume", tiny_run, "--quantize", 4) == 1
    assert "train_tokens.npy" in capsys.readouterr().err
    assert not tiny_run.with_name("tiny-4bit").exists()
