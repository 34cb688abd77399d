# amaranth: UnusedElaboratable=no
import dataclasses

import numpy as np
import pytest
from core_bench import (
    ResetOnce,
    bench,
    every_row,
    needs_compiler,
    pack_rows,
    run,
    run_compiled,
    run_compiled_with_stalls,
    run_with_stalls,
)
from model_kinds import KINDS

import fixedpoint
import hdl.parts.requantize
from fixedpoint import Linear, QFormat
from hdl import CircuitError
from hdl.decoder.attention import Attention
from sim.bench.bench import BenchFailure
from sim.bench.payload import pack_all

# channels, heads, tokens of context
SHAPES = [(8, 2, 4), (6, 3, 5), (4, 1, 1), (2, 2, 3)]
LARGE_SHAPES = [(16, 4, 16), (12, 1, 7)]


def attention(channels=8, heads=2, context_length=4, seed=0, weight_bits=8, **formats):
    generator = np.random.default_rng(seed)

    def linear(source, output, scale=1.0):
        weight = generator.normal(size=(channels, channels)) * scale / np.sqrt(channels)
        return Linear.from_float(weight, generator.normal(size=channels) * 0.3, weight_bits, source, output)

    given = QFormat(8, 5)
    context = formats.get("context", QFormat(8, 6))
    return fixedpoint.Attention(
        query=linear(given, QFormat(8, 4), 2.0),
        key=linear(given, QFormat(8, 4)),
        value=linear(given, QFormat(8, 5)),
        output=linear(context, QFormat(16, 10)),
        num_heads=heads,
        context_length=context_length,
    )


def tokens(parameters, count, seed=1):
    """Vectors (count, C) and their restarts; sequences of all lengths, some longer than the
    context.
    """
    generator = np.random.default_rng(seed)
    vectors = generator.integers(-128, 128, (count, parameters.embed_dim))
    vectors[:2] = [[-128], [127]]
    return vectors, generator.random(count) < 0.15


def positions(restart, context_length):
    place, places = 0, []
    for index, starts in enumerate(restart):
        place = 0 if index == 0 or starts or place == context_length - 1 else place + 1
        places.append(place)
    return places


def attention_bench(parameters, vectors, restart, core=None, **settings):
    core = core or Attention(parameters)
    # only the first element's flag counts
    flags = np.random.default_rng(2).integers(0, 2, vectors.shape)
    flags[:, 0] = restart
    inputs = pack_all(core.i.payload.shape(), {"data": vectors.reshape(-1), "restart": flags.reshape(-1)})
    return bench(
        "attention",
        core,
        inputs,
        {"o": pack_rows(core.o, "data", parameters.compute_stream(vectors, restart))},
        **settings,
    )


def timed_bench(channels, heads, context_length):
    parameters = attention(channels, heads, context_length)
    vectors, restart = tokens(parameters, 3 * context_length + 5)
    core = Attention(parameters)
    cycles = core.cycles(positions(restart, context_length))
    return attention_bench(parameters, vectors, restart, core, expected_cycles=cycles)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_result_and_the_cycles_equal_the_specification(shape, tmp_path):
    run_with_stalls(timed_bench(*shape), tmp_path)


@needs_compiler
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
def test_large_cores_equal_the_specification(shape, simulation_builds):
    run_compiled_with_stalls(timed_bench(*shape), simulation_builds)


@needs_compiler
def test_every_pair_of_tokens_of_one_8_bit_channel(simulation_builds):
    core = Attention(attention(1, 1, 2))
    pairs = every_row(core.parameters.query.input, 2)[..., None]  # (sequences, tokens, channels)
    place = np.tile([0, 1], len(pairs))
    inputs = pack_all(core.i.payload.shape(), {"data": pairs.reshape(-1), "restart": (place == 0).astype(int)})
    results = {"data": core.parameters.compute(pairs).reshape(-1), "last": np.ones_like(place)}
    outputs = {"o": pack_all(core.o.payload.shape(), results)}
    run_compiled(bench("pairs", core, inputs, outputs, expected_cycles=core.cycles(place)), simulation_builds)


