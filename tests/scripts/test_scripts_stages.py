from pathlib import Path

import pytest

from scripts import stages
from scripts.stages import Stage, StageRecords, digests


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(stages, "PROJECT", tmp_path / "project")
    (tmp_path / "project" / "package").mkdir(parents=True)
    (tmp_path / "project" / "package" / "code.py").write_text("x = 1\n")
    (tmp_path / "run" / "result").mkdir(parents=True)
    (tmp_path / "run" / "input.txt").write_text("input")
    (tmp_path / "run" / "result" / "output.txt").write_text("output")
    return Stage(
        command="quantize",
        words=("--weight-bits", "8"),
        inputs=(tmp_path / "run" / "input.txt",),
        outputs=(tmp_path / "run" / "result",),
        sources=("package",),
        tools=("numpy",),
    )


def complete(directory: Path, stage: Stage) -> StageRecords:
    records = StageRecords(directory)
    records.mark_started(stage)
    records.mark_done(stage)
    return records


def changed(stage: Stage, **changes: object) -> Stage:
    return Stage(**{**stage.__dict__, **changes})  # type: ignore[arg-type]


def test_unchanged_stage_is_up_to_date(stage: Stage, tmp_path: Path) -> None:
    records = StageRecords(tmp_path / "run")
    assert not records.is_up_to_date(stage)
    complete(tmp_path / "run", stage)
    assert StageRecords(tmp_path / "run").is_up_to_date(stage)


def test_a_stage_that_was_started_and_not_finished_is_not_up_to_date(stage: Stage, tmp_path: Path) -> None:
    records = complete(tmp_path / "run", stage)
    assert not records.was_started(stage)
    records.mark_started(stage)
    assert records.was_started(stage)
    assert not records.is_up_to_date(stage)
    assert not records.was_started(changed(stage, words=("--weight-bits", "4")))


def test_what_changes_while_the_stage_runs_makes_it_stale(stage: Stage, tmp_path: Path) -> None:
    records = StageRecords(tmp_path / "run")
    records.mark_started(stage)
    (tmp_path / "run" / "input.txt").write_text("edited meanwhile")
    records.mark_done(stage)
    assert not records.is_up_to_date(stage)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run/input.txt", "other input"),
        ("run/result/output.txt", "damaged"),
        ("run/result/added.txt", "added"),
        ("project/package/code.py", "x = 2\n"),
        ("project/package/more.py", "y = 1\n"),
    ],
)
def test_changed_file_makes_it_stale(stage: Stage, tmp_path: Path, file: str, text: str) -> None:
    records = complete(tmp_path / "run", stage)
    (tmp_path / file).write_text(text)
    assert not records.is_up_to_date(stage)


@pytest.mark.parametrize("file", ["run/input.txt", "run/result/output.txt", "project/package/code.py"])
def test_removed_file_makes_it_stale(stage: Stage, tmp_path: Path, file: str) -> None:
    records = complete(tmp_path / "run", stage)
    (tmp_path / file).unlink()
    assert not records.is_up_to_date(stage)


def test_other_options_or_tool_versions_make_it_stale(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = complete(tmp_path / "run", stage)
    assert not records.is_up_to_date(changed(stage, words=("--weight-bits", "4")))
    monkeypatch.setattr(stages, "_version", lambda distribution: "0.0")
    assert not records.is_up_to_date(stage)


def test_compiled_python_does_not_matter(stage: Stage, tmp_path: Path) -> None:
    records = complete(tmp_path / "run", stage)
    cache = tmp_path / "project" / "package" / "__pycache__"
    cache.mkdir()
    (cache / "code.cpython-311.pyc").write_bytes(b"\0")
    assert records.is_up_to_date(stage)


def test_stages_are_recorded_apart(stage: Stage, tmp_path: Path) -> None:
    records = complete(tmp_path / "run", stage)
    other = changed(stage, command="simulate")
    assert not records.is_up_to_date(other)
    complete(tmp_path / "run", other)
    assert records.is_up_to_date(stage)
    assert records.is_up_to_date(other)


@pytest.mark.parametrize("content", ["", "[]", '{"quantize": 3}', "{", '{"quantize": {"fingerprint": 1}}'])
def test_unreadable_records_mean_that_everything_is_done_again(stage: Stage, tmp_path: Path, content: str) -> None:
    records = complete(tmp_path / "run", stage)
    records.path.write_text(content)
    assert not records.is_up_to_date(stage)
    complete(tmp_path / "run", stage)
    assert records.is_up_to_date(stage)


def test_a_moved_run_and_project_stay_up_to_date(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(tmp_path / "run", stage)
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "run").rename(moved / "run")
    (tmp_path / "project").rename(moved / "project")
    monkeypatch.setattr(stages, "PROJECT", moved / "project")
    there = changed(stage, inputs=(moved / "run" / "input.txt",), outputs=(moved / "run" / "result",))
    assert StageRecords(moved / "run").is_up_to_date(there)


def test_digest_of_a_missing_file_is_none(tmp_path: Path) -> None:
    assert digests([tmp_path / "absent"]) == [["absent", None]]
