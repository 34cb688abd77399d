"""One description of a block: an operation of a new kind is an operator and an entry for each thing
that is done with operators.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
from model_kinds import make_model
from test_fixedpoint_native import needs_compiler

from fixedpoint import Block, QFormat, QuantizationError
from fixedpoint.export.c_header import c_header, c_operation
from fixedpoint.export.c_program import NativeTransformer
from fixedpoint.export.manifest import describe, describe_operator
from fixedpoint.export.onnx_export import export_onnx, onnx_nodes
from fixedpoint.fast.transformer import FastDecoder, prepared
from fixedpoint.operators.operator import UnaryOperator
from fixedpoint.quantization.analysis import tensor_formats
from fixedpoint.topology import (
    BLOCK,
    Kind,
    Step,
    decoder_steps,
    linear_inputs,
    residual_format_tensors,
    residual_stream,
)
from fixedpoint.widths import AccumulatorWidth, accumulator_table, operator_widths


@dataclass(frozen=True)
class Halve(UnaryOperator):
    """Half of each element, rounded down: no other operator does this."""

    input: QFormat

    @property
    def output(self):
        return self.input

    def compute(self, x):
        return x >> 1


class HalvingBlock(Block):
    """A block that halves what the activation makes."""

    @cached_property
    def operations(self):
        halve = Step("feed_forward.half", Kind.ACTIVATION, ("feed_forward.activation",))
        pairs = []
        for step, operator in super().operations:
            if step.name == "feed_forward.down":
                pairs.append((halve, Halve(self.activation.output)))
                step = replace(step, inputs=(halve.name,))
            pairs.append((step, operator))
        return tuple(pairs)


@operator_widths.register
def _(operator: Halve, name, x):
    yield AccumulatorWidth(name, int(x[0]) >> 1, int(x[1]) >> 1, -int(x[0]), operator.output.bits)


@describe_operator.register
def _(operator: Halve):
    return {"input": str(operator.input)}, {}


@c_operation.register
def _(operator: Halve, header, name, channels):
    if "halve" not in header.written:
        header.written.add("halve")
        header.parts.append(
            "static void halve(const void *parameters, const int16_t *const x[], int16_t *y, int position)\n"
            "{\n    (void)position;\n    for (int c = 0; c < *(const int *)parameters; c++)\n        y[c] = x[0][c] >> 1;\n}"
        )
    return "halve", header.define("int", name, str(channels))


@onnx_nodes.register
def _(operator: Halve, exporter, name, x):
    half = exporter.graph.add("Floor", exporter._scaled(x, operator.input.fraction - 1))
    return exporter._scaled(half, -operator.input.fraction)


def halving(model):
    fields = ("attention_norm", "attention", "feed_forward_norm", "up", "activation", "down")
    blocks = (HalvingBlock(*(getattr(block, name) for name in fields)) for block in model.blocks)
    return replace(model, blocks=tuple(blocks))


@pytest.fixture(scope="module")
def model():
    return halving(make_model(0))


TOKENS = np.random.default_rng(0).integers(0, 11, size=(3, 7))
NEW = "blocks.1.feed_forward.half"


def test_the_specification_computes_it(model):
    seen = {}
    logits = model.forward(TOKENS, seen.__setitem__)
    np.testing.assert_array_equal(seen[NEW], seen["blocks.1.feed_forward.activation"] >> 1)
    assert (logits != make_model(0).forward(TOKENS)).any()


def test_it_is_executed_fast_too(model):
    logits = model.forward(TOKENS)
    np.testing.assert_array_equal(prepared(model).forward(TOKENS), logits)
    for rows in (slice(0, 3), slice(0, 1)):
        decoder = FastDecoder(model, len(TOKENS[rows]))
        np.testing.assert_array_equal(decoder.prefill(TOKENS[rows, :3]), logits[rows, 2])
        for position in range(3, 7):
            np.testing.assert_array_equal(decoder.step(TOKENS[rows, position]), logits[rows, position])


def test_tables_and_the_manifest_name_it(model):
    assert tensor_formats(model)[NEW] == QFormat(8, 5)
    assert [row.lowest for row in accumulator_table(model) if row.name == NEW] == [-64]
    manifest, _ = describe(model)
    assert manifest["layers"][NEW] == {"input": "Q3.5"}


@needs_compiler
def test_the_c_program_computes_it(model, tmp_path):
    program = NativeTransformer.build(model, tmp_path / "c", ("-O1",))
    np.testing.assert_array_equal(program.logits(TOKENS[0]), model.forward(TOKENS[:1])[0])
    assert "halve" not in c_header(make_model(0))


def test_onnx_computes_it(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    (logits,) = session.run(None, {"tokens": TOKENS})
    np.testing.assert_array_equal(logits, model.logits.output.dequantize(model.forward(TOKENS)).astype(np.float32))


def test_what_has_no_entry_is_refused_by_name():
    operator = UnaryOperator()
    for entry, arguments in (
        (describe_operator, ()),
        (c_operation, (None, "a", 1)),
        (onnx_nodes, (None, "a", "x")),
    ):
        with pytest.raises(QuantizationError, match="UnaryOperator"):
            entry(operator, *arguments)


def test_an_operation_must_read_what_is_there(model):
    with pytest.raises(QuantizationError, match=r"blocks.0.feed_forward.down expects"):
        block = model.blocks[0]
        replace(model, blocks=(replace(block, down=replace(block.down, input=QFormat(8, 4))),))


def test_sets_of_tensors_follow_from_the_steps():
    steps = decoder_steps(1)
    assert len(steps) == len(BLOCK) + 3
    assert residual_stream(steps) == {"embedding", "blocks.0.attention_residual", "blocks.0.feed_forward_residual"}
    assert residual_format_tensors(steps) - residual_stream(steps) == {
        "blocks.0.attention.output",
        "blocks.0.feed_forward.down",
    }
    assert linear_inputs(steps) == {
        "blocks.0.attention.query": "blocks.0.attention_norm",
        "blocks.0.attention.key": "blocks.0.attention_norm",
        "blocks.0.attention.value": "blocks.0.attention_norm",
        "blocks.0.attention.output": "blocks.0.attention.context",
        "blocks.0.feed_forward.up": "blocks.0.feed_forward_norm",
        "blocks.0.feed_forward.down": "blocks.0.feed_forward.activation",
        "logits": "final_norm",
    }
