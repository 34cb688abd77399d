"""The decoder circuit of a run: what it needs, and text that it writes in simulation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from fixedpoint.transformer import QuantizedTransformer
from hdl.board.boards import Board, find_board
from hdl.board.decoder_estimate import Estimate
from hdl.board.decoder_fit import fitting_machine
from hdl.board.two_sequences import estimate_of_two
from hdl.decoder.machine import Machine
from model.tokenizers.tokenizer import Tokenizer
from scripts.circuit_text import CheckedDecoder, write_text
from scripts.two_texts import pair_speed, write_texts
from sim.simulators.builds import cache_directory

FREQUENCY = 100e6  # Hz, at which tokens a second are stated


def estimate_row(one: Estimate, board: Board) -> tuple[str, ...]:
    """Return the cells of a board in the table of estimates."""
    return (
        board.name,
        f"{one.plan.lanes}",
        f"{one.needs.block_rams} of {board.block_rams}",
        f"{one.needs.multipliers} of {board.multipliers}",
        f"{one.luts:,} of {board.luts:,}",
        *([f"{one.plan.context_length}"] if one.plan.sequences > 1 else []),
        *(f"{cycles:,}" for cycles in (one.first, one.middle, one.last)),
        f"{FREQUENCY / one.middle:,.0f}",
    )


def generate_with_circuit(
    quantized: QuantizedTransformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    num_tokens: int,
    board_name: str,
    on_text: Callable[[int, str], None],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Return the texts that the decoder circuit of a model writes, the integer model's with the
    same seed, and print its cycles to standard error.

    Args:
        quantized: The model.
        tokenizer: Its tokenizer.
        prompts: Beginning of the text, or of each of two that are interleaved.
        num_tokens: At most so many tokens of each.
        board_name: The board whose multipliers and block RAMs the circuit may use.
        on_text: Called with a text's number and each new piece of it.
        temperature: 0, or one that the circuit can sample at.
        seed: Of the samples; the second text's is larger by one.

    Raises:
        CircuitError: The model or the temperature does not suit the machine, the board is too
            small, or a token differs from the integer model's.
        InputError: As `continue_text`.
        ToolError: Verilator, or what it needs, is missing or failed.
    """
    board, sampling = find_board(board_name), temperature > 0
    single = len(prompts) == 1
    chosen = (fitting_machine if single else estimate_of_two)(quantized, board, sampling=sampling)
    plan = chosen.plan
    build = cache_directory() / "decoder"
    both = "" if single else f"two sequences of {plan.context_length} positions each, "
    print(
        f"decoder for {board.name}: {both}{plan.lanes} lanes, {chosen.needs.block_rams} of {board.block_rams} block RAMs, "
        f"{chosen.needs.multipliers} of {board.multipliers} multipliers; compiling the circuit (minutes, once)",
        file=sys.stderr,
    )
    choice: dict[str, Any] = {"temperature": temperature, "seed": seed}
    if single:

        def show(text: str) -> None:
            on_text(0, text)

        written = write_text(chosen, tokenizer, prompts[0], num_tokens, build, show, **choice)
        if written.tokens:
            print(
                f"\n{written.tokens:,} tokens through the circuit, {written.cycles:,.0f} cycles each: "
                f"{FREQUENCY / written.cycles:,.0f} tokens/s at {FREQUENCY / 1e6:g} MHz",
                file=sys.stderr,
            )
        return [written.text]
    with CheckedDecoder(Machine(plan), build) as decoder:
        choice["context_length"] = plan.context_length
        texts = write_texts(decoder, quantized, tokenizer, prompts, num_tokens, on_text, **choice)
        print(pair_speed("circuit", len(prompts) * num_tokens, decoder.cycles, FREQUENCY / 1e6), file=sys.stderr)
    return texts
