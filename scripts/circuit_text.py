"""Text that the decoder circuit writes, compiled by Verilator, compared token by token with the
integer model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fixedpoint.generation import stream_batch
from hdl.board.decoder_estimate import Estimate
from hdl.decoder.machine import Machine
from hdl.decoder.score_rows import Temperature
from hdl.errors import CircuitError
from model.generation.loop import continue_text
from model.tokenizers.tokenizer import Tokenizer
from sim.simulators.decoder_process import SimulatedDecoder, stream_tokens


@dataclass(frozen=True)
class CircuitText:
    """What a circuit wrote.

    Attributes:
        prompt, text: The beginning, and what followed, equal to the integer model's.
        tokens: Tokens that went through the circuit; where the context was full, half of it again.
        cycles: Of a token, in the mean; each token's were those predicted.
        lanes: Multipliers of the circuit's engine.
    """

    prompt: str
    text: str
    tokens: int
    cycles: float
    lanes: int


class CheckedDecoder(SimulatedDecoder):
    """A simulated decoder whose tokens must take the predicted cycles."""

    _position = 0

    def step(self, token: int, *, restart: bool, choice: tuple[int, Temperature] | None = None) -> int:
        """See `SimulatedDecoder.step`.

        Raises:
            CircuitError: The token took other cycles than the machine's program says.
        """
        given = super().step(token, restart=restart, choice=choice)
        self._position = 0 if restart else self._position + 1
        expected = self.machine.cycles(self._position)
        if self.cycles[-1] != expected:
            raise CircuitError(
                f"decoder: the token at position {self._position} took {self.cycles[-1]:,} cycles, not {expected:,}"
            )
        return given


def compared(stream: Iterator[None], sequence: list[int], others: Iterator[None], other: list[int]) -> Iterator[None]:
    """Advance two streams together.

    Raises:
        CircuitError: Their tokens differ.
    """
    for _ in stream:
        next(others)
        if sequence[-1] != other[-1]:
            raise CircuitError(
                f"decoder: token {len(sequence) - 1} of the text is {sequence[-1]}, the integer model's is {other[-1]}"
            )
        yield


def write_text(
    chosen: Estimate,
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int,
    build_directory: Path,
    on_text: Callable[[str], None] | None = None,
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> CircuitText:
    """Compile a model's machine and return the text that it writes.

    Args:
        chosen: The machine.
        tokenizer: The model's.
        prompt: Beginning of the text.
        num_tokens: At most so many tokens.
        build_directory: Where compiled circuits are kept.
        on_text: Called with each new piece of text.
        temperature: 0, or one that the circuit can sample at.
        seed: Of the samples.

    Raises:
        CircuitError: A token differs from the integer model's, or took other cycles than predicted.
        InputError: As `continue_text`.
        ToolError: Verilator, or what it needs, is missing or failed.
    """
    model = chosen.plan.model
    with CheckedDecoder(Machine(chosen.plan), build_directory) as decoder:

        def open_stream(sequences: list[list[int]]) -> Iterator[None]:
            (sequence,) = sequences
            reference = [list(sequence)]
            integers = stream_batch(model, reference, temperature=temperature, seed=seed)
            return compared(
                stream_tokens(decoder, model, sequence, temperature, seed), sequence, integers, reference[0]
            )

        text = continue_text(tokenizer, prompt, num_tokens, model.vocab_size, open_stream, on_text=on_text)
        mean = sum(decoder.cycles) / max(1, len(decoder.cycles))
    return CircuitText(prompt, text, len(decoder.cycles), mean, chosen.plan.lanes)
