"""The inside of an elaborated core: what a proof's invariants speak of, by the names that the core
gave it.
"""

from dataclasses import dataclass

from amaranth.hdl import Const, Elaboratable, Fragment, Mux, Signal, Value
from amaranth.lib import data

from hdl.parts.amaranth_internals import assigned_signals, word_at

from .faults import Wrapped

UNNAMED = "$signal"  # what Amaranth calls all but the last of the signals that are made in one line


@dataclass(frozen=True)
class Slot:
    """A place that may hold a payload.

    Attributes:
        full: It holds one.
        payload: The payload, in the shape of its stream.
    """

    full: Value
    payload: Value

    @property
    def last(self) -> Value:
        """The slot is full, and its payload ends a row."""
        return self.full & self.payload.last


class Inside(Elaboratable):
    """A core, elaborated once, with its parts, signals and memories in reach.

    Names are paths of submodules, for instance `queue.memory`. A core with a bug around it
    (`Wrapped`) is looked into as the core alone would be.
    """

    def __init__(self, core: Elaboratable):
        self._whole = Fragment.get(core, None)
        self._root = self._whole.find_subfragment("core") if isinstance(core, Wrapped) else self._whole

    def elaborate(self, platform):
        """Return what was elaborated."""
        return self._whole

    def _fragment(self, path: str) -> Fragment:
        fragment = self._root
        for name in filter(None, path.split(".")):
            fragment = fragment.find_subfragment(int(name) if name.isdigit() else name)
        return fragment

    def part(self, path: str = ""):
        """Return the component at a path, as the core made it; without a path, the core."""
        return self._fragment(path).origins[0]

    def signal(self, path: str, number: int = 0) -> Signal:
        """Return the signal of this name that a core assigns to; of several, which may be ports of
        its parts, the one that was made `number`-th.

        Raises:
            LookupError: There is none.
        """
        parent, _, name = path.rpartition(".")
        found = [signal for signal in assigned_signals(self._fragment(parent)) if signal.name == name]
        if number >= len(found):
            raise LookupError(f"{len(found)} signals are called {path!r}")
        return found[number]

    def word(self, path: str, address: Value) -> Signal:
        """Return the word at an address of the memory at a path."""
        return word_at(self._fragment(path), address)

    def fifo(self, path: str, shape=None) -> list[Slot]:
        """Return the places of a `SyncFIFOBuffered`, the next to leave first; with a shape,
        payloads have it.
        """
        fifo = self.part(path)
        inner, consume = fifo.depth - 1, self.signal(f"{path}.consume")
        level = self.signal(f"{path}.inner_level")

        def viewed(bits):
            return bits if shape is None else data.View(shape, bits)

        slots = [Slot(fifo.r_rdy, viewed(fifo.r_data))]
        for place in range(inner):
            address = consume + place
            address = Mux(address >= inner, address - inner, address)
            slots.append(Slot(level > place, viewed(self.word(f"{path}.storage", address))))
        return slots

    def queue(self, path: str) -> list[Slot]:
        """Return the places of a `StreamQueue`, the next to leave first."""
        o = self.part(path).o
        shape = o.payload.shape()
        layout = shape if isinstance(shape, data.Layout) else None
        return [Slot(o.valid, o.payload), *self.fifo(f"{path}.memory", layout)]

    def register(self, path: str) -> list[Slot]:
        """Return the places of a `StreamRegister`, the next to leave first."""
        o = self.part(path).o
        return [Slot(o.valid, o.payload), Slot(self.signal(f"{path}.spare_valid"), self.signal(f"{path}.spare"))]


def pipeline(delay) -> list:
    """Return what is in the stages of a `Delay`, the next to leave first."""
    return delay.taps[:0:-1]


def how_many(bits) -> Value:
    """Return the number of ones among bits."""
    return sum((Value.cast(bit)[0] for bit in bits), start=Const(0, 1))
