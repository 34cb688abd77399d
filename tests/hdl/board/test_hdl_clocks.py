# amaranth: UnusedElaboratable=no
import re
import subprocess

import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from hdl import CircuitError
from hdl.board.clocks import RESET_CYCLES, ClockGenerator, clock_frequency, pll_setting
from hdl.tools.toolchain import require_tool


@pytest.mark.parametrize("megahertz", [10, 33.3, 40, 50, 62.5, 75, 80, 100, 110, 125, 133, 200])
def test_pll_dividers_are_as_good_as_project_trellis_finds(megahertz, tmp_path):
    arguments = ["-i", "25", "-o", str(megahertz), "-f", "pll.v"]
    subprocess.run([require_tool("ecppll"), *arguments], cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "pll.v").read_text()
    theirs = {
        name: int(re.search(rf"\.{name}\((\d+)\)", text).group(1)) for name in ("CLKI_DIV", "CLKFB_DIV", "CLKOP_DIV")
    }
    setting = pll_setting(25e6, megahertz * 1e6)
    their_frequency = 25e6 / theirs["CLKI_DIV"] * theirs["CLKFB_DIV"]
    assert setting.frequency == pytest.approx(their_frequency)
    their_oscillator = their_frequency * theirs["CLKOP_DIV"]
    assert abs(setting.oscillator_frequency - 600e6) <= abs(their_oscillator - 600e6) + 1
    assert (setting.input_divider, setting.feedback_divider) == (theirs["CLKI_DIV"], theirs["CLKFB_DIV"])


@pytest.mark.parametrize("megahertz", [3.125, 12.5, 21.875, 46.875, 50, 87.5, 110, 166.6667, 233.3, 312.5, 400])
def test_pll_dividers_stay_within_the_data_sheet(megahertz):
    setting = pll_setting(25e6, megahertz * 1e6)
    assert setting.frequency == pytest.approx(megahertz * 1e6, rel=0.01)
    assert setting.frequency == pytest.approx(25e6 / setting.input_divider * setting.feedback_divider)
    assert 400e6 <= setting.oscillator_frequency <= 800e6
    assert 25e6 / setting.input_divider >= 3.125e6
    assert 1 <= setting.feedback_divider <= 80
    assert 1 <= setting.output_divider <= 128


@pytest.mark.parametrize("frequency", [1e6, 500e6, 0, -5e6])
def test_frequencies_that_no_pll_makes_are_refused(frequency):
    with pytest.raises(CircuitError, match=r"cannot make .* from 25 MHz; the nearest are"):
        pll_setting(25e6, frequency)


def test_the_nearest_frequencies_are_named():
    with pytest.raises(CircuitError, match=r"cannot make 48.5 MHz from 25 MHz; the nearest are 46.875 and 50 MHz"):
        pll_setting(25e6, 48.5e6)


def test_inputs_that_no_pll_takes_are_refused():
    with pytest.raises(CircuitError, match="takes 8 to 400 MHz, not 1 MHz"):
        pll_setting(1e6, 50e6)


def test_the_boards_own_clock_needs_no_pll():
    assert ClockGenerator(25e6, 25e6).setting is None
    assert clock_frequency(25e6, 25e6) == 25e6


def test_reset_lasts_and_comes_back_on_request():
    m = Module()
    m.submodules.clocks = clocks = ClockGenerator(25e6, 25e6)
    m.domains += clocks.domain
    count = Signal(16)
    m.d.sync += count.eq(count + 1)
    seen = []

    async def drive(context):
        async def cycle():
            context.set(clocks.clock_in, 1)
            await context.delay(2e-8)
            context.set(clocks.clock_in, 0)
            await context.delay(2e-8)

        for _ in range(RESET_CYCLES + 100):
            await cycle()
            seen.append(context.get(count))
        context.set(clocks.reset, 1)
        for _ in range(5):
            await cycle()
        assert context.get(count) == 0
        context.set(clocks.reset, 0)
        for _ in range(RESET_CYCLES):
            await cycle()
        assert context.get(count) == 0
        for _ in range(20):
            await cycle()
        assert context.get(count) > 0

    simulator = Simulator(m)
    simulator.add_testbench(drive)
    simulator.run()
    assert set(seen[:RESET_CYCLES]) == {0}
    assert seen[-1] > 90
