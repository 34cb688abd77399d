"""Training the model of another run further."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import TrainingConfig, training_config
from ..errors import InputError
from ..run import RunDirectory
from ..transformer import Transformer
from .straight_through import StraightThrough
from .train import store_tokens
from .trainer import Trainer, TrainingResult


def fine_tune_model(
    source: str | Path,
    directory: str | Path,
    config: TrainingConfig | Mapping[str, Any],
    *,
    progress: bool = True,
    straight_through: StraightThrough | None = None,
) -> tuple[Transformer, TrainingResult]:
    """Train the model of a finished run further, on the same tokens, in a run directory of its own.

    It can be stopped and resumed as any run (`resume_model`, `train_model(..., resume=True)`).

    Args:
        source: The finished run, which stays as it is.
        directory: Run directory to make.
        config: How to train; the batches are other ones than before if the seed is another one.
        progress: Show a progress bar and log lines on the terminal.
        straight_through: A number format to train the model for, or None; see `train_model`. A
            model whose output layer uses the embedding's weights then gets weights for each, since
            the two may have different widths.

    Returns:
        The model with the lowest held-out loss, and what training reached.

    Raises:
        InputError: The source is missing or damaged, or is the directory itself.
        DivergenceError: The loss became NaN or infinite.
    """
    settings, old, new = training_config(config), RunDirectory(source), RunDirectory(directory)
    if old.path.resolve() == new.path.resolve():
        raise InputError(f"{new.path} is the run to start from; choose another directory for the new run")
    model, tokenizer = old.load_model(), old.load_tokenizer()
    if straight_through is not None:
        model = model.untied()
    training_tokens = old.load_training_tokens(model.config.vocab_size)
    validation_tokens = old.load_validation_tokens(model.config.vocab_size)
    text = old.load_training_record().get("source", {})
    training_tokens, validation_tokens = store_tokens(new, tokenizer, training_tokens, validation_tokens)
    trainer = Trainer(
        model, tokenizer, settings, training_tokens, validation_tokens, new, progress, text, straight_through
    )
    return model, trainer.train(resume=False)
