# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from core_bench import (
    ResetOnce,
    bench,
    every_row,
    needs_compiler,
    pack_rows,
    rows_bench,
    run,
    run_compiled,
    run_with_stalls,
)

import fixedpoint
from fixedpoint import QFormat
from hdl import CircuitError
from hdl.cores.softmax import Softmax, SoftmaxNumerators
from sim.bench.bench import BenchFailure


def specification(length=64, bits=20, fraction=10, **others):
    """By default the shape of attention's softmax: 64 tokens, scores of 16 8x8-bit products."""
    return fixedpoint.Softmax(QFormat(bits, fraction), length, fixedpoint.Exponential(fraction), **others)


def special_rows(parameters):
    """Rows at the limits of the score's format and of the row's length."""
    lowest, highest, length = parameters.score.minimum_integer, parameters.score.maximum_integer, parameters.length
    one_hot = np.full(length, lowest)
    one_hot[length // 2] = highest
    return [
        np.array([lowest]),  # a row of one: its maximum is itself
        np.array([highest]),
        np.full(length, lowest),  # all equal, the denominator's largest value
        np.full(length, highest),
        np.zeros(length, dtype=int),
        one_hot,
        np.where(np.arange(length) == 0, highest, lowest),  # the maximum comes first
        np.where(np.arange(length) == length - 1, highest, lowest),  # the maximum comes last
        np.arange(length) % 2 - 1,
        np.array([lowest]),  # low after high: the old maximum must be forgotten
    ]


def random_rows(parameters, generator, count, shortest=1, longest=None):
    """Rows of all lengths; scores spread over a few table steps, over a few octaves, or over
    everything.
    """
    limit = parameters.score.maximum_integer
    rows = []
    for _ in range(count):
        spread = min(limit, int(generator.choice([1, 4, 64])) << max(parameters.score.fraction, 0)) + 1
        size = generator.integers(shortest, (longest or parameters.length) + 1)
        rows.append(generator.integers(-spread, spread, size))
    return rows


def numerators_bench(name, parameters, rows, core=None, given=None, **settings):
    core = core or SoftmaxNumerators(parameters)
    given = rows if given is None else given
    expected = [parameters.numerators(row) for row in given]
    outputs = {
        "o": pack_rows(core.o, "numerator", expected),
        "o_denominator": [int(row.sum()) for row in expected],
    }
    return bench(name, core, pack_rows(core.i, "score", rows), outputs, **settings)


def softmax_bench(name, parameters, rows, core=None, given=None, **settings):
    core = core or Softmax(parameters)
    expected = [parameters.compute(row) for row in (rows if given is None else given)]
    outputs = {"o": pack_rows(core.o, "probability", expected)}
    return bench(name, core, pack_rows(core.i, "score", rows), outputs, **settings)


both = pytest.mark.parametrize("make", [numerators_bench, softmax_bench])
SHAPES = [
    specification(),
    specification(length=5, bits=6, fraction=2),
    specification(length=1, bits=8, fraction=4),
    specification(length=2, bits=8, fraction=9),
    specification(length=16, bits=32, fraction=12),
    specification(length=7, bits=9, fraction=-2),
    specification(
        length=100, bits=12, fraction=5, reciprocal=fixedpoint.Reciprocal(6, 12), probability=QFormat(10, 10, False)
    ),
    # a table in block RAM
    fixedpoint.Softmax(QFormat(16, 11), 24, fixedpoint.Exponential(11, 10, 16)),
]


@both
@pytest.mark.parametrize("parameters", SHAPES, ids=str)
def test_rails_ties_one_hot_and_random_rows_back_to_back(tmp_path, make, parameters):
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(1), 25)
    run(make("rows", parameters, rows), tmp_path)


@both
@pytest.mark.parametrize("parameters", SHAPES[:3], ids=str)
def test_stalls_lose_and_repeat_nothing(tmp_path, make, parameters):
    rows = special_rows(parameters) + random_rows(parameters, np.random.default_rng(2), 25)
    run_with_stalls(make("stalls", parameters, rows), tmp_path)


@both
def test_as_many_rows_as_the_queues_hold(tmp_path, make):
    """Rows of one score: more maxima wait than there are places, though the queue of scores has
    room for a long row.
    """
    parameters = specification()
    rows = random_rows(parameters, np.random.default_rng(3), 100, longest=1)
    run_with_stalls(make("short", parameters, rows), tmp_path)


@both
def test_every_short_row_of_a_narrow_format(tmp_path, make):
    """All rows of one and two 4-bit scores, and three of 3 bits: every order of maxima and ties."""
    narrow = np.arange(-8, 8)
    rows = [np.array(row) for row in [*np.ndindex(16), *np.ndindex(16, 16), *np.ndindex(8, 8, 8)]]
    rows = [narrow[row] for row in rows]
    run(make("narrow", specification(length=3, bits=4, fraction=1), rows), tmp_path)


