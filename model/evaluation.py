"""Loss on held-out tokens."""

from __future__ import annotations

import numpy as np

from .data import windows
from .transformer import Transformer


def evaluate_loss(
    model: Transformer, tokens: np.ndarray, batch_size: int = 32, max_windows: int | None = None
) -> float:
    """Return the mean loss in nats a token over a whole token array, cut into non-overlapping windows of max_seq_len.

    Args:
        model: The model.
        tokens: (n,), at least max_seq_len + 1 of them.
        batch_size: Windows at a time; does not change the result but for rounding.
        max_windows: Use at most so many, spread evenly over the array; None for all.

    Raises:
        InputError: Too few tokens, or one outside the vocabulary.
    """
    inputs, targets = evaluation_windows(tokens, model.config.max_seq_len, max_windows)
    return summed_loss(model, inputs, targets, batch_size) / len(inputs)


def evaluation_windows(tokens: np.ndarray, length: int, max_windows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return all windows (N, T) and their targets, or so many spread evenly."""
    inputs, targets = windows(tokens, length)
    if max_windows is not None and len(inputs) > max_windows:
        chosen = np.linspace(0, len(inputs) - 1, max_windows).astype(np.intp)
        inputs, targets = inputs[chosen], targets[chosen]
    return inputs, targets


def summed_loss(model: Transformer, inputs: np.ndarray, targets: np.ndarray, batch_size: int = 32) -> float:
    """Return the sum over windows (N, T) of their mean losses."""
    total = 0.0
    for start in range(0, len(inputs), batch_size):
        part = slice(start, start + batch_size)
        total += model.loss(inputs[part], targets[part]) * len(inputs[part])
    return total
