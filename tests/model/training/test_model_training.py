"""Training: it learns, stops, resumes to the same bytes, and explains what goes wrong."""

import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint import digest
from model.config import TRAINING_CONFIG, TrainingConfig
from model.errors import DivergenceError, InputError
from model.run import RunDirectory
from model.stories import generate_stories
from model.tokenizers.character import CharacterTokenizer
from model.training.evaluation import evaluate_loss
from model.training.log import read_log
from model.training.schedules import learning_rate
from model.training.train import resume_model, train_model
from model.training.trainer import Trainer
from model.training.workers import LocalExecutor
from model.transformer import Transformer

TEXT = generate_stories(30_000, seed=5)
SETTINGS = {
    "num_steps": 60,
    "batch_size": 6,
    "learning_rate": 5e-3,
    "evaluate_every": 20,
    "log_every": 7,
    "num_workers": 1,
    "seed": 2,
}


def setup(**changes):
    tokenizer = CharacterTokenizer()
    tokenizer.train(TEXT)
    sizes = {"vocab_size": tokenizer.vocab_size, "embed_dim": 16, "num_heads": 2, "num_layers": 2, "max_seq_len": 24}
    return Transformer({**sizes, **changes}, seed=1), tokenizer


def train(directory, *, model_changes=None, **changes):
    model, tokenizer = setup(**(model_changes or {}))
    result = train_model(model, tokenizer, TEXT, {**SETTINGS, **changes}, directory=directory, progress=False)
    return result, model


def resume(directory):
    model, tokenizer, config = resume_model(directory)
    return train_model(model, tokenizer, None, config, directory=directory, resume=True, progress=False), model


def test_training_learns_and_leaves_its_files(tmp_path):
    result, model = train(tmp_path / "run", num_steps=120)
    run = RunDirectory(tmp_path / "run")
    assert result.validation_loss < 2.6 < math.log(model.config.vocab_size)
    assert result.rows[-1].training_loss < result.rows[0].training_loss
    assert (result.step, result.interrupted, result.stopped_early) == (120, False, False)
    loaded = run.load_model()
    assert loaded.parameters.flat.tobytes() == model.parameters.flat.tobytes()
    held_out = evaluate_loss(loaded, run.load_validation_tokens(model.config.vocab_size))
    assert held_out == pytest.approx(result.validation_loss, rel=1e-6)
    record = run.load_training_record()
    assert record["results"]["validation_loss"] == result.validation_loss
    assert record["training"] == TrainingConfig(**{**SETTINGS, "num_steps": 120}).to_dict()
    assert read_log(run.log_csv) == result.rows
    lines = [json.loads(line) for line in run.log_json_lines.read_text().splitlines()]
    assert [line["step"] for line in lines] == [row.step for row in result.rows]
    assert [row.step for row in result.rows if row.validation_loss is not None] == [20, 40, 60, 80, 100, 120]
    assert run.loss_plot.read_bytes().startswith(b"\x89PNG")
    assert len(run.sample.read_text()) > 100
    tokens = np.concatenate([run.load_training_tokens(), run.load_validation_tokens()])
    assert run.load_tokenizer().decode(tokens) == TEXT
    assert len(run.load_validation_tokens()) == math.ceil(len(tokens) / 10)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    digests = [train(None, seed=seed)[1].parameters.flat.tobytes() for seed in (2, 2, 3)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_compute_the_same_step(workers, tmp_path):
    alone, single = train(None, num_steps=15, evaluate_every=15)
    shared, several = train(tmp_path / "run", num_steps=15, evaluate_every=15, num_workers=workers)
    assert shared.num_workers == workers
    assert shared.validation_loss == pytest.approx(alone.validation_loss, rel=1e-4)
    np.testing.assert_allclose(several.parameters.flat, single.parameters.flat, atol=2e-3)
    again, same = train(None, num_steps=15, evaluate_every=15, num_workers=workers)
    assert same.parameters.flat.tobytes() == several.parameters.flat.tobytes()
    assert again.validation_loss == shared.validation_loss


@pytest.mark.parametrize("model_changes", [{}, {"dropout": 0.2}], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_stopped_and_resumed_run_ends_with_the_same_bytes(tmp_path, optimizer, model_changes):
    options = {"optimizer": optimizer, "learning_rate": 0.02, "model_changes": model_changes}
    whole, _ = train(tmp_path / "whole", **options)
    result, _ = train(tmp_path / "parts", time_limit=1e-9, **options)
    sessions = 1
    while result.interrupted:
        result, _ = resume(tmp_path / "parts")
        sessions += 1
    assert sessions > 5
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "parts")]
    assert runs[0].model_weights.read_bytes() == runs[1].model_weights.read_bytes()
    states = [dict(np.load(run.training_state)) for run in runs]
    for state in states:
        state["progress"] = np.delete(state["progress"], 3)  # the seconds
    assert digest(states[0]) == digest(states[1])
    assert result.validation_loss == whole.validation_loss
    assert [(row.step, row.training_loss, row.validation_loss) for row in result.rows] == [
        (row.step, row.training_loss, row.validation_loss) for row in whole.rows
    ]


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    first, _ = train(tmp_path)
    before = RunDirectory(tmp_path).model_weights.read_bytes()
    again, _ = resume(tmp_path)
    assert again.step == first.step
    assert RunDirectory(tmp_path).model_weights.read_bytes() == before


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    _, whole = train(None, num_steps=10)
    _, pieces = train(None, num_steps=10, accumulation_steps=3)
    np.testing.assert_allclose(pieces.parameters.flat, whole.parameters.flat, atol=2e-3)


