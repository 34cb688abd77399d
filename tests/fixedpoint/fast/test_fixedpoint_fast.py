"""Fast evaluation against the specification's operators: the same integers, everywhere."""

import numpy as np
import pytest
from fixedpoint_builders import adversarial_rows
from model_kinds import KINDS, make_model
from test_fixedpoint_native import at_the_rails

from fixedpoint import Exponential, LayerNorm, Linear, QFormat, Reciprocal, ReciprocalSquareRoot, RMSNorm
from fixedpoint.fast.layers import (
    Buffers,
    PreparedNorm,
    Product,
    exact_dtype,
    exponential_table,
    reciprocal_table,
    root_table,
    round_half_up,
)
from fixedpoint.fast.token import TokenNorm, TokenProduct
from fixedpoint.fast.transformer import FastDecoder, FastTransformer, PreparedBlock, prepared
from fixedpoint.quantization.calibration import QuantizationSettings, calibrate
from fixedpoint.quantization.quantize import quantize_transformer
from model.data import windows
from model.run import RunDirectory

INPUT = OUTPUT = QFormat(8, 4)


MODELS = {**KINDS, "at the rails": at_the_rails}


def random_tokens(model, batch, length, seed=0):
    return np.random.default_rng(seed).integers(0, model.vocab_size, size=(batch, length))


def linear_of(weight, fraction, bias=0, output=OUTPUT):
    weight = np.asarray(weight)
    rows = len(weight)
    return Linear(INPUT, output, weight, 8, np.broadcast_to(fraction, rows).copy(), np.broadcast_to(bias, rows).copy())


# Whole models


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_the_specifications(kind, seed):
    model = MODELS[kind](seed)
    context, fast = model.context_length, FastTransformer(model)
    assert all(isinstance(block, PreparedBlock) for block in fast.blocks)
    for batch, length in ((1, 1), (4, context), (3, (context + 1) // 2)):
        tokens = random_tokens(model, batch, length, seed)
        logits = fast.forward(tokens)
        assert logits.dtype == np.int64
        np.testing.assert_array_equal(logits, model.forward(tokens))
    assert len(np.unique(logits)) > 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_cached_tokens_have_the_same_logits(kind, batch):
    model = MODELS[kind](1)
    tokens = random_tokens(model, batch, model.context_length)
    expected = model.forward(tokens)
    decoder = FastDecoder(model, batch)
    assert (decoder.single is not None) == (batch == 1)
    for first in (1, (model.context_length + 1) // 2):  # a second prefill starts again
        np.testing.assert_array_equal(decoder.prefill(tokens[:, :first]), expected[:, first - 1])
        for position in range(first, model.context_length):
            np.testing.assert_array_equal(decoder.step(tokens[:, position]), expected[:, position])
    with pytest.raises(ValueError, match="cache is full"):
        decoder.step(tokens[:, 0])


@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_bits": 4, "activation_bits": 6}, {"weight_bits": "ternary", "residual_bits": 12}],
    ids=str,
)
def test_a_trained_model(tiny_run_original, settings):
    run = RunDirectory(tiny_run_original)
    trained, chosen = run.load_model(), QuantizationSettings(**settings)
    inputs, targets = windows(np.asarray(run.load_validation_tokens()).astype(np.int64), 16)
    model = quantize_transformer(trained, calibrate(trained, inputs[:8], chosen), chosen)
    expected = model.forward(inputs[:40])
    np.testing.assert_array_equal(prepared(model).forward(inputs[:40]), expected)
    logits = model.logits.output.dequantize(expected)
    chance = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    wanted = -np.log(np.take_along_axis(chance, targets[:40, :, None], axis=-1)).mean()
    assert prepared(model).loss(inputs[:40], targets[:40]) == pytest.approx(wanted, rel=1e-12)


def test_blocks_of_sequences_do_not_change_anything(monkeypatch):
    model = make_model(0)
    tokens = random_tokens(model, 50, 5)
    expected = FastTransformer(model).forward(tokens)
    monkeypatch.setattr("fixedpoint.fast.transformer.BLOCK_ROWS", 11)
    fast = FastTransformer(model)
    np.testing.assert_array_equal(fast.forward(tokens), expected)
    assert fast.loss(tokens, tokens) == pytest.approx(FastTransformer(model).loss(tokens, tokens), rel=1e-14)
    assert fast.forward(tokens[:0]).shape == (0, 5, 11)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[11]], "token must be 0 to 10; got 11"),
        ([[-1]], "got -1"),
        ([[0] * 8], "1 to 7 tokens, not 8"),
        ([[]], "not float64"),
        (np.zeros((1, 0), int), "1 to 7 tokens, not 0"),
        ([0], "must be integers"),
        ([[0.5]], "must be integers"),
    ],
)
def test_bad_tokens(tokens, message):
    with pytest.raises(ValueError, match=message):
        prepared(make_model(0)).forward(np.asarray(tokens))


