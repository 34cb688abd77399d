import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from fixedpoint_builders import random_norm
from model_kinds import make_model, with_rms_norms
from norm_equations import intermediates
from test_fixedpoint_attention import python_attention, python_linear
from test_fixedpoint_embedding import python_embedding

from fixedpoint import QFormat, QuantizationError, ResidualAdd, Sampler
from fixedpoint.fast.transformer import prepared


def python_norm(norm, x):
    return intermediates(norm, x)["outputs"]


def saturated_sum(a, b):
    return [max(-32768, min(32767, x + y)) for x, y in zip(a, b, strict=True)]


def python_transformer(model, tokens):
    """One sequence of tokens to logits, layer by layer, in Python integers."""
    rows = [python_embedding(model.embedding, token, position) for position, token in enumerate(tokens)]
    for block in model.blocks:
        attended = python_attention(block.attention, [python_norm(block.attention_norm, row) for row in rows])
        rows = [saturated_sum(row, update) for row, update in zip(rows, attended, strict=True)]
        for index, row in enumerate(rows):
            hidden = python_linear(block.up, python_norm(block.feed_forward_norm, row))
            activated = [int(block.activation.table[value - block.up.output.minimum_integer]) for value in hidden]
            rows[index] = saturated_sum(row, python_linear(block.down, activated))
    return [python_linear(model.logits, python_norm(model.final_norm, row)) for row in rows]


@pytest.mark.parametrize("norms", ["layer", "rms"])
@pytest.mark.parametrize("seed", range(2))
def test_equals_scalar_python(seed, norms):
    model = make_model(seed) if norms == "layer" else with_rms_norms(make_model(seed))
    tokens = np.random.default_rng(seed).integers(0, 11, size=(2, 7))
    logits = model.forward(tokens)
    assert logits.shape == (2, 7, 11)
    assert logits.tolist() == [python_transformer(model, sequence) for sequence in tokens.tolist()]
    assert len(np.unique(logits)) > 50


@pytest.mark.parametrize("norms", ["layer", "rms"])
@pytest.mark.parametrize("parts", [[1] * 7, [4, 3], [1, 5, 1]], ids=str)
def test_cached_parts_equal_whole_sequences(parts, norms):
    model = make_model(3) if norms == "layer" else with_rms_norms(make_model(3))
    tokens = np.random.default_rng(3).integers(0, 11, size=(4, 7))
    cache, logits, seen = model.empty_cache(4), [], {}
    for part in np.split(tokens, np.cumsum(parts)[:-1], axis=1):
        result, cache = model.extend(part, cache, lambda name, values: seen.setdefault(name, []).append(values))
        logits.append(result)
    np.testing.assert_array_equal(np.concatenate(logits, axis=1), model.forward(tokens))
    model.forward(
        tokens,
        lambda name, values: np.testing.assert_array_equal(
            np.concatenate(seen.pop(name), axis=1), values, err_msg=name
        ),
    )
    assert not seen


def test_a_full_context_takes_no_token():
    model = make_model(3)
    _, cache = model.extend(np.zeros((1, 7), dtype=int), model.empty_cache(1))
    with pytest.raises(ValueError, match="exceed the context of 7"):
        model.extend(np.zeros((1, 1), dtype=int), cache)


@pytest.mark.parametrize(
    "operator",
    [
        lambda model, x: model.forward(x.astype(float)),
        lambda model, x: model.blocks[0].attention.compute(np.full((7, 12), 0.5)),
        lambda model, x: model.blocks[0].attention_norm.compute(np.full(12, 0.5)),
        lambda model, x: with_rms_norms(model).final_norm.compute(np.full(12, 0.5)),
        lambda model, x: model.blocks[0].activation.compute(np.array([0.5])),
        lambda model, x: model.blocks[0].attention.softmax.compute(np.array([0.5])),
        lambda model, x: model.blocks[0].attention.softmax.exponential.compute(np.array([0.5])),
        lambda model, x: model.blocks[0].attention.reciprocal.compute(np.array([1.5])),
        lambda model, x: ResidualAdd(model.residual).compute(np.array([0.5]), np.array([1])),
        lambda model, x: Sampler(model.logits.output, 1.0).choose(np.array([0.5]), np.array(1, dtype=np.uint32)),
    ],
)
def test_real_values_are_refused_instead_of_cut_off(operator):
    with pytest.raises(TypeError, match="integers"):
        operator(make_model(5), np.zeros((1, 3), dtype=int))


def test_a_single_sequence_needs_no_batch():
    model = make_model(4)
    tokens = np.arange(7)
    np.testing.assert_array_equal(model.forward(tokens), model.forward(tokens[None])[0])


def test_the_residual_saturates_at_each_addition():
    model = make_model(1)
    block = model.blocks[0]
    loud = replace(
        block.down, weight_fraction=block.down.weight_fraction - 6, bias=np.full(block.down.rows, block.down.bias_limit)
    )
    model = replace(model, blocks=(replace(block, down=loud), model.blocks[1]))
    tokens = np.arange(7)[None, :]
    seen = {}
    logits = model.forward(tokens, observe=lambda name, values: seen.setdefault(name, values))
    assert np.abs(seen["blocks.0.feed_forward_residual"]).max() >= 32767
    assert logits.tolist() == [python_transformer(model, tokens[0].tolist())]


