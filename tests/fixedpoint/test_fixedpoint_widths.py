from dataclasses import replace

import numpy as np
import pytest
from fixedpoint_builders import NORMED, RESIDUAL, random_attention, random_linear
from model_kinds import KINDS, make_model, with_rms_norms

from fixedpoint import (
    Embedding,
    EmbeddingTable,
    LayerNorm,
    Linear,
    QFormat,
    QuantizationError,
    ReciprocalSquareRoot,
    RMSNorm,
    accumulator_table,
)
from fixedpoint.operators.attention import CausalAttention
from fixedpoint.qformat import bits_for
from fixedpoint.widths import (
    AccumulatorWidth,
    _embedding_width,
    _linear_width,
    linear_range,
    operator_widths,
    output_range,
)


def widths(generator):
    return {row.name: row for row in generator}


def attention_widths(attention):
    projections = attention.query, attention.key, attention.value
    return operator_widths(attention.core, "a.context", *map(output_range, projections))


def extremes(linear):
    """For each row the two inputs that reach its ends: (2R, K)."""
    low, high = linear.input.minimum_integer, linear.input.maximum_integer
    return np.concatenate([np.where(linear.weight > 0, low, high), np.where(linear.weight > 0, high, low)])


MODELS = {
    "layer": make_model(0),
    "rms": with_rms_norms(make_model(1)),
    "one layer": make_model(2, num_layers=1, channels=8, num_heads=1, context_length=1, vocab_size=2),
}


@pytest.fixture(params=MODELS, scope="module")
def model(request):
    return MODELS[request.param]


def reached_by_linear(linear):
    accumulators = linear.accumulate(extremes(linear))
    return int(accumulators.min()), int(accumulators.max())


def reached_by_norm(norm, quantity):
    """The smallest and largest of a quantity over the rows that are meant to reach them."""
    channels, low, high = norm.channels, norm.input.minimum_integer, norm.input.maximum_integer
    rows = [np.zeros(channels), np.full(channels, low), np.full(channels, high)]
    for ones in range(channels):
        for a, b in ((low, high), (high, low)):
            rows.append(np.where(np.arange(channels) < ones, a, b))
    rows = np.array(rows).astype(np.int64)
    total, squares = rows.sum(axis=1), (rows**2).sum(axis=1)
    mean = isinstance(norm, LayerNorm)
    values = {
        "sum": total,
        "square_sum": squares,
        "scaled_square_sum": channels * squares + norm.epsilon,
        "variance": channels * squares - mean * total**2 + norm.epsilon,
        "difference": channels * rows - mean * total[:, None],
    }[quantity]
    return int(values.min()), int(values.max())


def reached_by_attention(attention, quantity):
    softmax, length = attention.softmax, attention.context_length
    found = []
    for token in extremes(attention.value):
        for count in (1, length):
            same = np.tile(token, (count, 1))
            numerators = softmax.numerators(attention.scores(same))  # (H, T, T), all full
            values = attention.core._split(attention.value.compute(same))
            found.append(numerators.sum(axis=-1) if quantity == "denominator" else numerators @ values)
    return min(int(values.min()) for values in found), max(int(values.max()) for values in found)


def reached_by_embedding(embedding, context_length):
    tokens = embedding.token.compute(np.arange(len(embedding.token.weight)), embedding.output)
    positions = embedding.position.compute(np.arange(context_length), embedding.output)
    sums = tokens[:, None] + positions[None]
    return int(sums.min()), int(sums.max())


def reached(model, name):
    """Run the operator behind a row of the table on the inputs that reach its worst case."""
    if name == "embedding":
        return reached_by_embedding(model.embedding, model.context_length)
    if name == "logits":
        return reached_by_linear(model.logits)
    if name == "sampling.index":
        return 0, model.vocab_size - 1
    if name.startswith("final_norm"):
        return reached_by_norm(model.final_norm, name.split(".")[1])
    _, index, operator, *quantity = name.split(".")
    block = model.blocks[int(index)]
    if operator.endswith("_norm"):
        return reached_by_norm(getattr(block, operator), quantity[0])
    if operator.endswith("_residual"):
        outputs = {"attention_residual": block.attention.output, "feed_forward_residual": block.down}[operator]
        values = outputs.compute(extremes(outputs))
        return model.residual.minimum_integer + int(values.min()), model.residual.maximum_integer + int(values.max())
    if quantity[0] in ("denominator", "weighted_sum"):
        return reached_by_attention(block.attention, quantity[0])
    return reached_by_linear(getattr(block if operator == "feed_forward" else block.attention, quantity[0]))


