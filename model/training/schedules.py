"""The learning rate over the steps of a training run."""

from __future__ import annotations

import math

from ..config import TrainingConfig

LONGEST_DEFAULT_WARMUP = 100


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0.

    Linear warm-up, then the highest rate times a factor of p, the share of the remaining steps that
    are done, and r = final_learning_rate_ratio:
        cosine    r + (1 − r)·(1 + cos(π·p))/2
        linear    r + (1 − r)·(1 − p)
        constant  1
    """
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(LONGEST_DEFAULT_WARMUP, total_steps // 20)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    ratio = config.final_learning_rate_ratio
    if config.schedule == "cosine":
        return config.learning_rate * (ratio + (1 - ratio) * 0.5 * (1 + math.cos(math.pi * done)))
    if config.schedule == "linear":
        return config.learning_rate * (ratio + (1 - ratio) * (1 - done))
    return config.learning_rate
