"""What the machine's units share: rows of results, and tables that are read ahead."""

from typing import Any

from amaranth.hdl import Module, ShapeLike, Value
from amaranth.lib import data, memory

from ..parts.registers import data_register

TABLE_STAGES = 2  # a memory and the register behind it


def table_word(m: Module, name: str, shape: ShapeLike, init: list, address: Value) -> Any:
    """Return the entry at an address, `TABLE_STAGES` cycles later."""
    m.submodules[name] = table = memory.Memory(shape=shape, depth=len(init), init=init)
    port = table.read_port()
    entry = data_register(shape, name=f"{name}_entry")
    m.d.comb += port.addr.eq(address)
    m.d.sync += entry.eq(port.data)
    return entry


def rows_of(shape: ShapeLike, rows: int) -> data.StructLayout:
    """Return the layout of R results that are there for one cycle."""
    return data.StructLayout({"valid": 1, "values": data.ArrayLayout(shape, rows)})
