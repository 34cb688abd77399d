# amaranth: UnusedElaboratable=no
import json
from functools import cache

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from test_hdl_multiplier import ECP5, OnECP5
from verilog_benches import EVERY_VERILOG_SIMULATOR, counts, run_bench

from hdl.parts.copies import Copies
from hdl.tools.synthesis import READ_SCRIPT
from hdl.tools.toolchain import find_tool, run_tool
from sim.netlist import FAMILIES, cell_models
from sim.simulators.runner import to_verilog

MOVES = 2000

TEST_BENCH = """
`timescale 1ns / 1ps
module bench;
    reg clk = 0, rst = 0;
    reg [{bits}-1:0] i = 0;
    wire [{count}*{bits}-1:0] from_cells, from_reference;
    integer moves = 0, differences = 0, wrong = 0, changes = 0, seed = 1;
    reg [{bits}-1:0] earlier;
    cell_top cell_top (.clk(clk), .rst(rst), .i(i), .o(from_cells));
    reference_top reference_top (.clk(clk), .rst(rst), .i(i), .o(from_reference));
    initial begin
        #1 if (from_cells !== 0 || from_reference !== 0) differences = differences + 1;  // as after power-up
        repeat ({moves}) begin
            earlier = i; i = $random(seed); rst = $random(seed) % 4 == 0;
            #3 if (from_cells !== from_reference) differences = differences + 1;  // before the edge, too
            #1 clk = 1;
            #4 if (from_cells !== from_reference) differences = differences + 1;
            if (from_cells !== {{{count}{{i}}}}) wrong = wrong + 1;
            if (i !== earlier) changes = changes + 1;
            moves = moves + 1;
            #1 clk = 0;
        end
        $display("%0d %0d %0d %0d", moves, differences, wrong, changes);
        $finish;
    end
endmodule
"""


@cache
def both(bits, count):
    """Verilog of the cells and of their reference."""
    cells, reference = (to_verilog(kind(Copies(bits, count))) for kind in (OnECP5, lambda copies: copies))
    assert cells.count("TRELLIS_FF #(") == bits * count and "TRELLIS_FF" not in reference
    return {
        "cells.v": cells.replace("\\top", "\\cell_top").replace("module top", "module cell_top"),
        # An `always @*` that depends on registers alone would not run before one of them changes.
        "reference.v": reference.replace("module top", "module reference_top").replace("always @*", "always_comb"),
    }


def compare(bits, count, directory, right="", wrong="", simulator="verilator"):
    """Times at which cells and reference differ, and clock edges after which the cells are not
    copies of the input, in any run.
    """
    sources = dict(both(bits, count))
    assert right in sources["cells.v"]
    sources["cells.v"] = sources["cells.v"].replace(right, wrong, 1)
    sources |= {
        "model.v": cell_models(FAMILIES["ecp5"]),
        "bench.v": TEST_BENCH.format(bits=bits, count=count, moves=MOVES),
    }
    moves, differences, not_copies, changes = zip(*counts(run_bench(directory, sources, simulator)), strict=True)
    assert set(moves) == {MOVES} and min(changes) > MOVES // 4
    return max(differences), max(not_copies)


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
@pytest.mark.parametrize(("bits", "count"), [(1, 1), (1, 5), (3, 4)])
def test_the_cells_and_their_reference_agree_whatever_the_reset_does(bits, count, simulator, tmp_path):
    assert compare(bits, count, tmp_path, simulator=simulator) == (0, 0)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('.REGSET("RESET")', '.REGSET("SET")'),
        ('.CLKMUX("CLK")', '.CLKMUX("INV")'),
        ('.CEMUX("1")', '.CEMUX("0")'),
        (".LSR(1'h0)", ".LSR(1'h1)"),
        (".DI(i[0])", ".DI(i[1])"),
    ],
)
def test_other_cells_are_found(right, wrong, tmp_path):
    differences, _ = compare(3, 4, tmp_path, right, wrong)
    assert differences > 0


class Readers(wiring.Component):
    """Copies, or registers written down in their place, with a register behind each that makes them
    needed.
    """

    def __init__(self, by_hand: bool):
        self.by_hand = by_hand
        super().__init__({"i": In(2), "change": In(8), "o": Out(8)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.copies = copies = Copies(2, 4)
        m.d.comb += copies.i.eq(self.i)
        copied = Signal(8)
        if self.by_hand:
            m.d.sync += copied.eq(self.i.replicate(4))
        else:
            m.d.comb += copied.eq(copies.o)
        m.d.sync += self.o.eq(copied ^ self.change)
        return m


@pytest.mark.parametrize(("by_hand", "registers"), [(False, 8), (True, 2)])
def test_synthesis_merges_registers_but_no_copies(by_hand, registers, tmp_path):
    if find_tool("yosys") is None:
        pytest.skip("Yosys is not installed")
    (tmp_path / "readers.il").write_text(rtlil.convert(Readers(by_hand), name="readers", platform=ECP5, emit_src=False))
    script = f"{READ_SCRIPT.format(name='readers')}; synth_ecp5 -top readers; write_json readers.json"
    run_tool("yosys", ("-q", "-p", script), tmp_path)
    cells = json.loads((tmp_path / "readers.json").read_text())["modules"]["readers"]["cells"].values()
    assert sum(cell["type"] == "TRELLIS_FF" for cell in cells) == registers + 8
