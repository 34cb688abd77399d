"""Write the integer model as a C program that needs nothing but a C compiler.

The directory holds model.h (the model as constants), transformer.c (the arithmetic, integers
only) and a Makefile. The program reads token numbers and writes the same tokens as
`positron generate --quantized`. With --prompt it is also compiled and run.

Example:
  positron export-c runs/demo
  positron export-c runs/demo --out my_project/c --prompt "One day"
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shlex import quote

from fixedpoint.export.c_program import EXECUTABLE, MAKEFILE, SOURCE, NativeTransformer, write_program
from model.errors import InputError
from scripts.runs import add_run_argument, load_quantized, open_run
from scripts.text import prompt_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go (default: RUN/c)")
    parser.add_argument("--prompt", help="compile the program and let it continue this text")
    parser.add_argument("--length", type=int, default=500, metavar="N", help="tokens to write (default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        metavar="X",
        help="0 always takes the likeliest token (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Write the program, and run it where that is asked for."""
    text = None if arguments.prompt is None else prompt_text(arguments.prompt)
    directory = open_run(arguments.run)
    quantized, tokenizer = load_quantized(directory), directory.load_tokenizer()
    target = arguments.out or directory.path / "c"
    if text is None:
        write_program(quantized, target)
        print(f"program: {target / SOURCE}, with model.h and {MAKEFILE}")
        # with a slash in "." too: a bare name is looked for elsewhere
        executable = quote(f"{target}/{EXECUTABLE}")
        print(f'compile and run: make -C {quote(str(target))} && echo "0" | {executable} --temperature 0.8')
        return 0
    prompt = tokenizer.encode(text)
    if not prompt:
        raise InputError("--prompt is empty; the program needs at least one token to begin with")
    program = NativeTransformer.build(quantized, target)
    (tokens,), seconds = program.timed(
        [prompt], arguments.length, temperature=arguments.temperature, seed=arguments.seed
    )
    print(text + tokenizer.decode(tokens))
    # Not on standard output, which is the text alone.
    print(f"{len(tokens) / seconds:,.0f} tokens/s", file=sys.stderr)
    print(f"program: {program.executable}", file=sys.stderr)
    return 0
