# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from core_bench import ResetOnce, bench, every_row, needs_compiler, pack_rows, run, run_compiled, run_with_stalls

import fixedpoint
from fixedpoint import QFormat
from hdl import CircuitError
from hdl.catalog.vectors import row_columns
from hdl.cores.argmax import ArgMax
from sim.bench.bench import BenchFailure
from sim.bench.payload import pack_all

LOGITS = QFormat(16, 8)


def make(rows, length, logits=LOGITS, component=None, **settings):
    core = ArgMax(logits, length)
    tokens = [int(fixedpoint.argmax(row)) for row in rows]
    return bench("argmax", component or core, pack_rows(core.i, "data", rows), {"o": tokens}, **settings)


def random_rows(generator, count, length, shortest=1):
    """Rows of all lengths; narrow ones have many ties."""
    rows = []
    for _ in range(count):
        spread = int(generator.choice([1, 2, 300, 32768]))
        rows.append(generator.integers(-spread, spread, generator.integers(shortest, length + 1)))
    return rows


def special_rows(length, logits=LOGITS):
    low, high = logits.minimum_integer, logits.maximum_integer
    place = np.arange(length)
    rows = [np.full(length, value) for value in (low, high, 0)]
    rows += [np.where(place == hot, high, low) for hot in (0, length // 2, length - 1)]
    rows += [np.where(place < length - 1, low, low + 1), np.where(place % 2, high, low), [high], [low]]
    return [np.asarray(row) for row in rows]


@pytest.mark.parametrize("length", [1, 2, 65, 100])
def test_rails_ties_one_hot_and_random_rows(tmp_path, length):
    rows = special_rows(length) + random_rows(np.random.default_rng(1), 40, length)
    run_with_stalls(make(rows, length), tmp_path)


def test_every_row_of_three_3_bit_logits(tmp_path):
    rows = [np.array(row) - 4 for row in np.ndindex(8, 8, 8)]
    core = ArgMax(QFormat(3, 0), 3)
    run(make(rows, 3, QFormat(3, 0), expected_cycles=core.cycles(3, len(rows))), tmp_path)


@pytest.mark.parametrize("lanes", [2, 4])
def test_every_row_of_three_3_bit_logits_several_at_a_time(tmp_path, lanes):
    """The last word has one logit less than lanes; what stands in its place is the largest."""
    rows = [np.array(row) - 4 for row in np.ndindex(8, 8, 8)]
    core = ArgMax(QFormat(3, 0), 3, lanes)
    assert core.latency == 2 + lanes // 2
    words = row_columns("data", [np.append(row, 3) for row in rows], lanes)
    inputs = pack_all(core.i.payload.shape(), words)
    tokens = [int(fixedpoint.argmax(row)) for row in rows]
    cycles = core.cycles(3, len(rows))
    assert cycles == 512 * (4 // lanes) - 1 + core.latency
    run(bench("argmax", core, inputs, {"o": tokens}, expected_cycles=cycles), tmp_path)


@needs_compiler
def test_every_row_of_two_8_bit_logits(simulation_builds):
    rows, core = every_row(QFormat(8, 4), 2), ArgMax(QFormat(8, 4), 2)
    inputs = pack_rows(core.i, "data", rows)
    tokens = fixedpoint.argmax(rows).tolist()
    cycles = core.cycles(2, len(rows))
    run_compiled(bench("argmax", core, inputs, {"o": tokens}, expected_cycles=cycles), simulation_builds)


def test_unsigned_logits_compare_as_such(tmp_path):
    rows = [np.array(row) for row in np.ndindex(4, 4, 4)]
    run(make(rows, 3, QFormat(2, 0, False)), tmp_path)


@pytest.mark.parametrize(("elements", "rows"), [(1, 1), (1, 30), (65, 3)])
def test_cycles_are_the_stated_ones(tmp_path, elements, rows):
    scores = random_rows(np.random.default_rng(2), rows, elements, elements)
    run(make(scores, elements, expected_cycles=rows * elements + 1), tmp_path)


def test_a_reset_forgets_the_maximum(tmp_path):
    broken, after = np.array([30000, 1, 2]), random_rows(np.random.default_rng(6), 5, 8)
    whole = make([broken, *after], 8, component=ResetOnce(ArgMax(LOGITS, 8), 2))
    inputs = whole.inputs["i"]
    run(bench("reset", whole.component, inputs[:2] + inputs[3:], {"o": whole.outputs["o"][1:]}), tmp_path)


def test_a_row_that_does_not_end_fails_in_simulation(tmp_path):
    whole = make([np.arange(4)], 4)
    with pytest.raises(BenchFailure, match="argmax input: no last on element 3 of a row of at most 4") as failure:
        run(bench("too long", whole.component, [whole.inputs["i"][0]] * 5, whole.outputs), tmp_path)
    assert failure.value.kind == "assertion"


def test_impossible_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.QFormat, not int"):
        ArgMax(16, 4)
    for length in (0, 65537, 2.0, True):
        with pytest.raises(CircuitError, match=f"argmax length must be a whole number from 1 to 65536, not {length}"):
            ArgMax(LOGITS, length)
