"""What a core is fed with and what it must then give: random vectors, their limits first, and the
specification's answers.

Values come by columns, as numbers: one array for each field of a stream's payload. `sim` and the
Verilog export turn them into words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from amaranth.lib import wiring

import fixedpoint
from fixedpoint import QFormat, argmax, requantize

from ..cores.row_norm import RowNorm

SHORT_ROWS = 64  # in a run: more than a queue of rows holds
BYTES = (0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80)  # these come first
ELEMENT = QFormat(8, 0)  # of the stream parts and of the key-value cache

# The values of a stream: integers, or for a struct payload a mapping from field to its values.
Columns = Sequence[int] | Sequence[np.ndarray] | np.ndarray | Mapping[str, "Columns"]


@dataclass(frozen=True, eq=False)
class Vectors:
    """Stimuli and golden results of a core.

    Attributes:
        inputs: For each stream input, its values.
        outputs: For each stream output, all values that must come.
        cycles: Clock edges from the first input taken to the last output given, without stalls;
            None where no formula says.
    """

    inputs: Mapping[str, Columns]
    outputs: Mapping[str, Columns]
    cycles: int | None = None


# From a core, a generator and a number of rows, tokens or single values (as fits the core) to its
# vectors.
Maker = Callable[[wiring.Component, np.random.Generator, int], Vectors]


def row_columns(field: str, rows: Sequence[np.ndarray], lanes: int = 1) -> dict[str, Columns]:
    """Return rows as columns of a stream of {field, last}; a word holds `lanes` elements."""
    last = np.concatenate([np.arange(len(row) // lanes) == len(row) // lanes - 1 for row in rows])
    elements = np.concatenate(rows)
    words = elements if lanes == 1 else list(elements.reshape(-1, lanes).T)
    return {field: words, "last": last.astype(np.int64)}


def random_rows(
    number_format: QFormat, shortest: int, longest: int, generator: np.random.Generator, count: int
) -> list[np.ndarray]:
    """Return `count` rows: both rails, all equal, one-hot, rising; then random ones of all lengths
    and spreads.

    Among these, one in eight is all equal, one in eight has nothing but rails, and one in eight is
    one-hot. Where lengths differ, a quarter of them are the shortest, in runs of `SHORT_ROWS`: a
    queue of rows is full before one of elements is only where many short ones come in a row.
    """
    low, high = number_format.minimum_integer, number_format.maximum_integer
    place = np.arange(longest)
    rows = [
        np.full(longest, high),
        np.full(longest, low),
        np.zeros(shortest, dtype=np.int64),
        np.where(place == longest // 2, high, low),
        np.where(place % 2, low, high),
        np.linspace(low, high, longest).astype(np.int64),
    ]
    others = max(0, count - len(rows))
    narrowed = generator.integers(0, number_format.bits, (others, 1))
    values = generator.integers(low, high + 1, (others, longest)) >> narrowed
    lengths = generator.integers(shortest, longest + 1, others)
    short = generator.integers(4, size=-(-others // SHORT_ROWS)) == 0
    lengths[np.repeat(short, SHORT_ROWS)[:others]] = shortest
    kind = generator.integers(8, size=(others, 1))
    values = np.where(kind == 0, values[:, :1], values)
    values = np.where(kind == 1, np.where(values & 1, high, low), values)
    values = np.where(kind == 2, np.where(place == generator.integers(longest, size=(others, 1)), high, low), values)
    rows += [row[:length] for row, length in zip(values, lengths, strict=True)]
    return rows[:count]


def each_row(compute: Callable[..., np.ndarray], rows: Sequence[np.ndarray], *others: np.ndarray) -> list[np.ndarray]:
    """Return a function of each row and its arguments, by one call for all rows of a length."""
    lengths = np.array([len(row) for row in rows])
    results = [np.empty(0)] * len(rows)
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length).tolist()
        together = compute(np.array([rows[place] for place in places]), *(other[places] for other in others))
        for place, result in zip(places, together, strict=True):
            results[place] = result
    return results


def row_vectors(field_in: str, field_out: str, shortest: Callable[[wiring.Component], int] | None = None) -> Maker:
    """Return the maker for a core that turns rows into rows by `parameters.compute`.

    Args:
        field_in: The input payload's field beside `last`.
        field_out: The output payload's.
        shortest: The shortest row; None where the core takes rows of one length alone.
    """

    def make(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
        parameters = core.parameters
        longest = next(
            getattr(parameters, name) for name in ("columns", "channels", "length") if hasattr(parameters, name)
        )
        number_format = parameters.score if hasattr(parameters, "score") else parameters.input
        rows = random_rows(number_format, shortest(core) if shortest else longest, longest, generator, count)
        cycles = cycles_of_rows(core, rows) if shortest else core.cycles(len(rows))
        return rows_through(core, rows, (field_in, field_out), cycles)

    return make


def rows_through(
    core: wiring.Component, rows: Sequence[np.ndarray], fields: tuple[str, str], cycles: int | None
) -> Vectors:
    """Return rows and what `parameters.compute` makes of them; `fields` of both payloads."""
    results = each_row(core.parameters.compute, rows)
    lanes = core.lanes if isinstance(core, RowNorm) else 1
    inputs, outputs = (row_columns(field, values, lanes) for field, values in zip(fields, (rows, results), strict=True))
    return Vectors({"i": inputs}, {"o": outputs}, cycles)


def longest_row(core: wiring.Component) -> int:
    """Return a softmax's longest row, for `row_vectors` to have no shorter one."""
    return core.parameters.length


