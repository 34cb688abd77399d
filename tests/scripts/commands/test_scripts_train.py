"""`train`: what lies in the run directory afterwards, stopping, resuming."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from model import RunDirectory
from scripts import cli

ROOT = Path(__file__).resolve().parents[3]
TEXT = "The cat sat on the mat. The dogs ran to the old house, and the cat saw them.\n" * 60
SMALL = ["--embed-dim", "16", "--num-heads", "2", "--num-layers", "1", "--max-seq-len", "16", "--batch-size", "4"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def train(*words: object) -> int:
    return cli.main(["train", *SMALL, "--workers", "1", *map(str, words)])


def test_run_directory_is_complete(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--text", text, "--out", tmp_path / "run", "--steps", 20) == 0
    run = RunDirectory(tmp_path / "run")
    for path in (
        run.model_config,
        run.model_weights,
        run.tokenizer,
        run.training,
        run.train_tokens,
        run.validation_tokens,
        run.log_csv,
        run.loss_plot,
    ):
        assert path.is_file(), path
    record = json.loads(run.training.read_text())
    assert record["source"] == {
        "name": "text.txt",
        "characters": len(TEXT),
        "sha256": hashlib.sha256(TEXT.encode()).hexdigest(),
    }
    assert record["training"]["num_steps"] == 20
    assert record["results"]["step"] == 20
    shown = capsys.readouterr().out
    assert f"run: {tmp_path / 'run'}" in shown
    assert "held-out loss" in shown
    held_out = run.load_validation_tokens()
    assert len(held_out) == pytest.approx(len(TEXT) / 10, abs=1)
    assert run.load_tokenizer().decode(held_out.tolist()) == TEXT[-len(held_out) :]


def test_a_line_is_logged_every_50_batches(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--text", text, "--out", tmp_path / "run", "--steps", 110) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert [line.split("/")[0].split()[-1] for line in lines] == ["50", "100", "110"]


def test_same_seed_same_bytes(text: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert train("--text", text, "--out", tmp_path / name, "--steps", 10, "--seed", seed) == 0
        weights.append((tmp_path / name / "model_weights.npz").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_default_directory_is_the_texts_name(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--text", text, "--steps", 2) == 0
    assert (tmp_path / "runs" / "text" / "model_weights.npz").is_file()


def test_bundled_stories_are_the_default_text(tmp_path: Path) -> None:
    assert train("--out", tmp_path / "run", "--steps", 1) == 0
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["source"]["name"] == "the bundled stories"
    assert record["source"]["characters"] >= 1_000_000


@pytest.mark.parametrize("tokenizer", ["word", "bpe"])
def test_other_tokenizers(tokenizer: str, text: Path, tmp_path: Path) -> None:
    options = ("--tokenizer", tokenizer, "--vocab-size", 300, "--max-seq-len", 8)
    assert train("--text", text, "--out", tmp_path / "run", "--steps", 2, *options) == 0
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text())["kind"] == tokenizer


def test_force_replaces_the_model(text: Path, tmp_path: Path) -> None:
    out = ("--text", text, "--out", tmp_path / "run", "--steps", 2)
    assert train(*out) == 0
    assert train(*out) == 1
    assert train(*out, "--seed", 9, "--force") == 0
    assert json.loads((tmp_path / "run" / "training.json").read_text())["training"]["seed"] == 9


def test_time_limit_stops_and_saves(text: Path, tmp_path: Path) -> None:
    assert train("--text", text, "--out", tmp_path / "run", "--steps", 1_000_000, "--minutes", 0.02) == 0
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert 0 < record["results"]["step"] < 1_000_000


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run that its time limit has stopped. Not to be changed."""
    directory = tmp_path_factory.mktemp("stopped")
    text = directory / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    tokens = ("--tokenizer", "bpe", "--vocab-size", 270)
    assert train("--text", text, "--out", directory / "run", "--steps", 100_000, "--minutes", 0.001, *tokens) == 0
    return directory


