import numpy as np
import pytest
from amaranth.hdl import Module, Shape, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from core_bench import bench, run

from fixedpoint import QFormat, requantize, shift_right_half_up
from hdl.parts import arithmetic
from sim.bench.payload import pack_all

# holds every result here, so that an expression too narrow or of the wrong sign shows
WIDE = signed(40)


class Expression(wiring.Component):
    """An expression of the payload, as a core without a register."""

    def __init__(self, function, shape):
        self.function = function
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(WIDE))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            self.o.payload.eq(self.function(self.i.payload)),
        ]
        return m


def check(tmp_path, function, shape, values, expected):
    core = Expression(function, shape)
    run(bench("expression", core, pack_all(shape, values), {"o": pack_all(WIDE, expected)}), tmp_path)


def every(shape):
    return np.arange(1 << shape.width) - (1 << shape.width - 1 if shape.signed else 0)


SHAPES = pytest.mark.parametrize("shape", [signed(8), unsigned(8), signed(2), unsigned(1)], ids=str)


@SHAPES
@pytest.mark.parametrize("shift", [-3, 0, 1, 2, 7, 8, 9, 20])
def test_constant_shifts_round_half_up(tmp_path, shape, shift):
    values = every(shape)
    expected = shift_right_half_up(values, shift)
    check(tmp_path, lambda value: arithmetic.shift_right_half_up(value, shift), shape, values, expected)


@pytest.mark.parametrize("shift", [-2, 0, 1, 2, 3, 6, 7, 9])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_rounding_and_saturating_at_once(tmp_path, shift, bits):
    target = QFormat(bits, 0)
    values = every(signed(9))
    expected = requantize(values, shift, target)
    check(tmp_path, lambda value: arithmetic.round_and_saturate(value, shift, target), signed(9), values, expected)


@SHAPES
@pytest.mark.parametrize("bits", [1, 5, 12])
def test_shifts_to_few_bits(tmp_path, shape, bits):
    pair = data.StructLayout({"value": shape, "shift": 3})
    values, shifts = (axis.ravel() for axis in np.meshgrid(every(shape), np.arange(8)))
    columns, expected = {"value": values, "shift": shifts}, values >> shifts & (1 << bits) - 1
    check(tmp_path, lambda one: arithmetic.shift_right_by(one.value, one.shift, bits), pair, columns, expected)


@pytest.mark.parametrize("bits", [3, 5, 9])
def test_sums_of_three(tmp_path, bits):
    shape = data.StructLayout({"a": signed(4), "b": unsigned(3), "c": signed(3)})
    a, b, c = (axis.ravel() for axis in np.meshgrid(every(signed(4)), every(unsigned(3)), every(signed(3))))
    expected = (a + b + c + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)
    columns = {"a": a, "b": b, "c": c}
    check(
        tmp_path,
        lambda one: arithmetic.add_three(bits, one.a, one.b, one.c)[:bits].as_signed(),
        shape,
        columns,
        expected,
    )


@SHAPES
def test_shifts_known_when_the_circuit_runs_round_half_up(tmp_path, shape):
    pair = data.StructLayout({"value": shape, "shift": 4})
    values, shifts = (axis.ravel() for axis in np.meshgrid(every(shape), np.arange(16)))
    columns, expected = {"value": values, "shift": shifts}, shift_right_half_up(values, shifts)
    check(tmp_path, lambda one: arithmetic.shift_right_half_up_by(one.value, one.shift), pair, columns, expected)


@pytest.mark.parametrize("shape", [signed(8), unsigned(8)], ids=str)
@pytest.mark.parametrize(
    "output", ["Q4.0", "Q8.0", "Q9.0", "Q12.0", "Q1.0", "UQ1.0", "UQ4.0", "UQ7.0", "UQ8.0", "UQ9.0"]
)
def test_saturation_keeps_what_fits_and_clips_the_rest(tmp_path, shape, output):
    values, output = every(shape), QFormat.parse(output)
    check(tmp_path, lambda value: arithmetic.saturate(value, output), shape, values, requantize(values, 0, output))


def test_a_format_has_its_shape():
    assert Shape.cast(arithmetic.shape_of(QFormat(8, 5))) == signed(8)
    assert Shape.cast(arithmetic.shape_of(QFormat(8, 8, signed=False))) == unsigned(8)
    assert arithmetic.shape_of(QFormat(8, 5)) != arithmetic.shape_of(QFormat(8, 4))
