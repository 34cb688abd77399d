"""Text that the decoder circuit writes, compiled by Verilator, compared token by token with the
integer model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fixedpoint.generation import stream_batch
from hdl.board.decoder_estimate import Estimate
from hdl.decoder.accelerator import Turn
from hdl.decoder.machine import Machine
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

    def __init__(self, machine: Machine, build_directory: Path, probed: bool = False):
        super().__init__(machine, build_directory, probed)
        self._places = [0] * machine.plan.sequences

    def step(self, turns: Sequence[Turn | None]) -> list[int]:
        """See `SimulatedDecoder.step`.

        Raises:
            CircuitError: The tokens took other cycles than the machine's program says.
        """
        given = super().step(turns)
        for number, turn in enumerate(turns):
            if turn is not None:
                self._places[number] = 0 if turn.restart else self._places[number] + 1
        places = [None if turn is None else self._places[number] for number, turn in enumerate(turns)]
        expected = self.machine.cycles(places)
        if self.cycles[-1] != expected:
            where = ", ".join(str(place) for place in places if place is not None)
            raise CircuitError(
                f"decoder: the token at position {where} took {self.cycles[-1]:,} cycles, not {expected:,}"
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
    examine: Callable[[SimulatedDecoder], None] | None = None,
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
        examine: Called with the circuit, probed, before it writes.

    Raises:
        CircuitError: A token differs from the integer model's, or took other cycles than predicted.
        InputError: As `continue_text`.
        ToolError: Verilator, or what it needs, is missing or failed.
    """
    model = chosen.plan.model
    with CheckedDecoder(Machine(chosen.plan), build_directory, examine is not None) as decoder:
        if examine is not None:
            examine(decoder)

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
