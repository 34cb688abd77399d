"""Which layer costs most: `positron quantize --analyze`."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from fixedpoint import QuantizedTransformer
from fixedpoint.quantization.analysis import compare_tensors, part_losses, worst
from fixedpoint.quantization.calibration import Calibration
from model.run import RunDirectory
from model.training.evaluation import evaluation_windows
from model.transformer import Transformer
from scripts.output import format_table
from scripts.quantization.pictures import draw_activations, draw_tensor_noise, draw_weights

COMPARED_WINDOWS = 64
LOSS_WINDOWS = 128  # of the held-out text; some 60 parts are measured on each
COSTLIEST = 10


def analyze(
    directory: RunDirectory,
    model: Transformer,
    quantized: QuantizedTransformer,
    calibration: Calibration,
    held_out: np.ndarray,
) -> dict[str, Any]:
    """Compare, draw, print, and return the figures."""
    length = model.config.max_seq_len
    tensors = compare_tensors(model, quantized, evaluation_windows(held_out, length, COMPARED_WINDOWS)[0])
    inputs, targets = evaluation_windows(held_out, length, LOSS_WINDOWS)
    progress = partial(tqdm, desc="one part at a time", unit="part", leave=False, disable=None)
    parts = part_losses(model, quantized, inputs, targets, progress)
    pictures = {
        "tensors": directory.path / "quantization_tensors.png",
        "activations": directory.path / "quantization_activations.png",
        "weights": directory.path / "quantization_weights.png",
    }
    draw_tensor_noise(tensors, pictures["tensors"])
    draw_activations(calibration, pictures["activations"])
    draw_weights(quantized, pictures["weights"])
    rows = [(row.name, row.format, round(row.signal_to_noise, 1), f"{row.saturated:.2%}") for row in tensors]
    print(format_table(("tensor, fixed against float", "format", "SNR dB", "at an end"), rows))
    lowest = worst(tensors)
    print(f"worst: {lowest.name}, {lowest.signal_to_noise:.1f} dB")
    print()
    costly = [(row.name, row.kind, f"{row.difference:+.5f}") for row in parts[:COSTLIEST]]
    print(format_table(("costliest alone", "part", "loss, nats"), costly))
    print(
        f"measured on {inputs.size:,} tokens; all {len(parts)} parts together {sum(row.difference for row in parts):+.4f}"
    )
    for picture in pictures.values():
        print(f"picture: {picture}")
    print()
    return {"tensors": tensors, "worst": lowest, "parts": parts, "loss_tokens": inputs.size}
