"""Two texts that a decoder circuit writes at once, each compared with the integer model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fixedpoint import QuantizedTransformer
from fixedpoint.generation import stream_batch
from hdl.errors import CircuitError
from model.generation.loop import prompt_tokens
from model.threads import one_blas_thread
from model.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from sim.simulators.decoder_process import Decoder

LINE = 76  # characters of a text in a line


class LabelledLines:
    """Prints two growing texts in lines that begin with the text's number.

    A line is printed when it is complete: at the text's own newline, or after `LINE` characters.

    Args:
        texts: What each begins with.
    """

    def __init__(self, texts: Sequence[str]):
        self._open = list(texts)

    def add(self, number: int, text: str) -> None:
        """Lengthen a text."""
        lines = (self._open[number] + text).split("\n")
        self._open[number] = lines.pop()
        for line in lines:
            self._print(number, line)
        while len(self._open[number]) > LINE:
            end = self._open[number].rfind(" ", 1, LINE + 1) + 1 or LINE
            self._print(number, self._open[number][:end])
            self._open[number] = self._open[number][end:]

    def finish(self) -> None:
        """Print what is left."""
        for number, line in enumerate(self._open):
            if line:
                self._print(number, line)

    def _print(self, number: int, line: str) -> None:
        print(f"{number + 1}: {line}", flush=True)


@one_blas_thread()
def write_texts(
    decoder: Decoder,
    model: QuantizedTransformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    num_tokens: int,
    on_text: Callable[[int, str], None],
    *,
    temperature: float = 0.0,
    seed: int = 0,
    context_length: int | None = None,
) -> list[str]:
    """Return the text that continues each prompt, written together.

    Args:
        decoder: A circuit of two sequences, simulated or on a board.
        model: What it computes.
        tokenizer: The model's.
        prompts: Beginning of each text.
        num_tokens: Tokens of each.
        on_text: Called with a text's number and each new piece of it.
        temperature: 0, or one that the circuit can sample at.
        seed: Of the first one's samples; the second one's is larger by one.
        context_length: The circuit's, if it is shorter than the model's.

    Raises:
        CircuitError: A token differs from the integer model's.
        InputError: A prompt cannot be encoded.
        ToolError: The circuit does not answer.
    """
    from sim.simulators.decoder_process import write_together

    begun = [prompt_tokens(tokenizer, prompt, model.vocab_size) for prompt in prompts]
    readers = [tokenizer.incremental_decoder(tokens[-1]) for tokens in begun]
    expected = [list(tokens) for tokens in begun]
    options: dict[str, Any] = {"temperature": temperature, "context_length": context_length}
    integers = [stream_batch(model, [tokens], seed=seed + number, **options) for number, tokens in enumerate(expected)]
    texts = [""] * len(prompts)

    def on_token(number: int, token: int) -> None:
        next(integers[number])
        place = len(expected[number]) - 1
        if token != expected[number][-1]:
            raise CircuitError(
                f"decoder: token {place} of text {number + 1} is {token}, the integer model's is {expected[number][-1]}"
            )
        piece = readers[number].decode([token], final=place + 1 == len(begun[number]) + num_tokens)
        texts[number] += piece
        on_text(number, piece)

    write_together(decoder, model, begun, num_tokens, seed=seed, on_token=on_token, **options)
    return texts


def pair_speed(name: str, written: int, cycles: Sequence[int], megahertz: float | None) -> str:
    """Return how fast two texts were written, from the cycles of each pair of tokens."""
    speed = (
        "" if megahertz is None else f", {written * megahertz * 1e6 / sum(cycles):,.0f} tokens/s at {megahertz:g} MHz"
    )
    return f"\n{written:,} tokens written in {len(cycles):,} steps of the {name}, {sum(cycles) / len(cycles):,.0f} cycles each{speed}"
