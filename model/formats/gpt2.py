"""GPT-2 state dicts (Radford et al. 2019) in Hugging Face's names, both ways; nanoGPT's to read.

Hugging Face's linear layers are `Conv1D`: weights are (inputs, outputs), the transpose of ours;
nanoGPT's are `nn.Linear`, as ours, and may lack biases. In both, query, key and value are one
matrix. The output layer is the token embedding, unless `lm_head.weight` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..checks import check_settings, refuse
from ..config import ModelConfig
from ..errors import InputError
from ..transformer import Transformer

PREFIX = "transformer."
COMPILED_PREFIX = "_orig_mod."  # torch.compile's
HEAD = "lm_head.weight"
# the causal mask, which old and new files may or may not hold
BUFFERS = (".attn.bias", ".attn.masked_bias")
QUERY_KEY_VALUE = ("query", "key", "value")
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
    check_settings("GPT-2", config, wanted)
    state = {}
    for theirs, ours in _names(config):
        # query, key, value: 3 × (C, C) -> (3·C, C); Conv1D: (outputs, inputs) -> (inputs, outputs)
        array = np.concatenate([model.parameters[name] for name in ours])
        state[f"{PREFIX}{theirs}"] = np.ascontiguousarray(array.T if _is_linear(theirs) else array)
    state[HEAD] = model.parameters["token_embedding"].copy()
    return state


def gpt2_config(model: Transformer) -> dict[str, Any]:
    """Return Hugging Face's `config.json` of a model that `to_gpt2` accepts."""
    config = model.config
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_epsilon,
        "n_embd": config.embed_dim,
        "n_head": config.num_heads,
        "n_inner": config.hidden_dim,
        "n_layer": config.num_layers,
        "n_positions": config.max_seq_len,
        "vocab_size": config.vocab_size,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def from_gpt2(
    state: Mapping[str, np.ndarray], num_heads: int, norm_epsilon: float = 1e-5, activation: str | None = None
) -> Transformer:
    """Return a model with the weights of a GPT-2 or nanoGPT state dict.

    Args:
        state: Arrays by name, with or without `transformer.` or `_orig_mod.` before them. Without
            biases it gives linear layers without biases and norms with shifts of 0, which is the
            same function.
        num_heads: Not to be seen from the weights; 12 in the smallest GPT-2.
        norm_epsilon: Of all norms.
        activation: Not to be seen either; None for `gelu_tanh` where linear layers are `Conv1D`
            (Hugging Face) and `gelu` where they are `nn.Linear` (nanoGPT; its versions before 2023
            computed `gelu_tanh`).

    Raises:
        InputError: An array is missing, unknown, or of the wrong shape or type.
    """
    if activation == "swiglu":
        raise InputError("activation must not be 'swiglu': GPT-2 has no gate")
    arrays = _read(state)
    try:
        (vocab_size, width), (length, _) = arrays["wte.weight"].shape, arrays["wpe.weight"].shape
        projection, hidden_shape = arrays["h.0.attn.c_attn.weight"].shape, arrays["h.0.mlp.c_fc.weight"].shape
        is_conv = projection == (width, 3 * width)
        hidden = hidden_shape[1 if is_conv else 0]
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"these are not the weights of a GPT-2: {error}") from None
    if not is_conv and projection != (3 * width, width):
        raise InputError(
            f"h.0.attn.c_attn.weight has shape {projection}, neither {(width, 3 * width)} (Conv1D) nor {(3 * width, width)} (Linear)"
        )
    layers = 1 + max(
        int(name.split(".")[1]) for name in arrays if name.startswith("h.") and name.split(".")[1].isdigit()
    )
    head = arrays.pop(HEAD, arrays["wte.weight"])
    config = ModelConfig(
        vocab_size=vocab_size,
        embed_dim=width,
        num_heads=num_heads,
        num_layers=layers,
        ff_dim=hidden,
        max_seq_len=length,
        activation=activation or ("gelu_tanh" if is_conv else "gelu"),
        tie_embeddings=np.array_equal(head, arrays["wte.weight"]),
        norm_epsilon=norm_epsilon,
        use_bias=any(name.endswith(".bias") for name in arrays),
    )
    model = Transformer(config)
    names = {theirs: ours for theirs, ours in _names(config) if config.use_bias or not theirs.endswith(".bias")}
    missing, extra = sorted(names.keys() - arrays.keys()), sorted(arrays.keys() - names.keys())
    if missing or extra:
        raise InputError(f"these are not the weights of a GPT-2: missing {missing[:5]}, unknown {extra[:5]}")
    target, problems = model.parameters, []
    for theirs, ours in names.items():
        array = arrays[theirs]
        is_transposed = is_conv and _is_linear(theirs)
        shape = (sum(len(target[name]) for name in ours), *target[ours[0]].shape[1:])
        wanted = shape[::-1] if is_transposed else shape
        if array.shape != wanted:
            problems.append(f"{theirs} has shape {array.shape}, not {wanted}")
            continue
        # Conv1D: (inputs, outputs) -> (outputs, inputs); (3·C, C) -> 3 × (C, C)
        parts = np.split(array.T if is_transposed else array, len(ours))
        for name, part in zip(ours, parts, strict=True):
            target[name] = part
    if not config.tie_embeddings:
        if head.shape != (vocab_size, width):
            problems.append(f"{HEAD} has shape {head.shape}, not {(vocab_size, width)}")
        else:
            target["output.weight"] = head
    refuse(*problems)
    return model


