"""What the project uses of Amaranth that Amaranth does not export; no other file names any of it.

Checked with Amaranth 0.5.10. A later version may move or rename it: then this file changes, and
the tests of payloads (tests/hdl/parts) and proofs (tests/sim/proofs) say whether it still works.
"""

from collections.abc import Iterable, Iterator

from amaranth.hdl import Const, Fragment, Shape, Signal, Value
from amaranth.hdl._ast import Assign, Switch
from amaranth.hdl._mem import MemoryInstance
from amaranth.utils import ceil_log2

from .internals import Internals


def assignments(fragment: Fragment) -> Iterator[Assign]:
    """Yield a fragment's assignments (`lhs`, `rhs`), those under conditions too, in its order."""
    yield from _assignments(list(fragment.statements.values()))


def _assignments(nested: Iterable[object]) -> Iterator[Assign]:
    for one in nested:
        if isinstance(one, Assign):
            yield one
        elif isinstance(one, Switch):
            yield from _assignments(statements for _, statements, _ in one.cases)
        elif isinstance(one, Iterable):
            yield from _assignments(one)


def fifo_state(fifo: Fragment) -> Internals:
    """Return the level of the memory of an elaborated `SyncFIFO` or `SyncFIFOBuffered` and the
    addresses of its next write and read: `inner_level`, `produce` and `consume`.

    Raises:
        LookupError: Amaranth's FIFO has other names for them.
    """
    signals = {signal.name: signal for block in fifo.statements.values() for signal in block._lhs_signals()}
    level = "inner_level" if "inner_level" in signals else "level"
    names = {"inner_level": level, "produce": "produce", "consume": "consume"}
    if missing := set(names.values()) - set(signals):
        raise LookupError(f"Amaranth's FIFO assigns to no {', '.join(sorted(missing))}, but to {', '.join(signals)}")
    return Internals(**{own: signals[name] for own, name in names.items()})


def word_at(memory: Fragment, address: Value) -> Signal:
    """Return the word at an address of a memory, by a further read port, which has no clock.

    Raises:
        LookupError: The fragment is no memory.
    """
    if not isinstance(memory, MemoryInstance):
        raise LookupError(f"a {type(memory).__name__} is no memory")
    word = Signal(Shape.cast(memory._data.shape).width)
    address = address[: ceil_log2(memory._data.depth)]
    memory.read_port(domain="comb", addr=address, data=word, en=Const(1, 1), transparent_for=())
    return word
