# amaranth: UnusedElaboratable=no
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hdl import CircuitError, ToolError
from hdl.catalog.registry import CORES, CoreEntry
from hdl.catalog.vectors import Vectors
from scripts import cli
from scripts.stages import PROJECT
from sim import netlist as netlist_module
from sim.netlist import (
    FAMILIES,
    NETLIST_FILE,
    NetlistPlan,
    NetlistResult,
    check_netlist,
    find_family,
    make_netlist,
    plan_netlist,
    simulate_netlist,
)

COUNT = 10


def netlist_of(entry, core, family, count=COUNT):
    return make_netlist(plan_netlist(entry, core, FAMILIES[family], count, seed=1))


@pytest.fixture(scope="module")
def netlists():
    """Cores with every kind of hard cell: a multiplier and block RAM, distributed RAM, and iCE40's
    block RAM and carry cells.
    """
    chosen = {"ecp5": "softmax", "ice40": "reciprocal"}
    return {family: netlist_of(CORES[name], CORES[name].example(), family) for family, name in chosen.items()}


@pytest.mark.parametrize(
    ("family", "cells"),
    [
        ("ecp5", {"MULT18X18D", "DP16KD", "TRELLIS_DPR16X4", "CCU2C", "PFUMX", "L6MUX21", "LUT4", "TRELLIS_FF"}),
        ("ice40", {"SB_RAM40_4K", "SB_CARRY", "SB_LUT4", "SB_DFFE", "SB_DFFESR"}),
    ],
)
def test_a_core_of_all_kinds_of_cells_gives_the_golden_results(family, cells, netlists, tmp_path):
    assert set(netlists[family].cells) >= cells
    simulate_netlist(netlists[family], tmp_path)


def changed(netlist, pattern, replacement, occurrence):
    """The netlist with one occurrence of a pattern replaced; with all of them where `occurrence` is
    None.
    """
    text = netlist.files[NETLIST_FILE]
    for number, match in reversed(list(enumerate(re.finditer(pattern, text, re.DOTALL)))):
        if occurrence in (None, number):
            text = text[: match.start()] + match.expand(replacement) + text[match.end() :]
    return dataclasses.replace(netlist, files={**netlist.files, NETLIST_FILE: text})


