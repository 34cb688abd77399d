"""Checkpoints and other model files: whole or refused, and a refused one changes nothing."""

import json
import random
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from model.checkpoint import CheckpointManager, ModelBuilder, read_npz, write_npz
from model.errors import InputError
from model.formats.llama2c import load_llama2c, save_llama2c
from model.formats.safetensors import load_safetensors, read_safetensors, save_safetensors, write_safetensors
from model.tokenizers.bpe import BPETokenizer
from model.tokenizers.character import CharacterTokenizer
from model.tokenizers.tokenizer import load_tokenizer
from model.transformer import Transformer

SIZES = {"vocab_size": 11, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "max_seq_len": 6}
LLAMA = {**SIZES, "norm": "rms", "activation": "swiglu", "position": "rotary", "use_bias": False}


@pytest.mark.parametrize(
    "changes", [{}, LLAMA, {"tie_embeddings": True, "dropout": 0.1}], ids=["plain", "llama", "tied"]
)
def test_round_trips(tmp_path, changes):
    model = Transformer({**SIZES, **changes}, seed=4)
    CheckpointManager.save(model, tmp_path / "new", "mine")
    save_safetensors(model, tmp_path / "mine.safetensors")
    for loaded in (
        ModelBuilder.from_checkpoint(tmp_path / "new", "mine"),
        CheckpointManager.load(Transformer({**SIZES, **changes}), tmp_path / "new", "mine"),
        load_safetensors(tmp_path / "mine.safetensors"),
    ):
        assert loaded.config == model.config
        assert loaded.parameters.flat.tobytes() == model.parameters.flat.tobytes()
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"mine_config.json", "mine_weights.npz"}
    with np.load(tmp_path / "new" / "mine_weights.npz", allow_pickle=False) as archive:
        assert set(archive) == set(model.parameters)


def test_same_weights_same_file(tmp_path):
    arrays = {"b": np.arange(3), "a": np.ones((2, 2))}
    write_npz(tmp_path / "one.npz", arrays)
    write_npz(tmp_path / "two.npz", arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_float64_model(tmp_path):
    model = Transformer(SIZES, dtype=np.float64)
    CheckpointManager.save(model, tmp_path)
    with pytest.raises(InputError, match="float64, not float32"):
        ModelBuilder.from_checkpoint(tmp_path)


@pytest.fixture
def saved(tmp_path):
    CheckpointManager.save(Transformer(SIZES, seed=4), tmp_path)
    return tmp_path


def refuse(directory, message):
    """Loading fails with this message and leaves an existing model as it was."""
    with pytest.raises(InputError, match=message):
        ModelBuilder.from_checkpoint(directory)
    model = Transformer(SIZES, seed=9)
    before = model.parameters.flat.copy()
    with pytest.raises(InputError, match=message):
        CheckpointManager.load(model, directory)
    assert (model.parameters.flat == before).all()


def test_missing_files(tmp_path, saved):
    with pytest.raises(InputError, match=r"there is no checkpoint 'other'"):
        ModelBuilder.from_checkpoint(saved, "other")
    (saved / "model_weights.npz").unlink()
    refuse(saved, "does not exist")


def test_truncated_weights(saved):
    path = saved / "model_weights.npz"
    data = path.read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refuse(saved, "damaged or incomplete")


def test_flipped_bit_in_the_weights(saved):
    path = saved / "model_weights.npz"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    refuse(saved, "damaged")


def edit_weights(directory, change):
    path = directory / "model_weights.npz"
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    change(arrays)
    write_npz(path, arrays)


def test_renamed_missing_and_reshaped_arrays(saved):
    edit_weights(saved, lambda arrays: arrays.update(tok=arrays.pop("token_embedding")))
    refuse(saved, "lacks token_embedding and has unknown tok")
    edit_weights(saved, lambda arrays: arrays.update(token_embedding=arrays.pop("tok").T.copy()))
    refuse(saved, r"token_embedding has shape \(8, 11\), not \(11, 8\)")


def test_pickled_arrays_are_refused(saved):
    with zipfile.ZipFile(saved / "model_weights.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    objects = np.array([{"code": 1}] * 88, dtype=object)
    with zipfile.ZipFile(saved / "model_weights.npz", "w") as archive:
        for name, data in parts.items():
            if name == "token_embedding.npy":
                with archive.open(name, "w") as file:
                    np.lib.format.write_array(file, objects.reshape(11, 8), allow_pickle=True)
            else:
                archive.writestr(name, data)
    refuse(saved, "token_embedding has shape|damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "not a checkpoint"),
        ({"version": 99}, "version 99"),
        ({"model": None}, "lacks the model's configuration"),
        ({"model": {**SIZES, "embed_dim": 9}}, "embed_dim 9 must be a multiple"),
        ({"model": {**SIZES, "colour": 1}}, "no field 'colour'"),
        ({"model": {**SIZES, "embed_dim": 1 << 40}}, "embed_dim must be"),
        ({"model": {**SIZES, "embed_dim": 1 << 18, "num_layers": 5000}}, "parameters, more than"),
        ({"model": {**SIZES, "num_layers": 3}}, "lacks blocks.2"),
        ({"model": {**SIZES, "vocab_size": 200_000}}, "claims|shape"),
    ],
)
def test_edited_configuration(saved, change, message):
    path = saved / "model_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        ModelBuilder.from_checkpoint(saved)


def test_configuration_of_another_model(saved):
    with pytest.raises(InputError, match="num_layers 2 instead of 3"):
        CheckpointManager.load(Transformer({**SIZES, "num_layers": 3}), saved)


def test_safetensors_of_other_types(tmp_path):
    arrays = {
        "half": np.ones((2, 3), np.float16),
        "count": np.arange(4),
        "flag": np.array([True]),
        "one": np.array(3.0),
    }
    write_safetensors(tmp_path / "x.safetensors", arrays, {"note": "ü"})
    loaded, metadata = read_safetensors(tmp_path / "x.safetensors")
    assert metadata == {"note": "ü"}
    assert loaded.keys() == arrays.keys()
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert (loaded[name] == array).all()
        assert loaded[name].shape == array.shape
    with pytest.raises(InputError, match="complex"):
        write_safetensors(tmp_path / "y.safetensors", {"z": np.array(1j)})
    assert not (tmp_path / "y.safetensors").exists()


def test_safetensors_of_arrays_that_are_not_dense_or_little_endian(tmp_path):
    table = np.arange(12.0).reshape(3, 4)
    arrays = {"transposed": table.T, "strided": table[::2, 1::2], "big": table.astype(">f4")}
    write_safetensors(tmp_path / "x.safetensors", arrays)
    for loaded in (read_safetensors(tmp_path / "x.safetensors")[0], load_file(tmp_path / "x.safetensors")):
        for name, array in arrays.items():
            np.testing.assert_array_equal(loaded[name], array)


def test_same_model_same_safetensors_file(tmp_path):
    for name in ("one", "two"):
        save_safetensors(Transformer(SIZES, seed=4), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def entry(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [3], 1, 4)}, "not a whole safetensors file: .*offset"),
        ({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 3, 4)}, "not a whole safetensors file: .*offset"),
        ({"a": entry("U8", [3], 0, 3)}, "not a whole safetensors file"),
        ({"a": entry("U8", [5], 0, 5)}, "not a whole safetensors file"),
        ({"a": entry("U8", [4], 0, 4), "__metadata__": {"x": 1}}, "not a whole safetensors file"),
        ({"a": entry("BF16", [2], 0, 4)}, "a has type BF16, which NumPy lacks"),
        ({"a": entry("F8_E4M3", [4], 0, 4)}, "a has type F8_E4M3, which NumPy lacks"),
    ],
    ids=["overlap", "hole", "rest", "too short", "metadata", "bfloat16", "float8"],
)
def test_safetensors_that_the_reference_refuses(tmp_path, header, message):
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"1234")
    with pytest.raises(InputError, match=message):
        read_safetensors(tmp_path / "x.safetensors")