def test_bad_targets():
    fast, tokens = prepared(make_model(0)), np.zeros((2, 3), int)
    with pytest.raises(ValueError, match="target must be 0 to 10; got 11"):
        fast.loss(tokens, tokens + 11)
    with pytest.raises(ValueError, match="shape"):
        fast.loss(tokens, tokens[:1])


# Products


@pytest.mark.parametrize("origin", [0, 128])
@pytest.mark.parametrize("columns", [1, 40, 1500])
def test_products_at_all_shifts_and_rails(columns, origin):
    """Row shifts from −20 to beyond where everything rounds to 0; biases at their limits; inputs at
    the rails and at random.
    """
    generator = np.random.default_rng(columns)
    shift = np.arange(-20, 72)
    rows = len(shift)
    weight = generator.choice([-128, 127, 0, 1, -1], size=(rows, columns))
    limit = columns << 14
    bias = generator.choice([-limit, limit, 0, 1, 1 - limit], size=rows)
    layer = linear_of(weight, shift, bias)
    assert layer.shift.tolist() == shift.tolist()
    x = np.vstack(
        [
            np.full((1, columns), -128),
            np.full((1, columns), 127),
            np.zeros((1, columns), int),
            np.where(weight[20:40] > 0, 127, -128),
            generator.integers(-128, 128, size=(20, columns)),
        ]
    )
    product, buffers = Product([layer], origin), Buffers()
    expected = layer.compute(x) + origin
    np.testing.assert_array_equal(product.compute(x.astype(np.float32), buffers, "y"), expected)
    for row, wanted in zip(x[:6], expected, strict=False):
        np.testing.assert_array_equal(TokenProduct(product).compute(row.astype(np.float32)), wanted)
    assert product.saturates and len(np.unique(expected)) > 3


@pytest.mark.parametrize(("largest", "dtype"), [(1 << 24, np.float32), ((1 << 24) + 1, np.float64)])
def test_the_bound_of_float32_comes_from_the_actual_weights(largest, dtype):
    """A row whose sum reaches 2**24, or one more, with its bias and the half, beside a small
    one.
    """
    weight = np.stack([np.ones(1024, int), np.full(1024, 127)])
    layer = linear_of(weight, 3, [0, largest - 1024 * 127 * 128 - 4])
    product = Product([layer])
    assert product.bound == largest
    assert product.weight.dtype == product.offset.dtype == dtype
    x = np.full((1, 1024), -128)
    np.testing.assert_array_equal(product.compute(x.astype(np.float32), Buffers(), "y"), layer.compute(x))


def test_a_float32_beyond_its_bound_would_be_wrong():
    """Odd sums above 2**24: rounded to float32 they lose their last bit."""
    layer = linear_of(np.append(np.full(1100, 127), 1)[None], 0, 2_000_000, QFormat(16, -6))
    x = np.random.default_rng(0).integers(100, 128, size=(200, 1101))
    product, exact = Product([layer]), layer.accumulate(x)
    assert product.weight.dtype == np.float64
    half = 1 << 9
    accumulated = product.accumulate(x.astype(np.float32), Buffers(), "y")
    np.testing.assert_array_equal(accumulated, (exact + half) / (1 << 10))
    narrow = x.astype(np.float32) @ layer.weight.T.astype(np.float32) + layer.bias.astype(np.float32)
    assert (narrow != exact).any()


def test_a_clip_that_has_nothing_to_do_is_left_out():
    quiet, loud = linear_of([[64, 63]], 7), linear_of([[64, 64]], 7)
    assert not Product([quiet]).saturates
    assert Product([loud]).saturates  # 128 · 128 / 128 = 128
    x = np.array([[-128, -128], [127, 127]])
    for layer in (quiet, loud):
        np.testing.assert_array_equal(Product([layer]).compute(x.astype(np.float32), Buffers(), "y"), layer.compute(x))


def test_no_float_is_exact_beyond_53_bits():
    assert exact_dtype(1 << 24) == np.float32
    assert exact_dtype((1 << 24) + 1) == exact_dtype(1 << 53) == np.float64
    with pytest.raises(OverflowError, match="not exact"):
        exact_dtype((1 << 53) + 1)


@pytest.mark.parametrize("shift", [0, 1, 20, 31, 32, 51, 52, 53, 54, 63, 200])
def test_numbers_finer_than_a_half_are_rounded_as_integers_are(shift):
    half = 1 << max(shift - 1, 0)
    near = {sign * units * half + less for sign in (-1, 1) for units in (1, 3, 254, 255) for less in (-1, 0, 1)}
    integers = [n for n in (*near, 0, 1, -1, 1 << 31, -(1 << 31)) if abs(n) <= 1 << 31]
    exact = np.ldexp(np.array(integers, float), -shift)
    expected = [min(max((2 * n + (1 << shift)) >> (shift + 1), -128), 127) for n in integers]
    np.testing.assert_array_equal(round_half_up(exact, OUTPUT, np.empty(len(exact), np.float32)), expected)


# Norms


