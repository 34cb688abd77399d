"""Exports: what is loaded is what was saved, and saving replaces only an export. What is refused:
test_fixedpoint_export_damage.py.
"""

import json
import shutil
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import safetensors.numpy
from model_kinds import KINDS, make_model
from test_fixedpoint_memory_file import read_memory

from fixedpoint import QFormat, QuantizationError, Reciprocal, ReciprocalSquareRoot, load_export, save_export

MODEL = make_model(0, num_layers=2, channels=6, num_heads=2, context_length=4, vocab_size=5)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exports") / "model"
    save_export(MODEL, directory)
    return directory


def assert_equal(a, b, where="model"):
    assert type(a) is type(b), where
    if is_dataclass(a):
        for field in fields(a):
            assert_equal(getattr(a, field.name), getattr(b, field.name), f"{where}.{field.name}")
    elif isinstance(a, tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b, strict=True)):
            assert_equal(*pair, f"{where}[{index}]")
    elif isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, err_msg=where)
        assert a.dtype == b.dtype, where
    else:
        assert a == b, where


def test_what_is_loaded_is_what_was_saved(original):
    loaded = load_export(original)
    assert_equal(loaded, MODEL)
    tokens = np.random.default_rng(0).integers(0, 5, size=(3, 4))
    np.testing.assert_array_equal(loaded.forward(tokens), MODEL.forward(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_survives(kind, tmp_path):
    model = KINDS[kind](1)
    manifest = save_export(model, tmp_path / "model")
    assert_equal(load_export(tmp_path / "model"), model)
    assert {entry["kind"] for entry in manifest["layers"].values() if "kind" in entry} == {
        "rms" if "rms norm" in kind else "layer"
    }
    assert manifest["layers"]["logits"]["ternary"] == ("ternary" in kind)
    assert ("final_norm.shift" in manifest["tensors"]) == ("rms norm" not in kind)


def test_saving_again_changes_nothing(original, tmp_path):
    save_export(load_export(original), tmp_path / "again")
    for path in original.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_the_manifest_is_returned_and_written(tmp_path):
    manifest = save_export(MODEL, tmp_path / "model")
    assert manifest == json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["layers"]["blocks.1.feed_forward.up"] == {
        "input": "Q3.5",
        "output": "Q4.4",
        "weight_bits": 8,
        "ternary": False,
    }


def test_tables_of_another_size_survive(tmp_path):
    block = MODEL.blocks[1]
    block = replace(
        block,
        attention=replace(block.attention, reciprocal=Reciprocal(7, 12)),
        feed_forward_norm=replace(block.feed_forward_norm, reciprocal_square_root=ReciprocalSquareRoot(8, 11)),
    )
    other = replace(MODEL, blocks=(MODEL.blocks[0], block))
    save_export(other, tmp_path / "model")
    assert_equal(load_export(tmp_path / "model"), other)


def test_an_export_replaces_an_export_and_nothing_else(original, tmp_path):
    save_export(MODEL, tmp_path / "model")
    (tmp_path / "model" / "stale.mem").write_text("0")
    save_export(MODEL, tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted(
        path.name for path in original.iterdir()
    )
    (tmp_path / "empty").mkdir()
    save_export(MODEL, tmp_path / "empty")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("also work")
    for name in ("thesis", "file"):
        with pytest.raises(QuantizationError, match="holds no export"):
            save_export(MODEL, tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_text() == "also work"


def test_a_failed_export_leaves_the_old_one(original, tmp_path, monkeypatch):
    export = shutil.copytree(original, tmp_path / "model")
    monkeypatch.setattr(safetensors.numpy, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_export(MODEL, export)
    assert_equal(load_export(export), MODEL)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_does_not_fit_its_bits_is_not_written(tmp_path):
    wide = replace(MODEL.blocks[0].activation, output=QFormat(8, 5, signed=False), table=np.full(256, 255))
    other = replace(MODEL)
    object.__setattr__(other, "blocks", (replace(MODEL.blocks[0], activation=wide), MODEL.blocks[1]))
    del other.__dict__["operations"]  # so that they are those of the changed block
    with pytest.raises(QuantizationError, match="does not fit its 8 signed bits"):
        save_export(other, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_every_memory_file_is_its_tensor(original):
    manifest = json.loads((original / "manifest.json").read_text())
    tensors = safetensors.numpy.load_file(original / "weights.safetensors")
    assert set(tensors) == set(manifest["tensors"])
    for name, entry in manifest["tensors"].items():
        tensor = tensors[name]
        columns = tensor.shape[1] if tensor.ndim == 2 else 1
        text = (original / entry["memory"]).read_text(encoding="ascii")
        np.testing.assert_array_equal(read_memory(text, entry["bits"], columns), tensor.reshape(-1, columns))
    assert {path.name for path in original.iterdir()} == {
        "manifest.json",
        "weights.safetensors",
        "model.h",
        *(entry["memory"] for entry in manifest["tensors"].values()),
    }
