"""Token arrays: storage as memory-mapped files, windows for evaluation, random batches for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .errors import InputError
from .files import atomic_write


def as_token_array(tokens: list[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Return tokens (n,) as the smallest of uint16 and uint32 that holds the vocabulary."""
    return np.asarray(tokens, dtype=np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def split_tokens(tokens: np.ndarray, validation_split: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut tokens (n,) into a training part and the held-out part at the end.

    Raises:
        InputError: A part is too short for one window of `length` tokens and its targets.
    """
    boundary = int(len(tokens) * (1 - validation_split))
    training, validation = tokens[:boundary], tokens[boundary:]
    shorter = min(len(training), len(validation))
    if shorter <= length:
        wanted = int(np.ceil((length + 1) / min(validation_split, 1 - validation_split))) + 1
        raise InputError(
            f"the text has {len(tokens):,} tokens, too few for a context of {length}: its held-out part "
            f"({validation_split:.0%}) alone must be longer than the context; use a text of at least {wanted:,} tokens, "
            "or a shorter max_seq_len"
        )
    return training, validation


def windows(tokens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut tokens (n,) into non-overlapping windows; a short last one is dropped.

    Returns:
        Inputs and targets, each (N, T) with N = (n − 1) // T; the target of a token is the one after it.

    Raises:
        InputError: There is not one whole window.
    """
    tokens = np.asarray(tokens)
    count = (len(tokens) - 1) // length
    if tokens.ndim != 1 or count < 1:
        raise InputError(f"{tokens.size:,} tokens do not fill one window of {length} tokens and its targets")
    inputs = tokens[: count * length].reshape(count, length)
    return inputs, tokens[1 : count * length + 1].reshape(count, length)


def random_batch(
    tokens: np.ndarray, batch_size: int, length: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and targets (B, T) of a training step: windows that start anywhere, drawn from (seed, step) alone.

    A resumed run therefore sees the batches of one that was never stopped, and worker processes agree without a word.
    """
    generator = np.random.default_rng((seed, step))
    starts = generator.integers(0, len(tokens) - length, size=batch_size)
    places = starts[:, None] + np.arange(length + 1)
    batch = tokens[places].astype(np.intp)
    return batch[:, :-1], batch[:, 1:]


def save_tokens(path: str | Path, tokens: np.ndarray) -> None:
    """Write a token array as a .npy file."""
    with atomic_write(path, "wb") as file:
        np.save(file, tokens, allow_pickle=False)


def load_tokens(path: str | Path, vocab_size: int | None = None) -> np.ndarray:
    """Open a token array of `save_tokens` without reading it into memory.

    Raises:
        InputError: The file is missing, damaged, or holds tokens outside the vocabulary.
    """
    try:
        tokens = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; train the run again") from None
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{path} is not a whole .npy file of tokens ({error}); train the run again") from None
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 1 or tokens.dtype not in (np.uint16, np.uint32):
        raise InputError(f"{path} does not hold a vector of uint16 or uint32 tokens; train the run again")
    if vocab_size is not None and len(tokens) and int(tokens.max()) >= vocab_size:
        raise InputError(
            f"{path} holds token {int(tokens.max())}, outside the vocabulary of {vocab_size}; it belongs to another model"
        )
    return tokens
