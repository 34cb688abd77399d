"""Time to train byte-pair encoding, and megabytes a second of encoding with a cold cache.

The text is the bundled stories or any other (`--text`). Where the package `tokenizers` (Hugging
Face, Rust) is installed, it is measured beside.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.files import read_text
from model.stories import generate_stories
from model.tokenizers.bpe import BPETokenizer
from scripts.output import add_json_argument, format_table, write_json

VOCAB_SIZE = 8000
ROUNDS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--text", type=Path, help="a UTF-8 text file (default: a megabyte of stories)")
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE, help="tokens to learn (default: %(default)s)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the table."""
    text = generate_stories(1_000_000, seed=1) if arguments.text is None else read_text(arguments.text)
    figures = measure(text, arguments.vocab_size)
    headings = ["", "training s", "encoding MB/s", "tokens"]
    rows = [
        [row["name"], row["training_seconds"], row["encoding_megabytes_per_second"], row["vocab_size"]]
        for row in figures["tokenizers"]
    ]
    print(format_table(headings, rows))
    if arguments.json:
        write_json(arguments.json, figures)
    return 0


def measure(text: str, vocab_size: int = VOCAB_SIZE) -> dict[str, Any]:
    """Return medians of training time and encoding rate."""
    rows = [_measure("this project", text, lambda: _ours(text, vocab_size))]
    if importlib.util.find_spec("tokenizers") is not None:
        rows.append(_measure("tokenizers (Rust)", text, lambda: _hugging_face(text, vocab_size)))
    return {"characters": len(text), "bytes": len(text.encode()), "wanted_vocab_size": vocab_size, "tokenizers": rows}


def _measure(
    name: str, text: str, train: Callable[[], tuple[int, Callable[[], Callable[[], object]]]]
) -> dict[str, Any]:
    """Time training, and encoding by a tokenizer that has not seen the text since it was built."""
    training, encoding = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        size, build = train()
        training.append(time.perf_counter() - start)
        encode = build()
        start = time.perf_counter()
        encode()
        encoding.append(len(text.encode()) / 1e6 / (time.perf_counter() - start))
    return {
        "name": name,
        "training_seconds": statistics.median(training),
        "encoding_megabytes_per_second": statistics.median(encoding),
        "vocab_size": size,
    }


def _ours(text: str, vocab_size: int) -> tuple[int, Callable[[], Callable[[], object]]]:
    tokenizer = BPETokenizer(vocab_size)
    tokenizer.train(text)

    def build() -> Callable[[], object]:
        fresh = BPETokenizer.from_dict(tokenizer.to_dict())
        return lambda: fresh.encode(text)

    return tokenizer.vocab_size, build


def _hugging_face(text: str, vocab_size: int) -> tuple[int, Callable[[], Callable[[], object]]]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    tokenizer.train_from_iterator([text], trainer)

    def build() -> Callable[[], object]:
        fresh = Tokenizer.from_str(tokenizer.to_str())
        return lambda: fresh.encode(text).ids

    return tokenizer.get_vocab_size(), build