def cycles_of_rows(core: wiring.Component, rows: Sequence[np.ndarray]) -> int | None:
    """Return a core's `cycles` for rows of one length; None for mixed ones, of which short ones may
    wait behind a long one.
    """
    lengths = {len(row) for row in rows}
    return core.cycles(lengths.pop(), len(rows)) if len(lengths) == 1 else None


def numerators_vectors(
    core: wiring.Component, generator: np.random.Generator, count: int, one_length: bool = False
) -> Vectors:
    """Return rows of scores, of the longest length if asked for, their numerators and sums."""
    parameters = core.parameters
    rows = random_rows(parameters.score, parameters.length if one_length else 1, parameters.length, generator, count)
    results = each_row(parameters.numerators, rows)
    outputs: dict[str, Columns] = {"o": row_columns("numerator", results)}
    outputs["o_denominator"] = [int(row.sum()) for row in results]
    return Vectors({"i": row_columns("score", rows)}, outputs, cycles_of_rows(core, rows))


def random_magnitudes(width: int, smallest: int, generator: np.random.Generator, count: int) -> np.ndarray:
    """Return `count` unsigned integers of up to `width` bits: both limits, the powers of two, then
    random ones of all lengths.
    """
    limits = [smallest, (1 << width) - 1, *(1 << bit for bit in range(width))]
    lengths = generator.integers(1, width + 1, max(0, count - len(limits)))
    random = np.maximum(smallest, generator.integers(0, np.left_shift(np.int64(1), lengths)))
    return np.concatenate([np.array(limits, dtype=np.int64), random])[:count]


def exponential_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return distances and their exponentials."""
    distances = random_magnitudes(core.width, 0, generator, count)
    return Vectors({"i": distances}, {"o": core.parameters.compute(distances)}, count - 1 + core.latency)


def reciprocal_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return positive arguments and their reciprocals or reciprocal roots: mantissa, exponent."""
    arguments = random_magnitudes(core.width, 1, generator, count)
    result = core.parameters.compute(arguments)
    outputs = {"o": {"mantissa": result.mantissa, "exponent": result.exponent}}
    return Vectors({"i": arguments}, outputs, count - 1 + core.latency)


