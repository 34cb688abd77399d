"""Muon (Jordan et al. 2024) for the matrices of the blocks: momentum, made orthogonal.

With gradient g of a matrix (R, I), learning rate η, decay λ, ρ = 9/2 and β = 0.95:
    m ← β·m + g;  p ← p·(1 − ρ·η·λ) − ρ·η·√max(1, R/I)·orthogonal(g + β·m)
Each head's part of a query, key or value matrix counts as a matrix of its own. ρ lets AdamW, which
updates all other parameters, use the same η: 0.0135 for 0.003. Decay: Liu et al. 2025,
arXiv:2502.16982.

orthogonal(X) is near V·Wᵀ, where X = V·Σ·Wᵀ is the singular value decomposition: all directions
are learned as fast. With X₀ = X/‖X‖, five times
    Xₖ₊₁ = Pₖ·Xₖ,  Pₖ = a + b·Gₖ + c·Gₖ²,  Gₖ = Xₖ·Xₖᵀ
bring the singular values near 1, between 0.7 and 1.2. Where X has many more columns than rows, the
products stay small: Gₖ₊₁ = Pₖ·Gₖ·Pₖ, and X is multiplied by P₄·…·P₀ once.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import ModelConfig
from ..parameters import Parameters

MOMENTUM = 0.95
RATE_RATIO = 9 / 2
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # Jordan's
ITERATIONS = 5
SMALLEST_NORM = 1e-20


class Muon:
    """Updates one worker's share of the blocks' matrices.

    Args:
        config: Shape of the model.
        parameters: What is updated.
        gradients: Of the whole batch, the same names.
        means: m of each matrix, the same names, zero at the start.
        decay: λ.
        worker: Number of this worker, from 0.
        num_workers: W.
    """

    def __init__(
        self,
        config: ModelConfig,
        parameters: Parameters,
        gradients: Parameters,
        means: Parameters,
        decay: float,
        worker: int = 0,
        num_workers: int = 1,
    ) -> None:
        self.decay = decay
        names = [name for name, values in parameters.items() if name.startswith("blocks.") and values.ndim == 2]
        # the blocks' matrices lie side by side: this part of the flat vector is not for AdamW
        last = names[-1]
        self.part = slice(parameters.offset(names[0]), parameters.offset(last) + parameters[last].size)
        # 0, 1, …, W − 1, W − 1, …, 1, 0 and again: every worker has as many of each size
        period = 2 * num_workers
        self.matrices = [
            tuple(_heads(name, vector[name], config) for vector in (parameters, gradients, means))
            for name in (*names[worker::period], *names[period - 1 - worker :: period])
        ]

    def update(self, rate: float, scale: float) -> None:
        """Apply one step; the gradients, here multiplied by `scale`, are overwritten."""
        for matrices, gradients, means in self.matrices:
            gradients *= scale
            means *= MOMENTUM
            means += gradients
            gradients += MOMENTUM * means
            _, num_rows, width = matrices.shape
            direction = orthogonal(gradients)
            direction *= RATE_RATIO * rate * math.sqrt(max(1, num_rows / width))
            matrices *= 1 - RATE_RATIO * rate * self.decay
            matrices -= direction


def orthogonal(x: np.ndarray) -> np.ndarray:
    """Return matrices (n, R, I) whose singular values are near 1, those of x (n, R, I) replaced."""
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.swapaxes(1, 2)).swapaxes(1, 2)  # (n, R, I) -> (n, I, R) -> (n, R, I)
    a, b, c = (x.dtype.type(coefficient) for coefficient in COEFFICIENTS)
    # (n, R, I) -> (n, 1, 1)
    x = x / np.maximum(np.sqrt(np.square(x).sum(axis=(1, 2), keepdims=True)), x.dtype.type(SMALLEST_NORM))
    identity = total = np.eye(x.shape[1], dtype=x.dtype)
    wide = x.shape[2] >= 2 * x.shape[1]
    gram = x @ x.swapaxes(1, 2)  # (n, R, I) @ (n, I, R) -> (n, R, R)
    for iteration in range(ITERATIONS):
        polynomial = a * identity + b * gram + c * (gram @ gram)  # -> (n, R, R)
        if wide:
            total = polynomial @ total if iteration else polynomial  # -> (n, R, R)
        else:
            x = polynomial @ x  # (n, R, R) @ (n, R, I) -> (n, R, I)
        if iteration < ITERATIONS - 1:
            # (n, R, R), or (n, R, I) @ (n, I, R) -> (n, R, R)
            gram = polynomial @ gram @ polynomial if wide else x @ x.swapaxes(1, 2)
    return total @ x if wide else x  # (n, R, R) @ (n, R, I) -> (n, R, I)


def _heads(name: str, matrix: np.ndarray, config: ModelConfig) -> np.ndarray:
    """View a matrix as (heads, D, C) if its rows belong to heads, else as (1, rows, columns)."""
    rows = config.head_dim if name.endswith((".query.weight", ".key.weight", ".value.weight")) else len(matrix)
    return matrix.reshape(-1, rows, matrix.shape[1], copy=False)  # (R, C) -> (heads, D, C)
