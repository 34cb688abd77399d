# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from core_bench import bench, needs_compiler, run, run_compiled, run_with_stalls

import fixedpoint
from hdl import CircuitError
from hdl.parts.exponential import Exponential


def make(parameters, width, distances):
    return bench(
        f"exponential {parameters.fraction} {parameters.table_bits} {parameters.output_bits} {width}",
        core := Exponential(parameters, width),
        distances.tolist(),
        {"o": parameters.compute(distances).tolist()},
        expected_cycles=len(distances) - 1 + core.latency,
    )


@pytest.mark.parametrize(
    ("fraction", "table_bits", "output_bits", "width"),
    [
        (10, 8, 8, 15),  # the shape that attention uses: rounds off two fraction bits
        (8, 8, 8, 12),  # no rounding before the table
        (5, 8, 8, 10),  # coarser than the table
        (-3, 4, 8, 6),  # steps of eight
        (12, 10, 16, 14),  # a table in block RAM
        (6, 1, 2, 10),  # the smallest table
        (12, 3, 5, 14),
        (20, 3, 5, 12),  # never reaches a whole step
        (30, 8, 8, 8),  # everything rounds to the first entry or the second
    ],
)
def test_every_distance_has_the_specified_exponential(tmp_path, fraction, table_bits, output_bits, width):
    parameters = fixedpoint.Exponential(fraction, table_bits, output_bits)
    run(make(parameters, width, np.arange(1 << width)), tmp_path)


@needs_compiler
@pytest.mark.parametrize(("fraction", "table_bits", "output_bits"), [(10, 8, 8), (12, 10, 16)])
def test_every_distance_of_16_bits(simulation_builds, fraction, table_bits, output_bits):
    parameters = fixedpoint.Exponential(fraction, table_bits, output_bits)
    run_compiled(make(parameters, 16, np.arange(1 << 16)), simulation_builds)


def test_distances_wider_than_any_result_give_zero(tmp_path):
    generator = np.random.default_rng(3)
    parameters = fixedpoint.Exponential(10)
    distances = np.concatenate(
        [[0, (1 << 32) - 1, 1 << 31], generator.integers(0, 1 << 32, 100), np.arange(0, 12000, 50)]
    )
    run(make(parameters, 32, distances), tmp_path)


def test_stalls_lose_and_repeat_nothing(tmp_path):
    distances = np.random.default_rng(5).integers(0, 1 << 12, 500)
    run_with_stalls(make(fixedpoint.Exponential(10), 12, distances), tmp_path)


@pytest.mark.parametrize("width", [0, 33, 1.5])
def test_impossible_widths_are_refused_by_name(width):
    with pytest.raises(CircuitError, match=f"width must be a whole number from 1 to 32, not {width}"):
        Exponential(fixedpoint.Exponential(10), width)


def test_other_parameters_are_refused_by_type():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.Exponential, not int"):
        Exponential(10, 8)
