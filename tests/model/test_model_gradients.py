"""Every gradient against central differences in float64, along random directions."""

import numpy as np
import pytest

from model.config import ModelConfig
from model.transformer import Transformer

SMALL = {"vocab_size": 11, "embed_dim": 8, "num_heads": 4, "num_layers": 2, "ff_dim": 12, "max_seq_len": 40}
VARIANTS = [
    {},
    {"activation": "gelu_tanh"},
    {"activation": "relu"},
    {"activation": "relu_squared"},
    {"activation": "silu"},
    {"activation": "swiglu"},
    {"norm": "rms"},
    {"norm": "rms", "use_bias": False},
    {"position": "sinusoidal"},
    {"position": "rotary"},
    {"num_kv_heads": 2},
    {"num_kv_heads": 1, "position": "rotary"},
    {"tie_embeddings": True},
    {"dropout": 0.3},
    {"ff_dim": 8},
    {"vocab_size": 600},
    {
        "num_kv_heads": 2,
        "dropout": 0.2,
        "tie_embeddings": True,
        "activation": "swiglu",
        "norm": "rms",
        "position": "rotary",
        "use_bias": False,
    },
]
STEP = 1e-6


def make(changes, seed=0):
    model = Transformer({**SMALL, **changes}, seed=seed, dtype=np.float64)
    model.parameters.flat[:] += 0.2 * np.random.default_rng(seed).standard_normal(model.parameters.flat.size)
    return model


def batch(model, shape, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, min(11, model.config.vocab_size), shape)  # tokens repeat
    targets = generator.integers(-1, model.config.vocab_size, shape)  # −1 is padding
    targets[0, 0] = 1
    return tokens, targets


def loss_and_gradient(model, tokens, targets):
    generator = np.random.default_rng(5) if model.config.dropout else None
    loss, gradients = model.loss_and_gradients(tokens, targets, generator)
    return loss, gradients.flat.copy()


def directions(model, generator):
    """One random direction in each parameter, and one in all together."""
    for name, values in model.parameters.items():
        direction = np.zeros_like(model.parameters.flat)
        offset = model.parameters.offset(name)
        direction[offset : offset + values.size] = generator.standard_normal(values.size)
        yield name, direction
    yield "all", generator.standard_normal(model.parameters.flat.size)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("shape", [(3, 37), (1, 1)], ids=str)
def test_gradient_equals_central_difference(changes, shape):
    model = make(changes)
    tokens, targets = batch(model, shape)
    _, gradient = loss_and_gradient(model, tokens, targets)
    start = model.parameters.flat.copy()
    for name, direction in directions(model, np.random.default_rng(1)):
        model.parameters.flat[:] = start + STEP * direction
        above, _ = loss_and_gradient(model, tokens, targets)
        model.parameters.flat[:] = start - STEP * direction
        below, _ = loss_and_gradient(model, tokens, targets)
        model.parameters.flat[:] = start
        expected = (above - below) / (2 * STEP)
        assert gradient @ direction == pytest.approx(expected, rel=2e-5, abs=1e-8), name


def test_a_wrong_gradient_would_be_seen():
    model = make({})
    tokens, targets = batch(model, (3, 37))
    _, gradient = loss_and_gradient(model, tokens, targets)
    direction = np.random.default_rng(1).standard_normal(gradient.size)
    start = model.parameters.flat.copy()
    model.parameters.flat[:] = start + STEP * direction
    above, _ = loss_and_gradient(model, tokens, targets)
    model.parameters.flat[:] = start - STEP * direction
    below, _ = loss_and_gradient(model, tokens, targets)
    gradient[gradient.argmax()] *= 1.01
    assert gradient @ direction != pytest.approx((above - below) / (2 * STEP), rel=2e-5, abs=1e-8)


def test_gradient_is_the_same_in_float32():
    model = make({})
    tokens, targets = batch(model, (4, 40))
    _, expected = loss_and_gradient(model, tokens, targets)
    single = Transformer(SMALL)
    single.parameters.flat[:] = model.parameters.flat
    _, gradient = loss_and_gradient(single, tokens, targets)
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, expected, atol=3e-6 * np.abs(expected).max())


def test_weight_scales_gradients_only():
    model = make({})
    tokens, targets = batch(model, (3, 37))
    loss, gradients = model.loss_and_gradients(tokens, targets)
    whole = gradients.flat.copy()
    half_loss, gradients = model.loss_and_gradients(tokens, targets, weight=0.5)
    assert half_loss == loss
    np.testing.assert_allclose(gradients.flat, whole / 2, rtol=1e-12, atol=1e-15)


def test_all_targets_ignored_gives_zero():
    model = make({})
    tokens, targets = batch(model, (2, 5))
    loss, gradients = model.loss_and_gradients(tokens, np.full_like(targets, -1))
    assert loss == 0
    assert not gradients.flat.any()


@pytest.mark.parametrize("add", [False, True])
def test_embedding_gradient_sums_the_rows_of_each_token(add):
    # 400 rows of 512 channels are several blocks; sums of whole numbers are exact in float32
    generator = np.random.default_rng(0)
    config = ModelConfig(vocab_size=7, embed_dim=512, max_seq_len=200, tie_embeddings=True)
    model = Transformer(config)
    tokens = generator.integers(0, 6, (2, 200))  # token 6 does not occur
    d_x = generator.integers(-99, 100, (400, 512)).astype(np.float32)
    model.gradients["token_embedding"][...] = 3
    model.embedding.backward(d_x, tokens, add=add)
    expected = np.eye(7)[tokens.reshape(-1)].T @ d_x + 3 * add  # (7, 400) @ (400, 512)
    np.testing.assert_array_equal(model.gradients["token_embedding"], expected)
    np.testing.assert_array_equal(model.gradients["position_embedding"], d_x[:200] + d_x[200:])


def test_single_batch_is_overfitted():
    from model.config import TrainingConfig
    from model.training.optimizers import Optimizer

    model = Transformer(ModelConfig(vocab_size=20, embed_dim=32, num_heads=4, num_layers=2, max_seq_len=16), seed=3)
    generator = np.random.default_rng(2)
    tokens, targets = generator.integers(0, 20, (2, 4, 16))
    state = {name: np.zeros_like(model.parameters.flat) for name in ("mean", "square")}
    optimizer = Optimizer(TrainingConfig(weight_decay=0.0), model.parameters.num_decayed, state)
    everything = slice(0, model.parameters.flat.size)
    for step in range(200):
        loss, gradients = model.loss_and_gradients(tokens, targets)
        optimizer.update(model.parameters.flat, gradients.flat, everything, step, 3e-3)
    assert loss < 0.01