def attention_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return normalized tokens of sequences, some longer than the context, and the results."""
    parameters = core.parameters
    rows = random_rows(parameters.query.input, parameters.embed_dim, parameters.embed_dim, generator, count)
    return attention_tokens(core, np.array(rows), sequence_starts(parameters.context_length, generator, count))


def attention_tokens(core: wiring.Component, tokens: np.ndarray, starts: np.ndarray) -> Vectors:
    """Return attention's vectors for tokens (n, C) and booleans (n,), which start a sequence."""
    restart = np.zeros_like(tokens)
    restart[:, 0] = starts
    results = core.parameters.compute_stream(tokens, starts)
    return Vectors(
        {"i": {"data": tokens.reshape(-1), "restart": restart.reshape(-1)}},
        {"o": row_columns("data", list(results))},
        core.cycles(places_of(starts, core.parameters.context_length)),
    )


def byte_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return bytes that leave as they came."""
    values = np.concatenate([BYTES, generator.integers(0, 256, count)])[:count]
    cycles = core.cycles(count) if hasattr(core, "cycles") else count - 1 + core.latency
    return Vectors({"i": values}, {"o": values}, cycles)


def requantize_limits(core: wiring.Component) -> np.ndarray:
    """Return values with shifts (2, n): rails, near zero, ties, and where saturation begins."""
    low, high = -(1 << (core.bits - 1)), (1 << (core.bits - 1)) - 1
    limits = []
    for shift in sorted({core.lowest, core.highest}):
        values = [low, high, -1, 0, 1]
        if shift > 0:
            half = 1 << (shift - 1)
            least, most = (value << shift for value in (core.target.minimum_integer, core.target.maximum_integer))
            values += [half, -half, 3 * half, -3 * half, most + half - 1, most + half, least - half, least - half - 1]
        limits += [(value, shift) for value in values if low <= value <= high]
    return np.array(limits).T


def requantize_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return accumulators with shifts, first the limits, then all magnitudes, and the casts."""
    shifts = generator.integers(core.lowest, core.highest + 1, (core.lanes, count))
    narrowed = generator.integers(0, core.bits, (core.lanes, count))
    values = generator.integers(-(1 << (core.bits - 1)), 1 << (core.bits - 1), (core.lanes, count)) >> narrowed
    for columns, limits in zip((values, shifts), requantize_limits(core), strict=True):
        elements = columns.T.reshape(-1)  # a copy: word by word
        elements[: len(limits)] = limits[: len(elements)]
        columns[:] = elements.reshape(columns.T.shape).T
    results = requantize(values, shifts, core.target)
    return Vectors({"i": {"value": values, "shift": shifts}}, {"o": results}, count - 1 + core.latency)


