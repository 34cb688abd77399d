from functools import cache
from pathlib import Path

import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from amaranth.sim import Simulator
from verilog_benches import EVERY_VERILOG_SIMULATOR, counts, run_bench

from hdl import CircuitError
from hdl.board.boards import BOARDS
from hdl.parts.multiplier import Multiplier, pair_operand, pair_products, pair_spacing
from hdl.tools import memory_check
from sim.simulators.runner import to_verilog

MODEL = Path(memory_check.__file__).with_name("cells") / "mult18x18d.v"
ECP5 = BOARDS["ulx3s-85f"].platform()
MOVES = 3000


class OnECP5(wiring.Component):
    """A component elaborated as for ECP5, whoever elaborates it."""

    def __init__(self, component):
        self.component = component
        super().__init__(dict(component.signature.members))

    def elaborate(self, platform):
        m = Module()
        m.submodules.cell = self.component.elaborate(ECP5)
        for name in self.signature.members:
            inside, outside = getattr(self.component, name), getattr(self, name)
            m.d.comb += outside.eq(inside) if name == "o" else inside.eq(outside)
        return m


TEST_BENCH = """
`timescale 1ns / 1ps
module bench;
    reg clk = 0, rst = 0, en = 0;
    reg signed [{a}-1:0] a; reg signed [{b}-1:0] b;
    wire signed [{a}+{b}-1:0] from_cell, from_reference;
    integer moves = 0, differences = 0, changes = 0, seed = 1;
    reg signed [{a}+{b}-1:0] earlier;
    cell_top cell_top (.clk(clk), .rst(rst), .en(en), .a(a), .b(b), .o(from_cell));
    reference_top reference_top (.clk(clk), .rst(rst), .en(en), .a(a), .b(b), .o(from_reference));
    initial repeat ({count}) begin
        earlier = from_reference;
        a = $random(seed); b = $random(seed); en = $random(seed); rst = moves > 100 && $random(seed) % 16 == 0;
        if (moves % 5 == 0) a = 1 << ({a} - 1);
        if (moves % 7 == 0) b = 1 << ({b} - 1);
        #5 clk = 1;
        #4 if (from_cell !== from_reference) differences = differences + 1;
        if (from_reference !== earlier) changes = changes + 1;
        moves = moves + 1;
        #1 clk = 0;
    end
    initial #({count} * 10 + 1) begin $display("%0d %0d %0d", moves, differences, changes); $finish; end
endmodule
"""


@cache
def both(*parameters):
    """Verilog of the cell and of its reference."""
    cell, reference = to_verilog(OnECP5(Multiplier(*parameters))), to_verilog(Multiplier(*parameters))
    assert "MULT18X18D" in cell and "MULT18X18D" not in reference
    return {
        "cell.v": cell.replace("\\top", "\\cell_top").replace("module top", "module cell_top"),
        # An `always @*` that depends on registers alone would not run before one of them changes.
        "reference.v": reference.replace("module top", "module reference_top").replace("always @*", "always_comb"),
    }


def compare(a_bits, b_bits, directory, model, simulator="verilator", input_registers=True):
    """Clock edges, those after which cell and reference differ in any run, and those that changed
    the result in all.
    """
    bench = TEST_BENCH.format(a=a_bits, b=b_bits, count=MOVES)
    sources = {**both(a_bits, b_bits, input_registers), "model.v": model, "bench.v": bench}
    moves, differences, changes = zip(*counts(run_bench(directory, sources, simulator)), strict=True)
    return min(moves), max(differences), min(changes)


@pytest.mark.parametrize("simulator", EVERY_VERILOG_SIMULATOR)
@pytest.mark.parametrize(("a_bits", "b_bits", "input_registers"), [(9, 17, True), (18, 18, True), (16, 18, False)])
def test_the_cell_and_its_reference_agree(a_bits, b_bits, input_registers, simulator, tmp_path):
    model = MODEL.read_text()
    moves, differences, changes = compare(a_bits, b_bits, tmp_path, model, simulator, input_registers)
    assert (moves, differences) == (MOVES, 0)
    assert changes > 500


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (".CLOCK(REG_PIPELINE_CLK)", '.CLOCK("NONE")'),  # a register less
        ("else if (enable) value", "else value"),
        ("{a_late[18] & a_late[17], a_late[17:0]}", "{1'b0, a_late[17:0]}"),
    ],
)
def test_another_cell_is_found(right, wrong, tmp_path):
    model = MODEL.read_text()
    assert right in model
    _, differences, _ = compare(18, 18, tmp_path, model.replace(right, wrong))
    assert differences > 100


