"""All parameters of a model in one flat vector, each also a named array that is a view of it.

One vector lets the optimizer, gradient clipping and worker processes treat the whole model as one
array. Its order puts the matrices first, then the vectors (biases, scales, shifts): weight decay
applies to the first part only. Query, key and value weights are adjacent, so that one product with
the stacked matrix gives all three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping

import numpy as np

from .config import LARGEST_PARAMETER_COUNT, ModelConfig
from .errors import InputError


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by name, in the flat vector's order: matrices, vectors.

    Matrices of linear layers are (outputs, inputs). The tables, (V, C) and (T, C), count as
    matrices.

    Raises:
        InputError: More parameters than could be meant.
    """
    width, hidden, kv_width = config.embed_dim, config.hidden_dim, config.kv_dim
    matrices: dict[str, tuple[int, ...]] = {"token_embedding": (config.vocab_size, width)}
    vectors: dict[str, tuple[int, ...]] = {}

    def norm(name: str) -> None:
        vectors[f"{name}.scale"] = (width,)
        if config.norm == "layer":
            vectors[f"{name}.shift"] = (width,)

    def linears(name: str, shapes: Mapping[str, tuple[int, int]]) -> None:
        for part, shape in shapes.items():
            matrices[f"{name}.{part}.weight"] = shape
            if config.use_bias:
                vectors[f"{name}.{part}.bias"] = shape[:1]

    if config.position == "learned":
        matrices["position_embedding"] = (config.max_seq_len, width)
    for index in range(config.num_layers):
        block = f"blocks.{index}"
        norm(f"{block}.attention_norm")
        linears(
            f"{block}.attention",
            {"query": (width, width), "key": (kv_width, width), "value": (kv_width, width), "output": (width, width)},
        )
        norm(f"{block}.feed_forward_norm")
        gate = {"gate": (hidden, width)} if config.activation == "swiglu" else {}
        linears(f"{block}.feed_forward", {**gate, "up": (hidden, width), "down": (width, hidden)})
    norm("final_norm")
    if not config.tie_embeddings:
        matrices["output.weight"] = (config.vocab_size, width)
    shapes = {**matrices, **vectors}
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > LARGEST_PARAMETER_COUNT:
        raise InputError(
            f"the configuration describes {total:,} parameters, more than {LARGEST_PARAMETER_COUNT:,}; "
            "make embed_dim, num_layers or vocab_size smaller"
        )
    return shapes


class Parameters(MutableMapping[str, np.ndarray]):
    """Named arrays over one flat vector.

    Assigning to a name copies into the vector, so that every view stays valid; a wrong shape is
    refused. Names cannot be added or removed.

    Attributes:
        flat: The vector of all values.
        num_decayed: Its leading part that holds matrices, which weight decay applies to.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], flat: np.ndarray) -> None:
        self.flat = flat
        self.num_decayed = sum(math.prod(shape) for shape in shapes.values() if len(shape) > 1)
        self._arrays: dict[str, np.ndarray] = {}
        self._offsets: dict[str, int] = {}
        offset = 0
        for name, shape in shapes.items():
            self._offsets[name] = offset
            # (size,) -> shape
            self._arrays[name] = flat[offset : offset + math.prod(shape)].reshape(shape)
            offset += math.prod(shape)
        if flat.shape != (offset,):
            raise ValueError(f"the parameters have {offset:,} values, the vector has shape {flat.shape}")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        if name not in self._arrays:
            raise InputError(f"the model has no parameter {name!r}")
        if np.shape(values) != self._arrays[name].shape:
            raise InputError(f"parameter {name} has shape {self._arrays[name].shape}, not {np.shape(values)}")
        self._arrays[name][...] = values

    def __delitem__(self, name: str) -> None:
        raise InputError(f"parameter {name!r} is part of the model and cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def stacked(self, names: list[str]) -> np.ndarray:
        """Return adjacent parameters stacked along the first axis; a view, not a copy."""
        first = self._arrays[names[0]]
        start = self._offsets[names[0]]
        end = start
        for name in names:
            if self._offsets[name] != end:
                raise ValueError(f"{name} does not follow its predecessor in the vector")
            end += self._arrays[name].size
        return self.flat[start:end].reshape(-1, *first.shape[1:])  # (size,) -> (Σ rows, …)

    def offset(self, name: str) -> int:
        """Return where a parameter begins in the flat vector."""
        return self._offsets[name]


def initialize(parameters: Parameters, config: ModelConfig, seed: int) -> None:
    """Fill parameters with random starting values.

    Matrices are normal with standard deviation 0.02, as in GPT-2. Those of linear layers have
    0.5/sqrt(inputs) where that is larger, for the activations of narrow models. Projections that
    write into the residual stream are divided by sqrt(2 · num_layers): the stream's variance then
    does not grow with depth (Radford et al. 2019). Biases and shifts start at 0, scales at 1.
    """
    generator = np.random.default_rng(seed)
    for name, values in parameters.items():
        if name.endswith(".scale"):
            values[...] = 1
        elif values.ndim == 1:
            values[...] = 0
        else:
            deviation = 0.02 if name in EMBEDDINGS else max(0.02, values.shape[1] ** -0.5 * 0.5)
            if name.endswith(("attention.output.weight", "feed_forward.down.weight")):
                deviation /= math.sqrt(2 * config.num_layers)
            values[...] = generator.standard_normal(values.shape) * deviation


EMBEDDINGS = ("token_embedding", "position_embedding")


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Return the parameter counts: embeddings, attention, feed-forward, norms, output, total."""
    counts = dict.fromkeys(("embeddings", "attention", "feed_forward", "norms", "output"), 0)
    for name, shape in parameter_shapes(config).items():
        if name in EMBEDDINGS:
            part = "embeddings"
        elif name == "output.weight":
            part = "output"
        elif name.endswith((".scale", ".shift")):
            part = "norms"
        else:
            part = "attention" if ".attention." in name else "feed_forward"
        counts[part] += math.prod(shape)
    return {**counts, "total": sum(counts.values())}


def multiply_accumulate_counts(config: ModelConfig, context: int | None = None) -> dict[str, int]:
    """Return multiply-accumulates a token by part; `context` tokens attended (default: all)."""
    length = config.max_seq_len if context is None else context
    width, layers = config.embed_dim, config.num_layers
    matrices = 3 if config.activation == "swiglu" else 2
    counts = {
        "attention_projections": layers * width * (2 * width + 2 * config.kv_dim),
        "attention_scores_and_context": layers * 2 * width * length,
        "feed_forward": layers * matrices * width * config.hidden_dim,
        "output": config.vocab_size * width,
    }
    return {**counts, "total": sum(counts.values())}
