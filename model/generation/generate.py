"""Generating text, with keys and values cached so that each new token costs one row of work instead
of the whole context.

When the context is full, its older half is forgotten: the cache is rebuilt from the last
max_seq_len / 2 tokens and grows again. The next token then depends on between half and all of the
context, at an amortised cost of one row; learned positions make it impossible to move a cached key.
`generate(..., use_cache=False)` recomputes everything for each token, by the same rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..checks import checked_tokens, is_whole
from ..errors import InputError
from ..tokenizers.tokenizer import Tokenizer
from ..transformer import Transformer
from .decoder import CachedDecoder
from .sampling import Sampling


def context_start(length: int, max_seq_len: int) -> int:
    """Return the index of the first of `length` tokens that the next one depends on."""
    if length <= max_seq_len:
        return 0
    half = max(1, max_seq_len // 2)
    # so many tokens fit after a rebuild, until the cache is full again
    step = max_seq_len - half + 1
    return length - half - (length - max_seq_len - 1) % step


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
        InputError: No prompt, an empty one, or a token outside the vocabulary.
    """
    if not prompts:
        raise InputError("there is no prompt; generation needs at least one")
    if decoder is not None and (decoder.model is not model or decoder.batch != len(prompts)):
        raise InputError(f"the decoder is of another model or for {decoder.batch} sequences, not {len(prompts)}")
    sequences = [_check_prompt(prompt, model) for prompt in prompts]
    if not is_whole(num_tokens) or num_tokens < 0:
        raise InputError(f"the number of tokens must be 0 or more, not {num_tokens!r}")
    lengths = [len(sequence) for sequence in sequences]
    iterators = stream_batch(model, sequences, sampling or Sampling(), seed, use_cache, decoder)
    for _ in range(max(lengths) - min(lengths) + num_tokens if num_tokens else 0):
        next(iterators)
    return [sequence[length : length + num_tokens] for sequence, length in zip(sequences, lengths, strict=True)]


def stream_batch(
    model: Transformer,
    sequences: list[list[int]],
    sampling: Sampling,
    seed: int,
    use_cache: bool = True,
    decoder: CachedDecoder | None = None,
) -> Iterator[None]:
    """Lengthen token sequences in place, for ever; each `next` works out one position.

    Prompts may differ in length. All sequences stand at the same position; one whose prompt reaches
    further takes its next token from the prompt instead of sampling it, so nothing is padded.
    """
    if not is_whole(seed) or seed < 0:
        raise InputError(f"a seed must be a whole number of at least 0, not {seed!r}")
    generators = [np.random.default_rng((seed, index)) for index in range(len(sequences))]
    limit = model.config.max_seq_len
    if not use_cache:
        decoder = None
    elif decoder is None:
        decoder = CachedDecoder(model, len(sequences))
    position = min(map(len, sequences))  # tokens before it are known in all sequences
    start = -1
    while True:
        first = context_start(position, limit)
        if decoder is None or first != start:
            context = np.array([sequence[first:position] for sequence in sequences])
            logits = model.forward(context)[:, -1] if decoder is None else decoder.prefill(context)
            start = first
        else:
            logits = decoder.step(np.array([sequence[position - 1] for sequence in sequences]))
        open_rows = [index for index, sequence in enumerate(sequences) if len(sequence) == position]
        random = np.array([generators[index].random() for index in open_rows])
        contexts = [sequences[index][first:] for index in open_rows]
        rows = logits if len(open_rows) == len(sequences) else logits[open_rows]
        for index, token in zip(open_rows, sampling.choose_rows(rows, random, contexts), strict=True):
            sequences[index].append(token)
        position += 1
        yield


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
        prompt: Beginning of the text; if it is empty, the tokenizer's `beginning` stands before it.
        num_tokens: At most so many tokens.
        temperature: See `Sampling`, as for the next three.
        top_k: Only the k most likely.
        top_p: Only the most likely that make up this probability.
        repetition_penalty: Against tokens that were there before.
        seed: The same seed gives the same text.
        stop: Generation ends before the first of these texts, which is not returned.
        on_text: Called with each new piece of text as soon as it cannot become part of a stop text
            or of a longer character.

    Raises:
        InputError: The prompt cannot be encoded, the tokenizer is another model's, or an option is
            impossible.
    """
    if tokenizer.vocab_size > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}; they do not belong together"
        )
    if any(not text for text in stop):
        raise InputError("a stop text must not be empty")
    if not is_whole(num_tokens) or num_tokens < 0:
        raise InputError(f"the number of tokens must be 0 or more, not {num_tokens!r}")
    sequence = _check_prompt(tokenizer.encode(prompt) or [tokenizer.beginning()], model)
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    positions = stream_batch(model, [sequence], sampling, seed)
    # could be the beginning of a stop text
    held_back = max((len(text) - 1 for text in stop), default=0)
    decoder = tokenizer.incremental_decoder(sequence[-1])
    text, shown = "", 0
    for remaining in range(num_tokens - 1, -1, -1):
        next(positions)
        text += decoder.decode(sequence[-1:], final=remaining == 0)
        found = [place for place in map(text.find, stop) if place >= 0]
        if found:
            text = text[: min(found)]
            break
        if on_text is not None and len(text) - held_back > shown:
            on_text(text[shown : len(text) - held_back])
            shown = len(text) - held_back
    if on_text is not None and len(text) > shown:
        on_text(text[shown:])
    return text


def _check_prompt(prompt: Sequence[int] | np.ndarray, model: Transformer) -> list[int]:
    tokens = checked_tokens(prompt, model.config.vocab_size, "prompt token")
    if not tokens:
        raise InputError("the prompt is empty; generation needs at least one token to begin with")
    return tokens