def test_early_stop(tmp_path):
    result, _ = train(tmp_path, evaluate_every=2, early_stop_patience=2, learning_rate=1.0, gradient_clip=0.0)
    assert result.stopped_early
    assert result.step < 60
    assert resume(tmp_path)[0].step == result.step


def test_epochs_count_tokens():
    result, _ = train(None, num_steps=None, num_epochs=0.1)
    assert result.step == math.ceil(0.1 * 0.9 * len(TEXT) / (6 * 24)) == result.total_steps


def test_epochs_of_a_custom_configuration_count(tmp_path):
    model, tokenizer = setup()
    custom = {**TRAINING_CONFIG, "num_epochs": 0.1, "batch_size": 6, "num_workers": 1}
    result = train_model(model, tokenizer, TEXT, custom, directory=tmp_path, progress=False)
    assert result.step == math.ceil(0.1 * 0.9 * len(TEXT) / (6 * 24))
    assert resume(tmp_path)[0].step == result.step


def test_a_record_of_an_earlier_version_with_steps_and_epochs_is_read(tmp_path):
    train(tmp_path)
    run = RunDirectory(tmp_path)
    record = run.load_training_record()
    record["training"]["num_epochs"] = 1.0
    run.training.write_text(json.dumps(record))
    assert run.load_training_config() == TrainingConfig(**SETTINGS)
    assert resume(tmp_path)[0].step == 60


def test_the_bar_stays_out_of_what_is_redirected(capfd):
    model, tokenizer = setup()
    train_model(model, tokenizer, TEXT, {**SETTINGS, "num_steps": 5}, progress=True)
    shown = capfd.readouterr()
    assert "step 5/5" in shown.out
    assert shown.err == ""


def test_ctrl_c_saves_and_can_be_resumed(tmp_path):
    model, tokenizer = setup()
    chunks = []
    original = Trainer._take

    def take(self, executor, results, bar):
        original(self, executor, results, bar)
        chunks.append(self.progress.step)
        if len(chunks) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    Trainer._take = take
    try:
        result = train_model(model, tokenizer, TEXT, SETTINGS, directory=tmp_path, progress=False)
    finally:
        Trainer._take = original
    assert result.interrupted
    assert 0 < result.step < 60
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    final, _ = resume(tmp_path)
    assert final.step == 60
    _, whole = train(None)
    assert RunDirectory(tmp_path).load_model().parameters.flat.tobytes() == whole.parameters.flat.tobytes()


def test_divergence_names_step_tensor_and_advice():
    model, tokenizer = setup()
    model.parameters["blocks.1.feed_forward.up.weight"] = np.full_like(
        model.parameters["blocks.1.feed_forward.up.weight"], 3e38
    )
    with pytest.raises(DivergenceError, match=r"step 1: .*blocks\.1\.feed_forward.* is not finite.*learning_rate"):
        train_model(model, tokenizer, TEXT, SETTINGS, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 25}, "longer than the model's max_seq_len"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"optimizer": "lion"}, "optimizer must be one of"),
        ({"accumulation_steps": 7}, "accumulation_steps"),
    ],
)
def test_impossible_settings(changes, message):
    with pytest.raises(InputError, match=message):
        train(None, **changes)


