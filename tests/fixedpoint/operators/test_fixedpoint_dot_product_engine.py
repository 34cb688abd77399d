import dataclasses

import numpy as np
import pytest

from fixedpoint import QFormat, QuantizationError
from fixedpoint.operators.dot_product_engine import Commands, DotProductEngine, Operation, Results

DOT, PAIRS, ACCUMULATE, WRITE = Operation


def commands_of(rows):
    """Return commands from (operation, tap, first, last, address, activations) each."""
    *fields, activations = zip(*rows, strict=True)
    return Commands(*map(np.array, fields), np.array(activations))


def random_commands(engine, depth, count, generator):
    """Return sums of all kinds and lengths with writes between their commands."""
    rows = []
    low, high = QFormat(engine.activation_bits, 0).minimum_integer, QFormat(engine.activation_bits, 0).maximum_integer

    def add(operation, tap, first, last):
        row = generator.integers(low, high + 1, engine.lanes)
        rows.append((operation, tap, first, last, generator.integers(depth), row))

    for _ in range(count):
        operation, tap = generator.choice([DOT, PAIRS, ACCUMULATE]), generator.integers(len(engine.columns))
        terms = generator.integers(1, engine.terms + 1)
        for term in range(terms):
            if generator.random() < 0.3:
                add(WRITE, 0, 0, 0)
            add(operation, tap, int(term == 0), int(term == terms - 1))
    return commands_of(rows)


