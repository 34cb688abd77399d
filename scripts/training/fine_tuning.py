"""`positron train --resume RUN`: train another run's model further, float or quantization-aware."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fixedpoint.quantization.calibration import QuantizationSettings
from fixedpoint.quantization.quantization_aware import HARD_TARGET_SHARE, QuantizationAware
from fixedpoint.row_scales import storage_bits
from model import InputError, RunDirectory, TrainingConfig, TrainingResult
from model.training.fine_tuning import fine_tune_model
from scripts.quantization.options import calibration_windows, weight_bits

FINE_TUNING_STEPS = 2000
FINE_TUNING_RATE = 1e-3
# Gradients go straight through saturation too. With narrow activations a higher rate drives values
# out of range permanently.
NARROW_RATE = 5e-4


def add_quantization_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of quantization-aware training."""
    group = parser.add_argument_group("quantization-aware training, with --resume RUN")
    group.add_argument(
        "--quantize",
        type=weight_bits,
        metavar="BITS",
        help="train for integer weights of so many bits, 2 to 8, or ternary: −1, 0 and 1",
    )
    group.add_argument(
        "--activation-bits", type=int, metavar="N", help=f"4 to 10 (default: {QuantizationSettings().activation_bits})"
    )


def check_quantization_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what would be ignored.

    Raises:
        InputError: Quantization without a model to begin with, or widths without it.
        QuantizationError: Weights of an impossible width.
    """
    if arguments.quantize is not None:
        storage_bits(arguments.quantize)
    if arguments.quantize is not None and not isinstance(arguments.resume, Path):
        raise InputError(
            "--quantize begins with a trained model: positron train --resume RUN --quantize BITS (an interrupted run is "
            "resumed without --quantize)"
        )
    if arguments.activation_bits is not None and arguments.quantize is None:
        raise InputError("--activation-bits is for quantization-aware training: give --quantize BITS too")


def fine_tuned_directory(source: Path, arguments: argparse.Namespace) -> Path:
    """Return the default directory, beside the source's and named after the method."""
    if arguments.quantize is None:
        return source.with_name(f"{source.name}-tuned")
    name = "ternary" if arguments.quantize == "ternary" else f"{arguments.quantize}bit"
    activations = "" if arguments.activation_bits is None else f"-{arguments.activation_bits}bit-activations"
    return source.with_name(f"{source.name}-{name}{activations}")


def fine_tune(directory: RunDirectory, arguments: argparse.Namespace, chosen: dict[str, Any]) -> TrainingResult:
    """Train the model of another run further.

    Args:
        directory: The run directory to make.
        arguments: Of the command line; `resume` is the run to begin with.
        chosen: Training settings that are not to be the other run's; None where they are.

    Raises:
        InputError: The other run or a setting cannot be used, or the directory holds a model
            already.
        QuantizationError: The model cannot be quantized.
    """
    if directory.model_config.exists():
        raise InputError(f"{directory.path} holds a model already: choose another --out")
    source = RunDirectory(arguments.resume)
    model = source.load_model()
    recorded = source.load_training_config()
    defaults = {
        "learning_rate": NARROW_RATE if (arguments.activation_bits or 8) < 8 else FINE_TUNING_RATE,
        "final_learning_rate_ratio": 0.01,  # weights between two integers settle
        "weight_decay": 0.0,
        "optimizer": "adamw",
        "seed": recorded.seed + 1,  # other batches
        "num_epochs": None,
        "time_limit": None,
        "num_workers": None,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    training = TrainingConfig(**{**recorded.to_dict(), **defaults, **chosen})
    number_format = None
    if arguments.quantize is not None:
        widths = {"weight_bits": arguments.quantize, "activation_bits": arguments.activation_bits}
        settings = QuantizationSettings(**{name: value for name, value in widths.items() if value is not None})
        text = source.load_training_tokens(model.config.vocab_size)
        # A token that the model drew itself says less than the probabilities it was drawn from.
        own_samples = "samples" in source.load_training_record().get("source", {})
        number_format = QuantizationAware.from_model(
            model,
            calibration_windows(text, model.config.max_seq_len),
            settings,
            hard_target_share=0.0 if own_samples else HARD_TARGET_SHARE,
        )
    _, result = fine_tune_model(source.path, directory.path, training, straight_through=number_format)
    return result
