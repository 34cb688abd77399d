import math

import numpy as np
import pytest

from fixedpoint import QFormat, QuantizationError, load_export, save_export
from fixedpoint.fast.transformer import prepared
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate, query_scale
from fixedpoint.quantization.overrides import Overrides
from fixedpoint.quantization.quantize import named_linears, quantize_transformer, weight_table
from model import ModelConfig, Transformer

SHAPE = {"vocab_size": 12, "embed_dim": 16, "num_heads": 2, "num_layers": 2, "ff_dim": 32, "max_seq_len": 16}


def sequences(generator, count):
    """Counting in steps of 1 to 3 modulo 12: the step is learned from context, the next token
    follows.
    """
    starts, steps = generator.integers(0, 12, size=(count, 1)), generator.integers(1, 4, size=(count, 1))
    return (starts + steps * np.arange(17)) % 12


@pytest.fixture(scope="module")
def trained():
    """A small model after 300 steps of Adam on counting sequences."""
    generator = np.random.default_rng(0)
    model = Transformer(ModelConfig(**SHAPE))
    first = {name: np.zeros_like(values) for name, values in model.parameters.items()}
    second = {name: np.zeros_like(values) for name, values in model.parameters.items()}
    for step in range(1, 301):
        batch = sequences(generator, 24)
        _, gradients = model.loss_and_gradients(batch[:, :-1], batch[:, 1:])
        for name, gradient in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.99 * second[name] + 0.01 * gradient**2
            correction = math.sqrt(1 - 0.99**step) / (1 - 0.9**step)
            model.parameters[name] = model.parameters[name] - 0.005 * correction * first[name] / (
                np.sqrt(second[name]) + 1e-8
            )
    return model


@pytest.fixture(scope="module")
def held_out():
    batch = sequences(np.random.default_rng(1), 64)
    return batch[:, :-1], batch[:, 1:]


def quantized(model, tokens, **widths):
    settings = QuantizationSettings(**widths)
    return quantize_transformer(model, calibrate(model, tokens, settings), settings)


def fresh(**changes):
    return Transformer(ModelConfig(**(SHAPE | changes)))


def tokens_for(model, count=3):
    config = model.config
    return np.random.default_rng(2).integers(0, config.vocab_size, size=(count, config.max_seq_len))


@pytest.mark.parametrize(("weight_bits", "allowed"), [(8, 0.002), (6, 0.005), (4, 0.05)])
def test_the_loss_barely_changes(trained, held_out, weight_bits, allowed):
    inputs, targets = held_out
    float_loss = float(trained.loss(inputs, targets))
    # it has learned something that quantization could destroy
    assert float_loss < 0.5 * math.log(12)
    integer_loss = prepared(quantized(trained, inputs[:16], weight_bits=weight_bits)).loss(inputs, targets)
    assert abs(integer_loss - float_loss) < allowed


def test_ternary_weights_are_ternary(trained, held_out):
    inputs, targets = held_out
    model = quantized(trained, inputs[:16], weight_bits="ternary")
    for name, layer in named_linears(model).items():
        assert set(np.unique(layer.weight)) == {-1, 0, 1}, name
        assert layer.weight_bits == 2
    assert prepared(model).loss(inputs, targets) < math.log(12)


def test_compensation_is_worth_it_where_there_are_few_bits(trained, held_out):
    inputs, targets = held_out
    losses = {
        rounding: prepared(quantized(trained, inputs[:16], weight_bits=3, rounding=rounding)).loss(inputs, targets)
        for rounding in ("compensated", "nearest")
    }
    assert losses["compensated"] < losses["nearest"]


def test_one_scale_a_tensor(trained, held_out):
    for rounding in ("compensated", "nearest"):
        model = quantized(trained, held_out[0][:16], scales="tensor", rounding=rounding)
        for name, layer in named_linears(model).items():
            assert len(set(layer.weight_fraction.tolist())) == 1, name


def test_one_scale_a_tensor_leaves_room_for_the_largest_bias():
    model = fresh()
    model.parameters["blocks.0.feed_forward.up.bias"][3] = 1000
    for rounding in ("compensated", "nearest"):
        layer = quantized(model, tokens_for(model), scales="tensor", rounding=rounding).blocks[0].up
        assert len(set(layer.weight_fraction.tolist())) == 1
        assert abs(layer.bias[3] * 2.0 ** -(layer.input.fraction + layer.weight_fraction[3]) - 1000) < 1