@pytest.mark.parametrize(
    ("family", "pattern", "replacement"),
    [
        ("ecp5", r"\.INIT0\(16'h....\)", ".INIT0(16'h0000)"),  # the truth table of a carry cell
        ("ecp5", r"\.INITVAL_(..)\(320'h\w*\)", r".INITVAL_\1(320'h0)"),  # the reciprocals' table
        ("ecp5", r"(MULT18X18D .*?\.A0\()[^)]*\)", r"\g<1>1'h1)"),  # an operand's bit
        ("ecp5", r"(TRELLIS_FF .*?\.DI\()[^)]*\)", r"\g<1>1'h1)"),  # what a flip-flop takes
        ("ice40", r"\.LUT_INIT\(16'h....\)", ".LUT_INIT(16'h0000)"),  # a lookup table
        ("ice40", r"\.INIT_(.)\(256'h\w*\)", r".INIT_\1(256'h0)"),  # the reciprocals' table
    ],
)
def test_one_wrong_cell_fails(family, pattern, replacement, netlists, tmp_path):
    netlist = netlists[family]
    places = len(re.findall(pattern, netlist.files[NETLIST_FILE], re.DOTALL))
    # A cell may make no difference to a few inputs, not every one; of a table few words are read.
    tried = [None] if "INIT_" in pattern or "INITVAL" in pattern else sorted({0, places // 3, 2 * places // 3})
    for occurrence in tried:
        try:
            simulate_netlist(changed(netlist, pattern, replacement, occurrence), tmp_path / str(occurrence))
        except ToolError as error:
            verdict = f"{netlist.core} as a netlist for {family}: the test bench of {netlist.core} says: FAIL: "
            assert verdict in str(error)
            return
    pytest.fail(f"{places} places could be changed, and none of those tried made a difference")


class Store(wiring.Component):
    """Memories of every width that ECP5 has, with byte enables where it has them: one word written,
    another read, each cycle.
    """

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
    netlist = netlist_of(entry, Store(), "ecp5", 300)
    assert netlist.cells["DP16KD"] == len(Store.SHAPES)
    text = netlist.files[NETLIST_FILE]
    assert {int(width) for width in re.findall(r"DATA_WIDTH_A\(32'd(\d+)\)", text)} >= {1, 2, 4, 9, 18, 36}
    simulate_netlist(netlist, tmp_path, stall=10)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--family", "ecp9"], "there is no family 'ecp9' to simulate netlists of; choose one of ecp5, ice40"),
        (["--only", "sofmax"], "there is no core 'sofmax'"),
        (["--vectors", "0"], "--vectors must be at least 1, not 0"),
        (["--jobs", "-2"], "--jobs must be at least 1, not -2"),
        (["--seed", "-1"], "--seed must not be negative, not -1"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys):
    assert cli.main(["netlist", *words]) == 1
    assert message in capsys.readouterr().err
    with pytest.raises(CircuitError):
        find_family("ecp9")


class Passing:
    """Stands in for `check_netlist`: what it was asked for, and what it shall raise for a
    family.
    """

    def __init__(self, failure=None):
        self.calls, self.failure = [], failure

    def __call__(self, plan, directory, tick):
        self.calls.append((plan.core, plan.family.name, str(directory)))
        if self.failure is not None and plan.family.name == "ecp5":
            raise self.failure
        return NetlistResult(
            plan.core, plan.family.name, {"SB_LUT4": 3, "SB_DFFE": 4}, plan.results, plan.seed, plan.simulator, 0.1, ""
        )


def test_a_netlist_that_fails_does_not_keep_the_others_from_running(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(netlist_module, "check_netlist", checked := Passing(ToolError("wrong")))
    figures = tmp_path / "figures.json"
    assert cli.main(["netlist", "--only", "uart", "--only", "argmax", "--vectors", "3", "--json", str(figures)]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"uart +ice40 +3 +4 +– +3 +0\.1\nargmax +ice40", out)
    assert "uart, ecp5: wrong\nerror: argmax, ecp5: wrong" in err
    assert "2 of 4 netlists, 6 results (seed 0), every one the golden model's" in out
    written = json.loads(figures.read_text())
    assert [result["core"] for result in written["netlists"]] == ["uart", "argmax"]
    assert written["failures"] == ["uart, ecp5: wrong", "argmax, ecp5: wrong"]
    assert len(checked.calls) == 4
    assert cli.main(["netlist", "--only", "uart", "--family", "ecp5"]) == 1
    assert "0 of 1 netlists, 0 results (seed 0); " in capsys.readouterr().out


def test_figures_that_cannot_be_written_are_an_error_in_a_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(netlist_module, "check_netlist", Passing())
    assert cli.main(["netlist", "--only", "uart", "--json", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}: Is a directory\n"


def test_a_failure_that_is_none_of_a_tool_or_a_circuit_is_not_hidden(monkeypatch):
    monkeypatch.setattr(netlist_module, "check_netlist", Passing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["netlist", "--only", "uart", "--vectors", "3"])


def test_ctrl_c_ends_the_tools_and_keeps_what_was_checked(tmp_path):
    """One netlist has passed and another is under way when it comes; its tool is gone, and nothing
    half written is left.
    """
    words = ["--only", "stream-register", "--only", "attention", "--family", "ecp5", "--vectors", "3"]
    kept = tmp_path / "build" / "netlists"
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "netlist", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_for(lambda: list(kept.glob("*.json")), process)
            wait_for(lambda: list(tmp_path.glob("tmp*/core.il")), process)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "stopped: what was checked is kept" in err
    assert [path.name for path in kept.iterdir()] == ["stream-register-ecp5.json"]
    assert not list(tmp_path.glob("tmp*"))  # the tools' scratch directories, gone with the tools


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_was_checked_is_not_checked_again_unless_something_changed(tmp_path, monkeypatch):
    entry, family = CORES["stream-register"], FAMILIES["ice40"]

    def plan(count=20, seed=1):
        return plan_netlist(entry, entry.example(), family, count, seed)

    first = check_netlist(plan(), tmp_path)
    assert (first.results, first.cells["SB_DFFESR"] > 0) == (20, True)
    kept = tmp_path / "stream-register-ice40.json"
    monkeypatch.setattr(netlist_module, "make_netlist", lambda plan, tick: pytest.fail("synthesized again"))
    assert check_netlist(plan(), tmp_path) == first
    others = [
        plan(count=21),
        plan(seed=2),
        dataclasses.replace(plan(), circuit=plan().circuit + "\n"),
        dataclasses.replace(plan(), family=dataclasses.replace(family, synthesis="synth_ice40 -noabc")),
        dataclasses.replace(plan(), simulator={"verilator": "icarus", "icarus": "verilator"}[plan().simulator]),
    ]
    assert len({first.inputs_sha256, *(other.inputs_sha256 for other in others)}) == 6
    monkeypatch.setattr(netlist_module, "tool_version", lambda name: "0.0")
    others.append(plan())
    for other in others:
        with pytest.raises(pytest.fail.Exception, match="synthesized again"):
            check_netlist(other, tmp_path)
    monkeypatch.undo()
    kept.write_text(kept.read_text()[:40])  # as no interruption leaves it
    assert check_netlist(plan(), tmp_path).inputs_sha256 == first.inputs_sha256


def test_a_netlist_that_fails_leaves_its_files_and_no_result(tmp_path, monkeypatch):
    entry = CORES["stream-register"]
    plan = plan_netlist(entry, entry.example(), FAMILIES["ice40"], 3, seed=1)
    wrong = f"{int(plan.bench['o.mem'][0], 16) ^ 1:x}{plan.bench['o.mem'][1:]}"
    with pytest.raises(ToolError, match=r"stream-register-ice40-failed") as raised:
        check_netlist(dataclasses.replace(plan, bench={**plan.bench, "o.mem": wrong}), tmp_path)
    assert "FAIL: " in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["stream-register-ice40-failed"]
    assert (tmp_path / "stream-register-ice40-failed" / NETLIST_FILE).read_text().startswith("/* Generated by Yosys")
    check_netlist(plan, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stream-register-ice40.json"]


class Table(wiring.Component):
    """A memory that is to be block RAM, read and written in ways that few block RAMs bear."""

    def __init__(self, *, clocked=True, reset=False, writers=0, empty=False):
        self.clocked, self.reset, self.writers, self.empty = clocked, reset, writers, empty
        super().__init__({"address": In(9), "data": Out(16), "written": In(16), "enable": In(4)})

    def elaborate(self, platform):
        m = Module()
        init = [] if self.writers or self.empty else [index * 2654435761 >> 7 & 0xFFFF for index in range(512)]
        m.submodules.table = table = memory.Memory(
            shape=unsigned(16), depth=512, init=init, attrs={"ram_style": "block"}
        )
        port = table.read_port(domain="sync" if self.clocked and not self.reset else "comb")
        m.d["sync" if self.reset else "comb"] += self.data.eq(port.data)
        m.d.comb += port.addr.eq(self.address)
        for index in range(self.writers):
            write = table.write_port()
            m.d.comb += [
                write.addr.eq(self.address + index),
                write.data.eq(self.written),
                write.en.eq(self.enable[index]),
            ]
        return m


def cells_of(core, family):
    text = rtlil.convert(core, name="core", emit_src=False)
    return make_netlist(NetlistPlan("core", FAMILIES[family], text, {}, 0, 0, "verilator")).cells


@pytest.mark.parametrize("family", FAMILIES)
def test_a_memory_that_cannot_be_block_ram_is_refused(family):
    """An asynchronous read, more write ports than a block RAM has, nothing in it; one write port is
    what each of them has.
    """
    message = f"the memory core.table was to be block RAM, but none of {family} does what it needs"
    for core in (Table(clocked=False), Table(writers=3)):
        with pytest.raises(CircuitError, match=message):
            cells_of(core, family)
    with pytest.raises(CircuitError, match=r"the memory core\.table was to be block RAM and became nothing"):
        cells_of(Table(empty=True), family)
    block = {"ecp5": "DP16KD", "ice40": "SB_RAM40_4K"}[family]
    assert cells_of(Table(writers=1), family)[block] == {"ecp5": 1, "ice40": 2}[family]


def test_a_reset_of_the_output_is_refused_where_it_is_the_block_rams_own():
    """On iCE40, whose block RAM knows no reset, Yosys makes it of logic behind the output."""
    with pytest.raises(CircuitError, match=r"core: the block RAM .* resets its output, which reads zero"):
        cells_of(Table(reset=True), "ecp5")
    cells = cells_of(Table(reset=True), "ice40")
    assert cells["SB_RAM40_4K"] == 2
    assert cells["SB_LUT4"] == 16


@pytest.mark.campaign
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CORES)
def test_every_netlist_gives_the_golden_results(name, family, tmp_path):
    entry = CORES[name]
    print(check_netlist(plan_netlist(entry, entry.example(), FAMILIES[family], 60, seed=2), tmp_path))
