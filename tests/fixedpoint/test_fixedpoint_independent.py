"""Somebody who has only the documents and an exported directory gets the same model: logits and
tokens, integer for integer.
"""

import ast
from pathlib import Path

import independent_decoder
import numpy as np
import pytest
from model_kinds import KINDS

from fixedpoint import save_export
from fixedpoint.generation import generate_batch


@pytest.mark.parametrize(
    ("kind", "seed"),
    [(kind, 0) for kind in KINDS] + [(kind, seed) for kind in ("layer norm", "rms norm") for seed in (1, 2)],
)
def test_the_documents_make_the_same_model(kind, seed, tmp_path):
    """Contexts that are full and begin anew several times; prompts shorter and longer than the
    context.
    """
    model = KINDS[kind](seed)
    save_export(model, tmp_path / "export")
    decoder = independent_decoder.Decoder(tmp_path / "export")
    generator = np.random.default_rng(seed)
    length = model.context_length
    tokens = generator.integers(0, model.vocab_size, size=length)
    assert decoder.logits(tokens.tolist()) == model.forward(tokens[None])[0].tolist()
    prompts = [generator.integers(0, model.vocab_size, size=size).tolist() for size in (1, length, 2 * length + 2)]
    for temperature in (0.0, 0.8):
        expected = generate_batch(model, prompts, 10, temperature=temperature, seed=seed + 7, use_cache=False)
        for sequence, prompt in enumerate(prompts):
            assert decoder.generate(prompt, 10, temperature, seed + 7, sequence) == expected[sequence]


def test_it_imports_nothing_of_the_project():
    tree = ast.parse(Path(independent_decoder.__file__).read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"json", "math", "operator", "pathlib"}
