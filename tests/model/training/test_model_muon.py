"""Muon against its definition by singular values, and shared among workers."""

import numpy as np
import pytest

from model.config import ModelConfig, TrainingConfig
from model.parameters import Parameters, parameter_shapes
from model.training.muon import COEFFICIENTS, ITERATIONS, MOMENTUM, Muon, orthogonal
from model.training.optimizers import Optimizer
from model.training.step import TrainingMemory, WorkerStep
from model.transformer import Transformer

CONFIG = ModelConfig(
    vocab_size=11,
    embed_dim=12,
    num_heads=6,
    num_kv_heads=3,
    num_layers=2,
    ff_dim=30,
    max_seq_len=8,
    activation="swiglu",
)
A, B, C = COEFFICIENTS


def by_singular_values(matrix):
    left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(ITERATIONS):
        values = A * values + B * values**3 + C * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (5, 9), (5, 10), (24, 60), (60, 24), (1, 30), (48, 48)], ids=str)
def test_the_polynomial_acts_on_the_singular_values(shape):
    matrices = np.random.default_rng(0).standard_normal((3, *shape))
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 2e-3)):
        result = orthogonal(matrices.astype(dtype))
        assert result.dtype == dtype
        for matrix, found in zip(matrices, result, strict=True):
            np.testing.assert_allclose(found, by_singular_values(matrix), atol=tolerance)
    if min(shape) < max(shape):
        values = np.linalg.svd(result, compute_uv=False)
        assert values.min() > 0.6
        assert values.max() < 1.25


def test_no_gradient_is_no_direction():
    assert not orthogonal(np.zeros((2, 3, 4), np.float32)).any()


def vectors(seed):
    shapes = parameter_shapes(CONFIG)
    size = Transformer(CONFIG).get_num_parameters()
    generator = np.random.default_rng(seed)
    parameters, gradients = (Parameters(shapes, generator.standard_normal(size)) for _ in range(2))
    return parameters, gradients, Parameters(shapes, np.zeros(size))


def test_two_steps_are_the_formula():
    """Each head of query, key and value is a matrix; vectors and embeddings stay as they are."""
    parameters, gradients, means = vectors(0)
    expected = {name: values.copy() for name, values in parameters.items()}
    momentum = {name: np.zeros_like(values) for name, values in parameters.items()}
    muon = Muon(CONFIG, parameters, gradients, means, 0.1)
    for rate, scale in ((0.003, 1.0), (0.002, 0.5)):
        gradients.flat[:] = np.random.default_rng(int(1000 * rate)).standard_normal(gradients.flat.size)
        drawn = {name: values.copy() for name, values in gradients.items()}
        muon.update(rate, scale)
        for name, values in expected.items():
            if name.startswith("blocks.") and values.ndim == 2:
                gradient = scale * drawn[name]
                momentum[name] = MOMENTUM * momentum[name] + gradient
                by_head = name.split(".")[-2] in ("query", "key", "value")
                rows = 2 if by_head else len(values)
                for start in range(0, len(values), rows):
                    part = slice(start, start + rows)
                    direction = by_singular_values((gradient + MOMENTUM * momentum[name])[part])
                    values[part] *= 1 - 4.5 * rate * 0.1
                    values[part] -= 4.5 * rate * max(1, rows / values.shape[1]) ** 0.5 * direction
    for name, values in expected.items():
        np.testing.assert_allclose(parameters[name], values, atol=1e-9, err_msg=name)


def test_workers_share_the_matrices():
    alone, gradients, means = vectors(1)
    Muon(CONFIG, alone, gradients, means, 0.1).update(0.003, 1.0)
    shared, gradients, means = vectors(1)
    for worker in range(3):
        Muon(CONFIG, shared, gradients, means, 0.1, worker, 3).update(0.003, 1.0)
    np.testing.assert_array_equal(alone.flat, shared.flat)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_step_updates_each_parameter_once(num_workers):
    """The blocks' matrices by Muon, all others by AdamW."""
    training = TrainingConfig(
        optimizer="muon", batch_size=6, num_workers=num_workers, gradient_clip=0.0, warmup_steps=0
    )
    memory = TrainingMemory(CONFIG, training, num_workers)
    memory.parameters[:] = start = Transformer(CONFIG, seed=3).parameters.flat
    tokens = np.random.default_rng(2).integers(0, 11, 200)
    workers = [
        WorkerStep(CONFIG, training, 10, tokens, tokens, memory, worker, num_workers) for worker in range(num_workers)
    ]
    gradient = np.random.default_rng(4).standard_normal(start.size).astype(np.float32)
    memory.gradients[0] = gradient
    for worker in workers:  # what `run` does after its second barrier
        for part in worker.optimized:
            worker.optimizer.update(memory.parameters, memory.gradients[0], part, 0, 0.003)
        worker.muon.update(0.003, 1.0)
    expected = Transformer(CONFIG, seed=3)
    shapes = parameter_shapes(CONFIG)
    arguments = expected.parameters, *(Parameters(shapes, x) for x in (gradient.copy(), np.zeros_like(gradient)))
    Muon(CONFIG, *arguments, training.weight_decay).update(0.003, 1.0)
    adamw = Transformer(CONFIG, seed=3).parameters
    state = {name: np.zeros_like(gradient) for name in ("mean", "square")}
    Optimizer(TrainingConfig(), adamw.num_decayed, state).update(
        adamw.flat, gradient, slice(0, gradient.size), 0, 0.003
    )
    for name, values in expected.parameters.items():
        if not (name.startswith("blocks.") and values.ndim == 2):
            values[...] = adamw[name]
    np.testing.assert_allclose(memory.parameters, expected.parameters.flat, atol=1e-7)
