r"""Generating text in integers: the same tokens from the specification's operators, from fast
evaluation with its cache, and from the C program.

The rule of the context, as in the float model's generation: the context grows until it holds
`context_length` tokens. When it is full, its older half is forgotten; the cache is rebuilt from the
last `context_length // 2` tokens (at least one), and grows again. The next token depends on no more
than the context, so each sequence's tokens depend on its own prompt, the seed and its index alone.

The rule of random numbers: sequence i has the generator `XorShift32` in state `mix(seed, i)`, and
takes one number for each token that it samples, none for a token of its prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from .arithmetic import Integers
from .checks import checked_tokens, is_whole
from .errors import QuantizationError
from .fast.layers import Floats
from .fast.transformer import FastDecoder
from .operators.sampling import RandomArray, Sampler, XorShift32
from .qformat import IntegerArray
from .transformer import QuantizedTransformer


class TokenDecoder(Protocol):
    """Makes text of tokens that come one after the other."""

    def decode(self, tokens: list[int], /, final: bool = False) -> str:
        """Return the characters that the tokens complete; with `final`, U+FFFD for one that they do
        not.
        """


class Tokenizer(Protocol):
    """What `generate_text` needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def encode(self, text: str, /) -> list[int]:
        """Return the tokens of a text."""

    def beginning(self) -> int:
        """Return the token before a text without a prompt."""

    def incremental_decoder(self, previous: int, /) -> TokenDecoder:
        """Return a decoder for tokens that come one after the other, the first after `previous`."""


def context_start(length: int, context_length: int) -> int:
    """Return the index of the first of `length` tokens that the next one depends on."""
    if length <= context_length:
        return 0
    kept = max(1, context_length // 2)
    return length - kept - (length - context_length - 1) % (context_length - kept + 1)


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
        QuantizationError: No prompt, an empty one, a token outside the vocabulary, or an impossible
            number of tokens, temperature or seed.
    """
    if not prompts:
        raise QuantizationError("there is no prompt; generation needs at least one")
    if not is_whole(num_tokens) or num_tokens < 0:
        raise QuantizationError(f"the number of tokens must be 0 or more, not {num_tokens!r}")
    sequences = [_checked(prompt, quantized) for prompt in prompts]
    lengths = [len(sequence) for sequence in sequences]
    steps = stream_batch(quantized, sequences, temperature=temperature, seed=seed, use_cache=use_cache, decoder=decoder)
    for _ in range(max(lengths) - min(lengths) + num_tokens if num_tokens else 0):
        next(steps)
    return [sequence[length : length + num_tokens] for sequence, length in zip(sequences, lengths, strict=True)]


def stream_batch(
    quantized: QuantizedTransformer,
    sequences: list[list[int]],
    *,
    temperature: float,
    seed: int,
    use_cache: bool = True,
    decoder: FastDecoder | None = None,
) -> Iterator[None]:
    """Lengthen token sequences in place, for ever; each `next` works out one position.

    All sequences stand at the same position; one whose prompt reaches further takes its next token
    from there. The arguments are those of `generate_batch`.
    """
    sampler = Sampler(quantized.logits.output, temperature)
    generators = XorShift32.from_seed(seed, len(sequences))
    if decoder is not None and (decoder.model is not quantized or decoder.batch != len(sequences)):
        raise QuantizationError(
            f"the decoder is of another model or for {decoder.batch} sequences, not {len(sequences)}"
        )
    if use_cache and decoder is None:
        decoder = FastDecoder(quantized, len(sequences))
    choose = _TableSampler(sampler).choose if use_cache and temperature else _most_likely
    position, start = min(map(len, sequences)), -1
    while True:
        first = context_start(position, quantized.context_length)
        growing = [len(sequence) == position for sequence in sequences]
        random = generators.next(None if all(growing) else np.array(growing))
        if not use_cache or decoder is None:
            context = np.array([sequence[first:position] for sequence in sequences])
            tokens = sampler.choose(quantized.forward(context)[:, -1], random)
        elif first == start:
            tokens = choose(decoder.step([sequence[position - 1] for sequence in sequences]), random)
        else:
            tokens = choose(decoder.prefill([sequence[first:position] for sequence in sequences]), random)
            start = first
        for sequence, token, grows in zip(sequences, tokens.tolist(), growing, strict=True):
            if grows:
                sequence.append(token)
        position += 1
        yield


def _most_likely(logits: Floats, random: RandomArray) -> IntegerArray:
    return logits.argmax(axis=-1)


class _TableSampler:
    """A `Sampler` whose numerators are one table over all distances that logits can have."""

    def __init__(self, sampler: Sampler) -> None:
        lowest, highest = sampler.logits.minimum_integer, sampler.logits.maximum_integer
        self.numerators = sampler.numerators(np.arange(highest, lowest - 1, -1))

    def choose(self, logits: Floats, random: RandomArray) -> IntegerArray:
        """Return the token of each row of logits (B, V) for random numbers (B,)."""
        distance = logits.max(axis=-1, keepdims=True) - logits
        cumulative = self.numerators.take(distance.astype(np.int64)).cumsum(axis=-1)
        threshold = (random.astype(np.uint64) * cumulative[:, -1].astype(np.uint64)) >> np.uint64(32)
        return (cumulative <= threshold.astype(np.int64)[:, None]).sum(axis=-1, dtype=np.int64)


def generate_text(
    quantized: QuantizedTransformer,
    tokenizer: Tokenizer,
    prompt: str,
    num_tokens: int = 200,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Return the text that continues a prompt.

    Args:
        quantized: The model.
        tokenizer: Its tokenizer.
        prompt: Beginning of the text; if it is empty, the tokenizer's `beginning` stands before it.
        num_tokens: How many tokens.
        temperature: See `generate_batch`.
        seed: See `generate_batch`.
        on_text: Called with each piece of text as soon as its characters are complete.

    Raises:
        QuantizationError: The tokenizer is another model's, or as for `generate_batch`. What the
            tokenizer cannot encode, it refuses itself.
    """
    if tokenizer.vocab_size > quantized.vocab_size:
        raise QuantizationError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {quantized.vocab_size}; they do not belong together"
        )
    if not is_whole(num_tokens) or num_tokens < 0:
        raise QuantizationError(f"the number of tokens must be 0 or more, not {num_tokens!r}")
    sequence = _checked(tokenizer.encode(prompt) or [tokenizer.beginning()], quantized)
    steps = stream_batch(quantized, [sequence], temperature=temperature, seed=seed)
    decoder = tokenizer.incremental_decoder(sequence[-1])
    pieces: list[str] = []
    for remaining in range(num_tokens - 1, -1, -1):
        next(steps)
        piece = decoder.decode(sequence[-1:], final=remaining == 0)
        pieces.append(piece)
        if piece and on_text is not None:
            on_text(piece)
    return "".join(pieces)


def _checked(prompt: Sequence[int] | Integers, quantized: QuantizedTransformer) -> list[int]:
    tokens = checked_tokens(prompt, quantized.vocab_size, "prompt token")
    if not tokens:
        raise QuantizationError("the prompt is empty; generation needs at least one token to begin with")
    return tokens