def test_every_worst_case_is_reached_exactly(model):
    checked = 0
    for row in accumulator_table(model):
        if row.exact:
            assert (row.lowest, row.highest) == reached(model, row.name), row.name
            checked += 1
    assert checked >= 19


def test_every_operator_is_in_the_table_once(model):
    names = [row.name for row in accumulator_table(model)]
    assert len(set(names)) == len(names)
    seen = []
    model.forward(np.zeros((1, 1), dtype=int), observe=lambda name, values: seen.append(name))
    for name in seen:
        wanted = name.replace(".context", ".context_product")
        covered = any(row == wanted or row.startswith(f"{name}.") for row in names)
        assert covered or name.endswith("activation"), name  # a table has no accumulator


def test_nothing_exceeds_the_table(model):
    """Random inputs at and between the rails, through every operator."""
    generator = np.random.default_rng(4)
    rows = widths(accumulator_table(model))

    def inputs(form, *shape):
        values = generator.integers(form.minimum_integer, form.maximum_integer, size=shape, endpoint=True)
        rails = generator.choice([form.minimum_integer, form.maximum_integer], size=shape)
        return np.where(generator.random(shape) < 0.5, values, rails)

    def inside(name, values):
        assert rows[name].lowest <= values.min() <= values.max() <= rows[name].highest, name

    for index, block in enumerate(model.blocks):
        attention, prefix = block.attention, f"blocks.{index}"
        x = inputs(attention.query.input, 50, attention.context_length, attention.embed_dim)
        for name in ("query", "key", "value", "output"):
            inside(f"{prefix}.attention.{name}", getattr(attention, name).accumulate(x))
        scores = attention.scores(x)
        inside(f"{prefix}.attention.scores", scores)
        numerators = attention.softmax.numerators(scores)
        inside(f"{prefix}.attention.denominator", numerators.sum(axis=-1))
        weighted = numerators @ attention.core._split(attention.value.compute(x))
        inside(f"{prefix}.attention.weighted_sum", weighted)
        scale = attention.reciprocal.compute(numerators.sum(axis=-1, keepdims=True))
        inside(f"{prefix}.attention.context_product", weighted * scale.mantissa)
        for name in ("attention_norm", "feed_forward_norm"):
            norm = getattr(block, name)
            x = inputs(norm.input, 200, norm.channels)
            mean = isinstance(norm, LayerNorm)
            difference = norm.channels * x - mean * x.sum(axis=1, keepdims=True)
            variance = (norm.channels * (x * x).sum(axis=1) - mean * x.sum(axis=1) ** 2)[:, None] + norm.epsilon
            inside(f"{prefix}.{name}.difference", difference)
            inside(f"{prefix}.{name}.variance", variance)
            mantissa = norm.reciprocal_square_root.compute(variance).mantissa
            inside(f"{prefix}.{name}.root_product", difference * mantissa)
            products = norm._normalize(difference, variance) * norm.scale + (norm.shift if mean else 0)
            inside(f"{prefix}.{name}.product", products)
        inside(f"{prefix}.feed_forward.down", block.down.accumulate(inputs(block.down.input, 200, block.down.columns)))


# Single quantities


