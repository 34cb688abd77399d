"""Compare the float and the integer model on held-out text or on another text.

Example:
  positron evaluate runs/demo
  positron evaluate runs/demo --text another_story.txt --json figures.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from model.files import file_digest, read_text
from scripts.evaluation import compare
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import add_run_argument, load_named_quantized, open_run
from scripts.text import path_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--text", type=Path, metavar="FILE", help="a UTF-8 text (default: the run's held-out text)")
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print, and keep the figures in the run directory."""
    directory = open_run(arguments.run)
    # before loading: a model that changes meanwhile is another one
    model_sha256 = file_digest(directory.model_weights)
    model, (quantized, manifest_sha256) = directory.load_model(), load_named_quantized(directory)
    if arguments.text is None:
        name, tokens = "held-out text", directory.load_validation_tokens(model.config.vocab_size)
    else:
        name = path_text(arguments.text.name)
        tokens = np.asarray(directory.load_tokenizer().encode(read_text(arguments.text)))
    comparison = compare(model, quantized, tokens)
    print(format_table((name, "loss, nats", "perplexity"), comparison.rows()))
    print(
        f"difference {comparison.difference:+z.4f} nats over {comparison.tokens:,} tokens; the likeliest token is the same "
        f"at {comparison.same_choice:.1%}; logits differ by at most {comparison.largest_logit_error:.3f}"
    )
    figures = {"text": name, "comparison": comparison, "model_sha256": model_sha256, "manifest_sha256": manifest_sha256}
    for path in filter(None, (directory.evaluation, arguments.json)):
        write_json(path, figures)
        print(f"figures: {path}")
    return 0