def test_overridden_layers_have_their_widths(trained, held_out):
    content = {
        "blocks.0.*": {"weight_bits": 4},
        "blocks.1.feed_forward.*": {"weight_bits": "ternary", "activation_bits": 6},
        "position_embedding": {"weight_bits": 6},
    }
    settings = QuantizationSettings()
    calibration = calibrate(trained, held_out[0][:16], settings, Overrides.from_dict(content))
    model = quantize_transformer(trained, calibration, settings)
    for name, layer in named_linears(model).items():
        expected = 4 if name.startswith("blocks.0") else 2 if "blocks.1.feed_forward" in name else 8
        assert layer.weight_bits == expected, name
    assert set(np.unique(model.blocks[1].up.weight)) == {-1, 0, 1}
    assert model.embedding.position.weight_bits == 6
    assert model.blocks[1].activation.input.bits == model.blocks[1].activation.output.bits == 6
    assert prepared(model).loss(*held_out) < math.log(12)


def test_layers_of_one_attention_may_differ_in_their_weights(trained, held_out, tmp_path):
    inputs = held_out[0]
    settings = QuantizationSettings(weight_bits=3)
    overrides = Overrides.from_dict(
        {"*.attention.output": {"weight_bits": 8}, "*.attention.key": {"weight_bits": "ternary"}}
    )
    model = quantize_transformer(trained, calibrate(trained, inputs[:16], settings, overrides), settings)
    assert [getattr(model.blocks[0].attention, name).weight_bits for name in ("query", "key", "value", "output")] == [
        3,
        2,
        3,
        8,
    ]
    save_export(model, tmp_path / "mixed")
    expected = model.forward(inputs[:8])
    np.testing.assert_array_equal(load_export(tmp_path / "mixed").forward(inputs[:8]), expected)
    np.testing.assert_array_equal(prepared(model).forward(inputs[:8]), expected)


def test_joints_that_overrides_break_are_named(trained, held_out):
    settings = QuantizationSettings()
    overrides = Overrides.from_dict({"blocks.1.attention.key": {"activation_bits": 6}})
    calibration = calibrate(trained, held_out[0][:16], settings, overrides)
    with pytest.raises(
        QuantizationError, match=r"block 1: attention's activations must all be 8 bits wide, not \[6, 8\]"
    ):
        quantize_transformer(trained, calibration, settings)


def test_every_tensor_on_the_way_is_near_the_float_one(trained, held_out):
    inputs, _ = held_out
    floats, integers = {}, {}
    trained.forward(
        inputs[:4], observe=lambda name, values: floats.setdefault(name, np.array(values, dtype=np.float64))
    )
    settings = QuantizationSettings()
    calibration = calibrate(trained, inputs[:16], settings)
    model = quantize_transformer(trained, calibration, settings)
    model.forward(inputs[:4], observe=lambda name, values: integers.setdefault(name, values))
    assert set(integers) <= set(floats)
    assert len(integers) == 2 * 12 + 3
    for name, values in integers.items():
        produced = (
            calibration.formats[name] if name in calibration.formats else calibration.formats["residual"]
        ).dequantize(values)
        factor = query_scale(trained.config.head_dim) if name.endswith("attention.query") else 1
        error = np.sqrt(((produced - factor * floats[name]) ** 2).mean() / ((factor * floats[name]) ** 2).mean())
        assert error < 0.08, name


def test_the_export_of_a_trained_model_predicts_the_same(trained, held_out, tmp_path):
    inputs, _ = held_out
    model = quantized(trained, inputs[:16], weight_bits=4)
    save_export(model, tmp_path / "model")
    np.testing.assert_array_equal(load_export(tmp_path / "model").forward(inputs), model.forward(inputs))


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "rms"},
        {"position": "sinusoidal"},
        {"position": "rotary"},
        {"activation": "swiglu"},
        {"num_kv_heads": 1},
        {"position": "rotary", "activation": "swiglu", "num_kv_heads": 1, "norm": "rms", "use_bias": False},
        {"tie_embeddings": True},
        {"use_bias": False},
        {"activation": "relu"},
        {"activation": "relu_squared"},
        {"activation": "silu"},
        {"activation": "gelu_tanh"},
        {"num_heads": 1},
        {"num_heads": 16},
        {"num_layers": 1, "max_seq_len": 1},
    ],
    ids=str,
)
def test_every_supported_model(changes):
    model = fresh(**changes)
    tokens = tokens_for(model)
    logits = quantized(model, tokens).logits.output.dequantize(quantized(model, tokens).forward(tokens))
    exact = np.asarray(model.forward(tokens), dtype=np.float64)
    assert np.sqrt(((logits - exact) ** 2).mean()) < 0.1 * np.sqrt((exact**2).mean()) + 0.01


