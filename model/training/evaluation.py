"""Loss on held-out tokens."""

from __future__ import annotations

import numpy as np

from ..data import windows
from ..threads import one_blas_thread
from ..transformer import Transformer
from ..workspace import Workspace

# Larger batches of tokens are no faster without gradients, and only take memory.
TOKENS_AT_A_TIME = 1 << 11


def evaluate_loss(
    model: Transformer, tokens: np.ndarray, batch_size: int | None = None, max_windows: int | None = None
) -> float:
    """Return the mean loss in nats a token over non-overlapping windows of max_seq_len tokens.

    Args:
        model: The model.
        tokens: (n,), at least max_seq_len + 1 of them.
        batch_size: Windows at a time; does not change the result but for rounding. None for about
            2,000 tokens.
        max_windows: Use at most so many, spread evenly over the array; None for all.

    Raises:
        InputError: Too few tokens, or one outside the vocabulary.
    """
    inputs, targets = evaluation_windows(tokens, model.config.max_seq_len, max_windows)
    batch_size = batch_size or max(1, TOKENS_AT_A_TIME // inputs.shape[1])
    return summed_loss(model, inputs, targets, batch_size, Workspace(model.dtype)) / len(inputs)


def evaluation_windows(tokens: np.ndarray, length: int, max_windows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return all windows (N, T) and their targets, or so many spread evenly."""
    inputs, targets = windows(tokens, length)
    if max_windows is not None and len(inputs) > max_windows:
        chosen = np.linspace(0, len(inputs) - 1, max_windows).astype(np.intp)
        inputs, targets = inputs[chosen], targets[chosen]
    return inputs, targets


def summed_loss(
    model: Transformer, inputs: np.ndarray, targets: np.ndarray, batch_size: int, workspace: Workspace
) -> float:
    """Return the sum over windows (N, T) of their mean losses, `batch_size` windows at a time."""
    total = 0.0
    with one_blas_thread(batch_size * inputs.shape[1] * model.config.embed_dim * model.config.hidden_dim):
        for start in range(0, len(inputs), batch_size):
            part = slice(start, start + batch_size)
            total += model.loss(inputs[part], targets[part], workspace=workspace) * len(inputs[part])
    return total
