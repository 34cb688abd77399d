"""The internals that a core declares, and the contents of its queues and memories."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from amaranth.hdl import Const, Elaboratable, Fragment, Mux, Value
from amaranth.lib import data
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered

from hdl.parts.amaranth_internals import fifo_state, word_at
from hdl.parts.dot_product import Delay
from hdl.parts.internals import Internals
from hdl.parts.stream_parts import CreditQueue, StreamQueue, StreamRegister

from .seeded_bugs import Wrapped

FIFO: TypeAlias = SyncFIFO | SyncFIFOBuffered | CreditQueue


@dataclass(frozen=True)
class Slot:
    """A place that may hold a payload.

    Attributes:
        full: It holds one.
        payload: The payload, in the shape of its stream.
    """

    full: Value
    payload: Any

    @property
    def last(self) -> Value:
        """The slot is full, and its payload ends a row."""
        return self.full & self.payload.last


class ElaboratedCore(Elaboratable):
    """A core, elaborated once; invariants may then read its internals and memories.

    Attributes:
        core: The core itself, also where a seeded bug is wrapped around it.
        internals: What the core declares.
    """

    def __init__(self, core: Elaboratable):
        self._whole = Fragment.get(core, None)
        self.core = core.core if isinstance(core, Wrapped) else core
        self.internals = getattr(self.core, "internals", Internals())

    def elaborate(self, platform: object) -> Fragment:
        """Return what was elaborated."""
        return self._whole

    def fragment(self, part: Elaboratable) -> Fragment:
        """Return what a part of the core was elaborated to.

        Raises:
            LookupError: It is no part of the core.
        """
        found = [self._whole]
        for fragment in found:  # grows meanwhile
            if any(origin is part for origin in fragment.origins or ()):
                return fragment
            found += [inner for inner, *_ in fragment.subfragments]
        raise LookupError(f"the {type(part).__name__} is no part of the elaborated {type(self.core).__name__}")

    def fifo_state(self, fifo: FIFO) -> Internals:
        """Return `inner_level`, `produce` and `consume` of a FIFO's memory."""
        return fifo.internals if isinstance(fifo, CreditQueue) else fifo_state(self.fragment(fifo))

    def fifo_slots(self, fifo: SyncFIFOBuffered, shape: data.Layout | None = None) -> list[Slot]:
        """Return the places of a buffered FIFO, the next to leave first; payloads have `shape`."""
        inner, state = fifo.depth - 1, self.fifo_state(fifo)
        storage = self.fragment(fifo).find_subfragment("storage")

        def viewed(bits: Value) -> Any:
            return bits if shape is None else data.View(shape, bits)

        slots = [Slot(fifo.r_rdy, viewed(fifo.r_data))]
        for place in range(inner):
            address = state.consume + place
            address = Mux(address >= inner, address - inner, address)
            slots.append(Slot(state.inner_level > place, viewed(word_at(storage, address))))
        return slots

    def queue_slots(self, queue: StreamQueue) -> list[Slot]:
        """Return the places of a queue, the next to leave first."""
        shape = queue.o.payload.shape()
        layout = shape if isinstance(shape, data.Layout) else None
        return [Slot(queue.o.valid, queue.o.payload), *self.fifo_slots(queue.internals.memory, layout)]


def register_slots(register: StreamRegister) -> list[Slot]:
    """Return the places of a stream register, the next to leave first."""
    o, internals = register.o, register.internals
    return [Slot(o.valid, o.payload), Slot(internals.spare_valid, internals.spare)]


def stages(delay: Delay) -> list[Any]:
    """Return what is in the stages of a delay, the next to leave first."""
    return delay.taps[:0:-1]


def count_ones(bits: Iterable[Any]) -> Value:
    """Return the number of ones among bits."""
    return sum((Value.cast(bit)[0] for bit in bits), start=Const(0, 1))


def count_full(slots: Iterable[Slot]) -> Value:
    """Return the number of slots that hold a payload."""
    return count_ones(slot.full for slot in slots)
