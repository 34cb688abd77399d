"""Quantization-aware training: the float model computes with the integer model's numbers, and its
loss is the integer model's.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from fixedpoint.errors import QuantizationError
from fixedpoint.fast.transformer import prepared
from fixedpoint.qformat import Overflow, Rounding
from fixedpoint.quantization.calibration import QuantizationSettings, integer_factor, query_scale
from fixedpoint.quantization.quantization_aware import FREEZING_STAGES, QuantizationAware
from fixedpoint.quantization.quantize import named_linears
from fixedpoint.quantization.tensor_rounding import round_half_up
from model import CharacterTokenizer, InputError, RunDirectory, Transformer, generate_stories, train_model
from model.data import windows
from model.parameters import Parameters, parameter_shapes
from model.training.fine_tuning import fine_tune_model
from model.training.train import resume_model

SHAPE = {"embed_dim": 16, "num_heads": 2, "num_layers": 2, "max_seq_len": 16}
FLOAT = {"num_steps": 150, "batch_size": 8, "learning_rate": 1e-2, "num_workers": 1, "seed": 1}
FINE = {**FLOAT, "num_steps": 40, "learning_rate": 3e-3, "evaluate_every": 10, "seed": 2, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def float_run(tmp_path_factory):
    """A small float model, trained. Not to be changed."""
    text = generate_stories(12_000, seed=5)
    tokenizer = CharacterTokenizer()
    tokenizer.train(text)
    model = Transformer({"vocab_size": tokenizer.vocab_size, **SHAPE}, seed=1)
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "float")
    train_model(model, tokenizer, text, FLOAT, directory=run.path, progress=False)
    return run


def number_format(run, weight_bits=3, **widths):
    inputs, _ = windows(run.load_training_tokens(), SHAPE["max_seq_len"])
    return QuantizationAware.from_model(
        run.load_model(), inputs[:32], QuantizationSettings(weight_bits=weight_bits, **widths)
    )


def rounded_model(quantization, model, num_shares=1):
    result = Transformer(model.config)
    for share in range(num_shares):
        quantization.round_parameters(model.parameters.flat, result.parameters.flat, share, num_shares)
    return result


def held_out(run):
    return windows(run.load_validation_tokens(), SHAPE["max_seq_len"])


def test_rounding_is_half_up_on_ties_too():
    values = np.arange(-140 * 1024, 140 * 1024, dtype=np.float64) / 1024
    result = values.astype(np.float32)
    round_half_up(result, -128, 127)
    np.testing.assert_array_equal(result, np.clip(np.floor(values + 0.5), -128, 127))


@pytest.mark.parametrize("weight_bits", [8, 4, 3, 2, "ternary"])
def test_rounded_parameters_are_what_the_integer_model_holds(float_run, weight_bits):
    model, quantization = float_run.load_model(), number_format(float_run, weight_bits, activation_bits=6)
    # least squares would not find these again
    quantization.fractions["blocks.0.feed_forward.up.weight"][:] -= 2
    rounded = rounded_model(quantization, model, 3)
    integers = quantization.quantize(rounded)
    for name, layer in named_linears(integers).items():
        parameter = "output.weight" if name == "logits" else f"{name}.weight"
        np.testing.assert_array_equal(layer.weight_fraction, quantization.fractions[parameter], err_msg=name)
        weight = rounded.parameters[parameter].astype(np.float64)
        scale = query_scale(SHAPE["embed_dim"] // SHAPE["num_heads"]) if name.endswith("query") else 1.0
        np.testing.assert_allclose(layer.dequantized_weight(), weight * scale, rtol=2**-22, err_msg=name)
        assert weight_bits != "ternary" or set(np.unique(layer.weight)) <= {-1, 0, 1}
    for table, name in (
        (integers.embedding.token, "token_embedding"),
        (integers.embedding.position, "position_embedding"),
    ):
        values = np.ldexp(table.weight.astype(np.float64), -table.weight_fraction[:, None])
        np.testing.assert_array_equal(values, rounded.parameters[name], err_msg=name)
    norm = integers.final_norm
    np.testing.assert_array_equal(norm.scale_format.dequantize(norm.scale), rounded.parameters["final_norm.scale"])
    assert (rounded.parameters.flat != model.parameters.flat).any()
    for name, layer in named_linears(integers).items():
        if name != "logits":
            bias = np.ldexp(layer.bias.astype(np.float64), -layer.weight_fraction - layer.input.fraction)
            scale = query_scale(SHAPE["embed_dim"] // SHAPE["num_heads"]) if name.endswith("query") else 1.0
            np.testing.assert_allclose(
                bias, rounded.parameters[f"{name}.bias"] * np.float64(scale), rtol=2**-22, err_msg=name
            )
            moved = np.abs(rounded.parameters[f"{name}.bias"] - model.parameters[f"{name}.bias"]) * scale
            assert (np.ldexp(moved, layer.weight_fraction + layer.input.fraction) < 0.501).all(), name
    shift = "blocks.1.feed_forward_norm.shift"
    np.testing.assert_array_equal(rounded.parameters[shift], model.parameters[shift])


def test_shares_make_up_the_whole_and_rounding_twice_changes_nothing(float_run):
    model, quantization = float_run.load_model(), number_format(float_run)
    whole = rounded_model(quantization, model)
    for num_shares in (2, 3, 50):
        shared = rounded_model(quantization, model, num_shares)
        np.testing.assert_array_equal(shared.parameters.flat, whole.parameters.flat)
    again = rounded_model(quantization, whole)
    np.testing.assert_allclose(again.parameters.flat, whole.parameters.flat, rtol=2**-22)


def test_tensors_are_rounded_to_their_formats(float_run):
    quantization = number_format(float_run)
    generator = np.random.default_rng(0)
    for name in (
        "blocks.0.attention.key",
        "blocks.1.feed_forward.activation",
        "final_norm",
        "blocks.1.attention.query",
    ):
        target, scale = quantization.formats[name], query_scale(8) if name.endswith("query") else 1.0
        values = (generator.normal(size=(40, 16)) * target.maximum / scale / 2).astype(np.float32)
        result = values.copy()
        quantization.round_tensor(name, result)
        expected = target.quantize(values * np.float64(scale), Rounding.HALF_UP, Overflow.SATURATE)
        np.testing.assert_allclose(result * scale, target.dequantize(expected), rtol=1e-6, err_msg=name)
    for name in ("logits", "blocks.0.attention.weights", "blocks.0.attention_residual"):
        values = generator.normal(size=(3, 5)).astype(np.float32)
        result = values.copy()
        quantization.round_tensor(name, result)
        np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("activation_bits", [8, 6])
def test_each_rounded_tensor_is_the_integer_models(float_run, activation_bits):
    """One tensor from the last, so that what differs does not spread: a number next to a tie may
    fall to its other side.
    """
    quantization = number_format(float_run, 4, activation_bits=activation_bits)
    model = rounded_model(quantization, float_run.load_model())
    inputs, targets = (part[:8] for part in held_out(float_run))
    integers: dict[str, np.ndarray] = {}
    quantization.quantize(model).forward(inputs, observe=lambda name, values: integers.setdefault(name, values))
    formats = {**dict.fromkeys(integers, quantization.formats["residual"]), **quantization.formats}
    different, steps = {}, {}

    def compare(name, values):
        quantization.round_tensor(name, values)
        if name in integers:
            factor = query_scale(model.config.head_dim) if name.endswith("attention.query") else 1
            exact = (formats[name].dequantize(integers[name]) / factor).reshape(values.shape)
            distance = np.abs(values - exact) * (factor / formats[name].resolution)
            steps[name], different[name] = distance.max(), float((distance > 0.5).mean())
            values[...] = exact

    model.loss_and_gradients(inputs, targets, transform=compare)
    rounded = quantization.formats.keys() & different.keys() - {"logits"}
    assert {"final_norm", "blocks.1.attention_norm", "blocks.0.feed_forward.activation"} <= rounded
    for name in rounded:
        # Linear layers and what follows them pointwise are exact. Roots, exponentials and
        # reciprocals have tables in the integer model. The query's factor is no power of two, so
        # its float sums are not exact, and ties, one in 2**shift, fall to either side.
        near = "_norm" in name or name.endswith(("attention.query", "attention.context"))
        assert different[name] < (0.05 if near else 1e-9), name
        assert steps[name] < 1.01, name
    for name in different.keys() - rounded:
        # of 2**16 steps: exponentials have 8 bits
        limit = 100 if name.endswith("attention.output") else 1e-9
        assert steps[name] < limit, name


def test_gradients_go_straight_through(float_run):
    """With the identity in place of a rounding, and the rounding of the parameters apart, nothing
    differs.
    """
    model = rounded_model(number_format(float_run), float_run.load_model())
    inputs, targets = (part[:4] for part in held_out(float_run))
    _, plain = model.loss_and_gradients(inputs, targets)
    expected = plain.flat.copy()
    seen = []
    _, hooked = model.loss_and_gradients(inputs, targets, transform=lambda name, values: seen.append(name))
    np.testing.assert_array_equal(hooked.flat, expected)
    assert {"blocks.1.attention.query", "blocks.0.feed_forward.up", "final_norm"} <= set(seen)

    def change(name, values):
        if name == "blocks.1.feed_forward.activation":
            values[...] = np.round(values * 2) / 2

    loss, changed = model.loss_and_gradients(inputs, targets, transform=change)
    assert np.abs(changed.flat - expected).max() > 1e-4
    assert loss != model.loss(inputs, targets)


def test_training_prints_the_loss_that_the_integer_model_has(float_run, tmp_path):
    quantization = number_format(float_run)
    inputs, targets = held_out(float_run)
    before = quantization.loss(rounded_model(quantization, float_run.load_model()), inputs, targets)
    model, result = fine_tune_model(
        float_run.path, tmp_path / "run", FINE, progress=False, straight_through=quantization
    )
    run = RunDirectory(tmp_path / "run")
    assert result.validation_loss < before - 0.02
    loaded, recorded = run.load_model(), QuantizationAware.load(run)
    assert prepared(recorded.quantize(loaded)).loss(inputs, targets) == result.validation_loss
    assert run.load_training_record()["results"]["validation_loss"] == result.validation_loss
    np.testing.assert_array_equal(loaded.parameters.flat, model.parameters.flat)
    again = rounded_model(recorded, loaded)
    np.testing.assert_allclose(again.parameters.flat, loaded.parameters.flat, rtol=2**-22)
    np.testing.assert_array_equal(recorded.teacher, float_run.load_model().parameters.flat)
    assert float_run.load_training_record()["total_steps"] == FLOAT["num_steps"]


MODERN = {
    "position": "rotary",
    "activation": "swiglu",
    "norm": "rms",
    "num_heads": 4,
    "num_kv_heads": 2,
    "use_bias": False,
}


def test_rotations_and_gates_are_rounded_as_in_the_integer_model(float_run):
    """One tensor from the last, as above. Cosines are not rounded in training, so a few numbers
    fall to the other side of a tie.
    """
    shape = {**float_run.load_model().config.to_dict(), **MODERN}
    model = Transformer(shape, seed=4)
    inputs, targets = (part[:8] for part in held_out(float_run))
    settings = QuantizationSettings(weight_bits=4)
    quantization = QuantizationAware.from_model(model, inputs, settings)
    rounded = rounded_model(quantization, model)
    integers: dict[str, np.ndarray] = {}
    quantized = quantization.quantize(rounded)
    quantized.forward(inputs, observe=lambda name, values: integers.setdefault(name, values))
    formats = {**dict.fromkeys(integers, quantization.formats["residual"]), **quantization.formats}
    steps = {}

    def compare(name, values):
        quantization.round_tensor(name, values)
        if name in integers:
            factor = integer_factor(model.config, name)
            exact = (formats[name].dequantize(integers[name]) / factor).reshape(values.shape)
            steps[name] = (np.abs(values - exact) * (factor / formats[name].resolution)).ravel()
            values[...] = exact

    rounded.loss_and_gradients(inputs, targets, transform=compare)
    parts = ("attention.rotated_query", "attention.rotated_key", "feed_forward.gate_activation")
    for name in [f"blocks.{index}.{part}" for index in (0, 1) for part in (*parts, "feed_forward.activation")]:
        assert steps[name].max() < 1.5
        assert (steps[name] > 0.5).mean() < 0.02, name
    assert quantization.loss(rounded, inputs, targets) == pytest.approx(
        prepared(quantized).loss(inputs, targets), abs=1e-12
    )
    for name, gradient in rounded.gradients.items():
        assert np.isfinite(gradient).all(), name
        assert gradient.any(), name


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_and_resumed_run_ends_with_the_same_bytes(float_run, tmp_path, workers):
    settings = {**FINE, "num_steps": 20, "num_workers": workers}
    losses = []
    for name, limit in (("whole", None), ("parts", 1e-9)):
        _, result = fine_tune_model(
            float_run.path,
            tmp_path / name,
            {**settings, "time_limit": limit},
            progress=False,
            straight_through=number_format(float_run),
        )
        sessions = 1
        while result.interrupted:
            model, tokenizer, config = resume_model(tmp_path / name)
            result = train_model(
                model,
                tokenizer,
                None,
                config,
                directory=tmp_path / name,
                resume=True,
                progress=False,
                straight_through=QuantizationAware.load(RunDirectory(tmp_path / name)),
            )
            sessions += 1
        losses.append(result.validation_loss)
    assert sessions > 1
    assert losses[0] == losses[1]
    whole, parts = (RunDirectory(tmp_path / name).model_weights.read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_workers_compute_the_same_step(float_run, tmp_path):
    settings = {**FINE, "num_steps": 3, "evaluate_every": 3}
    weights = []
    for workers in (1, 2):
        fine_tune_model(
            float_run.path,
            tmp_path / str(workers),
            {**settings, "num_workers": workers},
            progress=False,
            straight_through=number_format(float_run, 8),
        )
        weights.append(dict(np.load(tmp_path / str(workers) / "training_state.npz"))["parameters"])
        latent = float_run.load_model()
        latent.parameters.flat[:] = weights[-1]
        # the only loss was that after the last step
        kept = RunDirectory(tmp_path / str(workers)).load_model()
        expected = rounded_model(number_format(float_run, 8), latent)
        np.testing.assert_array_equal(kept.parameters.flat, expected.parameters.flat)
    # each worker freezes the nearest weights of its own rows: others, where a few steps differ
    difference = np.abs(weights[0] - weights[1])
    assert np.quantile(difference, 0.9) < 2e-3
    assert difference.max() < 0.02


def test_tied_model_is_trained_with_output_weights_of_their_own_width(float_run, tmp_path):
    tied = Transformer({**float_run.load_model().config.to_dict(), "tie_embeddings": True}, seed=2)
    tokens = np.random.default_rng(0).integers(0, tied.config.vocab_size, (8, 16))
    quantization = QuantizationAware.from_model(tied, tokens, QuantizationSettings(weight_bits=3))
    rounded = rounded_model(quantization, tied.untied())
    count = [
        max(len(np.unique(row)) for row in rounded.parameters[name]) for name in ("output.weight", "token_embedding")
    ]
    assert count[0] <= 8 < count[1]
    integers = quantization.quantize(rounded)
    np.testing.assert_array_equal(integers.logits.dequantized_weight(), rounded.parameters["output.weight"])
    table = integers.embedding.token
    values = np.ldexp(table.weight, -table.weight_fraction[:, None])  # (V, C), (V, 1) -> (V, C)
    np.testing.assert_array_equal(values, rounded.parameters["token_embedding"])

    source = RunDirectory(tmp_path / "tied")
    shutil.copytree(float_run.path, source.path)
    source.save_model(tied)
    model, _ = fine_tune_model(
        source.path,
        tmp_path / "3bit",
        {"num_steps": 1, "num_workers": 1},
        progress=False,
        straight_through=quantization,
    )
    assert not model.config.tie_embeddings
    assert not np.array_equal(model.parameters["output.weight"], model.parameters["token_embedding"])
    assert RunDirectory(tmp_path / "3bit").load_model().config == model.config


@pytest.mark.parametrize(("bits", "num_shares"), [("ternary", 1), (4, 2)])
def test_weights_freeze_in_stages(float_run, bits, num_shares):
    """A frozen weight keeps its value whatever the optimizer does, half of the rest joins in each
    stage, and a run that stops and goes on knows which they are.
    """
    total, generator = 3 * FREEZING_STAGES + 2, np.random.default_rng(0)
    quantization, model = number_format(float_run, bits), float_run.load_model()
    latent, used = model.parameters.flat.copy(), np.empty_like(model.parameters.flat)
    names = [name for name in model.parameters if name.endswith(".weight")]
    frozen = {name: np.zeros(model.parameters[name].shape, bool) for name in names}
    shares = []
    for step in range(total):
        before = Parameters(parameter_shapes(model.config), latent.copy())
        if step % 4 == 3:
            used[:] = np.nan  # another process would not have it
        for share in range(num_shares):
            quantization.begin_step(latent, used, share, num_shares, step, total)
        now = Parameters(parameter_shapes(model.config), used)
        exact = rounded_model(quantization, model_of(model, latent)).parameters
        for name in names:
            on_grid = now[name] == exact[name]
            assert (on_grid >= frozen[name]).all()
            assert np.array_equal(now[name][frozen[name]], before[name][frozen[name]])
            frozen[name] = on_grid
        shares.append(np.mean([values.mean() for values in frozen.values()]))
        for name in ("token_embedding", "blocks.0.attention.query.bias"):
            np.testing.assert_array_equal(now[name], exact[name])
        kept = latent.copy()
        # what the optimizer does
        latent += generator.normal(0, 0.02, latent.shape).astype(np.float32)
        moved = latent.copy()
        for share in range(num_shares):
            quantization.end_step(latent, used, share, num_shares)
        flat = Parameters(parameter_shapes(model.config), np.zeros(latent.size, np.float32))
        for name in names:
            flat[name] = frozen[name]
        np.testing.assert_array_equal(latent, np.where(flat.flat == 1, kept, moved))
    stages = [step * FREEZING_STAGES // total for step in range(total)]
    expected = [1 if stage == FREEZING_STAGES - 1 else 1 - 0.5 ** (stage + 1) for stage in stages]
    # of values far outside the range all are equally near
    np.testing.assert_allclose(shares, expected, atol=0.1)
    assert (np.array(shares) >= expected).all()


def model_of(model, parameters):
    return Transformer(model.config, parameters=parameters)


def test_saved_formats_are_checked(float_run, tmp_path):
    quantization, run = number_format(float_run), RunDirectory(tmp_path)
    quantization.save(run)
    loaded = QuantizationAware.load(run)
    assert loaded.to_dict() == quantization.to_dict()
    content = json.loads(run.number_format.read_text())

    def refused(message, **changes):
        run.number_format.write_text(json.dumps({**content, **changes}))
        with pytest.raises(InputError, match=message):
            QuantizationAware.load(run)

    refused("version 2; this program reads", version=2)
    refused("the formats lack blocks.0.attention_norm", formats={"residual": "Q4.12"})
    refused("fractions are of other matrices", fractions={})
    refused("needs 16 fractions", fractions={**content["fractions"], "blocks.0.attention.key.weight": [3]})
    refused(
        "needs 16 fractions from -128", fractions={**content["fractions"], "blocks.0.attention.key.weight": [300] * 16}
    )
    refused("describes no number format", settings={"weight_bits": 9})
    refused("describes no number format", settings=None)
    refused("describes no number format", hard_target_share="much")
    refused("share must be from 0 to 1, not 2", hard_target_share=2)
    older = {name: value for name, value in content.items() if name != "hard_target_share"}
    run.number_format.write_text(json.dumps(older))
    assert QuantizationAware.load(run).hard_target_share == 0
    run.number_format.write_text(json.dumps(content))
    run.teacher_weights.write_bytes(b"not a file of arrays")
    with pytest.raises(InputError, match="is damaged"):
        QuantizationAware.load(run)
    with pytest.raises(QuantizationError, match="the formats lack"):
        dataclasses.replace(quantization, formats={})


def test_fine_tuning_leaves_the_source_alone(float_run, tmp_path):
    before = {path.name: path.read_bytes() for path in float_run.path.iterdir()}
    with pytest.raises(InputError, match="choose another directory"):
        fine_tune_model(float_run.path, float_run.path, FINE)
    _, result = fine_tune_model(float_run.path, tmp_path / "run", {**FINE, "num_steps": 10}, progress=False)
    assert result.step == 10
    assert {path.name: path.read_bytes() for path in float_run.path.iterdir()} == before
    run = RunDirectory(tmp_path / "run")
    assert not run.number_format.exists()
    np.testing.assert_array_equal(run.load_validation_tokens(), float_run.load_validation_tokens())
    assert run.load_training_record()["source"] == float_run.load_training_record()["source"]