def test_narrow_weights(tmp_path):
    parameters = attention(weight_bits=4)
    run(attention_bench(parameters, *tokens(parameters, 12)), tmp_path)


def test_weights_of_several_widths(tmp_path):
    parameters = attention()
    narrow = dataclasses.replace(parameters, value=attention(weight_bits=4).value)
    run(attention_bench(narrow, *tokens(narrow, 6)), tmp_path)


@pytest.mark.parametrize("kind", ["rotary", "grouped queries"])
def test_rotary_positions_and_shared_keys(kind, tmp_path):
    parameters = KINDS[kind](0).blocks[0].attention
    vectors, restart = tokens(parameters, 8)
    core = Attention(parameters)
    cycles = core.cycles(positions(restart, parameters.context_length))
    run_with_stalls(attention_bench(parameters, vectors, restart, core, expected_cycles=cycles), tmp_path)


def test_equal_and_extreme_tokens(tmp_path):
    parameters = attention(8, 2, 8)
    vectors = np.repeat([[0] * 8, [-128] * 8, [127] * 8], 8, axis=0)
    run(attention_bench(parameters, vectors, np.arange(24) % 8 == 0), tmp_path)


@pytest.mark.parametrize(("taken", "given"), [(3, 0), (8, 0), (8, 3), (19, 16)])
def test_a_reset_in_the_middle_starts_a_new_sequence(taken, given, tmp_path):
    parameters = attention()
    vectors, _ = tokens(parameters, 6)
    none = np.zeros(3, dtype=bool)
    before, after = (attention_bench(parameters, part, none) for part in (vectors[:3], vectors[3:]))
    core = ResetOnce(Attention(parameters), taken, given)
    inputs = before.inputs["i"][:taken] + after.inputs["i"]
    run(bench("attention", core, inputs, {"o": before.outputs["o"][:given] + after.outputs["o"]}), tmp_path)


def flipped_weight(parameters):
    weight = parameters.value.weight.copy()
    weight[3, 2] ^= 16
    return Attention(dataclasses.replace(parameters, value=dataclasses.replace(parameters.value, weight=weight)))


def another_reciprocal(parameters):
    return Attention(dataclasses.replace(parameters, reciprocal=fixedpoint.Reciprocal(index_bits=4, mantissa_bits=8)))


@pytest.mark.parametrize("broken", [flipped_weight, another_reciprocal])
def test_another_circuit_is_found(broken, tmp_path):
    parameters = attention()
    with pytest.raises(BenchFailure) as failure:
        run(attention_bench(parameters, *tokens(parameters, 40), core=broken(parameters)), tmp_path)
    assert failure.value.kind == "value"


def test_another_rounding_is_found(tmp_path, monkeypatch):
    parameters = attention()
    half_up = hdl.parts.requantize.saturate
    # saturate((doubled + 1) >> 1) becomes the floor: the incrementer is taken back
    monkeypatch.setattr(hdl.parts.requantize, "saturate", lambda value, target: half_up(value - (value & 1), target))
    with pytest.raises(BenchFailure) as failure:
        run(attention_bench(parameters, *tokens(parameters, 20)), tmp_path)
    assert failure.value.kind == "value"


def test_a_dropped_result_is_found(tmp_path):
    parameters = attention()
    good = attention_bench(parameters, *tokens(parameters, 5))
    more = dataclasses.replace(good, outputs={"o": [*good.outputs["o"], good.outputs["o"][-1]]})
    with pytest.raises(BenchFailure) as failure:
        run(more, tmp_path)
    assert failure.value.kind in ("missing", "deadlock")


def test_a_context_format_finer_than_the_normalizer_is_refused():
    with pytest.raises((CircuitError, fixedpoint.QuantizationError)):
        Attention(attention(context=QFormat(8, 60)))


def test_parameters_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"fixedpoint\.Attention"):
        Attention({"embed_dim": 8})
