"""The saved state of a run: read back as written, resumed with the same configuration only."""

import math
from dataclasses import replace

import numpy as np
import pytest

from model.config import TrainingConfig
from model.errors import InputError
from model.files import write_json
from model.run import RunDirectory
from model.training.state import FREE_FIELDS, Progress, TrainingState

CONFIG = TrainingConfig(num_steps=40, learning_rate=0.01)
SIZE = 12


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path)
    write_json(run.training, {"training": CONFIG.to_dict()})
    return run


def some_state(**changes):
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(4, SIZE)).astype(np.float32)
    progress = Progress(30, 1.5, 2, 12.25, 3.75, 4, 2, 1)
    return TrainingState(progress, vectors[0], vectors[1], {"mean": vectors[2], "square": vectors[3], **changes})


def test_progress_survives_its_array():
    for progress in (Progress(), Progress(3, 0.1, 2, 1e-3, 7.5, 2, 4, 1)):
        array = progress.to_array()
        assert array.dtype == np.float64
        again = Progress.from_array(array)
        assert again == progress
        assert [type(value) for value in vars(again).values()] == [type(value) for value in vars(progress).values()]
    assert Progress().best_loss == math.inf


def test_what_is_read_is_what_was_written(run):
    written = some_state()
    written.save(run)
    read = TrainingState.load(run, CONFIG, SIZE)
    assert read.progress == written.progress
    for a, b in ((read.parameters, written.parameters), (read.best_parameters, written.best_parameters)):
        np.testing.assert_array_equal(a, b, strict=True)
    assert list(read.optimizer) == ["mean", "square"]
    for name, vector in written.optimizer.items():
        np.testing.assert_array_equal(read.optimizer[name], vector, strict=True)


def test_the_file_is_repeatable(run):
    some_state().save(run)
    first = run.training_state.read_bytes()
    TrainingState.load(run, CONFIG, SIZE).save(run)
    assert run.training_state.read_bytes() == first


def test_a_resumed_run_may_change_logging_and_time_limit_only(run):
    some_state().save(run)
    others = {"log_every": 3, "sample_every": 5, "time_limit": 2.0}
    assert set(others) == set(FREE_FIELDS)
    assert TrainingState.load(run, replace(CONFIG, **others), SIZE).progress.step == 30
    for changes, message in (({"seed": 9}, "seed 1, not 9"), ({"batch_size": 3}, "batch_size")):
        with pytest.raises(InputError, match=message):
            TrainingState.load(run, replace(CONFIG, **changes), SIZE)


def test_other_files_are_refused(run):
    with pytest.raises(InputError, match="no saved training state; train it from the start"):
        TrainingState.load(run, CONFIG, SIZE)
    some_state().save(run)
    with pytest.raises(InputError, match="parameters"):
        TrainingState.load(run, CONFIG, SIZE + 1)
    some_state(square=np.zeros(SIZE - 1, dtype=np.float32)).save(run)
    with pytest.raises(InputError, match="state_square"):
        TrainingState.load(run, CONFIG, SIZE)
    run.training_state.write_bytes(run.training_state.read_bytes()[:-30])
    with pytest.raises(InputError):
        TrainingState.load(run, CONFIG, SIZE)