def _read(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a state dict's arrays by their names without prefixes and without buffers."""
    if isinstance(state.get("model"), Mapping):
        raise InputError("this is a whole nanoGPT checkpoint; give the weights in it: its entry 'model'")
    arrays: dict[str, np.ndarray] = {}
    for full_name, values in state.items():
        name = full_name.removeprefix(COMPILED_PREFIX).removeprefix(PREFIX)
        if name.endswith(BUFFERS):
            continue
        if name in arrays:
            raise InputError(f"{name} is there twice, with and without a prefix")
        try:
            array = np.asarray(values)
        except TypeError as error:  # a torch tensor of bfloat16, or on another device
            raise InputError(
                f"{full_name} is no array for NumPy ({error}); convert it to float32 in main memory"
            ) from None
        if array.dtype.kind != "f":
            raise InputError(f"{full_name} has type {array.dtype}, not a floating-point type")
        arrays[name] = array
    return arrays


def _names(config: ModelConfig) -> Iterator[tuple[str, list[str]]]:
    """Yield each GPT-2 name (no prefix) and our parameters that it stacks along the first axis."""
    yield "wte.weight", ["token_embedding"]
    yield "wpe.weight", ["position_embedding"]
    for index in range(config.num_layers):
        ours, theirs = f"blocks.{index}", f"h.{index}"
        for their_name, our_name in NORMS.items():
            yield f"{theirs}.{their_name}.weight", [f"{ours}.{our_name}.scale"]
            yield f"{theirs}.{their_name}.bias", [f"{ours}.{our_name}.shift"]
        for part in ("weight", "bias"):
            yield f"{theirs}.attn.c_attn.{part}", [f"{ours}.attention.{name}.{part}" for name in QUERY_KEY_VALUE]
            for their_name, our_name in LINEARS.items():
                yield f"{theirs}.{their_name}.{part}", [f"{ours}.{our_name}.{part}"]
    yield "ln_f.weight", ["final_norm.scale"]
    yield "ln_f.bias", ["final_norm.shift"]


def _is_linear(name: str) -> bool:
    """Whether a GPT-2's array is the matrix of a linear layer, which `Conv1D` transposes."""
    return name.endswith(".weight") and any(f".{part}." in name for part in ("attn.c_attn", *LINEARS))