def test_rotations_and_products_reach_what_the_table_says():
    model = KINDS["rotary, gated, grouped queries, rms norm"](0)
    rows = {row.name: row for row in accumulator_table(model)}
    block = model.blocks[0]
    for name, source, rotation in zip(
        ("query", "key"), (block.attention.query, block.attention.key), block.attention.rotations, strict=True
    ):
        values = source.compute(extremes(source))
        ends = int(values.min()), int(values.max())
        cosine, sine = rotation.table.cosine, rotation.table.sine
        sums = [part for a in ends for b in ends for part in (a * cosine - b * sine, a * sine + b * cosine)]
        largest, row = int(np.abs(sums).max()), rows[f"blocks.0.attention.rotated_{name}.sum"]
        assert row.lowest == -row.highest
        assert 0.99 * row.highest <= largest <= row.highest
    gates = block.activation.output.minimum_integer, block.activation.output.maximum_integer
    ups = block.up.compute(extremes(block.up))
    products = [gate * int(up) for gate in gates for up in (ups.min(), ups.max())]
    row = rows["blocks.0.feed_forward.activation.product"]
    assert (row.lowest, row.highest) == (min(products), max(products))


def test_a_row_by_hand():
    layer = Linear(
        QFormat(8, 0), QFormat(16, 0), np.array([[3, -2], [0, 0]]), 8, np.zeros(2, dtype=int), np.array([100, -5])
    )
    low, high = linear_range(layer)
    assert low.tolist() == [3 * -128 - 2 * 127 + 100, -5]
    assert high.tolist() == [3 * 127 + 2 * 128 + 100, -5]


@pytest.mark.parametrize("bias", [-5000, 0, 5000])
def test_partial_sums_in_any_order(bias):
    """The largest is met when all terms of one sign come first, and no permutation exceeds it."""
    generator = np.random.default_rng(6)
    layer = random_linear(generator, 3, 8, NORMED, RESIDUAL)
    layer = replace(layer, bias=np.full(3, bias))
    model = make_model(3, channels=8, num_heads=2)
    model = replace(
        model, logits=replace(model.logits, weight=np.tile(layer.weight, (4, 1))[:11], bias=np.full(11, bias))
    )
    row = widths(accumulator_table(model))["logits"]
    largest = 0
    for x in extremes(layer):
        for weights in layer.weight:
            terms = np.append(weights * x, bias)
            for order in (np.argsort(terms), np.argsort(-terms), *(generator.permutation(9) for _ in range(20))):
                largest = max(largest, int(np.abs(np.cumsum(terms[order])).max()))
    assert largest == row.partial


@pytest.mark.parametrize(("weights", "bias"), [([-10, -20], -3), ([10, 20], 3), ([-10, -20], 3), ([10, 20], -3)])
def test_a_bias_that_comes_last_may_leave_the_larger_partial_sum(weights, bias):
    layer = Linear(NORMED, RESIDUAL, np.array([weights]), 8, np.zeros(1, dtype=int), np.array([bias]))
    partials = [bias]
    for x in extremes(layer):
        products = int((layer.weight[0] * x).sum())
        partials += [products, products + bias]
    assert _linear_width("a", layer).partial == max(abs(value) for value in partials)


def test_an_embedding_sum_counts_what_cancels():
    def table(value):
        return EmbeddingTable(np.full((2, 3), value), 8, np.full(2, 3))

    row = _embedding_width(Embedding(table(120), table(-110), QFormat(16, 3)), 2)
    assert (row.lowest, row.highest, row.partial) == (10, 10, 120)
    row = _embedding_width(Embedding(table(100), table(-110), QFormat(16, 3)), 2)
    assert (row.lowest, row.highest, row.partial) == (-10, -10, 110)


@pytest.mark.parametrize("sign", [1, -1])
def test_values_of_one_sign_are_weighted_at_least_once(sign):
    attention = random_attention(np.random.default_rng(8), channels=4, num_heads=2, context_length=5)
    value = attention.value
    weight = np.full((4, 4), sign)
    attention = replace(attention, value=replace(value, weight=weight, bias=np.full(4, sign * 4000)))
    row = widths(attention_widths(attention))["a.weighted_sum"]
    assert (row.lowest, row.highest) == reached_by_attention(attention, "weighted_sum")
    assert (row.lowest if sign > 0 else -row.highest) > 0