def element_vectors(*fields: str) -> Maker:
    """Return the maker for a core whose operator works element by element, `lanes` at a time: one
    row with every combination of rails and, where it is long enough, every value of each input.

    Args:
        fields: The input payload's fields, for the operator's inputs in their order, of up to 16
            bits. The output payload's is `data`; both have `last`.
    """

    def make(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
        size = count * core.lanes
        ends = [(number.minimum_integer, number.maximum_integer) for number in core.parameters.inputs]
        elements = [
            np.concatenate(
                [rails, generator.permutation(np.arange(low, high + 1)), generator.integers(low, high + 1, size)]
            )
            for (low, high), rails in zip(ends, zip(*product(*ends), strict=True), strict=True)
        ]
        order = generator.permutation(size)
        rows = [values[order] for values in elements]
        inputs: dict[str, Columns] = {}
        for field, row in zip(fields, rows, strict=True):
            inputs |= row_columns(field, [row], core.lanes)
        results = row_columns("data", [core.parameters.compute(*rows)], core.lanes)
        return Vectors({"i": inputs}, {"o": results}, count - 1 + core.latency)

    return make


def argmax_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return rows of logits and the lowest index of each row's maximum."""
    rows = random_rows(core.logits, 1, core.length, generator, count)
    tokens = each_row(argmax, rows)
    cycles = sum(map(len, rows)) - 1 + core.latency
    return Vectors({"i": row_columns("data", rows)}, {"o": {"token": tokens}}, cycles)


def sampler_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return rows of logits, random numbers with both extremes, and the tokens they choose."""
    rows = random_rows(core.parameters.logits, 1, core.length, generator, count)
    extremes = np.array([0, (1 << 32) - 1], dtype=np.uint32)
    numbers = np.concatenate([extremes, generator.integers(0, 1 << 32, count, dtype=np.uint32)])[:count]
    tokens = each_row(core.parameters.choose, rows, numbers)
    inputs: dict[str, Columns] = {"i": row_columns("data", rows), "i_random": numbers}
    return Vectors(inputs, {"o": {"token": tokens}}, sum(map(len, rows)) - 1 + core.latency)


def random_number_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return requests, some of which start a new sequence, the first ones at states of a single one
    and of ones only, and the numbers.
    """
    limits = [1, 1 << 31, (1 << 32) - 1][:count]
    restart = generator.random(count) < 0.1
    restart[: len(limits)] = True
    states = generator.integers(1, 1 << 32, count)
    states[: len(limits)] = limits
    numbers, sequence = [], fixedpoint.XorShift32(states[:1])
    for starts, state in zip(restart, states, strict=True):
        if starts:
            sequence = fixedpoint.XorShift32([state])
        numbers.append(int(sequence.next()[0]))
    requests = {"restart": restart.astype(np.int64), "state": states}
    return Vectors({"i": requests}, {"o": numbers}, count - 1 + core.latency)


def cache_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return keys and values, in sequences of all lengths, and the rows that each token finds."""
    pairs = np.array(random_rows(ELEMENT, 2 * core.channels, 2 * core.channels, generator, count))
    pairs = pairs.reshape(count, 2, core.channels)
    return cache_traffic(core, pairs, sequence_starts(core.context_length, generator, count))


def cache_traffic(core: wiring.Component, pairs: np.ndarray, starts: np.ndarray) -> Vectors:
    """Return a cache's vectors for keys and values (tokens, 2, channels) and sequence starts."""
    count = len(pairs)
    places = places_of(starts, core.context_length)
    restart = np.zeros((count, 2 * core.words), dtype=np.int64)
    restart[:, 0] = starts
    found = [
        (pairs[token - place + row, kind], kind, row == place)
        for token, place in enumerate(places)
        for kind in (0, 1)
        for row in range(place + 1)
    ]
    inputs = row_columns("data", list(pairs.reshape(count, -1)), core.lanes)
    outputs = row_columns("data", [vector for vector, _, _ in found], core.lanes)
    outputs["value"] = np.repeat([kind for _, kind, _ in found], core.words)
    outputs["final"] = np.repeat([int(final) for _, _, final in found], core.words)
    return Vectors({"i": {**inputs, "restart": restart.reshape(-1)}}, {"o": outputs}, core.cycles(places))


def sequence_starts(context_length: int, generator: np.random.Generator, count: int) -> np.ndarray:
    """Return which tokens say that they start a sequence.

    The first one does not say so, since a core that was reset begins one anyway; it stands alone, a
    sequence longer than the context follows, then random ones.
    """
    starts = generator.random(count) < 0.5 / context_length
    starts[: context_length + 2] = False
    starts[1:2] = True
    return starts


def places_of(starts: np.ndarray, context_length: int) -> list[int]:
    """Return each token's place in its sequence; a full context starts the next one."""
    places: list[int] = []
    for start in starts:
        fresh = not places or start or places[-1] == context_length - 1
        places.append(0 if fresh else places[-1] + 1)
    return places


def width_vectors(core: wiring.Component, generator: np.random.Generator, count: int) -> Vectors:
    """Return rows of up to four wide words, in words of one width and of the other."""
    wide = max(core.i_lanes, core.o_lanes)
    rows = [row[: len(row) // wide * wide] for row in random_rows(ELEMENT, wide, 4 * wide, generator, count)]
    inputs, outputs = row_columns("data", rows, core.i_lanes), row_columns("data", rows, core.o_lanes)
    words = sum(map(len, rows)) // min(core.i_lanes, core.o_lanes)
    return Vectors({"i": inputs}, {"o": outputs}, words - 1 + core.latency)
