"""The files of a run directory, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from .checkpoint import CheckpointManager, ModelBuilder
from .config import TrainingConfig
from .data import load_tokens
from .errors import InputError
from .files import atomic_write, file_digest, read_json, write_json
from .tokenizers.tokenizer import Tokenizer, load_tokenizer
from .transformer import Transformer

MODEL_NAME = "model"


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run, and loading what they hold."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @property
    def model_config(self) -> Path:
        """Configuration of the model."""
        return self.path / f"{MODEL_NAME}_config.json"

    @property
    def model_weights(self) -> Path:
        """Weights with the lowest held-out loss."""
        return self.path / f"{MODEL_NAME}_weights.npz"

    @property
    def tokenizer(self) -> Path:
        """Vocabulary."""
        return self.path / "tokenizer.json"

    @property
    def training(self) -> Path:
        """Training configuration, source of the text, results."""
        return self.path / "training.json"

    @property
    def train_tokens(self) -> Path:
        """Tokens trained on."""
        return self.path / "train_tokens.npy"

    @property
    def validation_tokens(self) -> Path:
        """Tokens held out."""
        return self.path / "validation_tokens.npy"

    @property
    def training_state(self) -> Path:
        """What resuming needs."""
        return self.path / "training_state.npz"

    @property
    def number_format(self) -> Path:
        """The number format that the model was trained for, if it was for one."""
        return self.path / "number_format.json"

    @property
    def teacher_weights(self) -> Path:
        """Weights of the float model that a model trained for a number format imitates."""
        return self.path / "teacher_weights.npz"

    @property
    def log_csv(self) -> Path:
        """Losses over the steps, as a table."""
        return self.path / "log.csv"

    @property
    def log_json_lines(self) -> Path:
        """The same as one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def loss_plot(self) -> Path:
        """Picture of the losses."""
        return self.path / "loss.png"

    @property
    def samples(self) -> Path:
        """What the model wrote in the course of its training: step and text, a JSON line each."""
        return self.path / "samples.jsonl"

    @property
    def sample(self) -> Path:
        """Generated text."""
        return self.path / "sample.txt"

    @property
    def sample_record(self) -> Path:
        """Prompt of the generated text, and the model that wrote it."""
        return self.path / "sample.json"

    @property
    def quantized(self) -> Path:
        """Directory of the quantized export."""
        return self.path / "quantized"

    @property
    def quantized_manifest(self) -> Path:
        """Manifest of the quantized export."""
        return self.quantized / "manifest.json"

    @property
    def simulation(self) -> Path:
        """Directory of simulation results."""
        return self.path / "simulation"

    @property
    def synthesis(self) -> Path:
        """Directory of synthesis results."""
        return self.path / "synthesis"

    @property
    def evaluation(self) -> Path:
        """Float and fixed-point losses."""
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        """The report of everything."""
        return self.path / "report.html"

    def can_be_resumed(self) -> bool:
        """Whether a training has saved what going on with it needs."""
        return self.training_state.is_file() and self.model_config.is_file()

    def load_model(self) -> Transformer:
        """Return the trained model.

        Raises:
            InputError: The run has no model, or its files are damaged.
        """
        self._check_exists()
        return ModelBuilder.from_checkpoint(self.path, MODEL_NAME)

    def save_model(self, model: Transformer) -> None:
        """Write the model's configuration and weights."""
        CheckpointManager.save(model, self.path, MODEL_NAME)

    def save_sample(self, text: str, prompt: str, **made_from: str) -> None:
        """Write generated text, and what it was made from.

        Args:
            text: The prompt and what the model wrote.
            prompt: Its beginning.
            made_from: SHA-256 of files: `model_sha256`, of the weights, or `manifest_sha256`, of
                the integer model's manifest.
        """
        with atomic_write(self.sample) as file:
            file.write(text)
        write_json(self.sample_record, {"prompt": prompt, "sample_sha256": file_digest(self.sample), **made_from})

    def load_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            InputError: The file is missing or damaged, or holds another vocabulary than the run's.
        """
        self._check_exists()
        tokenizer = load_tokenizer(self.tokenizer)
        recorded = read_json(self.training).get("vocabulary_sha256") if self.training.exists() else None
        if recorded not in (None, tokenizer.fingerprint()):
            raise InputError(
                f"{self.tokenizer} holds another vocabulary than the one this run's model was trained with"
            )
        return tokenizer

    def load_training_tokens(self, vocab_size: int | None = None) -> np.ndarray:
        """Return the tokens trained on, memory-mapped."""
        return self._load_tokens(self.train_tokens, vocab_size)

    def load_validation_tokens(self, vocab_size: int | None = None) -> np.ndarray:
        """Return the held-out tokens, memory-mapped: (m,), or (N, T + 1) of the model's samples."""
        return self._load_tokens(self.validation_tokens, vocab_size)

    def _load_tokens(self, path: Path, vocab_size: int | None) -> np.ndarray:
        if not path.exists() and self.training.exists() and "imported" in self.load_training_record():
            command = f"positron quantize {quote(str(self.path))}"
            raise InputError(
                f"{self.path} was imported without a text: {command} --text FILE, or --calibrate-on-samples N"
            )
        return load_tokens(path, vocab_size)

    def load_training_record(self) -> dict[str, Any]:
        """Return training.json."""
        return read_json(self.training)

    def load_training_config(self) -> TrainingConfig:
        """Return how the run was trained.

        Raises:
            InputError: training.json is missing, damaged, or does not say it.
        """
        recorded = self.load_training_record().get("training")
        if not isinstance(recorded, dict):
            raise InputError(f"{self.training} lacks the training configuration; train the run from the start")
        # earlier versions wrote down both, and took the steps
        if recorded.get("num_steps") is not None:
            recorded = {**recorded, "num_epochs": None}
        return TrainingConfig.from_dict(recorded)

    def _check_exists(self) -> None:
        if not self.path.is_dir():
            raise InputError(
                f"{self.path} is not a run directory: it does not exist; make it with `positron train --out {quote(str(self.path))}`"
            )
        if not self.model_config.exists():
            raise InputError(
                f"{self.path} holds no trained model; make one with `positron train --out {quote(str(self.path))}`"
            )
