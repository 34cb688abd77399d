# amaranth: UnusedElaboratable=no
# (a memory is built here to ask for its latency)
"""What the machine's units share: rows of results, and tables that are read ahead."""

from typing import Any

from amaranth.hdl import Module, Shape, ShapeLike, Signal, Value
from amaranth.lib import data, memory

from ..parts.banked_memory import BankedMemory
from ..parts.registers import data_register

BLOCK_WORDS = 1024  # of a block RAM; a longer table stands in banks, so that it is as fast


def table_stages(words: int) -> int:
    """Return the cycles from an address to the entry of a table of so many words."""
    return BankedMemory(1, words, bank_words=BLOCK_WORDS).latency


def table_word(m: Module, name: str, shape: data.Layout | Shape, init: list, address: Value) -> Any:
    """Return the entry at an address, `table_stages(len(init))` cycles later."""
    if len(init) <= BLOCK_WORDS:
        m.submodules[name] = table = memory.Memory(shape=shape, depth=len(init), init=init)
        port = table.read_port()
        entry = data_register(shape, name=f"{name}_entry")
        m.d.comb += port.addr.eq(address)
        m.d.sync += entry.eq(port.data)
        return entry
    words = [shape.const(one).as_bits() if isinstance(shape, data.Layout) else one for one in init]
    m.submodules[name] = banks = BankedMemory(Shape.cast(shape).width, len(init), words, bank_words=BLOCK_WORDS)
    entry = Signal(shape, name=f"{name}_entry")
    m.d.comb += [banks.address.eq(address), Value.cast(entry).eq(banks.word)]
    return entry


def rows_of(shape: ShapeLike, rows: int) -> data.StructLayout:
    """Return the layout of R results that are there for one cycle."""
    return data.StructLayout({"valid": 1, "values": data.ArrayLayout(shape, rows)})


def each(target: data.View, source: data.View) -> list:
    """Assign an array's elements, whose widths may differ from the source's."""
    return [place.eq(value) for place, value in zip(target, source, strict=True)]
