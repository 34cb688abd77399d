"""Make a run of a model that another program trained.

llama2.c's .bin (version 0), a GPT-2 as Hugging Face saves it (a directory, or its .safetensors), a
checkpoint of nanoGPT (.pt, whose pickle is read and not run), or a .safetensors of this project.
The tokenizer is taken from beside the weights unless --tokenizer names it. Quantization and
fine-tuning need text: a file, or what the model writes itself; `positron quantize` takes the same
two options.

Example:
  positron import stories260K.bin --tokenizer tok512.bin --out runs/stories
  positron import gpt2/ --out runs/gpt2 --text story.txt
"""

from __future__ import annotations

import argparse
from pathlib import Path
from shlex import quote

from fixedpoint import lock_directory
from model.config import TrainingConfig
from model.errors import InputError
from model.files import file_digest, write_json
from model.formats.imported import import_model
from model.run import RunDirectory
from scripts.run_text import add_text_arguments, chosen_text
from scripts.text import path_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("source", metavar="FILE|DIRECTORY", type=Path, help="the model's weights")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run directory to make")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE", help="its tokenizer (default: beside the weights)")
    parser.add_argument("--heads", type=int, metavar="N", help="heads of a GPT-2 that has no config.json")
    add_text_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read everything, then write the run directory."""
    directory = RunDirectory(arguments.out)
    if directory.model_config.exists():
        raise InputError(f"{directory.path} holds a model already: choose another --out")
    imported = import_model(arguments.source, arguments.tokenizer, arguments.heads)
    text = chosen_text(imported.model, imported.tokenizer, arguments)
    record = {
        "imported": {
            "kind": imported.kind,
            "name": path_text(imported.weights.name),
            "sha256": file_digest(imported.weights),
        },
        "source": {},
        "training": TrainingConfig().to_dict(),
        "vocabulary_sha256": imported.tokenizer.fingerprint(),
    }
    with lock_directory(directory.path):
        imported.tokenizer.save(directory.tokenizer)
        write_json(directory.training, record)
        if text is not None:
            text.store(directory)
        directory.save_model(imported.model)  # last: now it is a run
    config = imported.model.config
    print(
        f"{imported.kind}: {imported.model.get_num_parameters():,} parameters, {config.num_layers} layers, "
        f"{config.embed_dim} wide, {config.max_seq_len:,} positions, a vocabulary of {config.vocab_size:,}"
    )
    if imported.unused:
        print(f"left out: {imported.unused} rows of the embedding that no token uses")
    print(f"run: {directory.path}\ntry it: positron generate {quote(str(directory.path))} --prompt ''")
    return 0
