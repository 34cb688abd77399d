# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
"""Every core by name: the one list from which synthesis, Verilog export, netlist simulation,
campaigns and the table of cores take them.

A new core is one `CoreEntry` in `_ENTRIES`: how it is made from a quantized model, and what it must
give for random inputs.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from amaranth.hdl import signed
from amaranth.lib import wiring

import fixedpoint
from fixedpoint import QuantizedTransformer
from fixedpoint.operators.row_norm import RowNorm as NormOperator
from fixedpoint.topology import block_prefix

from ..cores.activation import TableActivation
from ..cores.argmax import ArgMax
from ..cores.engine import ELEMENT_BITS, Engine
from ..cores.key_value_cache import KeyValueCache
from ..cores.layer_norm import LayerNorm
from ..cores.matrix_vector import MatrixVector
from ..cores.rms_norm import RMSNorm
from ..cores.row_norm import RowNorm
from ..cores.sampler import Sampler, XorShift32
from ..cores.softmax import Softmax, SoftmaxNumerators
from ..cores.tile import Tile
from ..cores.uart import UART
from ..decoder.attention import Attention
from ..errors import CircuitError
from ..parts.exponential import Exponential
from ..parts.reciprocal import Reciprocal, ReciprocalSquareRoot
from ..parts.requantize import Requantize
from ..parts.stream_parts import StreamQueue, StreamRegister, WidthConverter
from . import vectors as make
from .activations import ActivationsMaker, attention_activations, part_activations, softmax_activations
from .engine_vectors import engine_vectors
from .example_model import MEDIUM, SMALL, TYPICAL, ModelShape, example_model
from .names import MATRICES, NORMS, RUN_CORES, WHOLE_MODEL

MATRIX_LANES = 64
REQUANTIZE_LANES = 4
NORM_LANES = 8
NORM_LATENCY = "T + K + R + D from a row's last word"
ACTIVATION_LANES = 4
CACHE_LANES = 8
WIDE_LANES = 4
TEMPERATURE = 0.8
UART_DIVISOR = 4
QUEUE_DEPTH = 64
# The cores that compute a row's exponentials hold up to 16 rows at once, if these are short and the
# queue of a long one is free.
LONG_ROWS = dataclasses.replace(SMALL, context_length=24, vocabulary=24)


@dataclass(frozen=True)
class CoreEntry:
    """A core of the library.

    Attributes:
        name: As on the command line.
        build: Makes the component from a quantized model and the number of one of its blocks, and
            from the name of a part where it has parts.
        vectors: Makes stimuli and golden results for a component that `build` made.
        steady_vectors: The same in rows of one length, where `vectors` mixes lengths and no formula
            says how long these take.
        activations: Makes vectors from what a trained model computes; None where no run needs them.
        latency, throughput: The formulas of the component's docstring, in a few words, for the
            table.
        multipliers: The hard multipliers of a component, as its docstring counts them.
        wires: Plain inputs that a bench connects to plain outputs: input → output.
        constants: Values of the other plain inputs in a bench.
        typical: The shape of model whose core is measured and exported where none is given.
        small: The shape of model whose core benches and campaigns run, so large that its vectors
            fill every queue.
        parts: The matrices or norms that it can be made from, by their names in the manifest (those
            of a block without `blocks.N.`); the first where none is chosen.
    """

    name: str
    build: Callable[..., wiring.Component]
    vectors: make.Maker
    latency: str
    throughput: str
    multipliers: Callable[..., int] = lambda core: 0
    wires: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)
    typical: ModelShape = TYPICAL
    small: ModelShape = SMALL
    steady_vectors: make.Maker | None = None
    activations: ActivationsMaker | None = None
    parts: tuple[str, ...] = ()

    def example(self, shape: ModelShape | None = None, part: str | None = None) -> wiring.Component:
        """Return the core for a model of a given shape, the entry's small one if None, with random
        weights, the same ones each time.
        """
        return self.for_model(example_model(shape or self.small), part=part)

    def for_model(self, quantized: QuantizedTransformer, layer: int = 0, part: str | None = None) -> wiring.Component:
        """Return the core for one block of a quantized model, or for one of `parts`.

        Raises:
            CircuitError: There is no such block or part, or the model makes no such core.
        """
        if not 0 <= layer < len(quantized.blocks):
            raise CircuitError(f"there is no layer {layer}; the model has layers 0 to {len(quantized.blocks) - 1}")
        if part is None:
            return self.build(quantized, layer, *self.parts[:1])
        if part not in self.parts:
            choice = f"choose one of {', '.join(self.parts)}" if self.parts else "it is made from no part of its own"
            raise CircuitError(f"{self.name} has no part {part!r}; {choice}")
        if part in WHOLE_MODEL and layer:
            raise CircuitError(f"{part} belongs to no block, so there is no layer {layer} of it")
        return self.build(quantized, layer, part)

    @property
    def summary(self) -> str:
        """The first sentence of the component's docstring."""
        return (inspect.getdoc(type(self.example())) or "").partition("\n")[0].rstrip(".")


def _softmax(build: Callable) -> Callable:
    return lambda model, layer: build(model.blocks[layer].attention.softmax)


