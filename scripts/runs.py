"""Opening the files of a run directory, with a message for each that may be missing."""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from fixedpoint import QuantizedTransformer, load_export
from model.errors import InputError
from model.files import file_digest, read_json
from model.run import RunDirectory

MADE_FROM = "made_from.json"  # beside a bitstream: the integer model that it is of


def add_run_argument(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument RUN."""
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a trained run, for instance runs/demo")


def open_run(path: Path) -> RunDirectory:
    """Return the paths of a run directory that holds a trained model.

    Raises:
        InputError: There is no such directory, or it holds no trained model.
    """
    directory = RunDirectory(path)
    if not path.is_dir():
        raise InputError(f"there is no run directory {path}; train a model: positron train --out {quote(str(path))}")
    if not directory.model_config.is_file():
        raise InputError(
            f"{path} holds no trained model ({directory.model_config.name} is missing); "
            f"train one: positron train --out {quote(str(path))}"
        )
    return directory


def quantization_file(directory: RunDirectory) -> Path:
    """Return where `positron quantize` writes its figures."""
    return directory.path / "quantization.json"


def simulation_file(directory: RunDirectory) -> Path:
    """Return where `positron simulate` writes its figures."""
    return directory.simulation / "results.json"


def attention_synthesis(directory: RunDirectory) -> Path:
    """Return where `positron synthesize --only attention` leaves its results."""
    return directory.path / "synthesis_attention"


def load_quantized(directory: RunDirectory) -> QuantizedTransformer:
    """Read the quantized model of a run; see `load_named_quantized`."""
    return load_named_quantized(directory)[0]


def load_named_quantized(directory: RunDirectory) -> tuple[QuantizedTransformer, str]:
    """Read the quantized model of a run, and the digest that names it.

    Raises:
        InputError: The run was not quantized, or was trained again since, or its quantization was
            interrupted.
        QuantizationError: The export is damaged.
    """
    command = f"positron quantize {quote(str(directory.path))}"
    if not directory.quantized_manifest.is_file() or not quantization_file(directory).is_file():
        raise InputError(f"{directory.path} is not quantized yet: {command}")
    digest = file_digest(directory.quantized_manifest)
    quantized = load_export(directory.quantized)
    record = read_json(quantization_file(directory))
    # read again: another process may be replacing it
    made_from = {record.get("manifest_sha256"), export_digest(directory)}
    if record.get("model_sha256") != file_digest(directory.model_weights) or made_from != {digest}:
        raise InputError(f"{directory.quantized} was not made from the model that is there now: {command}")
    return quantized, digest


def export_digest(directory: RunDirectory) -> str:
    """Return the digest that names the quantized model of a run."""
    return file_digest(directory.quantized_manifest)
