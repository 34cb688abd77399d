# amaranth: UnusedElaboratable=no
import dataclasses
import json

import pytest
from amaranth.hdl import Elaboratable, Module, Signal, signed
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out

from hdl import CircuitError, ToolError
from hdl.board.boards import BOARDS
from hdl.board.clocks import ClockGenerator
from hdl.cores.uart import UARTReceiver, UARTTransmitter, baud_divisor
from hdl.tools import synthesis
from hdl.tools.synthesis import synthesize, synthesize_core
from hdl.tools.synthesis_report import ClockTiming, SynthesisReport, Usage, read_report
from hdl.tools.toolchain import ToolFailure

BOARD = BOARDS["ulx3s-25f"]  # its place and route is the fastest


class Echo(Elaboratable):
    """Sends every byte back."""

    def __init__(self, frequency=50e6, baud=1e6):
        self.frequency, self.baud = frequency, baud

    def elaborate(self, platform):
        m = Module()
        m.submodules.clocks = clocks = ClockGenerator(platform.default_clk_frequency, self.frequency)
        m.domains += clocks.domain
        m.submodules.pin = pin = io.Buffer("i", platform.request(platform.default_clk, dir="-"))
        divisor = baud_divisor(self.frequency, self.baud)
        m.submodules.receiver = receiver = UARTReceiver(divisor)
        m.submodules.transmitter = transmitter = UARTTransmitter(divisor)
        uart = platform.request("uart", 0, dir={"rx": "-", "tx": "-", "rts": "-", "dtr": "-"})
        m.submodules.rx_pin = rx_pin = io.Buffer("i", uart.rx)
        m.submodules.tx_pin = tx_pin = io.Buffer("o", uart.tx)
        m.d.comb += [clocks.clock_in.eq(pin.i), receiver.rx.eq(rx_pin.i), tx_pin.o.eq(transmitter.tx)]
        wiring.connect(m, receiver.o, transmitter.i)
        return m


