import numpy as np
import pytest
from amaranth.sim import Simulator

from fixedpoint import QFormat, Reciprocal
from fixedpoint.operators.attention import CausalAttention
from hdl import CircuitError
from hdl.decoder.divide import DivideRows


def make_attentions(heads, head_dim, context, fractions=((5, 6), (4, 4), (7, 3)), bits=8, **settings):
    """Attentions of `heads` key heads with these fractions of values and contexts."""
    return [
        CausalAttention(
            QFormat(8, 5),
            QFormat(8, 5),
            QFormat(bits, value),
            QFormat(bits, output),
            heads * head_dim,
            heads,
            context,
            **settings,
        )
        for value, output in fractions
    ]


def make_rows(unit, generator, count):
    """Sums of random rows of the numerators and values that there can be: any number of
    positions, values at the rails among them; with their denominators and layer.
    """
    first = unit.attentions[0]
    heads, channels = first.num_kv_heads, first.kv_channels
    rows = []
    for number in range(count):
        positions = (1, first.context_length, int(generator.integers(1, first.context_length + 1)))[min(number % 4, 2)]
        numerators = generator.integers(0, 256, (positions, heads)) >> generator.integers(0, 9, (1, heads))
        numerators[generator.integers(positions, size=heads), np.arange(heads)] = 255
        if number % 3 == 0:
            numerators[:] = 255
        limit = 1 << first.value.bits - 1
        values = generator.integers(-limit, limit, (positions, channels))
        if number % 2:
            values = generator.choice([-limit, limit - 1], (1, channels)) * np.ones((positions, 1), dtype=int)
        products = np.repeat(numerators, first.head_dim, axis=1) * values
        slots = np.zeros((unit.slots, channels), dtype=int)
        np.add.at(slots, np.arange(positions) % unit.slots, products)
        rows.append((slots.reshape(-1), numerators.sum(axis=0), int(generator.integers(len(unit.attentions)))))
    return rows


def run_rows(unit, rows, generator):
    """Give rows' sums and denominators, each as early as two rows have room or somewhat later;
    return the contexts, and check when they come.
    """
    words = unit.attentions[0].kv_channels // unit.lanes
    now, times, ends, results = 0, {"sums": [], "denominators": []}, [], [[]]
    delays = {"sums": 0, "denominators": 0}

    def arrives(kind):
        """Whether the next row's part comes in this cycle."""
        number = len(times[kind])
        if number >= len(rows) or (number >= 2 and len(ends) < number - 1):
            return False
        if delays[kind]:
            delays[kind] -= 1
            return False
        delays[kind] = int(generator.choice([0, 0, 1, 3, 8, 20]))
        times[kind].append(now)
        return True

    async def bench(context):
        nonlocal now
        while len(ends) < len(rows):
            given = {"valid": 0, "sums": [-1] * len(unit.i.sums), "layer": 0}
            if arrives("sums"):
                sums, _, layer = rows[len(times["sums"]) - 1]
                given = {"valid": 1, "sums": sums.tolist(), "layer": layer}
            context.set(unit.i, given)
            given = {"valid": 0, "values": [3] * len(unit.i_denominators.values)}
            if arrives("denominators"):
                given = {"valid": 1, "values": rows[len(times["denominators"]) - 1][1].tolist()}
            context.set(unit.i_denominators, given)
            output = context.get(unit.o)
            if output.valid:
                number, word = len(results) - 1, len(results[-1])
                latest = times["sums"][number] + unit.latency, times["denominators"][number] + unit.denominator_latency
                before = ends[-1] + 1 if ends else 0
                alone = number == 0 or times["denominators"][number] > times["denominators"][number - 1] + len(
                    unit.i_denominators.values
                )
                if word == 0 and alone:
                    assert now == max(*latest, before)
                results[-1].append([output.data[lane] for lane in range(unit.lanes)])
                assert output.last == (word == words - 1)
                if output.last:
                    ends.append(now)
                    results.append([])
            else:
                assert not results[-1]
            now += 1
            assert now < 100 * (len(rows) + 1) * (1 + words), "no result"
            await context.tick()

    simulator = Simulator(unit)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return [np.concatenate(result) for result in results[:-1]]


@pytest.mark.parametrize(
    ("heads", "head_dim", "context", "slots", "lanes", "latencies"),
    [
        (4, 8, 512, 4, 4, (9, 12)),
        (4, 8, 512, 4, 8, (8, 11)),
        (4, 8, 30, 1, 16, (7, 13)),
        (3, 6, 20, 2, 3, (7, 11)),
        (5, 4, 100, 3, 20, (7, 15)),
        (1, 12, 4, 5, 1, (7, 10)),
        (1, 4, 2048, 2, 2, (7, 11)),
    ],
)
def test_contexts_equal_the_specification(heads, head_dim, context, slots, lanes, latencies):
    # One case has registers before its multipliers.
    unit = DivideRows(make_attentions(heads, head_dim, context), slots, lanes, lanes == 4)
    assert (unit.latency, unit.denominator_latency) == latencies
    generator = np.random.default_rng(heads + lanes)
    rows = make_rows(unit, generator, 30)
    for result, (sums, denominators, layer) in zip(run_rows(unit, rows, generator), rows, strict=True):
        weighted = sums.reshape(slots, heads, head_dim).sum(axis=0)
        expected = unit.attentions[layer].normalize(weighted, denominators[:, None])
        np.testing.assert_array_equal(result, expected.reshape(-1))


def test_wrong_parameters_are_refused():
    attentions = make_attentions(4, 6, 16)
    for wrong, message in [
        (([], 1, 1), "attentions must be one"),
        ((attentions + make_attentions(4, 6, 17), 1, 1), "the same sizes, widths and reciprocal"),
        ((attentions, 0, 1), "slots must be a whole number"),
        ((attentions, 1, 4), "lanes must divide the heads' 6 channels or be a multiple .* 24, not 4"),
        ((attentions, 1, 18), "not 18"),
        ((make_attentions(4, 6, 16, reciprocal=Reciprocal(10, 18)), 1, 1), "at most 17 mantissa bits"),
    ]:
        with pytest.raises(CircuitError, match=message):
            DivideRows(*wrong)
