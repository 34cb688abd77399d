# amaranth: UnusedElaboratable=no
"""What holds for every core alike: refused parameters, what the docstring says, predicted cycles,
and tables from an export.
"""

import dataclasses
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Signal, signed

import fixedpoint
from fixedpoint import QFormat, load_export
from fixedpoint.operators.dot_product_engine import DotProductEngine, Operation
from hdl import CircuitError
from hdl.board.boards import BOARDS
from hdl.board.requirements import requirements
from hdl.catalog.example_model import SMALL, example_model
from hdl.catalog.registry import CORES, CoreEntry
from hdl.cores.activation import TableActivation
from hdl.cores.argmax import ArgMax
from hdl.cores.engine import Engine
from hdl.cores.engine_datapath import EngineDatapath
from hdl.cores.key_value_cache import KeyValueCache
from hdl.cores.layer_norm import LayerNorm
from hdl.cores.matrix_vector import MatrixVector
from hdl.cores.rms_norm import RMSNorm
from hdl.cores.sampler import Sampler, XorShift32
from hdl.cores.softmax import Softmax, SoftmaxNumerators
from hdl.cores.tile import Tile
from hdl.cores.uart import UART, UARTReceiver, UARTTransmitter
from hdl.decoder.attention import Attention
from hdl.parts.banked_memory import BankedMemory
from hdl.parts.copies import Copies
from hdl.parts.dot_product import AdderTree, Delay, LaneProducts
from hdl.parts.exponential import Exponential
from hdl.parts.multiplier import Multiplier
from hdl.parts.reciprocal import Reciprocal, ReciprocalSquareRoot
from hdl.parts.requantize import Requantize, RowRequantize
from hdl.parts.stream_parts import CreditQueue, StreamQueue, StreamRegister, WidthConverter
from hdl.parts.table import BlockTable
from scripts.runs import RunDirectory
from sim.bench.core_benches import core_bench
from sim.simulators.runner import simulate

COUNT = 12
MODEL = example_model(SMALL)
BLOCK = MODEL.blocks[0]
SOFTMAX, NORM = BLOCK.attention.softmax, BLOCK.attention_norm
RMS_NORM = CORES["rms-norm"].for_model(MODEL).parameters


def parameters(kind):
    """The names of a constructor's parameters.

    Of `__init__`, because Python 3.11.2 takes the signature of some classes from Amaranth's
    metaclass.
    """
    return [name for name in inspect.signature(kind.__init__).parameters if name != "self"]


# Every part, and every core that does not keep its arguments as attributes, with arguments that
# make one.
ARGUMENTS = {
    AdderTree: {"count": 3, "bits": 8, "owing": True, "levels": 2},
    ArgMax: {"logits": QFormat(8, 4), "length": 4, "lanes": 2},
    Attention: {"parameters": BLOCK.attention},
    BankedMemory: {"width": 8, "depth": 6, "init": [1], "bank_words": 4, "write_parts": 2, "writable_from": 4},
    BlockTable: {"values": [1, 2, 3], "bits": 4},
    Copies: {"bits": 2, "count": 3},
    Delay: {"shape": signed(4), "stages": 2},
    Engine: {
        "lanes": 8,
        "columns": (2, 8),
        "depth": 4,
        "terms": 2,
        "activation_bits": 8,
        "element_bits": 8,
        "operations": [Operation.DOT],
        "init": [1],
    },
    EngineDatapath: {
        "parameters": DotProductEngine(8, (2, 8), 2),
        "operations": [Operation.PAIRS],
        "weight_bits": 4,
        "levels": 2,
    },
    Exponential: {"parameters": SOFTMAX.exponential, "width": 8},
    KeyValueCache: {"element": signed(8), "channels": 8, "context_length": 4, "lanes": 2},
    LaneProducts: {"lanes": 2, "a_bits": 8, "b_bits": 8},
    LayerNorm: {"parameters": NORM, "lanes": 2},
    MatrixVector: {"parameters": BLOCK.up, "lanes": 4},
    Multiplier: {"a_bits": 8, "b_bits": 8, "input_registers": True},
    RMSNorm: {"parameters": RMS_NORM, "lanes": 2},
    Reciprocal: {"parameters": BLOCK.attention.reciprocal, "width": 12},
    ReciprocalSquareRoot: {"parameters": NORM.reciprocal_square_root, "width": 12},
    Requantize: {"bits": 20, "target": QFormat(8, 4), "lowest": 1, "highest": 8, "lanes": 2},
    RowRequantize: {"layers": [BLOCK.up]},
    Sampler: {"parameters": fixedpoint.Sampler(QFormat(8, 4), 0.8), "length": 4, "lanes": 2},
    Softmax: {"parameters": SOFTMAX},
    SoftmaxNumerators: {"parameters": SOFTMAX},
    StreamQueue: {"shape": signed(8), "depth": 4},
    CreditQueue: {"shape": signed(8), "depth": 4},
    StreamRegister: {"shape": signed(8)},
    TableActivation: {"parameters": BLOCK.activation, "lanes": 2},
    Tile: {"lanes": 8, "columns": 4, "pairs": True},
    UART: {"divisor": 4},
    UARTReceiver: {"divisor": 4},
    UARTTransmitter: {"divisor": 4},
    WidthConverter: {"element": signed(8), "i_lanes": 1, "o_lanes": 4},
    XorShift32: {},
}


