"""Quantize a trained model to integers and measure the increase of its loss.

Weights become 8-bit (or narrower) integers with a power-of-two scale a row; activations get the
Q-formats that fit the training text best. The integer model is written to RUN/quantized, for
software and for circuits, and its loss on the held-out text is compared with the float model's.

Example:
  positron quantize runs/demo --weight-bits 4
  positron quantize runs/demo --weight-bits 3 --overrides my.toml --analyze
  positron quantize runs/demo --sweep
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fixedpoint import load_export, lock_directory, save_export
from fixedpoint.quantization.analysis import storage_bytes
from fixedpoint.quantization.calibration import CHOICES, QuantizationSettings, TensorFormat, calibrate
from fixedpoint.quantization.overrides import Overrides
from fixedpoint.quantization.quantization_aware import QuantizationAware
from fixedpoint.quantization.quantize import named_linears, quantize_transformer, weight_table
from fixedpoint.widths import AccumulatorWidth, accumulator_table
from model.errors import InputError
from model.run import RunDirectory
from model.transformer import Transformer
from scripts.evaluation import compare
from scripts.output import add_json_argument, format_table, write_json
from scripts.quantization.analysis import analyze
from scripts.quantization.front import compare_sizes
from scripts.quantization.options import CALIBRATION_WINDOWS, calibration_windows, load_number_format, weight_bits
from scripts.quantization.sweep import sweep
from scripts.run_text import add_text_arguments, chosen_text
from scripts.runs import add_run_argument, export_digest, file_digest, open_run, quantization_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    defaults = QuantizationSettings()
    parser.add_argument(
        "--weight-bits",
        type=weight_bits,
        metavar="N",
        help=f"2 to 8, or ternary: −1, 0 and 1 (default: {defaults.weight_bits}, or what RUN was trained for)",
    )
    for name, about in (
        ("activation", "activations between layers, 4 to 10"),
        ("residual", "residual stream and logits, 8 to 16"),
        ("embedding", "token and position tables, 2 to 8"),
    ):
        parser.add_argument(
            f"--{name}-bits",
            type=int,
            metavar="N",
            help=f"{about} (default: {getattr(defaults, f'{name}_bits')}, or what RUN was trained for)",
        )
    for name, about in (
        (
            "calibration",
            "an activation's format has the least squared error, or covers the maximum, or 99.99 %% of the values",
        ),
        ("scales", "weights have a power of two a row or a tensor"),
        ("rounding", "each weight compensates the errors of those before it, each layer too, or neither does"),
    ):
        parser.add_argument(f"--{name}", choices=CHOICES[name], help=f"{about} (default: {getattr(defaults, name)})")
    parser.add_argument(
        "--overrides",
        type=Path,
        metavar="FILE",
        help="TOML or JSON file that gives single layers other widths or formats",
    )
    parser.add_argument(
        "--calibration-windows",
        type=int,
        default=CALIBRATION_WINDOWS,
        metavar="N",
        help="contexts of training text that choose the activations' formats (default: %(default)s)",
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--analyze", action="store_true", help="also find the costliest layers, and draw histograms of all tensors"
    )
    action.add_argument(
        "--sweep",
        action="store_true",
        help="measure the loss over all widths and draw it; RUN/quantized stays as it is",
    )
    parser.add_argument(
        "--beside",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="with --sweep: draw loss over bytes of these runs of the same text too, swept or trained for a number format",
    )
    parser.add_argument(
        "--verbose", action="store_true", help="also print the tables of all weights and of all accumulators"
    )
    add_text_arguments(parser)
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Quantize, export, compare; or sweep."""
    directory = open_run(arguments.run)
    with lock_directory(directory.path):
        return work(directory, arguments)


