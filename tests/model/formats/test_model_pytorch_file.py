"""Files of `torch.save`: read without PyTorch, and nothing in them is run."""

import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from torch_files import BFloat16, Writer, name, text, torch_file, whole

from model.errors import InputError
from model.formats.pickles import read_pickle
from model.formats.pytorch import read_checkpoint

WEIGHTS = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
STATE = OrderedDict(a=WEIGHTS, b=WEIGHTS.astype(np.float16)[0], c=np.arange(5), d=np.array(2.5))
CHECKPOINT = {
    "model": STATE,
    "optimizer": {"state": {0: {"step": np.ones(())}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]},
    "model_args": {"n_head": 3, "bias": False, "dropout": 0.5},
    "config": {"out_dir": "out", "compile": True, "x": None, "list": [1, -2, 3]},
}


def test_weights_and_arguments(tmp_path):
    for content, expected in ((STATE, {}), (CHECKPOINT, CHECKPOINT["model_args"])):
        arrays, arguments = read_checkpoint(torch_file(tmp_path / "model.pt", content))
        assert arguments == expected
        assert list(arrays) == list(STATE)
        for key, array in STATE.items():
            assert arrays[key].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(arrays[key], array)
            arrays[key][...] = 0  # its own memory


def test_bfloat16_is_widened(tmp_path):
    arrays, _ = read_checkpoint(torch_file(tmp_path / "model.pt", {"a": BFloat16(WEIGHTS)}))
    np.testing.assert_array_equal(arrays["a"], (WEIGHTS.view(np.uint32) & 0xFFFF0000).view(np.float32))


def tensor_file(path, **changes):
    writer = Writer()
    array = np.arange(12, dtype=np.float32)
    options = {"strides": (1, 3), "shape": (3, 4), **changes}
    data = b"\x80\x02}" + text("a") + writer.tensor(array, "FloatStorage", **options) + b"s."
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", data)
        archive.writestr("x/data/0", writer.storages[0])
    return path


