"""Reading what a run directory holds, with an answer for each thing that may be missing from it."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from model.checkpoint import ModelBuilder
from model.run import RunDirectory

from fixedpoint import QuantizedTransformer, load_export
from model import Tokenizer, Transformer, load_tokenizer
from model.errors import InputError


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
        raise InputError(f"there is no run directory {path}; train a model: positron train --out {path}")
    if not directory.model_config.is_file():
        raise InputError(
            f"{path} holds no trained model ({directory.model_config.name} is missing); train one: positron train --out {path}"
        )
    return directory


def load_model(directory: RunDirectory) -> Transformer:
    """Read the trained float model of a run."""
    return ModelBuilder.from_checkpoint(directory.path, "model")


def load_run_tokenizer(directory: RunDirectory) -> Tokenizer:
    """Read the tokenizer of a run."""
    return load_tokenizer(directory.tokenizer)


def load_quantized(directory: RunDirectory) -> QuantizedTransformer:
    """Read the quantized model of a run.

    Raises:
        InputError: The run was not quantized, or was trained again since, or its quantization was interrupted.
        QuantizationError: The export is damaged.
    """
    command = f"positron quantize {directory.path}"
    if not directory.quantized.is_dir():
        raise InputError(f"{directory.path} is not quantized yet: {command}")
    record = read_json(directory.quantization) or {}
    made_from, made = record.get("model_sha256"), record.get("manifest_sha256")
    if made_from != file_digest(directory.model_weights) or made != export_digest(directory):
        raise InputError(f"{directory.quantized} was not made from the model that is there now: {command}")
    return load_export(directory.quantized)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def export_digest(directory: RunDirectory) -> str:
    """Return the digest that names the quantized model of a run."""
    return file_digest(directory.quantized / "manifest.json")


def load_tokens(path: Path) -> np.ndarray:
    """Read a file of tokens, one-dimensional.

    Raises:
        InputError: The file is missing or is no array of tokens.
    """
    try:
        tokens = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; train the model again") from None
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}); train the model again") from None
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise InputError(f"{path} is no array of tokens; train the model again")
    return tokens


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; None when it is missing.

    Raises:
        InputError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
