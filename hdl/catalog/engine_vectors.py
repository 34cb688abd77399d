"""What the dot-product engine is fed with and what it must then give."""

import numpy as np

from fixedpoint import QFormat
from fixedpoint.operators.dot_product_engine import Commands, Operation, Results

from ..cores.engine import Engine
from .vectors import Columns, Vectors, random_rows


def random_words(bits: int, generator: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Return words of signed integers (count, length), of the kinds that `random_rows` gives."""
    return np.array(random_rows(QFormat(bits, 0), length, length, generator, count)).reshape(count, length)


def command_columns(commands: Commands) -> dict[str, Columns]:
    """Return commands as the columns of `Engine.i`."""
    columns: dict[str, Columns] = dict(vars(commands))
    return columns | {"activations": commands.activations.T}


def result_columns(core: Engine, results: Results) -> dict[str, Columns]:
    """Return results as the columns of the engine's outputs."""
    lower, upper = {"lower": results.lower.T}, {"upper": results.upper.T}
    outputs: dict[str, Columns] = {"o": lower | upper if core.pairs else lower, "o_lanes": results.lanes.T}
    return {name: columns for name, columns in outputs.items() if name in core.signature.members}


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
    memory = core.parameters.unpack(core.init, core.depth)
    written = np.zeros(0, dtype=np.int64)
    if Operation.WRITE in core.operations:
        written = generator.permutation(core.depth)[:count]
    elements = random_words(core.element_bits, generator, len(written), core.lanes)
    modes = [mode for mode in Operation if mode in core.operations - {Operation.WRITE}]
    sums = max(count, len(modes))
    mode = np.resize(modes, sums)  # in turns
    tap, terms = generator.integers(len(core.columns), size=sums), generator.integers(1, core.terms + 1, sums)
    terms[: len(modes)], terms[len(modes) : 2 * len(modes)] = core.terms, 1
    owner = np.repeat(np.arange(sums), terms)
    addresses = generator.integers(0, core.depth, len(owner))
    rows = random_words(core.activation_bits, generator, len(owner), core.lanes)
    term = np.arange(len(owner)) - (np.cumsum(terms) - terms)[owner]
    writes = np.zeros_like(written)
    commands = Commands(
        operation=np.concatenate([writes + Operation.WRITE, mode[owner]]),
        tap=np.concatenate([writes, tap[owner]]),
        first=np.concatenate([writes, term == 0]),
        last=np.concatenate([writes, term == terms[owner] - 1]),
        address=np.concatenate([written, addresses]),
        activations=np.concatenate([elements, rows]),
    )
    outputs = result_columns(core, core.parameters.compute(memory, commands))
    cycles = sum_cycles(core, len(written), mode == Operation.ACCUMULATE, terms)
    return Vectors({"i": command_columns(commands)}, outputs, cycles)
