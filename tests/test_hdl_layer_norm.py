# amaranth: UnusedElaboratable=no
import dataclasses

import numpy as np
import pytest
from core_bench import ResetOnce, bench, pack_rows, run, run_with_stalls

import fixedpoint
from fixedpoint import QFormat
from hdl import CircuitError
from hdl.layer_norm import LayerNorm
from sim.bench import BenchFailure

RESIDUAL = QFormat(16, 10)
NORMED = QFormat(8, 5)


def specification(channels, scale_bits=8, input_format=RESIDUAL, output=NORMED, seed=0):
    generator = np.random.default_rng(seed)
    return fixedpoint.LayerNorm.from_float(
        generator.uniform(-2, 2, channels), generator.normal(size=channels), 1e-5, input_format, output, scale_bits
    )


def special_rows(parameters):
    """Rows at the rails, rows without variance, and the extremes of difference and of variance."""
    lowest, highest, channels = parameters.input.minimum_integer, parameters.input.maximum_integer, parameters.channels
    place = np.arange(channels)
    return [
        np.full(channels, lowest),
        np.full(channels, highest),
        np.zeros(channels, dtype=int),
        np.where(place == 0, highest, lowest),  # one-hot: the largest normalized value
        np.where(place == channels - 1, lowest, highest),
        np.where(place % 2, lowest, highest),  # the largest variance
        np.where(place == 0, 1, 0),  # the smallest variance above none
        place % 2 - 1,
        np.linspace(lowest, highest, channels).astype(int),
    ]


def random_rows(parameters, generator, count):
    rows = []
    for _ in range(count):
        spread = generator.choice([2, 30, 1000, parameters.input.maximum_integer + 1])
        spread = min(int(spread), parameters.input.maximum_integer + 1)
        row = generator.integers(-spread, spread, parameters.channels) + generator.integers(-spread, spread)
        rows.append(np.clip(row, parameters.input.minimum_integer, parameters.input.maximum_integer))
    return rows


def make(name, parameters, rows, core=None, **settings):
    core = core or LayerNorm(parameters)
    expected = {"o": pack_rows(core.o, "data", [parameters.compute(row) for row in rows])}
    return bench(name, core, pack_rows(core.i, "data", rows), expected, **settings)


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
    run(make("rows", parameters, rows, core, expected_cycles=core.cycles(len(rows))), tmp_path)


@pytest.mark.parametrize("channels", [1, 2, 12, 64])
def test_stalls_lose_and_repeat_nothing(tmp_path, channels):
    parameters = specification(channels)
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(2), 12)
    run_with_stalls(make("stalls", parameters, rows), tmp_path)


@pytest.mark.parametrize("channels", [7, 12])
def test_a_sink_that_hardly_takes_does_not_mix_rows(tmp_path, channels):
    """The next row's root is ready while this row still stands in the stages that use its own: 7 channels reach back to the last of these."""
    parameters = specification(channels)
    rows = random_rows(parameters, np.random.default_rng(3), 40)
    run(make("slow sink", parameters, rows), tmp_path, sink_stall=0.97, seed=8)


def test_every_row_of_two_5_bit_elements(tmp_path):
    parameters = specification(2, input_format=QFormat(5, 1), output=QFormat(8, 4))
    rows = [np.array(row) - 16 for row in np.ndindex(32, 32)]
    run(make("narrow", parameters, rows), tmp_path)


@pytest.mark.parametrize(("channels", "latency"), [(64, 25), (128, 25), (96, 25), (100, 28)])
def test_latency_is_the_stated_one(tmp_path, channels, latency):
    core = LayerNorm(parameters := specification(channels))
    assert core.latency == latency
    rows = random_rows(parameters, np.random.default_rng(9), 1)
    run(make("latency", parameters, rows, core, expected_cycles=2 * (channels - 1) + latency), tmp_path)


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
    with pytest.raises(CircuitError, match=r"of 4 channels needs .* at least 14 mantissa bits, not 12"):
        LayerNorm(coarse)
