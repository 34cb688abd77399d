"""The report shows only what belongs to the present model; gaps have a reason and a command."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from hdl.tools import synthesis
from model.files import file_digest, write_json
from model.run import RunDirectory
from scripts import cli
from scripts.report.collect import collect
from scripts.report.data import ReportData
from scripts.report.page import page
from scripts.runs import MADE_FROM, attention_synthesis, simulation_file

BENCH = {"name": "softmax", "compared": 4711, "cycles": 5, "stalls": False, "equal": True}
USAGE = {"used": 1, "available": 10}


def finish(directory: RunDirectory) -> None:
    """Write what a simulation and a synthesis of the present integer model would write."""
    digest = file_digest(directory.quantized_manifest)
    directory.simulation.mkdir(exist_ok=True)
    write_json(
        simulation_file(directory), {"simulator": "none", "seed": 0, "manifest_sha256": digest, "benches": [BENCH]}
    )
    directory.synthesis.mkdir(exist_ok=True)
    usage = dict.fromkeys(("luts", "flip_flops", "block_rams", "multipliers"), USAGE)
    clocks = [{"name": "clk", "achieved_mhz": 61.0, "required_mhz": 50.0}]
    report = {"design": "decoder", "board": "ulx3s-85f", **usage, "clocks": clocks, "seconds": {}}
    report |= {"bitstream": "a.bit", "bitstream_sha256": "ab", "inputs_sha256": "in"}
    write_json(directory.synthesis / "report.json", report)
    write_json(directory.synthesis / MADE_FROM, {"manifest_sha256": digest, "inputs_sha256": "in"})


@pytest.fixture
def run(tiny_run: Path) -> RunDirectory:
    directory = RunDirectory(tiny_run)
    finish(directory)
    return directory


def shown(data: ReportData) -> set[str]:
    return {section for section in ALL if (value := getattr(data, section)) is not None and len(value)}


ALL = {"sample", "attention", "quantization", "simulation", "synthesis", "loss_curves"}


def test_all_of_one_model_is_shown_with_its_digest(run: RunDirectory) -> None:
    data = collect(run)
    assert shown(data) == ALL
    assert data.gaps == {}
    html = page(data)
    assert f"model {file_digest(run.model_weights)[:12]}" in html
    assert f"integer model {file_digest(run.quantized_manifest)[:12]}" in html
    assert "the decoder was built" in html


def test_two_runs_are_compared_in_one_page(run: RunDirectory, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run.path, tmp_path / "copy"))
    (copy / "sample.txt").unlink()
    assert cli.main(["report", str(run.path), str(copy)]) == 0
    html = (run.path / "comparison.html").read_text(encoding="utf-8")
    assert "2 runs side by side" in html
    assert "Loss over bytes" in html
    assert html.count("61.0 MHz") == 2
    assert html.count("<blockquote>") == 1
    (copy / "validation_tokens.npy").unlink()
    assert cli.main(["report", str(run.path), str(copy)]) == 0
    assert "do not compare" in (run.path / "comparison.html").read_text(encoding="utf-8")


def test_after_another_training(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_digest(run.model_weights)
    text = run.path.with_name("text.txt")
    text.write_text("Another text about other animals: horses, cows and hens.\n" * 60)
    sizes = "--embed-dim 32 --num-heads 4 --num-layers 2 --ff-dim 64 --max-seq-len 16 --batch-size 8"
    assert cli.main(f"train --text {text} --out {run.path} --steps 5 --workers 1 --force {sizes}".split()) == 0
    data = collect(run)
    assert shown(data) == {"sample", "attention", "loss_curves"}
    assert data.model_sha256 != before
    assert set(data.gaps) == {"quantization", "simulation", "synthesis"}
    assert data.gaps["quantization"].reason == (
        f"The results belong to {before[:12]}; the model is now {data.model_sha256[:12]}."
    )
    assert data.gaps["quantization"].commands == (f"quantize {run.path}",)
    assert data.gaps["simulation"].commands == (f"quantize {run.path}", f"simulate {run.path}")
    html = page(data)
    assert "4,711" not in html
    assert "61 MHz" not in html
    assert "trained in NumPy." in html
    capsys.readouterr()
    assert cli.main(["report", str(run.path)]) == 0
    said = capsys.readouterr().out
    assert f"left out, synthesis: The results belong to {file_digest(run.quantized_manifest)[:12]}" in said
    assert f"positron quantize {run.path}, then positron synthesize {run.path}" in said


def test_after_another_quantization(run: RunDirectory) -> None:
    assert cli.main(["quantize", str(run.path), "--weight-bits", "4"]) == 0
    data = collect(run)
    assert shown(data) == ALL - {"simulation", "synthesis"}
    assert data.gaps["simulation"].commands == (f"simulate {run.path}",)
    finish(run)
    assert shown(collect(run)) == ALL


def test_text_of_another_model(run: RunDirectory) -> None:
    run.save_sample("Of another model", "Of", model_sha256="cd" * 32)
    data = collect(run)
    assert shown(data) == ALL - {"sample", "attention"}
    assert data.gaps["attention"] == data.gaps["sample"]
    assert data.gaps["sample"].commands == (f"generate {run.path}",)
    assert cli.main(["generate", str(run.path), "--prompt", "The", "--length", "20"]) == 0
    data = collect(run)
    assert (shown(data), data.prompt, data.sample_is_of_integers) == (ALL, "The", False)
    run.sample.write_text("written by hand")
    assert collect(run).gaps["sample"].reason == "The results do not name their model."


def test_text_of_the_integer_model(run: RunDirectory) -> None:
    assert cli.main(["generate", str(run.path), "--prompt", "The", "--length", "20", "--quantized"]) == 0
    assert collect(run).sample_is_of_integers
    assert cli.main(["quantize", str(run.path), "--weight-bits", "4"]) == 0
    assert "sample" in collect(run).gaps


def test_unfinished_training_and_other_weights(run: RunDirectory) -> None:
    record = json.loads(run.training.read_text())
    write_json(run.training, record | {"results": {}})
    data = collect(run)
    assert data.gaps["training"].commands == (f"train --resume --out {run.path}",)
    assert "loss_curves" not in shown(data)
    record["results"]["model_sha256"] = "ef" * 32
    write_json(run.training, record)
    assert collect(run).gaps["training"].commands == (f"train --force --out {run.path}",)


def test_a_bitstream_without_the_digest_of_its_model(run: RunDirectory) -> None:
    (run.synthesis / MADE_FROM).unlink()
    data = collect(run)
    assert shown(data) == ALL - {"synthesis"}
    assert data.gaps["synthesis"].reason == "The results do not name their model."


def test_evaluation_says_which_models_it_is_about(run: RunDirectory) -> None:
    assert cli.main(["evaluate", str(run.path)]) == 0
    record = json.loads(run.evaluation.read_text())
    assert record["model_sha256"] == file_digest(run.model_weights)
    assert record["manifest_sha256"] == file_digest(run.quantized_manifest)


def test_synthesize_says_which_integer_model_it_built(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.synthesis / MADE_FROM).unlink()
    report = SimpleNamespace(inputs_sha256="in", bitstream="a.bit")
    monkeypatch.setattr(synthesis, "synthesize", lambda *_, **__: report)
    assert cli.main(["synthesize", str(run.path)]) == 0
    assert "lanes: the fewest cycles" in capsys.readouterr().out
    assert collect(run).synthesis["design"] == "decoder"  # type: ignore[index]
    attention_synthesis(run).mkdir()
    assert cli.main(["synthesize", str(run.path), "--only", "attention", "--layer", "1"]) == 0
    made_from = json.loads((attention_synthesis(run) / MADE_FROM).read_text())
    assert made_from == {"manifest_sha256": file_digest(run.quantized_manifest), "inputs_sha256": "in"}
