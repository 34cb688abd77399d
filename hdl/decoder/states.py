"""What the machine keeps of each sequence, and the choice among sequences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from amaranth.hdl import Array, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data

from ..parts.registers import data_register
from .layout import Layout


@dataclass
class State:
    """A sequence's token and the rows that the engine multiplies for it.

    Attributes:
        number: Of the sequence.
        choice: The input's fields that came with the token.
        position: Of the token.
        slot, row: The same, as a place in the words of keys.
        vector: C registers: norms and contexts.
        hidden: Registers of queries and of hidden rows.
    """

    number: int
    choice: Any
    position: Signal
    slot: Signal
    row: Signal
    vector: list[Any] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)


def make_states(plan: Layout, choice: data.StructLayout) -> list[State]:
    """Make each sequence's registers."""
    element = signed(plan.activation_bits)
    size = max(plan.channels, plan.hidden_slices * plan.columns)
    states = []
    for number in range(plan.sequences):
        suffix = f"_{number}" if number else ""
        state = State(
            number,
            data_register(choice, name=f"choice{suffix}"),
            Signal(range(plan.context_length), name=f"position{suffix}"),
            Signal(range(plan.slots), name=f"slot{suffix}"),
            Signal(range(plan.cache_words), name=f"row{suffix}"),
        )
        state.vector = [data_register(element, name=f"vector{suffix}_{place}") for place in range(plan.channels)]
        state.hidden = [data_register(element, name=f"hidden{suffix}_{place}") for place in range(size)]
        states.append(state)
    return states


def take_token(m: Module, plan: Layout, state: State, taken: Value, choice: data.View, start: Value) -> None:
    """Keep a token that is taken, and find its position; `start` comes a cycle later."""
    place = {"position": state.position, "slot": state.slot, "row": state.row}
    following = {name: Signal.like(one, name=f"next_{one.name}") for name, one in place.items()}
    with m.If(taken):
        m.d.sync += state.choice.eq(choice)
        m.d.sync += [one.eq(Mux(choice.restart, 0, following[name])) for name, one in place.items()]
    with m.If(start):
        m.d.sync += [
            following["position"].eq(state.position + 1),
            following["slot"].eq(state.slot + 1),
            following["row"].eq(state.row),
        ]
        with m.If(state.slot == plan.slots - 1):
            m.d.sync += [following["slot"].eq(0), following["row"].eq(state.row + 1)]
        with m.If(state.position == plan.context_length - 1):
            m.d.sync += [one.eq(0) for one in following.values()]


def select(values: Sequence[Any], sequence: Value) -> Any:
    """Return a sequence's value."""
    return values[0] if len(values) == 1 else Array(values)[sequence]


def belongs(sequence: Value, number: int) -> Value:
    """Return whether a tag is a sequence's."""
    return sequence == number if len(sequence) else Const(1, 1)