@needs_compiler
def test_every_row_of_two_8_bit_scores(simulation_builds):
    core = Softmax(specification(length=2, bits=8, fraction=4))
    rows = every_row(core.parameters.score, 2)
    run_compiled(
        rows_bench("pairs", core, "score", rows, "probability", expected_cycles=core.cycles(2, len(rows))),
        simulation_builds,
    )


@pytest.mark.parametrize(("length", "rows"), [(1, 1), (1, 40), (2, 40), (3, 30), (64, 1), (8, 20), (64, 4)])
def test_cycles_are_the_stated_ones(tmp_path, length, rows):
    """Rows of one length leave no gap between them, however short."""
    parameters = specification()
    scores = random_rows(parameters, np.random.default_rng(4), rows, length, length)
    core = Softmax(parameters)
    assert core.latency(length) == length + 13 + 6
    assert core.cycles(length, rows) == (rows + 1) * length - 2 + core.latency(length)
    run(softmax_bench("cycles", parameters, scores, core, expected_cycles=core.cycles(length, rows)), tmp_path)
    core = SoftmaxNumerators(parameters)
    assert core.latency == 7
    # The last word is the denominator, a cycle after the last numerator.
    cycles = core.cycles(length, rows)
    assert cycles == rows * length - 1 + core.latency + length
    run(numerators_bench("cycles", parameters, scores, core, expected_cycles=cycles), tmp_path)


class LateDenominator(wiring.Component):
    """A consumer's worst habit: it looks at a denominator only when no numerator has come for 30
    cycles.
    """

    def __init__(self, core):
        self.core = core
        super().__init__(dict(core.signature.members))

    def elaborate(self, platform):
        m = Module()
        m.submodules.core = self.core
        for name in self.signature.members:
            wiring.connect(m, wiring.flipped(getattr(self, name)), getattr(self.core, name))
        quiet = Signal(range(31))
        with m.If(self.core.o.valid):
            m.d.sync += quiet.eq(0)
        with m.Elif(quiet < 30):
            m.d.sync += quiet.eq(quiet + 1)
        shown = Signal()  # once shown, a denominator stays until it is taken
        m.d.sync += shown.eq(self.o_denominator.valid & ~self.o_denominator.ready)
        with m.If((quiet < 30) & ~shown):
            m.d.comb += [self.o_denominator.valid.eq(0), self.core.o_denominator.ready.eq(0)]
        return m


def test_a_late_denominator_neither_blocks_its_own_row_nor_is_overwritten(tmp_path):
    parameters = specification(length=6)
    rows = random_rows(parameters, np.random.default_rng(11), 40)
    run(numerators_bench("late", parameters, rows, LateDenominator(SoftmaxNumerators(parameters))), tmp_path)


@both
@pytest.mark.parametrize(
    ("taken", "given"), [(1, 0), (4, 0), (5, 2)], ids=["first score", "while filling", "while giving"]
)
def test_reset_in_the_middle_of_a_row(tmp_path, make, taken, given):
    parameters = specification(length=8)
    core = (SoftmaxNumerators if make is numerators_bench else Softmax)(parameters)
    # High scores first: a maximum or a sum that survived the reset would spoil the rows after it.
    broken, after = np.array([500, 90000, 0, 80000, 100]), random_rows(parameters, np.random.default_rng(6), 4)
    whole = make("reset", parameters, [broken, *after], ResetOnce(core, taken, given), given=[broken, *after])
    inputs = whole.inputs["i"][:taken] + whole.inputs["i"][len(broken) :]
    outputs = {"o": whole.outputs["o"][:given] + whole.outputs["o"][len(broken) :]}
    if make is numerators_bench:
        outputs["o_denominator"] = whole.outputs["o_denominator"][1:]
    run(bench("reset", whole.component, inputs, outputs), tmp_path)


@both
def test_a_row_that_does_not_end_fails_in_simulation(tmp_path, make):
    parameters = specification(length=4)
    whole = make("too long", parameters, [np.array([1, 2, 3, 4]), np.array([5])])
    inputs = [whole.inputs["i"][0]] * 5  # no last among them
    with pytest.raises(BenchFailure, match="softmax input: no last on element 3 of a row of at most 4") as failure:
        run(bench("too long", whole.component, inputs, whole.outputs), tmp_path)
    assert failure.value.kind == "assertion"


def test_impossible_parameters_are_refused_by_name():
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.Softmax, not str"):
        SoftmaxNumerators("softmax")
    with pytest.raises(TypeError, match=r"must be a fixedpoint\.Softmax, not NoneType"):
        Softmax(None)
    with pytest.raises(CircuitError, match=r"format UQ0\.24 is too fine: .* at most 23 bits"):
        Softmax(specification(probability=QFormat(24, 24, False)))
    wide = specification(length=4, reciprocal=fixedpoint.Reciprocal(10, 18))
    with pytest.raises(CircuitError, match=r"softmax needs a reciprocal of at most 17 mantissa bits.* not 18"):
        Softmax(wide)
