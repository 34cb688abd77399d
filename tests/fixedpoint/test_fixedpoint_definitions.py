"""What becomes of real numbers: each rounding at its ties, each constant from both sides, worked
out in rational numbers.
"""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from fixedpoint_builders import histogram_of

from fixedpoint import LayerNorm, Linear, QFormat, QuantizationError, RMSNorm, Sampler, TableActivation
from fixedpoint.operators.embedding import Embedding, EmbeddingTable
from fixedpoint.operators.exponential import Exponential
from fixedpoint.operators.reciprocal import Reciprocal, ReciprocalSquareRoot
from fixedpoint.operators.row_norm import whole_epsilon
from fixedpoint.quantization.calibration import QuantizationSettings, _checked, _choose, _residual_format
from fixedpoint.quantization.error_compensation import Feedback, Moments, compensate
from fixedpoint.quantization.histogram import HALF, covering_format
from fixedpoint.quantization.overrides import ResolvedOverrides
from fixedpoint.row_scales import least_squares_fractions, quantize_rows

INPUT, OUTPUT = QFormat(8, 5), QFormat(8, 3)
# In units of a format: whole numbers, ties between even and odd neighbours on both sides of 0, and
# what is next to a tie.
UNITS = np.concatenate(
    [np.arange(-9, 10) / 2, [1.25, -1.25, 1.75, -1.75, np.nextafter(2.5, 0), np.nextafter(-2.5, -3)]]
)


def half_up(value):
    return math.floor(Fraction(value) + Fraction(1, 2))


ROUNDED = [half_up(unit) for unit in UNITS]


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_a_linears_weights_and_biases_round_half_up(weight_bits):
    fraction = np.full(len(UNITS), 6)
    weight, bias = np.ldexp(UNITS[:, None], -6), np.ldexp(UNITS, -6 - INPUT.fraction)
    layer = Linear.from_float(weight, bias, weight_bits, INPUT, OUTPUT, fraction)
    assert layer.weight_fraction.tolist() == fraction.tolist()
    assert layer.bias.tolist() == ROUNDED
    assert layer.weight[:, 0].tolist() == ROUNDED


def test_ternary_weights_round_half_up_and_saturate():
    weights = quantize_rows(np.ldexp(UNITS[None], -3), np.array([3]), "ternary")
    assert weights[0].tolist() == [min(1, max(-1, rounded)) for rounded in ROUNDED]


def test_an_embeddings_entries_round_half_up():
    table = EmbeddingTable.from_float(np.ldexp([[100.0, *UNITS]], -4), 8)
    assert (table.weight_fraction.tolist(), table.weight.tolist()) == ([4], [[100, *ROUNDED]])


def test_a_norms_gamma_and_beta_round_half_up():
    gamma = np.append(np.ldexp(UNITS, -6), 1.0)  # the largest one decides about their format
    count = len(gamma)
    product = LayerNorm.normalized_format(count).fraction + 6
    layer_norm = LayerNorm.from_float(gamma, np.append(np.ldexp(UNITS, -product), 0), 1e-5, INPUT, OUTPUT, 8)
    rms_norm = RMSNorm.from_float(gamma, 1e-5, INPUT, OUTPUT, 8)
    for norm in (layer_norm, rms_norm):
        assert norm.scale_format == QFormat(8, 6)
        assert norm.scale.tolist() == [*ROUNDED, 64]
    assert layer_norm.shift.tolist() == [*ROUNDED, 0]


def test_a_norms_epsilon_is_rounded_to_the_nearest_even_and_at_least_1():
    units = [0.0, 0.4, 1.5, 2.5, 2.6, 3.5, 1e6]
    assert [whole_epsilon(unit / 9 / 2**10, 3, INPUT) for unit in units] == [1, 1, 2, 2, 3, 4, 10**6]


def test_an_activations_table_rounds_half_up():
    source, target = QFormat(5, 0), QFormat(8, 3)
    table = TableActivation.from_function(lambda x: (x + 0.5) / 8, source, target)
    assert table.table.tolist() == [code + 1 for code in range(-16, 16)]