# The others are made as the registry makes them.
for core in map(CoreEntry.example, CORES.values()):
    if type(core) not in ARGUMENTS:
        ARGUMENTS[type(core)] = {name: getattr(core, name) for name in parameters(type(core))}

NO_NUMBER = (True, 1.5, np.int64(4), "4", None)
NOTHING_LIKE_IT = (None, 2.5, "formats")
ALSO_GOOD = [
    (BankedMemory, "write_parts", 0),
    (BankedMemory, "writable_from", 0),
    (Delay, "stages", 0),
    (EngineDatapath, "weight_bits", None),
    (Requantize, "lowest", 0),
    (Requantize, "lowest", -1),
]


def wrong_arguments():
    for kind, arguments in ARGUMENTS.items():
        for name, good in arguments.items():
            whole = isinstance(good, int) and not isinstance(good, bool)
            for wrong in (0, -1, *NO_NUMBER) if whole else (*NOTHING_LIKE_IT, [0.5]):
                if (kind, name, wrong) not in ALSO_GOOD:
                    yield pytest.param(kind, name, wrong, id=f"{kind.__name__}-{name}-{wrong!r}")


@pytest.mark.parametrize(("kind", "name", "wrong"), list(wrong_arguments()))
def test_wrong_parameters_are_refused_by_name_before_a_signal_exists(kind, name, wrong, monkeypatch):
    def no_signal(*arguments, **settings):
        raise AssertionError("a signal exists")

    monkeypatch.setattr(Signal, "__init__", no_signal)
    with pytest.raises((CircuitError, TypeError), match=rf"\b{name}\b") as refusal:
        kind(**{**ARGUMENTS[kind], name: wrong})
    if isinstance(ARGUMENTS[kind][name], int):
        assert refusal.type is CircuitError
        assert repr(wrong) in str(refusal.value)


@pytest.mark.parametrize("kind", ARGUMENTS, ids=lambda kind: kind.__name__)
def test_right_parameters_are_not_refused(kind):
    """Otherwise the test above would show nothing; and it leaves out no parameter."""
    kind(**ARGUMENTS[kind])
    assert list(ARGUMENTS[kind]) == parameters(kind)


def test_a_core_that_is_only_asked_for_its_latency_warns_of_nothing():
    """In a process of its own, where no filter of the tests hides what Amaranth says, once
    something was elaborated, of circuits that were not.
    """
    program = """
import gc
from amaranth.hdl import Fragment, Module
from hdl.catalog.registry import CORES
Fragment.get(Module(), None)
for entry in CORES.values():
    entry.example()
    gc.collect()
"""
    said = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert said.stderr == ""


# Cores that do what the literature describes; the others only move, count or look up.
FROM_LITERATURE = {
    "attention",
    "engine",
    "layer-norm",
    "layer-norm-lanes",
    "matrix-vector",
    "random-numbers",
    "reciprocal",
    "rms-norm",
    "sampler",
    "softmax",
    "softmax-numerators",
}


@pytest.mark.parametrize("name", CORES)
def test_the_docstring_says_everything(name):
    core = CORES[name].example()
    text = inspect.getdoc(type(core))
    for section in (r"Equations?[:,]", "Latency:", "Throughput:", "Resources:", "\nAttributes:\n"):
        assert re.search(section, text), f"{name} has no {section}"
    if name in FROM_LITERATURE:
        assert "\nSource: " in text
    described = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"^    ([a-z_0-9, ]+): ", text, re.MULTILINE))))
    assert set(core.signature.members) <= described, "a port is not described"
    assert {parameter for parameter in parameters(type(core)) if hasattr(core, parameter)} <= described
    assert hasattr(core, "latency") or hasattr(core, "cycles")


