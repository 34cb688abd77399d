"""`simulate`: output, files and exit status, on Amaranth's simulator, which runs everywhere."""

import dataclasses
import json
from pathlib import Path

import pytest

from scripts import cli
from scripts.commands import simulate as command
from sim.bench import core_benches

OPTIONS = ["--simulator", "amaranth", "--vectors", "4"]


def test_results_are_kept_and_all_equal(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["simulate", str(tiny_run), *OPTIONS, "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads((tiny_run / "simulation" / "results.json").read_text())
    assert figures["simulator"] == "amaranth"
    assert [(bench["name"], bench["stalls"]) for bench in figures["benches"]] == [
        (name, stalls) for name in ("matrix-vector", "softmax", "layer-norm", "attention") for stalls in (False, True)
    ]
    assert all(bench["equal"] and bench["compared"] >= 4 for bench in figures["benches"])
    total = sum(bench["compared"] for bench in figures["benches"])
    assert f"{total:,} values, every one equal to the golden model's" in capsys.readouterr().out


def test_one_circuit_alone_and_its_waveforms(tiny_run: Path, tmp_path: Path) -> None:
    waves = tmp_path / "waves"
    assert cli.main(["simulate", str(tiny_run), *OPTIONS, "--only", "softmax", "--vcd", str(waves)]) == 0
    # four rows at least: `last` of the input rises and falls in both files
    for name in ("softmax-full-speed.vcd", "softmax-stalling.vcd"):
        text = (waves / name).read_text()
        assert "$enddefinitions" in text and "$var wire 1" in text
        assert text.count("\n#") > 40, "cycles"
    figures = json.loads((tiny_run / "simulation" / "results.json").read_text())
    assert {bench["name"] for bench in figures["benches"]} == {"softmax"}


def test_a_difference_fails_the_command_and_the_rest_still_runs(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_a_wrong_softmax(*arguments, **options):
        benches = real(*arguments, **options)
        return [
            dataclasses.replace(bench, outputs={"o": [bench.outputs["o"][0] ^ 1, *bench.outputs["o"][1:]]})
            if bench.name == "softmax"
            else bench
            for bench in benches
        ]

    real = core_benches.run_benches
    monkeypatch.setattr(core_benches, "run_benches", with_a_wrong_softmax)
    circuits = ("softmax", "layer-norm")
    only = [part for circuit in circuits for part in ("--only", circuit)]
    assert cli.main(["simulate", str(tiny_run), *OPTIONS, *only]) == 1
    shown = capsys.readouterr()
    assert "DIFFERENT" in shown.out
    assert "every one equal" not in shown.out
    assert "error: softmax: o[0]: expected" in shown.err
    figures = json.loads((tiny_run / "simulation" / "results.json").read_text())
    assert [(bench["name"], bench["equal"]) for bench in figures["benches"]] == [
        (name, name != "softmax") for name in circuits for _ in range(2)
    ]


def test_the_fallback_simulator_is_printed(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "default_simulator", lambda: ("amaranth", "there is no compiler here"))
    assert cli.main(["simulate", str(tiny_run), "--vectors", "2", "--only", "softmax"]) == 0
    assert "there is no compiler here" in capsys.readouterr().out
