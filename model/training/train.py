"""From texts to a trained model, or from a run that stopped to its end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import ModelBuilder
from ..config import TrainingConfig, training_config
from ..data import encode_texts, save_tokens, split_tokens
from ..errors import InputError
from ..run import RunDirectory
from ..tokenizers.tokenizer import Tokenizer
from ..transformer import Transformer
from .straight_through import StraightThrough
from .trainer import Trainer, TrainingResult


def train_model(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: str | Iterable[str] | None,
    config: TrainingConfig | Mapping[str, Any],
    *,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    source: Mapping[str, Any] | None = None,
    straight_through: StraightThrough | None = None,
) -> TrainingResult:
    """Train a model, and leave the weights with the lowest held-out loss in it.

    Ctrl-C ends training after the running step and saves; a second Ctrl-C ends it at once.

    Args:
        model: Its weights are the starting point.
        tokenizer: Trained; its vocabulary is the model's.
        texts: One text or several; the last part of their tokens is held out. None with `resume`:
            the run's own tokens.
        config: A `TrainingConfig`, or a dictionary with some of its fields.
        directory: Run directory for checkpoints, logs and the loss plot; None to write nothing.
        resume: Go on where the run in `directory` stopped, to the same bytes as a run that never
            did.
        progress: Show a progress bar and log lines on the terminal; without, they go to `logging`.
        source: What `training.json` is to say about the text.
        straight_through: A number format to train the model for, or None. Held-out losses are then
            those in this format, and the weights that are left in the model are rounded to it.

    Raises:
        InputError: The text is too short, an option is impossible, or there is nothing to resume.
        DivergenceError: The loss became NaN or infinite.
    """
    settings = training_config(config)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the model has vocab_size {model.config.vocab_size}, the tokenizer {tokenizer.vocab_size}; make them equal"
        )
    length = settings.seq_len or model.config.max_seq_len
    if length > model.config.max_seq_len:
        raise InputError(f"seq_len {length} is longer than the model's max_seq_len {model.config.max_seq_len}")
    run = None if directory is None else RunDirectory(directory)
    if resume:
        if run is None:
            raise InputError("resume needs the directory of the run")
        training_tokens = run.load_training_tokens(model.config.vocab_size)
        validation_tokens = run.load_validation_tokens(model.config.vocab_size)
    else:
        if texts is None:
            raise InputError("training needs a text")
        place = None if run is None else _existing_directory(run.path)  # for the temporary file
        tokens = encode_texts(tokenizer, [texts] if isinstance(texts, str) else texts, place, progress)
        training_tokens, validation_tokens = split_tokens(tokens, settings.validation_split, model.config.max_seq_len)
        if run is not None:
            training_tokens, validation_tokens = store_tokens(run, tokenizer, training_tokens, validation_tokens)
    trainer = Trainer(
        model, tokenizer, settings, training_tokens, validation_tokens, run, progress, source, straight_through
    )
    return trainer.train(resume=resume)


def store_tokens(
    run: RunDirectory, tokenizer: Tokenizer, training: np.ndarray, validation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Begin a run directory, and return its tokens memory-mapped."""
    run.path.mkdir(parents=True, exist_ok=True)
    # They do not belong to these tokens.
    for earlier in (run.training_state, run.model_config, run.model_weights, run.number_format, run.teacher_weights):
        earlier.unlink(missing_ok=True)
    tokenizer.save(run.tokenizer)
    save_tokens(run.train_tokens, training)
    save_tokens(run.validation_tokens, validation)
    return run.load_training_tokens(), run.load_validation_tokens()


def _existing_directory(path: Path) -> Path:
    """Return a path or the nearest directory above it that is there."""
    return next(place for place in (path, *path.absolute().parents) if place.is_dir())


def resume_model(directory: str | Path) -> tuple[Transformer, Tokenizer, TrainingConfig]:
    """Return what `train_model(..., resume=True)` needs, from a run directory.

    Raises:
        InputError: The run is missing or damaged.
    """
    run = RunDirectory(directory)
    model = ModelBuilder.from_checkpoint(run.path) if run.model_config.exists() else run.load_model()
    return model, run.load_tokenizer(), run.load_training_config()
