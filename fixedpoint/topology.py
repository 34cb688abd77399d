"""The operations of a decoder and what each reads, written down once.

Quantizing, calibration, widths, analysis, exports and fast evaluation go through these steps in
this order. A step's name is that of the tensor that it makes, the float model's name for it; its
inputs are such names too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a step does."""

    EMBEDDING = "embedding"
    NORM = "norm"
    LINEAR = "linear"
    ATTENTION = "attention"
    ACTIVATION = "activation"
    ROTATION = "rotation"
    PRODUCT = "product"
    RESIDUAL_ADD = "residual add"


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: The tensor that it makes.
        kind: What it does.
        inputs: The tensors that it reads, in the operator's order.
    """

    name: str
    kind: Kind
    inputs: tuple[str, ...]


TOKENS = "tokens"
INPUT = "input"  # of a block: the residual stream before it


def block_steps(*, rotary: bool = False, gated: bool = False) -> tuple[Step, ...]:
    """Return the operations of a block.

    Args:
        rotary: Queries and keys are turned by their position's angles.
        gated: The feed-forward part multiplies the activation of a gate by `up` (SwiGLU).
    """
    query, key = "attention.query", "attention.key"
    rotated_query, rotated_key = ("attention.rotated_query", "attention.rotated_key") if rotary else (query, key)
    rotations = (Step(rotated_query, Kind.ROTATION, (query,)), Step(rotated_key, Kind.ROTATION, (key,)))
    up, gate, gate_activation = "feed_forward.up", "feed_forward.gate", "feed_forward.gate_activation"
    activated = "feed_forward.activation"
    plain = (Step(up, Kind.LINEAR, ("feed_forward_norm",)), Step(activated, Kind.ACTIVATION, (up,)))
    with_gate = (
        Step(gate, Kind.LINEAR, ("feed_forward_norm",)),
        Step(up, Kind.LINEAR, ("feed_forward_norm",)),
        Step(gate_activation, Kind.ACTIVATION, (gate,)),
        Step(activated, Kind.PRODUCT, (gate_activation, up)),
    )
    return (
        Step("attention_norm", Kind.NORM, (INPUT,)),
        Step(query, Kind.LINEAR, ("attention_norm",)),
        Step(key, Kind.LINEAR, ("attention_norm",)),
        Step("attention.value", Kind.LINEAR, ("attention_norm",)),
        *(rotations if rotary else ()),
        Step("attention.context", Kind.ATTENTION, (rotated_query, rotated_key, "attention.value")),
        Step("attention.output", Kind.LINEAR, ("attention.context",)),
        Step("attention_residual", Kind.RESIDUAL_ADD, (INPUT, "attention.output")),
        Step("feed_forward_norm", Kind.NORM, ("attention_residual",)),
        *(with_gate if gated else plain),
        Step("feed_forward.down", Kind.LINEAR, (activated,)),
        Step("feed_forward_residual", Kind.RESIDUAL_ADD, ("attention_residual", "feed_forward.down")),
    )


BLOCK = block_steps()


def block_prefix(index: int) -> str:
    """Return what the names of a block's tensors and parameters begin with."""
    return f"blocks.{index}."


def in_decoder(steps: Iterable[Step], index: int, entering: str) -> tuple[Step, ...]:
    """Return the steps of block `index`, named as in the decoder; the block reads `entering`."""
    prefix = block_prefix(index)

    def name(tensor: str) -> str:
        return entering if tensor == INPUT else prefix + tensor

    return tuple(Step(name(step.name), step.kind, tuple(map(name, step.inputs))) for step in steps)


EMBEDDING = Step("embedding", Kind.EMBEDDING, (TOKENS,))
LOGITS = Step("logits", Kind.LINEAR, ("final_norm",))


def final_norm_step(entering: str) -> Step:
    """Return the norm before the logits; `entering` is the residual stream after the last block."""
    return Step("final_norm", Kind.NORM, (entering,))


def decoder_steps(num_layers: int, block: tuple[Step, ...] = BLOCK) -> tuple[Step, ...]:
    """Return all steps of a decoder of equal blocks, from the tokens to the logits."""
    steps = [EMBEDDING]
    for index in range(num_layers):
        steps += in_decoder(block, index, steps[-1].name)
    return (*steps, final_norm_step(steps[-1].name), LOGITS)


def residual_stream(steps: Iterable[Step]) -> frozenset[str]:
    """Return the tensors that are the residual stream, at its beginning or after an addition."""
    return frozenset(step.name for step in steps if step.kind in (Kind.EMBEDDING, Kind.RESIDUAL_ADD))


def residual_format_tensors(steps: Iterable[Step]) -> frozenset[str]:
    """Return the tensors in the residual stream's format: the stream and what is added to it."""
    steps = tuple(steps)
    added = {name for step in steps if step.kind is Kind.RESIDUAL_ADD for name in step.inputs}
    return residual_stream(steps) | added


def linear_inputs(steps: Iterable[Step]) -> dict[str, str]:
    """Return the tensor that each linear layer reads, by the layer's name."""
    return {step.name: step.inputs[0] for step in steps if step.kind is Kind.LINEAR}


def product_operands(steps: Iterable[Step]) -> frozenset[str]:
    """Return the tensors that only rotations and products of tensors read.

    They are as wide as the residual stream, so that what follows rounds the result and not they.
    """
    steps = tuple(steps)
    exact = (Kind.ROTATION, Kind.PRODUCT)
    return frozenset(name for step in steps if step.kind in exact for name in step.inputs)