@pytest.mark.parametrize("output_shift", [-6, 0, 5, 11, 30])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 16, 17, 128, 1024])
def test_norms(channels, bits, output_shift):
    generator = np.random.default_rng(channels)
    source, scale_format = QFormat(bits, 4), QFormat(8, 6)
    fraction = LayerNorm.normalized_format(channels).fraction + 6 - output_shift
    output = QFormat(8, fraction)
    scale = generator.integers(-128, 128, size=channels)
    limit = 1 << 22
    shift = generator.choice([-limit, limit, 0, 12345], size=channels)
    x = adversarial_rows(channels, source)
    for norm in (
        LayerNorm(source, scale, scale_format, shift, output, 1),
        LayerNorm(source, scale, scale_format, 0 * shift, output, 12345),
        RMSNorm(source, scale, scale_format, output, 1),
    ):
        check_norm(norm, x)


def check_norm(norm, x):
    expected, prepared = norm.compute(x), PreparedNorm(norm)
    np.testing.assert_array_equal(prepared.compute(x.astype(np.float32), Buffers()), expected)
    single = TokenNorm(prepared)
    for row, wanted in zip(x, expected, strict=True):
        np.testing.assert_array_equal(single.compute(row.astype(np.float64)), wanted)


@pytest.mark.parametrize("scale_bits", [8, 16])
@pytest.mark.parametrize(
    "root", [ReciprocalSquareRoot(2, 3), ReciprocalSquareRoot(7, 18), ReciprocalSquareRoot(12, 13)]
)
def test_norms_with_other_tables(root, scale_bits):
    generator = np.random.default_rng(0)
    scale = generator.integers(-(1 << (scale_bits - 1)), 1 << (scale_bits - 1), size=48)
    arguments = (QFormat(16, 8), scale, QFormat(scale_bits, scale_bits - 2))
    x = adversarial_rows(48, QFormat(16, 8))
    check_norm(LayerNorm(*arguments, np.arange(48), QFormat(8, 5), 7, root), x)
    check_norm(RMSNorm(*arguments, QFormat(16, 12), 7, root), x)


def test_a_norm_too_wide_for_float64_runs_the_specification():
    generator = np.random.default_rng(0)
    norm = LayerNorm(
        QFormat(16, 8), generator.integers(-128, 128, 4096), QFormat(8, 6), np.zeros(4096, int), QFormat(8, 5), 1 << 50
    )
    assert not PreparedNorm(norm).exact
    check_norm(norm, generator.integers(-32768, 32768, size=(3, 4096)))


def test_a_norm_leaves_out_the_clip_that_has_nothing_to_do():
    def prepared(kind, channels):
        shift = {"shift": np.zeros(channels, int)} if kind is LayerNorm else {}
        return PreparedNorm(
            kind(
                input=QFormat(16, 8),
                scale=np.ones(channels, int),
                scale_format=QFormat(8, 6),
                output=QFormat(8, 5),
                epsilon=1,
                **shift,
            )
        )

    assert not prepared(LayerNorm, 128).saturates
    assert prepared(RMSNorm, 64).saturates  # sqrt(64) is the end of the range


# Tables


@pytest.mark.parametrize("root", [ReciprocalSquareRoot(), ReciprocalSquareRoot(7, 12), ReciprocalSquareRoot(12, 18)])
def test_the_table_of_roots_is_the_specifications(root):
    generator = np.random.default_rng(0)
    values = np.concatenate(
        [
            np.arange(1, 1 << 14),
            (1 << 53) - np.arange(1, 100),
            *(generator.integers(1, 1 << k, 200) for k in range(15, 54)),
        ]
    )
    index = (values.astype(np.float64).view(np.int64) >> (53 - root.index_bits)) - (1023 << (root.index_bits - 1))
    expected = root.compute(values)
    np.testing.assert_array_equal(
        root_table(root)[index], np.ldexp(expected.mantissa.astype(float), -expected.exponent)
    )


def test_the_table_of_reciprocals_is_the_specifications():
    table, expected = reciprocal_table(Reciprocal(), 20000), Reciprocal().compute(np.arange(1, 20001))
    np.testing.assert_array_equal(table[1:], np.ldexp(expected.mantissa.astype(float), -expected.exponent))


@pytest.mark.parametrize("fraction", [-9, -3, -1, 0, 1, 7, 8, 9, 10, 15, 22])
@pytest.mark.parametrize(("table_bits", "output_bits"), [(8, 8), (1, 16), (12, 2)])
def test_the_table_of_exponentials_is_the_specifications(fraction, table_bits, output_bits):
    exponential = Exponential(fraction, table_bits, output_bits)
    shift, table = exponential_table(exponential, np.float64)
    assert table[-1] == 0
    distances = np.unique(
        np.concatenate([np.arange(5000), np.random.default_rng(0).integers(0, (len(table) << shift) + 9, 20000)])
    )
    index = np.minimum(distances >> shift, len(table) - 1)
    np.testing.assert_array_equal(table[index], exponential.compute(distances))