def independent_attention(bias):
    """Projections whose channels read channels of their own, so that all reach their ends at
    once.
    """
    attention = random_attention(np.random.default_rng(7), channels=8, num_heads=2, context_length=4)
    weight = np.diag([127, -127, 90, 3, -50, 127, 60, -1])

    def diagonal(linear, signs):
        return replace(linear, weight=weight, weight_fraction=np.full(8, 7), bias=bias * signs * np.arange(1, 9))

    # With a large bias some products have one sign whatever the input, others the other.
    signs = np.array([1, -1, 1, -1, -1, 1, 1, 1])
    return replace(attention, query=diagonal(attention.query, 1), key=diagonal(attention.key, signs))


@pytest.mark.parametrize("bias", [0, 300, 4000])
def test_scores_reach_their_range_where_channels_are_independent(bias):
    attention = independent_attention(bias)
    row = widths(attention_widths(attention))["a.scores"]
    assert not row.exact
    # The key's ends follow from the query's, so the worst case is searched among the corners of
    # every channel alone.
    low, high = (attention.query.compute(x)[:, None] for x in (np.full((1, 8), -128), np.full((1, 8), 127)))
    query = np.concatenate([low, high])[:, 0]  # (2, C)
    key = np.concatenate([attention.key.compute(np.full((1, 8), x)) for x in (-128, 127)])
    products = np.array([query[i] * key[j] for i in (0, 1) for j in (0, 1)]).reshape(4, 2, 4)
    best, worst = products.argmax(axis=0).ravel(), products.argmin(axis=0).ravel()
    found = []
    for corner in (best, worst):
        # (2, C)
        tokens = np.array([np.where(corner // 2, 127, -128), np.where(corner % 2, 127, -128)])
        found.append(attention.scores(tokens)[:, 0, 1])
    assert (int(found[1].min()), int(found[0].max())) == (row.lowest, row.highest)
    sums = np.maximum(products.max(axis=0), 0).sum(axis=1), np.maximum(-products.min(axis=0), 0).sum(axis=1)
    assert row.partial == max(int(ends.max()) for ends in sums)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("channels", [2, 5, 16, 128])
@pytest.mark.parametrize("table", [ReciprocalSquareRoot(), ReciprocalSquareRoot(4, 8)], ids=["10 bits", "4 bits"])
def test_the_largest_normalized_element_is_met_within_a_unit(kind, channels, table):
    """Rows of one element of every size: the worst of all, since the rest is as small as can be."""
    scale, form = np.full(channels, 64), QFormat(8, 6)
    if kind == "layer":
        norm = LayerNorm(RESIDUAL, scale, form, np.zeros(channels, dtype=int), NORMED, 1, table)
        sizes = np.arange(1, 1 << 16)[:, None]
        difference, variance = (channels - 1) * sizes, (channels - 1) * sizes**2 + 1
    else:
        norm = RMSNorm(RESIDUAL, scale, form, NORMED, 1, table)
        sizes = np.arange(1, 1 << 15)[:, None]
        difference, variance = channels * sizes, channels * sizes**2 + 1
    largest = int(norm._normalize(difference, variance).max()) * 64
    row = widths(operator_widths(norm, "n"))["n.product"]
    assert 0 <= row.highest - largest <= 64
    assert row.lowest >= -row.highest - 64


@pytest.mark.parametrize("table", [ReciprocalSquareRoot(), ReciprocalSquareRoot(4, 8), ReciprocalSquareRoot(2, 3)])
def test_the_largest_ratio_is_a_tight_bound(table):
    values = np.arange(1, 1 << 18)
    root = table.compute(values)
    ratio = (np.ldexp(root.mantissa.astype(float), -root.exponent) * np.sqrt(values)).max()
    assert table.largest_ratio * (1 - 2**-15) < ratio < table.largest_ratio


@pytest.mark.parametrize(
    ("row", "bits", "headroom", "margin"),
    [
        (AccumulatorWidth("a", -128, 127, 128, 8), 8, 0, 16),
        (AccumulatorWidth("a", -129, 127, 129, 12), 9, 3, 16),
        (AccumulatorWidth("a", 0, 255, 255, 8, signed=False), 8, 0, 16),
        (AccumulatorWidth("a", 1, 256, 256, 8, signed=False), 9, -1, 15),
        (AccumulatorWidth("a", 5, 5, (1 << 24) - 1, 32), 4, 28, 0),
        (AccumulatorWidth("a", 0, 0, 1 << 24, 32), 1, 31, -1),
    ],
)
def test_bits_headroom_and_margin(row, bits, headroom, margin):
    assert (row.bits, row.headroom, row.float32_margin) == (bits, headroom, margin)


def test_the_margin_is_that_of_float32():
    """Ones added until the margin is used up, and one more bit."""
    for bits, exact in ((24, True), (25, False)):
        values = np.full(2, (1 << bits) - 1, dtype=np.int64)
        assert (values.astype(np.float32).astype(np.int64) == values).all() == exact
        assert (AccumulatorWidth("a", 0, 0, int(values[0]), 32).float32_margin >= 0) == exact


# Refusals


def test_a_weight_that_was_changed_is_refused():
    """Arrays can be written to after a layer has checked them."""
    model = make_model(5)
    accumulator_table(model)
    bits = model.blocks[1].up.accumulator_bits
    model.blocks[1].up.weight[3] = 30_000
    with pytest.raises(QuantizationError, match=rf"blocks\.1\.feed_forward\.up needs 27 bits and has {bits}$"):
        accumulator_table(model)


def test_the_smallest_overflow_is_refused():
    """A bias of one unit beyond the last that fits."""
    model = make_model(6)
    logits = model.logits
    end = (1 << (logits.accumulator_bits - 1)) - 1
    logits.bias[2] += end - linear_range(logits)[1][2]
    assert widths(accumulator_table(model))["logits"].headroom == 0
    logits.bias[2] += 1
    with pytest.raises(QuantizationError, match="logits needs"):
        accumulator_table(model)


def test_every_accumulator_that_could_overflow_is_named():
    model = make_model(7)
    model.logits.weight[0], model.blocks[0].attention.key.bias[1] = 99_999, 1 << 40
    with pytest.raises(QuantizationError, match=r"blocks\.0\.attention\.key needs 42 bits.*; logits needs 29 bits"):
        accumulator_table(model)


def test_an_embedding_too_coarse_for_32_bits_is_refused():
    model = make_model(8)
    table = model.embedding.token
    coarse = EmbeddingTable(table.weight, 8, table.weight_fraction - table.weight_fraction.max() - 17)
    model = replace(model, embedding=replace(model.embedding, token=coarse))
    with pytest.raises(QuantizationError, match=r"embedding needs 3[3-9] bits and has 32"):
        accumulator_table(model)


def test_a_vocabulary_too_large_for_the_sampler_is_refused():
    model = make_model(9, num_layers=1, channels=3, num_heads=1, context_length=1)
    generator = np.random.default_rng(0)
    vocabulary = (1 << 16) + 2
    token = EmbeddingTable(generator.integers(-9, 9, size=(vocabulary, 3)), 8, np.full(vocabulary, 4))
    logits = replace(
        model.logits,
        weight=generator.integers(-9, 9, size=(vocabulary, 3)),
        weight_fraction=np.full(vocabulary, 4),
        bias=np.zeros(vocabulary, dtype=int),
    )
    model = replace(model, embedding=replace(model.embedding, token=token), logits=logits)
    with pytest.raises(QuantizationError, match=r"sampling\.index needs 17 bits and has 16"):
        accumulator_table(model)


def test_a_type_that_declares_too_little_is_refused(monkeypatch):
    """Where a width's formula were wrong, the weights would show it."""
    model = make_model(10)
    needed = widths(accumulator_table(model))["blocks.0.attention.weighted_sum"].bits
    monkeypatch.setattr(CausalAttention, "weighted_sum_bits", needed - 1)
    with pytest.raises(QuantizationError, match=rf"weighted_sum needs {needed} bits and has {needed - 1}"):
        accumulator_table(model)
    assert bits_for(-(1 << (needed - 1)), 0, True) == needed
