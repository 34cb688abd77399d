import numpy as np
import pytest
from core_bench import STALLS, ResetOnce, bench, needs_compiler, run, run_compiled
from verilog_benches import EVERY_VERILOG_SIMULATOR

import hdl.parts.requantize
from fixedpoint import QFormat, requantize
from hdl import CircuitError
from hdl.parts.requantize import Requantize
from sim.bench.bench import BenchFailure
from sim.bench.payload import pack_all
from sim.simulators.runner import simulate
from sim.simulators.tools import missing_for


def words(core, values, shifts):
    """Raw input and output words of values and shifts, as many as fill the lanes."""
    values, shifts = (np.asarray(one).reshape(-1, core.lanes).T for one in (values, shifts))
    expected = requantize(values, shifts, core.target)
    inputs = pack_all(core.i.payload.shape(), {"value": values, "shift": shifts})
    return inputs, pack_all(core.o.payload.shape(), expected)


def requantize_bench(core, values, shifts, **settings):
    inputs, outputs = words(core, values, shifts)
    return bench("requantize", core, inputs, {"o": outputs}, expected_cycles=len(inputs) - 1 + core.latency, **settings)


def every(bits, lowest, highest):
    """All values with all shifts."""
    values = np.arange(1 << bits) - (1 << (bits - 1))
    grid = np.meshgrid(values, np.arange(lowest, highest + 1))
    return (axis.ravel() for axis in grid)


@pytest.mark.parametrize(
    ("bits", "target", "lowest", "highest", "lanes"),
    [
        (8, QFormat(8, 0), 0, 9, 8),
        (9, QFormat(4, 0), 2, 6, 8),
        (6, QFormat(8, 0), -4, 3, 4),
        (7, QFormat(5, 0), -2, -1, 4),
        (5, QFormat(3, 0), 3, 3, 1),
        (1, QFormat(2, 0), -1, 1, 2),
        (6, QFormat(6, 0), 7, 20, 8),
    ],
)
def test_every_value_and_shift_equals_the_specification(bits, target, lowest, highest, lanes, tmp_path):
    core = Requantize(bits, target, lowest, highest, lanes)
    run(requantize_bench(core, *every(bits, lowest, highest)), tmp_path)


@needs_compiler
def test_every_16_bit_value_and_shift(simulation_builds):
    core = Requantize(16, QFormat(8, 0), -1, 17, 8)
    run_compiled(requantize_bench(core, *every(16, -1, 17)), simulation_builds)


@pytest.mark.parametrize("stalls", STALLS[1:])
def test_stalls_lose_nothing(stalls, tmp_path):
    core = Requantize(6, QFormat(4, 0), -1, 6, 4)
    run(requantize_bench(core, *every(6, -1, 6)), tmp_path, *stalls, 5)


def test_rails_and_ties_of_the_widest_accumulator(tmp_path):
    core = Requantize(32, QFormat(16, 0), -28, 34, 2)
    limits = [0, 1, -1, (1 << 31) - 1, -(1 << 31)]
    ties = [sign * (1 << bit) + offset for bit in range(30) for sign in (1, -1) for offset in (-1, 0, 1)]
    values = [max(-(1 << 31), min((1 << 31) - 1, value)) for value in limits + ties + [0]]
    grid = np.meshgrid(values, [-28, -1, 0, 1, 2, 3, 15, 16, 17, 29, 30, 31, 32, 33, 34])
    run(requantize_bench(core, *(axis.ravel() for axis in grid)), tmp_path)


@pytest.mark.campaign
@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
def test_every_16_bit_value_and_shift_on_other_simulators(simulator, tmp_path):
    if missing_for(simulator):
        pytest.skip(f"{simulator} is not installed")
    core = Requantize(16, QFormat(8, 0), -1, 17, 64)
    simulate(requantize_bench(core, *every(16, -1, 17)), simulator, build_directory=tmp_path)


@pytest.mark.parametrize(("taken", "given"), [(3, 0), (8, 4), (9, 9)])
def test_a_reset_in_the_middle_starts_afresh(taken, given, tmp_path):
    core = Requantize(8, QFormat(6, 0), 0, 7, 2)
    generator = np.random.default_rng(taken)
    values, shifts = generator.integers(-128, 128, 60), generator.integers(0, 8, 60)
    inputs, outputs = words(core, values, shifts)
    results = {"o": outputs[:given] + outputs[taken:]}
    run(bench("requantize", ResetOnce(core, taken, given), inputs, results), tmp_path)


def test_another_rounding_is_found(tmp_path, monkeypatch):
    half_up = hdl.parts.requantize.saturate
    # 7.5 becomes 8, which is given out as 7, as rounding down would
    monkeypatch.setattr(hdl.parts.requantize, "saturate", lambda value, target: half_up(value - (value == 8), target))
    core = Requantize(8, QFormat(6, 0), 0, 7, 4)
    with pytest.raises(BenchFailure) as failure:
        run(requantize_bench(core, *every(8, 0, 7)), tmp_path)
    assert failure.value.kind == "value"


def test_a_shift_out_of_range_is_found(tmp_path):
    core = Requantize(8, QFormat(8, 0), 1, 2)
    inputs = pack_all(core.i.payload.shape(), {"value": [[5]], "shift": [[3]]})
    with pytest.raises(BenchFailure, match="a shift of 3 is not within 1 to 2"):
        run(bench("requantize", core, inputs, {"o": [1]}), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "lanes must be a whole number"),
        ({"bits": 0}, "bits must be a whole number from 1 to 48, not "),
        ({"bits": 49}, "bits must be a whole number from 1 to 48, not "),
        ({"target": QFormat(8, 0, False)}, "target must be a signed QFormat"),
        ({"target": 8}, "target must be a signed QFormat"),
        ({"lowest": 5, "highest": 4}, "highest must be a whole number from 5 to 62, not 4"),
        ({"highest": 8.5}, "highest must be a whole number from 0 to 62, not 8.5"),
        ({"lowest": -63}, "lowest must be a whole number from -62 to 62, not -63"),
        ({"bits": 40, "lowest": -30}, "40 bits shifted left by 30 are 70"),
    ],
)
def test_impossible_parameters_are_refused(change, message):
    arguments = {"bits": 20, "target": QFormat(8, 0), "lowest": 0, "highest": 8} | change
    with pytest.raises(CircuitError, match=message):
        Requantize(**arguments)