def work(directory: RunDirectory, arguments: argparse.Namespace) -> int:
    """Do what the arguments say in a run directory that no other process changes."""
    if arguments.beside and not arguments.sweep:
        raise InputError("--beside compares sweeps: give --sweep too")
    asked = {name: getattr(arguments, name) for name in asdict(QuantizationSettings())}
    asked = {name: value for name, value in asked.items() if value is not None}
    settings = QuantizationSettings(**asked)
    number_format = load_number_format(directory)
    if number_format is not None and (asked or arguments.overrides or arguments.sweep):
        raise InputError(
            f"{directory.path} was trained for its own number format, which is used as it is: give no other widths or methods"
        )
    overrides = Overrides.load(arguments.overrides) if arguments.overrides else Overrides()
    # Before loading: a model that changes meanwhile does not fit it.
    model_sha256 = file_digest(directory.model_weights)
    model = directory.load_model()
    given = chosen_text(model, directory.load_tokenizer(), arguments)
    if given is not None:
        given.store(directory)
    text = directory.load_training_tokens(model.config.vocab_size)
    tokens = calibration_windows(text, model.config.max_seq_len, arguments.calibration_windows)
    if arguments.sweep:
        figures = sweep(directory, model, model_sha256, tokens, settings, overrides)
        if arguments.beside:
            figures["runs"] = compare_sizes(directory, arguments.beside)
    else:
        figures = quantize(
            directory,
            model,
            model_sha256,
            tokens,
            settings,
            overrides,
            arguments.analyze,
            arguments.verbose,
            number_format,
        )
    if arguments.json:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def how_to_resume(arguments: argparse.Namespace) -> str:
    """Say what to do after Ctrl-C."""
    if arguments.sweep:
        return "the same command continues with the points that are missing"
    return "nothing was left half written; run the command again"


def quantize(
    directory: RunDirectory,
    model: Transformer,
    model_sha256: str,
    tokens: np.ndarray,
    settings: QuantizationSettings,
    overrides: Overrides,
    analyzed: bool,
    verbose: bool,
    number_format: QuantizationAware | None = None,
) -> dict[str, object]:
    """Write the integer model and its figures, print them, and return them."""
    if number_format is None:
        calibration = calibrate(model, tokens, settings, overrides)
        quantized = quantize_transformer(model, calibration, settings)
    else:
        settings, calibration = number_format.settings, number_format.calibration(model, tokens)
        quantized = number_format.quantize(model)
        print(f"the number format that {directory.path} was trained for: {asdict(settings)}\n")
    # refuses a model that could overflow, before anything is written
    accumulators = accumulator_table(quantized)
    save_export(quantized, directory.quantized)
    # the export is measured as it was written
    held_out = directory.load_validation_tokens(model.config.vocab_size)
    comparison = compare(model, load_export(directory.quantized), held_out)
    weights = weight_table(model, quantized)
    layers = named_linears(quantized).values()
    figures: dict[str, object] = {
        "settings": asdict(settings),
        "overrides": overrides.to_dict(),
        "calibration_windows": len(tokens),
        "comparison": comparison,
        "weight_bytes": sum(layer.weight.size * layer.weight_bits for layer in layers) // 8,
        "storage_bytes": storage_bytes(quantized),
        "residual": str(quantized.residual),
        "weights": weights,
        "activations": calibration.tensors,
        "accumulators": [
            {**asdict(row), "bits": row.bits, "headroom": row.headroom, "float32_margin": row.float32_margin}
            for row in accumulators
        ],
        "model_sha256": model_sha256,
        "manifest_sha256": export_digest(directory),
    }
    print(format_table(("held-out text", "loss, nats", "perplexity"), comparison.rows()))
    print(
        f"difference {comparison.difference:+.4f} nats over {comparison.tokens:,} tokens; "
        f"the likeliest token is the same at {comparison.same_choice:.1%}"
    )
    print(f"quantized model, {storage_bytes(quantized):,} bytes: {directory.quantized}")
    if verbose or analyzed:
        print()
    if verbose:
        print(format_table(("weights", "shape", "format", "SNR dB", "clipped"), [tensor_row(row) for row in weights]))
        print()
        print(
            format_table(
                ("accumulator", "lowest", "highest", "bits", "of", "exact in float32"), accumulator_rows(accumulators)
            )
        )
        print()
    if analyzed:
        figures["analysis"] = analyze(directory, model, quantized, calibration, held_out)
    write_json(quantization_file(directory), figures)
    return figures


def tensor_row(row: TensorFormat) -> tuple[str, str, str, float, str]:
    """Return a row of the table of tensors."""
    return row.name, " × ".join(map(str, row.shape)), row.format, round(row.signal_to_noise, 1), f"{row.saturated:.2%}"


def accumulator_rows(accumulators: Sequence[AccumulatorWidth]) -> list[tuple[object, ...]]:
    """Return a row for each kind of accumulator, with the widest range of all blocks."""
    kinds: dict[str, list[AccumulatorWidth]] = {}
    for row in accumulators:
        kinds.setdefault(re.sub(r"^blocks\.\d+\.", "blocks.*.", row.name), []).append(row)
    return [
        (
            name,
            min(row.lowest for row in rows),
            max(row.highest for row in rows),
            max(row.bits for row in rows),
            max(row.declared for row in rows),
            min(row.float32_margin for row in rows) >= 0,
        )
        for name, rows in kinds.items()
    ]