CONTRADICTIONS = [
    ("--num-layers 3", "--num-layers 3 (the run: 1)"),
    ("--num-heads 4", "--num-heads 4 (the run: 2)"),
    ("--embed-dim 32", "--embed-dim 32 (the run: 16)"),
    ("--max-seq-len 32", "--max-seq-len 32 (the run: 16)"),
    ("--ff-dim 32", "--ff-dim 32 (the run: 64)"),
    ("--activation relu", "--activation relu (the run: gelu)"),
    ("--position rotary", "--position rotary (the run: learned)"),
    ("--dropout 0.1", "--dropout 0.1 (the run: 0.0)"),
    ("--tokenizer word", "--tokenizer word (the run: bpe)"),
    ("--vocab-size 1000", "--vocab-size 1000 (the run: 270)"),
    ("--steps 200000", "--steps 200000 (the run: 100000)"),
    ("--batch-size 5", "--batch-size 5 (the run: 4)"),
    ("--learning-rate 0.01", "--learning-rate 0.01 (the run: 0.003)"),
    ("--workers 2", "--workers 2 (the run: 1)"),
    ("--seed 7", "--seed 7 (the run: 1)"),
    ("--text other.txt", "--text other.txt with 5 characters, SHA-256 "),
    (
        "--seed 7 --text other.txt --dropout 0.1",
        "--dropout 0.1 (the run: 0.0); --seed 7 (the run: 1); --text other.txt",
    ),
]
# A run that begins with another one's model is trained as one likes.
OF_TRAINING = ("--steps", "--batch-size", "--learning-rate", "--workers", "--seed")


@pytest.mark.parametrize(
    ("how", "words", "message"),
    [
        *(("--resume --out run", *each) for each in CONTRADICTIONS),
        *(("--resume run", *each) for each in CONTRADICTIONS if not each[0].startswith(OF_TRAINING)),
    ],
)
def test_an_option_that_contradicts_the_run_is_refused(
    stopped: Path,
    words: str,
    message: str,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(stopped)
    Path("other.txt").write_text("other", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert cli.main(["train", *how.split(), *words.split()]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: run was started with other settings")
    assert message in error
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    assert not Path("run-tuned").exists()


def test_options_that_agree_with_the_run_may_be_given_again(stopped: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stopped / "run", tmp_path / "run"))
    step = json.loads((run / "training.json").read_text())["results"]["step"]
    again = ("--tokenizer", "bpe", "--vocab-size", 270, "--steps", 100_000, "--ff-dim", 64, "--seed", 1)
    options = ("--text", stopped / "text.txt", "--activation", "gelu", *again)
    assert train("--resume", "--out", run, "--minutes", 0.002, *options) == 0
    record = json.loads((run / "training.json").read_text())
    assert record["results"]["step"] > step
    assert record["training"]["time_limit"] == pytest.approx(0.12), "minutes are the one setting that may be another"


def test_a_vocabulary_size_of_characters_is_refused(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--text", text, "--vocab-size", 500) == 1
    assert "--vocab-size is for --tokenizer word or bpe" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_learned_and_resume_reaches_the_same_bytes(text: Path, tmp_path: Path) -> None:
    options = ["--text", str(text), "--steps", "1500"]
    assert train(*options, "--out", tmp_path / "whole") == 0
    command = [
        sys.executable,
        "-m",
        "scripts.cli",
        "train",
        *SMALL,
        "--workers",
        "1",
        *options,
        "--out",
        str(tmp_path / "run"),
    ]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell starts background jobs with SIGINT ignored, which Python would inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step"):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"positron train --resume --out {tmp_path / 'run'}" in errors
    stopped_at = json.loads((tmp_path / "run" / "training.json").read_text())["results"]["step"]
    assert 50 <= stopped_at < 1500
    time.sleep(0.01)
    assert train("--resume", "--out", tmp_path / "run") == 0
    whole, resumed = ((tmp_path / name / "model_weights.npz").read_bytes() for name in ("whole", "run"))
    assert whole == resumed
