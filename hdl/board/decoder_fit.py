# amaranth: UnusedElaboratable=no
# (a machine is built only to ask for its sizes)
"""What of a decoder would have to shrink for a board that has no room for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fixedpoint import LayerNorm, Linear, QFormat, QuantizedTransformer
from fixedpoint.operators.embedding import EmbeddingTable
from fixedpoint.operators.rotation import RotationTable
from fixedpoint.transformer import Block, Norm

from ..decoder.machine import Machine
from ..errors import CircuitError
from .boards import Board
from .decoder_estimate import LUT_SHARE, Estimate, best_estimate, plans, requirements_of
from .decoder_logic import luts_of

BLOCK_RAM_BITS = 18432
STEP = 4  # channels of a head, between widths that are tried
CONTEXT_STEPS = 16  # into which a context is cut to find the largest


def fitting_machine(
    model: QuantizedTransformer,
    board: Board,
    lanes: int | None = None,
    *,
    sampling: bool = False,
    smallest: bool = False,
) -> Estimate:
    """Return `best_estimate`.

    Raises:
        CircuitError: There is none; the message also says what would have to shrink.
    """
    try:
        return best_estimate(model, board, lanes, sampling=sampling, smallest=smallest)
    except CircuitError as refusal:
        room = [] if lanes is not None else what_fits(model, board)
        if not room:
            raise
        raise CircuitError(
            f"{refusal}; with all else as it is {board.name} has room for {', or for '.join(room)}"
        ) from None


def what_fits(model: QuantizedTransformer, board: Board) -> list[str]:
    """Return what a board has room for, each with all the rest of a model as it is: the largest
    width, context, number of layers and bits of a weight; empty where no one of them is enough.
    """
    attention = model.blocks[0].attention
    heads, head, context = attention.num_heads, attention.head_dim, model.context_length
    bits = max(one.weight_bits for block in model.blocks for one in (block.attention.query, block.down))
    choices: dict[str, Iterable[tuple[int, dict[str, int]]]] = {
        "a width of {}": (
            (heads * size, {"head_dim": size}) for size in _below(head, STEP) if size % 2 == 0 or model.rotation is None
        ),
        "a context of {}": (
            (size, {"context_length": size}) for size in _below(context, max(1, context // CONTEXT_STEPS))
        ),
        "fewer layers, {}": ((size, {"layers": size}) for size in _below(len(model.blocks), 1)),
        "{}-bit weights": ((size, {"weight_bits": size}) for size in range(bits - 1, 1, -1)),
    }
    found = []
    for text, sizes in choices.items():
        size = next((size for size, change in sizes if fits(shrunk(model, **change), board)), None)
        if size is not None:
            found.append(text.format(size))
    return found


def _below(size: int, step: int) -> Iterator[int]:
    """Yield multiples of a step below a size, from the largest on, then 2 and 1."""
    yield from range((size - 1) // step * step, 0, -step)
    yield from (small for small in (2, 1) if small < min(size, step))


def fits(model: QuantizedTransformer, board: Board) -> bool:
    """Return whether a board has room for a machine of a model."""
    for plan in plans(model, board.multipliers):
        bits = plan.weight_element_bits * plan.weight_depth + plan.activation_bits * plan.cache_depth
        if plan.lanes * bits > BLOCK_RAM_BITS * board.block_rams:
            continue  # no need to make the machine
        try:
            if (
                luts_of(plan) <= LUT_SHARE * board.luts
                and requirements_of(Machine(plan)).block_rams <= board.block_rams
            ):
                return True
        except CircuitError:
            continue
    return False


def shrunk(
    model: QuantizedTransformer,
    *,
    head_dim: int | None = None,
    context_length: int | None = None,
    weight_bits: int | None = None,
    layers: int | None = None,
) -> QuantizedTransformer:
    """Return a model of smaller sizes with a part of another one's numbers, to ask what it needs.

    Args:
        model: The model.
        head_dim: Channels of a head; the number of heads stays, the width inside the feed-forward
            network shrinks in proportion.
        context_length: Positions.
        weight_bits: Of the matrices, at most.
        layers: Blocks.
    """
    first = model.blocks[0]
    heads, kv_heads = first.attention.num_heads, first.attention.core.num_kv_heads
    head, context = first.attention.head_dim, context_length or model.context_length
    head_dim = head_dim or head
    channels, hidden = heads * head_dim, max(1, first.down.columns * head_dim // head)

    def linear(one: Linear, rows: int, columns: int) -> Linear:
        bits = min(one.weight_bits, weight_bits or one.weight_bits)
        form = QFormat(bits, 0)
        weight = np.clip(one.weight[:rows, :columns], form.minimum_integer, form.maximum_integer)
        limit = columns << (bits + one.input.bits - 2)
        bias, fraction = np.clip(one.bias[:rows], -limit, limit), one.weight_fraction[:rows]
        return replace(one, weight=weight, weight_bits=bits, weight_fraction=fraction, bias=bias)

    def norm(one: Norm) -> Norm:
        parts: dict[str, Any] = {"shift": one.shift[:channels]} if isinstance(one, LayerNorm) else {}
        return replace(one, scale=one.scale[:channels], **parts)

    def entries(one: EmbeddingTable, rows: int | None = None) -> EmbeddingTable:
        return replace(one, weight=one.weight[:rows, :channels], weight_fraction=one.weight_fraction[:rows])

    table = model.rotation
    turned = table and RotationTable(table.cosine[:context, : head_dim // 2], table.sine[:context, : head_dim // 2])

    def block(one: Block) -> Block:
        attention, rotations = one.attention, one.attention.rotations
        if rotations is not None and turned is not None:
            rotations = replace(rotations[0], table=turned), replace(rotations[1], table=turned)
        return replace(
            one,
            attention_norm=norm(one.attention_norm),
            feed_forward_norm=norm(one.feed_forward_norm),
            attention=replace(
                attention,
                query=linear(attention.query, channels, channels),
                key=linear(attention.key, kv_heads * head_dim, channels),
                value=linear(attention.value, kv_heads * head_dim, channels),
                output=linear(attention.output, channels, channels),
                context_length=context,
                rotations=rotations,
            ),
            up=linear(one.up, hidden, channels),
            gate=one.gate and linear(one.gate, hidden, channels),
            down=linear(one.down, channels, hidden),
        )

    embedding = model.embedding
    position = embedding.position and entries(embedding.position, context)
    return replace(
        model,
        embedding=replace(embedding, token=entries(embedding.token), position=position),
        blocks=tuple(map(block, model.blocks[:layers])),
        final_norm=norm(model.final_norm),
        logits=linear(model.logits, model.vocab_size, channels),
    )
