"""Softmax, norms, activations and cross-entropy where floating point runs out: finite and right."""

import math

import numpy as np
import pytest

from model.activations import POINTWISE, activate, activation_function
from model.config import ModelConfig
from model.loss import cross_entropy
from model.normalization import Normalization
from model.parameters import Parameters
from model.softmax import exponentials
from model.transformer import Transformer
from model.workspace import Workspace

LIMIT = float(np.finfo(np.float32).max)
SINGLE = np.dtype(np.float32)


def reference_activation(name, x):
    if name == "gelu":
        return x * 0.5 * math.erfc(-x / math.sqrt(2))
    if name == "gelu_tanh":
        return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "relu":
        return max(x, 0.0)
    if name == "relu_squared":
        return max(x, 0.0) ** 2
    return x * 0.5 * (1 + math.tanh(x / 2))


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 4e-7), (np.float64, 1e-14)])
def test_activation_equals_its_definition(name, dtype, tolerance):
    x = np.linspace(-12, 12, 20001).astype(dtype)
    expected = np.array([reference_activation(name, value) for value in x.tolist()])
    np.testing.assert_allclose(activation_function(name)(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", POINTWISE)
def test_activation_derivative(name):
    x = np.random.default_rng(0).uniform(-6, 6, (7, 100))
    y, derivative = np.empty_like(x), np.empty_like(x)
    activate(name, x, y, derivative, Workspace(x.dtype))
    step = 1e-6
    function = activation_function(name)
    np.testing.assert_allclose(derivative, (function(x + step) - function(x - step)) / (2 * step), atol=1e-8)


@pytest.mark.parametrize("name", [name for name in POINTWISE if name != "relu_squared"])
def test_activation_at_the_extremes(name):
    x = np.array([[-LIMIT, -1e20, -1e4, -30, 0, 30, 1e4, 1e20, LIMIT]], np.float32)
    y, derivative = np.empty_like(x), np.empty_like(x)
    activate(name, x, y, derivative, Workspace(x.dtype))
    np.testing.assert_allclose(y, np.maximum(x, 0), atol=1e-6)
    assert derivative[0, :4].tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert derivative[0, 5:].tolist() == pytest.approx([1] * 4, abs=1e-6)


@pytest.mark.parametrize(
    "rows",
    [
        [[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, 0.0, 0.0]],
        [[LIMIT, 0.0, -LIMIT]],
        [[88.8, 1.0, 2.0]],
        [[-200.0, -201.0, -202.0]],
        [[5.0]],
    ],
)
def test_softmax_at_the_extremes(rows):
    scores = np.array(rows, np.float32)
    original = scores.copy()
    sums = exponentials(scores, Workspace(SINGLE), lambda: np.copyto(scores, original))
    exact = original.astype(np.float64)
    with np.errstate(under="ignore"):
        expected = np.exp(exact - exact.max(axis=-1, keepdims=True))
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(scores / sums[:, None], expected, rtol=2e-6, atol=1e-30)


def test_cross_entropy_at_the_extremes():
    logits = np.array([[1e4, -1e4, 0.0], [3.0, 3.0, 3.0], [-1e4, -1e4, 1e4]], np.float32)
    gradient = np.empty_like(logits)
    loss = cross_entropy(logits, np.array([1, 2, 2]), Workspace(SINGLE), gradient)
    assert loss == pytest.approx((2e4 + math.log(3) + 0) / 3, rel=1e-6)
    np.testing.assert_allclose(gradient * 3, [[1, -1, 0], [1 / 3, 1 / 3, -2 / 3], [0, 0, 0]], rtol=1e-6, atol=1e-7)


def test_cross_entropy_of_one_token_is_zero():
    logits = np.array([[1e4], [-3.0]], np.float32)
    assert cross_entropy(logits, np.array([0, 0]), Workspace(SINGLE)) == 0


def make_norm(width, *, centred, epsilon=1e-5):
    shapes = {"norm.scale": (width,)} | ({"norm.shift": (width,)} if centred else {})
    size = width * len(shapes)
    parameters, gradients = (Parameters(shapes, np.zeros(size, np.float32)) for _ in range(2))
    parameters["norm.scale"] = np.ones(width)
    return Normalization("norm", parameters, gradients, epsilon)


@pytest.mark.parametrize("centred", [True, False])
def test_norm_equals_its_definition(centred):
    x = np.random.default_rng(0).normal(3, 2, (5, 16)).astype(np.float32)
    y = make_norm(16, centred=centred).forward(x, Workspace(SINGLE))
    exact = x.astype(np.float64)
    if centred:
        exact -= exact.mean(axis=1, keepdims=True)
    expected = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("epsilon", [1e-5, 0.0])
def test_norm_of_equal_values_is_zero(epsilon):
    norm = make_norm(8, centred=True, epsilon=epsilon)
    workspace = Workspace(SINGLE)
    assert not norm.forward(np.full((2, 8), 4.0, np.float32), workspace).any()
    assert np.isfinite(norm.backward(np.ones((2, 8), np.float32), workspace)).all()


@pytest.mark.parametrize("centred", [True, False])
def test_norm_at_the_limit_of_float32(centred):
    x = np.array([[LIMIT, -LIMIT, LIMIT, -LIMIT], [1e30, 0, 0, 0], [1, 2, 3, 4]], np.float32)
    with np.errstate(over="ignore"):
        y = make_norm(4, centred=centred).forward(x, Workspace(SINGLE))
    exact = x.astype(np.float64)
    if centred:
        exact -= exact.mean(axis=1, keepdims=True)
    expected = exact / np.sqrt((exact**2).mean(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_attention_with_large_scores_is_finite():
    config = ModelConfig(vocab_size=7, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=8)
    model = Transformer(config, seed=1)
    for name in ("query", "key"):
        model.parameters[f"blocks.0.attention.{name}.weight"] *= 400
    tokens = np.random.default_rng(0).integers(0, 7, (3, 8))
    seen = {}
    logits = model.forward(tokens, observe=seen.__setitem__)
    scores = np.abs(seen["blocks.0.attention.query"]).max() ** 2
    assert scores > 1e4
    double = Transformer(config, dtype=np.float64)
    double.parameters.flat[:] = model.parameters.flat
    np.testing.assert_allclose(seen["blocks.0.attention.weights"].sum(axis=-1), 1, rtol=1e-5)
    assert np.isfinite(logits).all()
    loss, gradients = model.loss_and_gradients(tokens, tokens)
    assert math.isfinite(loss)
    assert np.isfinite(gradients.flat).all()
    assert loss == pytest.approx(double.loss(tokens, tokens), rel=2e-2)
