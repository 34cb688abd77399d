"""The same model in PyTorch: loss, all gradients, and ten optimizer steps agree."""

import numpy as np
import pytest

from model.config import TrainingConfig
from model.training.optimizers import STATE_NAMES, Optimizer
from model.transformer import Transformer

torch = pytest.importorskip("torch")

SIZES = {"vocab_size": 23, "embed_dim": 24, "num_heads": 4, "num_layers": 2, "max_seq_len": 40}
VARIANTS = [
    {},
    {"activation": "gelu_tanh", "tie_embeddings": True},
    {"activation": "swiglu", "norm": "rms", "use_bias": False, "position": "sinusoidal"},
    {"activation": "relu_squared", "num_kv_heads": 2},
    {"activation": "silu", "num_kv_heads": 1},
]


def both(changes, dtype):
    from scripts.benchmarks.pytorch_reference import TorchTransformer

    model = Transformer({**SIZES, **changes}, seed=3, dtype=dtype)
    noise = np.random.default_rng(3).standard_normal(model.parameters.flat.size)
    model.parameters.flat[:] += (0.1 * noise).astype(dtype)
    return model, TorchTransformer(model)


def batch(seed):
    generator = np.random.default_rng(seed)
    tokens, targets = generator.integers(0, 23, (2, 3, 37))
    targets[0, :5] = -1
    return tokens, targets


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 5e-6)])
def test_loss_and_gradients(changes, dtype, tolerance):
    model, reference = both(changes, dtype)
    tokens, targets = batch(0)
    loss, gradients = model.loss_and_gradients(tokens, targets)
    expected = reference.loss(torch.from_numpy(tokens), torch.from_numpy(targets))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=tolerance)
    theirs = reference.named_model_tensors(gradients=True)
    assert set(theirs) == set(gradients)
    for name, gradient in gradients.items():
        limit = tolerance * max(1e-2, float(theirs[name].abs().max()))
        np.testing.assert_allclose(gradient, theirs[name].numpy(), atol=limit, err_msg=name)


@pytest.mark.parametrize("kind", sorted({*STATE_NAMES} - {"muon"}))
def test_ten_steps_of_each_optimizer(kind):
    config = TrainingConfig(optimizer=kind, weight_decay=0.05, beta1=0.9, beta2=0.95)
    rate = 1e-2
    model, reference = both({}, np.float64)
    groups = reference.decay_groups(config.weight_decay)
    theirs = {
        "adamw": lambda: torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95)),
        "adam": lambda: torch.optim.Adam(groups, lr=rate, betas=(0.9, 0.95)),
        "rmsprop": lambda: torch.optim.RMSprop(groups, lr=rate, alpha=0.95),
        "sgd": lambda: torch.optim.SGD(groups, lr=rate, momentum=0.9),
    }[kind]()
    flat = model.parameters.flat
    ours = Optimizer(config, model.parameters.num_decayed, {name: np.zeros_like(flat) for name in STATE_NAMES[kind]})
    for step in range(10):
        tokens, targets = batch(step)
        loss, gradients = model.loss_and_gradients(tokens, targets)
        ours.update(flat, gradients.flat, slice(0, flat.size), step, rate)
        theirs.zero_grad()
        expected = reference.loss(torch.from_numpy(tokens), torch.from_numpy(targets))
        expected.backward()
        theirs.step()
        assert loss == pytest.approx(expected.item(), rel=1e-8)
    for name, tensor in reference.named_model_tensors().items():
        np.testing.assert_allclose(model.parameters[name], tensor.detach().numpy(), rtol=1e-6, atol=1e-9, err_msg=name)


def test_clipping_equals_pytorch():
    from model.training.optimizers import clip_scale

    model, reference = both({}, np.float64)
    tokens, targets = batch(1)
    _, gradients = model.loss_and_gradients(tokens, targets)
    reference.loss(torch.from_numpy(tokens), torch.from_numpy(targets)).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.01))
    ours = float(np.linalg.norm(gradients.flat))
    assert ours == pytest.approx(norm, rel=1e-12)
    clipped = reference.named_model_tensors(gradients=True)["token_embedding"].numpy()
    # PyTorch divides by norm + 1e-6
    np.testing.assert_allclose(gradients["token_embedding"] * clip_scale(ours, 0.01), clipped, rtol=1e-4)
