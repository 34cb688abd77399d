"""Train a transformer on a text file, or on the bundled sample stories.

The last tenth of the text is held out: its loss is measured on text that the model was not trained
on. A line is logged every 50 batches. Ctrl-C ends training after the running step and saves;
--resume continues with the settings of the run, and refuses options that contradict them; only
--minutes may differ. --resume RUN begins a new run with the model of another one; with --quantize
that is quantization-aware training.

Example:
  positron train --text my_text.txt --out runs/mine
  positron train --text my_text.txt --num-layers 4 --embed-dim 128 --minutes 5
  positron train --resume runs/mine --quantize 4
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import sys
from pathlib import Path
from shlex import quote
from typing import Any

from fixedpoint import lock_directory
from model import (
    BPETokenizer,
    CharacterTokenizer,
    InputError,
    ModelConfig,
    RunDirectory,
    Tokenizer,
    TrainingConfig,
    TrainingResult,
    Transformer,
    WordTokenizer,
    generate_stories,
    train_model,
)
from model.config import ACTIVATIONS, OPTIMIZERS, POSITIONS
from model.files import read_text
from model.training.train import resume_model
from scripts.output import format_duration
from scripts.process import EXIT_INTERRUPTED
from scripts.quantization.options import load_number_format
from scripts.text import path_text
from scripts.training.fine_tuning import (
    FINE_TUNING_RATE,
    FINE_TUNING_STEPS,
    NARROW_RATE,
    add_quantization_arguments,
    check_quantization_arguments,
    fine_tune,
    fine_tuned_directory,
)
from scripts.training.resuming import MODEL_OPTIONS, TRAINING_OPTIONS, option, refuse_contradictions

# The demonstration's model: its attention fits the board, and two cores train it in two minutes.
DEFAULT_MODEL: dict[str, Any] = {"embed_dim": 64, "num_heads": 4, "num_layers": 2, "max_seq_len": 64}
DEFAULT_TOKENIZER, DEFAULT_VOCAB_SIZE = "character", 1000
DEFAULT_STEPS = 8000
STORY_BYTES = 1_000_000
STORY_SEED = 0
SAMPLE_LINES = 8  # printed at the end
TOKENIZERS = ("character", "word", "bpe")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments; recorded ones default to None, to detect contradictions."""
    parser.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text (default: the bundled sample stories)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="RUN",
        help="run directory to make (default: runs/ and the text's name, or RUN's name and what became of it)",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        nargs="?",
        const=True,
        type=Path,
        metavar="RUN",
        help="without RUN: continue the interrupted training in --out with its settings but for --minutes; with RUN: "
        "train its model further, in another run directory",
    )
    existing.add_argument(
        "--force", action="store_true", help="replace the model in a run directory that holds one already"
    )

    shape = parser.add_argument_group("the model")
    for name, text in (
        ("num_layers", "blocks"),
        ("num_heads", "attention heads in each block"),
        ("embed_dim", "width of the residual stream; a multiple of the number of heads"),
        ("max_seq_len", "context: how many tokens the model sees at once"),
    ):
        shape.add_argument(option(name), type=int, metavar="N", help=f"{text} (default: {DEFAULT_MODEL[name]})")
    shape.add_argument(
        "--ff-dim", type=int, metavar="N", help="width of the feed-forward part (default: 4 x embed-dim)"
    )
    model, training = ModelConfig(), TrainingConfig()
    shape.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        metavar="NAME",
        help=f"nonlinearity, of {', '.join(ACTIVATIONS)} (default: {model.activation})",
    )
    shape.add_argument("--position", choices=POSITIONS, help=f"how positions are encoded (default: {model.position})")
    shape.add_argument("--dropout", type=float, metavar="P", help=f"dropout in training (default: {model.dropout})")
    shape.add_argument("--tokenizer", choices=TOKENIZERS, help=f"what a token is (default: {DEFAULT_TOKENIZER})")
    shape.add_argument(
        "--vocab-size", type=int, metavar="N", help=f"of the word and bpe tokenizers (default: {DEFAULT_VOCAB_SIZE})"
    )

    learning = parser.add_argument_group("training")
    learning.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"optimizer steps (default: {DEFAULT_STEPS}, or {FINE_TUNING_STEPS} with --resume RUN)",
    )
    learning.add_argument(
        "--minutes", type=float, metavar="M", help="stop after so many minutes and save; may differ with --resume"
    )
    learning.add_argument(
        "--batch-size", type=int, metavar="N", help=f"sequences a step (default: {training.batch_size}, or RUN's)"
    )
    learning.add_argument(
        "--seq-len", type=int, metavar="N", help="tokens of a training sequence (default: the context, or RUN's)"
    )
    learning.add_argument(
        "--optimizer",
        choices=OPTIMIZERS,
        metavar="NAME",
        help=f"one of {', '.join(OPTIMIZERS)} (default: {training.optimizer})",
    )
    learning.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help=f"the highest, after warm-up (default: {training.learning_rate:g}; {FINE_TUNING_RATE:g} with --resume RUN, "
        f"{NARROW_RATE:g} for activations below 8 bits)",
    )
    learning.add_argument(
        "--workers", type=int, metavar="N", help="processes; the same number gives the same bytes (default: one a core)"
    )
    learning.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=f"of weights and batches (default: {training.seed}, or the one after RUN's)",
    )
    learning.add_argument(
        "--sample-every", type=int, metavar="N", help="write 100 tokens every N steps, for the report (default: never)"
    )
    add_quantization_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Train, and write the run directory."""
    check_quantization_arguments(arguments)
    with lock_directory(output_directory(arguments)):
        return train(arguments)


def train(arguments: argparse.Namespace) -> int:
    """Train in a run directory that no other process changes."""
    directory = RunDirectory(output_directory(arguments))
    arguments.earlier_state = saved_state(directory)
    if arguments.resume is True:
        result = resume(directory, arguments)
    elif arguments.resume is not None:
        refuse_other_model(RunDirectory(arguments.resume), arguments)
        result = fine_tune(directory, arguments, chosen_settings(arguments))
    else:
        result = start(directory, arguments)
    if result.interrupted and not result.timed_out:
        print(
            f"stopped at step {result.step:,} of {result.total_steps:,}; nothing is lost, resume with: "
            f"positron train --resume --out {quote(str(directory.path))}",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    kind = "integer model's held-out loss" if directory.number_format.exists() else "held-out loss"
    print(
        f"{kind} {result.validation_loss:z.4f} nats a token after {result.step:,} steps in "
        f"{format_duration(result.seconds)}\nrun: {directory.path}"
    )
    if directory.sample.is_file():
        lines = directory.sample.read_text(encoding="utf-8").strip().splitlines()
        print("\nwhat it writes:\n" + "\n".join(lines[:SAMPLE_LINES]))
    return 0


def start(directory: RunDirectory, arguments: argparse.Namespace) -> TrainingResult:
    """Train from random weights.

    Raises:
        InputError: The text or a setting cannot be used, or the directory holds a model already.
    """
    if directory.model_config.exists() and not arguments.force:
        raise InputError(
            f"{directory.path} holds a model already: resume it (--resume), replace it (--force), or choose another --out"
        )
    text, source = load_text(arguments.text)
    training = TrainingConfig(
        **{name: value for name, value in chosen_settings(arguments).items() if value is not None}
    )
    shape = model_shape(arguments)
    ModelConfig(**shape)  # refuses impossible sizes before time is spent on the text
    tokenizer = make_tokenizer(arguments)
    tokenizer.train(text, progress=True)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **shape), seed=training.seed)
    print(
        f"{source['characters']:,} characters of {source['name']}, a vocabulary of {tokenizer.vocab_size}, "
        f"{model.get_num_parameters():,} parameters"
    )
    return train_model(model, tokenizer, text, training, directory=directory.path, source=source)


def resume(directory: RunDirectory, arguments: argparse.Namespace) -> TrainingResult:
    """Resume an interrupted training.

    Raises:
        InputError: There is none, its files are damaged, or an option contradicts it.
    """
    model, tokenizer, training = resume_model(directory.path)
    names, source = (*MODEL_OPTIONS, *TRAINING_OPTIONS), given_source(arguments)
    refuse_contradictions(directory, model.config, tokenizer, arguments, names, source)
    if arguments.minutes is not None:
        training = dataclasses.replace(training, time_limit=60 * arguments.minutes)
    number_format = load_number_format(directory)
    return train_model(
        model, tokenizer, None, training, directory=directory.path, resume=True, straight_through=number_format
    )


def refuse_other_model(run: RunDirectory, arguments: argparse.Namespace) -> None:
    """Refuse options that say of the model and of the text what the run to begin with is not.

    Raises:
        InputError: There is such an option, or the run cannot be used.
    """
    config, tokenizer, source = run.load_model().config, run.load_tokenizer(), given_source(arguments)
    refuse_contradictions(run, config, tokenizer, arguments, MODEL_OPTIONS, source)


def given_source(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return what is recorded of the text that was given, None where none was."""
    return None if arguments.text is None else load_text(arguments.text)[1]