def _reciprocal(model: QuantizedTransformer, layer: int) -> Reciprocal:
    attention = model.blocks[layer].attention
    return Reciprocal(attention.reciprocal, attention.softmax.denominator_bits)


Kind = TypeVar("Kind")


def _part(model: QuantizedTransformer, layer: int, part: str, kind: type[Kind]) -> Kind:
    """Return a matrix or a norm by its name."""
    name = part if part in WHOLE_MODEL else block_prefix(layer) + part
    operators = (operation.operator for operation in model.operations if operation.name == name)
    return next(operator for operator in operators if isinstance(operator, kind))


def _root(model: QuantizedTransformer, layer: int, part: str) -> ReciprocalSquareRoot:
    norm = _part(model, layer, part, NormOperator)
    return ReciprocalSquareRoot(norm.reciprocal_square_root, norm.variance_bits)


def _exponential(model: QuantizedTransformer, layer: int) -> Exponential:
    softmax = model.blocks[layer].attention.softmax
    return Exponential(softmax.exponential, softmax.score.bits)


def _matrix_vector(model: QuantizedTransformer, layer: int, part: str) -> MatrixVector:
    linear = _part(model, layer, part, fixedpoint.Linear)
    return MatrixVector(linear, min(MATRIX_LANES, linear.columns))


def _engine(model: QuantizedTransformer, layer: int) -> Engine:
    """Return an engine of C lanes for an attention block, with all operations, the trees tapped at
    the heads and at all lanes.

    Its memory holds the key, value, query and output weights, in pairs if they have up to 4 bits,
    then room for C keys and values of `context_length` tokens. Activations are wide enough for
    softmax numerators.
    """
    attention = model.blocks[layer].attention
    layers = (attention.key, attention.value, attention.query, attention.output)
    weight_bits = max(linear.weight_bits for linear in layers)
    lanes, pairs = attention.embed_dim, weight_bits <= ELEMENT_BITS // 2
    tile = Tile(lanes, lanes, pairs)
    words = [word for linear in layers for word in tile.words(linear.weight, ELEMENT_BITS >> pairs)]
    return Engine(
        lanes,
        sorted({attention.head_dim, lanes}),
        len(words) + 2 * attention.context_length,
        attention.context_length,
        activation_bits=max(attention.query.input.bits, attention.softmax.exponential.output_bits + 1),
        element_bits=ELEMENT_BITS,
        init=words,
    )


def _requantize(model: QuantizedTransformer, layer: int, part: str) -> Requantize:
    linear = _part(model, layer, part, fixedpoint.Linear)
    shifts = int(linear.shift.min()), int(linear.shift.max())
    return Requantize(linear.accumulator_bits, linear.output, *shifts, REQUANTIZE_LANES)


def _norm(model: QuantizedTransformer, layer: int, part: str) -> fixedpoint.LayerNorm:
    norm = _part(model, layer, part, NormOperator)
    if not isinstance(norm, fixedpoint.LayerNorm):
        raise CircuitError(
            f"the model normalizes with {type(norm).__name__}, not with LayerNorm; choose the core rms-norm"
        )
    return norm


def _rms_norm(model: QuantizedTransformer, layer: int, part: str) -> fixedpoint.RMSNorm:
    """Return an RMSNorm, or one with the formats and the scale of the LayerNorm in its place."""
    norm = _part(model, layer, part, NormOperator)
    if isinstance(norm, fixedpoint.RMSNorm):
        return norm
    fields = {field.name: getattr(norm, field.name) for field in dataclasses.fields(fixedpoint.RMSNorm)}
    return fixedpoint.RMSNorm(**fields)


def _norm_multipliers(core: RowNorm) -> int:
    channels = core.parameters.channels
    return core.lanes * (4 + bool(channels & channels - 1)) + 3 * isinstance(core, LayerNorm)


def _key_value_cache(model: QuantizedTransformer, layer: int) -> KeyValueCache:
    attention = model.blocks[layer].attention
    return KeyValueCache(signed(attention.key.output.bits), attention.embed_dim, attention.context_length, CACHE_LANES)


