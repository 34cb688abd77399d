# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from core_bench import ResetOnce, bench, every_row, pack_rows, run, run_with_stalls
from test_hdl_argmax import LOGITS, random_rows, special_rows

import fixedpoint
from fixedpoint import QFormat
from fixedpoint.operators.sampling import mix
from hdl import CircuitError
from hdl.catalog.vectors import row_columns
from hdl.cores.sampler import Sampler, XorShift32
from sim.bench.bench import BenchFailure, StreamBench
from sim.bench.payload import pack_all

EXTREMES = np.array([0, 1, 2**16 - 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint32)


def specification(temperature=1.0, logits=LOGITS):
    return fixedpoint.Sampler(logits, temperature)


def randoms(generator, count):
    """The extremes first, and 0, which no generator gives."""
    return np.concatenate([EXTREMES, generator.integers(0, 2**32, count, dtype=np.uint32)])[:count]


def make(parameters, rows, length, numbers, component=None, **settings):
    core = Sampler(parameters, length)
    tokens = [int(parameters.choose(row, number)) for row, number in zip(rows, numbers, strict=True)]
    inputs = {"i": pack_rows(core.i, "data", rows), "i_random": numbers.tolist()}
    return StreamBench("sampler", component or core, inputs, {"o": tokens}, watchdog_cycles=2000, **settings)


@pytest.mark.parametrize(("lanes", "length"), [(2, 37), (4, 1), (4, 37), (16, 40)])
def test_several_logits_a_cycle_choose_the_same_token(tmp_path, lanes, length):
    """Rows that end with the vocabulary, which may end within a word, and shorter ones of whole
    words; in the last word, what lies beyond the vocabulary is never chosen.
    """
    generator, core = np.random.default_rng(8), Sampler(specification(), length, lanes)
    sizes = [length] * 6 + list(range(lanes, length, lanes))
    rows = [generator.integers(-3000, 3000, size) for size in sizes] + [np.full(length, -32768)] * 3
    numbers = randoms(generator, len(rows))
    tokens = [int(specification().choose(row, number)) for row, number in zip(rows, numbers, strict=True)]
    padded = [np.concatenate([row, np.full(-len(row) % lanes, 32767)]) for row in rows]
    words = row_columns("data", padded, lanes)
    inputs = {"i": pack_all(core.i.payload.shape(), words), "i_random": numbers.tolist()}
    assert len(set(tokens)) > min(length, 8) // 2
    run_with_stalls(StreamBench("lanes", core, inputs, {"o": tokens}, watchdog_cycles=2000), tmp_path)


@pytest.mark.parametrize("length", [1, 2, 65])
def test_rails_ties_one_hot_and_random_rows(tmp_path, length):
    generator = np.random.default_rng(1)
    rows = special_rows(length) + random_rows(generator, 25, length)
    run_with_stalls(make(specification(), rows, length, randoms(generator, len(rows))), tmp_path)


def test_many_rows_of_one_logit(tmp_path):
    generator = np.random.default_rng(6)
    run_with_stalls(make(specification(), random_rows(generator, 120, 1), 65, randoms(generator, 120)), tmp_path)


@pytest.mark.parametrize(
    ("temperature", "logits"),
    [
        (0.3, LOGITS),
        (1.7, LOGITS),
        # only the maximum has a share, and equal ones with it; the scale shifts to the left
        (1e-9, LOGITS),
        (1e9, LOGITS),  # all have the same share
        (0.8, QFormat(8, 3)),
        (1.0, QFormat(16, 20)),
        (1.0, QFormat(12, -2)),
    ],
)
def test_every_temperature_and_format(tmp_path, temperature, logits):
    generator = np.random.default_rng(2)
    rows = special_rows(9, logits)
    rows += [np.clip(row, logits.minimum_integer, logits.maximum_integer) for row in random_rows(generator, 20, 9)]
    run(make(specification(temperature, logits), rows, 9, randoms(generator, len(rows))), tmp_path)


def test_equal_logits_go_to_the_largest_noise_and_equal_sums_to_the_first(tmp_path):
    parameters, length = specification(), 500
    numbers = np.random.default_rng(3).integers(1, 2**32, 12, dtype=np.uint32)
    rows = [np.zeros(length, dtype=int)] * 8
    for number in numbers[8:]:
        noise = parameters.scores(np.zeros(length, dtype=int), number)
        first, second = next((i, j) for j in range(length) for i in range(j) if noise[i] == noise[j])
        rows.append(np.full(length, -32768))
        rows[-1][[first, second]] = 32767
    run(make(parameters, rows, length, numbers), tmp_path)


def test_every_row_of_two_4_bit_logits(tmp_path):
    """Each with numbers that choose the first, and numbers that choose the second."""
    parameters, generator = specification(1.0, QFormat(4, 1)), np.random.default_rng(9)
    rows = [row for row in every_row(parameters.logits, 2) for _ in range(4)]
    whole = make(parameters, rows, 2, generator.integers(1, 2**32, len(rows), dtype=np.uint32))
    assert 0.3 < np.mean(whole.outputs["o"]) < 0.7
    run(whole, tmp_path)


@pytest.mark.parametrize(("elements", "rows"), [(1, 1), (1, 40), (2, 30), (65, 1), (20, 6)])
def test_cycles_are_the_stated_ones(tmp_path, elements, rows):
    generator = np.random.default_rng(3)
    core = Sampler(specification(), 65)
    assert core.latency == 20
    assert core.cycles(elements, rows) == rows * elements + 19
    logits = random_rows(generator, rows, elements, elements)
    whole = make(
        specification(), logits, 65, randoms(generator, rows), core, expected_cycles=core.cycles(elements, rows)
    )
    run(whole, tmp_path)


def test_a_reset_in_the_middle_of_a_row(tmp_path):
    generator = np.random.default_rng(4)
    broken, after = np.array([30000, 20000, 1, 2]), random_rows(generator, 5, 8)
    core = ResetOnce(Sampler(specification(), 8), 3)
    numbers = randoms(generator, 6)
    whole = make(specification(), [broken, *after], 8, numbers, core)
    expected = [int(specification().choose(row, number)) for row, number in zip(after, numbers[1:], strict=True)]
    inputs = {"i": whole.inputs["i"][:3] + whole.inputs["i"][4:], "i_random": numbers.tolist()}
    run(StreamBench("reset", core, inputs, {"o": expected}, watchdog_cycles=2000), tmp_path)


def test_a_row_that_does_not_end_fails_in_simulation(tmp_path):
    whole = make(specification(), [np.arange(4)], 4, EXTREMES[:1])
    inputs = {**whole.inputs, "i": [whole.inputs["i"][0]] * 5}
    with pytest.raises(BenchFailure, match="sampler input: no last on element 3 of a row of at most 4"):
        run(StreamBench("too long", whole.component, inputs, whole.outputs), tmp_path)


def requests(port, restart, state):
    return pack_all(port.payload.shape(), {"restart": restart, "state": state})


def test_random_numbers_are_the_generators(tmp_path):
    """Three sequences in a row; requests that do not restart have random states."""
    core = XorShift32()
    restart, state, numbers = [], [], []
    for sequence in range(3):
        generator = fixedpoint.XorShift32(np.array([mix(7, sequence)]))
        for step in range(100):
            restart.append(int(step == 0))
            state.append(mix(7, sequence) if step == 0 else step * 12345)
            numbers.append(int(generator.next()[0]))
    whole = bench("xorshift", core, requests(core.i, restart, state), {"o": numbers}, expected_cycles=300)
    run_with_stalls(whole, tmp_path)


class Seeded(wiring.Component):
    """A sampler with its generator, as a decoder joins them."""

    def __init__(self, parameters, length):
        self.sampler, self.generator = Sampler(parameters, length), XorShift32()
        members = {name: self.sampler.signature.members[name] for name in ("i", "o")}
        super().__init__({**members, "i_request": self.generator.signature.members["i"]})

    def elaborate(self, platform):
        m = Module()
        m.submodules.sampler, m.submodules.generator = self.sampler, self.generator
        wiring.connect(m, wiring.flipped(self.i), self.sampler.i)
        wiring.connect(m, wiring.flipped(self.i_request), self.generator.i)
        wiring.connect(m, self.generator.o, self.sampler.i_random)
        wiring.connect(m, self.sampler.o, wiring.flipped(self.o))
        return m


def test_a_seeded_sequence_of_tokens(tmp_path):
    parameters = specification(0.9)
    core = Seeded(parameters, 30)
    rows = random_rows(np.random.default_rng(5), 40, 30, 30)
    generator = fixedpoint.XorShift32.from_seed(11, 1)
    tokens = [int(parameters.choose(row[None], generator.next())[0]) for row in rows]
    inputs = {
        "i": pack_rows(core.i, "data", rows),
        "i_request": requests(core.i_request, [1] + [0] * 39, [mix(11, 0)] + [0] * 39),
    }
    run(StreamBench("seeded", core, inputs, {"o": tokens}, watchdog_cycles=2000), tmp_path, 0.2, 0.2)


def test_impossible_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.Sampler, not float"):
        Sampler(1.0, 4)
    with pytest.raises(CircuitError, match="sampler lanes must be a power of two, not 3"):
        Sampler(specification(), 4, 3)
    with pytest.raises(CircuitError, match="temperature must be positive; with temperature 0 ArgMax chooses"):
        Sampler(specification(0), 4)
    for length in (0, 65537, 2.0):
        with pytest.raises(CircuitError, match=f"sampler length must be a whole number from 1 to 65536, not {length}"):
            Sampler(specification(), length)
