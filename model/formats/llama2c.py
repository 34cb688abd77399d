"""Model files of karpathy/llama2.c (`.bin`, version 0), both ways.

Seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; vocab_size is
negative when the output layer has weights of its own), then float32 arrays, each for all layers
together: token embedding; attention norms; query; key; value; output; feed-forward norms; w1
(gate); w2 (down); w3 (up); final norm; two tables of rotary positions that readers skip; output
layer. Everything little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..checks import check_settings
from ..config import ModelConfig
from ..errors import InputError
from ..files import atomic_write, read_bytes
from ..parameters import parameter_counts
from ..rotary import rotation_table
from ..transformer import Transformer

HEADER = struct.Struct("<7i")
# Later versions begin with a magic number, "ak42", and the version, both 32 bits.
MAGIC = struct.Struct("<Ii")
MAGIC_NUMBER = 0x616B3432
LATER_VERSIONS = {1: "float32 weights behind a header of 256 bytes", 2: "8-bit weights in groups with scales"}
NORM_EPSILON = 1e-5
LAYER_ARRAYS = (
    "attention_norm.scale",
    "attention.query.weight",
    "attention.key.weight",
    "attention.value.weight",
    "attention.output.weight",
    "feed_forward_norm.scale",
    "feed_forward.gate.weight",
    "feed_forward.down.weight",
    "feed_forward.up.weight",
)


def save_llama2c(model: Transformer, path: str | Path) -> None:
    """Write a model as a llama2.c file, in a directory that is made if it is missing.

    Raises:
        InputError: The model has a part that llama2.c lacks.
    """
    config = model.config
    wanted = {
        "norm": "rms",
        "activation": "swiglu",
        "position": "rotary",
        "use_bias": False,
        "norm_epsilon": NORM_EPSILON,
        "rotary_base": 10000.0,
    }
    check_settings("llama2.c", config, wanted)
    vocab_size = config.vocab_size if config.tie_embeddings else -config.vocab_size
    sizes = (
        config.embed_dim,
        config.hidden_dim,
        config.num_layers,
        config.num_heads,
        config.kv_heads,
        vocab_size,
        config.max_seq_len,
    )
    rotation = rotation_table(config.max_seq_len, config.head_dim, config.rotary_base, np.dtype(np.float32))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as file:
        file.write(HEADER.pack(*sizes))
        for name in _order(config):
            values = {"cosines": rotation.real, "sines": rotation.imag}.get(name)
            file.write(np.ascontiguousarray(model.parameters[name] if values is None else values, "<f4").tobytes())


def load_llama2c(path: str | Path) -> Transformer:
    """Return the model in a llama2.c file.

    Raises:
        InputError: The file is missing, of another version, or its size does not fit its header.
    """
    data = read_bytes(path)
    if len(data) >= MAGIC.size and MAGIC.unpack_from(data)[0] == MAGIC_NUMBER:
        version = MAGIC.unpack_from(data)[1]
        raise InputError(
            f"{path} is a llama2.c model of version {version} ({LATER_VERSIONS.get(version, 'unknown here')}); "
            "version 0 is read: write it with llama2.c's export.py --version 0"
        )
    if len(data) < HEADER.size:
        raise InputError(
            f"{path} is not a llama2.c model: it has {len(data)} bytes, less than the header's {HEADER.size}"
        )
    width, hidden, layers, heads, kv_heads, vocab_size, length = HEADER.unpack_from(data)
    try:
        config = ModelConfig(
            vocab_size=abs(vocab_size),
            embed_dim=width,
            num_heads=heads,
            num_layers=layers,
            ff_dim=hidden,
            max_seq_len=length,
            num_kv_heads=kv_heads,
            activation="swiglu",
            norm="rms",
            norm_epsilon=NORM_EPSILON,
            position="rotary",
            tie_embeddings=vocab_size > 0,
            use_bias=False,
        )
        counts = _count_values(config)
    except InputError as error:
        raise InputError(f"{path} is not a llama2.c model: {error}") from None
    if len(data) != HEADER.size + 4 * counts:
        raise InputError(
            f"{path} has {len(data):,} bytes; its header describes {HEADER.size + 4 * counts:,}. It is damaged"
        )
    model = Transformer(config)
    values = np.frombuffer(data, "<f4", offset=HEADER.size)
    offset = 0
    for name in _order(config):
        if name in ("cosines", "sines"):
            offset += length * config.head_dim // 2
            continue
        target = model.parameters[name]
        # (size,) -> shape of the parameter
        target[...] = values[offset : offset + target.size].reshape(target.shape)
        offset += target.size
    return model


def _order(config: ModelConfig) -> Iterator[str]:
    """Yield the names of the arrays as they lie in the file."""
    yield "token_embedding"
    for name in LAYER_ARRAYS:
        for index in range(config.num_layers):
            yield f"blocks.{index}.{name}"
    yield from ("final_norm.scale", "cosines", "sines")
    if not config.tie_embeddings:
        yield "output.weight"


def _count_values(config: ModelConfig) -> int:
    """Return the number of float32 values behind the header."""
    return parameter_counts(config)["total"] + config.max_seq_len * config.head_dim
