import json

import pytest

from scripts import cli


def test_a_core_of_a_run_is_exported_and_simulated(tiny_run_original, tmp_path, capsys):
    out = tmp_path / "softmax"
    words = ["export-verilog", "softmax", "--run", str(tiny_run_original), "--layer", "1", "--vectors", "9"]
    assert cli.main([*words, "--out", str(out), "--simulate"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        *("i.mem", "o.mem", "softmax.md", "softmax.v", "softmax_testbench.v"),
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(out / "softmax.v")
    assert printed[-1].startswith("PASS: i ")
    layers = json.loads((tiny_run_original / "quantized" / "manifest.json").read_text())["layers"]
    assert layers  # the run's formats, not the example's
    assert "| score | Q" in (out / "softmax.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sofmax"], "there is no core 'sofmax'; choose one of activation"),
        (["softmax", "--vectors", "0"], "--vectors must be at least 1, not 0"),
        (["softmax", "--seed", "-1"], "--seed must not be negative, not -1"),
        (["softmax", "--layer", "1"], "--layer chooses a block of a run: it needs --run"),
        (["softmax", "--run", "nowhere"], "there is no run directory nowhere"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export-verilog", *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_somebody_else_is_not_replaced(tmp_path, capsys):
    project, file = tmp_path / "project", tmp_path / "file"
    project.mkdir()
    (project / "top.v").write_text("mine")
    file.write_text("mine")
    export = ["export-verilog", "stream-register", "--out"]
    assert cli.main([*export, str(project)]) == 1
    assert f"{project} also holds top.v, which would be lost; choose a directory" in capsys.readouterr().err
    assert cli.main([*export, str(file)]) == 1
    assert f"{file} is no directory" in capsys.readouterr().err
    assert (project / "top.v").read_text() == file.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [file, project]
    assert list(project.iterdir()) == [project / "top.v"]


def test_an_earlier_export_is_replaced(tmp_path):
    export = ["export-verilog", "stream-register", "--out", str(tmp_path / "core")]
    assert cli.main(export) == 0
    first = (tmp_path / "core" / "i.mem").read_text()
    (tmp_path / "core" / "bench").write_text("compiled as the page says")
    assert cli.main([*export, "--seed", "1"]) == 0
    assert (tmp_path / "core" / "i.mem").read_text() != first
