"""Write text with a trained model.

The model continues the prompt token by token (a token is a character unless the run was trained otherwise). A low
temperature repeats what is likely, a high one takes chances; the same seed writes the same text.

Example:
  positron generate runs/demo --prompt "One morning" --length 300 --temperature 0.7
"""

from __future__ import annotations

import argparse
import sys

from model.errors import InputError
from model.files import atomic_write
from model.generation import generate_text
from scripts.runs import add_run_argument, open_run

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
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens (default: all)")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="choose among the likeliest that make up this probability (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Generate, print as it comes, and keep the text in the run directory."""
    if arguments.length < 1:
        raise InputError(f"--length must be at least 1, not {arguments.length}")
    directory = open_run(arguments.run)
    model, tokenizer = directory.load_model(), directory.load_tokenizer()
    tokenizer.encode(arguments.prompt)  # refuses unknown characters before anything is printed
    print(arguments.prompt, end="", flush=True)
    continuation = generate_text(
        model,
        tokenizer,
        arguments.prompt,
        num_tokens=arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        on_text=lambda text: print(text, end="", flush=True),
    )
    print()
    with atomic_write(directory.sample, "w") as file:
        file.write(f"{arguments.prompt}{continuation}\n")
    # Not on standard output, which is the text alone.
    print(f"text: {directory.sample}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    from scripts.cli import main

    sys.exit(main(["generate", *sys.argv[1:]]))