def test_views_of_a_storage(tmp_path):
    arrays, _ = read_checkpoint(tensor_file(tmp_path / "a.pt"))
    np.testing.assert_array_equal(arrays["a"], np.arange(12, dtype=np.float32).reshape(4, 3).T)
    arrays, _ = read_checkpoint(tensor_file(tmp_path / "a.pt", strides=(4, 2), shape=(2, 2), offset=5))
    np.testing.assert_array_equal(arrays["a"], [[5, 7], [9, 11]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 1}, "reaches beyond its storage of 12 numbers"),
        ({"strides": (1, 4)}, "reaches beyond"),
        ({"strides": (0, 0), "shape": (1000, 1000)}, "reaches beyond"),
        ({"shape": (-3, 4)}, "gives -3 as a size"),
        ({"strides": (-1, 3)}, "gives -1 as a size"),
        ({"strides": (1,)}, "other strides than sizes"),
        ({"count": 13}, "data/0 has 48 bytes, not 13"),
    ],
)
def test_views_that_leave_their_storage(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_checkpoint(tensor_file(tmp_path / "a.pt", **changes))


class Command:
    """What an attacker would put into a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run(protocol, tmp_path):
    marker = tmp_path / "run"
    data = pickle.dumps({"model": {"a": Command(marker)}}, protocol)
    with pytest.raises(InputError, match=r"system|operation|asks for") as refused:
        read_checkpoint(torch_file(tmp_path / "model.pt", data))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError):
        read_pickle(data, "it")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Command(marker), protocol))
    assert marker.exists(), "the pickle would have done nothing anyway"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (name("builtins", "eval") + text("1") + b"\x85R.", r"asks for builtins\.eval, which weights do not need"),
        (name("torch", "load") + b".", r"asks for torch\.load"),
        (name("torch", "FloatStorage") + b")R.", r"calls torch\.FloatStorage"),
        (name("collections", "OrderedDict") + b")R}b}b0.", "holds the operation POP"),
        (b"(ios\nsystem\n.", "holds the operation INST"),
        (b"(" + name("os", "system") + b"o.", r"asks for os\.system"),
        (b"\x82\x01.", "holds the operation EXT1"),
        (name("collections", "OrderedDict") + b")\x81.", "holds the operation NEWOBJ"),
        (b"]}b.", "gives attributes to something else"),
        (b"(" + text("module") + b"NNNNtQ.", "a record that is no storage"),
        (text("storage") + b"Q.", "not a whole pickle"),
        (b"}(" + text("a") + b"u.", "not a whole pickle"),
        (b"](]a.", "not a whole pickle|no weights"),
        (b"h\x05.", "not a whole pickle"),
        (b"N", "not a whole pickle"),
        (b"", "not a whole pickle"),
        (b".", "not a whole pickle"),
        (b"NN.", "not a whole pickle"),
        (b"].", "holds no weights"),
        (b"}" + text("a") + whole(1) + b"s.", "'a' among the weights is no tensor"),
        (b"}" + text("model") + whole(1) + b"s.", "holds no weights"),
    ],
    ids=range(21),
)
def test_other_pickles_are_one_line(data, message, tmp_path):
    with pytest.raises(InputError, match=message) as refused:
        read_checkpoint(torch_file(tmp_path / "model.pt", data))
    assert str(tmp_path / "model.pt") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_other_files_are_one_line(tmp_path):
    path = tmp_path / "model.pt"
    for content, message in (
        (b"", "no whole file of torch.save"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", r"PyTorch before 1\.6"),
        (bytes(range(256)) * 9, "no whole file"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_checkpoint(path)
    with pytest.raises(InputError, match="does not exist"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="is a directory"):
        read_checkpoint(tmp_path)
    torch_file(path, STATE, folder="a/b")
    with pytest.raises(InputError, match=r"without the data\.pkl"):
        read_checkpoint(path)
    torch_file(path, STATE, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"}.")
        archive.writestr("x/byteorder", "big")
    with pytest.raises(InputError, match="most significant byte first"):
        read_checkpoint(path)


def test_damaged_files_are_refused_or_read(tmp_path):
    data = torch_file(tmp_path / "model.pt", CHECKPOINT).read_bytes()
    generator, refused = random.Random(1), 0
    for _ in range(300):
        changed = bytearray(data)
        for _ in range(generator.randint(1, 4)):
            changed[generator.randrange(len(changed))] = generator.randrange(256)
        (tmp_path / "model.pt").write_bytes(
            changed[: generator.choice([len(changed), generator.randrange(len(changed))])]
        )
        try:
            read_checkpoint(tmp_path / "model.pt")
        except InputError as error:
            refused += 1
            assert len(str(error)) < 1000
    assert refused > 150


def test_damaged_pickles_are_refused_or_read(tmp_path):
    """Without the archive's checksum, which would find most of it."""
    data = b"\x80\x02" + Writer().value(CHECKPOINT) + b"."
    generator = random.Random(2)
    for _ in range(300):
        changed = bytearray(data)
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        try:
            read_checkpoint(torch_file(tmp_path / "model.pt", bytes(changed)))
        except InputError as error:
            assert len(str(error)) < 1000


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_values_of_every_protocol(protocol):
    value = {
        "itos": {0: "a", 1: "é"},
        "x": [1, -5, 1 << 40, 2.5, None, True, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), []],
    }
    value["again"] = value["x"]
    assert read_pickle(pickle.dumps(value, protocol), "it") == value
    with pytest.raises(InputError, match="asks for collections OrderedDict"):
        read_pickle(pickle.dumps(OrderedDict(a=1), protocol), "it")
    with pytest.raises(InputError, match="a record outside itself"):
        read_pickle(b"NQ.", "it")


def test_what_pytorch_writes(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 5)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    state = {**layer.state_dict(), "half": torch.randn(4, 6).to(torch.bfloat16).t()}
    content = {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "model_args": {"n_layer": 2},
        "loss": torch.tensor(1.5),
    }
    torch.save(content, tmp_path / "model.pt")
    arrays, arguments = read_checkpoint(tmp_path / "model.pt")
    assert arguments == {"n_layer": 2}
    for key, tensor in state.items():
        np.testing.assert_array_equal(arrays[key], tensor.float().numpy())
    torch.save(layer, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "model.pt")


def test_the_writer_of_these_tests_makes_what_the_pickle_machine_of_python_reads():
    value = {"a": [1, (2.5, None, True)], "b": {"c": "é"}}
    assert pickle.loads(b"\x80\x02" + Writer().value(value) + b".") == value
    assert struct.calcsize("<I") == 4
