"""Dropout (Srivastava et al. 2014): y = x·mask; mask is 0 with probability p, else 1/(1 − p).

Backward: dx = dy·mask. The expected value is unchanged, so nothing is scaled when the model is
used.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from .workspace import Workspace


def dropout_mask(
    name: Hashable, shape: tuple[int, ...], probability: float, generator: np.random.Generator, workspace: Workspace
) -> np.ndarray:
    """Return a fresh mask of this shape in the workspace's array `name`."""
    mask = workspace.array(name, *shape)
    # Always drawn in float32, so that a float64 model drops the same activations.
    np.greater_equal(generator.random(shape, dtype=np.float32), np.float32(probability), out=mask)
    mask *= 1 / (1 - probability)
    return mask
