# amaranth: UnusedElaboratable=no
import dataclasses
import re

import pytest
from amaranth.hdl import Module, Signal, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl import CircuitError, ToolError
from hdl.registry import CORES, CoreEntry
from hdl.vectors import Vectors
from scripts import netlist as command
from sim.netlist import FAMILIES, NETLIST_FILE, check_netlist, find_family, make_netlist, simulate_netlist

COUNT = 10


@pytest.fixture(scope="module")
def softmax():
    """A core with a multiplier and a block RAM, as ECP5 cells."""
    entry = CORES["softmax"]
    return make_netlist(entry, entry.example(), FAMILIES["ecp5"], COUNT, seed=1)


def test_a_core_of_ecp5_cells_gives_the_golden_results(softmax, tmp_path):
    assert softmax.cells["MULT18X18D"] >= 1
    assert softmax.cells["DP16KD"] >= 1
    simulate_netlist(softmax, tmp_path)


def test_a_core_of_ice40_cells_gives_the_golden_results():
    result = check_netlist(CORES["exponential"], FAMILIES["ice40"], COUNT, seed=1)
    assert result.results == COUNT
    assert result.cells["SB_LUT4"] > 20


def changed(netlist, pattern, replacement, occurrence):
    """The netlist with one occurrence of a pattern replaced; with all of them where `occurrence` is None."""
    text = netlist.files[NETLIST_FILE]
    for number, match in reversed(list(enumerate(re.finditer(pattern, text, re.DOTALL)))):
        if occurrence in (None, number):
            text = text[: match.start()] + match.expand(replacement) + text[match.end() :]
    return dataclasses.replace(netlist, files={**netlist.files, NETLIST_FILE: text})


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"\.INIT0\(16'h....\)", ".INIT0(16'h0000)"),  # the truth table of a carry cell
        (r"\.INITVAL_(..)\(320'h\w*\)", r".INITVAL_\1(320'h0)"),  # the reciprocals' table
        (r"(MULT18X18D .*?\.A0\()[^)]*\)", r"\g<1>1'h1)"),  # an operand's bit
        (r"(TRELLIS_FF .*?\.DI\()[^)]*\)", r"\g<1>1'h1)"),  # what a flip-flop takes
    ],
)
def test_one_wrong_cell_fails(softmax, pattern, replacement, tmp_path):
    places = len(re.findall(pattern, softmax.files[NETLIST_FILE], re.DOTALL))
    # A cell may make no difference to a few inputs, not every one; of a table few words are read.
    tried = [None] if "INITVAL" in pattern else sorted({0, places // 3, 2 * places // 3})
    for occurrence in tried:
        try:
            simulate_netlist(changed(softmax, pattern, replacement, occurrence), tmp_path / str(occurrence))
        except ToolError as error:
            assert "softmax as a netlist for ecp5: the test bench of softmax says: FAIL: " in str(error)
            return
    pytest.fail(f"{places} places could be changed, and none of those tried made a difference")


class Store(wiring.Component):
    """Memories of every width that ECP5 has, with byte enables where it has them: one word written, another read, each cycle."""

    SHAPES = ((1024, 1, 1), (600, 2, 2), (512, 4, 4), (300, 9, 9), (200, 18, 9), (100, 36, 9))

    def __init__(self):
        self.widths = [width for _, width, _ in self.SHAPES]
        enables = sum(width // granularity for _, width, granularity in self.SHAPES)
        request = data.StructLayout({"read": 10, "write": 10, "enable": enables, "data": sum(self.widths)})
        super().__init__({"i": In(stream.Signature(request)), "o": Out(stream.Signature(sum(self.widths)))})

    def elaborate(self, platform):
        m = Module()
        move = ~self.o.valid | self.o.ready
        m.d.comb += self.i.ready.eq(move)
        with m.If(move):
            m.d.sync += self.o.valid.eq(self.i.valid)
        bit, enable = 0, 0
        for depth, width, granularity in self.SHAPES:
            init = [index * 0x9E3779B1 >> 3 & (1 << width) - 1 for index in range(depth)]
            store = memory.Memory(shape=unsigned(width), depth=depth, init=init, attrs={"ram_style": "block"})
            m.submodules += store
            lanes = width // granularity
            write, read = store.write_port(granularity=granularity if lanes > 1 else None), store.read_port()
            chosen = self.i.payload.enable[enable : enable + lanes]
            m.d.comb += [
                write.addr.eq(self.i.payload.write),
                write.data.eq(self.i.payload.data[bit : bit + width]),
                write.en.eq((self.i.valid & move).replicate(lanes) & chosen),
                read.addr.eq(self.i.payload.read),
                read.en.eq(self.i.valid & move),
                self.o.payload[bit : bit + width].eq(read.data),
            ]
            bit, enable = bit + width, enable + lanes
        return m


def store_vectors(core, generator, count):
    """Few addresses, never both ports at one: what is read then is left open by the hardware."""
    shapes = Store.SHAPES
    memories = [[index * 0x9E3779B1 >> 3 & (1 << width) - 1 for index in range(depth)] for depth, width, _ in shapes]
    columns, results = {name: [] for name in ("read", "write", "enable", "data")}, []
    total = sum(width for _, width, _ in shapes)
    for _ in range(count):
        read, write = (int(address) for address in generator.permutation(100)[:2] // generator.choice([1, 8]))
        write = (write + 1) % 100 if write == read else write
        lanes = sum(width // granularity for _, width, granularity in shapes)
        enable, word = int(generator.integers(1 << lanes)), int.from_bytes(generator.bytes(9), "little") % (1 << total)
        for name, value in (("read", read), ("write", write), ("enable", enable), ("data", word)):
            columns[name].append(value)
        result, bit, place = 0, 0, 0
        for store, (_, width, granularity) in zip(memories, shapes, strict=True):
            result |= store[read] << bit
            for lane in range(width // granularity):
                if enable >> place & 1:
                    mask = (1 << granularity) - 1 << lane * granularity
                    store[write] = store[write] & ~mask | word >> bit & mask
                place += 1
            bit += width
        results.append(result)
    return Vectors({"i": columns}, {"o": results})


def test_memories_of_all_widths_become_block_rams_that_keep_what_was_written(tmp_path):
    entry = CoreEntry("store", lambda model, layer: Store(), store_vectors, "", "")
    netlist = make_netlist(entry, Store(), FAMILIES["ecp5"], 300, seed=1)
    assert netlist.cells["DP16KD"] == len(Store.SHAPES)
    text = netlist.files[NETLIST_FILE]
    assert {int(width) for width in re.findall(r"DATA_WIDTH_A\(32'd(\d+)\)", text)} >= {1, 2, 4, 9, 18, 36}
    simulate_netlist(netlist, tmp_path, stall=10)


class ResetRead(wiring.Component):
    """A register with a reset directly behind a read port, which Yosys makes the block RAM's own."""

    i: In(stream.Signature(9))
    o: Out(stream.Signature(16))

    def elaborate(self, platform):
        m = Module()
        m.submodules.table = table = memory.Memory(
            shape=unsigned(16), depth=512, init=range(1, 513), attrs={"ram_style": "block"}
        )
        port = table.read_port(domain="comb")
        word = Signal(16)
        m.d.comb += [
            port.addr.eq(self.i.payload),
            self.i.ready.eq(~self.o.valid | self.o.ready),
            self.o.payload.eq(word),
        ]
        with m.If(self.i.ready):
            m.d.sync += [self.o.valid.eq(self.i.valid), word.eq(port.data)]
        return m


def test_a_block_ram_that_resets_its_output_is_refused():
    def vectors(core, generator, count):
        addresses = generator.integers(0, 512, count)
        return Vectors({"i": addresses}, {"o": addresses + 1})

    entry = CoreEntry("reset-read", lambda model, layer: ResetRead(), vectors, "", "")
    with pytest.raises(CircuitError, match=r"reset-read: the block RAM .* resets its output, which reads zero"):
        make_netlist(entry, ResetRead(), FAMILIES["ecp5"], COUNT, seed=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--family", "ecp9"], "there is no family 'ecp9' to simulate netlists of; choose one of ecp5, ice40"),
        (["--only", "sofmax"], "there is no core 'sofmax'"),
    ],
)
def test_wrong_names_are_refused(words, message, capsys):
    assert command.main(words) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(CircuitError):
        find_family("ecp9")


def test_a_netlist_that_fails_does_not_keep_the_others_from_running(monkeypatch, capsys):
    def fail(entry, family, count, seed):
        if family.name == "ecp5":
            raise ToolError("wrong")
        return command.NetlistResult(entry.name, family.name, {"SB_LUT4": 3}, count, seed, 0.1)

    monkeypatch.setattr(command, "check_netlist", fail)
    assert command.main(["--only", "uart", "--vectors", "3"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"uart +ice40 +3 ", out)
    assert "uart, ecp5: wrong" in err


@pytest.mark.campaign
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CORES)
def test_every_netlist_gives_the_golden_results(name, family):
    result = check_netlist(CORES[name], FAMILIES[family], 60, seed=2)
    print(result)
