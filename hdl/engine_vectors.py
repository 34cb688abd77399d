"""What the dot-product engine is fed with and what it must then give."""

import numpy as np

from .engine import Engine, Operation
from .vectors import Columns, Vectors


def random_values(bits: int, generator: np.random.Generator, count: int) -> np.ndarray:
    """Return signed integers: a quarter of the time all of them at one rail, else random ones."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    kind = generator.integers(8)
    return np.full(count, (low, high)[kind]) if kind < 2 else generator.integers(low, high + 1, count)


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


def dot_sums(core: Engine, pairs: bool, tap: int, activations: np.ndarray, words: np.ndarray) -> list[np.ndarray]:
    """Return the lower and upper sums of each group (groups,) of activations and words (terms, lanes); zeros beyond the tap's groups."""
    bits = core.element_bits // 2
    halves = (
        [sign_extended(words, bits), sign_extended(words >> bits, bits)] if pairs else [words, np.zeros_like(words)]
    )
    columns = core.columns[tap]
    sums = [(activations * half).sum(axis=0).reshape(-1, columns).sum(axis=1) for half in halves]
    return [np.pad(one, (0, core.groups - len(one))) for one in sums]


def command_columns(core: Engine, commands: list[tuple]) -> dict[str, Columns]:
    """Return commands (operation, tap, first, last, address, activations) as the columns of `Engine.i`."""
    names = ("operation", "tap", "first", "last", "address")
    columns: dict[str, Columns] = {
        name: [int(one[place]) for one in commands] for place, name in enumerate(names[1:], 1)
    }
    columns["operation"] = [one[0].value for one in commands]
    columns["activations"] = np.array([one[5] for one in commands]).T
    return columns


def engine_vectors(core: Engine, generator: np.random.Generator, count: int) -> Vectors:
    """Return commands that write words, then sum them up in every mode, and the `count` sums, at least one in each mode."""
    stored = stored_elements(core)
    commands: list[tuple] = []
    dots: list[list[np.ndarray]] = []
    lane_sums: list[np.ndarray] = []
    if Operation.WRITE in core.operations:
        for address in generator.permutation(core.depth)[:count]:
            stored[address] = random_values(core.element_bits, generator, core.lanes)
            commands.append((Operation.WRITE, 0, 0, 0, address, stored[address]))
    modes = [mode for mode in Operation if mode in core.operations - {Operation.WRITE}]
    while len(dots) + len(lane_sums) < max(count, len(modes)):
        mode = modes[(len(dots) + len(lane_sums)) % len(modes)]
        tap, terms = int(generator.integers(len(core.columns))), int(generator.integers(1, core.terms + 1))
        addresses = generator.integers(0, core.depth, terms)
        rows = np.array([random_values(core.activation_bits, generator, core.lanes) for _ in range(terms)])
        for term in range(terms):
            commands.append((mode, tap, term == 0, term == terms - 1, addresses[term], rows[term]))
        if mode is Operation.ACCUMULATE:
            lane_sums.append((rows * stored[addresses]).sum(axis=0))
        else:
            dots.append(dot_sums(core, mode is Operation.PAIRS, tap, rows, stored[addresses]))
    outputs: dict[str, Columns] = {}
    if dots:
        halves = ("lower", "upper")[: 1 + core.pairs]
        outputs["o"] = {half: np.array([dot[place] for dot in dots]).T for place, half in enumerate(halves)}
    if lane_sums:
        outputs["o_lanes"] = np.array(lane_sums).T
    return Vectors({"i": command_columns(core, commands)}, outputs)
