"""`quantize --sweep` and `--analyze`: pictures, messages, and resuming a stopped sweep."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fixedpoint_builders import histogram_of

from fixedpoint import QFormat, load_export
from fixedpoint.fast.transformer import prepared
from model import RunDirectory, evaluate_loss
from model.data import windows
from scripts import cli
from scripts.quantization import sweep
from scripts.quantization.front import run_points
from scripts.quantization.pictures import BARS, over_range

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def swept(tiny_run_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with a whole sweep, made in two parts."""
    directory = Path(shutil.copytree(tiny_run_original, tmp_path_factory.mktemp("sweep") / "tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "SERIES", {"residual bits": (("residual_bits", (16, 8)),)})
        assert cli.main(["quantize", str(directory), "--sweep"]) == 0
    assert len(json.loads((directory / "quantization_sweep.json").read_text())["points"]) == 2
    assert cli.main(["quantize", str(directory), "--sweep", "--json", str(directory / "copy.json")]) == 0
    return directory


def test_every_point_is_measured_once(swept: Path) -> None:
    figures = json.loads((swept / "quantization_sweep.json").read_text())
    settings = [json.dumps(point["settings"], sort_keys=True) for point in figures["points"]]
    assert len(settings) == len(set(settings)) == 8 + 8 + 4 + 4
    run = RunDirectory(swept)
    assert figures["float_loss"] == pytest.approx(evaluate_loss(run.load_model(), run.load_validation_tokens()))
    series = json.loads((swept / "copy.json").read_text())["series"]
    assert {name: len(points) for name, points in series.items()} == {
        "weight bits, compensated": 8,
        "weight bits, to nearest": 8,
        "activation bits": 5,
        "residual bits": 5,
    }
    sizes = [size for _, _, size in series["weight bits, compensated"]]
    assert sizes == sorted(sizes, reverse=True)
    losses = [loss for _, loss, _ in series["weight bits, to nearest"]]
    assert losses[-2] > 5 * abs(losses[0])
    assert (swept / "quantization_sweep.png").read_bytes().startswith(PNG)


def test_the_front_has_the_least_loss_for_its_bytes(swept: Path) -> None:
    figures = json.loads((swept / "copy.json").read_text())
    points = [(name, *point) for name, line in figures["series"].items() for point in line]
    front = figures["front"]
    assert 2 < len(front) < len(points)
    assert [size for *_, size in front] == sorted({size for *_, size in front})
    for point in map(list, points):
        better = [other for other in points if other[3] <= point[3] and other[2] < point[2]]
        assert (point in front) <= (not better)
        assert better or any(other[2:] == point[2:] for other in front)


def test_a_point_is_the_loss_of_that_model(swept: Path) -> None:
    point = next(
        point
        for point in json.loads((swept / "quantization_sweep.json").read_text())["points"]
        if point["settings"]["weight_bits"] == 4 and point["settings"]["rounding"] == "compensated"
    )
    assert cli.main(["quantize", str(swept), "--weight-bits", "4"]) == 0
    run = RunDirectory(swept)
    assert point["loss"] == prepared(load_export(run.quantized)).loss(*windows(run.load_validation_tokens(), 16))
    assert point["bytes"] == json.loads((swept / "quantization.json").read_text())["storage_bytes"]


def test_nothing_is_measured_twice(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sweep, "quantize_transformer", never)
    assert cli.main(["quantize", str(swept), "--sweep"]) == 0
    output = capsys.readouterr().out
    assert f"picture: {swept / 'quantization_sweep.png'}" in output
    assert "ternary" in output
    assert "least loss for their bytes: weight bits" in output
    with pytest.raises(AssertionError, match="measured again"):  # other calibration, other points
        cli.main(["quantize", str(swept), "--sweep", "--calibration-windows", "3"])


@pytest.mark.parametrize("points", [{}, [1], [{"settings": {}}]])
def test_edited_sweeps_are_refused(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], points: object
) -> None:
    directory = Path(shutil.copytree(swept, tmp_path / "edited"))
    path = directory / "quantization_sweep.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"points": points}))
    assert cli.main(["quantize", str(directory), "--sweep"]) == 1
    assert "quantization_sweep.json was edited; remove it" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original, calls = sweep.quantize_transformer, []

    def stop_at_the_third(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(sweep, "quantize_transformer", stop_at_the_third)
    assert cli.main(["quantize", str(tiny_run), "--sweep"]) == 130
    assert "continues with the points that are missing" in capsys.readouterr().err
    assert len(json.loads((tiny_run / "quantization_sweep.json").read_text())["points"]) == 2


def test_analysis_names_the_worst_and_draws(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = tiny_run / "overrides.toml"
    overrides.write_text('["blocks.1.feed_forward.down"]\nweight_bits = 2\n', encoding="utf-8")
    assert (
        cli.main(["quantize", str(tiny_run), "--overrides", str(overrides), "--rounding", "nearest", "--analyze"]) == 0
    )
    output = capsys.readouterr().out
    figures = json.loads((tiny_run / "quantization.json").read_text())
    assert figures["overrides"] == {"blocks.1.feed_forward.down": {"weight_bits": 2}}
    analysis = figures["analysis"]
    assert analysis["worst"]["signal_to_noise"] == min(row["signal_to_noise"] for row in analysis["tensors"])
    assert analysis["worst"]["name"] == "blocks.1.feed_forward.down"
    assert f"worst: {analysis['worst']['name']}" in output
    assert "costliest alone" in output
    for name in ("tensors", "activations", "weights"):
        assert (tiny_run / f"quantization_{name}.png").read_bytes().startswith(PNG)
        assert f"picture: {tiny_run / f'quantization_{name}.png'}" in output


def test_pictures_show_every_value() -> None:
    values = np.random.default_rng(0).normal(size=3000)
    values[:7] = 100.0
    row = over_range(histogram_of(values), QFormat(8, 6))
    assert row.sum() == 3000
    assert row[-1] >= 7  # far beyond the range is at its end
    bar = 2.5 * 2 / BARS  # the format reaches from −2 to 2, the picture from −2.5 to 2.5
    middle = ((values >= 0) & (values < bar)).sum()
    assert row[BARS // 2] == pytest.approx(middle, abs=2)


def test_runs_are_compared_in_one_picture(
    swept: Path, tiny_run_original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(swept, tmp_path / "float"))
    trained = tmp_path / "trained"
    assert cli.main(["train", "--resume", str(copy), "--quantize", "3", "--steps", "11", "--out", str(trained)]) == 0
    command = ["quantize", str(copy), "--sweep", "--beside", str(trained)]
    capsys.readouterr()
    assert cli.main(command) == 1
    assert f"{trained} has no figures of its model yet: positron quantize {trained}" in capsys.readouterr().err
    assert cli.main(["quantize", str(trained)]) == 0
    assert cli.main([*command, "--json", str(tmp_path / "figures.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    mine = json.loads((trained / "quantization.json").read_text())
    point = ["trained", "3, trained", mine["comparison"]["fixed_loss"], mine["storage_bytes"]]
    assert f"{point[2]:.4f}" in printed
    front = figures["runs"]
    swept_points = [point for point in figures["points"] if point["settings"]["rounding"] == "compensated"]
    better = [one for one in swept_points if one["bytes"] <= point[3] and one["loss"] < point[2]]
    assert (point in front) == (not better)
    assert all(first[2] > second[2] and first[3] < second[3] for first, second in itertools.pairwise(front))
    assert (copy / "quantization_front.png").read_bytes().startswith(PNG)

    # a sweep at another width of the residual stream has as many points
    points = json.loads((copy / "quantization_sweep.json").read_text())
    for one in points["points"]:
        one["settings"]["residual_bits"] -= 2
    (copy / "quantization_sweep.json").write_text(json.dumps(points))
    (labels,) = [[label for label, *_ in line] for line in run_points([RunDirectory(copy)]).values()]
    assert sorted(labels) == sorted(map(str, sweep.WEIGHT_BITS))

    assert cli.main(["quantize", str(copy), "--beside", str(trained)]) == 1
    assert "--beside compares sweeps: give --sweep too" in capsys.readouterr().err
    tokens = np.load(trained / "validation_tokens.npy")
    np.save(trained / "validation_tokens.npy", tokens[:-1])
    assert cli.main(command) == 1
    assert "has another held-out text than" in capsys.readouterr().err
