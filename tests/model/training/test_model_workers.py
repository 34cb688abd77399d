"""Worker processes: what they share, and what happens when one dies."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from model.config import ModelConfig, TrainingConfig
from model.data import save_tokens
from model.loss import cross_entropy
from model.training.evaluation import evaluate_loss
from model.training.workers import ProcessExecutor, available_workers, open_executor
from model.transformer import Transformer
from model.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]
MODEL = ModelConfig(vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, max_seq_len=6)
TRAINING = TrainingConfig(batch_size=5, num_workers=3)
TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)


def executor(training=TRAINING, tokens=TOKENS):
    return open_executor(MODEL, training, 100, tokens, TOKENS[:100])


def test_shared_evaluation_equals_the_whole():
    model = Transformer(MODEL, seed=3)
    with executor() as workers:
        assert isinstance(workers, ProcessExecutor)
        workers.memory.parameters[:] = model.parameters.flat
        assert workers.evaluate() == pytest.approx(evaluate_loss(model, TOKENS[:100]), rel=1e-6)
        assert workers.evaluate(4) == pytest.approx(evaluate_loss(model, TOKENS[:100], max_windows=4), rel=1e-6)
        before = workers.memory.parameters.copy()
        first, second = workers.run(0, 2)
        assert first.loss == pytest.approx(np.log(11), rel=0.2)
        assert first.gradient_norm > 0
        assert second.loss != first.loss
        assert (workers.memory.parameters != before).any()


def test_tokens_from_a_file_give_the_same_steps(tmp_path):
    save_tokens(tmp_path / "tokens.npy", TOKENS)
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    results = []
    for tokens in (TOKENS, mapped):
        with executor(tokens=tokens) as workers:
            workers.memory.parameters[:] = Transformer(MODEL, seed=3).parameters.flat
            results.append(workers.run(0, 3))
    assert results[0] == results[1]


def test_death_of_a_worker_is_an_error_not_a_hang():
    with pytest.raises(RuntimeError, match="worker ended unexpectedly"), executor() as workers:
        workers.run(0, 1)
        processes = workers._processes
        os.kill(processes[1].pid, signal.SIGKILL)
        processes[1].wait()
        workers.run(1, 50)
    deadline = time.monotonic() + 10
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert all(process.poll() is not None for process in processes)


@pytest.mark.parametrize("job", ["", '{"model": {'])
def test_a_worker_without_its_job_ends_quietly(job):
    """Ctrl-C can come before the parent has sent it."""
    command = [sys.executable, "-m", "model.training.worker_process"]
    result = subprocess.run(command, cwd=ROOT, input=job, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_number_of_workers():
    assert available_workers(1) == 1
    assert 1 <= available_workers(100) <= 4
    with executor(TrainingConfig(batch_size=2, num_workers=8)) as workers:
        assert workers.num_workers == 2  # no more than sequences
    with executor(TrainingConfig(batch_size=1)) as workers:
        assert workers.num_workers == 1


def test_the_current_directory_is_not_where_workers_find_modules(tmp_path, monkeypatch):
    """A nanoGPT checkout has a model.py."""
    for name in ("model.py", "numpy.py", "json.py"):
        (tmp_path / name).write_text(f"raise SystemExit('{name} of the current directory was imported')")
    monkeypatch.chdir(tmp_path)
    with executor() as workers:
        workers.memory.parameters[:] = Transformer(MODEL, seed=3).parameters.flat
        assert len(workers.run(0, 1)) == 1


@pytest.mark.parametrize(
    ("vocab_size", "batch_size", "accumulation_steps"), [(11, 1, 1), (5000, 3, 1), (5000, 5, 2), (11, 7, 7)]
)
def test_evaluation_takes_no_memory_beyond_that_of_a_step(vocab_size, batch_size, accumulation_steps):
    model = ModelConfig(vocab_size=vocab_size, embed_dim=16, num_heads=2, num_layers=3, max_seq_len=48)
    tokens = np.random.default_rng(1).integers(0, vocab_size, 48 * 40 + 1).astype(np.uint16)
    training = TrainingConfig(batch_size=batch_size, accumulation_steps=accumulation_steps, num_workers=1)
    done = []
    evaluate_loss(Transformer(model), tokens, max_windows=3)  # what is made at the first call
    tracemalloc.start()
    try:
        with open_executor(model, training, 10, tokens, tokens) as local:
            local.memory.parameters[:] = Transformer(model, seed=2).parameters.flat
            local.run(0, 2)
            _, of_steps = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            loss = local.evaluate(progress=done.append)
            few, some = local.evaluate(3), local.evaluate(7)
            _, of_evaluation = tracemalloc.get_traced_memory()
            parameters = local.memory.parameters.copy()
    finally:
        tracemalloc.stop()
    assert of_evaluation < of_steps + 20_000  # Python's own objects
    assert sum(done) == 40
    whole = Transformer(model, parameters=parameters)
    assert [loss, few, some] == pytest.approx(
        [evaluate_loss(whole, tokens, 9, count) for count in (None, 3, 7)], rel=1e-6
    )


def test_loss_of_a_large_vocabulary_takes_no_memory_for_all_logits_at_once():
    model = Transformer({"vocab_size": 20_000, "embed_dim": 8, "num_heads": 1, "num_layers": 1, "max_seq_len": 256})
    tokens = np.random.default_rng(1).integers(0, 20_000, (4, 256))
    targets = tokens.copy()
    targets[0, :200] = -1
    logits = model.forward(tokens)
    expected = cross_entropy(logits.reshape(1024, -1), targets.reshape(-1), Workspace(logits.dtype))
    tracemalloc.start()
    try:
        assert model.loss(tokens, targets) == pytest.approx(expected, rel=1e-6)
        assert tracemalloc.get_traced_memory()[1] < logits.nbytes / 5
    finally:
        tracemalloc.stop()
