# amaranth: UnusedElaboratable=no
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from hdl import CircuitError
from hdl.catalog.registry import CORES, SMALL
from hdl.tools.memory_check import MemoryIntent, memories, refuse_lost_block_rams, unmappable_memory
from hdl.tools.synthesis import synthesize_core


class Table(wiring.Component):
    """A memory in a submodule, read with a clock or, what no block RAM does, without; `reset`: the
    register that it is read into has a reset.
    """

    def __init__(self, *, clocked=True, style="block", depth=512, writable=False, reset=False):
        self.clocked, self.style, self.depth, self.writable, self.reset = clocked, style, depth, writable, reset
        super().__init__({"address": In(range(depth)), "data": Out(16), "written": In(16), "enable": In(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.inner = inner = Module()
        init = [] if self.writable else [(index * 2654435761 >> 7) & 0xFFFF for index in range(self.depth)]
        attrs = {} if self.style is None else {"ram_style": self.style}
        table = memory.Memory(shape=unsigned(16), depth=self.depth, init=init, attrs=attrs)
        inner.submodules.table = table
        port = table.read_port(domain="sync" if self.clocked and not self.reset else "comb")
        m.d.comb += port.addr.eq(self.address)
        m.d["sync" if self.reset else "comb"] += self.data.eq(port.data)
        if self.writable:
            write = table.write_port()
            m.d.comb += [write.addr.eq(self.address), write.data.eq(self.written), write.en.eq(self.enable)]
        return m


def convert(core):
    return rtlil.convert(core, name="core", emit_src=False)


def test_memories_are_found_by_path_with_what_they_were_meant_to_be():
    assert memories(convert(Table())) == {"core.inner.table": MemoryIntent("block", 8192, False)}
    written = memories(convert(Table(style=None, depth=300, writable=True)))
    assert written == {"core.inner.table": MemoryIntent(None, 4800, True)}
    found = memories(rtlil.convert(CORES["attention"].example(SMALL), name="core", emit_src=False))
    assert found["core.divide.lookup.table.words"].style == "block"
    assert found["core.words.bank_0"].style == "block"
    assert found["core.words.bank_0"].written


@pytest.mark.parametrize(
    ("style", "log", "message"),
    [
        ("block", "mapping memory core.inner.table via $__PDPW16KD_", None),
        ("block", "mapping memory core.inner.table via $__ICE40_RAM4K_", None),
        ("block", "mapping memory core.inner.table via $__TRELLIS_DPR16X4_", "became \\$__TRELLIS_DPR16X4_: read it"),
        ("block", "using FF mapping for memory core.inner.table", "was to be block RAM and became logic"),
        ("block", "mapping memory core.other via $__PDPW16KD_", "became nothing"),
        (None, "mapping memory core.inner.table via $__TRELLIS_DPR16X4_", None),
        (None, "using FF mapping for memory core.inner.table", "8,192 bits became logic: .*ram_style"),
        ("logic", "using FF mapping for memory core.inner.table", None),
    ],
)
def test_what_became_of_a_memory_is_held_against_its_style(style, log, message):
    text = convert(Table(style=style, writable=style is None))
    if message is None:
        refuse_lost_block_rams(text, f"...\n{log}\n...")
    else:
        with pytest.raises(CircuitError, match=rf"the memory core\.inner\.table .*{message}"):
            refuse_lost_block_rams(text, f"...\n{log}\n...")


def test_a_small_table_may_be_logic_where_nobody_said_otherwise():
    log = "using FF mapping for memory core.inner.table"
    refuse_lost_block_rams(convert(Table(style=None)), log)
    with pytest.raises(CircuitError, match="of 16,384 bits became logic"):
        refuse_lost_block_rams(convert(Table(style=None, depth=1024)), log)


def test_yosys_words_for_no_mapping_are_understood():
    assert unmappable_memory("a\nERROR: no valid mapping found for memory core.x.table\n") == "core.x.table"
    assert unmappable_memory("ERROR: something else") is None


@pytest.mark.parametrize(
    ("core", "message"),
    [
        (
            Table(clocked=False),
            "the memory core.inner.table was to be block RAM, but none on ulx3s-85f does what it needs",
        ),
        (Table(clocked=False, style=None, depth=1024), "the memory core.inner.table of 16,384 bits became logic"),
        (Table(reset=True), r"core: the block RAM inner\.table\S* resets its output, which reads zero on silicon"),
    ],
)
def test_a_memory_that_silicon_cannot_be_is_refused_by_synthesis(core, message, tmp_path):
    """The seeded bugs: a read port without a clock, which makes some thousand lookup tables of a
    block RAM, and a reset where ECP5 bears none.
    """
    with pytest.raises(CircuitError, match=message):
        synthesize_core(core, tmp_path / "core", progress=False)
    assert not (tmp_path / "core").exists()
