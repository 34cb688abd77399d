"""Rounding the float model's tensors to the formats of the integer model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from model import ModelConfig
from model.workspace import row_blocks

from ..qformat import QFormat
from .calibration import integer_factor

HALF = np.float32(0.5)


class TensorRounding:
    """Rounds tensors by name, in place; those in the residual stream's format and logits stay.

    Args:
        config: Of the model.
        formats: As in `Calibration`.
    """

    def __init__(self, config: ModelConfig, formats: Mapping[str, QFormat]) -> None:
        # for every tensor: step, 1 / step, and the range in steps
        self.steps = {}
        for name, target in formats.items():
            if name not in ("residual", "logits"):
                scale = integer_factor(config, name)
                step, inverse = np.float32(target.resolution / scale), np.float32(scale / target.resolution)
                self.steps[name] = step, inverse, target.minimum_integer, target.maximum_integer

    def __call__(self, name: str, values: np.ndarray) -> None:
        """Round a tensor (N, channels)."""
        if name not in self.steps:
            return
        step, inverse, lowest, highest = self.steps[name]
        for rows in row_blocks(*values.shape):
            part = values[rows]
            part *= inverse
            round_half_up(part, lowest, highest)
            part *= step


def round_half_up(values: np.ndarray, lowest: float, highest: float) -> None:
    """Round float32 half up and saturate, in place; exact for multiples of 1/2 below 2**23."""
    values += HALF
    np.floor(values, out=values)
    np.clip(values, lowest, highest, out=values)
