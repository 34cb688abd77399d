import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fixedpoint import load_export
from hdl import CircuitError
from hdl.catalog.names import MATRICES, NORMS, WHOLE_MODEL
from hdl.catalog.registry import CORES
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
        (["softmax", "--part", "up"], "softmax has no part 'up'; it is made from no part of its own"),
        (["layer-norm", "--part", "up"], "layer-norm has no part 'up'; choose one of attention_norm, feed_forward"),
        (["uart", "--prefix", "1"], "a module's name has letters, digits and _ and begins with no digit; got '1uart'"),
        (["uart", "--name", "wire"], "a module cannot be called wire: the word means something in Verilog"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export-verilog", *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_run_is_exported_under_a_name(tiny_run_original, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ["--run", str(tiny_run_original), "--layer", "1", "--vectors", "2"]
    names = ["--part", "attention.output", "--name", "projection", "--prefix", "layer1_"]
    assert cli.main(["export-verilog", "matrix-vector", *run, *names]) == 0
    directory = Path("verilog/layer1_projection")
    assert capsys.readouterr().out.splitlines()[0] == str(directory / "layer1_projection.v")
    assert "\nmodule layer1_projection(" in (directory / "layer1_projection.v").read_text()
    assert "\nmodule layer1_projection_testbench;" in (directory / "layer1_projection_testbench.v").read_text()
    manifest = json.loads((tiny_run_original / "quantized" / "manifest.json").read_text())
    for port in ("input", "output"):
        expected = f"| {port} | {manifest['layers']['blocks.1.attention.output'][port]} |"
        assert expected in (directory / "layer1_projection.md").read_text()


def test_every_matrix_and_norm_of_a_run_has_a_core(tiny_run_original):
    manifest = json.loads((tiny_run_original / "quantized" / "manifest.json").read_text())
    quantized, found = load_export(tiny_run_original / "quantized"), {}
    for core, parts in (("matrix-vector", MATRICES), ("layer-norm", NORMS)):
        for part in parts:
            for layer in range(1 if part in WHOLE_MODEL else manifest["num_layers"]):
                name = part if part in WHOLE_MODEL else f"blocks.{layer}.{part}"
                found[name] = CORES[core].for_model(quantized, layer, part).parameters
    assert found.keys() == {name for name, layer in manifest["layers"].items() if {"ternary", "epsilon"} & layer.keys()}
    stored = load_file(tiny_run_original / "quantized" / "weights.safetensors")
    for name, parameters in found.items():
        values = stored[f"{name}.scale"] if "norm" in name else stored[f"{name}.weight"]
        np.testing.assert_array_equal(parameters.scale if "norm" in name else parameters.weight, values)
    with pytest.raises(CircuitError, match="logits belongs to no block, so there is no layer 1 of it"):
        CORES["requantize"].for_model(quantized, 1, "logits")


def test_a_directory_of_other_files_is_not_replaced(tmp_path, capsys):
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
