import numpy as np
import pytest
from amaranth.sim import Simulator

from fixedpoint import Exponential, QFormat, Softmax
from hdl import CircuitError
from hdl.decoder.softmax_rows import SoftmaxRows


def make_softmaxes(bits, length, fractions, **table):
    return [Softmax(QFormat(bits, fraction), length, Exponential(fraction, **table)) for fraction in fractions]


def make_rows(unit, generator, count):
    """Rows of all lengths, each with its layer: at the rails, of one value, spread over a few
    steps of the exponential, over all scores.
    """
    rows = []
    length, bits = unit.softmaxes[0].length, unit.softmaxes[0].score.bits
    lowest, highest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    for number in range(count):
        layer = int(generator.integers(len(unit.softmaxes)))
        size = (1, length, int(generator.integers(1, length + 1)))[min(number % 4, 2)]
        near = min(highest, int(2.0 ** (unit.softmaxes[layer].score.fraction + 3)) + 1)
        row = [
            generator.integers(lowest, highest, size, endpoint=True),
            np.clip(
                generator.integers(lowest, highest) - generator.integers(0, near, size, endpoint=True), lowest, highest
            ),
            generator.choice([lowest, highest], size),
            np.full(size, lowest),
            np.arange(size) % (highest + 1) - generator.integers(2),
        ][number % 5]
        rows.append((row, layer))
    return rows


def run_rows(unit, rows, generator):
    """Give (row, layer) pairs, one behind the other as there is room; return each row's numerators,
    its sum, and check the latencies.

    Gaps and starts are random without being rare: many rows start as early as they may.
    """
    scores = unit.scores
    words = [-(-len(row) // scores) for row, _ in rows]
    now, completed, started, given, results, sums, ends = 0, [], [], 0, [[]], [], []
    eager = True

    def inputs():
        for number, (row, layer) in enumerate(rows):
            while len(started) < number - 1 or (number > 1 and now < started[number - 2] + words[number - 2]):
                yield None
            for word in range(words[number]):
                while not eager and generator.integers(3) == 0:
                    yield None
                part = [int(one) for one in row[word * scores : (word + 1) * scores]]
                last = word == words[number] - 1
                if last:
                    completed.append(now)
                filled = part + [int(generator.integers(-2, 2))] * (scores - len(part))
                yield {"valid": 1, "scores": filled, "count": len(part), "last": last, "layer": layer}

    def may_start():
        number = len(started)
        if number >= len(completed) or now < completed[number] + unit.ready_latency:
            return False
        if number and now < started[-1] + words[number - 1]:
            return False
        return eager or generator.integers(8) == 0

    async def bench(context):
        nonlocal now, given, eager
        arriving = inputs()
        while len(sums) < len(rows):
            if now % 50 == 0:
                eager = not eager
            idle = {"valid": 0, "scores": [1] * scores, "count": 1, "last": now % 2, "layer": 0}
            context.set(unit.i, next(arriving, None) or idle)
            start = bool(may_start())
            context.set(unit.start, start)
            if start:
                started.append(now)
            output, denominator = context.get(unit.o), context.get(unit.o_denominator)
            if output.valid:
                number = len(results) - 1
                assert now == started[number] + unit.numerator_latency + len(results[-1])
                results[-1].append([output.numerators[lane] for lane in range(scores)])
                assert output.last == (len(results[-1]) == words[number])
                if output.last:
                    ends.append(now)
                    results.append([])
            if denominator.valid:
                assert now == ends[len(sums)] + unit.denominator_latency
                sums.append(denominator.value)
            now += 1
            assert now < 60 * sum(words) + 500, "no result"
            await context.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return [np.concatenate(result) for result in results[:-1]], sums


def check(unit, count, seed):
    generator = np.random.default_rng(seed)
    rows = make_rows(unit, generator, count)
    results, sums = run_rows(unit, rows, generator)
    for result, total, (row, layer) in zip(results, sums, rows, strict=True):
        numerators = unit.softmaxes[layer].numerators(np.asarray(row))
        np.testing.assert_array_equal(result[: len(row)], numerators)
        assert not result[len(row) :].any()
        assert total == numerators.sum()


@pytest.mark.parametrize(
    ("bits", "length", "fractions", "scores", "latencies"),
    [
        (19, 33, (12, 10, 9, 12, 11), 4, (3, 3, 2)),
        (19, 20, (7, 8, 9), 1, (3, 3, 1)),
        (12, 7, (9,), 2, (3, 3, 1)),
        (16, 64, (-3, 5, 14), 8, (4, 3, 3)),
        (14, 1, (10, 6), 3, (3, 3, 2)),
        (8, 50, (12, 4), 5, (4, 3, 2)),
    ],
)
def test_every_layer_equals_the_specification(bits, length, fractions, scores, latencies):
    unit = SoftmaxRows(make_softmaxes(bits, length, fractions), scores)
    check(unit, 40, bits + scores)
    assert (unit.ready_latency, unit.numerator_latency, unit.denominator_latency) == latencies


def test_other_tables():
    check(SoftmaxRows(make_softmaxes(12, 9, (8, 3), table_bits=4, output_bits=12), 2), 30, 3)


def test_wrong_parameters_are_refused():
    softmaxes = make_softmaxes(12, 9, (8, 3))
    for wrong, message in [
        (([], 1), "softmaxes must be one"),
        ((softmaxes + make_softmaxes(12, 8, (8,)), 1), "the same score bits, length and"),
        ((softmaxes + make_softmaxes(12, 9, (8,), output_bits=7), 1), "the same score bits, length and"),
        ((make_softmaxes(12, 9, (8,), table_bits=9), 1), "at most 8 bits, not 9"),
        ((softmaxes, 0), "scores must be a whole number of at least 1"),
    ]:
        with pytest.raises(CircuitError, match=message):
            SoftmaxRows(*wrong)