_ENTRIES = (
    CoreEntry(
        "matrix-vector",
        _matrix_vector,
        make.row_vectors("data", "data"),
        "K + W + 16 + ceil(log2 columns) + rows of the last tile, from a vector's first element to its last result; W words of weights, one cycle more with W > 512",
        "a vector in K + W; W = R·K / products a cycle",
        lambda core: core.lanes,
        parts=MATRICES,
        activations=part_activations(MATRICES[0]),
    ),
    CoreEntry(
        "engine",
        _engine,
        engine_vectors,
        "10 + levels of the trees, sums of lanes 8; one more above 512 words",
        "1 word of `lanes` products or pairs of products a cycle",
        lambda core: core.lanes,
    ),
    CoreEntry("requantize", _requantize, make.requantize_vectors, "5", "1 a cycle and lane", parts=MATRICES),
    CoreEntry(
        "softmax",
        _softmax(Softmax),
        make.row_vectors("score", "probability", shortest=lambda core: 1),
        "N + 10 + E + R from a row's last score",
        "1 score a cycle",
        lambda core: 1,
        steady_vectors=make.row_vectors("score", "probability", shortest=make.longest_row),
        activations=softmax_activations,
        small=LONG_ROWS,
    ),
    CoreEntry(
        "softmax-numerators",
        _softmax(SoftmaxNumerators),
        make.numerators_vectors,
        "4 + E from a row's last score",
        "1 score a cycle",
        steady_vectors=partial(make.numerators_vectors, one_length=True),
        small=LONG_ROWS,
    ),
    CoreEntry(
        "layer-norm",
        lambda *of: LayerNorm(_norm(*of)),
        make.row_vectors("data", "data"),
        NORM_LATENCY,
        "1 element a cycle",
        _norm_multipliers,
        parts=NORMS,
        activations=part_activations(NORMS[0]),
    ),
    CoreEntry(
        "layer-norm-lanes",
        lambda *of: LayerNorm(_norm(*of), NORM_LANES),
        make.row_vectors("data", "data"),
        NORM_LATENCY,
        f"{NORM_LANES} elements a cycle",
        _norm_multipliers,
        parts=NORMS,
    ),
    CoreEntry(
        "rms-norm",
        lambda *of: RMSNorm(_rms_norm(*of)),
        make.row_vectors("data", "data"),
        NORM_LATENCY,
        "1 element a cycle",
        _norm_multipliers,
        parts=NORMS,
        activations=part_activations(NORMS[0]),
    ),
    CoreEntry(
        "activation",
        lambda model, layer: TableActivation(model.blocks[layer].activation, ACTIVATION_LANES),
        make.element_vectors("data"),
        "2",
        "1 a cycle and lane",
    ),
    CoreEntry(
        "argmax",
        lambda model, layer: ArgMax(model.logits.output, model.logits.rows),
        make.argmax_vectors,
        "2 from a row's last logit",
        "1 logit a cycle",
    ),
    CoreEntry(
        "sampler",
        lambda model, layer: Sampler(fixedpoint.Sampler(model.logits.output, TEMPERATURE), model.logits.rows),
        make.sampler_vectors,
        "20 from a row's last logit",
        "1 logit a cycle",
        lambda core: 1,
    ),
    CoreEntry(
        "key-value-cache",
        _key_value_cache,
        make.cache_vectors,
        "3 from a token's last word",
        "1 word a cycle in or out",
    ),
    CoreEntry("random-numbers", lambda model, layer: XorShift32(), make.random_number_vectors, "1", "1 number a cycle"),
    CoreEntry("stream-queue", lambda model, layer: StreamQueue(8, QUEUE_DEPTH), make.byte_vectors, "3", "1 a cycle"),
    CoreEntry("stream-register", lambda model, layer: StreamRegister(8), make.byte_vectors, "1", "1 a cycle"),
    CoreEntry(
        "width-converter",
        lambda model, layer: WidthConverter(signed(8), 1, WIDE_LANES),
        make.width_vectors,
        "1 from the word that completes another",
        "1 narrow word a cycle",
    ),
    CoreEntry("exponential", _exponential, make.exponential_vectors, "3 (5 with a block RAM)", "1 a cycle"),
    CoreEntry("reciprocal", _reciprocal, make.reciprocal_vectors, "ceil(log2 width) + 2", "1 a cycle"),
    CoreEntry(
        "reciprocal-square-root",
        _root,
        make.reciprocal_vectors,
        "ceil(log2 ceil(width / 2)) + 2",
        "1 a cycle",
        parts=NORMS,
    ),
    CoreEntry(
        "attention",
        lambda model, layer: Attention(model.blocks[layer].attention),
        make.attention_vectors,
        "its program's",
        "its program's",
        lambda core: core.multipliers,
        typical=MEDIUM,
        activations=attention_activations,
    ),
    CoreEntry(
        "uart",
        lambda model, layer: UART(UART_DIVISOR),
        make.byte_vectors,
        "9.5·divisor + 4 from the start bit's edge",
        "a byte in 10·divisor",
        wires={"rx": "tx"},
    ),
)
CORES: dict[str, CoreEntry] = {entry.name: entry for entry in _ENTRIES}


def find_core(name: str) -> CoreEntry:
    """Return a core's entry.

    Raises:
        CircuitError: There is none of this name; the message lists them.
    """
    if name not in CORES:
        raise CircuitError(f"there is no core {name!r}; choose one of {', '.join(sorted(CORES))}")
    return CORES[name]


def run_core(name: str, model: QuantizedTransformer) -> CoreEntry:
    """Return the entry of one of `RUN_CORES`; rms-norm's for layer-norm if the model has RMSNorms.

    Raises:
        CircuitError: The name is none of them.
    """
    if name not in RUN_CORES:
        raise CircuitError(f"there is no circuit {name!r} to simulate; there are {', '.join(RUN_CORES)}")
    rms = name == "layer-norm" and isinstance(model.blocks[0].attention_norm, fixedpoint.RMSNorm)
    return CORES["rms-norm" if rms else name]


__all__ = ["CORES", "SMALL", "TYPICAL", "CoreEntry", "find_core", "run_core"]
