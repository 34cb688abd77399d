# amaranth: UnusedElaboratable=no
"""Cores with the tables and weights of a trained model, fed with what that model makes of its text;
the others are those of a run.
"""

import numpy as np
import pytest

import fixedpoint
from fixedpoint import load_export, requantize
from hdl.catalog.activations import Activations
from hdl.catalog.names import RUN_CORES
from hdl.catalog.registry import CORES
from hdl.catalog.vectors import Vectors, cache_traffic, row_columns
from hdl.cores.engine import Operation
from model import RunDirectory
from sim.bench.core_benches import pack_vectors, words_bench
from sim.bench.payload import pack_all
from sim.bench.stalls import Stalls
from sim.simulators.runner import simulate_each

TOKENS = 16
LAYER = 1


class Seen:
    """One block of a trained model and everything that it computes on windows of its validation
    text.
    """

    def __init__(self, quantized, tokens):
        self.generator = np.random.default_rng(5)
        self.block = quantized.blocks[LAYER]
        self.attention = self.block.attention
        activations = Activations(quantized, tokens, TOKENS, self.generator, LAYER)
        self.tensors = {name: activations.rows(name) for name in activations.tensors}
        self.score_rows = activations.scores
        self.numerators = [self.attention.softmax.numerators(row) for row in self.score_rows]
        self.residual = activations.input_of("attention_norm")

    def __getitem__(self, name):
        return self.tensors[f"blocks.{LAYER}.{name}"]


def requantized(core, seen):
    """The accumulators of the feed-forward network's first layer become what the model has
    there.
    """
    up, sums = seen.block.up, seen.block.up.accumulate(seen["feed_forward_norm"])
    shifts = np.broadcast_to(up.shift, sums.shape)
    np.testing.assert_array_equal(requantize(sums, shifts, up.output), seen["feed_forward.up"])
    values, shifts, results = (one.reshape(-1, core.lanes).T for one in (sums, shifts, seen["feed_forward.up"]))
    return Vectors({"i": {"value": values, "shift": shifts}}, {"o": results})


def activated(core, seen):
    hidden, results = seen["feed_forward.up"], seen["feed_forward.activation"]
    return Vectors({"i": row_columns("data", hidden, core.lanes)}, {"o": row_columns("data", results, core.lanes)})


def numerators(core, seen):
    outputs = {
        "o": row_columns("numerator", seen.numerators),
        "o_denominator": [int(row.sum()) for row in seen.numerators],
    }
    return Vectors({"i": row_columns("score", seen.score_rows)}, outputs)


def exponentials(core, seen):
    distances = np.concatenate([row.max() - row for row in seen.score_rows])
    return Vectors({"i": distances}, {"o": np.concatenate(seen.numerators)})


def reciprocals(core, arguments):
    result = core.parameters.compute(arguments)
    return Vectors({"i": arguments}, {"o": {"mantissa": result.mantissa, "exponent": result.exponent}})


def roots(core, seen):
    """Variances of the residual's rows, times the square of their length, as `fixedpoint.LayerNorm`
    has them.
    """
    norm, rows = seen.block.attention_norm, seen.residual
    variances = norm.channels * (rows * rows).sum(axis=-1) - rows.sum(axis=-1) ** 2 + norm.epsilon
    return reciprocals(core, variances)


def normalized(core, seen):
    lanes = core.lanes
    results = core.parameters.compute(seen.residual)
    return Vectors({"i": row_columns("data", seen.residual, lanes)}, {"o": row_columns("data", results, lanes)})


def chosen(core, seen):
    logits = seen.tensors["logits"]
    return Vectors({"i": row_columns("data", logits)}, {"o": {"token": fixedpoint.argmax(logits)}})


def sampled(core, seen):
    logits = seen.tensors["logits"]
    numbers = seen.generator.integers(0, 1 << 32, len(logits), dtype=np.uint32)
    tokens = core.parameters.choose(logits, numbers)
    return Vectors({"i": row_columns("data", logits), "i_random": numbers}, {"o": {"token": tokens}})


def cached(core, seen):
    layers = (seen.attention.key, seen.attention.value)
    pairs = np.stack([layer.compute(seen["attention_norm"]) for layer in layers], axis=1)
    return cache_traffic(core, pairs, np.arange(TOKENS) == 0)


def products(core, seen):
    """The key projection: its rows are the memory's first words, and the last tap sums over all
    lanes.
    """
    vectors, weight = seen["attention_norm"], seen.attention.key.weight
    tokens, rows = (axis.ravel() for axis in np.meshgrid(range(TOKENS), range(len(weight)), indexing="ij"))
    one = np.ones_like(rows)
    commands = {
        "operation": Operation.DOT.value * one,
        "tap": (len(core.columns) - 1) * one,
        "first": one,
        "last": one,
        "address": rows,
        "activations": vectors[tokens].T,
    }
    sums = np.zeros((core.groups, len(rows)), dtype=np.int64)
    sums[0] = (vectors @ weight.T).ravel()
    halves = {"lower": sums, "upper": np.zeros_like(sums)}
    return Vectors(
        {"i": commands}, {"o": {half: halves[half] for half in ("lower", "upper")[: 1 + core.pairs]}, "o_lanes": []}
    )


MAKERS = {
    "engine": products,
    "requantize": requantized,
    "softmax-numerators": numerators,
    "layer-norm-lanes": normalized,
    "rms-norm": normalized,
    "activation": activated,
    "argmax": chosen,
    "sampler": sampled,
    "key-value-cache": cached,
    "exponential": exponentials,
    "reciprocal": lambda core, seen: reciprocals(core, np.array([row.sum() for row in seen.numerators])),
    "reciprocal-square-root": roots,
}


@pytest.fixture(scope="module")
def run(tiny_run_original):
    directory = RunDirectory(tiny_run_original)
    quantized = load_export(directory.quantized)
    return quantized, Seen(quantized, directory.load_validation_tokens())


def test_every_core_of_an_operator_of_the_model_is_fed_by_it(run):
    quantized, _ = run
    fed = {*MAKERS, *RUN_CORES}
    operators = [*filter(None, vars(quantized.blocks[LAYER]).values()), *(one.operator for one in quantized.operations)]
    cores = {name: entry.for_model(quantized, LAYER) for name, entry in CORES.items()}
    of_the_model = {name for name, core in cores.items() if getattr(core, "parameters", None) in operators}
    assert {"activation", "attention", "layer-norm", "layer-norm-lanes", "matrix-vector"} <= of_the_model <= fed
    assert fed < set(CORES)


@pytest.mark.parametrize("name", MAKERS)
def test_a_trained_models_core_gives_what_the_model_computes(name, run, tmp_path):
    quantized, seen = run
    entry = CORES[name]
    core = entry.for_model(quantized, LAYER)
    words = pack_vectors(core, MAKERS[name](core, seen), lambda *column: pack_all(*column) if len(column[1]) else [])
    bench = words_bench(entry, core, words)
    for result in simulate_each(bench, [Stalls(), Stalls(1, 0.3, 0.3)], "amaranth", build_directory=tmp_path):
        assert sum(result.transfers.values()) >= TOKENS
