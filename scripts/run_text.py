"""Text for a run that was imported without any: a file, or what its model writes."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.data import encode_texts, save_tokens, split_tokens
from model.errors import InputError
from model.files import read_text, write_json
from model.generation.generate import generate_batch
from model.generation.sampling import Sampling
from model.run import RunDirectory
from model.tokenizers.tokenizer import Tokenizer
from model.transformer import Transformer
from scripts.text import path_text

HELD_OUT = 0.1  # of a text, as in training
HELD_OUT_SAMPLES = 0.25
SEQUENCES = 32  # generated together


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which text an imported model has."""
    group = parser.add_argument_group("text of an imported model; the last part is held out")
    group.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text")
    group.add_argument(
        "--calibrate-on-samples",
        type=int,
        metavar="N",
        help="N tokens that the model writes at temperature 1, each context from its beginning",
    )
    group.add_argument("--seed", type=int, help="of these samples (default: 0)")


@dataclass(frozen=True)
class RunText:
    """Tokens of a run.

    Attributes:
        source: What `training.json` says of the text.
        training: Tokens to calibrate and train on, (n,).
        held_out: Tokens to measure on, (m,), or samples (N, T + 1).
    """

    source: dict[str, Any]
    training: np.ndarray
    held_out: np.ndarray

    def store(self, directory: RunDirectory) -> None:
        """Write the tokens, and what the text was, into a run directory.

        Raises:
            InputError: The run has the text that it was trained on.
        """
        record = directory.load_training_record()
        if "imported" not in record:
            raise InputError(
                f"{directory.path} has the text that it was trained on: --text and samples are for imported runs"
            )
        save_tokens(directory.train_tokens, self.training)
        save_tokens(directory.validation_tokens, self.held_out)
        write_json(directory.training, {**record, "source": self.source})


def chosen_text(model: Transformer, tokenizer: Tokenizer, arguments: argparse.Namespace) -> RunText | None:
    """Return the text that the arguments name, None where they name none.

    Raises:
        InputError: They name two, or the text has too few tokens.
    """
    count, seed, length = arguments.calibrate_on_samples, arguments.seed or 0, model.config.max_seq_len
    if arguments.text is not None and count is not None:
        raise InputError("--text and --calibrate-on-samples both say which text to take: give one of them")
    if arguments.seed is not None and count is None:
        raise InputError("--seed is of the samples: give --calibrate-on-samples N too")
    if arguments.text is not None:
        text = read_text(arguments.text)
        digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
        source = {"name": path_text(arguments.text.name), "characters": len(text), "sha256": digest}
        tokens = encode_texts(tokenizer, [text], progress=True)
        return RunText(source, *split_tokens(tokens, HELD_OUT, length))
    if count is None:
        return None
    if count < 2 * length:
        raise InputError(f"--calibrate-on-samples must be at least two contexts, {2 * length}, not {count}")
    beginning = tokenizer.beginning()
    contexts = sample_contexts(model, beginning, -(-count // length), seed)
    held_out = max(1, round(HELD_OUT_SAMPLES * len(contexts)))
    count = len(contexts) * length
    name = f"{count:,} tokens that the model wrote, seed {seed}"
    # one text to train on, with a token after the last one, so that every context is whole
    training = np.append(contexts[:-held_out, :-1], contexts.dtype.type(beginning))
    return RunText({"name": name, "samples": count, "seed": seed}, training, contexts[-held_out:])


def sample_contexts(model: Transformer, beginning: int, count: int, seed: int) -> np.ndarray:
    """Return contexts (N, T + 1) that a model writes: the token `beginning` and what is drawn after
    it at temperature 1. The last token is only to be predicted.

    Context i draws its random numbers from (seed + i // 32, i % 32).
    """
    contexts: list[list[int]] = []
    for block in tqdm(range(0, count, SEQUENCES), desc="sampling", unit="batch", leave=False, disable=None):
        prompts = [[beginning]] * min(SEQUENCES, count - block)
        drawn = generate_batch(
            model, prompts, model.config.max_seq_len, sampling=Sampling(1.0), seed=seed + block // SEQUENCES
        )
        contexts += [[beginning, *tokens] for tokens in drawn]
    return np.array(contexts, np.uint16 if model.config.vocab_size <= 1 << 16 else np.uint32)
