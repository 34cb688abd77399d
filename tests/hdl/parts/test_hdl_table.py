from functools import cache
from pathlib import Path

import numpy as np
import pytest
from amaranth.sim import Simulator
from test_hdl_multiplier import OnECP5
from verilog_benches import EVERY_VERILOG_SIMULATOR, counts, run_bench

from hdl import CircuitError
from hdl.parts.table import BlockTable
from hdl.tools import memory_check
from sim.simulators.runner import to_verilog

MODEL = Path(memory_check.__file__).with_name("cells") / "dp16kd.v"
MOVES = 2000  # after every address has been read once
# Depths at each of the shapes that a block RAM has, and widths that need a second one.
SHAPES = [(1000, 25), (1500, 12), (3000, 10), (4, 3)]

TEST_BENCH = """
`timescale 1ns / 1ps
module bench;
    reg clk = 0, rst = 0, en = 0;
    reg [{address}-1:0] address;
    wire [{bits}-1:0] from_cell, from_reference;
    integer moves = 0, differences = 0, changes = 0, seed = 1;
    reg [{bits}-1:0] earlier;
    cell_top cell_top (.clk(clk), .rst(rst), .en(en), .address(address), .o(from_cell));
    reference_top reference_top (.clk(clk), .rst(rst), .en(en), .address(address), .o(from_reference));
    initial repeat ({count}) begin
        earlier = from_reference;
        address = moves < {depth} ? moves : $unsigned($random(seed)) % {depth};
        en = moves < {depth} + 2 ? 1 : $random(seed);
        rst = moves > 100 && $random(seed) % 16 == 0;
        #5 clk = 1;
        // The first edge lets through what a memory happens to show before its first read.
        #4 if (moves > 0 && from_cell !== from_reference) differences = differences + 1;
        if (from_reference !== earlier) changes = changes + 1;
        moves = moves + 1;
        #1 clk = 0;
    end
    initial #({count} * 10 + 1) begin $display("%0d %0d %0d", moves, differences, changes); $finish; end
endmodule
"""


def values(depth, bits):
    table = np.random.default_rng(depth).integers(0, 1 << bits, depth)
    table[[0, -1]] = [(1 << bits) - 1, 0]
    return table.tolist()


@cache
def both(depth, bits):
    """Verilog of the cells and of their reference."""
    cell, reference = (
        to_verilog(kind(BlockTable(values(depth, bits), bits))) for kind in (OnECP5, lambda table: table)
    )
    assert "DP16KD" in cell and "DP16KD" not in reference
    assert '.REGMODE_A("OUTREG")' in cell
    return {
        "cell.v": cell.replace("\\top", "\\cell_top").replace("module top", "module cell_top"),
        # An `always @*` that depends on registers alone would not run before one of them changes.
        "reference.v": reference.replace("module top", "module reference_top").replace("always @*", "always_comb"),
    }


def compare(depth, bits, directory, model, simulator="verilator"):
    """Clock edges after which cell and reference differ in any run, and those that changed the
    result in all.
    """
    count = depth + MOVES
    bench = TEST_BENCH.format(address=(depth - 1).bit_length(), bits=bits, depth=depth, count=count)
    sources = {**both(depth, bits), "model.v": model, "bench.v": bench}
    moves, differences, changes = zip(*counts(run_bench(directory, sources, simulator)), strict=True)
    assert set(moves) == {count}
    return max(differences), min(changes)


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
@pytest.mark.parametrize(("depth", "bits"), SHAPES)
def test_the_cells_and_their_reference_agree(depth, bits, simulator, tmp_path):
    differences, changes = compare(depth, bits, tmp_path, MODEL.read_text(), simulator)
    assert differences == 0
    assert changes > 200


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("contents[(2*row+1)*20 +: 18]", "contents[(2*row+1)*18 +: 18]"),
        ('REGMODE_A == "OUTREG" ? register_a : seen_a', "seen_a"),
        ("enable_a && !reset_a &&", "!reset_a &&"),
        ("4: offset = 9 * address[4:3] + 4 * address[2]", "4: offset = 8 * address[4:3] + 4 * address[2]"),
    ],
)
def test_another_cell_is_found(right, wrong, tmp_path):
    model = MODEL.read_text()
    assert right in model
    differences, _ = compare(3000, 10, tmp_path, model.replace(right, wrong))
    assert differences > 100


def test_values_come_two_moves_later():
    core, table = BlockTable(values(20, 5), 5), values(20, 5)

    async def bench(context):
        context.set(core.en, 1)
        for move in range(24):
            context.set(core.address, min(move, 19))
            await context.tick()
            if move:
                assert context.get(core.o) == table[min(move - 1, 19)]
        context.set(core.en, 0)
        context.set(core.address, 0)
        await context.tick().repeat(3)
        assert context.get(core.o) == table[19]

    simulation = Simulator(core)
    simulation.add_clock(1e-6)
    simulation.add_testbench(bench)
    simulation.run()


def test_impossible_tables_are_refused_by_name():
    for table in ([], [0] * 4097):
        with pytest.raises(CircuitError, match=f"a block table has 1 to 4096 values, not {len(table)}"):
            BlockTable(table, 4)
    with pytest.raises(CircuitError, match="bits must be a whole number of at least 1, not 0"):
        BlockTable([0], 0)
    with pytest.raises(CircuitError, match="a block table of 3 bits holds 0 to 7, not -1 to 8"):
        BlockTable([-1, 8], 3)
