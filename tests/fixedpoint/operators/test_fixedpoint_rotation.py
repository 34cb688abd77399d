"""Rotations, products and shared key heads against plain Python integers and real numbers."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kinds import KINDS

from fixedpoint import Product, QFormat, QuantizationError, Rotation, RotationTable
from fixedpoint.operators.attention import CausalAttention
from model.rotary import rotate, rotation_table

TABLE = RotationTable.from_factors(rotation_table(9, 6, 10_000.0, np.dtype(np.float64)))
ROTATION = Rotation(QFormat(16, 11), QFormat(8, 4), TABLE)


def cast(x, shift, bits):
    half_up = (x + (1 << (shift - 1))) >> shift if shift > 0 else x << -shift
    return min(max(half_up, -(1 << (bits - 1))), (1 << (bits - 1)) - 1)


@given(
    st.lists(st.integers(-(1 << 15), (1 << 15) - 1), min_size=12, max_size=12),
    st.integers(0, 8),
    st.sampled_from([QFormat(8, 4), QFormat(10, 6), QFormat(8, -2), QFormat(16, 11), QFormat(4, 20)]),
)
@settings(max_examples=200)
def test_a_row_equals_plain_integers(row, position, output):
    rotation = replace(ROTATION, output=output)
    expected, shift = [], 11 + 14 - output.fraction
    for first in range(0, 12, 2):
        pair = first // 2 % 3
        c, s = int(TABLE.cosine[position, pair]), int(TABLE.sine[position, pair])
        a, b = row[first], row[first + 1]
        expected += [cast(a * c - b * s, shift, output.bits), cast(a * s + b * c, shift, output.bits)]
    assert rotation.compute(np.array([row]), position)[0].tolist() == expected


def test_rows_stand_at_consecutive_positions():
    rows = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, size=(2, 5, 12))
    together = ROTATION.compute(rows, 3)
    for index in range(5):
        np.testing.assert_array_equal(ROTATION.compute(rows[:, index : index + 1], 3 + index)[:, 0], together[:, index])


def test_it_is_the_float_models_rotation_within_the_stated_error():
    rows = np.random.default_rng(1).integers(-8000, 8000, size=(1, 9, 12))
    exact = np.ldexp(rows.astype(np.float64), -11)
    table = rotation_table(9, 6, 10_000.0, np.dtype(np.float64))
    rotate(exact, table)
    fixed = np.ldexp(ROTATION.compute(rows).astype(np.float64), -4)
    assert np.abs(fixed - exact).max() <= 2**-5 + 2 * 2**-15 * 8000 / 2**11


def test_the_widest_sum_fits_its_bits():
    diagonal = RotationTable(np.array([[11585]]), np.array([[11585]]))  # 45 degrees
    rotation = Rotation(QFormat(16, 0), QFormat(16, -1), diagonal)
    assert rotation.sum_bits == 32
    ends = np.array([[-(1 << 15), 1 << 15 - 1], [-(1 << 15), -(1 << 15)]])
    assert np.abs(rotation.compute(ends[:1])).max() < 1 << 15


@pytest.mark.parametrize("position", [-1, 5])
def test_positions_beyond_the_table_are_refused(position):
    with pytest.raises(ValueError, match="exceed the context of 9"):
        ROTATION.compute(np.zeros((5, 12), dtype=np.int64), position)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotationTable(np.zeros((2, 3)), np.zeros((2, 2))), "cosines and sines"),
        (lambda: RotationTable(np.array([[16385]]), np.array([[0]])), "beyond 1"),
        (lambda: replace(ROTATION, input=QFormat(17, 11)), "at most 16 signed bits"),
        (lambda: replace(ROTATION, output=QFormat(8, 26)), "finer than a product"),
        (lambda: ROTATION.output_channels(8), "whole heads of 6 channels, not 8"),
        (lambda: Product(QFormat(17, 0), QFormat(8, 0), QFormat(8, 0)), "at most 16 signed bits"),
        (lambda: Product(QFormat(8, 0), QFormat(8, 0), QFormat(8, 1)), "finer than it is"),
        (lambda: Product(QFormat(8, 0), QFormat(8, 0), QFormat(8, 0)).output_channels(2, 3), "takes 2 channels, not 3"),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(QuantizationError, match=message):
        make()


@given(st.integers(-(1 << 15), (1 << 15) - 1), st.integers(-(1 << 13), (1 << 13) - 1), st.integers(-3, 20))
@settings(max_examples=200)
def test_a_product_equals_plain_integers(a, b, fraction):
    product = Product(QFormat(16, 12), QFormat(14, 9), QFormat(8, fraction))
    assert product.compute(np.array([a]), np.array([b])).tolist() == [cast(a * b, 21 - fraction, 8)]


def test_query_heads_read_the_key_head_of_their_group():
    generator = np.random.default_rng(2)
    formats = QFormat(8, 4), QFormat(8, 4), QFormat(8, 5), QFormat(8, 5)
    shared = CausalAttention(*formats, 12, 6, 8, num_kv_heads=2)
    own = CausalAttention(*formats, 12, 6, 8)
    query = generator.integers(-128, 128, size=(2, 7, 12))
    key, value = generator.integers(-128, 128, size=(2, 2, 7, 4))
    repeated = [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]  # three query heads of two channels a key head
    np.testing.assert_array_equal(
        shared.compute(query, key, value), own.compute(query, key[..., repeated], value[..., repeated])
    )


@pytest.mark.parametrize("num_kv_heads", [-1, 4, 5, 12, True])
def test_key_heads_divide_the_query_heads(num_kv_heads):
    with pytest.raises(QuantizationError, match="num_kv_heads"):
        CausalAttention(*[QFormat(8, 4)] * 4, 12, 6, 8, num_kv_heads=num_kv_heads)


def test_layers_of_different_rotations_are_refused():
    model = KINDS["rotary"](0)
    first, second = model.blocks
    query, key = second.attention.rotations
    other = RotationTable(query.table.sine, query.table.cosine)
    turned = replace(second.attention, rotations=(replace(query, table=other), key))
    with pytest.raises(QuantizationError, match="the same rotation table"):
        replace(model, blocks=(first, replace(second, attention=turned)))
    with pytest.raises(QuantizationError, match="all blocks have rotary positions or none"):
        replace(model, blocks=(first, KINDS["layer norm"](0).blocks[1]))
    short = RotationTable(query.table.cosine[:3], query.table.sine[:3])
    blocks = [
        replace(
            block,
            attention=replace(
                block.attention, rotations=tuple(replace(one, table=short) for one in block.attention.rotations)
            ),
        )
        for block in model.blocks
    ]
    with pytest.raises(QuantizationError, match="there are 3 positions, but the context has 7"):
        replace(model, blocks=tuple(blocks))


def test_a_gate_comes_with_its_product():
    block = KINDS["gated"](0).blocks[0]
    with pytest.raises(QuantizationError, match="come together"):
        replace(block, product=None)
