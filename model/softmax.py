"""Softmax.

softmax(s)ᵢ = exp(sᵢ − m) / Σⱼ exp(sⱼ − m) for any m. The usual m is the row's maximum, which keeps
exp from overflowing, but a maximum along a short last axis costs NumPy more than the exponential
itself. So m = 0 is tried first; the row sums show whether that was in range, and only if it was
not, the rows are done again with their maximum. The result is the same up to rounding.

Sizes: K scores in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .workspace import Workspace

# In between, no exponential that matters has overflowed or lost bits in float32: smallest normal
# number 1.2e-38, largest 3.4e38.
SMALLEST_SUM = 1e-30
LARGEST_SUM = 1e37


def exponentials(scores: np.ndarray, workspace: Workspace, restore: Callable[[], None]) -> np.ndarray:
    """Replace scores (…, K) by exponentials proportional to their softmax; return row sums (…).

    Args:
        scores: Overwritten. −inf stands for a masked score; a row has at least one other.
        workspace: Source of the vector of ones.
        restore: Writes the original scores into `scores` again; called when the shifted form is
            needed.
    """
    ones = workspace.ones(scores.shape[-1])
    with np.errstate(over="ignore", under="ignore"):
        np.exp(scores, out=scores)
        sums = np.matmul(scores, ones)  # (…, K) @ (K,) -> (…)
    if not (sums.min() > SMALLEST_SUM and sums.max() < LARGEST_SUM):
        restore()
        # a difference beyond the range is −inf, whose exponential is right
        with np.errstate(over="ignore", under="ignore"):
            scores -= scores.max(axis=-1, keepdims=True)  # (…, K) -> (…, 1)
            np.exp(scores, out=scores)
        sums = np.matmul(scores, ones)  # (…, K) @ (K,) -> (…)
    return sums
