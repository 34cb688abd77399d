"""Turn a trained model into integers and say what that cost.

Weights become 8-bit (or narrower) integers with a power-of-two scale a row; activations get the Q-formats that fit the
training text best. The integer model is written to RUN/quantized, for software and for circuits, and its loss on the
held-out text is compared with the float model's.

Example:
  positron quantize runs/demo --weight-bits 8
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

import numpy as np

from fixedpoint import load_export, save_export
from fixedpoint.calibration import QuantizationSettings, calibrate
from fixedpoint.quantize import quantize_transformer, weight_table
from fixedpoint.row_scales import WeightBits, storage_bits
from model.data import windows
from model.errors import InputError
from scripts.evaluation import compare
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import add_run_argument, export_digest, file_digest, open_run, quantization_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    defaults = QuantizationSettings()
    parser.add_argument(
        "--weight-bits",
        type=weight_bits,
        default=defaults.weight_bits,
        metavar="N",
        help="2 to 8, or ternary: −1, 0 and 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--activation-bits",
        type=int,
        default=defaults.activation_bits,
        metavar="N",
        help="4 to 8 (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration-windows",
        type=int,
        default=128,
        metavar="N",
        help="contexts of training text that choose the activations' formats (default: %(default)s)",
    )
    add_json_argument(parser)


def weight_bits(text: str) -> WeightBits:
    """Read the width of weights: a number, or `ternary`."""
    return "ternary" if text == "ternary" else int(text)


def run(arguments: argparse.Namespace) -> int:
    """Quantize, export, compare."""
    directory = open_run(arguments.run)
    settings = QuantizationSettings(weight_bits=arguments.weight_bits, activation_bits=arguments.activation_bits)
    model_sha256 = file_digest(
        directory.model_weights
    )  # before loading: a model that changes meanwhile does not fit it
    model = directory.load_model()
    calibration = calibrate(
        model,
        calibration_windows(
            directory.load_training_tokens(model.config.vocab_size), model.config.max_seq_len, arguments
        ),
        settings,
    )
    quantized = quantize_transformer(model, calibration, settings)
    save_export(quantized, directory.quantized)
    # What is measured is what was written.
    comparison = compare(
        model, load_export(directory.quantized), directory.load_validation_tokens(model.config.vocab_size)
    )
    weights = weight_table(model, quantized)
    weight_width = storage_bits(settings.weight_bits)
    figures = {
        "settings": asdict(settings),
        "calibration_windows": arguments.calibration_windows,
        "comparison": comparison,
        "weight_bytes": sum(int(np.prod(row.shape)) for row in weights) * weight_width // 8,
        "residual": str(quantized.residual),
        "weights": weights,
        "activations": calibration.tensors,
        "model_sha256": model_sha256,
        "manifest_sha256": export_digest(directory),
    }
    write_json(quantization_file(directory), figures)
    print(format_table(("weights", "shape", "format", "SNR dB", "clipped"), [tensor_row(row) for row in weights]))
    print()
    print(format_table(("held-out text", "loss, nats", "perplexity"), comparison.rows()))
    print(
        f"difference {comparison.difference:+.4f} nats over {comparison.tokens:,} tokens; "
        f"the likeliest token is the same at {comparison.same_choice:.1%}"
    )
    print(f"quantized model: {directory.quantized}")
    if arguments.json:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def calibration_windows(tokens: np.ndarray, length: int, arguments: argparse.Namespace) -> np.ndarray:
    """Return windows (N, T) spread evenly over the training text."""
    if arguments.calibration_windows < 1:
        raise InputError(f"--calibration-windows must be at least 1, not {arguments.calibration_windows}")
    inputs, _ = windows(tokens, length)
    chosen = np.linspace(0, len(inputs) - 1, min(len(inputs), arguments.calibration_windows)).astype(np.int64)
    return np.asarray(inputs[chosen])


def tensor_row(row) -> tuple[str, str, str, float, str]:
    """Return a row of the table of tensors."""
    return row.name, " × ".join(map(str, row.shape)), row.format, round(row.signal_to_noise, 1), f"{row.saturated:.2%}"


if __name__ == "__main__":
    from scripts.cli import main

    sys.exit(main(["quantize", *sys.argv[1:]]))
