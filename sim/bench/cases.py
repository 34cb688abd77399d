"""The benches of a run: every core with the weights of its model, fed with what its text makes of
them.
"""

from collections.abc import Collection, Sequence

import numpy as np

import fixedpoint
from fixedpoint import QuantizedTransformer
from hdl import CircuitError
from hdl.cores.layer_norm import LayerNorm
from hdl.cores.matrix_vector import MatrixVector
from hdl.cores.rms_norm import RMSNorm
from hdl.cores.softmax import Softmax
from hdl.decoder.attention import Attention

from ..names import CIRCUITS
from .bench import StreamBench
from .payload import pack_all

MATRIX_LANES = 64


def benches_for_run(
    quantized: QuantizedTransformer,
    tokens: np.ndarray,
    *,
    num_vectors: int,
    seed: int,
    layer: int = 0,
    only: Collection[str] = (),
) -> list[StreamBench]:
    """Return a bench for each core: matrix-vector product, softmax, LayerNorm and the attention
    accelerator.

    Args:
        quantized: The model; the cores take the weights and formats of one of its blocks.
        tokens: Text (n,) that the vectors are made from, at least one context long; windows of it
            are drawn at random.
        num_vectors: Input vectors of each core (rows of scores for softmax).
        seed: Of the windows drawn, and of the rows of scores.
        layer: The block.
        only: Names of `CIRCUITS`; empty for all.

    Raises:
        CircuitError: The text is too short, there is no such block or circuit, or a core cannot be
            built for it.
    """
    unknown = [name for name in only if name not in CIRCUITS]
    if unknown:
        raise CircuitError(f"there is no circuit {unknown[0]!r} to simulate; there are {', '.join(CIRCUITS)}")
    if not 0 <= layer < len(quantized.blocks):
        raise CircuitError(f"there is no layer {layer}; the model has layers 0 to {len(quantized.blocks) - 1}")
    block, generator = quantized.blocks[layer], np.random.default_rng(seed)
    seen = activations(quantized, windows(tokens, quantized.context_length, num_vectors, generator))
    previous = "embedding" if layer == 0 else f"blocks.{layer - 1}.feed_forward_residual"
    residual, normed = seen[previous], seen[f"blocks.{layer}.attention_norm"]
    hidden = flat(seen[f"blocks.{layer}.feed_forward_norm"])[:num_vectors]
    # The rows of scores are drawn whether softmax is wanted or not: the same seed gives the same
    # rows.
    rows = score_rows(block.attention, normed, num_vectors, generator)
    makers = {
        "matrix-vector": lambda: matrix_bench(block.up, hidden),
        "softmax": lambda: softmax_bench(block.attention.softmax, rows),
        "layer-norm": lambda: norm_bench(block.attention_norm, flat(residual)[:num_vectors]),
        "attention": lambda: attention_bench(block.attention, normed, num_vectors),
    }
    return [makers[name]() for name in CIRCUITS if not only or name in only]


def windows(tokens: np.ndarray, length: int, num_vectors: int, generator: np.random.Generator) -> np.ndarray:
    """Return windows (B, T) that start anywhere in a text, at least `num_vectors` tokens in all."""
    if len(tokens) < length:
        raise CircuitError(f"the text has {len(tokens)} tokens; a bench needs one context of {length}")
    starts = generator.integers(0, len(tokens) - length + 1, -(-num_vectors // length))
    return np.asarray(tokens)[starts[:, None] + np.arange(length)].astype(np.int64)


def activations(quantized: QuantizedTransformer, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return every tensor of a forward pass over windows (B, T), by the float model's names."""
    seen: dict[str, np.ndarray] = {}
    quantized.forward(inputs, observe=lambda name, values: seen.update({name: values}))
    return seen


def flat(values: np.ndarray) -> np.ndarray:
    """Return (B, T, C) as (B·T, C)."""
    return values.reshape(-1, values.shape[-1])


def pack_rows(port, field: str, rows: Sequence[np.ndarray]) -> list[int]:
    """Return the raw words of rows for a stream of {field, last}."""
    last = np.concatenate([np.arange(len(row)) == len(row) - 1 for row in rows])
    return pack_all(port.payload.shape(), {field: np.concatenate(rows), "last": last.astype(np.int64)})


def matrix_bench(linear, vectors: np.ndarray) -> StreamBench:
    """Return the bench of a linear layer."""
    core = MatrixVector(linear, min(MATRIX_LANES, linear.columns))
    return StreamBench(
        "matrix-vector",
        core,
        {"i": pack_rows(core.i, "data", vectors)},
        {"o": pack_rows(core.o, "data", linear.compute(vectors))},
        expected_cycles=core.cycles(len(vectors)),
    )


def score_rows(attention, normed: np.ndarray, num_vectors: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Return rows of attention scores, each as long as its causal context."""
    scores = attention.scores(normed)  # (B, H, T, T)
    drawn = zip(*(generator.integers(0, size, num_vectors) for size in scores.shape[:3]), strict=True)
    return [scores[window, head, position, : position + 1] for window, head, position in drawn]


def softmax_bench(softmax, rows: Sequence[np.ndarray]) -> StreamBench:
    """Return the bench of softmax."""
    core = Softmax(softmax)
    return StreamBench(
        "softmax",
        core,
        {"i": pack_rows(core.i, "score", rows)},
        {"o": pack_rows(core.o, "probability", [softmax.compute(row) for row in rows])},
    )


def norm_bench(norm, vectors: np.ndarray) -> StreamBench:
    """Return the bench of a LayerNorm, or of the RMSNorm that a model has in its place."""
    name, kind = ("layer-norm", LayerNorm) if isinstance(norm, fixedpoint.LayerNorm) else ("rms-norm", RMSNorm)
    core = kind(norm)
    return StreamBench(
        name,
        core,
        {"i": pack_rows(core.i, "data", vectors)},
        {"o": pack_rows(core.o, "data", norm.compute(vectors))},
        expected_cycles=core.cycles(len(vectors)),
    )


def attention_bench(attention, normed: np.ndarray, num_vectors: int) -> StreamBench:
    """Return the bench of the attention accelerator: window after window, token by token."""
    core = Attention(attention)
    vectors = flat(normed)[:num_vectors]
    length = attention.context_length
    starts = np.arange(len(vectors)) % length == 0
    restart = np.zeros(vectors.shape, dtype=np.int64)
    restart[starts, 0] = 1
    expected = attention.compute_stream(vectors, starts)
    return StreamBench(
        "attention",
        core,
        {"i": pack_all(core.i.payload.shape(), {"data": vectors.reshape(-1), "restart": restart.reshape(-1)})},
        {"o": pack_rows(core.o, "data", expected)},
        expected_cycles=core.cycles(np.arange(len(vectors)) % length),
    )
