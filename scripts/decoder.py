"""The decoder circuit of a run: what it needs, and text that it writes in simulation."""

from __future__ import annotations

import sys
from collections.abc import Callable

from fixedpoint.transformer import QuantizedTransformer
from hdl.board.boards import Board, find_board
from hdl.board.decoder_estimate import Estimate
from hdl.board.decoder_fit import fitting_machine
from model.tokenizers.tokenizer import Tokenizer
from scripts.circuit_text import write_text
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
        *(f"{cycles:,}" for cycles in (one.first, one.middle, one.last)),
        f"{FREQUENCY / one.middle:,.0f}",
    )


def generate_with_circuit(
    quantized: QuantizedTransformer,
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int,
    board_name: str,
    on_text: Callable[[str], None],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return the text that the decoder circuit of a model writes, the integer model's with the same
    seed, token by token, and print its cycles to standard error.

    Args:
        quantized: The model.
        tokenizer: Its tokenizer.
        prompt: Beginning of the text.
        num_tokens: At most so many tokens.
        board_name: The board whose multipliers and block RAMs the circuit may use.
        on_text: Called with each new piece of text.
        temperature: 0, or one that the circuit can sample at.
        seed: Of the samples.

    Raises:
        CircuitError: The model or the temperature does not suit the machine, the board is too
            small, or a token differs from the integer model's.
        InputError: As `continue_text`.
        ToolError: Verilator, or what it needs, is missing or failed.
    """
    board = find_board(board_name)
    chosen = fitting_machine(quantized, board, sampling=temperature > 0)
    plan = chosen.plan
    build = cache_directory() / "decoder"
    print(
        f"decoder for {board.name}: {plan.lanes} lanes, {chosen.needs.block_rams} of {board.block_rams} block RAMs, "
        f"{chosen.needs.multipliers} of {board.multipliers} multipliers; compiling the circuit (minutes, once)",
        file=sys.stderr,
    )
    written = write_text(chosen, tokenizer, prompt, num_tokens, build, on_text, temperature=temperature, seed=seed)
    if written.tokens:
        print(
            f"\n{written.tokens:,} tokens through the circuit, {written.cycles:,.0f} cycles each: "
            f"{FREQUENCY / written.cycles:,.0f} tokens/s at {FREQUENCY / 1e6:g} MHz",
            file=sys.stderr,
        )
    return written.text
