"""What the dot-product engine is fed with and what it must then give."""

import numpy as np

from fixedpoint import QFormat

from ..cores.engine import Engine, Operation
from .vectors import Columns, Vectors, random_rows


def random_words(bits: int, generator: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Return words of signed integers (count, length), of the kinds that `random_rows` gives."""
    return np.array(random_rows(QFormat(bits, 0), length, length, generator, count)).reshape(count, length)


def stored_elements(core: Engine) -> np.ndarray:
    """Return the memory's first content, signed, (depth, lanes)."""
    bits = core.element_bits
    words = core.init + [0] * (core.depth - len(core.init))
    fields = [[word >> (lane * bits) & ((1 << bits) - 1) for lane in range(core.lanes)] for word in words]
    return sign_extended(np.array(fields), bits)


def sign_extended(fields: np.ndarray, bits: int) -> np.ndarray:
    """Return the low `bits` bits of integers as signed numbers."""
    half = 1 << (bits - 1)
    return ((fields & ((1 << bits) - 1)) ^ half) - half


def pair_of(core: Engine, words: np.ndarray) -> list[np.ndarray]:
    """Return the lower and the upper half of each element of words, signed."""
    bits = core.element_bits // 2
    return [sign_extended(words, bits), sign_extended(words >> bits, bits)]


def dot_sums(core: Engine, pairs: bool, tap: int, activations: np.ndarray, words: np.ndarray) -> list[np.ndarray]:
    """Return the lower and upper sums of each group (groups,) of activations and words (terms,
    lanes); zeros beyond the tap's groups.
    """
    halves = pair_of(core, words) if pairs else [words, np.zeros_like(words)]
    columns = core.columns[tap]
    sums = [(activations * half).sum(axis=0).reshape(-1, columns).sum(axis=1) for half in halves]
    return [np.pad(one, (0, core.groups - len(one))) for one in sums]


def command_columns(core: Engine, commands: list[tuple]) -> dict[str, Columns]:
    """Return commands (operation, tap, first, last, address, activations) as the columns of
    `Engine.i`.
    """
    names = ("operation", "tap", "first", "last", "address")
    columns: dict[str, Columns] = {
        name: [int(one[place]) for one in commands] for place, name in enumerate(names[1:], 1)
    }
    columns["operation"] = [one[0].value for one in commands]
    columns["activations"] = np.array([one[5] for one in commands]).T
    return columns


def sum_cycles(core: Engine, writes: int, by_lane: np.ndarray, terms: np.ndarray) -> int:
    """Return the clock edges from the first command taken to the last result given, without stalls.

    Args:
        core: The engine.
        writes: Commands before the sums.
        by_lane: Whether each sum is one of lanes: its first command waits until the lanes'
            registers have given the one before.
        terms: The commands of each sum.
    """
    edge, free, given = writes, 0, 0
    for accumulates, count in zip(by_lane.tolist(), terms.tolist(), strict=True):
        last = (max(edge, free) if accumulates else edge) + count - 1
        result = last + (core.lanes_latency if accumulates else core.latency)
        edge, given = last + 1, max(given, result)
        if accumulates:
            free = result + 1
    return given


def engine_vectors(core: Engine, generator: np.random.Generator, count: int) -> Vectors:
    """Return commands that write words, then sum them up in every mode, and the `count` sums, at
    least one in each mode.

    In each mode the first sum is as long as it can be, the second one a single term.
    """
    stored = stored_elements(core)
    writes: list[tuple] = []
    if Operation.WRITE in core.operations:
        addresses = generator.permutation(core.depth)[:count]
        stored[addresses] = random_words(core.element_bits, generator, len(addresses), core.lanes)
        for address in addresses:
            writes.append((Operation.WRITE, 0, 0, 0, address, stored[address]))
    modes = [mode for mode in Operation if mode in core.operations - {Operation.WRITE}]
    sums = max(count, len(modes))
    mode = np.resize([mode.value for mode in modes], sums)  # in turns
    tap, terms = generator.integers(len(core.columns), size=sums), generator.integers(1, core.terms + 1, sums)
    terms[: len(modes)], terms[len(modes) : 2 * len(modes)] = core.terms, 1
    # each sum's first term; from here on, (terms, lanes) in one array
    first = np.cumsum(terms) - terms
    owner = np.repeat(np.arange(sums), terms)
    addresses = generator.integers(0, core.depth, len(owner))
    rows = random_words(core.activation_bits, generator, len(owner), core.lanes)
    products = rows * stored[addresses]
    outputs: dict[str, Columns] = {}
    dots = mode != Operation.ACCUMULATE.value
    if dots.any():
        paired = (mode == Operation.PAIRS.value)[owner, None]
        lower, upper = (rows * half for half in pair_of(core, stored[addresses]))
        by_lane = [np.where(paired, lower, products), np.where(paired, upper, 0)]
        groups = np.zeros((2, sums, core.groups), dtype=np.int64)
        for place, one in enumerate(by_lane):
            total = np.add.reduceat(one, first)
            for number, columns in enumerate(core.columns):
                chosen = tap == number
                grouped = total[chosen].reshape(-1, core.lanes // columns, columns).sum(axis=-1)
                groups[place, chosen, : grouped.shape[1]] = grouped
        halves = ("lower", "upper")[: 1 + core.pairs]
        outputs["o"] = {half: groups[place, dots].T for place, half in enumerate(halves)}
    if not dots.all():
        outputs["o_lanes"] = np.add.reduceat(products, first)[~dots].T
    term = np.arange(len(owner)) - first[owner]
    sum_columns = {
        "operation": mode[owner],
        "tap": tap[owner],
        "first": term == 0,
        "last": term == terms[owner] - 1,
        "address": addresses,
        "activations": rows.T,
    }
    inputs = sum_columns
    if writes:
        write_columns = command_columns(core, writes)
        inputs = {name: np.concatenate([write_columns[name], column], axis=-1) for name, column in sum_columns.items()}
    return Vectors({"i": inputs}, outputs, sum_cycles(core, len(writes), ~dots, terms))
