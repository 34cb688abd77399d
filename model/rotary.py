"""Rotary positions (Su et al. 2021): rotate queries and keys by angles that grow with position.

Channels 2i and 2i+1 of a head are one complex number, multiplied at position t by
exp(j·t·base^(−2i/D)). The product of a rotated query and key then depends on their distance alone.
A rotation's transpose is its inverse, so the backward pass multiplies by the complex conjugate.

Sizes: B sequences, T tokens, J heads (of queries and keys together) of D channels.
"""

from __future__ import annotations

import numpy as np


def rotation_table(length: int, head_dim: int, base: float, dtype: np.dtype) -> np.ndarray:
    """Return the complex factors (T, D/2), in the complex type that matches `dtype`."""
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(length)[:, None] * frequencies  # (T, 1) * (D/2,) -> (T, D/2)
    return np.exp(1j * angles).astype(np.result_type(dtype, np.complex64))


def rotate(x: np.ndarray, table: np.ndarray) -> None:
    """Rotate x (B, T, J·D), contiguous in its last axis, in place by factors (T, D/2)."""
    batch, length, width = x.shape
    pairs = table.shape[1]
    # (B, T, J·D) -> complex (B, T, J·D/2) -> (B, T, J, D/2)
    numbers = x.view(table.dtype).reshape(batch, length, width // (2 * pairs), pairs, copy=False)
    numbers *= table[:, None, :]  # (T, D/2) -> (T, 1, D/2)