def test_safetensors_that_are_no_files(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        read_safetensors(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_safetensors(tmp_path / "none")


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Damage bytes in one of the ways that files get damaged, or are edited."""
    changed = bytearray(data)
    kind = generator.randrange(5)
    if kind == 0:
        return bytes(changed[: generator.randrange(len(changed))])
    if kind == 1:
        for _ in range(generator.randint(1, 8)):
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    elif kind == 2:  # a number in text becomes another
        places = [i for i, byte in enumerate(changed[:4000]) if chr(byte).isdigit()] or [0]
        place = generator.choice(places)
        changed[place : place + 1] = generator.choice([b"-1", b"99999999999", b"1e308", b"null", b"[]", b'"x"', b"NaN"])
    elif kind == 3:
        start = generator.randrange(len(changed))
        del changed[start : start + generator.randint(1, 40)]
    else:
        start = generator.randrange(len(changed))
        changed[start:start] = generator.randbytes(generator.randint(1, 40))
    return bytes(changed)


def originals(directory):
    """Each kind of file, with how to load it."""
    CheckpointManager.save(Transformer(SIZES, seed=4), directory)
    save_safetensors(Transformer(SIZES), directory / "m.safetensors")
    save_llama2c(Transformer(LLAMA), directory / "m.bin")
    characters, bpe = CharacterTokenizer(), BPETokenizer(270)
    characters.train("hello world")
    characters.save(directory / "characters.json")
    bpe.train("low lower lowest " * 5)
    bpe.save(directory / "bpe.json")
    return {
        "model_config.json": lambda: ModelBuilder.from_checkpoint(directory),
        "model_weights.npz": lambda: ModelBuilder.from_checkpoint(directory),
        "m.safetensors": lambda: load_safetensors(directory / "m.safetensors"),
        "m.bin": lambda: load_llama2c(directory / "m.bin"),
        "characters.json": lambda: load_tokenizer(directory / "characters.json"),
        "bpe.json": lambda: load_tokenizer(directory / "bpe.json"),
    }


@pytest.mark.parametrize("index", range(6))
def test_a_thousand_mutated_files(tmp_path, index):
    name, load = list(originals(tmp_path).items())[index]
    path = tmp_path / name
    data = path.read_bytes()
    generator = random.Random(index)
    refused = 0
    for _ in range(170):
        path.write_bytes(mutate(data, generator))
        try:
            loaded = load()
        except InputError as error:
            refused += 1
            assert len(str(error)) < 2000
        else:
            if isinstance(loaded, Transformer) and loaded.config.vocab_size < 1000:
                assert loaded.forward(np.zeros((1, 1), np.intp)).shape == (1, 1, loaded.config.vocab_size)
    assert refused > 20


def test_read_npz_checks_the_type(tmp_path):
    write_npz(tmp_path / "x.npz", {"a": np.array(["text"])})
    with pytest.raises(InputError, match="type"):
        read_npz(tmp_path / "x.npz", {"a": (1,)})
