import re

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.lib import data

from fixedpoint import QFormat
from hdl import CircuitError
from hdl.parts.arithmetic import shape_of
from hdl.parts.parameter_checks import check_shape, check_whole


@pytest.mark.parametrize("value", [1, 2, 8])
def test_whole_numbers_within_limits_pass(value):
    check_whole("lanes", value)
    check_whole("lanes", value, 1, 8)


@pytest.mark.parametrize("value", [0, -1, 9, True, 2.0, np.int64(2), "2", None])
def test_everything_else_is_refused_by_name(value):
    message = re.escape(f"lanes must be a whole number from 1 to 8 (the columns), not {value!r}")
    with pytest.raises(CircuitError, match=message):
        check_whole("lanes", value, 1, 8, "the columns")
    if value != 9:
        with pytest.raises(CircuitError, match=re.escape(f"lanes must be a whole number of at least 1, not {value!r}")):
            check_whole("lanes", value)


def test_limits_may_be_negative():
    check_whole("shift", -3, -3, -1)
    with pytest.raises(CircuitError, match="shift must be a whole number from -3 to -1, not 0"):
        check_whole("shift", 0, -3, -1)


def test_shapes_with_a_bit_pass():
    for shape in (1, unsigned(8), shape_of(QFormat(8, 4)), range(3), data.ArrayLayout(1, 2)):
        check_shape("element", shape)


def test_what_is_no_shape_is_refused_by_name():
    for wrong in ("eight bits", None, 1.5, -1):
        with pytest.raises(TypeError, match=re.escape(f"element must be an Amaranth shape, not {wrong!r}")):
            check_shape("element", wrong)
    for empty in (0, unsigned(0), data.StructLayout({})):
        with pytest.raises(CircuitError, match=re.escape(f"element must have at least one bit, not be {empty!r}")):
            check_shape("element", empty)
