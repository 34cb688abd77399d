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
from sim.bench.bench import BenchFailure


def specification(channels, scale_bits=8, input_format=RESIDUAL, output=NORMED, seed=0):
    generator = np.random.default_rng(seed)
    return fixedpoint.LayerNorm.from_float(
        generator.uniform(-2, 2, channels), generator.normal(size=channels), 1e-5, input_format, output, scale_bits
    )


def make(name, parameters, rows, component=None, lanes=1, **settings):
    return norm_bench(name, LayerNorm(parameters, lanes), rows, component, **settings)


SHAPES = {
    "64 channels": specification(64),
    "128 channels": specification(128),
    "one channel": specification(1),
    "two channels": specification(2),
    "three channels": specification(3),
    "odd factor 25": specification(100),
    "4-bit scale": specification(16, scale_bits=4),
    "16-bit scale and output": specification(12, scale_bits=16, output=QFormat(16, 12)),
    "8-bit input": specification(24, input_format=QFormat(8, 3)),
    "2-bit input": specification(5, input_format=QFormat(2, 0)),
    "output finer than the product": specification(6, output=QFormat(16, 30)),
    "2-bit output": specification(6, output=QFormat(2, -1)),
    "small root table": dataclasses.replace(
        specification(40), reciprocal_square_root=fixedpoint.ReciprocalSquareRoot(5, 13)
    ),
    "large epsilon": dataclasses.replace(specification(20), epsilon=1 << 37),
    "shift at its limit": dataclasses.replace(
        specification(4), shift=specification(4).shift_limit * np.array([1, -1, 1, -1])
    ),
}


@pytest.mark.parametrize("parameters", SHAPES.values(), ids=SHAPES.keys())
def test_rails_ties_and_random_rows_back_to_back(tmp_path, parameters):
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(1), 12)
    core = LayerNorm(parameters)
    run(norm_bench("rows", core, rows, expected_cycles=core.cycles(len(rows))), tmp_path)


@pytest.mark.parametrize(("channels", "lanes"), [(64, 8), (128, 16), (12, 12), (100, 5), (24, 3), (2, 2)])
def test_several_elements_a_cycle(tmp_path, channels, lanes):
    parameters = specification(channels)
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(1), 20)
    core = LayerNorm(parameters, lanes)
    assert core.cycles(3) - core.cycles(2) == channels // lanes
    run(norm_bench("lanes", core, rows, expected_cycles=core.cycles(len(rows))), tmp_path)


@pytest.mark.parametrize(("channels", "lanes"), [(1, 1), (12, 1), (16, 8), (12, 4)])
def test_stalls_lose_and_repeat_nothing(tmp_path, channels, lanes):
    parameters = specification(channels)
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(2), 12)
    run_with_stalls(make("stalls", parameters, rows, lanes=lanes), tmp_path)


@pytest.mark.parametrize(("channels", "lanes"), [(1, 1), (7, 1), (8, 8)])
def test_a_sink_that_hardly_takes_does_not_mix_rows(tmp_path, channels, lanes):
    """Many rows wait in the FIFO, each with its own root and sum; several stand in the pipeline."""
    parameters = specification(channels)
    rows = random_rows(parameters, np.random.default_rng(3), 80 if channels == lanes else 20)
    run(make("slow sink", parameters, rows, lanes=lanes), tmp_path, sink_stall=0.97, seed=8)


def test_an_element_that_a_coarse_root_lifts_beyond_the_range_saturates(tmp_path):
    coarse = fixedpoint.ReciprocalSquareRoot(2, 13)
    parameters = dataclasses.replace(specification(16, input_format=QFormat(6, 2)), reciprocal_square_root=coarse)
    rows = np.array(one_hot_rows(parameters))
    total = rows.sum(axis=1, keepdims=True)
    variance = 16 * (rows**2).sum(axis=1, keepdims=True) - total**2 + parameters.epsilon
    beyond = normalized_beyond_the_range(parameters, 16 * rows - total, variance)
    assert beyond.min() < 0 < beyond.max()
    run(make("lifted", parameters, list(rows), lanes=4), tmp_path)


@needs_compiler
def test_every_row_of_two_8_bit_elements(simulation_builds):
    core = LayerNorm(specification(2, input_format=QFormat(8, 3), output=QFormat(8, 4)))
    rows = every_row(core.parameters.input, 2)
    run_compiled(
        rows_bench("pairs", core, "data", rows, "data", expected_cycles=core.cycles(len(rows))), simulation_builds
    )


def test_every_row_of_two_5_bit_elements(tmp_path):
    parameters = specification(2, input_format=QFormat(5, 1), output=QFormat(8, 4))
    rows = [np.array(row) - 16 for row in np.ndindex(32, 32)]
    run(make("narrow", parameters, rows), tmp_path)


@pytest.mark.parametrize(("channels", "latency"), [(64, 28), (128, 28), (96, 28), (100, 31)])
def test_latency_is_the_stated_one(tmp_path, channels, latency):
    core = LayerNorm(parameters := specification(channels))
    assert core.latency == latency
    rows = random_rows(parameters, np.random.default_rng(9), 1)
    run(norm_bench("latency", core, rows, expected_cycles=2 * (channels - 1) + latency), tmp_path)


@pytest.mark.parametrize(
    ("taken", "given"), [(1, 0), (7, 0), (8, 0), (8, 3)], ids=["first", "filling", "rooting", "giving"]
)
def test_reset_in_the_middle_of_a_row(tmp_path, taken, given):
    parameters = specification(8)
    rows = [np.full(8, 30000) - np.arange(8), *random_rows(parameters, np.random.default_rng(6), 4)]
    whole = make("reset", parameters, rows, ResetOnce(LayerNorm(parameters), taken, given))
    inputs = whole.inputs["i"][:taken] + whole.inputs["i"][8:]
    run(bench("reset", whole.component, inputs, {"o": whole.outputs["o"][:given] + whole.outputs["o"][8:]}), tmp_path)


@pytest.mark.parametrize(("place", "message"), [(1, "last is 1 on word 1"), (3, "last is 0 on word 3")])
def test_a_last_that_disagrees_with_the_count_fails_in_simulation(tmp_path, place, message):
    whole = make("last", parameters := specification(4), random_rows(parameters, np.random.default_rng(1), 2))
    inputs = list(whole.inputs["i"])
    inputs[place] ^= 1 << parameters.input.bits
    with pytest.raises(BenchFailure, match=message) as failure:
        run(bench("last", whole.component, inputs, whole.outputs), tmp_path)
    assert failure.value.kind == "assertion"


def test_impossible_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.LayerNorm, not int"):
        LayerNorm(64)
    coarse = dataclasses.replace(specification(4), reciprocal_square_root=fixedpoint.ReciprocalSquareRoot(8, 12))
    for lanes in (0, 3, 8, 2.0):
        with pytest.raises(CircuitError, match=f"lanes must divide the row's 4 channels, not be {lanes}"):
            LayerNorm(specification(4), lanes)
    with pytest.raises(CircuitError, match=r"of 4 channels needs .* at least 14 mantissa bits, not 12"):
        LayerNorm(coarse)
    wide = dataclasses.replace(specification(4), reciprocal_square_root=fixedpoint.ReciprocalSquareRoot(8, 18))
    with pytest.raises(
        CircuitError, match=r"LayerNorm needs a reciprocal square root of at most 17 mantissa bits.* not 18"
    ):
        LayerNorm(wide)