def load_text(path: Path | None) -> tuple[str, dict[str, Any]]:
    """Return the text and what is recorded of it."""
    if path is None:
        text, name = generate_stories(STORY_BYTES, STORY_SEED), "the bundled stories"
    else:
        text, name = read_text(path), path_text(path.name)
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return text, {"name": name, "characters": len(text), "sha256": digest}


def model_shape(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the model's configuration without the vocabulary."""
    names = ("num_layers", "num_heads", "embed_dim", "ff_dim", "max_seq_len", "activation", "position", "dropout")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return {**DEFAULT_MODEL, **given}


def make_tokenizer(arguments: argparse.Namespace) -> Tokenizer:
    """Return the tokenizer that was asked for, not yet trained.

    Raises:
        InputError: A vocabulary size for the character tokenizer, whose vocabulary is the text's,
            or an impossible one.
    """
    vocab_size = DEFAULT_VOCAB_SIZE if arguments.vocab_size is None else arguments.vocab_size
    match arguments.tokenizer or DEFAULT_TOKENIZER:
        case "word":
            return WordTokenizer(max_vocab_size=vocab_size)
        case "bpe":
            return BPETokenizer(vocab_size=vocab_size)
        case _:
            if arguments.vocab_size is not None:
                raise InputError("--vocab-size is for --tokenizer word or bpe; characters are as many as the text has")
            return CharacterTokenizer()


def chosen_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the training settings that arguments can choose, None where they do not."""
    steps = FINE_TUNING_STEPS if isinstance(arguments.resume, Path) else DEFAULT_STEPS
    return {
        "optimizer": arguments.optimizer,
        "learning_rate": arguments.learning_rate,
        "batch_size": arguments.batch_size,
        "seq_len": arguments.seq_len,
        "num_steps": steps if arguments.steps is None else arguments.steps,
        "seed": arguments.seed,
        "sample_every": arguments.sample_every,
        "time_limit": None if arguments.minutes is None else 60 * arguments.minutes,
        "num_workers": arguments.workers,
    }


def output_directory(arguments: argparse.Namespace) -> Path:
    """Return the run directory that training makes or resumes."""
    if arguments.out is not None:
        return Path(arguments.out)
    if isinstance(arguments.resume, Path):
        return fine_tuned_directory(arguments.resume, arguments)
    return default_directory(arguments.text)


def default_directory(text: Path | None) -> Path:
    """Return runs/ and the text's name."""
    return Path("runs") / ("stories" if text is None else text.stem)


def how_to_resume(arguments: argparse.Namespace) -> str:
    """Return what to say after a second Ctrl-C, or one before the first step."""
    directory = RunDirectory(output_directory(arguments))
    saved, earlier = saved_state(directory), getattr(arguments, "earlier_state", None)
    if saved is None or (saved == earlier and arguments.resume is not True):
        return "nothing was saved yet; run the command again"
    return f"resume from the last saved step with: positron train --resume --out {quote(str(directory.path))}"


def saved_state(directory: RunDirectory) -> tuple[int, int] | None:
    """Return the identity of a run's saved state; None where there is nothing to resume."""
    if not directory.can_be_resumed():
        return None
    status = directory.training_state.stat()
    return status.st_ino, status.st_mtime_ns
