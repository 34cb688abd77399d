"""Models of other programs with their tokenizers: llama2.c, GPT-2, nanoGPT, safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import is_whole, refuse
from ..config import ModelConfig
from ..errors import InputError
from ..files import read_bytes, read_json
from ..tokenizers.character import CharacterTokenizer
from ..tokenizers.gpt2 import VOCABULARY_NAME, GPT2Tokenizer
from ..tokenizers.llama2c import Llama2cTokenizer
from ..tokenizers.tokenizer import FORMAT, Tokenizer, load_tokenizer
from ..transformer import Transformer
from .gpt2 import from_gpt2
from .llama2c import load_llama2c
from .pickles import read_pickle
from .pytorch import read_checkpoint
from .safetensors import CONFIG_KEY, load_safetensors, read_safetensors

LLAMA2C, GPT2, NANOGPT, SAFETENSORS = "llama2.c", "GPT-2", "nanoGPT", "safetensors"
# In a directory, the first of these that is there.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONFIG_NAME = "config.json"
# Beside the weights, the first of these that is there, unless a tokenizer is named.
TOKENIZERS = {
    LLAMA2C: ("tokenizer.bin",),
    GPT2: (VOCABULARY_NAME,),
    NANOGPT: ("meta.pkl", VOCABULARY_NAME),
    SAFETENSORS: ("tokenizer.json",),
}
# Hugging Face's names of activations, and ours.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# Settings of Hugging Face's GPT-2 that make another function of the same weights.
PLAIN_SETTINGS = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
# How Hugging Face and nanoGPT call what the weights show too.
SIZES = (
    ("n_positions", "max_seq_len"),
    ("block_size", "max_seq_len"),
    ("n_embd", "embed_dim"),
    ("n_layer", "num_layers"),
    ("vocab_size", "vocab_size"),
)
PADDED_TO = 64  # nanoGPT's vocabularies, with rows that no token uses


@dataclass(frozen=True)
class ImportedModel:
    """A model of another program.

    Attributes:
        model: With the tokenizer's vocabulary.
        tokenizer: That belongs to it.
        kind: The program or format that it comes from.
        weights: The file with the weights.
        unused: Rows of the embedding beyond the tokenizer's vocabulary, which were left out.
    """

    model: Transformer
    tokenizer: Tokenizer
    kind: str
    weights: Path
    unused: int = 0


def import_model(path: str | Path, tokenizer: str | Path | None = None, num_heads: int | None = None) -> ImportedModel:
    """Return the model and the tokenizer in files of another program.

    Args:
        path: `.bin` of llama2.c; a directory of a GPT-2 as Hugging Face saves it, or its
            `.safetensors`; a checkpoint of nanoGPT (`.pt`); a `.safetensors` of this project.
        tokenizer: llama2.c's `.bin`, GPT-2's `vocab.json` with `merges.txt` beside it, nanoGPT's
            `meta.pkl`, or a tokenizer of this project (`.json`); None for what lies beside the
            weights.
        num_heads: Of a GPT-2 without its configuration; None for what that says.

    Raises:
        InputError: A file is missing, damaged or something else, or they do not belong together.
    """
    weights = _weights(Path(path))
    model, kind = _read_model(weights, num_heads)
    chosen = _tokenizer_beside(weights, kind) if tokenizer is None else Path(tokenizer)
    found = read_tokenizer(chosen)
    unused = model.config.vocab_size - found.vocab_size
    if unused and not (kind == NANOGPT and 0 < unused < PADDED_TO and model.config.vocab_size % PADDED_TO == 0):
        raise InputError(
            f"{chosen} has {found.vocab_size:,} tokens, {weights} {model.config.vocab_size:,}: it is another model's tokenizer"
        )
    return ImportedModel(_first_tokens(model, found.vocab_size) if unused else model, found, kind, weights, unused)


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a file of this project, llama2.c, GPT-2 or nanoGPT.

    Raises:
        InputError: The file is missing, damaged or something else.
    """
    file = Path(path) / VOCABULARY_NAME if Path(path).is_dir() else Path(path)
    match file.suffix:
        case ".bin":
            return Llama2cTokenizer.read(file)
        case ".pkl":
            return _characters(file)
        case ".json":
            return load_tokenizer(file) if read_json(file).get("format") == FORMAT else GPT2Tokenizer.read(file)
    raise InputError(
        f"{file} is not known as a tokenizer: wanted llama2.c's .bin, {VOCABULARY_NAME} of a GPT-2, nanoGPT's meta.pkl, "
        "or a tokenizer.json of this project"
    )


