import numpy as np
import pytest
from amaranth.sim import Simulator

from fixedpoint import Reciprocal, ReciprocalSquareRoot
from hdl import CircuitError
from hdl.parts.reciprocal_lookup import ReciprocalLookup


def look_up(unit, arguments, gaps):
    """Each argument's result when it comes, and in the cycle before the next one's."""
    times = np.cumsum(1 + np.asarray(gaps))
    first, held = [], []

    async def bench(context):
        for now in range(times[-1] + unit.latency + 1):
            number = np.searchsorted(times, now)
            given = number < len(times) and times[number] == now
            context.set(unit.valid, bool(given))
            context.set(unit.i, int(arguments[number]) if given else 0)
            result = context.get(unit.mantissa), context.get(unit.digit)
            if now - unit.latency in times:
                first.append(result)
            if now - unit.latency + 1 in times[1:]:
                held.append(result)
            await context.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return first, held


@pytest.mark.parametrize(
    "function", [Reciprocal(), ReciprocalSquareRoot(), Reciprocal(4, 9), ReciprocalSquareRoot(4, 9)]
)
@pytest.mark.parametrize("width", [1, 9, 45])
def test_results_equal_the_specification_and_stay(function, width):
    generator = np.random.default_rng(width)
    arguments = (
        np.arange(1, 1 << width)
        if width < 12
        else generator.integers(1, 1 << width, 400) >> generator.integers(0, 45, 400)
    )
    arguments = np.maximum(arguments, 1)
    unit = ReciprocalLookup(function, width)
    first, held = look_up(unit, arguments, generator.choice([0, 0, 1, 4], len(arguments)))
    expected = function.compute(arguments)
    results = list(zip(expected.mantissa.tolist(), (expected.exponent - function.mantissa_bits).tolist(), strict=True))
    assert first == results
    assert held == results[:-1]


def test_wrong_parameters_are_refused():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.Reciprocal or"):
        ReciprocalLookup(3, 9)
    with pytest.raises(CircuitError, match="width must be a whole number from 1 to 62"):
        ReciprocalLookup(Reciprocal(), 63)
