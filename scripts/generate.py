"""Write text with a trained model.

The model continues the prompt character by character (or token by token). A low temperature repeats what is likely, a
high one takes chances; the same seed writes the same text.

Example:
  positron generate runs/demo --prompt "One morning" --length 300 --temperature 0.7
"""

from __future__ import annotations

import argparse
import sys

from model import generate_text
from model.errors import InputError
from model.files import atomic_write
from scripts.runs import add_run_argument, load_model, load_run_tokenizer, open_run

DEFAULT_PROMPT = "One day"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, help="text to continue (default: %(default)r)")
    parser.add_argument("--length", type=int, default=500, metavar="N", help="tokens to write (default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0 always takes the likeliest token (default: %(default)s)",
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="choose among the K likeliest (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Generate, print, and keep the text in the run directory."""
    if arguments.length < 1:
        raise InputError(f"--length must be at least 1, not {arguments.length}")
    directory = open_run(arguments.run)
    model, tokenizer = load_model(directory), load_run_tokenizer(directory)
    text = generate_text(
        model,
        tokenizer,
        arguments.prompt,
        num_tokens=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k or None,
        seed=arguments.seed,
    )
    print(text)
    with atomic_write(directory.sample, "w") as file:
        file.write(text + "\n")
    print(f"\ntext: {directory.sample}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from scripts.cli import main

    sys.exit(main(["generate", *sys.argv[1:]]))
