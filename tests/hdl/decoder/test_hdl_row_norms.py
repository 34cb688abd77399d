import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator
from norm_cases import random_rows, special_rows

from fixedpoint import LayerNorm, QFormat, ReciprocalSquareRoot, RMSNorm
from hdl import CircuitError
from hdl.decoder.row_norms import RowNorms

RESIDUAL = QFormat(16, 10)


def make_norms(kind, channels, count=4):
    """Norms with scales, shifts, scale formats and outputs of their own."""
    generator = np.random.default_rng(channels)
    norms = []
    for _ in range(count):
        scale = generator.uniform(-2, 2, channels) * 2.0 ** generator.integers(-3, 3)
        shift = (generator.normal(size=channels),) if kind is LayerNorm else ()
        output = QFormat(8, int(generator.integers(3, 7)))
        norms.append(kind.from_float(scale, *shift, 1e-5, RESIDUAL, output, 8))
    return norms


def run_rows(unit, rows, gap, wait):
    """Give (row, norm) pairs; return each row's results, the cycle of its last word, and those of
    its first and last result.

    A row begins in the cycle after the previous one's last result, or, without `wait`, as soon as
    there is room for it.
    """
    words, i_words = (unit.norms[0].channels // lanes for lanes in (unit.lanes, unit.i_lanes))
    now, lasts, results, spans = 0, [], [[]], []

    def inputs():
        """Yield what `i` is given in each cycle; None between words."""
        for number, (row, norm) in enumerate(rows):
            while len(spans) < number - (not wait):
                yield None
            for word in range(i_words):
                for _ in range(gap()):
                    yield None
                last = word == i_words - 1
                while last and lasts and now - lasts[-1] < words:
                    yield None
                elements = [int(one) for one in row[word * unit.i_lanes : (word + 1) * unit.i_lanes]]
                if last:
                    lasts.append(now)
                yield {"valid": 1, "data": elements, "last": last, "norm": norm if last else ~norm % len(unit.norms)}

    async def bench(context):
        nonlocal now
        given = inputs()
        while len(spans) < len(rows):
            idle = {"valid": 0, "data": [-1] * unit.i_lanes, "last": now % 2, "norm": 0}
            context.set(unit.i, next(given, None) or idle)
            output = context.get(unit.o)
            if output.valid:
                results[-1].append((now, [output.data[lane] for lane in range(unit.lanes)]))
                if output.last:
                    spans.append((results[-1][0][0], now))
                    results.append([])
            now += 1
            assert now < 100 * (len(rows) + 1) * (1 + i_words + words), "no result"
            await context.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return [np.concatenate([word for _, word in result]) for result in results[:-1]], lasts, spans


def check(unit, rows, gap=lambda: 0, wait=True):
    results, lasts, spans = run_rows(unit, rows, gap, wait)
    for result, (row, norm), last, (first, final) in zip(results, rows, lasts, spans, strict=True):
        np.testing.assert_array_equal(result, unit.norms[norm].compute(np.asarray(row)))
        assert (first - last, final - first + 1) == (unit.latency, unit.norms[0].channels // unit.lanes)


def mixed_rows(unit, seed, count):
    generator = np.random.default_rng(seed)
    first = unit.norms[0]
    rows = special_rows(first) + random_rows(first, generator, count)
    return [(row, int(generator.integers(len(unit.norms)))) for row in rows]


@pytest.mark.parametrize(
    ("kind", "channels", "i_lanes", "lanes", "latency", "wait"),
    [
        (RMSNorm, 64, 4, 8, 14, True),
        (RMSNorm, 64, 4, 4, 14, False),
        (RMSNorm, 36, 6, 2, 16, True),
        (RMSNorm, 24, 4, 12, 15, False),
        (LayerNorm, 64, 8, 4, 18, False),
        (LayerNorm, 64, 1, 16, 16, True),
        (LayerNorm, 100, 5, 10, 19, False),
        (LayerNorm, 24, 1, 1, 16, True),
        (LayerNorm, 16, 16, 16, 18, False),
    ],
)
def test_every_norm_equals_the_specification(kind, channels, i_lanes, lanes, latency, wait):
    unit = RowNorms(make_norms(kind, channels), i_lanes, lanes)
    generator = np.random.default_rng(channels)
    gap = (lambda: 0) if wait else (lambda: int(generator.integers(3)) * int(generator.integers(2)))
    check(unit, mixed_rows(unit, channels + lanes, 4), gap, wait)
    assert unit.latency == latency


@pytest.mark.parametrize(("kind", "latency"), [(RMSNorm, 17), (LayerNorm, 20)])
def test_epsilons_and_formats_far_apart_and_registers_before_multipliers(kind, latency):
    norms = make_norms(kind, 12)
    for index, (epsilon, fraction, output) in enumerate(
        [(1, 7, (8, 3)), (900, -9, (6, 5)), (77, 12, (16, 30)), (1, 3, (9, 9))]
    ):
        scale_format, output_format = QFormat(8, fraction), QFormat(*output)
        norms[index] = dataclasses.replace(
            norms[index], epsilon=epsilon, scale_format=scale_format, output=output_format
        )
    assert len({norm.output_shift for norm in norms}) == len(norms)
    unit = RowNorms(norms, 2, 4, input_registers=True)
    check(unit, [(row, norm) for row, _ in mixed_rows(unit, 5, 4) for norm in range(len(norms))])
    assert unit.latency == latency


def test_wrong_parameters_are_refused():
    norms = make_norms(RMSNorm, 12)
    coarse = dataclasses.replace(norms[0], reciprocal_square_root=ReciprocalSquareRoot(10, 18))
    for wrong, message in [
        (([], 2, 2), "norms must be"),
        ((norms + make_norms(LayerNorm, 12), 2, 2), "of one kind"),
        ((norms + make_norms(RMSNorm, 24), 2, 2), "the same input format, channels"),
        ((norms, 5, 1), "i_lanes must divide the row's 12 channels, not be 5"),
        ((norms, 1, 0), "lanes must be a whole number"),
        ((norms, 4, 6), "one of i_lanes and lanes must divide the other, not be 4 and 6"),
        (([coarse], 2, 2), "to 17 mantissa bits, not 18"),
    ]:
        with pytest.raises(CircuitError, match=message):
            RowNorms(*wrong)
