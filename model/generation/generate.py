"""Generation with the float model: its decoder and its random numbers in the loop of `loop.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..checks import is_whole
from ..errors import InputError
from ..tokenizers.tokenizer import Tokenizer
from ..transformer import Transformer
from .cached_decoder import CachedDecoder
from .loop import UncachedDecoder, check_decoder, continue_prompts, continue_text, stream
from .sampling import Sampling


def generate(
    model: Transformer,
    prompt_tokens: Sequence[int] | np.ndarray,
    num_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    use_cache: bool = True,
) -> list[int]:
    """Return `num_tokens` tokens that continue a prompt.

    Args:
        model: The model.
        prompt_tokens: At least one token.
        num_tokens: How many to make.
        temperature: See `Sampling`, as for the next three.
        top_k: Only the k most likely.
        top_p: Only the most likely that make up this probability.
        repetition_penalty: Against tokens that were there before.
        seed: The same seed gives the same tokens.
        use_cache: False computes each token from the whole context; slow, the same result.

    Raises:
        InputError: An empty prompt, a token outside the vocabulary, or an impossible option.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    return generate_batch(model, [prompt_tokens], num_tokens, sampling=sampling, seed=seed, use_cache=use_cache)[0]


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int] | np.ndarray],
    num_tokens: int,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    use_cache: bool = True,
    decoder: CachedDecoder | None = None,
) -> list[list[int]]:
    """Return `num_tokens` tokens for each of several prompts, computed together.

    Sequence i draws its random numbers from (seed, i), so its tokens do not depend on the others.

    Args:
        model: The model.
        prompts: At least one, each of at least one token.
        num_tokens: How many to make for each.
        sampling: How tokens are chosen; None for `Sampling()`.
        seed: The same seed gives the same tokens.
        use_cache: False computes each token from the whole context; slow, the same result.
        decoder: A decoder of this model for as many sequences, to rearrange the weights once for
            many calls.

    Raises:
        InputError: No prompt, an empty one, a token outside the vocabulary, or another decoder.
    """

    def open_stream(sequences: list[list[int]]) -> Iterator[None]:
        return stream_batch(model, sequences, sampling or Sampling(), seed, use_cache, decoder)

    return continue_prompts(prompts, num_tokens, model.config.vocab_size, open_stream)


def stream_batch(
    model: Transformer,
    sequences: list[list[int]],
    sampling: Sampling,
    seed: int,
    use_cache: bool = True,
    decoder: CachedDecoder | None = None,
) -> Iterator[None]:
    """Lengthen token sequences in place; see `loop.stream` and `generate_batch`."""
    if not is_whole(seed) or seed < 0:
        raise InputError(f"a seed must be a whole number of at least 0, not {seed!r}")
    generators = [np.random.default_rng((seed, index)) for index in range(len(sequences))]
    if decoder is not None:
        check_decoder(decoder, model, len(sequences))

    def choose(logits: np.ndarray, rows: list[int], contexts: list[list[int]]) -> list[int]:
        random = np.array([generators[row].random() for row in rows])
        return sampling.choose_rows(logits, random, contexts)

    used = (decoder or CachedDecoder(model, len(sequences))) if use_cache else UncachedDecoder(model.forward)
    return stream(used, choose, sequences, model.config.max_seq_len)


def generate_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int = 200,
    *,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Return the text that continues a prompt.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompt: Beginning of the text, as for `continue_text`, as the next one.
        num_tokens: At most so many tokens.
        temperature: See `Sampling`, as for the next three.
        top_k: Only the k most likely.
        top_p: Only the most likely that make up this probability.
        repetition_penalty: Against tokens that were there before.
        seed: The same seed gives the same text.
        stop: See `continue_text`, as for the next one.
        on_text: Called with each new piece of text.

    Raises:
        InputError: As `continue_text`, or an option is impossible.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)

    def open_stream(sequences: list[list[int]]) -> Iterator[None]:
        return stream_batch(model, sequences, sampling, seed)

    return continue_text(tokenizer, prompt, num_tokens, model.config.vocab_size, open_stream, stop, on_text)
