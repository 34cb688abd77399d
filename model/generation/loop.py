"""The generation loop of the float and of the integer model: context policy, batches, text.

It knows a model by its logits alone: a `Decoder` makes them, a `Choose` picks tokens from them.
What happens when the context is full, in every implementation and in hardware:
docs/model/generation.md.

Sizes: B sequences, t tokens in the context, T tokens at most, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..checks import checked_tokens, is_whole
from ..errors import InputError
from ..threads import one_blas_thread
from ..tokenizers.tokenizer import Tokenizer

# Tokens for some rows of logits (B', V), given the sequences' indices and their contexts.
Choose = Callable[[np.ndarray, list[int], list[list[int]]], list[int]]


class Decoder(Protocol):
    """A model that makes logits for sequences which all stand at the same position."""

    def prefill(self, tokens: np.ndarray, /) -> np.ndarray:
        """Begin a new context with tokens (B, t); return the logits (B, V) after the last."""

    def step(self, tokens: np.ndarray, /) -> np.ndarray:
        """Append tokens (B,) to the context and return the logits (B, V) after them."""


class UncachedDecoder:
    """A `Decoder` without a cache: it runs the whole context for every token.

    Args:
        forward: Returns the logits (B, t, V) of tokens (B, t).
    """

    def __init__(self, forward: Callable[[np.ndarray], np.ndarray]) -> None:
        self._forward = forward

    def prefill(self, tokens: np.ndarray, /) -> np.ndarray:
        """See `Decoder`."""
        self._context = tokens
        return self._forward(tokens)[:, -1]  # (B, t, V) -> (B, V)

    def step(self, tokens: np.ndarray, /) -> np.ndarray:
        """See `Decoder`."""
        # (B, t), (B, 1) -> (B, t + 1)
        return self.prefill(np.hstack([self._context, tokens[:, None]]))


def check_decoder(decoder: Any, model: object, batch: int) -> None:
    """Refuse a cached decoder of another model or for another number of sequences."""
    if decoder.model is not model or decoder.batch != batch:
        raise InputError(f"the decoder is of another model or for {decoder.batch} sequences, not {batch}")


def context_start(length: int, context_length: int) -> int:
    """Return the index of the first of `length` tokens that the next one depends on.

    The context grows until it holds `context_length` tokens. One more, and a new context begins
    with the last `context_length // 2` tokens, at least one; it grows in turn.
    """
    if length <= context_length:
        return 0
    kept = max(1, context_length // 2)
    return length - kept - (length - context_length - 1) % (context_length - kept + 1)


def stream(decoder: Decoder, choose: Choose, sequences: list[list[int]], context_length: int) -> Iterator[None]:
    """Lengthen token sequences in place, for ever; each `next` computes one position.

    All sequences stand at the same position. One whose prompt is longer takes its next token from
    there, so nothing is padded, and nothing is chosen for it.
    """
    position, start = min(map(len, sequences)), -1
    while True:
        first = context_start(position, context_length)
        # tokens (B,), or (B, t) at the beginning of a context -> logits (B, V)
        if first == start:
            logits = decoder.step(np.array([sequence[position - 1] for sequence in sequences]))
        else:
            logits = decoder.prefill(np.array([sequence[first:position] for sequence in sequences]))
            start = first
        growing = [index for index, sequence in enumerate(sequences) if len(sequence) == position]
        rows = logits if len(growing) == len(sequences) else logits[growing]  # (B', V)
        chosen = choose(rows, growing, [sequences[index][first:] for index in growing])
        for index, token in zip(growing, chosen, strict=True):
            sequences[index].append(token)
        position += 1
        yield


@one_blas_thread()
def continue_prompts(
    prompts: Sequence[Sequence[int] | np.ndarray],
    num_tokens: int,
    vocab_size: int,
    open_stream: Callable[[list[list[int]]], Iterator[None]],
) -> list[list[int]]:
    """Return `num_tokens` tokens for each of several prompts, made together.

    Args:
        prompts: At least one, each of at least one token, of any length.
        num_tokens: How many for each.
        vocab_size: V.
        open_stream: Begins a `stream` of sequences.

    Raises:
        InputError: No prompt, an empty one, a token outside the vocabulary, a negative number.
    """
    if not prompts:
        raise InputError("there is no prompt; generation needs at least one")
    _check_count(num_tokens)
    sequences = [_checked_prompt(prompt, vocab_size) for prompt in prompts]
    lengths = [len(sequence) for sequence in sequences]
    positions = open_stream(sequences)
    for _ in range(max(lengths) - min(lengths) + num_tokens if num_tokens else 0):
        next(positions)
    return [sequence[length : length + num_tokens] for sequence, length in zip(sequences, lengths, strict=True)]


@one_blas_thread()
def continue_text(
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int,
    vocab_size: int,
    open_stream: Callable[[list[list[int]]], Iterator[None]],
    stop: Sequence[str] = (),
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Return the text that continues a prompt.

    Args:
        tokenizer: The model's.
        prompt: Beginning of the text; if it is empty, the tokenizer's `beginning` stands before it.
        num_tokens: At most so many tokens.
        vocab_size: V of the model.
        open_stream: Begins a `stream` of sequences.
        stop: Generation ends before the first of these texts, which is not returned.
        on_text: Called with each new piece of text as soon as it cannot become part of a stop text
            or of a longer character.

    Raises:
        InputError: The prompt cannot be encoded, the tokenizer is another model's, an empty stop
            text, or a negative number of tokens.
    """
    sequence = prompt_tokens(tokenizer, prompt, vocab_size)
    if any(not text for text in stop):
        raise InputError("a stop text must not be empty")
    _check_count(num_tokens)
    positions = open_stream([sequence])
    held_back = max((len(text) - 1 for text in stop), default=0)  # may begin a stop text
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


def prompt_tokens(tokenizer: Tokenizer, prompt: str, vocab_size: int) -> list[int]:
    """Return a prompt's tokens; if it is empty, the tokenizer's `beginning`.

    Raises:
        InputError: It cannot be encoded, or the tokenizer is another model's.
    """
    if tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}; they do not belong together"
        )
    return _checked_prompt(tokenizer.encode(prompt) or [tokenizer.beginning()], vocab_size)


def _check_count(num_tokens: int) -> None:
    if not is_whole(num_tokens) or num_tokens < 0:
        raise InputError(f"the number of tokens must be 0 or more, not {num_tokens!r}")


def _checked_prompt(prompt: Sequence[int] | np.ndarray, vocab_size: int) -> list[int]:
    tokens = checked_tokens(prompt, vocab_size, "prompt token")
    if not tokens:
        raise InputError("the prompt is empty; generation needs at least one token to begin with")
    return tokens
