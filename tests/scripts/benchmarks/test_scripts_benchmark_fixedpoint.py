import json
from pathlib import Path

import pytest

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


def test_ratios_are_medians_of_turns() -> None:
    times = benchmark_fixedpoint._take_turns({"a": iter([0.0, 1, 2, 3, 4, 90]).__next__, "b": lambda: 2.0}, 0)
    assert times == {"a": [1, 2, 3, 4, 90], "b": [2.0] * 5}
    assert benchmark_fixedpoint._ratio(times["a"], times["b"]) == 1.5
