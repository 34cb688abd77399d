import numpy as np
import pytest

from fixedpoint import Overflow, QFormat
from hdl import CircuitError
from hdl.cores.tile import Tile


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (16, 24), (3, 40)])
@pytest.mark.parametrize("tile", [Tile(8, 8), Tile(8, 2, True), Tile(6, 3), Tile(1, 1, True), Tile(12, 4, True)])
def test_the_words_of_a_tile_give_back_the_product(rows, columns, tile):
    generator = np.random.default_rng(rows)
    matrix, vector = generator.integers(-8, 8, (rows, columns)), generator.integers(-128, 128, columns)
    elements, slices = tile.elements(matrix, 4), tile.slices(columns)
    assert len(elements) == tile.num_words(rows, columns)
    padded = np.pad(vector, (0, slices * tile.columns - columns)).reshape(slices, tile.columns)
    results = []
    for start in range(0, len(elements), slices):
        for half in range(1 + tile.pairs):
            weights = QFormat(4, 0).fit(elements[start : start + slices] >> (4 * half), Overflow.WRAP)
            groups = weights.reshape(slices, tile.groups, tile.columns)
            results += np.einsum("sgc,sc->g", groups, padded).tolist()
    assert results[:rows] == (matrix @ vector).tolist()
    assert not any(results[rows:])


def test_words_hold_lane_0_in_the_least_significant_bits():
    matrix = np.array([[1, -2], [3, 4]])
    assert Tile(2, 2, True).words(matrix, 4) == [0x4E31]
    assert Tile(4, 2).words(matrix, 8) == [0x0403FE01]


@pytest.mark.parametrize(
    ("rows", "columns", "lanes", "pairs", "width", "words"),
    [
        (128, 128, 128, True, 128, 64),
        (512, 128, 128, True, 128, 256),
        (128, 512, 128, True, 128, 256),
        (192, 192, 128, True, 64, 144),  # 128 columns would waste a quarter
        (64, 32, 128, False, 32, 16),  # four rows share the lanes
        (5, 5, 7, False, 7, 5),
        (3, 100, 1, False, 1, 300),
    ],
)
def test_the_words_of_a_matrix_depend_on_the_columns_of_its_tile(rows, columns, lanes, pairs, width, words):
    tiles = [Tile(lanes, other, pairs) for other in range(lanes, 0, -1) if lanes % other == 0]
    counts = {tile.columns: tile.num_words(rows, columns) for tile in tiles}
    assert min(counts, key=counts.get) == width
    assert counts[width] == words


def test_a_matrix_that_fills_its_tiles_wastes_nothing():
    assert Tile(128, 128, True).utilization(512, 128) == 1
    assert Tile(8, 8).utilization(4, 12) == 0.75


@pytest.mark.parametrize("columns", [0, 3, 9, 2.0])
def test_columns_that_do_not_divide_the_lanes_are_refused(columns):
    with pytest.raises(CircuitError, match=r"columns must (divide its 8 lanes|be a whole number)"):
        Tile(8, columns)


@pytest.mark.parametrize("lanes", [0, -4, 1.5])
def test_impossible_lanes_are_refused(lanes):
    with pytest.raises(CircuitError, match="lanes must be a whole number"):
        Tile(lanes, 1)
