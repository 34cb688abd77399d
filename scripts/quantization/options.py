"""What `quantize` and `train --quantize` have in common."""

from __future__ import annotations

import numpy as np

from fixedpoint.quantization.quantization_aware import QuantizationAware
from fixedpoint.row_scales import WeightBits
from model.data import windows
from model.errors import InputError
from model.run import RunDirectory

CALIBRATION_WINDOWS = 128


def weight_bits(text: str) -> WeightBits:
    """Read the width of weights: a number, or `ternary`."""
    return "ternary" if text == "ternary" else int(text)


def calibration_windows(tokens: np.ndarray, length: int, count: int = CALIBRATION_WINDOWS) -> np.ndarray:
    """Return at most `count` windows (N, T) spread evenly over the training text."""
    if count < 1:
        raise InputError(f"--calibration-windows must be at least 1, not {count}")
    inputs, _ = windows(tokens, length)
    chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), count)).astype(np.int64)
    return np.asarray(inputs[chosen])


def load_number_format(directory: RunDirectory) -> QuantizationAware | None:
    """Return what a run was trained for, or None if it is a float run.

    Raises:
        InputError: Its files are damaged.
    """
    return QuantizationAware.load(directory) if directory.number_format.exists() else None
