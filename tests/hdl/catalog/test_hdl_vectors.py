# amaranth: UnusedElaboratable=no
from itertools import groupby, product

import numpy as np
import pytest

from fixedpoint import QFormat
from hdl.catalog.registry import CORES
from hdl.catalog.vectors import SHORT_ROWS, each_row, places_of, random_magnitudes, random_rows
from hdl.cores.engine import Operation

FORMAT = QFormat(8, 4)
LONGEST = 6


def rows_of(seed, count=2000, shortest=2):
    return random_rows(FORMAT, shortest, LONGEST, np.random.default_rng(seed), count)


def test_rows_are_of_all_kinds_and_lengths():
    rows = rows_of(1)
    assert len(rows) == 2000
    assert {len(row) for row in rows} == set(range(2, LONGEST + 1))
    assert all(FORMAT.holds(row) for row in rows)
    later = rows[6:]  # the limits come first; every kind comes back among the random ones
    values = np.concatenate(later)
    assert (values.min(), values.max()) == (-128, 127)
    assert sum(len(set(row.tolist())) == 1 for row in later) > 200
    assert sum(set(row.tolist()) == {-128, 127} for row in later) > 200
    assert sum((row == 127).sum() == 1 and (row == -128).sum() == len(row) - 1 for row in later) > 100
    assert sum(len(set(row.tolist())) == len(row) for row in later) > 500


def test_short_rows_come_in_runs():
    lengths = [len(row) for row in rows_of(1, count=20_000)[6:]]
    runs = [len(list(group)) for short, group in groupby(lengths, lambda length: length == 2) if short]
    whole = [run for run in runs if run >= SHORT_ROWS]
    assert 0.2 * len(lengths) < sum(whole) < 0.35 * len(lengths)
    assert len({len(row) for row in rows_of(1, shortest=LONGEST)}) == 1