class LongPath(Echo):
    """A division in one cycle."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        x, y = Signal(10), Signal(10)
        m.d.sync += [y.eq(y + 1), x.eq((x + y) // (y | 1))]
        m.submodules.led_pin = led_pin = io.Buffer("o", platform.request("led", 0, dir="-"))
        m.d.comb += led_pin.o.eq(x.xor())
        return m


class Multiplier(wiring.Component):
    def __init__(self, count=1):
        self.count = count
        super().__init__(
            {
                name: port(signed(bits)).array(count)
                for name, port, bits in (("a", In, 18), ("b", In, 18), ("product", Out, 36))
            }
        )

    def elaborate(self, platform):
        m = Module()
        for a, b, product in zip(self.a, self.b, self.product, strict=True):
            m.d.sync += product.eq(a * b)
        return m


@pytest.fixture
def report():
    return SynthesisReport(
        design="top",
        board="ulx3s-85f",
        out_of_context=False,
        luts=Usage(4182, 83640),
        carry_luts=30,
        flip_flops=Usage(33, 83640),
        block_rams=Usage(104, 208),
        multipliers=Usage(0, 156),
        clocks=(ClockTiming("clk", 61.25, 50.0),),
        seconds={"synthesis": 1.0, "place and route": 2.5},
        bitstream="top.bit",
        bitstream_sha256="00ff",
        tools={"yosys": "0.69"},
        seed=1,
        inputs_sha256="abcd",
    )


def fail(*arguments):
    raise AssertionError("a tool was run")


@pytest.fixture
def no_tools(monkeypatch):
    monkeypatch.setattr(synthesis, "run_tool", fail)


def test_a_report_survives_json(report):
    assert SynthesisReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["timing_met"] is True


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"timing_met": true, "luts": 3}'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ValueError):
        SynthesisReport.from_json(text)


def test_a_report_reads_as_a_table(report):
    text = str(report)
    assert "LUTs                4,182   of 83,640    5.0%" in text
    assert "block RAMs            104      of 208   50.0%" in text
    assert "clk: 61.2 MHz, required 50.0 MHz: met" in text
    slow = dataclasses.replace(report, clocks=(ClockTiming("clk", 49.9, 50.0),))
    assert "NOT met" in str(slow)
    assert not slow.timing_met


@pytest.mark.slow
def test_an_echo_becomes_a_bitstream_the_same_one_each_time(tmp_path, monkeypatch):
    def make(baud=115_200):
        return synthesize(Echo(baud=baud), BOARD, tmp_path / "echo", name="echo", progress=False, baud=baud)

    first = make()
    assert first.timing_met
    assert [clock.required_mhz for clock in first.clocks] == [50.0]
    assert 60 < first.luts.used < 400
    assert 40 < first.flip_flops.used < 200
    assert (first.block_rams.used, first.multipliers.used) == (0, 0)
    assert (first.luts.available, first.flip_flops.available) == (BOARD.luts, BOARD.flip_flops)
    assert (first.block_rams.available, first.multipliers.available) == (BOARD.block_rams, BOARD.multipliers)
    assert set(first.seconds) == {"synthesis", "place and route", "bitstream"}
    assert first.baud == 115_200
    assert (tmp_path / "echo" / "echo.bit").stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "echo").iterdir()) == [
        *("echo.bit", "echo.il", "echo.lpf", "nextpnr.json", "nextpnr.log"),
        *("placement.json", "report.json", "yosys.log"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["echo"]
    placement = json.loads((tmp_path / "echo" / "placement.json").read_text())
    assert {"receiver", "transmitter", "clocks"} <= placement["cores"].keys()
    assert sum(core["luts"] for core in placement["cores"].values()) == first.luts.used
    assert sum(core["flip_flops"] for core in placement["cores"].values()) == first.flip_flops.used
    delay = sum(step["nanoseconds"] for step in placement["path"])
    assert abs(1000 / delay - first.slowest_mhz) < 1

    with monkeypatch.context() as patch:
        patch.setattr(synthesis, "run_tool", fail)
        assert make() == first
        # Another circuit is made anew, and so is the same one for a rate that differs by less than
        # a divisor of the clock tells.
        for baud in (500_000, 115_201):
            with pytest.raises(AssertionError, match="a tool was run"):
                make(baud)
        assert read_report(tmp_path / "echo") == first

    # So is a damaged result.
    (tmp_path / "echo" / "echo.bit").write_bytes(b"damaged")
    assert read_report(tmp_path / "echo") is None
    again = make()
    assert (again.inputs_sha256, again.bitstream_sha256) == (first.inputs_sha256, first.bitstream_sha256)


@pytest.mark.slow
def test_a_design_that_is_too_slow_is_refused_with_what_it_reaches(tmp_path):
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "old").write_text("kept")
    with pytest.raises(
        CircuitError,
        match=r"slow reaches \d+\.\d MHz on ulx3s-25f, but 100\.0 MHz were asked for \(clk\); ask for \d+ MHz or less",
    ):
        synthesize(LongPath(100e6), BOARD, tmp_path / "result", name="slow", progress=False)
    assert (tmp_path / "result" / "old").read_text() == "kept"
    assert "Critical path" in (tmp_path / "result_failed.log").read_text()


@pytest.mark.slow
def test_a_core_is_measured_without_pins(tmp_path):
    report = synthesize_core(Multiplier(4), tmp_path / "core", frequency=100e6, progress=False)
    assert report.multipliers.used == 4
    assert report.bitstream is None
    assert report.out_of_context


def test_a_design_with_too_many_multipliers_is_refused_before_any_tool_runs(tmp_path, no_tools):
    with pytest.raises(CircuitError, match="needs 157 multipliers, ulx3s-85f has 156"):
        synthesize_core(Multiplier(157), tmp_path / "core", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_the_old_result(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "old").write_text("kept")
    monkeypatch.setattr(synthesis, "run_tool", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesize_core(Multiplier(), tmp_path / "core", progress=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["core", "old"]


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("Info:   DP16KD:   300/  208   144%\nERROR: x", CircuitError, "needs 300 block RAMs, ulx3s-85f has 208"),
        ("Info:   MULT18X18D:  156/156 100%\nERROR: Unable to place cell 'a'", CircuitError, "does not fit ulx3s-85f"),
        ("ERROR: something else", ToolError, "exit status 1: ERROR: something else; the log is"),
    ],
)
def test_failures_of_place_and_route_say_what_to_do(tmp_path, monkeypatch, output, error, message):
    def run(tool, arguments, directory, tick):
        if tool == "yosys":
            (directory / "core.json").write_text('{"modules": {"core": {"cells": {}, "ports": {}}}}')
        if tool == "nextpnr-ecp5":
            (directory / "nextpnr.log").write_text(output)
            raise ToolFailure(tool, 1, "") if "else" not in output else ToolFailure(tool, 1, output)

    monkeypatch.setattr(synthesis, "run_tool", run)
    with pytest.raises(error, match=message):
        synthesize_core(Multiplier(), tmp_path / "core", progress=False)
    assert (tmp_path / "core_failed.log").read_text() == output
    assert not (tmp_path / "core").exists()
