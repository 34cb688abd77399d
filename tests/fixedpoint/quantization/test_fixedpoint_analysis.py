"""Which layer hurts: a layer that is made to hurt is found, and what is measured is what the models
do.
"""

import math

import numpy as np
import pytest

from fixedpoint import QFormat
from fixedpoint.quantization.analysis import compare_tensors, part_losses, storage_bytes, tensor_formats, worst
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.overrides import Overrides
from fixedpoint.quantization.quantize import quantize_transformer
from model import ModelConfig, Transformer


@pytest.fixture(scope="module")
def model():
    shape = {"vocab_size": 12, "embed_dim": 16, "num_heads": 2, "num_layers": 2, "ff_dim": 32, "max_seq_len": 8}
    model = Transformer(ModelConfig(**shape))
    generator = np.random.default_rng(0)
    for name, values in model.parameters.items():
        if name.endswith("bias"):
            values[...] = 0.1 * generator.normal(size=values.shape)
        elif len(values.shape) == 2:
            values *= 3
    return model


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(1).integers(0, 12, size=(40, 9))


def quantized(model, tokens, content=None, **settings):
    chosen = QuantizationSettings(**settings)
    return quantize_transformer(
        model, calibrate(model, tokens[:, :-1], chosen, Overrides.from_dict(content or {})), chosen
    )


def test_every_tensor_is_compared(model, tokens):
    rows = compare_tensors(model, quantized(model, tokens), tokens[:, :-1])
    names = [row.name for row in rows]
    assert names[0] == "embedding"
    assert names[-1] == "logits"
    assert len(names) == len(set(names)) == 1 + 2 * 12 + 2
    assert {f"blocks.1.attention.{part}" for part in ("query", "key", "value", "context", "output")} <= set(names)
    assert all(15 < row.signal_to_noise < 100 for row in rows)
    assert QFormat.parse(rows[1].format) == quantized(model, tokens).blocks[0].attention_norm.output


def test_noise_is_that_of_the_definition(model, tokens):
    integer_model, seen, exact = quantized(model, tokens), {}, {}
    integer_model.forward(tokens[:, :-1], observe=seen.__setitem__)
    model.forward(tokens[:, :-1], observe=exact.__setitem__)
    rows = {row.name: row for row in compare_tensors(model, integer_model, tokens[:, :-1])}
    for name in ("blocks.0.feed_forward.up", "blocks.1.feed_forward_residual", "logits"):
        target = tensor_formats(integer_model)[name]
        reference = exact[name].astype(np.float64)
        noise = ((reference - target.dequantize(seen[name])) ** 2).sum()
        assert rows[name].signal_to_noise == pytest.approx(10 * math.log10((reference**2).sum() / noise), abs=1e-6)
        ends = (seen[name] == target.minimum_integer) | (seen[name] == target.maximum_integer)
        assert rows[name].saturated == ends.mean()
    query = integer_model.blocks[1].attention.query
    reference = exact["blocks.1.attention.query"].astype(np.float64) * math.log2(math.e) / math.sqrt(8)
    np.testing.assert_array_equal(seen["blocks.1.attention.query"], query.compute(seen["blocks.1.attention_norm"]))
    produced = query.output.dequantize(seen["blocks.1.attention.query"])
    expected = 10 * math.log10((reference**2).sum() / ((reference - produced) ** 2).sum())
    assert rows["blocks.1.attention.query"].signal_to_noise == pytest.approx(expected, abs=1e-6)


def test_the_tensor_that_is_starved_is_the_worst(model, tokens):
    starved = {"blocks.1.feed_forward.up": {"activation_bits": 4}}
    rows = compare_tensors(model, quantized(model, tokens, starved), tokens[:, :-1])
    assert worst(rows).name.startswith("blocks.1.feed_forward.")
    assert (
        worst(rows).signal_to_noise
        < worst(compare_tensors(model, quantized(model, tokens), tokens[:, :-1])).signal_to_noise
    )


@pytest.mark.parametrize(
    ("content", "name", "kind"),
    [
        ({"blocks.0.feed_forward.down": {"weight_bits": 2}}, "blocks.0.feed_forward.down", "weights"),
        ({"token_embedding": {"weight_bits": 2}}, "token_embedding", "weights"),
        ({"final_norm": {"activation_bits": 4}}, "final_norm", "activations"),
    ],
    ids=str,
)
def test_the_part_that_is_starved_costs_the_most(model, tokens, content, name, kind):
    # Targets that the float model is sure of, so that any noise costs.
    inputs = tokens[:, :-1]
    targets = model.forward(inputs).argmax(axis=-1)
    parts = part_losses(model, quantized(model, tokens, content), inputs, targets)
    assert (parts[0].name, parts[0].kind) == (name, kind)
    assert [row.difference for row in parts] == sorted((row.difference for row in parts), reverse=True)
    assert len({(row.name, row.kind) for row in parts}) == len(parts) == 2 * 6 + 1 + 2 + 2 * 12 + 2


def test_parts_leave_the_model_as_it_was(model, tokens):
    before = model.parameters.flat.copy()
    whole = quantized(model, tokens, weight_bits=4)

    def interrupted(parts):
        yield from parts[:3]
        raise KeyboardInterrupt

    part_losses(model, whole, tokens[:4, :-1], tokens[:4, 1:])
    np.testing.assert_array_equal(model.parameters.flat, before)
    with pytest.raises(KeyboardInterrupt):
        part_losses(model, whole, tokens[:4, :-1], tokens[:4, 1:], interrupted)
    np.testing.assert_array_equal(model.parameters.flat, before)


def test_storage_counts_every_bit(model, tokens):
    linears = 2 * (4 * 16 * 16 + 2 * 16 * 32) + 12 * 16
    rows = 2 * (4 * 16 + 32 + 16) + 12
    tables = (12 + 8) * 16 + 12 + 8  # bytes, and a fraction a row
    norms = 5 * 16 * (1 + 4)
    for width, bits in ((8, 8), (3, 3), ("ternary", 2)):
        expected = math.ceil(linears * bits / 8) + rows * 5 + tables + norms
        assert storage_bytes(quantized(model, tokens, weight_bits=width)) == expected