def test_text_that_does_not_fit():
    model, tokenizer = setup()
    with pytest.raises(InputError, match=r"has 200 tokens, too few for a context of 24"):
        train_model(model, tokenizer, TEXT[:200], SETTINGS)
    with pytest.raises(InputError, match="needs a text"):
        train_model(model, tokenizer, None, SETTINGS)
    other = CharacterTokenizer()
    other.train("abc")
    with pytest.raises(InputError, match="the tokenizer 3"):
        train_model(model, other, TEXT, SETTINGS)


def test_resume_needs_a_run_of_the_same_configuration(tmp_path):
    model, tokenizer = setup()
    with pytest.raises(InputError, match="does not exist"):
        train_model(model, tokenizer, None, SETTINGS, directory=tmp_path / "none", resume=True)
    train(tmp_path)
    with pytest.raises(InputError, match=r"learning_rate 0\.005, not 0\.1"):
        train_model(model, tokenizer, None, {**SETTINGS, "learning_rate": 0.1}, directory=tmp_path, resume=True)
    RunDirectory(tmp_path).training_state.unlink()
    with pytest.raises(InputError, match="no saved training state"):
        resume(tmp_path)


def test_schedules():
    settings = {"learning_rate": 1.0, "final_learning_rate_ratio": 0.1, "warmup_steps": 4}
    for schedule, middle, last in (("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)):
        config = TrainingConfig(schedule=schedule, **settings)
        rates = [learning_rate(config, step, 105) for step in range(105)]
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert rates[54] == pytest.approx(middle)
        assert rates[104] == pytest.approx(last)


KILLED = """
import sys
from tests.model.training.test_model_training import SETTINGS, TEXT, setup
from model.training.train import resume_model, train_model
if __name__ == "__main__":
    directory, workers = sys.argv[1], int(sys.argv[2])
    try:
        model, tokenizer, config = resume_model(directory)
        train_model(model, tokenizer, None, config, directory=directory, resume=True, progress=False)
    except ValueError:
        model, tokenizer = setup()
        settings = {**SETTINGS, "num_steps": 400, "num_workers": workers}
        train_model(model, tokenizer, TEXT, settings, directory=directory, progress=False)
"""


def run_killed(directory, workers, kills, seed):
    """Train in a process that is killed at random moments; return how many times it was."""
    generator = random.Random(seed)
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", KILLED, str(directory), str(workers)]
    killed = 0
    while True:
        process = subprocess.Popen(command, cwd=root, start_new_session=True, stderr=subprocess.PIPE)
        if killed < kills:
            deadline = time.monotonic() + 0.3 + generator.random() * 1.5
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if process.poll() is None:
                process.kill()
                process.communicate()
                killed += 1
                continue
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
        if killed >= kills:
            return killed
        # it was faster than the clock: begin anew, to be killed again
        RunDirectory(directory).model_config.unlink()


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_bytes(tmp_path, kills=4):
    train(tmp_path / "whole", num_steps=400, num_workers=2)
    run_killed(tmp_path / "killed", 2, kills, seed=kills)
    runs = [RunDirectory(tmp_path / name) for name in ("whole", "killed")]
    assert runs[0].model_weights.read_bytes() == runs[1].model_weights.read_bytes()
    states = [dict(np.load(run.training_state)) for run in runs]
    for name in ("parameters", "state_mean", "state_square"):
        assert states[0][name].tobytes() == states[1][name].tobytes()


@pytest.mark.campaign
def test_fifty_kills(tmp_path):
    test_killed_run_resumes_to_the_same_bytes(tmp_path, kills=50)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_last_evaluation_has_a_bar_and_counts_as_training_time(monkeypatch):
    evaluate = LocalExecutor.evaluate

    def slow(self, max_windows=None, *arguments, **options):
        if max_windows is None:
            time.sleep(0.7)
        return evaluate(self, max_windows, *arguments, **options)

    monkeypatch.setattr(LocalExecutor, "evaluate", slow)
    monkeypatch.setattr("sys.stderr", shown := Terminal())
    started = time.monotonic()
    result = train_model(*setup(), TEXT, {**SETTINGS, "num_steps": 2}, progress=True)
    assert 0.7 < result.seconds < time.monotonic() - started
    assert "evaluating: 100%" in shown.getvalue()
