"""How a whole decoder is laid out on the machine, and what cannot be built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fixedpoint import Attention, QuantizedTransformer
from fixedpoint.transformer import Block

from ..parts.parameter_checks import check_whole
from .layout import Layout, Part


@dataclass(frozen=True, eq=False)
class Plan(Layout):
    """A model on a machine of so many lanes.

    Attributes:
        model: What is computed.
        lanes: Multipliers of the engine L.
        norm_lanes: Elements that a norm gives a cycle.
        context_lanes: Channels that attention's division gives a cycle.
        sampling: Whether tokens may be sampled at a temperature; else always the likeliest.
        sequences: 1, or 2 that share the machine, each with its own keys and values.
        context: Positions that keys and values have room for; None for the model's.
    """

    model: QuantizedTransformer
    lanes: int
    norm_lanes: int = 4
    context_lanes: int = 4
    sampling: bool = False
    sequences: int = 1
    context: int | None = None

    def __post_init__(self) -> None:
        """Raise a CircuitError, with all reasons, for what the machine cannot do."""
        check_whole("norm_lanes", self.norm_lanes)
        check_whole("sequences", self.sequences, 1, 2, "so many can be interleaved")
        if self.context is not None:
            check_whole("context", self.context, 1, self.model.context_length, "the model's")
        self._check_lanes()

    def _refusals(self) -> Iterator[str]:
        yield from super()._refusals()
        channels = self.channels
        if self.lanes % channels and channels % self.lanes:
            return
        rows = self.rows
        if channels % self.norm_lanes:
            yield f"norm_lanes of {self.norm_lanes} must divide {channels} channels"
        elif rows % self.norm_lanes and self.norm_lanes % rows:
            yield f"norm_lanes of {self.norm_lanes} and {rows} rows a word must divide one another"
        # A sequence's row may follow the other's as fast as its matrix gives it.
        if self.sequences > 1 and self.norm_lanes * channels < rows * self.columns:
            yield f"norm_lanes of {self.norm_lanes} are too few for two sequences with {rows} rows a word"

    @property
    def first(self) -> Block:
        """The first block; all have its sizes."""
        return self.model.blocks[0]

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """Of all layers, which have the same sizes."""
        return tuple(block.attention for block in self.model.blocks)

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward network."""
        return self.first.down.columns

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate."""
        return self.first.gate is not None

    @property
    def hidden_slices(self) -> int:
        """Tiles of columns of the last matrix of a block."""
        return self.tile.slices(self.hidden)

    @property
    def context_length(self) -> int:
        """Positions T of a sequence."""
        return self.model.context_length if self.context is None else self.context

    @cached_property
    def norms(self) -> tuple[Any, ...]:
        """All LayerNorms, or RMSNorms, in order."""
        pairs = ((block.attention_norm, block.feed_forward_norm) for block in self.model.blocks)
        return (*(norm for pair in pairs for norm in pair), self.model.final_norm)

    def _parts(self) -> Iterator[Part]:
        for index, block in enumerate(self.model.blocks):
            prefix = f"blocks.{index}."
            yield from self._attention_parts(index, prefix + "attention.")
            gate = () if block.gate is None else (block.gate,)
            yield prefix + "feed_forward.up", (*gate, block.up), None, None
            yield prefix + "feed_forward.down", (block.down,), None, None
        yield "logits", (self.model.logits,), None, None
