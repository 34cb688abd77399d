"""Write text with a trained model.

The model continues the prompt token by token (a token is a character unless the run was trained
otherwise). A low temperature prefers likely tokens, a high one gives more variety; the same seed
gives the same text. With --quantized the run's integer model generates and samples, in integer
arithmetic: the C program of `positron export` gives the same text. With --device simulated the
whole decoder as a circuit writes the same text, compiled by Verilator; with --device PORT a
board does, after it was asked whether it holds this run's model and tokenizer. With --sequences 2
the circuit writes two texts at once, line by line; the second one's seed is larger by one.

Example:
  positron generate runs/demo --prompt "One morning" --temperature 0.7
  positron generate runs/demo --quantized --seed 1
  positron generate runs/demo --device simulated --length 100
  positron generate runs/demo --device /dev/ttyUSB0 --temperature 0
  positron generate runs/demo --device simulated --sequences 2 --prompt "One"
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from fixedpoint import QuantizedTransformer
from fixedpoint.generation import generate_text as generate_integer_text
from hdl.catalog.names import BOARD_NAMES, DEFAULT_BOARD
from hdl.errors import ToolError
from model.errors import InputError
from model.files import file_digest
from model.generation.generate import generate_text
from model.run import RunDirectory
from model.tokenizers.tokenizer import Tokenizer
from scripts.board import choose_baud, fingerprint, generate_with_board, open_port
from scripts.cli import what_is_missing
from scripts.runs import add_run_argument, load_named_quantized, open_run
from scripts.text import prompt_text
from scripts.two_texts import LabelledLines

DEFAULT_PROMPT = "One day"
TEMPERATURE = 0.8
SIMULATED = "simulated"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_run_argument(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        help=f"text to continue (default: {DEFAULT_PROMPT!r}, or a new line if the model lacks these letters); "
        "with --sequences 2 once for both texts, or once for each",
    )
    parser.add_argument("--length", type=int, default=500, metavar="N", help="tokens to write (default: %(default)s)")
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"0 always takes the likeliest token (default: {TEMPERATURE}, or 0 where a board cannot sample)",
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest tokens (default: all)")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="choose among the likeliest that make up this probability (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choices (default: %(default)s)")
    parser.add_argument("--quantized", action="store_true", help="generate in integers, with the quantized model")
    parser.add_argument(
        "--device",
        metavar="PORT",
        help=f"generate with the decoder circuit: {SIMULATED}, or on a board at this serial port",
    )
    parser.add_argument(
        "--sequences", type=int, default=1, metavar="N", help="texts that --device writes at once, 1 or 2 (default: 1)"
    )
    parser.add_argument("--baud", type=int, help="bits per second of the port (default: those of the run's bitstream)")
    parser.add_argument(
        "--board",
        choices=BOARD_NAMES,
        metavar="NAME",
        help=f"board whose multipliers and memories the simulated circuit may use, one of {', '.join(BOARD_NAMES)} "
        f"(default: {DEFAULT_BOARD})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Generate, print as it comes, and keep the text in the run directory."""
    if arguments.length < 1:
        raise InputError(f"--length must be at least 1, not {arguments.length}")
    integers = arguments.quantized or arguments.device is not None
    if integers and (arguments.top_k is not None or arguments.top_p is not None):
        raise InputError(
            "--top-k and --top-p exist for the float model alone; leave them out with --quantized or --device"
        )
    if arguments.board is not None and arguments.device != SIMULATED:
        raise InputError(f"--board belongs to --device {SIMULATED}")
    if arguments.baud is not None and arguments.device in (None, SIMULATED):
        raise InputError("--baud belongs to --device PORT")
    if not 1 <= arguments.sequences <= 2 or (arguments.sequences == 2 and arguments.device is None):
        raise InputError(f"--sequences is 1, or 2 with --device, not {arguments.sequences}")
    chosen = [prompt_text(prompt) for prompt in arguments.prompt or []]
    if len(chosen) > arguments.sequences:
        raise InputError(f"--prompt is given {len(chosen)} times for {arguments.sequences} text; see --sequences")
    directory = open_run(arguments.run)
    tokenizer = directory.load_tokenizer()
    prompt, *others = chosen or [default_prompt(tokenizer)]
    waiting = prompt  # printed with the first piece of text: when nothing was refused

    def show(text: str) -> None:
        nonlocal waiting
        print(waiting + text, end="", flush=True)
        waiting = ""

    options = {
        "num_tokens": arguments.length,
        "temperature": TEMPERATURE if arguments.temperature is None else arguments.temperature,
        "seed": arguments.seed,
        "on_text": show,
    }
    if arguments.device is not None:
        if reason := what_is_missing("generate --device" + (" PORT" if arguments.device != SIMULATED else "")):
            raise ToolError(reason)
        quantized, digest = load_named_quantized(directory)
        made_from = {"manifest_sha256": digest}
        prompts = [prompt, *others] if others else [prompt] * arguments.sequences
        lines = LabelledLines(prompts)
        options["on_text"] = lines.add if len(prompts) > 1 else lambda _, text: show(text)
        if arguments.device == SIMULATED:
            from scripts.decoder import generate_with_circuit

            board = DEFAULT_BOARD if arguments.board is None else arguments.board
            texts = generate_with_circuit(quantized, tokenizer, prompts, board_name=board, **options)
        else:
            texts = generate_at_port(arguments, directory, quantized, digest, tokenizer, prompts, options)
        if len(prompts) > 1:
            lines.finish()
        first, *rest = (begun + text for begun, text in zip(prompts, texts, strict=True))
        continuation = "\n\n".join([first[len(prompt) :], *rest])
    elif arguments.quantized:
        quantized, digest = load_named_quantized(directory)
        made_from = {"manifest_sha256": digest}
        continuation = generate_integer_text(quantized, tokenizer, prompt, **options)
    else:
        # Before loading: a model that changes meanwhile is another one.
        made_from = {"model_sha256": file_digest(directory.model_weights)}
        choice = {"top_k": arguments.top_k, "top_p": arguments.top_p}
        continuation = generate_text(directory.load_model(), tokenizer, prompt, **options, **choice)
    if arguments.sequences == 1:
        print()
    directory.save_sample(f"{prompt}{continuation}\n", prompt, **made_from)
    # Not on standard output, which is the text alone.
    print(f"text: {directory.sample}", file=sys.stderr)
    return 0


def generate_at_port(
    arguments: argparse.Namespace,
    directory: RunDirectory,
    quantized: QuantizedTransformer,
    digest: str,
    tokenizer: Tokenizer,
    prompts: list[str],
    options: dict[str, Any],
) -> list[str]:
    """Return the texts that the board at a serial port writes."""
    from hdl.board.decoder_host import DecoderHost
    from hdl.tools.synthesis_report import read_report

    report = read_report(directory.synthesis)
    with open_port(arguments.device, choose_baud(arguments.baud, directory.synthesis)) as port:
        board = DecoderHost(port)
        board.connect(fingerprint(directory, digest), quantized.context_length)
        if arguments.temperature is None and not board.samples:
            options = {**options, "temperature": 0.0}
        megahertz = None if report is None else min(clock.required_mhz for clock in report.clocks)
        return generate_with_board(board, quantized, tokenizer, prompts, megahertz=megahertz, **options)


def default_prompt(tokenizer: Tokenizer) -> str:
    """Return a prompt that the model can read, whatever text it was trained on."""
    try:
        tokenizer.encode(DEFAULT_PROMPT)
    except InputError:
        return ""
    return DEFAULT_PROMPT