def test_later_tokens_never_change_earlier_logits():
    model = make_model(4)
    generator = np.random.default_rng(4)
    tokens = generator.integers(0, 11, size=(1, 7))
    logits = model.forward(tokens)
    for position in range(7):
        changed = tokens.copy()
        changed[0, position:] = (changed[0, position:] + generator.integers(1, 11)) % 11
        other = model.forward(changed)
        np.testing.assert_array_equal(other[:, :position], logits[:, :position])
        assert (other[:, position] != logits[:, position]).any()
        np.testing.assert_array_equal(model.forward(tokens[:, : position + 1]), logits[:, : position + 1])


def test_every_tensor_on_the_way_can_be_observed():
    model = make_model(0)
    names = []
    tokens = np.zeros((1, 3), dtype=np.int64)
    tensors = {}

    def observe(name, values):
        names.append(name)
        tensors[name] = values

    logits = model.forward(tokens, observe)
    parts = [
        "attention_norm",
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.context",
        "attention.output",
        "attention_residual",
        "feed_forward_norm",
        "feed_forward.up",
        "feed_forward.activation",
        "feed_forward.down",
        "feed_forward_residual",
    ]
    expected = [
        "embedding",
        *(f"blocks.{index}.{part}" for index in range(2) for part in parts),
        "final_norm",
        "logits",
    ]
    assert names == expected
    np.testing.assert_array_equal(tensors["logits"], logits)
    total = tensors["blocks.0.feed_forward_residual"] + tensors["blocks.1.attention.output"]
    np.testing.assert_array_equal(tensors["blocks.1.attention_residual"], np.clip(total, -32768, 32767))


def test_the_loss_is_the_mean_cross_entropy():
    model = make_model(2)
    generator = np.random.default_rng(2)
    inputs, targets = generator.integers(0, 11, size=(5, 7)), generator.integers(0, 11, size=(5, 7))
    total = 0.0
    for window, wanted in zip(inputs, targets, strict=True):
        for row, target in zip(python_transformer(model, window.tolist()), wanted.tolist(), strict=True):
            values = [Fraction(logit) / 2**model.logits.output.fraction for logit in row]
            total += math.log(sum(math.exp(value) for value in values)) - float(values[target])
    assert prepared(model).loss(inputs, targets) == pytest.approx(total / 35, rel=1e-12)


def test_the_loss_needs_a_window():
    with pytest.raises(ValueError, match="at least one window"):
        prepared(make_model(0)).loss(np.zeros((0, 7), dtype=np.int64), np.zeros((0, 7), dtype=np.int64))


def test_sizes():
    model = make_model(0)
    assert (model.context_length, model.vocab_size) == (7, 11)
    with pytest.raises(ValueError, match="context of 7"):
        model.forward(np.zeros((1, 8), dtype=np.int64))


def in_block(name, change):
    """A model whose second block has one part replaced."""

    def build(model):
        block = model.blocks[1]
        return {"blocks": (model.blocks[0], replace(block, **{name: change(getattr(block, name))}))}

    return build


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: {"blocks": ()}, "at least one block"),
        (lambda m: {"residual": QFormat(16, 9)}, "residual stream is Q7.9"),
        (
            in_block("attention_norm", lambda n: replace(n, input=QFormat(16, 9))),
            "feed_forward_residual has the format Q6.10, but blocks.1.attention_norm expects",
        ),
        (
            in_block("attention_norm", lambda n: replace(n, output=QFormat(8, 4))),
            "but blocks.1.attention.query expects",
        ),
        (
            in_block("attention", lambda a: replace(a, output=replace(a.output, output=QFormat(16, 9)))),
            "blocks.1.attention.output has the format Q7.9",
        ),
        (in_block("feed_forward_norm", lambda n: replace(n, output=QFormat(8, 4))), "feed_forward.up expects"),
        (in_block("up", lambda layer: replace(layer, output=QFormat(8, 5))), "feed_forward.activation expects"),
        (
            in_block("down", lambda layer: replace(layer, output=QFormat(16, 9))),
            "blocks.1.feed_forward.down has the format Q7.9",
        ),
        (in_block("down", lambda layer: replace(layer, input=QFormat(8, 4))), "feed_forward.down expects"),
        (
            in_block("attention_norm", lambda n: random_norm(np.random.default_rng(0), 11)),
            "blocks.1.attention_norm takes 11 channels, not 12",
        ),
        (
            in_block("feed_forward_norm", lambda n: random_norm(np.random.default_rng(0), 13)),
            "blocks.1.feed_forward_norm takes 13 channels, not 12",
        ),
        (in_block("attention", lambda a: replace(a, num_heads=2)), "heads, context"),
        (in_block("attention", lambda a: replace(a, context_length=6)), "heads, context"),
        (
            lambda m: {"blocks": (m.blocks[0], make_model(0, channels=15).blocks[0])},
            "blocks.1.attention_norm takes 15 channels, not 12",
        ),
        (
            lambda m: {"blocks": (m.blocks[0], replace(m.blocks[1], up=make_model(0, hidden=21).blocks[0].up))},
            "feed_forward.down takes 20 channels, not 21",
        ),
        (lambda m: {"final_norm": random_norm(np.random.default_rng(0), 13)}, "final_norm takes 13 channels, not 12"),
        (
            lambda m: {"final_norm": replace(m.final_norm, output=QFormat(8, 4))},
            "final_norm has the format Q4.4, but logits expects",
        ),
        (lambda m: {"logits": make_model(0, vocab_size=10).logits}, "11 tokens are embedded"),
        (
            lambda m: {"embedding": replace(m.embedding, position=make_model(0, context_length=6).embedding.position)},
            "6 positions",
        ),
    ],
)
def test_layers_must_join(change, message):
    model = make_model(0)
    with pytest.raises(QuantizationError, match=message):
        replace(model, **change(model))