def test_a_samplers_multiplier_is_the_nearest_of_16_bits():
    generator = np.random.default_rng(0)
    for temperature in [1.0, 0.8, 0.3, 2.0, *np.exp2(generator.uniform(-9, 9, 2000)).tolist()]:
        sampler = Sampler(QFormat(16, 10), temperature)
        exact = Fraction(math.log2(math.e)) / Fraction(
            temperature
        )  # in real logits; half a unit of the last place is all that is lost
        wanted = exact * Fraction(2) ** (sampler.shift + 11 - sampler.logits.fraction)
        assert 1 << 15 <= sampler.multiplier < 1 << 16
        assert abs(sampler.multiplier - wanted) <= Fraction(1, 2) + Fraction(1, 1 << 20)


NOTHING = ResolvedOverrides()


@pytest.mark.parametrize("outliers, covered", [(12, True), (9, False)])
def test_a_percentile_leaves_out_one_value_in_ten_thousand(outliers, covered):
    values = np.full(100_000, 0.9)
    values[:outliers] = 7.5
    chosen = _choose("any", histogram_of(values), QuantizationSettings(calibration="percentile"), NOTHING, False)
    assert chosen == covering_format(7.5 if covered else 0.9, 8)


@pytest.mark.parametrize("calibration", ["maximum", "percentile"])
def test_the_stream_and_the_logits_have_a_quarter_of_headroom(calibration):
    settings = QuantizationSettings(calibration=calibration)
    limit = QFormat(16, 12).maximum
    for peak, fraction in ((limit / 1.2501, 12), (limit / 1.2499, 11)):
        histogram = histogram_of(np.array([peak, -peak / 3]))
        assert _choose("logits", histogram, settings, NOTHING, True) == QFormat(16, fraction)
        assert _residual_format([histogram], settings, NOTHING) == QFormat(16, fraction)


def test_a_given_format_may_clip_a_hundredth_and_the_stream_nothing():
    target = QFormat(8, 6)
    for outliers, fits in ((10, True), (11, False)):
        values = np.full(1000, 0.5)
        values[:outliers] = 5.0
        if fits:
            assert _checked("any", histogram_of(values), target) == target
        else:
            with pytest.raises(QuantizationError, match=r"any does not fit .* 1\.10%"):
                _checked("any", histogram_of(values), target)
    values[1:] = 0.5
    with pytest.raises(QuantizationError, match=r"residual does not fit .* 0\.10%"):
        _checked("residual", histogram_of(values), target)


@pytest.mark.parametrize("finer, found", [(4, True), (5, True), (6, False)])
def test_an_activation_may_be_clipped_to_a_32nd(finer, found):
    """All values but one are a unit of a format whose range is so many powers of two smaller than
    the peak.
    """
    first = covering_format(1.0, 4).fraction
    values = np.full(200_000, 2.0 ** -(first + finer))
    values[0] = 1.0
    assert histogram_of(values).least_squares_format(4).fraction == first + (finer if found else 0)


def test_activations_have_at_most_20_fraction_bits():
    assert [covering_format(magnitude, 8).fraction for magnitude in (2.0**-14, 2.0**-13, 1e-9)] == [20, 19, 20]


@pytest.mark.parametrize("finer, found", [(6, True), (7, True), (8, False)])
def test_a_row_of_weights_may_be_clipped_to_a_128th(finer, found):
    """All weights of two bits but one are a unit of a scale so many powers of two below the
    covering one.
    """
    row = np.full((1, 2 << 2 * finer), 2.0**-finer)
    row[0, 0] = 1.0
    assert least_squares_fractions(row, 2)[0] == (finer if found else 0)


def test_columns_are_rounded_from_the_largest_variance_on_equal_ones_as_they_come():
    feedback = Feedback.of(np.diag([1.0, 4.0, 2.0, 4.0, 3.0]))
    assert feedback.order.tolist() == [1, 3, 4, 2, 0]