def test_rows_follow_their_seed_and_few_are_the_limits():
    assert all(np.array_equal(*pair) for pair in zip(rows_of(3), rows_of(3), strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(rows_of(3), rows_of(4), strict=True))
    assert [row.tolist() for row in rows_of(1, count=2)] == [[127] * LONGEST, [-128] * LONGEST]


def test_rows_are_answered_together_as_alone():
    softmax = CORES["softmax"].example().parameters
    rows = random_rows(softmax.score, 1, softmax.length, np.random.default_rng(2), 300)
    for result, row in zip(each_row(softmax.compute, rows), rows, strict=True):
        np.testing.assert_array_equal(result, softmax.compute(row))
    numbers = np.arange(300)
    sums = each_row(lambda matrix, number: matrix.sum(axis=-1) + number, rows, numbers)
    assert sums == [row.sum() + number for row, number in zip(rows, numbers, strict=True)]


def test_magnitudes_have_all_lengths():
    values = random_magnitudes(40, 1, np.random.default_rng(0), 5000)
    assert (len(values), values.min(), values.max()) == (5000, 1, (1 << 40) - 1)
    assert {int(value).bit_length() for value in values} == set(range(1, 41))
    assert np.bincount([int(value).bit_length() for value in values], minlength=41)[20] > 50


COUNT = 12  # as many as the benches of all cores have
BYTE = QFormat(8, 0)
# Core → the format of its elements, its shortest and its longest row, from the component.
ROWS = {
    "matrix-vector": lambda core: (core.parameters.input, core.parameters.columns, core.parameters.columns),
    "softmax": lambda core: (core.parameters.score, 1, core.parameters.length),
    "softmax-numerators": lambda core: (core.parameters.score, 1, core.parameters.length),
    **dict.fromkeys(
        ("layer-norm", "layer-norm-lanes", "rms-norm"),
        lambda core: (core.parameters.input, core.parameters.channels, core.parameters.channels),
    ),
    "argmax": lambda core: (core.logits, 1, core.length),
    "sampler": lambda core: (core.parameters.logits, 1, core.length),
    "key-value-cache": lambda core: (BYTE, 2 * core.channels, 2 * core.channels),
    "width-converter": lambda core: (BYTE, core.o_lanes, 4 * core.o_lanes),
    "attention": lambda core: (core.parameters.query.input, core.parameters.embed_dim, core.parameters.embed_dim),
    "engine": lambda core: (QFormat(core.activation_bits, 0), core.lanes, core.lanes),
}
# The others work element by element; of these the operators.
ELEMENTS = [
    name for name in CORES if name not in ROWS and hasattr(getattr(CORES[name].example(), "parameters", None), "inputs")
]


def vectors_of(name, count=COUNT):
    entry = CORES[name]
    core = entry.example()
    return core, entry.vectors(core, np.random.default_rng(1), count)


def words_of(columns):
    """Words of one or several elements (n, lanes)."""
    columns = np.asarray(columns)
    return columns[:, None] if columns.ndim == 1 else columns.T


def rows_given(name, core, vectors):
    """The rows of a core's input stream, each a tuple, found by `last` where there is one."""
    columns = vectors.inputs["i"]
    if name == "engine":
        return [tuple(row) for row in words_of(columns["activations"]).tolist()]
    words = words_of(columns["score" if "score" in columns else "data"])
    if name == "attention":
        return [tuple(row) for row in words.reshape(-1, core.parameters.embed_dim).tolist()]
    ends = np.flatnonzero(columns["last"]) + 1
    assert ends[-1] == len(words)
    return [tuple(np.concatenate(row).tolist()) for row in np.split(words, ends[:-1])]


@pytest.mark.parametrize("name", ROWS)
def test_rows_at_every_limit_are_among_the_first(name):
    core, vectors = vectors_of(name)
    elements, shortest, longest = ROWS[name](core)
    low, high = elements.minimum_integer, elements.maximum_integer
    rows = rows_given(name, core, vectors)
    assert {(low,) * longest, (high,) * longest} <= set(rows), "rails"
    assert any(len(set(row)) == 1 and row[0] not in (low, high) for row in rows), "all equal"
    assert any(row.count(high) == 1 and row.count(low) == longest - 1 for row in rows), "one-hot"
    assert any(1 < row.count(max(row)) < len(row) for row in rows), "ties of the maximum"
    assert any(list(row) == sorted(set(row)) and len(row) > 2 for row in rows), "rising"
    assert {min(map(len, rows)), max(map(len, rows))} == {shortest, longest}


@pytest.mark.parametrize("name", ["attention", "key-value-cache"])
def test_sequences_are_of_one_token_and_longer_than_the_context(name):
    core, vectors = vectors_of(name)
    length = core.parameters.context_length if name == "attention" else core.context_length
    width = core.parameters.embed_dim if name == "attention" else 2 * core.words
    starts = np.asarray(vectors.inputs["i"]["restart"]).reshape(-1, width)[:, 0]
    assert not starts[0], "a core that was reset begins a sequence without being told"
    gaps = np.diff([0, *np.flatnonzero(starts), len(starts)])
    assert gaps.min() == 1
    assert gaps.max() > length
    assert max(places_of(starts, length)) == length - 1


def test_the_engine_has_sums_of_every_length_in_every_mode_and_words_at_the_rails():
    core, vectors = vectors_of("engine")
    columns = {name: np.asarray(values) for name, values in vectors.inputs["i"].items()}
    for mode in core.operations - {Operation.WRITE}:
        ends = np.flatnonzero(columns["last"][columns["operation"] == mode.value])
        terms = np.diff([-1, *ends])
        assert {terms.min(), terms.max()} == {1, core.terms}
    rows = words_of(columns["activations"])
    written = rows[columns["operation"] == Operation.WRITE.value]
    high = (1 << (core.element_bits - 1)) - 1
    assert {(high,) * core.lanes, (-high - 1,) * core.lanes} <= set(map(tuple, written.tolist()))


def test_requantize_has_ties_and_both_sides_of_saturation():
    core, vectors = vectors_of("requantize")
    values, shifts = (np.ravel(vectors.inputs["i"][name]) for name in ("value", "shift"))
    assert {values.min(), values.max()} == {-(1 << (core.bits - 1)), (1 << (core.bits - 1)) - 1}
    for shift in (core.lowest, core.highest):
        chosen = values[shifts == shift]
        half = 1 << (shift - 1)
        ties = chosen[chosen % (2 * half) == half]
        assert (ties > 0).any() and (ties < 0).any()
        rounded = (chosen + half) >> shift
        low, high = core.target.minimum_integer, core.target.maximum_integer
        assert {low - 1, low, high, high + 1} <= set(rounded.tolist())


@pytest.mark.parametrize("name", ELEMENTS)
def test_elements_at_both_ends_together_are_among_the_first_and_all_in_time(name):
    formats = CORES[name].example().parameters.inputs
    ends = [(number.minimum_integer, number.maximum_integer) for number in formats]

    def elements(count):
        columns = vectors_of(name, count)[1].inputs["i"]
        return np.array([np.ravel(columns[field]) for field in columns if field != "last"])

    assert set(product(*ends)) <= set(map(tuple, elements(COUNT).T.tolist()))
    for (low, high), values in zip(ends, elements(1 << max(number.bits for number in formats)), strict=True):
        assert set(values) == set(range(low, high + 1))


def test_the_activation_is_looked_at():
    assert "activation" in ELEMENTS


def test_elements_at_both_ends_are_among_the_first():
    for name, smallest in (("exponential", 0), ("reciprocal", 1), ("reciprocal-square-root", 1)):
        core, vectors = vectors_of(name, 60)
        powers = {1 << bit for bit in range(core.width)}
        assert {smallest, (1 << core.width) - 1} | powers <= set(vectors.inputs["i"].tolist())
    for name in ("stream-queue", "stream-register", "uart"):
        assert {0x00, 0xFF} <= set(vectors_of(name)[1].inputs["i"].tolist())
    requests = vectors_of("random-numbers")[1].inputs["i"]
    states = set(requests["state"][requests["restart"] == 1].tolist())
    assert {1, 1 << 31, (1 << 32) - 1} <= states


def test_the_sampler_has_both_extremes_of_random_numbers():
    numbers = vectors_of("sampler")[1].inputs["i_random"]
    assert {numbers.min(), numbers.max()} == {0, (1 << 32) - 1}
