"""The header that a model becomes for the C program: whole numbers only, compact, and no wider than
the program computes.
"""

from dataclasses import replace

import numpy as np
import pytest
from model_kinds import make_model

from fixedpoint import QFormat, QuantizationError
from fixedpoint.export.c_header import c_header


def test_the_header_is_plain_and_repeatable():
    text = c_header(make_model(0))
    assert text == c_header(make_model(0))
    assert text.isascii()
    # no float
    assert "." not in text.replace("transformer.c", "").replace("Positron.", "").replace("types.", "")
    assert (
        "LAYERS = 2, HEADS = 3, KV_HEADS = 3, CHANNELS = 12, WIDEST = 32, CONTEXT = 7, VOCABULARY = 11, TENSORS = 5, OPERATIONS = 25"
        in text
    )
    assert "define(11, 16) define(12, 16) define(12, 32) define(20, 16)\n" in text
    assert text.count("reciprocal_square_root_10_16[768]") == 1


def test_the_header_is_compact():
    """Less than four characters a weight of eight bits, sign and comma included, tables aside."""
    model = make_model(0, channels=128, num_heads=4, hidden=512, num_layers=1, context_length=8)
    weights = 4 * 128 * 128 + 2 * 128 * 512
    assert len(c_header(model)) < 4 * weights + 40_000


def test_sums_too_wide_for_the_program_are_refused():
    """4,096 numerators of 8 bits times values of 13 bits need 33 bits, one more than 32."""
    model = make_model(0, num_layers=1, activation_bits=13, context_length=4096)
    with pytest.raises(
        QuantizationError, match=r"blocks.0.attention.context sums weighted values in 33 bits; the C program takes 32"
    ):
        c_header(model)
    assert "CONTEXT = 2048" in c_header(make_model(0, num_layers=1, activation_bits=13, context_length=2048))


def test_activations_too_wide_for_the_program_are_refused():
    model = make_model(0, num_layers=1)
    wide = QFormat(18, 12)
    block = model.blocks[0]
    activation = replace(block.activation, output=wide, table=np.arange(256) << 9)
    down = replace(block.down, input=wide, weight=block.down.weight >> 3, bias=block.down.bias)
    with pytest.raises(
        QuantizationError, match=r"blocks.0.feed_forward.activation has 18 bits; the C program takes 16"
    ):
        c_header(replace(model, blocks=(replace(block, activation=activation, down=down),)))
    with pytest.raises(QuantizationError, match=r"logits has 18 bits; the C program takes 16"):
        c_header(replace(model, logits=replace(model.logits, output=wide)))
