"""GPT-2 state dicts (Radford et al. 2019), as Hugging Face names them, both ways.

Their linear layers are `Conv1D`: weights are (inputs, outputs), the transpose of ours, and query, key and value are one matrix. The
output layer is the token embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .config import ModelConfig
from .errors import InputError
from .transformer import Transformer

PREFIX = "transformer."
QUERY_KEY_VALUE = ("query", "key", "value")
# Buffers and the tied head, which old and new files may or may not hold.
IGNORED_ENDINGS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
NORMS = {"ln_1": "attention_norm", "ln_2": "feed_forward_norm"}
LINEARS = {"attn.c_proj": "attention.output", "mlp.c_fc": "feed_forward.up", "mlp.c_proj": "feed_forward.down"}


def to_gpt2(model: Transformer) -> dict[str, np.ndarray]:
    """Return a model's weights as a GPT-2 state dict (with `lm_head.weight`).

    Raises:
        InputError: The model has a part that GPT-2 lacks.
    """
    config = model.config
    wanted = {
        "norm": "layer",
        "activation": "gelu_tanh",
        "position": "learned",
        "tie_embeddings": True,
        "use_bias": True,
        "kv_heads": config.num_heads,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise InputError(f"GPT-2 has {name} {value!r}; this model has {getattr(config, name)!r}")
    source = model.parameters
    state = {f"{PREFIX}wte.weight": source["token_embedding"], f"{PREFIX}wpe.weight": source["position_embedding"]}
    for index in range(config.num_layers):
        ours, theirs = f"blocks.{index}", f"{PREFIX}h.{index}"
        for their_name, our_name in NORMS.items():
            state[f"{theirs}.{their_name}.weight"] = source[f"{ours}.{our_name}.scale"]
            state[f"{theirs}.{their_name}.bias"] = source[f"{ours}.{our_name}.shift"]
        parts = [f"{ours}.attention.{name}" for name in QUERY_KEY_VALUE]
        state[f"{theirs}.attn.c_attn.weight"] = np.concatenate([source[f"{part}.weight"].T for part in parts], axis=1)
        state[f"{theirs}.attn.c_attn.bias"] = np.concatenate([source[f"{part}.bias"] for part in parts])
        for their_name, our_name in LINEARS.items():
            state[f"{theirs}.{their_name}.weight"] = source[f"{ours}.{our_name}.weight"].T
            state[f"{theirs}.{their_name}.bias"] = source[f"{ours}.{our_name}.bias"]
    state[f"{PREFIX}ln_f.weight"], state[f"{PREFIX}ln_f.bias"] = source["final_norm.scale"], source["final_norm.shift"]
    state["lm_head.weight"] = source["token_embedding"]
    return {name: np.ascontiguousarray(array) for name, array in state.items()}


def from_gpt2(state: Mapping[str, np.ndarray], num_heads: int, norm_epsilon: float = 1e-5) -> Transformer:
    """Return a model with the weights of a GPT-2 state dict.

    Args:
        state: Arrays by name, with or without `transformer.` before them.
        num_heads: Not to be seen from the weights; 12 in the smallest GPT-2.
        norm_epsilon: Of all norms.

    Raises:
        InputError: An array is missing, unknown, or of the wrong shape.
    """
    arrays = {
        name.removeprefix(PREFIX): np.asarray(array)
        for name, array in state.items()
        if not name.endswith(IGNORED_ENDINGS)
    }
    try:
        (vocab_size, width), (length, _) = arrays["wte.weight"].shape, arrays["wpe.weight"].shape
        hidden = arrays["h.0.mlp.c_fc.weight"].shape[1]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"these are not the weights of a GPT-2: {error}") from None
    layers = 1 + max(
        int(name.split(".")[1]) for name in arrays if name.startswith("h.") and name.split(".")[1].isdigit()
    )
    config = ModelConfig(
        vocab_size=vocab_size,
        embed_dim=width,
        num_heads=num_heads,
        num_layers=layers,
        ff_dim=hidden,
        max_seq_len=length,
        activation="gelu_tanh",
        tie_embeddings=True,
        norm_epsilon=norm_epsilon,
    )
    model = Transformer(config)
    expected = {name.removeprefix(PREFIX): array.shape for name, array in to_gpt2(model).items()}
    del expected["lm_head.weight"]
    missing, extra = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    if missing or extra:
        raise InputError(f"these are not the weights of a GPT-2: missing {missing[:5]}, unknown {extra[:5]}")
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise InputError(f"{name} has shape {arrays[name].shape}, not {shape}")
    target = model.parameters
    target["token_embedding"], target["position_embedding"] = arrays["wte.weight"], arrays["wpe.weight"]
    for index in range(layers):
        ours, theirs = f"blocks.{index}", f"h.{index}"
        for their_name, our_name in NORMS.items():
            target[f"{ours}.{our_name}.scale"] = arrays[f"{theirs}.{their_name}.weight"]
            target[f"{ours}.{our_name}.shift"] = arrays[f"{theirs}.{their_name}.bias"]
        weights = np.split(arrays[f"{theirs}.attn.c_attn.weight"].T, 3)
        biases = np.split(arrays[f"{theirs}.attn.c_attn.bias"], 3)
        for name, weight, bias in zip(QUERY_KEY_VALUE, weights, biases, strict=True):
            target[f"{ours}.attention.{name}.weight"], target[f"{ours}.attention.{name}.bias"] = weight, bias
        for their_name, our_name in LINEARS.items():
            target[f"{ours}.{our_name}.weight"] = arrays[f"{theirs}.{their_name}.weight"].T
            target[f"{ours}.{our_name}.bias"] = arrays[f"{theirs}.{their_name}.bias"]
    target["final_norm.scale"], target["final_norm.shift"] = arrays["ln_f.weight"], arrays["ln_f.bias"]
    return model
