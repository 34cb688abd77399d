"""`positron train --resume`: refuse options that contradict the run that is resumed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from model import BPETokenizer, InputError, ModelConfig, RunDirectory, Tokenizer, WordTokenizer

# Options that fix a run's model and tokens. They may be repeated, with the same values.
MODEL_OPTIONS = (
    "num_layers",
    "num_heads",
    "embed_dim",
    "max_seq_len",
    "ff_dim",
    "activation",
    "position",
    "dropout",
    "tokenizer",
    "vocab_size",
)
TRAINING_OPTIONS = ("optimizer", "steps", "batch_size", "seq_len", "learning_rate", "workers", "seed")


def refuse_contradictions(
    run: RunDirectory,
    config: ModelConfig,
    tokenizer: Tokenizer,
    arguments: argparse.Namespace,
    names: Sequence[str],
    source: dict[str, Any] | None,
) -> None:
    """Refuse options that differ from the settings that a run was started with.

    Args:
        run: The run that is resumed.
        config: Its model's.
        tokenizer: Its tokenizer.
        arguments: Of the command line; None where an option was not given.
        names: The options to look at, of `MODEL_OPTIONS` and `TRAINING_OPTIONS`.
        source: What would be recorded of the text that was given; None where none was.

    Raises:
        InputError: At least one option has another value; the message names all of them with both
            values.
    """
    recorded = _recorded(run, config, tokenizer)
    contradictions = []
    for name in names:
        asked = getattr(arguments, name)
        if asked is not None and asked != recorded[name]:
            there = "none" if recorded[name] is None else recorded[name]
            contradictions.append(f"{option(name)} {asked} (the run: {there})")
    if source is not None:
        there = run.load_training_record().get("source", {})
        if source["sha256"] != there.get("sha256"):
            contradictions.append(
                f"--text {arguments.text} with {source['characters']:,} characters, SHA-256 {source['sha256'][:8]}… "
                f"(the run: {there.get('name')}, {there.get('characters') or 0:,} characters, {str(there.get('sha256'))[:8]}…)"
            )
    if contradictions:
        raise InputError(
            f"{run.path} was started with other settings, which are kept: {'; '.join(contradictions)}; "
            "leave these options out, or train another run"
        )


def option(name: str) -> str:
    """Return a configuration field as a command-line option."""
    return "--" + name.replace("_", "-")


def _recorded(run: RunDirectory, config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the value of each option that the run was started with."""
    training = run.load_training_config()
    kind: str = "character"
    vocab_size: int | None = None
    match tokenizer:
        case WordTokenizer():
            kind, vocab_size = "word", tokenizer.max_vocab_size
        case BPETokenizer():
            kind, vocab_size = "bpe", tokenizer.wanted_vocab_size
    return {
        **config.to_dict(),
        "tokenizer": kind,
        "vocab_size": vocab_size,
        **training.to_dict(),
        "steps": run.load_training_record().get("total_steps", training.num_steps),
        "workers": run.load_training_record().get("num_workers", training.num_workers),
    }