def _weights(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    if not found:
        raise InputError(f"{path} holds neither {' nor '.join(WEIGHTS)}")
    return found[0]


def _read_model(path: Path, num_heads: int | None) -> tuple[Transformer, str]:
    match path.suffix:
        case ".safetensors":
            arrays, metadata = read_safetensors(path)
            if CONFIG_KEY in metadata:
                return load_safetensors(path), SAFETENSORS
            return _gpt2(path, arrays, _read_config(path), num_heads), GPT2
        case ".pt" | ".pth":
            return _checkpoint(path, num_heads)
        case ".bin":
            is_zip = path.is_file() and read_bytes(path)[:2] == b"PK"
            return _checkpoint(path, num_heads) if is_zip else (load_llama2c(path), LLAMA2C)
    raise InputError(
        f"{path} is not known as a model: wanted llama2.c's .bin, a .safetensors, nanoGPT's .pt, or a directory of a GPT-2"
        + ("" if path.exists() else "; it does not exist")
    )


def _checkpoint(path: Path, num_heads: int | None) -> tuple[Transformer, str]:
    arrays, arguments = read_checkpoint(path)
    if arguments:
        return _gpt2(path, arrays, arguments, num_heads), NANOGPT
    return _gpt2(path, arrays, _read_config(path), num_heads), GPT2


def _read_config(weights: Path) -> Mapping[str, Any]:
    """Return Hugging Face's configuration beside the weights, {} where there is none."""
    path = weights.with_name(CONFIG_NAME)
    if not path.is_file():
        return {}
    return read_json(path)


def _gpt2(
    path: Path, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], num_heads: int | None
) -> Transformer:
    """Return a GPT-2 of Hugging Face or nanoGPT whose configuration agrees with its weights."""
    heads = config.get("n_head") if num_heads is None else num_heads
    name = config.get("activation_function")
    problems = [
        f"the configuration says {setting} {config[setting]!r}, only {value!r} is read"
        for setting, value in PLAIN_SETTINGS.items()
        if config.get(setting, value) != value
    ]
    if not is_whole(heads):
        problems.append("the weights do not show the number of heads, and no configuration says it: give --heads")
    if name is not None and name not in ACTIVATIONS:
        problems.append(f"activation_function {name!r} is unknown, known are {', '.join(ACTIVATIONS)}")
    try:
        refuse(*problems)
        assert is_whole(heads)
        model = from_gpt2(
            arrays, heads, config.get("layer_norm_epsilon", 1e-5), None if name is None else ACTIVATIONS[name]
        )
        sizes = {theirs: getattr(model.config, ours) for theirs, ours in SIZES}
        refuse(
            *(
                f"the configuration says {theirs} {config[theirs]!r}, the weights are for {size:,}"
                for theirs, size in sizes.items()
                if config.get(theirs, size) != size
            )
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return model


def _tokenizer_beside(weights: Path, kind: str) -> Path:
    names = TOKENIZERS[kind]
    found = [weights.with_name(name) for name in names if weights.with_name(name).is_file()]
    if not found:
        raise InputError(f"no {' or '.join(names)} is beside {weights}: give --tokenizer FILE")
    return found[0]


def _characters(path: Path) -> CharacterTokenizer:
    """Return the tokenizer in nanoGPT's `meta.pkl`."""
    content = read_pickle(read_bytes(path), str(path))
    spelled = content.get("itos") if isinstance(content, Mapping) else None
    if not isinstance(spelled, Mapping) or set(spelled) != set(range(len(spelled))):
        raise InputError(f"{path} is not nanoGPT's meta.pkl: it lacks 'itos', the characters of tokens 0 to V - 1")
    try:
        return CharacterTokenizer.from_dict({"vocabulary": [spelled[token] for token in range(len(spelled))]})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _first_tokens(model: Transformer, vocab_size: int) -> Transformer:
    """Return the model without the tokens from `vocab_size` on."""
    smaller = Transformer(ModelConfig.from_dict({**model.config.to_dict(), "vocab_size": vocab_size}))
    for name, array in model.parameters.items():
        smaller.parameters[name] = array[:vocab_size] if name in ("token_embedding", "output.weight") else array
    return smaller
