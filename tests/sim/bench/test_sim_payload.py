import numpy as np
import pytest
from amaranth.hdl import signed, unsigned
from amaranth.lib import data
from amaranth.lib import enum as amaranth_enum

from hdl import CircuitError
from sim.bench.payload import pack, pack_all, pack_words, unpack

STRUCT = data.StructLayout({"data": signed(5), "flag": 1, "pair": data.ArrayLayout(signed(3), 2)})


class Colour(amaranth_enum.Enum, shape=2):
    RED = 1
    BLUE = 2


def test_structs_are_packed_least_significant_field_first():
    assert pack(STRUCT, {"data": -1, "flag": 0, "pair": [1, -2]}) == 0b110_001_0_11111


@pytest.mark.parametrize(
    "shape, value",
    [
        (signed(8), -128),
        (signed(8), 127),
        (unsigned(8), 255),
        (unsigned(0), 0),
        (STRUCT, {"data": -16, "flag": 1, "pair": [3, -4]}),
        (data.ArrayLayout(data.StructLayout({"x": signed(4), "y": 2}), 2), [{"x": -8, "y": 3}, {"x": 7, "y": 0}]),
        (Colour, Colour.BLUE),
    ],
    ids=str,
)
def test_pack_and_unpack_are_inverse(shape, value):
    assert unpack(shape, pack(shape, value)) == value


@pytest.mark.parametrize("shape, value", [(signed(8), 128), (unsigned(3), -1)], ids=str)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_values_that_do_not_fit_are_refused(shape, value):
    with pytest.raises(CircuitError, match="does not fit"):
        pack(shape, value)
    with pytest.raises(CircuitError, match="do not fit"):
        pack_all(shape, [0, value])


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_struct_fields_that_do_not_fit_are_refused():
    with pytest.raises(CircuitError, match="does not fit"):
        pack(STRUCT, {"data": 16, "flag": 0, "pair": [0, 0]})


def test_words_with_too_many_bits_are_refused():
    with pytest.raises(CircuitError, match="has 4 bits"):
        unpack(unsigned(4), 16)


def test_columns_pack_like_single_payloads():
    columns = {
        "data": range(-16, 16),
        "flag": [k & 1 for k in range(32)],
        "pair": [[k % 8 - 4 for k in range(32)], [3] * 32],
    }
    rows = [
        {"data": columns["data"][k], "flag": columns["flag"][k], "pair": [columns["pair"][0][k], columns["pair"][1][k]]}
        for k in range(32)
    ]
    assert pack_all(STRUCT, columns) == [pack(STRUCT, row) for row in rows]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"data": [1]}, "wants columns"),
        ([1], "wants columns"),
        ({"data": [1], "flag": [0, 1], "pair": [[0], [0]]}, "differ in length"),
        ({"data": [1], "flag": [0], "pair": [[0]]}, "wants 2 columns"),
    ],
    ids=str,
)
def test_columns_that_do_not_match_the_layout_are_refused(columns, message):
    with pytest.raises(CircuitError, match=message):
        pack_all(STRUCT, columns)


def test_fields_wider_than_a_machine_word_and_across_its_borders():
    """Fields that begin and end anywhere, up to 70 bits wide, packed by NumPy as one by one."""
    layout = data.StructLayout(
        {
            "a": signed(30),
            "b": unsigned(70),
            "c": signed(64),
            "d": data.ArrayLayout(signed(9), 5),
            "e": unsigned(0),
            "f": 1,
        }
    )
    generator = np.random.default_rng(1)

    def numbers(width, low=0, count=50):
        limits = [low, low + (1 << width) - 1]
        return limits + [low + int.from_bytes(generator.bytes(16), "little") % (1 << width) for _ in range(count)]

    columns = {
        "a": np.array(numbers(30, -(1 << 29))),
        "b": numbers(70),
        "c": np.array(numbers(64, -(1 << 63))),
        "d": np.array([numbers(9, -256) for _ in range(5)]),
        "e": [0] * 52,
        "f": np.array(numbers(1)),
    }
    rows = [
        {name: [int(lane[k]) for lane in column] if name == "d" else int(column[k]) for name, column in columns.items()}
        for k in range(52)
    ]
    expected = [pack(layout, row) for row in rows]
    assert pack_all(layout, columns) == expected
    words = pack_words(layout, columns)
    assert (words.shape, words.dtype) == ((52, 7), np.uint32)
    assert [sum(int(word) << (32 * place) for place, word in enumerate(row)) for row in words] == expected


def test_nothing_packs_to_nothing():
    assert pack_words(STRUCT, {"data": [], "flag": [], "pair": [[], []]}).shape == (0, 1)
    assert pack_words(unsigned(0), [0, 0, 0]).shape == (3, 0)
    assert pack_all(unsigned(0), [0, 0, 0]) == [0, 0, 0]
