"""Damaged, edited and forged exports: every one is refused, or it is the model that was saved."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from test_fixedpoint_export import MODEL, assert_equal

from fixedpoint import QuantizationError, load_export, save_export


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exports") / "model"
    save_export(MODEL, directory)
    return directory


@pytest.fixture
def export(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "model")


def rewrite(export, change):
    """Change the manifest and sign it again, as one who wants to deceive would."""
    path = export / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest.pop("sha256", None)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def rewrite_tensors(export, change):
    """Change weights.safetensors, given as a dictionary of arrays."""
    tensors = safetensors.numpy.load_file(export / "weights.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, export / "weights.safetensors")


def rewrite_safetensors_header(export, change):
    """Change the JSON header of weights.safetensors, and leave its data as they are."""
    path = export / "weights.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def refused(export, message=None):
    with pytest.raises(QuantizationError, match=message):
        load_export(export)


# Damage


def test_every_byte_of_the_weights_matters(original, tmp_path):
    """A flipped byte is refused, or it was none of the content (a space in the header) and the
    model is the same.
    """
    content = (original / "weights.safetensors").read_bytes()
    export = shutil.copytree(original, tmp_path / "model")
    generator = np.random.default_rng(0)
    header = 8 + int.from_bytes(content[:8], "little")
    positions = {
        *range(200),
        *generator.integers(0, header, size=200).tolist(),
        *generator.integers(header, len(content), size=200).tolist(),
        len(content) - 1,
    }
    for position in sorted(positions):
        damaged = bytearray(content)
        damaged[position] ^= int(generator.integers(1, 256))
        (export / "weights.safetensors").write_bytes(damaged)
        if position >= header:
            refused(export, "does not match its digest")
            continue
        try:
            loaded = load_export(export)
        except QuantizationError:
            continue
        assert_equal(loaded, MODEL)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.3, 0.9, -1])
@pytest.mark.parametrize(
    "name", ["weights.safetensors", "manifest.json", "blocks.0.feed_forward.up.weight.mem", "model.h"]
)
def test_truncated_files_are_refused(export, name, kept):
    content = (export / name).read_bytes()
    length = (
        kept if isinstance(kept, int) and kept >= 0 else len(content) - 1 if kept == -1 else int(kept * len(content))
    )
    if name == "manifest.json" and kept == -1:
        length -= 2  # its last byte is a line feed after the closing brace
    (export / name).write_bytes(content[: min(length, len(content) - 1)])
    refused(export)


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "logits.bias.mem", "model.h"])
def test_missing_files_and_directories_in_their_place_are_named(export, name):
    (export / name).unlink()
    refused(export, rf"cannot read .*{name}")
    (export / name).mkdir()
    refused(export, rf"{name}")


def test_an_absent_export_says_how_to_make_one(tmp_path):
    refused(tmp_path / "nowhere", "positron quantize")


@pytest.mark.parametrize("position", [0, 7, -2])
def test_an_edited_memory_file_is_refused(export, position):
    path = export / "blocks.1.attention.key.weight.mem"
    text = list(path.read_text())
    text[position] = "1" if text[position] != "1" else "2"
    path.write_text("".join(text))
    refused(export, "key.weight.mem does not hold what its model says")


def test_an_edited_header_is_refused(export):
    path = export / "model.h"
    path.write_text(path.read_text().replace("5", "6", 1))
    refused(export, "model.h does not hold what its model says")


def test_every_byte_of_the_manifest_matters(original, tmp_path):
    export = shutil.copytree(original, tmp_path / "model")
    content = (original / "manifest.json").read_bytes()
    generator = np.random.default_rng(1)
    for position in generator.integers(0, len(content), size=400).tolist():
        damaged = bytearray(content)
        damaged[position] ^= int(generator.integers(1, 256))
        (export / "manifest.json").write_bytes(damaged)
        try:
            loaded = load_export(export)
        except QuantizationError:
            continue
        assert_equal(loaded, MODEL)  # a space between two tokens became another


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"text"', "[" * 100_000, "{}", '{"schema": "other"}', "\xff"]
)
def test_other_text_is_no_manifest(export, text):
    (export / "manifest.json").write_bytes(text.encode("latin-1"))
    refused(export, "manifest")


def test_an_edited_manifest_is_noticed(export):
    path = export / "manifest.json"
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 3'))
    refused(export, "changed after it was written")


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 6, "5", None])
def test_other_versions_are_named(export, version):
    rewrite(export, lambda manifest: manifest.update(version=version))
    refused(export, f"version {version!r}.*reads 5: quantize the model again")


# Deception: the manifest's digest is right, its content is not


def edit(*keys, value):
    def change(manifest):
        target = manifest
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


def remove(*keys):
    def change(manifest):
        target = manifest
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(
            remove(key)
            for key in ("arithmetic", "residual", "num_layers", "num_heads", "context_length", "layers", "tensors")
        ),
        *(edit(key, value=value) for key in ("layers", "tensors") for value in (None, [], {}, 3, "x")),
        *(edit("num_layers", value=value) for value in (0, 1, 3, -1, 10**12, 2.0, "2", None, True)),
        *(edit("num_heads", value=value) for value in (0, 4, 2.0, "2", None, -2)),
        *(edit("context_length", value=value) for value in (0, 5, 10**9, 4.0, "4", None)),
        *(edit("residual", value=value) for value in ("Q7.9", "", None, 16, "Q999.1")),
        edit("arithmetic", "rounding", value="half even"),
        edit("order", "memory_files", value="backwards"),
        remove("order"),
        edit("header", "sha256", value="0" * 64),
        edit("header", "file", value="/etc/passwd"),
        remove("header"),
        edit("layers", "logits", "ternary", value=True),
        remove("layers", "logits", "ternary"),
        edit("layers", "final_norm", "kind", value="rms"),
        edit("layers", "final_norm", "kind", value="none"),
        edit("layers", "final_norm", "kind", value=["layer"]),
        edit("extra", value=1),
        remove("layers", "logits"),
        remove("layers", "logits", "weight_bits"),
        edit("layers", "logits", value=None),
        edit("layers", "logits", "weight_bits", value=4),
        edit("layers", "logits", "weight_bits", value=8.0),
        edit("layers", "logits", "weight_bits", value="8"),
        edit("layers", "logits", "input", value="Q4.4"),
        edit("layers", "logits", "output", value="Q7.9 "),
        edit("layers", "final_norm", "epsilon", value=0),
        edit("layers", "final_norm", "epsilon", value=3.5),
        edit("layers", "final_norm", "epsilon", value=10**30),
        edit("layers", "final_norm", "reciprocal_square_root", value={"index_bits": 40, "mantissa_bits": 50}),
        edit("layers", "final_norm", "reciprocal_square_root", value={"what": 1}),
        edit("layers", "blocks.0.attention.context", "reciprocal", value=[]),
        edit("layers", "blocks.0.feed_forward.activation", "input", value="Q9.4"),
        edit("layers", "blocks.0.attention.context", "query", value="Q4.4"),
        edit("layers", "blocks.1.attention.context", "num_heads", value=4),
        edit("layers", "unknown", value={}),
        remove("tensors", "logits.bias"),
        edit("tensors", "unknown", value={}),
        edit("tensors", "logits.bias", value=None),
        edit("tensors", "logits.bias", "shape", value=[2**40, 2**40]),
        edit("tensors", "logits.bias", "shape", value=[-1]),
        edit("tensors", "logits.bias", "shape", value="5"),
        edit("tensors", "logits.bias", "type", value="object"),
        edit("tensors", "logits.bias", "type", value="float64"),
        edit("tensors", "logits.bias", "bits", value=7),
        edit("tensors", "logits.bias", "memory", value="/etc/passwd"),
        edit("tensors", "logits.bias", "memory", value="../../secret"),
        edit("tensors", "logits.bias", "memory", value="logits.weight.mem"),
        edit("tensors", "logits.bias", "sha256", value="0" * 64),
        edit("tensors", "logits.bias", "memory_sha256", value="0" * 64),
        remove("tensors", "logits.bias", "memory"),
    ],
)
def test_a_signed_manifest_must_still_be_the_models_own(export, change):
    rewrite(export, change)
    refused(export)


def swap(tensors):
    a, b = "blocks.0.attention.key.weight", "blocks.0.attention.value.weight"
    tensors[a], tensors[b] = tensors[b], tensors[a]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "does not match its digest"),
        (lambda tensors: tensors.pop("logits.bias"), "other tensors than the manifest.*logits.bias"),
        (lambda tensors: tensors.update(extra=np.zeros(1, dtype=np.int8)), "other tensors.*extra"),
        (lambda tensors: tensors.update({"logits.bias": np.zeros(5, dtype=np.float32)}), "expected int32"),
        (lambda tensors: tensors.update({"logits.bias": np.zeros(6, dtype=np.int32)}), "expected int32"),
        (lambda tensors: tensors.update({"logits.bias": np.zeros((5, 1), dtype=np.int32)}), "expected int32"),
        (lambda tensors: tensors.update({"logits.bias": np.zeros(5, dtype=np.int64)}), "expected int32"),
        (lambda tensors: tensors.update({"logits.bias": np.zeros(5, dtype=np.int32)}), "does not match its digest"),
    ],
)
def test_other_tensors_are_refused(export, change, message):
    rewrite_tensors(export, change)
    refused(export, message)


@pytest.mark.parametrize(
    "change",
    [
        edit("logits.bias", "shape", value=[2**20, 2**20]),
        edit("logits.bias", "shape", value=[2**40, 2**40]),  # whose product overflows 64 bits
        edit("logits.bias", "data_offsets", value=[0, 2**50]),
        edit("logits.bias", "data_offsets", value=[0, 20]),  # another tensor's bytes
        edit("logits.bias", "dtype", value="I64"),
        edit("logits.bias", "dtype", value="F8_E4M3"),
        edit("logits.bias", "dtype", value="object"),
        edit("logits.bias", "dtype", value="BF16"),
        remove("logits.bias", "dtype"),
        remove("logits.bias"),
        lambda header: header.clear(),
    ],
)
def test_a_header_that_lies_allocates_nothing_and_is_refused(export, change):
    rewrite_safetensors_header(export, change)
    refused(export, "is damaged|other tensors|expected int32")


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{}", b"PK\x03\x04" + bytes(100), b"\x80\x04]." * 9]
)
def test_other_files_are_no_weights(export, content):
    """Nothing, a header of 2**64 bytes, no tensors, a zip archive, a pickle."""
    (export / "weights.safetensors").write_bytes(content)
    refused(export, "is damaged|other tensors")


def test_the_first_version_says_what_to_do(export):
    """Its weights were an archive of NumPy's, its manifest had no norms' kinds."""
    (export / "weights.safetensors").unlink()
    np.savez(export / "weights.npz", a=np.zeros(3))
    rewrite(export, lambda manifest: (manifest.update(version=1), manifest.pop("header")))
    refused(export, "has version 1; this program reads 5: quantize the model again")


def test_weights_out_of_their_bits_are_refused_even_when_signed(export):
    """A 4-bit claim for 8-bit weights, with every digest right."""
    weights = safetensors.numpy.load_file(export / "weights.safetensors")["embedding.token.weight"]
    assert np.abs(weights).max() > 8
    rewrite(export, edit("layers", "embedding", "token_weight_bits", value=4))
    refused(export, "does not fit 4 bits")
