# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.hdl import signed
from core_bench import ResetOnce, bench, run, run_with_stalls

from hdl import CircuitError
from hdl.cores.key_value_cache import KeyValueCache
from sim.bench.bench import BenchFailure
from sim.bench.payload import pack_all


def columns(vectors, lanes):
    """Vectors (n, C) as the column `data` of words."""
    words = vectors.reshape(-1, lanes)
    return words[:, 0] if lanes == 1 else list(words.T)


def golden(keys, values, restarts, context_length):
    """What must come, row by row: (vector, value, final), and each token's position."""
    rows, positions, start = [], [], 0
    for token, restart in enumerate(restarts):
        if restart or token - start == context_length:
            start = token
        positions.append(token - start)
        for kind, vectors in enumerate((keys, values)):
            rows += [(vectors[row], kind, row == token) for row in range(start, token + 1)]
    return rows, positions


def make(core, restarts, component=None, seed=0, tokens=None, **settings):
    generator = np.random.default_rng(seed)
    channels, words = core.channels, core.words
    pairs = generator.integers(-128, 128, (len(restarts), 2, channels)) if tokens is None else tokens
    rows, positions = golden(pairs[:, 0], pairs[:, 1], restarts, core.context_length)
    # Only the first word's flag counts.
    flags = generator.integers(0, 2, (len(restarts), 2 * words))
    flags[:, 0] = restarts
    place = np.arange(2 * words * len(restarts))
    inputs = pack_all(
        core.i.payload.shape(),
        {
            "data": columns(pairs.reshape(-1, channels), core.lanes),
            "restart": flags.reshape(-1),
            "last": (place % (2 * words) == 2 * words - 1).astype(int),
        },
    )
    outputs = pack_all(
        core.o.payload.shape(),
        {
            "data": columns(np.array([vector for vector, _, _ in rows]), core.lanes),
            "value": np.repeat([kind for _, kind, _ in rows], words),
            "final": np.repeat([int(final) for _, _, final in rows], words),
            "last": (np.arange(words * len(rows)) % words == words - 1).astype(int),
        },
    )
    if component is None:
        settings.setdefault("expected_cycles", core.cycles(positions))
    return bench("key-value cache", component or core, inputs, {"o": outputs}, **settings)


SHAPES = [(8, 4, 8), (8, 4, 2), (6, 3, 1), (1, 1, 1), (4, 5, 4), (12, 7, 4)]


@pytest.mark.parametrize(("channels", "context_length", "lanes"), SHAPES)
def test_rows_come_back_in_order(tmp_path, channels, context_length, lanes):
    """Sequences of all lengths, some longer than the context."""
    core = KeyValueCache(signed(8), channels, context_length, lanes)
    restarts = np.random.default_rng(1).random(2 * context_length + 5) < 0.15
    run_with_stalls(make(core, restarts), tmp_path)


@pytest.mark.parametrize("lanes", [1, 4])
def test_every_byte_in_every_place(tmp_path, lanes):
    """Each of the 256 values as each element of a key and of a value."""
    values = np.arange(256) - 128
    tokens = np.stack([np.roll(values, 31 * place) for place in range(8)], axis=-1).reshape(256, 2, 4)
    core = KeyValueCache(signed(8), 4, 2, lanes)
    run(make(core, np.zeros(256, dtype=bool), tokens=tokens), tmp_path)


def test_a_restart_on_every_token_gives_one_row_each(tmp_path):
    run(make(KeyValueCache(signed(8), 4, 4, 2), np.ones(6, dtype=bool)), tmp_path)


@pytest.mark.parametrize(("taken", "given"), [(1, 0), (3, 0), (8, 7)], ids=["key", "value", "giving"])
def test_a_reset_starts_a_new_sequence(tmp_path, taken, given):
    core = KeyValueCache(signed(8), 4, 4, 2)
    tokens = np.random.default_rng(2).integers(-128, 128, (5, 2, 4))
    none = np.zeros(5, dtype=bool)
    before = make(core, none, tokens=tokens)
    after = make(core, none[2:], tokens=tokens[2:])
    inputs = before.inputs["i"][:taken] + after.inputs["i"]
    outputs = before.outputs["o"][:given] + after.outputs["o"]
    run(bench("reset", ResetOnce(core, taken, given), inputs, {"o": outputs}), tmp_path)


def test_a_last_that_disagrees_with_the_count_fails_in_simulation(tmp_path):
    core = KeyValueCache(signed(8), 4, 4, 2)
    whole = make(core, [False])
    inputs = [*whole.inputs["i"][:3], whole.inputs["i"][2]]
    with pytest.raises(BenchFailure, match="last is 0 on word 1 of a row") as failure:
        run(bench("last", core, inputs, whole.outputs), tmp_path)
    assert failure.value.kind == "assertion"


def test_impossible_parameters_are_refused_by_name():
    for name, place in (("channels", 1), ("context_length", 2), ("lanes", 3)):
        for wrong in (0, 2.5, True):
            arguments = [signed(8), 4, 4, 1]
            arguments[place] = wrong
            with pytest.raises(CircuitError, match=f"{name} must be a whole number of at least 1, not {wrong}"):
                KeyValueCache(*arguments)
    with pytest.raises(CircuitError, match="lanes must divide its 6 channels, not be 4"):
        KeyValueCache(signed(8), 6, 4, 4)
    with pytest.raises(CircuitError, match="element must have at least one bit, not be 0"):
        KeyValueCache(0, 6, 4)
