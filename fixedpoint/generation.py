"""Generation in integers: the float model's loop with the integer decoder and its random numbers.

The specification's operators, fast evaluation with its cache and the C program make the same
tokens. Sequence i has the generator `XorShift32` in state `mix(seed, i)`, and takes one number for
each token that it samples, none for a token of its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from model.generation.loop import UncachedDecoder, check_decoder, continue_prompts, continue_text, stream
from model.tokenizers.tokenizer import Tokenizer

from .arithmetic import Integers
from .fast.transformer import FastDecoder
from .operators.sampling import Sampler, XorShift32
from .transformer import QuantizedTransformer


def generate_batch(
    quantized: QuantizedTransformer,
    prompts: Sequence[Sequence[int] | Integers],
    num_tokens: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    use_cache: bool = True,
    decoder: FastDecoder | None = None,
) -> list[list[int]]:
    """Return `num_tokens` tokens for each of several prompts, computed together.

    Args:
        quantized: The model.
        prompts: At least one, each of at least one token, of any length.
        num_tokens: How many to make for each.
        temperature: 0 takes the likeliest token; see `Sampler`.
        seed: 0 to 2**32 − 1; the same seed gives the same tokens.
        use_cache: False runs the specification's operators over the whole context for each token;
            slow, the same result.
        decoder: A decoder of this model for as many sequences, to prepare the weights once for many
            calls.

    Raises:
        InputError: No prompt, an empty one, a token outside the vocabulary, an impossible number of
            tokens, or another decoder.
        QuantizationError: An impossible temperature or seed.
    """

    def open_stream(sequences: list[list[int]]) -> Iterator[None]:
        return stream_batch(
            quantized, sequences, temperature=temperature, seed=seed, use_cache=use_cache, decoder=decoder
        )

    return continue_prompts(prompts, num_tokens, quantized.vocab_size, open_stream)


def stream_batch(
    quantized: QuantizedTransformer,
    sequences: list[list[int]],
    *,
    temperature: float,
    seed: int,
    use_cache: bool = True,
    decoder: FastDecoder | None = None,
    context_length: int | None = None,
) -> Iterator[None]:
    """Lengthen token sequences in place; see `generate_batch`, and `stream` of the loop.

    With `context_length` the context is full sooner than the model's.
    """
    sampler = Sampler(quantized.logits.output, temperature)
    generators = XorShift32.from_seed(seed, len(sequences))
    if decoder is not None:
        check_decoder(decoder, quantized, len(sequences))

    def choose(logits: np.ndarray, rows: list[int], contexts: list[list[int]]) -> list[int]:
        active = np.isin(np.arange(len(sequences)), rows) if len(rows) < len(sequences) else None
        return sampler.choose(logits.astype(np.int64, copy=False), generators.next(active)[rows]).tolist()

    used = (decoder or FastDecoder(quantized, len(sequences))) if use_cache else UncachedDecoder(quantized.forward)
    return stream(used, choose, sequences, context_length or quantized.context_length)


def generate_text(
    quantized: QuantizedTransformer,
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int = 200,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Return the text that continues a prompt.

    Args:
        quantized: The model.
        tokenizer: Its tokenizer.
        prompt: Beginning of the text, as for `continue_text`.
        num_tokens: At most so many tokens.
        temperature: See `generate_batch`.
        seed: See `generate_batch`.
        stop: See `continue_text`, as for the next one.
        on_text: Called with each new piece of text.

    Raises:
        InputError: As `continue_text`.
        QuantizationError: An impossible temperature or seed.
    """

    def open_stream(sequences: list[list[int]]) -> Iterator[None]:
        return stream_batch(quantized, sequences, temperature=temperature, seed=seed)

    return continue_text(tokenizer, prompt, num_tokens, quantized.vocab_size, open_stream, stop, on_text)
