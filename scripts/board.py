"""A board on a serial port: which model it must hold, and text that it writes."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from fixedpoint import QuantizedTransformer
from hdl.catalog.names import DEFAULT_BAUD
from hdl.errors import ToolError
from model.errors import InputError
from model.files import file_digest, read_json
from model.generation.loop import continue_text
from model.run import RunDirectory
from model.tokenizers.tokenizer import Tokenizer
from scripts.runs import MADE_FROM
from scripts.two_texts import pair_speed, write_texts

if TYPE_CHECKING:
    import serial

    from hdl.board.decoder_host import DecoderHost
    from hdl.tools.synthesis_report import SynthesisReport

PLAN = ("lanes", "norm_lanes", "context_lanes", "sampling", "sequences", "context")
# What bitstreams that do not say it were made with.
EARLIER = {"sequences": 1, "context": None}


def fingerprint(directory: RunDirectory, manifest_sha256: str) -> bytes:
    """Return what names a run's integer model and its tokenizer on a board, 8 bytes.

    Args:
        directory: The run.
        manifest_sha256: Digest of the integer model's manifest, which has those of all tables.
    """
    from hdl.board.link import Identity

    both = bytes.fromhex(manifest_sha256) + bytes.fromhex(file_digest(directory.tokenizer))
    return hashlib.sha256(both).digest()[: Identity.DIGEST_BYTES]


def built_decoder(directory: RunDirectory) -> tuple[SynthesisReport, dict[str, Any]]:
    """Return the report of a run's decoder, and what `positron synthesize` noted about it.

    Raises:
        InputError: There is no complete bitstream.
    """
    from hdl.tools.synthesis_report import read_report

    report, note = read_report(directory.synthesis), directory.synthesis / MADE_FROM
    record = EARLIER | read_json(note) if note.is_file() else {}
    if report is None or report.bitstream is None or not record.keys() >= {"fingerprint", *PLAN}:
        raise InputError(
            f"{directory.synthesis} holds no bitstream of a decoder; make one: "
            f"positron synthesize {quote(str(directory.path))}"
        )
    return report, record


def choose_baud(baud: int | None, directory: Path) -> int:
    """Return the bits per second asked for, else the bitstream's, else the default."""
    from hdl.tools.synthesis_report import read_report

    if baud is not None:
        return baud
    report = read_report(directory)
    return DEFAULT_BAUD if report is None or report.baud is None else report.baud


def open_port(name: str, baud: int) -> serial.Serial:
    """Open a serial port.

    Raises:
        ToolError: There is none of this name, or it cannot be used.
    """
    import serial
    from serial.tools.list_ports import comports

    from hdl.board.session import ANSWER_SECONDS

    try:
        return serial.Serial(name, baud, timeout=ANSWER_SECONDS)
    except (serial.SerialException, ValueError) as error:
        ports = ", ".join(sorted(port.device for port in comports())) or "none"
        raise ToolError(f"cannot open the serial port {name}: {error}; ports found: {ports}") from None


def generate_with_board(
    board: DecoderHost,
    quantized: QuantizedTransformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    num_tokens: int,
    on_text: Callable[[int, str], None],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    megahertz: float | None = None,
) -> list[str]:
    """Return the texts that a decoder on a board writes, the integer model's with the same seed,
    and print its speed to standard error.

    Args:
        board: Connected, with this model.
        quantized: The model.
        tokenizer: Its tokenizer.
        prompts: Beginning of the text, or of each of two that are interleaved.
        num_tokens: At most so many tokens of each.
        on_text: Called with a text's number and each new piece of it.
        temperature: 0, or one that the circuit can sample at.
        seed: Of the samples; the second text's is larger by one.
        megahertz: The circuit's clock, if it is known.

    Raises:
        CircuitError: The temperature does not suit the circuit, or one of two texts is not the
            integer model's.
        InputError: As `continue_text`.
        ToolError: The board does not answer, cannot sample, or holds a circuit of one sequence.
    """
    from sim.simulators.decoder_process import stream_tokens

    if len(prompts) > board.sequences:
        raise ToolError("the circuit on the board writes one text: positron synthesize RUN --sequences 2")
    start, context = time.perf_counter(), board.context_length
    if len(prompts) > 1:
        choice: dict[str, Any] = {"temperature": temperature, "seed": seed, "context_length": context}
        texts = write_texts(board, quantized, tokenizer, prompts, num_tokens, on_text, **choice)
    else:

        def open_stream(sequences: list[list[int]]) -> Iterator[None]:
            return stream_tokens(board, quantized, sequences[0], temperature, seed, context)

        def show(text: str) -> None:
            on_text(0, text)

        texts = [continue_text(tokenizer, prompts[0], num_tokens, quantized.vocab_size, open_stream, on_text=show)]
    seconds, count = time.perf_counter() - start, len(board.cycles)
    if count:
        mean = sum(board.cycles) / count
        speed = "" if megahertz is None else f", {megahertz * 1e6 / mean:,.0f} tokens/s at {megahertz:g} MHz"
        told = f"\n{count:,} tokens through the board, {mean:,.0f} cycles each{speed}"
        if len(prompts) > 1:
            told = pair_speed("board", len(prompts) * num_tokens, board.cycles, megahertz)
        print(
            f"{told}; {count / seconds:,.0f} {'steps' if len(prompts) > 1 else 'tokens'}/s with the serial line, "
            f"{board.host.repeated:,} requests sent again",
            file=sys.stderr,
        )
    return texts
