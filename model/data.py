"""Token arrays: memory-mapped files, windows for evaluation, random batches for training."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .errors import InputError
from .files import atomic_write
from .tokenizers.tokenizer import Tokenizer

# A place where a text can be cut without changing its tokens: a single line end between two
# characters that are not white space.
CUT = re.compile(r"(?<=\S\n)(?=\S)")
PART_LENGTH = 1 << 20


def encode_texts(
    tokenizer: Tokenizer, texts: Iterable[str], directory: str | Path | None = None, progress: bool = False
) -> np.ndarray:
    """Return the tokens of all texts (n,) as a memory map, uint16 where that suffices or uint32.

    Texts are encoded a part at a time and go to an unnamed temporary file, so that a corpus larger
    than the memory is no trouble when `texts` yields it piece by piece.

    Args:
        tokenizer: Trained.
        texts: Any number of texts.
        directory: Where the temporary file is to be; None for the system's place.
        progress: Show on a terminal how many characters are done.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    with tempfile.TemporaryFile(dir=directory) as file:
        with tqdm(
            desc="encoding", unit="character", unit_scale=True, leave=False, disable=None if progress else True
        ) as bar:
            for text in texts:
                whole = not tokenizer.can_be_cut
                for part in [text] if whole else text_parts(text, special_tokens=tokenizer.special_tokens):
                    np.asarray(tokenizer.encode(part), dtype=dtype).tofile(file)
                    bar.update(len(part))
        file.flush()
        size = file.tell() // dtype.itemsize
        return np.memmap(file, dtype, mode="r", shape=(size,)) if size else np.empty(0, dtype)


def text_parts(text: str, length: int = PART_LENGTH, special_tokens: Sequence[str] = ()) -> Iterator[str]:
    """Cut a text into parts of about this length whose tokens, concatenated, are the whole text's.

    Args:
        text: The text.
        length: Characters that a part has at least, but for the last one.
        special_tokens: Texts that are one token each, and never cut.
    """
    start = 0
    while (cut := _cut(text, start + length, special_tokens)) is not None:
        yield text[start:cut]
        start = cut
    yield text[start:]


def _cut(text: str, earliest: int, special_tokens: Sequence[str]) -> int | None:
    """Return the first place from `earliest` on where a text can be cut."""
    while (found := CUT.search(text, earliest)) is not None:
        place = found.start()
        if not any(token in text[max(0, place - len(token) + 1) : place + len(token) - 1] for token in special_tokens):
            return place
        earliest = place + 1
    return None


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

    Tokens (N, T + 1) are texts of their own: each is a window and its last target.

    Returns:
        Inputs and targets, each (N, T) with N = (n − 1) // T; the target of a token is the one
            after it.

    Raises:
        InputError: There is not one whole window.
    """
    tokens = np.asarray(tokens)
    count = count_windows(tokens, length)
    if tokens.ndim == 2 and tokens.shape[1] == length + 1:
        return tokens[:, :-1], tokens[:, 1:]  # (N, T + 1) -> (N, T)
    if tokens.ndim != 1 or count < 1:
        raise InputError(f"{tokens.size:,} tokens do not fill one window of {length} tokens and its targets")
    inputs = tokens[: count * length].reshape(count, length)  # (N·T,) -> (N, T)
    return inputs, tokens[1 : count * length + 1].reshape(count, length)  # (N·T,) -> (N, T)


def count_windows(tokens: np.ndarray, length: int) -> int:
    """Return how many windows `windows` cuts."""
    return len(tokens) if tokens.ndim == 2 else (len(tokens) - 1) // length


def random_batch(
    tokens: np.ndarray, batch_size: int, length: int, seed: int, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets (B, T) of a training step: windows drawn from (seed, step) alone.

    A resumed run therefore sees the same batches, and worker processes need not exchange them.
    """
    generator = np.random.default_rng((seed, step))
    starts = generator.integers(0, len(tokens) - length, size=batch_size)
    places = starts[:, None] + np.arange(length + 1)  # (B, 1) + (T + 1,) -> (B, T + 1)
    batch = tokens[places].astype(np.intp)  # (n,) -> (B, T + 1)
    return batch[:, :-1], batch[:, 1:]  # (B, T + 1) -> (B, T)


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
    if not isinstance(tokens, np.ndarray) or tokens.ndim > 2 or tokens.dtype not in (np.uint16, np.uint32):
        raise InputError(f"{path} does not hold a vector of uint16 or uint32 tokens; train the run again")
    if vocab_size is not None and len(tokens) and int(tokens.max()) >= vocab_size:
        raise InputError(
            f"{path} holds token {int(tokens.max())}, outside the vocabulary of {vocab_size}; it belongs to another model"
        )
    return tokens
