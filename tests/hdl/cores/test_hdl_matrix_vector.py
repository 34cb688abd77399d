# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from core_bench import (
    ResetOnce,
    bench,
    every_row,
    needs_compiler,
    pack_rows,
    rows_bench,
    run,
    run_compiled,
    run_with_stalls,
)

from fixedpoint import Linear, QFormat
from hdl import CircuitError
from hdl.cores.matrix_vector import MatrixVector
from sim.bench.bench import BenchFailure


def layer(rows, columns, output_bits=8, seed=0, weight_bits=8):
    """A layer whose rows differ in scale by octaves, so that shifts go both ways."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(rows, columns)) * np.exp2(generator.integers(-6, 6, (rows, 1)))
    output = QFormat(output_bits, 4 if output_bits == 8 else 10)
    return Linear.from_float(weight, generator.normal(size=rows), weight_bits, QFormat(8, 5), output)


def vectors_of(parameters, count, seed=1):
    generator = np.random.default_rng(seed)
    rails = [np.full(parameters.columns, value) for value in (-128, 127, 0)]
    return np.array([*rails, *generator.integers(-128, 128, (count, parameters.columns))])


def matrix_bench(parameters, lanes, vectors, core=None, given=None, **settings):
    core = core or MatrixVector(parameters, lanes)
    expected = parameters.compute(vectors if given is None else given)
    return bench(
        "matrix-vector",
        core,
        pack_rows(core.i, "data", vectors),
        {"o": pack_rows(core.o, "data", expected)},
        **settings,
    )


@pytest.mark.parametrize(
    ("rows", "columns", "lanes", "output_bits", "weight_bits"),
    [
        (5, 8, 8, 8, 8),
        (7, 10, 4, 8, 8),
        (6, 12, 12, 16, 4),
        (3, 5, 1, 8, 8),
        (1, 1, 1, 16, 2),
        (9, 32, 16, 16, 8),
        (7, 24, 6, 8, 4),  # pairs; a last tile that is not full
        (5, 12, 1, 16, 3),
        (9, 9, 6, 8, 8),  # rows share the lanes: three slices of 3 rather than two of 6
    ],
)
def test_every_result_and_the_cycles_equal_the_specification(rows, columns, lanes, output_bits, weight_bits, tmp_path):
    parameters = layer(rows, columns, output_bits, weight_bits=weight_bits)
    vectors = vectors_of(parameters, 8)
    cycles = MatrixVector(parameters, lanes).cycles(len(vectors))
    run_with_stalls(matrix_bench(parameters, lanes, vectors, expected_cycles=cycles), tmp_path)


@pytest.mark.parametrize(
    ("rows", "columns", "lanes", "weight_bits", "tile", "words"),
    [
        (6, 24, 12, 8, (12, False), 12),
        (6, 24, 12, 4, (12, True), 6),
        (6, 12, 12, 4, (12, False), 6),  # two results a word would come faster than one a cycle
        (9, 9, 6, 8, (3, False), 15),
        (7, 24, 6, 4, (6, True), 16),
    ],
)
def test_the_tile_that_keeps_the_multipliers_busiest(rows, columns, lanes, weight_bits, tile, words):
    core = MatrixVector(layer(rows, columns, weight_bits=weight_bits), lanes)
    assert (core.tile.columns, core.tile.pairs) == tile
    assert core.tile.num_words(rows, columns) == words


@pytest.mark.parametrize(
    ("rows", "lanes", "words", "levels", "last_rows"), [(16, 64, 16, 6, 1), (16, 16, 32, 4, 2), (15, 16, 32, 4, 1)]
)
def test_the_pipeline_is_the_docstrings_formula(rows, lanes, words, levels, last_rows):
    """For 64 columns of 4-bit weights; that the prediction is the simulation's is shown above."""
    core = MatrixVector(layer(rows, 64, weight_bits=4), lanes)
    assert core.pipeline == 17 + levels + last_rows
    assert core.cycles(3) == 3 * (64 + words) + core.pipeline - 1


def test_pairs_take_half_the_cycles():
    cycles = [MatrixVector(layer(16, 64, weight_bits=bits), 16).tile.num_words(16, 64) for bits in (8, 4)]
    assert cycles == [64, 32]


def test_a_row_that_shifts_left_and_one_that_saturates(tmp_path):
    parameters = Linear(
        input=QFormat(8, 0),
        output=QFormat(8, 6),
        weight=np.array([[1, 0], [127, 127], [-128, -128]]),
        weight_bits=8,
        weight_fraction=np.array([2, 0, 7]),
        bias=np.array([0, 5, -1]),
    )
    assert parameters.shift.tolist() == [-4, -6, 1]
    vectors = np.array([[a, b] for a in (-128, -9, -8, -1, 0, 1, 7, 8, 127) for b in (-128, 0, 127)])
    run_with_stalls(matrix_bench(parameters, 2, vectors), tmp_path)


@needs_compiler
def test_every_vector_of_two_8_bit_elements(simulation_builds):
    core = MatrixVector(layer(3, 2), 2)
    vectors = every_row(core.parameters.input, 2)
    cycles = core.cycles(len(vectors))
    run_compiled(rows_bench("pairs", core, "data", vectors, "data", expected_cycles=cycles), simulation_builds)


def test_the_largest_accumulator_does_not_overflow(tmp_path):
    columns = 64
    limit = columns << 14
    parameters = Linear(
        input=QFormat(8, 0),
        output=QFormat(16, -8),
        weight=np.full((2, columns), -128),
        weight_bits=8,
        weight_fraction=np.zeros(2, dtype=int),
        bias=np.array([limit, -limit]),
    )
    vectors = np.array([np.full(columns, -128), np.full(columns, 127)])
    assert abs(parameters.accumulate(vectors)).max() == 2 * limit
    run(matrix_bench(parameters, 16, vectors), tmp_path)


@pytest.mark.parametrize(("taken", "given"), [(3, 0), (10, 0), (10, 3)])
def test_a_reset_in_the_middle_starts_afresh(taken, given, tmp_path):
    parameters = layer(7, 10)
    vectors = vectors_of(parameters, 2)
    core = ResetOnce(MatrixVector(parameters, 4), taken, given)
    whole = MatrixVector(parameters, 4)
    before = pack_rows(whole.i, "data", vectors[:1])[:taken]
    after = pack_rows(whole.i, "data", vectors[1:])
    results = pack_rows(whole.o, "data", parameters.compute(vectors[:1]))[:given] + pack_rows(
        whole.o, "data", parameters.compute(vectors[1:])
    )
    run(bench("matrix-vector", core, before + after, {"o": results}), tmp_path)


def test_one_flipped_weight_bit_is_found(tmp_path):
    parameters = layer(5, 8)
    vectors = vectors_of(parameters, 20)
    weight = parameters.weight.copy()
    weight[3, 4] ^= 8
    broken = Linear(parameters.input, parameters.output, weight, 8, parameters.weight_fraction, parameters.bias)
    with pytest.raises(BenchFailure) as failure:
        run(matrix_bench(parameters, 8, vectors, core=MatrixVector(broken, 8)), tmp_path)
    assert failure.value.kind == "value"


def test_parameters_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"fixedpoint\.Linear"):
        MatrixVector({"weight": 0}, 1)


@pytest.mark.parametrize("lanes", [0, -1, 9, 2.5])
def test_impossible_lanes_are_refused(lanes):
    with pytest.raises(CircuitError, match=r"lanes must be a whole number from 1 to 8 \(the matrix's columns\), not "):
        MatrixVector(layer(5, 8), lanes)
