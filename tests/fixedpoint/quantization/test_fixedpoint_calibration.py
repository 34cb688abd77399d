import math

import numpy as np
import pytest
from fixedpoint_builders import histogram_of

from fixedpoint import QFormat, QuantizationError
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate, layer_names, query_scale
from fixedpoint.quantization.overrides import Overrides
from model import ModelConfig, Transformer


def small_model():
    return Transformer(ModelConfig(vocab_size=9, embed_dim=8, num_heads=2, num_layers=1, ff_dim=16, max_seq_len=6))


def some_tokens(count=5, length=6):
    return np.random.default_rng(0).integers(0, 9, size=(count, length))


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
    """Over an octave of magnitudes, so that some leave less than a quarter below the next power of
    two.
    """
    model, tokens = small_model(), some_tokens()
    model.parameters["token_embedding"] = model.parameters["token_embedding"] * 100 * 2 ** (eighth / 8)
    seen = {}
    model.forward(tokens, observe=lambda name, values: seen.setdefault(name, np.array(values)))
    largest = max(np.abs(seen[name]).max() for name in seen if name == "embedding" or name.endswith("_residual"))
    target = calibrate(model, tokens, QuantizationSettings(calibration="maximum")).formats["residual"]
    assert target.maximum >= 1.25 * largest
    assert QFormat(16, target.fraction + 1).maximum < 1.25 * largest


def test_the_residual_clips_the_rare_and_late_for_the_sake_of_the_early():
    """A stream whose beginning is 100 times smaller than a few values at its end, at widths that
    can and cannot hold both.
    """

    class Growing:
        config = small_model().config

        def forward(self, tokens, observe):
            generator = np.random.default_rng(0)
            early = generator.normal(size=(200, 6, 8))
            late = 3 * generator.normal(size=(200, 6, 8))
            late[0, 0, 0] = 100.0
            observe("embedding", early)
            observe("blocks.0.attention_residual", late)

    ends = {}
    for bits in (16, 12, 8):
        formats = formats_of(Growing(), some_tokens(), residual_bits=bits)
        ends[bits] = formats["residual"].maximum
        assert formats_of(Growing(), some_tokens(), residual_bits=bits, calibration="maximum")["residual"].maximum > 125
    assert ends[16] > 125
    assert 10 < ends[8] < 64


def test_the_query_is_calibrated_with_its_folded_scale():
    model, tokens = small_model(), some_tokens()
    seen = {}
    model.forward(tokens, observe=lambda name, values: seen.setdefault(name, np.array(values, dtype=np.float64)))
    expected = histogram_of(seen["blocks.0.attention.query"] * math.log2(math.e) / 2).least_squares_format(8)
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
    # 1.25 · 3.0 needs three bits before the point
    assert calibration.formats["residual"] == QFormat(16, 13)
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
        ("activation_bits", 11),
        ("residual_bits", 7),
        ("residual_bits", 17),
        ("embedding_bits", 1),
        ("embedding_bits", None),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(QuantizationError, match=f"{name} must be a whole number"):
        QuantizationSettings(**{name: value})


@pytest.mark.parametrize("name", ["calibration", "scales", "rounding"])
def test_methods_are_checked(name):
    with pytest.raises(QuantizationError, match=f"{name} must be .* or .*, not 'entropy'"):
        QuantizationSettings(**{name: "entropy"})


def formats_of(model, tokens, **settings):
    return calibrate(model, tokens, QuantizationSettings(**settings)).formats


def test_methods_clip_less_and_less():
    """Least squared error clips the most, the percentile few values, the maximum none."""
    model = small_model()
    # one channel far larger than the others
    model.parameters["blocks.0.attention_norm.scale"][0] *= 40
    tokens = some_tokens(400)
    name = "blocks.0.attention_norm"
    seen = []
    model.forward(tokens, observe=lambda tensor, values: seen.append(values) if tensor == name else None)
    peak = float(np.abs(seen[0]).max())
    ends = {
        method: formats_of(model, tokens, activation_bits=4, calibration=method)[name].maximum
        for method in ("least-squares", "percentile", "maximum")
    }
    assert ends["least-squares"] <= ends["percentile"] <= ends["maximum"]
    assert peak <= ends["maximum"] < 2.3 * peak
    assert ends["least-squares"] < ends["maximum"]
    rare = float(np.percentile(np.abs(seen[0]), 99.9))
    assert ends["percentile"] >= rare


def test_moments_are_those_of_what_the_layers_read():
    model, tokens = small_model(), some_tokens()
    seen = {}
    model.forward(tokens, observe=lambda name, values: seen.setdefault(name, np.array(values, dtype=np.float64)))
    moments = calibrate(model, tokens, QuantizationSettings()).moments
    block = "blocks.0"
    assert set(moments) == {
        *(
            f"{block}.{name}"
            for name in ("attention_norm", "attention.context", "feed_forward_norm", "feed_forward.activation")
        ),
        "final_norm",
    }
    for name, one in moments.items():
        rows = seen[name].reshape(-1, seen[name].shape[-1])
        np.testing.assert_allclose(one.covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-5)
    assert not calibrate(model, tokens, QuantizationSettings(rounding="nearest")).moments


def test_the_same_text_gives_the_same_calibration():
    first, second = (calibrate(small_model(), some_tokens(40), QuantizationSettings()) for _ in range(2))
    assert first.formats == second.formats
    assert first.tensors == second.tensors


def override(content, **settings):
    return calibrate(small_model(), some_tokens(), QuantizationSettings(**settings), Overrides.from_dict(content))


def test_overrides_change_what_they_name():
    plain = calibrate(small_model(), some_tokens(), QuantizationSettings())
    changed = override(
        {
            "*.feed_forward.*": {"activation_bits": 6, "weight_bits": 4},
            "final_norm": {"format": "Q4.3"},
            "logits": {"format": "Q3.9"},
        }
    )
    assert changed.weight_bits == {"blocks.0.feed_forward.up": 4, "blocks.0.feed_forward.down": 4}
    different = {name for name in plain.formats if plain.formats[name] != changed.formats[name]}
    assert different == {"blocks.0.feed_forward.up", "blocks.0.feed_forward.activation", "final_norm", "logits"}
    assert changed.formats["blocks.0.feed_forward.up"].bits == 6
    assert changed.formats["final_norm"] == QFormat(7, 3)
    assert dict(zip([t.name for t in changed.tensors], changed.tensors, strict=True))["final_norm"].format == "Q4.3"


def test_names_that_overrides_may_use_are_listed():
    assert layer_names(small_model().config) == [
        *(f"blocks.0.attention.{name}" for name in ("query", "key", "value", "output")),
        *(f"blocks.0.feed_forward.{name}" for name in ("up", "down")),
        "logits",
        "token_embedding",
        "position_embedding",
    ]
    with pytest.raises(QuantizationError, match=r"names are: .*blocks\.0\.attention\.context, .*residual"):
        override({"blocks.0.attention.output": {"format": "Q4.4"}})


@pytest.mark.parametrize(
    ("name", "text"),
    [("final_norm", "Q-3.11"), ("blocks.0.feed_forward.up", "Q-4.12"), ("residual", "Q-8.16"), ("logits", "Q-5.17")],
)
def test_a_given_format_that_does_not_hold_its_tensor_is_refused(name, text):
    with pytest.raises(QuantizationError, match=rf"{name} does not fit {text}, .*would saturate, the largest is"):
        override({name: {"format": text}})
