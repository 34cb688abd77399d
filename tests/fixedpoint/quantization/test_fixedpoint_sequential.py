"""Layers rounded in order: what earlier layers lose, later ones make good."""

import numpy as np
import pytest

from fixedpoint.fast.transformer import prepared
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.overrides import Overrides
from fixedpoint.quantization.quantize import named_linears, quantize_transformer
from fixedpoint.quantization.sequential import round_in_order
from model import Transformer

SHAPE = {"vocab_size": 19, "embed_dim": 16, "num_heads": 4, "num_layers": 3, "max_seq_len": 12}
PLAIN = {**SHAPE, "position": "learned", "activation": "gelu"}
MODERN = {**SHAPE, "position": "rotary", "activation": "swiglu", "norm": "rms", "num_kv_heads": 2, "use_bias": False}
KINDS = (PLAIN, MODERN, {**MODERN, "tie_embeddings": True}, {**PLAIN, "norm": "rms", "position": "sinusoidal"})


def sharp_model(shape):
    """A random model whose blocks add much to the stream, and whose biases are not zero."""
    model = Transformer(shape, seed=3)
    model.parameters.flat[: model.parameters.num_decayed] *= 5
    for name, values in model.parameters.items():
        if name.endswith(".bias"):
            model.parameters[name] = np.random.default_rng(len(name)).normal(size=values.shape) * 0.3
    return model


def quantized(model, tokens, rounding, overrides=None, **widths):
    settings = QuantizationSettings(rounding=rounding, **widths)
    return quantize_transformer(model, calibrate(model, tokens, settings, overrides), settings)


@pytest.mark.parametrize("shape", KINDS)
def test_logits_are_nearer_to_the_float_models(shape):
    model = sharp_model(shape)
    tokens, others = np.random.default_rng(0).integers(0, 19, (2, 200, 12))
    wanted = model.forward(others)

    def error(rounding):
        integers = quantized(model, tokens, rounding, weight_bits=3, activation_bits=10)
        logits = integers.logits.output.dequantize(prepared(integers).forward(others))
        return ((logits - wanted) ** 2).mean()

    assert error("sequential") < 0.8 * error("compensated")


def test_integers_are_in_the_range_of_the_layers_width():
    model, tokens = sharp_model(MODERN), np.random.default_rng(1).integers(0, 19, (20, 12))
    overrides = Overrides.from_dict({"logits": {"weight_bits": 6}, "*.down": {"weight_bits": "ternary"}})
    integers = quantized(model, tokens, "sequential", overrides, weight_bits=3)
    for name, layer in named_linears(integers).items():
        largest = 1 if name.endswith("down") else 31 if name == "logits" else 3
        lowest = -1 if largest == 1 else -largest - 1
        assert lowest <= layer.weight.min() <= lowest / 2 < largest / 2 < layer.weight.max() <= largest, name


def test_with_many_bits_only_rounding_is_left():
    """Nothing is lost before a layer, so its weights are the float model's."""
    model, tokens = sharp_model(PLAIN), np.random.default_rng(2).integers(0, 19, (40, 12))
    settings = QuantizationSettings(activation_bits=10, rounding="sequential")
    calibration = calibrate(model, tokens, settings)
    calibration.formats.update(
        {name: type(target)(24, target.fraction + 24 - target.bits) for name, target in calibration.formats.items()}
    )
    before = model.parameters.flat.copy()
    results = round_in_order(model, calibration, settings)
    np.testing.assert_array_equal(model.parameters.flat, before)
    for name in ("blocks.0.attention.key", "blocks.0.attention.value"):
        weight = model.parameters[f"{name}.weight"]
        step = np.ldexp(1.0, -results[name].fraction)[:, None]
        assert (np.abs(results[name].weight - weight) < 2 * step).all()
        # the mean output is kept, biases included
        normalized = []
        model.forward(
            tokens, lambda tensor, values, kept=normalized: tensor == "blocks.0.attention_norm" and kept.append(values)
        )
        mean = normalized[0].reshape(-1, 16).mean(axis=0)
        exact = weight @ mean + model.parameters[f"{name}.bias"]
        np.testing.assert_allclose(results[name].weight @ mean + results[name].bias, exact, atol=1e-4)
