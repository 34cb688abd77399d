"""Write a run's model for other programs.

--format c is the integer model as a C program: model.h (the model as constants), transformer.c
(the arithmetic, whole numbers only) and a Makefile. It reads token numbers and writes the same
tokens as `positron generate --quantized`. With --prompt it is also compiled and run. --format onnx
is the integer model as an ONNX graph with the same logits, bit for bit; with --float it is the
float model. Both graphs take tokens (batch, length) and return logits (batch, length, vocabulary).

The float model's weights are written as llama2.c's model.bin (RMSNorm, SwiGLU, rotary positions),
as a GPT-2 in Hugging Face's layout (LayerNorm, GELU, learned positions), or as a safetensors file
of this project, with the tokenizer where the other program has such a one. `positron import` reads
all three.

Example:
  positron export runs/demo --format c --prompt "One day"
  positron export runs/demo --format onnx --out model.onnx
  positron export runs/stories --format llama2c --out stories
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from shlex import quote

from fixedpoint.export.c_program import MAKEFILE, SOURCE, NativeTransformer, write_program
from fixedpoint.export.onnx_export import export_onnx
from model.errors import InputError
from model.files import write_json
from model.formats.gpt2 import gpt2_config, to_gpt2
from model.formats.llama2c import save_llama2c
from model.formats.onnx_export import export_onnx as export_float_onnx
from model.formats.safetensors import save_safetensors, write_safetensors
from model.run import RunDirectory
from model.tokenizers.gpt2 import GPT2Tokenizer
from model.tokenizers.llama2c import Llama2cTokenizer
from scripts.runs import add_run_argument, load_quantized, open_run
from scripts.text import prompt_text

# Where each format goes within the run directory, unless --out says otherwise.
PLACES = {"llama2c": "llama2c", "gpt2": "gpt2", "safetensors": "model.safetensors", "onnx": "quantized.onnx", "c": "c"}
DEFAULTS = {"length": 500, "temperature": 0.8, "seed": 0}  # of the C program's run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument("--format", choices=PLACES, required=True, help="what to write")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="file (safetensors, onnx) or directory to write (default: within RUN)"
    )
    parser.add_argument("--float", action="store_true", help="onnx: the float model")
    parser.add_argument("--prompt", help="c: compile the program and let it continue this text")
    for name, type_, about in (
        ("length", int, "tokens to write"),
        ("temperature", float, "0 always takes the likeliest token"),
        ("seed", int, "seed of the choices"),
    ):
        help_text = f"c, with --prompt: {about} (default: {DEFAULTS[name]})"
        parser.add_argument(f"--{name}", type=type_, metavar="X" if type_ is float else "N", help=help_text)


def run(arguments: argparse.Namespace) -> int:
    """Write what was asked for."""
    if arguments.float and arguments.format != "onnx":
        raise InputError("--float is for --format onnx; the other formats hold one of the two models alone")
    if arguments.prompt is None or arguments.format != "c":
        given = [name for name in ("prompt", *DEFAULTS) if getattr(arguments, name) is not None]
        if given:
            raise InputError(f"--{given[0]} is for running the C program: --format c --prompt TEXT")
    # refused before anything is loaded
    text = None if arguments.prompt is None else prompt_text(arguments.prompt)
    directory = open_run(arguments.run)
    name = "model.onnx" if arguments.float else PLACES[arguments.format]
    target = arguments.out or directory.path / name
    match arguments.format:
        case "c" if text is not None:
            run_c(directory, target, text, arguments)
        case "c":
            write_c(directory, target)
        case "onnx":
            target.parent.mkdir(parents=True, exist_ok=True)
            if arguments.float:
                export_float_onnx(directory.load_model(), target)
            else:
                export_onnx(load_quantized(directory), target)
            print(f"graph: {target} ({target.stat().st_size / 1e6:.1f} MB)")
        case "safetensors":
            model = directory.load_model()
            target.parent.mkdir(parents=True, exist_ok=True)
            save_safetensors(model, target)
            print(f"weights: {target}\nits tokenizer: {directory.tokenizer}")
        case _:
            write_directory(directory, target, arguments.format)
    return 0


def write_c(directory: RunDirectory, target: Path) -> None:
    """Write the C program."""
    write_program(load_quantized(directory), target)
    print(f"program: {target / SOURCE}, with model.h and {MAKEFILE}")
    # with a slash in "." too: a bare name is looked for elsewhere
    program = quote(f"{target}/{Path(SOURCE).stem}")
    print(f'compile and run: make -C {quote(str(target))} && echo "0" | {program} --temperature 0.8')


def run_c(directory: RunDirectory, target: Path, text: str, arguments: argparse.Namespace) -> None:
    """Write and compile the C program, and let it continue a text."""
    quantized, tokenizer = load_quantized(directory), directory.load_tokenizer()
    prompt = tokenizer.encode(text)
    if not prompt:
        raise InputError("--prompt is empty; the program needs at least one token to begin with")
    chosen = {name: getattr(arguments, name) for name in DEFAULTS}
    chosen = {name: DEFAULTS[name] if value is None else value for name, value in chosen.items()}
    length = int(chosen.pop("length"))
    program = NativeTransformer.build(quantized, target)
    (tokens,), seconds = program.timed([prompt], length, **chosen)
    print(text + tokenizer.incremental_decoder(prompt[-1]).decode(tokens, final=True))
    # Not on standard output, which is the text alone.
    print(f"{len(tokens) / seconds:,.0f} tokens/s", file=sys.stderr)
    print(f"program: {program.executable}", file=sys.stderr)


def write_directory(directory: RunDirectory, target: Path, form: str) -> None:
    """Write the weights as llama2.c's or GPT-2's, with the tokenizer if it is of the same kind."""
    model, tokenizer = directory.load_model(), directory.load_tokenizer()
    if form == "gpt2":
        weights, settings = to_gpt2(model), gpt2_config(model)
        target.mkdir(parents=True, exist_ok=True)
        write_safetensors(target / "model.safetensors", weights)
        write_json(target / "config.json", settings)
    else:
        save_llama2c(model, target / "model.bin")
    print(f"weights: {target / ('model.safetensors' if form == 'gpt2' else 'model.bin')}")
    if form == "gpt2" and isinstance(tokenizer, GPT2Tokenizer):
        tokenizer.write(target)
    elif form == "llama2c" and isinstance(tokenizer, Llama2cTokenizer):
        tokenizer.write(target / "tokenizer.bin")
    else:
        print(f"its tokenizer, which {form} has no file for: {directory.tokenizer}")
