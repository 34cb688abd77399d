# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from core_bench import bench, needs_compiler, run, run_compiled, run_with_stalls

import fixedpoint
from hdl import CircuitError
from hdl.parts.reciprocal import Reciprocal, ReciprocalSquareRoot
from sim.bench.bench import BenchFailure
from sim.bench.payload import pack_all

PAIRS = [(Reciprocal, fixedpoint.Reciprocal), (ReciprocalSquareRoot, fixedpoint.ReciprocalSquareRoot)]
both = pytest.mark.parametrize(("circuit", "specification"), PAIRS)


def make(circuit, parameters, width, arguments):
    core = circuit(parameters, width)
    result = parameters.compute(arguments)
    expected = pack_all(core.o.payload.shape(), {"mantissa": result.mantissa, "exponent": result.exponent})
    name = f"{circuit.__name__} {parameters.index_bits} {parameters.mantissa_bits} {width}"
    return bench(name, core, arguments.tolist(), {"o": expected}, expected_cycles=len(arguments) - 1 + core.latency)


@both
@pytest.mark.parametrize(
    ("index_bits", "mantissa_bits", "width"),
    [
        (10, 16, 14),
        (10, 16, 1),
        (10, 16, 2),
        (10, 16, 3),
        (10, 16, 11),
        (2, 3, 9),
        (5, 18, 12),
        (12, 18, 13),
        (4, 8, 10),
    ],
)
def test_every_argument_has_the_specified_result(tmp_path, circuit, specification, index_bits, mantissa_bits, width):
    run(make(circuit, specification(index_bits, mantissa_bits), width, np.arange(1, 1 << width)), tmp_path)


@needs_compiler
@both
def test_every_argument_of_16_bits(simulation_builds, circuit, specification):
    run_compiled(make(circuit, specification(), 16, np.arange(1, 1 << 16)), simulation_builds)


@both
@pytest.mark.parametrize("width", [31, 46, 62])
def test_wide_arguments_next_to_every_power_of_two(tmp_path, circuit, specification, width):
    generator = np.random.default_rng(7)
    powers = 1 << np.arange(width, dtype=np.int64)
    between = powers + (generator.random(width) * powers).astype(np.int64)
    arguments = np.concatenate([powers, np.maximum(powers - 1, 1), powers + powers // 2, between, [2 * powers[-1] - 1]])
    run(make(circuit, specification(), width, arguments), tmp_path)


@both
def test_stalls_lose_and_repeat_nothing(tmp_path, circuit, specification):
    arguments = np.random.default_rng(5).integers(1, 1 << 14, 400)
    run_with_stalls(make(circuit, specification(), 14, arguments), tmp_path)


@pytest.mark.parametrize(("width", "latency"), [(1, 2), (2, 3), (14, 6), (16, 6), (17, 7)])
def test_reciprocal_latency_is_a_level_a_doubling(width, latency):
    assert Reciprocal(fixedpoint.Reciprocal(), width).latency == latency


@pytest.mark.parametrize(("width", "latency"), [(1, 2), (2, 2), (3, 3), (32, 6), (46, 7)])
def test_square_root_latency_is_a_level_a_doubling_of_pairs(width, latency):
    assert ReciprocalSquareRoot(fixedpoint.ReciprocalSquareRoot(), width).latency == latency


@both
def test_zero_fails_in_simulation(tmp_path, circuit, specification):
    core = circuit(specification(), 8)
    with pytest.raises(BenchFailure, match="a reciprocal needs a positive argument") as failure:
        run(bench("zero", core, [3, 0], {"o": [0, 1]}), tmp_path)
    assert failure.value.kind in ("assertion", "value")


@both
@pytest.mark.parametrize("width", [0, 63, "8"])
def test_impossible_widths_are_refused_by_name(circuit, specification, width):
    with pytest.raises(CircuitError, match="width must be a whole number from 1 to 62, not "):
        circuit(specification(), width)


def test_other_parameters_are_refused_by_type():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.Reciprocal, not ReciprocalSquareRoot"):
        Reciprocal(fixedpoint.ReciprocalSquareRoot(), 8)
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.ReciprocalSquareRoot, not Reciprocal"):
        ReciprocalSquareRoot(fixedpoint.Reciprocal(), 8)