@pytest.mark.parametrize(
    "changes",
    [{"max_seq_len": 4097}, {"max_seq_len": 4097, "position": "sinusoidal"}],
    ids=str,
)
def test_models_that_exist_only_in_floats_are_refused_with_all_reasons(changes):
    model = fresh(**changes)
    calibration = calibrate(fresh(), tokens_for(fresh()), QuantizationSettings())
    for work in (
        lambda: calibrate(model, tokens_for(fresh()), QuantizationSettings()),
        lambda: quantize_transformer(model, calibration, QuantizationSettings()),
    ):
        with pytest.raises(QuantizationError, match="the model cannot be quantized: ") as refused:
            work()
        assert "max_seq_len 4,097 (" in str(refused.value)


def test_settings_name_every_impossible_width():
    with pytest.raises(QuantizationError, match=r"weight.* not 9; activation_bits .* not 3; rounding must be"):
        QuantizationSettings(weight_bits=9, activation_bits=3, rounding="up")


def test_all_weights_that_are_not_finite_are_named():
    model = fresh()
    calibration = calibrate(model, tokens_for(model), QuantizationSettings())
    for name in ("token_embedding", "final_norm.shift"):
        model.parameters[name].flat[0] = math.nan
    with pytest.raises(QuantizationError, match=r"weight token_embedding is NaN.*; weight final_norm.shift is NaN"):
        quantize_transformer(model, calibration, QuantizationSettings())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["token_embedding", "blocks.1.attention.key.weight", "final_norm.shift"])
def test_weights_that_are_not_finite_are_named(name, bad):
    model = fresh()
    calibration = calibrate(model, tokens_for(model), QuantizationSettings())
    model.parameters[name].flat[0] = bad
    with pytest.raises(QuantizationError, match=f"weight {name} is NaN or infinite"):
        quantize_transformer(model, calibration, QuantizationSettings())


def test_all_zero_rows_and_constant_activations():
    """A dead layer: zero keys make every attention uniform, a zero up-projection makes its
    activation constant.
    """
    model = fresh()
    for name in ("blocks.0.attention.key", "blocks.0.feed_forward.up"):
        model.parameters[f"{name}.weight"][...] = 0
        model.parameters[f"{name}.bias"][...] = 0
    model.parameters["blocks.1.attention.value.weight"][3] = 0
    model.parameters["token_embedding"][5] = 0
    tokens = tokens_for(model)
    result = quantized(model, tokens)
    assert not result.blocks[0].attention.key.weight.any()
    exact = np.asarray(model.forward(tokens), dtype=np.float64)
    logits = result.logits.output.dequantize(result.forward(tokens))
    assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max() + 0.01


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e3])
def test_queries_of_any_size(scale):
    model = fresh()
    model.parameters["blocks.0.attention.query.weight"][...] *= scale
    tokens = tokens_for(model)
    logits = quantized(model, tokens).forward(tokens)
    assert len(np.unique(logits)) > 10


def test_an_accumulator_beyond_32_bits_is_refused():
    model = fresh()
    settings = QuantizationSettings()
    calibration = calibrate(model, tokens_for(model), settings)
    wide = dict(calibration.formats) | {"blocks.0.feed_forward_norm": QFormat(30, 20)}
    with pytest.raises(QuantizationError):
        quantize_transformer(model, type(calibration)(wide, calibration.tensors), settings)


def test_the_softmax_scale_is_folded_into_the_query(trained, held_out):
    inputs, _ = held_out
    model = quantized(trained, inputs[:16], rounding="nearest")
    exact = trained.parameters["blocks.0.attention.query.weight"].astype(np.float64) * math.log2(math.e) / math.sqrt(8)
    layer = model.blocks[0].attention.query
    assert np.abs(layer.dequantized_weight() - exact).max() <= 2.0 ** -layer.weight_fraction.min()
    assert query_scale(8) == pytest.approx(math.log2(math.e) / math.sqrt(8), rel=1e-15)


def test_the_weight_table_measures_every_layer(trained, held_out):
    fine = weight_table(trained, quantized(trained, held_out[0][:16], weight_bits=8, rounding="nearest"))
    coarse = weight_table(trained, quantized(trained, held_out[0][:16], weight_bits=3, rounding="nearest"))
    assert [row.name for row in fine] == [
        f"{name}.weight" for name in named_linears(quantized(trained, held_out[0][:16]))
    ]
    assert len(fine) == 2 * 6 + 1
    for eight, three in zip(fine, coarse, strict=True):
        assert 35 < eight.signal_to_noise < 60, eight
        assert 8 < three.signal_to_noise < 25, three
        assert 0 <= eight.saturated < 0.2