def test_a_hundredth_of_the_mean_variance_is_added_to_each():
    feedback = Feedback.of(np.diag([3.0, 1.0, 2.0]))
    np.testing.assert_allclose(feedback.variance, [3.02, 2.02, 1.02], rtol=1e-12)
    np.testing.assert_allclose(Feedback.of(np.zeros((2, 2))).variance, [1.0, 1.0], rtol=1e-12)


def independent(variance):
    """Moments of inputs without a mean and with a diagonal covariance."""
    moments = Moments()
    deviations = np.diag(np.sqrt(np.asarray(variance) * len(variance)))
    moments.add(np.concatenate([deviations, -deviations]))
    return moments


@pytest.mark.parametrize("finer, found", [(0, True), (1, True), (2, True), (3, True), (4, True), (5, False)])
def test_compensated_rows_may_be_clipped_to_a_16th(finer, found):
    """Nearly all of the variance is in the inputs whose weights are small."""
    columns = 600
    weight = np.full((1, columns), 2.0 ** -(2 + finer))
    weight[0, 0] = 1.0
    moments = independent([0.0, *np.ones(columns - 1)])
    result = compensate(weight, np.zeros(1), 4, moments, np.array([np.inf]))
    assert (result.fraction[0] == 2 + finer) == found


def test_compensated_rows_may_be_twice_as_coarse():
    result = compensate(np.array([[1.0, 0.5, -0.5]]), np.zeros(1), 4, independent(np.ones(3)), np.array([np.inf]))
    assert result.fraction.tolist() == [1]  # 2 covers the largest one; as exact are halves


def test_compensated_weights_round_half_up():
    result = compensate(
        np.ldexp([[100.0, *UNITS]], -6), np.zeros(1), 8, independent(np.ones(len(UNITS) + 1)), np.array([6.0])
    )
    assert (result.fraction.tolist(), np.ldexp(result.weight, 6).tolist()) == ([6], [[100, *ROUNDED]])


def test_an_output_may_be_28_bits_finer_and_no_more():
    norm = LayerNorm.from_float(np.ones(4), np.zeros(4), 1e-5, INPUT, OUTPUT, 8)
    product = norm.normalized.fraction + norm.scale_format.fraction
    table = EmbeddingTable.from_float(np.ones((2, 3)), 8)
    makers = {
        "an accumulator": lambda finer: Linear.from_float(
            np.ones((1, 2)), None, 8, INPUT, QFormat(8, 6 + INPUT.fraction + finer), np.array([6])
        ),
        "the product": lambda finer: dataclasses.replace(norm, output=QFormat(8, product + finer)),
        "the output": lambda finer: Embedding(table, table, QFormat(8, int(table.weight_fraction[0]) + finer)),
    }
    for what, make in makers.items():
        make(28)
        with pytest.raises(QuantizationError, match=f"28 .*{what}|{what}; at most 28"):
            make(29)


def test_a_samplers_shift_is_from_28_to_the_left_to_62_to_the_right():
    for fraction, shift in ((58, 62), (-32, -28)):  # 1.44 is 0.72 * 2, and has 16 bits
        assert Sampler(QFormat(16, fraction), 1.0).shift == shift
    for fraction, word in ((59, "high"), (-33, "low")):
        with pytest.raises(QuantizationError, match=f"a temperature of 1 is too {word}"):
            Sampler(QFormat(16, fraction), 1.0)


def test_sizes_where_none_is_given():
    assert Exponential(5) == Exponential(fraction=5, table_bits=8, output_bits=8)
    assert Reciprocal() == Reciprocal(index_bits=10, mantissa_bits=16)
    assert ReciprocalSquareRoot() == ReciprocalSquareRoot(index_bits=10, mantissa_bits=16)
    settings = QuantizationSettings()
    widths = settings.weight_bits, settings.activation_bits, settings.residual_bits, settings.embedding_bits
    assert widths == (8, 8, 16, 8)


def test_the_middle_of_a_bin_and_the_largest_ratio_of_a_root():
    histogram = histogram_of(np.array([1.0]))
    assert histogram.middles[HALF] == 0.5 * 2.0**histogram.exponent
    assert 1 + 2**-11 < ReciprocalSquareRoot().largest_ratio <= 1 + 2**-10 + 2**-16