def one_by_one(engine, memory, commands):
    """Return what commands give: one after another, lane by lane, in Python's integers."""
    memory, results = memory.tolist(), ([], [], [])
    bits = engine.element_bits

    def signed(value, width):
        value %= 1 << width
        return value - (value >> (width - 1) << width)

    totals = None
    for operation, tap, first, last, address, row in zip(*vars(commands).values(), strict=True):
        word, row = memory[address], row.tolist()
        if operation == WRITE:
            memory[address] = [signed(value, bits) for value in row]
            continue
        totals = [[0] * engine.lanes for _ in range(3)] if first else totals
        for lane, (x, m) in enumerate(zip(row, word, strict=True)):
            whole = operation != PAIRS
            totals[0][lane] += x * (m if whole else signed(m, bits // 2))
            totals[1][lane] += 0 if whole else x * signed(m >> bits // 2, bits // 2)
            totals[2][lane] += x * m
        if last and operation == ACCUMULATE:
            results[2].append(totals[2])
        elif last:
            for result, lanes in zip(results[:2], totals[:2], strict=True):
                columns = engine.columns[tap]
                groups = [sum(lanes[start : start + columns]) for start in range(0, engine.lanes, columns)]
                result.append(groups + [0] * (engine.groups - len(groups)))
    return Results(*results, memory)


@pytest.mark.parametrize(
    "engine",
    [
        DotProductEngine(8, (2, 8), 5),
        DotProductEngine(6, (1, 3, 6), 3, activation_bits=9, element_bits=4),
        DotProductEngine(1, (1,), 1),
    ],
)
def test_sums_and_memory_are_those_of_the_definition(engine):
    generator = np.random.default_rng(1)
    half = 1 << (engine.element_bits - 1)
    memory = generator.integers(-half, half, (5, engine.lanes))
    before = memory.copy()
    commands = random_commands(engine, 5, 60, generator)
    found, wanted = engine.compute(memory, commands), one_by_one(engine, memory, commands)
    for name in ("lower", "upper", "lanes", "memory"):
        assert getattr(found, name).tolist() == getattr(wanted, name), name
    assert (memory == before).all()
    assert len(found.lower)
    assert len(found.lanes)
    assert (found.memory != memory).any()


@pytest.mark.parametrize("columns", [(8,), (2, 8), (1, 4, 8)])
@pytest.mark.parametrize("operation", [DOT, PAIRS, ACCUMULATE])
def test_the_largest_sums_fill_their_widths(operation, columns):
    """The most negative factors give the largest sum: 2**(bits − 2), one bit less than the width
    holds, where lanes and terms are powers of two.
    """
    engine = DotProductEngine(8, columns, 4)
    half = engine.element_bits // 2
    element = -128 if operation != PAIRS else (-(1 << (half - 1)) << half) + (1 << (half - 1))
    rows = [(operation, len(columns) - 1, term == 0, term == 3, 0, np.full(8, -128)) for term in range(4)]
    results = engine.compute(np.full((1, 8), element), commands_of(rows))
    outputs, bits = {
        DOT: (("lower",), engine.group_sum_bits),
        PAIRS: (("lower", "upper"), engine.pair_sum_bits),
        ACCUMULATE: (("lanes",), engine.lane_sum_bits),
    }[operation]
    assert [getattr(results, name)[0, 0] for name in outputs] == [1 << (bits - 2)] * len(outputs)


def test_trees_that_are_no_powers_of_two_take_whole_levels():
    assert DotProductEngine(27, (3, 9, 27), 1).tree_levels == 6
    assert DotProductEngine(27, (27,), 1).tree_levels == 5
    assert DotProductEngine(6, (1, 3, 6), 5).group_sum_bits == 16 + 3 + 3


def test_words_hold_lane_0_in_the_lowest_bits():
    engine = DotProductEngine(2, (2,), 1, element_bits=4)
    assert engine.unpack([0x8F, 0x70], 3).tolist() == [[-1, -8], [0, 7], [0, 0]]
    lower, upper = engine.halves(np.array([[-1, -8], [0, 7]]))
    assert lower.tolist() == [[-1, 0], [0, -1]]
    assert upper.tolist() == [[-1, -2], [0, 1]]


def test_a_written_word_is_what_later_commands_read_in_as_many_bits():
    engine = DotProductEngine(2, (2,), 2, activation_bits=9)
    rows = [
        (ACCUMULATE, 0, 1, 0, 0, [1, 1]),
        (WRITE, 0, 0, 0, 0, [255, -256]),
        (ACCUMULATE, 0, 0, 1, 0, [10, 10]),
    ]
    results = engine.compute(np.array([[3, 4]]), commands_of(rows))
    assert results.memory.tolist() == [[-1, 0]]
    assert results.lanes.tolist() == [[3 - 10, 4]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(DOT, 0, 1, 1, 0, [256, 0])], "an activation does not fit 9 bits"),
        ([(DOT, 0, 0, 1, 0, [0, 0])], "a sum must run from `first` to `last`"),
        ([(DOT, 0, 1, 0, 0, [0, 0])], "a sum must run from `first` to `last`"),
        ([(DOT, 0, 1, 0, 0, [0, 0]), (DOT, 0, 1, 1, 0, [0, 0])], "a sum must run from `first` to `last`"),
        ([(DOT, 0, 1, 1, 0, [0, 0]), (DOT, 0, 0, 1, 0, [0, 0])], "a sum must run from `first` to `last`"),
        ([(DOT, 0, term == 0, term == 2, 0, [0, 0]) for term in range(3)], "a sum of 3 words is longer than 2"),
    ],
)
def test_commands_that_mean_nothing_are_refused(rows, message):
    with pytest.raises(QuantizationError, match=message):
        DotProductEngine(2, (2,), 2, activation_bits=9).compute(np.zeros((1, 2), dtype=int), commands_of(rows))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, "lanes must be a whole number of at least 1, not 0"),
        ({"terms": True}, "terms must be a whole number"),
        ({"element_bits": 1.5}, "element_bits must be a whole number"),
        ({"columns": ()}, "at least one tap"),
        ({"columns": (3,)}, "3 does not divide 8"),
        ({"columns": (4, 2)}, "4 does not divide 2"),
        ({"columns": (4, 4)}, "columns must differ"),
    ],
)
def test_impossible_engines_are_refused(change, message):
    with pytest.raises(QuantizationError, match=message):
        dataclasses.replace(DotProductEngine(8, (2, 8), 2), **change)
