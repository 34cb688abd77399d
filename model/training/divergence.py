"""Why training diverged: the first tensor that is not finite, and remedies."""

from __future__ import annotations

import numpy as np

from ..config import TrainingConfig
from ..transformer import Transformer
from .step import StepResult


def first_not_finite(model: Transformer, inputs: np.ndarray, targets: np.ndarray) -> str:
    """Name the first tensor, in the order of computation, that holds a NaN or an infinity.

    Args:
        model: With the parameters before the step that failed.
        inputs: The step's tokens (B, T).
        targets: The tokens that follow them (B, T).
    """
    found = [f"the parameter {name}" for name, values in model.parameters.items() if not np.isfinite(values).all()]

    def observe(name: str, array: np.ndarray) -> None:
        if not found and not np.isfinite(array).all() and not name.endswith("weights"):
            found.append(f"the activation {name}")

    if not found:
        model.forward(inputs, observe=observe)
    if not found:
        _, gradients = model.loss_and_gradients(inputs, targets)
        found += [f"the gradient of {name}" for name, values in gradients.items() if not np.isfinite(values).all()]
    return found[0] if found else "the loss"


def explain_divergence(
    model: Transformer, config: TrainingConfig, step: int, result: StepResult, inputs: np.ndarray, targets: np.ndarray
) -> str:
    """Return the message for a step whose loss or gradient is not finite.

    Args:
        model: With the parameters before the step.
        config: How it is trained.
        step: Number of the step, from 0.
        result: What the step returned.
        inputs: The step's tokens (B, T).
        targets: The tokens that follow them (B, T).
    """
    return (
        f"training diverged at step {step + 1}: loss {result.loss}, gradient norm {result.gradient_norm}; "
        f"{first_not_finite(model, inputs, targets)} is not finite. "
        f"Lower learning_rate (now {config.learning_rate:g}), lengthen warmup_steps, or set gradient_clip "
        f"(now {config.gradient_clip:g})"
    )
