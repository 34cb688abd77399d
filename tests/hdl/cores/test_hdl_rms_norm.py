# amaranth: UnusedElaboratable=no
import dataclasses

import numpy as np
import pytest
from core_bench import (
    ResetOnce,
    bench,
    every_row,
    needs_compiler,
    rows_bench,
    run,
    run_compiled,
    run_with_stalls,
)
from norm_cases import (
    NORMED,
    RESIDUAL,
    norm_bench,
    normalized_beyond_the_range,
    one_hot_rows,
    random_rows,
    special_rows,
)

import fixedpoint
from fixedpoint import QFormat
from hdl import CircuitError
from hdl.cores.layer_norm import LayerNorm
from hdl.cores.rms_norm import RMSNorm


def specification(channels, scale_bits=8, input_format=RESIDUAL, output=NORMED, seed=0):
    scale = np.random.default_rng(seed).uniform(-2, 2, channels)
    return fixedpoint.RMSNorm.from_float(scale, 1e-5, input_format, output, scale_bits)


SHAPES = {
    "64 channels": (specification(64), 1),
    "64 channels, 8 lanes": (specification(64), 8),
    "one channel": (specification(1), 1),
    "two channels": (specification(2), 2),
    "odd factor 25": (specification(100), 1),
    "odd factor 3, 4 lanes": (specification(12, scale_bits=16, output=QFormat(16, 12)), 4),
    "8-bit input": (specification(24, input_format=QFormat(8, 3)), 1),
    "2-bit input": (specification(5, input_format=QFormat(2, 0)), 5),
    "output finer than the product": (specification(6, output=QFormat(16, 30)), 1),
    "2-bit output": (specification(6, output=QFormat(2, -1)), 1),
    "large epsilon": (dataclasses.replace(specification(20), epsilon=1 << 37), 1),
}


@pytest.mark.parametrize(("parameters", "lanes"), SHAPES.values(), ids=SHAPES.keys())
def test_rails_ties_and_random_rows_back_to_back(tmp_path, parameters, lanes):
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(1), 12)
    core = RMSNorm(parameters, lanes)
    run(norm_bench("rows", core, rows, expected_cycles=core.cycles(len(rows))), tmp_path)


@pytest.mark.parametrize(("channels", "lanes"), [(1, 1), (12, 1), (16, 8)])
def test_stalls_lose_and_repeat_nothing(tmp_path, channels, lanes):
    parameters = specification(channels)
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(2), 12)
    run_with_stalls(norm_bench("stalls", RMSNorm(parameters, lanes), rows), tmp_path)


def test_an_element_that_a_coarse_root_lifts_beyond_the_range_saturates(tmp_path):
    coarse = fixedpoint.ReciprocalSquareRoot(2, 13)
    parameters = dataclasses.replace(specification(16, input_format=QFormat(6, 2)), reciprocal_square_root=coarse)
    rows = np.array(one_hot_rows(parameters))
    variance = 16 * (rows**2).sum(axis=1, keepdims=True) + parameters.epsilon
    beyond = normalized_beyond_the_range(parameters, 16 * rows, variance)
    assert beyond.min() < 0 < beyond.max()
    run(norm_bench("lifted", RMSNorm(parameters, 4), list(rows)), tmp_path)


@needs_compiler
def test_every_row_of_two_8_bit_elements(simulation_builds):
    core = RMSNorm(specification(2, input_format=QFormat(8, 3), output=QFormat(8, 4)))
    rows = every_row(core.parameters.input, 2)
    run_compiled(
        rows_bench("pairs", core, "data", rows, "data", expected_cycles=core.cycles(len(rows))), simulation_builds
    )


def test_every_row_of_two_5_bit_elements(tmp_path):
    parameters = specification(2, input_format=QFormat(5, 1), output=QFormat(8, 4))
    rows = [np.array(row) - 16 for row in np.ndindex(32, 32)]
    run(norm_bench("narrow", RMSNorm(parameters), rows), tmp_path)


@pytest.mark.parametrize(("channels", "lanes", "latency"), [(64, 1, 26), (128, 8, 29), (96, 1, 27)])
def test_latency_is_the_stated_one(channels, lanes, latency):
    """Shorter than LayerNorm's, which has a sum to square."""
    core = RMSNorm(specification(channels), lanes)
    assert core.latency == latency
    assert core.cycles(1) == 2 * (channels // lanes - 1) + latency


def test_reset_in_the_middle_of_a_row(tmp_path):
    core = RMSNorm(specification(8))
    rows = [np.full(8, 30000) - np.arange(8), *random_rows(core.parameters, np.random.default_rng(6), 4)]
    whole = norm_bench("reset", core, rows, ResetOnce(core, 5))
    inputs = whole.inputs["i"][:5] + whole.inputs["i"][8:]
    run(bench("reset", whole.component, inputs, {"o": whole.outputs["o"][8:]}), tmp_path)


def test_impossible_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.RMSNorm, not int"):
        RMSNorm(64)
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.LayerNorm, not RMSNorm"):
        LayerNorm(specification(4))
    with pytest.raises(CircuitError, match="RMSNorm lanes must divide the row's 4 channels, not be 3"):
        RMSNorm(specification(4), 3)
    coarse = dataclasses.replace(specification(4), reciprocal_square_root=fixedpoint.ReciprocalSquareRoot(8, 12))
    with pytest.raises(CircuitError, match=r"RMSNorm of 4 channels needs .* at least 14 mantissa bits, not 12"):
        RMSNorm(coarse)
