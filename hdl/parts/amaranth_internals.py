"""What the project uses of Amaranth that Amaranth does not export; no other file names any of it.

Checked with Amaranth 0.5.10.  A later version may move or rename it: then this file changes, and
the tests of payloads (tests/hdl/parts) and proofs (tests/sim/proofs) say whether it still works.
"""

from collections.abc import Iterable, Iterator

from amaranth.hdl import Const, Fragment, Shape, Signal, Value
from amaranth.hdl._ast import Assign, Switch
from amaranth.hdl._mem import MemoryInstance
from amaranth.utils import ceil_log2


def assignments(fragment: Fragment) -> Iterator[Assign]:
    """Yield a fragment's assignments (`lhs`, `rhs`), those under conditions too, in its order."""
    yield from _assignments(list(fragment.statements.values()))


def _assignments(nested) -> Iterator[Assign]:
    for one in nested:
        if isinstance(one, Assign):
            yield one
        elif isinstance(one, Switch):
            yield from _assignments(statements for _, statements, _ in one.cases)
        elif isinstance(one, Iterable):
            yield from _assignments(one)


def assigned_signals(fragment: Fragment) -> list[Signal]:
    """Return the signals that a fragment assigns to, in the order in which they were made."""
    found = {signal.duid: signal for block in fragment.statements.values() for signal in block._lhs_signals()}
    return [found[number] for number in sorted(found)]


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


def write_address(memory: MemoryInstance) -> Value:
    """Return the address at the first write port of a memory."""
    return memory._write_ports[0]._addr


def read_address(memory: MemoryInstance) -> Value:
    """Return the address at the first read port of a memory."""
    return memory._read_ports[0]._addr
