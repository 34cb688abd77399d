"""Comparison of an accelerator at a serial port, real or simulated, with the golden model."""

import time

import numpy as np
from tqdm import tqdm

from fixedpoint import Attention

from ..errors import ToolError
from .link import Host, Identity


def random_tokens(parameters: Attention, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return int8 tokens (count, C) and booleans (count,) that say which start a sequence.

    Sequences have all lengths up to the whole context; some end by themselves, at the context's
    end.
    """
    generator = np.random.default_rng(seed)
    tokens = generator.integers(-128, 128, (count, parameters.embed_dim), dtype=np.int8)
    restart = generator.random(count) < 1 / (1 + parameters.context_length)
    restart[:1] = True
    return tokens, restart


def exercise(host: Host, parameters: Attention, vectors: int, seed: int) -> dict:
    """Compare a connected accelerator with the golden model on random tokens.

    Raises:
        ToolError: It is another model, it fell silent, or a value differs.
    """
    if vectors < 1:
        raise ToolError(f"at least one vector must be sent, not {vectors}")
    host.connect(Identity.of(parameters))
    tokens, restart = random_tokens(parameters, vectors, seed)
    expected = parameters.compute_stream(tokens.astype(np.int64), restart)
    start = time.perf_counter()
    for index in tqdm(range(vectors), unit="token", disable=None):
        result = host.send(tokens[index], bool(restart[index]))
        wrong = np.flatnonzero(result != expected[index])
        if wrong.size:
            element = wrong[0]
            raise ToolError(
                f"token {index}, element {element}: the board says {result[element]}, the golden model {expected[index, element]} "
                f"({wrong.size} of {result.size} elements differ)"
            )
    seconds = time.perf_counter() - start
    return {
        "vectors": vectors,
        "values": int(expected.size),
        "seed": seed,
        "seconds": seconds,
        "tokens_per_second": vectors / seconds,
        "repeated_requests": host.repeated,
        "recovered_sequences": host.recovered,
    }