def test_every_register_of_the_cell_is_on():
    text = to_verilog(OnECP5(Multiplier(8, 8)))
    for stage in ("INPUTA", "INPUTB", "PIPELINE", "OUTPUT"):
        assert f'.REG_{stage}_CLK("CLK0")' in text


def run_multiplier(operands, expected, core=None):
    """The results of `operands`, one a move, three moves later."""
    core = core or Multiplier(8, 8)

    async def bench(context):
        context.set(core.en, 1)
        for index in range(len(operands) + core.latency):
            a, b = operands[min(index, len(operands) - 1)]
            context.set(core.a, a)
            context.set(core.b, b)
            await context.tick()
            if index >= core.latency - 1 and index - core.latency + 1 < len(operands):
                assert context.get(core.o) == expected[index - core.latency + 1]

    simulation = Simulator(core)
    simulation.add_clock(1e-6)
    simulation.add_testbench(bench)
    simulation.run()


def test_products_of_eight_bits():
    operands = [(a, b) for a in (-128, -127, -1, 0, 1, 126, 127) for b in range(-128, 128)]
    run_multiplier(operands, [a * b for a, b in operands])


class EveryPair(wiring.Component):
    """Sixteen pairs of weights at a time, every activation one after the other; counts the right
    products, and those moves that had any.
    """

    moves: Out(20)
    right: Out(20)

    def elaborate(self, platform):
        m = Module()
        spacing = pair_spacing(8, 4)
        count = Signal(12)  # the upper weight, then the activation
        m.d.sync += count.eq(count + 1)
        x, upper = count[4:].as_signed(), count[:4].as_signed()
        history = [Signal(12, name=f"count_{move + 1}") for move in range(Multiplier.latency)]
        m.d.sync += [after.eq(earlier) for earlier, after in zip([count, *history], history, strict=False)]
        old_x, old_upper = history[-1][4:].as_signed(), history[-1][:4].as_signed()
        correct = []
        for weight in range(-8, 8):
            lower = Signal(signed(4), init=weight, name=f"lower_{weight + 8}")
            m.submodules[f"product_{weight + 8}"] = product = Multiplier(8, spacing + 5)
            m.d.comb += [product.en.eq(1), product.a.eq(x), product.b.eq(pair_operand(lower, upper, spacing))]
            low, above, owed = pair_products(product.o, spacing)
            operand = pair_operand(lower, upper, spacing) == (upper << spacing) + weight
            correct.append((low == old_x * weight) & (above + owed == old_x * old_upper) & operand)
        started = Signal(range(Multiplier.latency + 1))
        with m.If(started != Multiplier.latency):
            m.d.sync += started.eq(started + 1)
        with m.Else():
            m.d.sync += [self.moves.eq(self.moves + 1), self.right.eq(self.right + sum(correct))]
        return m


def test_two_products_of_four_bits_all_operands():
    core = EveryPair()

    async def watch(context):
        await context.tick().repeat(4096 + Multiplier.latency)
        assert context.get(core.moves) == 16 * 256
        assert context.get(core.right) == 16 * 16 * 256

    simulation = Simulator(core)
    simulation.add_clock(1e-6)
    simulation.add_testbench(watch)
    simulation.run()


def test_products_closer_together_would_overlap():
    # -128 times -8 is one more than 11 signed bits hold.
    x, lower, upper = -128, -8, 1
    for spacing, right in ((12, True), (11, False)):
        product = Signal(signed(24), init=x * ((upper << spacing) + lower))
        values = []

        async def read(context, product=product, spacing=spacing, values=values):
            values.extend(context.get(value) for value in pair_products(product, spacing))

        simulation = Simulator(Module())
        simulation.add_testbench(read)
        simulation.run()
        low, above, owed = values
        assert ([low, above + owed] == [x * lower, x * upper]) is right


@pytest.mark.parametrize("bits", [0, 19, -1, 2.5])
def test_impossible_widths_are_refused(bits):
    with pytest.raises(CircuitError, match="a_bits must be a whole number from 1 to 18"):
        Multiplier(bits, 8)
    with pytest.raises(CircuitError, match="b_bits must be a whole number from 1 to 18"):
        Multiplier(8, bits)
