"""Straight-through training without `fixedpoint`: multiples of 1/64, a teacher's probabilities."""

from dataclasses import replace

import numpy as np
import pytest

from model.config import ModelConfig, TrainingConfig
from model.data import random_batch
from model.loss import cross_entropy
from model.training.evaluation import evaluate_loss
from model.training.workers import LocalExecutor
from model.transformer import Transformer
from model.workspace import Workspace

MODEL = ModelConfig(vocab_size=11, embed_dim=8, num_heads=2, num_layers=1, max_seq_len=6)
TRAINING = TrainingConfig(batch_size=4, num_workers=1, learning_rate=1e-3, optimizer="sgd", warmup_steps=0)
TOKENS = np.random.default_rng(0).integers(0, 11, 500).astype(np.uint16)


FROZEN = 5


class Multiples:
    """Numbers that are multiples of 1/64, the first of them frozen."""

    worker_module = "nothing"

    def __init__(self, hard_target_share=0.0):
        self.hard_target_share = hard_target_share
        self.teacher = Transformer(MODEL, seed=5).parameters.flat.copy()
        self.seen, self.begun = set(), []

    def round_parameters(self, latent, rounded, share, num_shares):
        assert (share, num_shares) == (0, 1)
        np.round(latent * 64, out=rounded)
        rounded /= 64

    def begin_step(self, latent, used, share, num_shares, step, total_steps):
        assert total_steps == 10
        self.round_parameters(latent, used, share, num_shares)
        self.begun.append(step)

    def end_step(self, latent, used, share, num_shares):
        assert (share, num_shares) == (0, 1)
        latent[:FROZEN] = used[:FROZEN]

    def round_tensor(self, name, values):
        self.seen.add(name)


def probabilities_of(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_steps_are_taken_by_latent_parameters_at_the_gradient_of_the_rounded_ones():
    number_format = Multiples()
    executor = LocalExecutor(MODEL, TRAINING, 10, TOKENS, TOKENS, number_format)
    memory, model = executor.memory, Transformer(MODEL, seed=3)
    memory.parameters[:] = model.parameters.flat
    memory.teacher[:] = number_format.teacher
    executor.round()
    np.testing.assert_array_equal(memory.rounded, np.round(model.parameters.flat * 64) / 64)
    before = memory.parameters.copy()
    memory.rounded[:] = 7  # a step rounds by itself
    executor.run(0, 1)
    np.testing.assert_array_equal(memory.parameters[:FROZEN], memory.rounded[:FROZEN])
    moved = (memory.parameters - before)[FROZEN:]
    # less than a step between rounded numbers, and kept all the same
    assert 0 < np.abs(moved).max() < 1 / 64
    # those of the step that was done
    np.testing.assert_array_equal(memory.rounded, np.round(before * 64) / 64)
    np.testing.assert_allclose(moved, -1e-3 * memory.gradients[0, FROZEN:], atol=1e-7)
    assert {"final_norm", "blocks.0.attention.query", "blocks.0.feed_forward.activation"} <= number_format.seen
    latent = memory.parameters.copy()
    executor.run(1, 1)
    assert number_format.begun == [0, 1]
    np.testing.assert_array_equal(memory.rounded, np.round(latent * 64) / 64)
    model.parameters.flat[:] = memory.rounded
    assert executor.evaluate() == pytest.approx(evaluate_loss(model, TOKENS))


def test_targets_are_the_teacher_s_probabilities_mixed_with_the_next_token():
    """The gradient is linear in the targets, so a mixture's is the mixture of the gradients."""
    gradients = {}
    for share in (0.0, 0.25, 1.0):
        number_format = Multiples(share)
        executor = LocalExecutor(
            MODEL, replace(TRAINING, gradient_clip=1e9, weight_decay=0.0), 10, TOKENS, TOKENS, number_format
        )
        executor.memory.parameters[:] = Transformer(MODEL, seed=3).parameters.flat
        executor.memory.teacher[:] = number_format.teacher
        executor.run(0, 1)
        gradients[share] = executor.memory.gradients[0].copy()
    assert np.abs(gradients[0.0] - gradients[1.0]).max() > 0.01
    np.testing.assert_allclose(gradients[0.25], 0.75 * gradients[0.0] + 0.25 * gradients[1.0], atol=1e-6)
    model = Transformer(MODEL, seed=3)
    model.parameters.flat[:] = np.round(model.parameters.flat * 64) / 64
    inputs, targets = random_batch(TOKENS, TRAINING.batch_size, MODEL.max_seq_len, TRAINING.seed, 0)
    _, expected = model.loss_and_gradients(inputs, targets, transform=number_format.round_tensor)
    np.testing.assert_allclose(gradients[1.0], expected.flat, atol=1e-6)


def test_without_a_number_format_there_is_one_set_of_parameters():
    executor = LocalExecutor(MODEL, TRAINING, 10, TOKENS, TOKENS)
    assert executor.memory.rounded is executor.memory.parameters
    assert executor.memory.teacher.size == 0
    executor.round()


def test_gradient_leads_to_soft_targets():
    """Against central differences of the cross-entropy of two distributions, in float64."""
    generator = np.random.default_rng(1)
    logits, soft = generator.normal(size=(5, 7)), probabilities_of(generator.normal(size=(5, 7)))
    targets = np.array([0, 6, 3, 2, 2])
    gradient = np.empty_like(logits)
    workspace = Workspace(np.dtype(np.float64))
    loss = cross_entropy(logits.copy(), targets, workspace, gradient, 0.5, soft.copy())
    assert loss == pytest.approx(-np.log(probabilities_of(logits)[np.arange(5), targets]).mean())

    def soft_loss(x):
        return -0.5 * (soft * np.log(probabilities_of(x))).sum() / 5

    for _ in range(5):
        direction = generator.normal(size=logits.shape)
        numerical = (soft_loss(logits + 1e-5 * direction) - soft_loss(logits - 1e-5 * direction)) / 2e-5
        assert (gradient * direction).sum() == pytest.approx(numerical, rel=1e-8)


def test_certain_soft_targets_are_targets_and_ignored_rows_stay_without_gradient():
    generator = np.random.default_rng(2)
    logits, targets = generator.normal(size=(4, 6)), np.array([5, -1, 0, 2])
    workspace = Workspace(np.dtype(np.float64))
    hard, soft = np.empty_like(logits), np.empty_like(logits)
    assert cross_entropy(logits, targets, workspace, hard) == cross_entropy(
        logits, targets, workspace, soft, 1.0, np.eye(6)[targets]
    )
    np.testing.assert_allclose(soft, hard, atol=1e-15)
    assert not soft[1].any()


@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_probabilities_are_the_softmax_of_the_logits(scale):
    model = Transformer({**MODEL.to_dict(), "vocab_size": 40}, seed=2)
    model.parameters["output.weight"] = model.parameters["output.weight"] * scale
    tokens = np.random.default_rng(3).integers(0, 40, (3, 6))
    expected = probabilities_of(model.forward(tokens).reshape(18, 40).astype(np.float64))
    np.testing.assert_allclose(model.probabilities(tokens), expected, atol=1e-5)
