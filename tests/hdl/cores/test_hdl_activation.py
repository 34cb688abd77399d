# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from core_bench import ResetOnce, bench, run, run_with_stalls
from norm_cases import pack_words

import fixedpoint
from fixedpoint import QFormat
from hdl import CircuitError
from hdl.cores.activation import TableActivation

FUNCTIONS = {
    "relu": (lambda x: np.maximum(x, 0), QFormat(8, 4), QFormat(8, 4)),
    "gelu": (lambda x: 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))), QFormat(8, 5), QFormat(8, 4)),
    "unsigned input": (lambda x: x * x, QFormat(5, 3, False), QFormat(8, 4, False)),
    "one bit in": (lambda x: x - 1, QFormat(1, 0, False), QFormat(2, 0)),
    "16 bits out": (np.exp, QFormat(8, 6), QFormat(16, 11)),
}


def specification(name="gelu"):
    return fixedpoint.TableActivation.from_function(*FUNCTIONS[name])


def make(parameters, values, lanes=1, component=None, **settings):
    """A bench of one long row."""
    core = TableActivation(parameters, lanes)
    inputs = pack_words(core.i, [values], lanes)
    outputs = {"o": pack_words(core.o, [parameters.compute(values)], lanes)}
    return bench("activation", component or core, inputs, outputs, **settings)


def every(parameters, lanes=1):
    """Every input on every lane."""
    number = parameters.input
    values = np.arange(number.minimum_integer, number.maximum_integer + 1)
    return np.repeat(values, lanes) if lanes > 1 else values


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("lanes", [1, 3])
def test_every_input_has_the_specified_result(tmp_path, name, lanes):
    parameters = specification(name)
    values = every(parameters, lanes)
    cycles = len(values) // lanes - 1 + TableActivation.latency
    run(make(parameters, values, lanes, expected_cycles=cycles), tmp_path)


def test_every_lane_has_its_own_element(tmp_path):
    parameters = specification()
    values = np.random.default_rng(3).integers(-128, 128, 400)
    run_with_stalls(make(parameters, values, 4), tmp_path)


@pytest.mark.parametrize(("taken", "given"), [(2, 1), (4, 2)])
def test_reset_in_the_middle_of_a_row(tmp_path, taken, given):
    parameters = specification()
    whole = make(parameters, every(parameters), component=ResetOnce(TableActivation(parameters), taken, given))
    inputs, outputs = whole.inputs["i"], whole.outputs["o"]
    run(bench("reset", whole.component, inputs, {"o": outputs[:given] + outputs[taken:]}), tmp_path)


def test_impossible_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.TableActivation, not int"):
        TableActivation(8)
    for lanes in (0, -1, 2.0):
        with pytest.raises(CircuitError, match=f"lanes must be a whole number of at least 1, not {lanes}"):
            TableActivation(specification(), lanes)
