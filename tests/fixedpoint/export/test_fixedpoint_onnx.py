"""The ONNX graph of an integer model: the specification's logits, by NumPy operator for operator,
and by onnxruntime where it is installed.
"""

from dataclasses import replace

import numpy as np
import pytest
from model_kinds import KINDS, make_model

from fixedpoint import LayerNorm, QFormat, QuantizationError
from fixedpoint.export import onnx_export
from fixedpoint.export.onnx_export import export_onnx
from model.formats.onnx_format import DOUBLE, FLOAT, INT64

TYPES = {FLOAT: np.float32, DOUBLE: np.float64, INT64: np.int64}


class Evaluator:
    """A graph builder that computes each node as it is added, by the operators' definitions."""

    tokens: np.ndarray  # the input, set before the graph is built
    logits: np.ndarray  # the output, when it has been encoded

    def __init__(self):
        self.values = {"tokens": self.tokens}

    def constant(self, name, array):
        if name in self.values:  # one name must mean one array
            np.testing.assert_array_equal(self.values[name], array, strict=True)
        self.values[name] = array
        return name

    def add(self, operation, *inputs, output="", **attributes):
        output = output or f"value_{len(self.values)}"
        self.values[output] = OPERATORS[operation](*(self.values[name] for name in inputs), **attributes)
        return output

    def encode(self, name, inputs, outputs):
        Evaluator.logits = self.values["logits"]
        return b""


def dequantize(weight, scale, axis):
    assert weight.dtype == np.int8
    assert scale.dtype == np.float32
    return weight.astype(np.float32) * np.expand_dims(scale, 1 - axis)


def keep_zeros(x, shape):
    return x.reshape([x.shape[index] if size == 0 else size for index, size in enumerate(shape)])


def sliced(x, start, stop, axes):
    return np.take(x, range(start[0], min(stop[0], x.shape[axes[0]])), axis=axes[0])


OPERATORS = {
    "Shape": lambda x: np.array(x.shape),
    "Gather": lambda x, index, axis=0: np.take(x, index, axis=axis),
    "Slice": sliced,
    "Concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "Cast": lambda x, to: x.astype(TYPES[to]),
    "DequantizeLinear": dequantize,
    "MatMul": np.matmul,
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: a // b if a.dtype == np.int64 else a / b,
    "Min": np.minimum,
    "Clip": np.clip,
    "Floor": np.floor,
    "GreaterOrEqual": np.greater_equal,
    "ReduceSum": lambda x, axes, keepdims: x.sum(axis=tuple(axes), keepdims=bool(keepdims)),
    "ReduceMax": lambda x, axes, keepdims: x.max(axis=tuple(axes), keepdims=bool(keepdims)),
    "Reshape": keep_zeros,
    "Transpose": lambda x, perm: x.transpose(perm),
}


def batches(model, seed):
    generator = np.random.default_rng(seed)
    for length in {1, model.context_length // 2 or 1, model.context_length}:
        yield generator.integers(0, model.vocab_size, size=(2, length))


def expected_logits(model, tokens):
    return model.logits.output.dequantize(model.forward(tokens)).astype(np.float32)


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    """Return a function from a model and tokens to the logits that its graph defines."""
    monkeypatch.setattr(onnx_export, "GraphBuilder", Evaluator)

    def run(model, tokens):
        Evaluator.tokens = tokens
        export_onnx(model, tmp_path / "model.onnx")
        return Evaluator.logits

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_defines_the_specifications_logits(kind, evaluate):
    model = KINDS[kind](2)
    for tokens in batches(model, 0):
        np.testing.assert_array_equal(evaluate(model, tokens), expected_logits(model, tokens), strict=True)


@pytest.mark.parametrize("operation", ["Floor", "Clip", "Add", "DequantizeLinear"])
def test_another_operator_would_be_noticed(operation, evaluate, monkeypatch):
    wrong = {
        "Floor": np.rint,  # half to even
        "Clip": lambda x, low, high: np.clip(x, low, high / 2),
        "Add": lambda a, b: a + b + (b == 0.5) * 2.0**-8,
        "DequantizeLinear": lambda weight, scale, axis: dequantize(weight, scale * np.float32(1.01), axis),
    }
    model = make_model(2)
    tokens = np.random.default_rng(1).integers(0, 11, size=(20, 7))
    monkeypatch.setitem(OPERATORS, operation, wrong[operation])
    assert (evaluate(model, tokens) != expected_logits(model, tokens)).any()


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_specifications_logits(kind, tmp_path):
    """With all of its optimizations, which replace dequantized float32 products by approximate
    ones.
    """
    onnxruntime = pytest.importorskip("onnxruntime")
    model = KINDS[kind](3)
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    for tokens in batches(model, 1):
        (logits,) = session.run(None, {"tokens": tokens})
        np.testing.assert_array_equal(logits, expected_logits(model, tokens), strict=True)


def test_the_checker_accepts_the_graph(tmp_path):
    onnx = pytest.importorskip("onnx")
    export_onnx(make_model(0), tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)


def too_fine(layer):
    fraction = layer.weight_fraction.copy()
    fraction[1] = 127
    return replace(layer, weight_fraction=fraction)


def test_the_file_is_repeatable_and_a_refused_model_leaves_it(tmp_path):
    model = make_model(0)
    export_onnx(model, tmp_path / "model.onnx")
    content = (tmp_path / "model.onnx").read_bytes()
    export_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert b"DequantizeLinear" in content
    assert b"QuantizeLinear" not in content.replace(b"DequantizeLinear", b"")
    with pytest.raises(QuantizationError):
        export_onnx(replace(model, logits=too_fine(model.logits)), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "model.onnx"]


def test_what_the_graphs_floats_do_not_hold_is_refused(tmp_path):
    model = make_model(0, num_layers=1)
    with pytest.raises(QuantizationError, match=r"logits has rows with fractions of .* to 127"):
        export_onnx(replace(model, logits=too_fine(model.logits)), tmp_path / "model.onnx")
    channels = 4096
    norm = LayerNorm.from_float(np.ones(channels), np.zeros(channels), 1e-5, QFormat(16, 10), QFormat(8, 5), 8)
    exporter = onnx_export._Exporter(model)
    with pytest.raises(QuantizationError, match="final_norm has a variance of 56 bits; float64 holds 53"):
        exporter.norm("final_norm", norm, "x")
    assert not list(tmp_path.iterdir())
