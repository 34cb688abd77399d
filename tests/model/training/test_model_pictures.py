"""Pictures are drawn, and show what they say."""

import numpy as np
import pytest

from model.tokenizers.character import CharacterTokenizer
from model.training.log import LogRow
from model.training.pictures import attention_weights, plot_losses
from model.transformer import Transformer

SIZES = {"embed_dim": 8, "num_heads": 2, "num_layers": 2, "max_seq_len": 12}


@pytest.fixture(scope="module")
def pair():
    tokenizer = CharacterTokenizer()
    tokenizer.train("a $tory of x_{y}\n")
    return Transformer({**SIZES, "vocab_size": tokenizer.vocab_size}, seed=1), tokenizer


def is_picture(path):
    data = path.read_bytes()
    return data.startswith(b"\x89PNG") and len(data) > 5000


def test_losses(tmp_path):
    rows = [
        LogRow(step, 3 - step / 100, 3.0 if step % 50 == 0 else None, 1e-3, 1.0, 1e4, 1.0)
        for step in range(10, 110, 10)
    ]
    plot_losses(rows, tmp_path / "loss.png")
    assert is_picture(tmp_path / "loss.png")
    plot_losses(rows[:1], tmp_path / "one.png")
    assert is_picture(tmp_path / "one.png")


def test_attention_weights(pair):
    model, tokenizer = pair
    weights = attention_weights(model, tokenizer.encode("a $tory"))
    assert [layer.shape for layer in weights] == [(2, 7, 7)] * 2
    np.testing.assert_allclose(weights[1].sum(-1), 1, rtol=1e-5)
