import math

import numpy as np
import pytest

from fixedpoint import Overflow, QFormat, QuantizationError, Rounding
from fixedpoint.calibration import (
    QuantizationSettings,
    calibrate,
    least_squares_format,
    query_scale,
    signal_to_noise,
)
from model import ModelConfig, Transformer


def small_model():
    return Transformer(ModelConfig(vocab_size=9, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16, max_seq_len=6))


def some_tokens(count=5, length=6):
    return np.random.default_rng(0).integers(0, 9, size=(count, length))


def noise(values, target):
    return float(
        ((target.dequantize(target.quantize(values, Rounding.HALF_UP, Overflow.SATURATE)) - values) ** 2).sum()
    )


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("seed", range(5))
def test_the_format_has_the_least_noise_of_its_candidates(bits, seed):
    generator = np.random.default_rng(seed)
    values = generator.standard_t(2 + seed, size=2000) * 10.0 ** generator.integers(-3, 4)
    chosen = least_squares_format(values, bits)
    covering = max(f for f in range(-30, 40) if np.abs(values).max() * 2.0**f <= (1 << (bits - 1)) - 1)
    assert covering <= chosen.fraction <= covering + 2
    assert noise(values, chosen) == min(noise(values, QFormat(bits, covering + finer)) for finer in range(3))


def test_outliers_are_clipped_where_that_pays():
    values = np.concatenate([np.full(1, 4.1), np.random.default_rng(0).normal(size=5000) * 0.5])
    assert least_squares_format(values, 4).maximum < 4.1
    assert least_squares_format(np.array([1.0, -1.0]), 8).maximum >= 1


@pytest.mark.parametrize("constant", [0.0, 1.0, -3.7, 1e-40, 1e20])
def test_constant_activations_have_a_format(constant):
    chosen = least_squares_format(np.full(10, constant), 8)
    assert chosen.fraction <= 20  # what two factors of a score may have, so that the exponential can read it
    assert noise(np.full(10, constant), chosen) <= 10 * max((constant / 64) ** 2, 1e-12)


def test_every_tensor_gets_a_format_and_a_measure():
    calibration = calibrate(small_model(), some_tokens(), QuantizationSettings(activation_bits=6, residual_bits=14))
    block = "blocks.0"
    activations = {
        f"{block}.attention_norm",
        *(f"{block}.attention.{name}" for name in ("query", "key", "value", "context")),
        f"{block}.feed_forward_norm",
        f"{block}.feed_forward.up",
        f"{block}.feed_forward.activation",
        "final_norm",
    }
    assert set(calibration.formats) == activations | {"residual", "logits"}
    assert {calibration.formats[name].bits for name in activations} == {6}
    assert calibration.formats["residual"].bits == calibration.formats["logits"].bits == 14
    residuals = {"embedding", f"{block}.attention_residual", f"{block}.feed_forward_residual"}
    assert {tensor.name for tensor in calibration.tensors} == activations | residuals | {"logits"}
    for tensor in calibration.tensors:
        assert 15 < tensor.signal_to_noise < 100, tensor
        assert 0 <= tensor.saturated < 0.1, tensor


@pytest.mark.parametrize("eighth", range(8))
def test_the_residual_has_headroom_above_all_its_tensors(eighth):
    """Over an octave of magnitudes, so that some leave less than a quarter below the next power of two."""
    model, tokens = small_model(), some_tokens()
    model.parameters["token_embedding"] = model.parameters["token_embedding"] * 100 * 2 ** (eighth / 8)
    seen = {}
    model.forward(tokens, observe=lambda name, values: seen.setdefault(name, np.array(values)))
    largest = max(np.abs(seen[name]).max() for name in seen if name == "embedding" or name.endswith("_residual"))
    target = calibrate(model, tokens, QuantizationSettings()).formats["residual"]
    assert target.maximum >= 1.25 * largest
    assert QFormat(16, target.fraction + 1).maximum < 1.25 * largest


def test_the_query_is_calibrated_with_its_folded_scale():
    model, tokens = small_model(), some_tokens()
    seen = {}
    model.forward(tokens, observe=lambda name, values: seen.setdefault(name, np.array(values, dtype=np.float64)))
    expected = least_squares_format(seen["blocks.0.attention.query"] * math.log2(math.e) / 2, 8)
    assert calibrate(model, tokens, QuantizationSettings()).formats["blocks.0.attention.query"] == expected
    assert query_scale(4) == pytest.approx(math.log2(math.e) / 2, rel=1e-15)


def test_all_batches_count():
    """The largest values are in the last of three batches."""
    model = small_model()
    tokens = np.zeros((40, 6), dtype=np.int64)
    quiet = calibrate(model, tokens, QuantizationSettings()).formats["residual"]
    tokens[-1] = 7
    model.parameters["token_embedding"][7] *= 100
    assert calibrate(model, tokens, QuantizationSettings()).formats["residual"].fraction < quiet.fraction


def test_observed_arrays_may_be_reused():
    """The float model works in place: what it shows is only valid while it shows it."""

    class InPlace:
        config = small_model().config

        def forward(self, tokens, observe):
            x = np.full((*tokens.shape, 8), 3.0)
            observe("embedding", x)
            observe("blocks.0.attention.query", x)
            x[...] = 0.01
            observe("blocks.0.attention_residual", x)

    calibration = calibrate(InPlace(), some_tokens(), QuantizationSettings())
    assert calibration.formats["residual"] == QFormat(16, 13)  # 1.25 · 3.0 needs three bits before the point
    query = calibration.formats["blocks.0.attention.query"]
    assert query.minimum < 3.0 * math.log2(math.e) / 2 < 4 * query.maximum
    assert query.maximum > 1


@pytest.mark.parametrize("tokens", [np.zeros((0, 6)), np.zeros((3, 0)), np.zeros(6), np.zeros((1, 2, 3)), []])
def test_too_little_text_is_refused(tokens):
    with pytest.raises(QuantizationError, match="longer text"):
        calibrate(small_model(), np.asarray(tokens, dtype=np.int64), QuantizationSettings())


def test_activations_that_are_not_finite_are_named():
    model = small_model()
    model.parameters["blocks.0.feed_forward.down.bias"][0] = np.nan
    with pytest.raises(QuantizationError, match=r"activation blocks\.0\.feed_forward\.down is NaN or infinite"):
        calibrate(model, some_tokens(), QuantizationSettings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_bits", 1),
        ("weight_bits", 9),
        ("weight_bits", 8.0),
        ("weight_bits", True),
        ("weight_bits", "8"),
        ("weight_bits", "binary"),
        ("activation_bits", 3),
        ("activation_bits", 9),
        ("residual_bits", 7),
        ("residual_bits", 17),
        ("embedding_bits", 1),
        ("embedding_bits", None),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(QuantizationError, match=f"{name} must be a whole number"):
        QuantizationSettings(**{name: value})


def test_signal_to_noise():
    signal = np.array([3.0, 4.0])
    assert signal_to_noise(signal, signal) == math.inf
    assert signal_to_noise(signal, signal + np.array([0.3, 0.4])) == pytest.approx(20)
    assert signal_to_noise(np.zeros(2), np.ones(2)) == -math.inf