@pytest.mark.parametrize("channels", [8, 24])
@pytest.mark.parametrize("name", CORES)
def test_a_core_has_the_multipliers_of_its_docstring(name, channels):
    entry = CORES[name]
    core = entry.example(dataclasses.replace(SMALL, channels=channels))
    text = rtlil.convert(core, emit_src=False, platform=BOARDS["ulx3s-85f"].platform())
    assert requirements(text).multipliers == entry.multipliers(core)


@pytest.mark.parametrize("name", CORES)
def test_predicted_cycles_are_the_simulated_ones(name, tmp_path):
    entry = CORES[name]
    steady = dataclasses.replace(entry, vectors=entry.steady_vectors or entry.vectors)
    bench = core_bench(steady, entry.example(), COUNT, seed=2)
    assert bench.expected_cycles is not None
    assert simulate(bench, "amaranth", build_directory=tmp_path).cycles == bench.expected_cycles


def test_only_rows_of_mixed_lengths_have_no_prediction():
    """Short rows behind a long one may wait; every core in which they can has vectors of one length
    beside.
    """
    mixed = {
        name
        for name, entry in CORES.items()
        if entry.vectors(entry.example(), np.random.default_rng(1), COUNT).cycles is None
    }
    assert mixed == {name for name, entry in CORES.items() if entry.steady_vectors}
    assert mixed == {"softmax", "softmax-numerators"}


# Cores that no model has a say in.
WITHOUT_MODEL = {"random-numbers", "stream-queue", "stream-register", "uart", "width-converter"}


@pytest.fixture(scope="module")
def exported(tiny_run_original):
    return load_export(RunDirectory(tiny_run_original).quantized)


def parts_of(value):
    """Yield a dataclass and all that it consists of."""
    yield value
    if dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            yield from parts_of(getattr(value, one.name))


def comes_from(operator, block):
    """Whether a block holds an operator, or all formats of one that is made of formats alone."""
    held = set(map(id, parts_of(block)))
    formats = [getattr(operator, one.name) for one in dataclasses.fields(operator)]
    made_of_formats = all(isinstance(one, QFormat) for one in formats)
    return id(operator) in held or (made_of_formats and all(id(one) in held for one in formats))


@pytest.mark.parametrize("name", sorted(set(CORES) - WITHOUT_MODEL))
def test_every_core_is_made_from_the_block_of_an_export_that_is_asked_for(name, exported):
    """Its parameters are objects of that block, or of the logits, and of no other block."""
    for layer, block in enumerate(exported.blocks):
        core = CORES[name].for_model(exported, layer)
        if name == "engine":
            matrices = [getattr(block.attention, part).weight for part in ("key", "value", "query", "output")]
            stored = core.parameters.unpack(core.init, core.depth)
            assert (stored[: sum(map(len, matrices))] == np.concatenate(matrices)).all()
        elif name == "rms-norm":
            assert core.parameters.scale is block.attention_norm.scale
        elif name == "key-value-cache":
            assert (core.channels, core.context_length) == (block.attention.embed_dim, block.attention.context_length)
        elif name in ("argmax", "sampler"):
            logits = core.logits if name == "argmax" else core.parameters.logits
            assert logits is exported.logits.output
            assert core.length == exported.logits.rows
        elif name in ("exponential", "softmax", "softmax-numerators"):  # made when asked for
            softmax = block.attention.softmax
            assert core.parameters == (softmax.exponential if name == "exponential" else softmax)
        else:
            made_of = core.target if name == "requantize" else core.parameters
            assert [comes_from(made_of, other) for other in exported.blocks] == [
                number == layer for number in range(len(exported.blocks))
            ]


@pytest.mark.parametrize("name", ["activation", "layer-norm", "matrix-vector", "reciprocal", "requantize", "softmax"])
def test_cores_of_an_export_equal_its_specification(name, exported, tmp_path):
    entry = CORES[name]
    core = entry.for_model(exported, layer=1)
    result = simulate(core_bench(entry, core, 4, seed=3), "amaranth", build_directory=tmp_path)
    assert min(result.transfers.values()) >= 4


def test_an_exports_weights_are_what_is_multiplied(exported, tmp_path):
    """Vectors for one layer fail on a core of the other one."""
    from sim.bench.bench import BenchFailure

    entry = CORES["matrix-vector"]
    bench = core_bench(entry, entry.for_model(exported, 0), 4, seed=3)
    other = entry.for_model(exported, 1)
    with pytest.raises(BenchFailure) as failure:
        simulate(dataclasses.replace(bench, component=other), "amaranth", build_directory=tmp_path)
    assert failure.value.kind == "value"
