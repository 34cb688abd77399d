"""Diverged training names the first tensor that is not finite, in order of computation."""

import numpy as np
import pytest

from model.config import TrainingConfig
from model.training.divergence import explain_divergence, first_not_finite
from model.training.step import StepResult
from model.transformer import Transformer


@pytest.fixture
def model():
    return Transformer({"vocab_size": 7, "embed_dim": 8, "num_heads": 2, "num_layers": 2, "max_seq_len": 6}, seed=1)


@pytest.fixture
def batch():
    tokens = np.random.default_rng(0).integers(0, 7, size=(3, 7))
    return tokens[:, :-1], tokens[:, 1:]


def fill(model, name, value):
    model.parameters[name] = np.full_like(model.parameters[name], value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_come_first(model, batch, value):
    model.parameters["blocks.1.feed_forward.up.weight"][1, 2] = value
    fill(model, "blocks.0.attention.query.weight", 3e38)
    assert first_not_finite(model, *batch) == "the parameter blocks.1.feed_forward.up.weight"


@pytest.mark.parametrize("layer", ["blocks.0.attention.value", "blocks.1.feed_forward.up"])
def test_then_activations(model, batch, layer):
    fill(model, f"{layer}.weight", 3e38)
    with np.errstate(all="ignore"):
        assert first_not_finite(model, *batch) == f"the activation {layer}"


def test_then_gradients(model, batch):
    """Zero embeddings keep the logits at zero whatever the last weights; gradients flow back."""
    for name in ("token_embedding", "position_embedding"):
        fill(model, name, 0.0)
    model.parameters["output.weight"] = 3e38 * np.sign(model.parameters["output.weight"])
    with np.errstate(all="ignore"):
        assert first_not_finite(model, *batch) == "the gradient of token_embedding"


def test_the_loss_is_left(model, batch):
    assert first_not_finite(model, *batch) == "the loss"


def test_the_message_says_step_and_advice(model, batch):
    config = TrainingConfig(learning_rate=0.5, gradient_clip=2.0)
    message = explain_divergence(model, config, 41, StepResult(np.inf, np.nan), *batch)
    assert message.startswith("training diverged at step 42: loss inf, gradient norm nan; the loss is not finite. ")
    assert "learning_rate (now 0.5)" in message
    assert "gradient_clip (now 2)" in message
