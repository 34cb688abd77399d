# amaranth: UnusedElaboratable=no
"""What a board's design does beside computing: pins, reset, lights, button, and saying that a byte
was lost.
"""

import re

import pytest
from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib import data, io, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from serial_wire import send_frame

import hdl.board.boards
import hdl.board.clocks
from fixedpoint import QFormat
from hdl.board.boards import BOARDS, BoardTop, SerialAccelerator
from hdl.board.clocks import RESET_CYCLES, ClockGenerator
from hdl.board.link import Identity
from hdl.parts.payload import FixedPointShape

FREQUENCY = 25e6  # the board's own clock, so that no PLL is needed
PERIOD = 1 / FREQUENCY
DIVISOR = 8
BIT = DIVISOR * PERIOD


class Stub(wiring.Component):
    """A host link that takes bytes only when `takes` is high and offers a token as long as `offers`
    is.
    """

    def __init__(self, *_):
        element, result = FixedPointShape(QFormat(8, 5)), FixedPointShape(QFormat(16, 10))
        super().__init__(
            {
                "i_bytes": In(stream.Signature(8)),
                "o_bytes": Out(stream.Signature(8)),
                "o_token": Out(stream.Signature(data.StructLayout({"data": element, "restart": 1}))),
                "i_result": In(stream.Signature(data.StructLayout({"data": result, "last": 1}))),
                "takes": In(1),
                "offers": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += [self.i_bytes.ready.eq(self.takes), self.o_token.valid.eq(self.offers), self.i_result.ready.eq(1)]
        return m


class Echo(wiring.Component):
    """An accelerator that takes one word and answers with one, 20 cycles later."""

    i: In(stream.Signature(data.StructLayout({"data": FixedPointShape(QFormat(8, 5)), "restart": 1})))
    o: Out(stream.Signature(data.StructLayout({"data": FixedPointShape(QFormat(16, 10)), "last": 1})))

    def elaborate(self, platform):
        m = Module()
        left = Signal(range(21))
        m.d.comb += [self.i.ready.eq(left == 0), self.o.valid.eq(left == 1), self.o.payload.last.eq(1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += left.eq(20)
        with m.Elif((left > 1) | (self.o.valid & self.o.ready)):
            m.d.sync += left.eq(left - 1)
        return m


def stubbed(monkeypatch, make):
    """Return what `make` builds from an identity, and the stub in its link's place."""
    made = []
    monkeypatch.setattr(hdl.board.boards, "HostLink", lambda *_: made.append(Stub()) or made[-1])
    built = make(None)  # the stub asks for no identity
    [stub] = made
    return built, stub


@pytest.mark.parametrize("fault, count", [("none", 0), ("framing error", 1), ("overrun", 1)])
def test_every_byte_that_is_lost_is_a_fault(monkeypatch, fault, count):
    circuit, link = stubbed(monkeypatch, lambda identity: SerialAccelerator(Echo(), identity, FREQUENCY, 1 / BIT))
    pulses = 0

    async def drive(context):
        context.set(link.takes, fault != "overrun")
        for byte in (0x5A, 0xC3):  # where nobody takes the first one, the second has no place
            await send_frame(context, circuit.rx, byte, BIT, stop=0 if (fault, byte) == ("framing error", 0x5A) else 1)
            context.set(circuit.rx, 1)
            await context.delay(3 * BIT)

    async def watch(context):
        nonlocal pulses
        async for _, _, high in context.tick().sample(circuit.fault):
            pulses += high

    simulator = Simulator(circuit)
    simulator.add_clock(PERIOD)
    simulator.add_testbench(watch, background=True)
    simulator.add_testbench(drive)
    simulator.run()
    assert pulses == count


def test_reset_waits_for_the_lock_and_comes_back_when_it_is_lost(monkeypatch):
    """The PLL is a wire here, and a signal for its lock."""
    lock = Signal()

    def wire(self, setting, clock, locked):
        m = Module()
        m.d.comb += [clock.eq(self.clock_in), locked.eq(lock)]
        return m

    monkeypatch.setattr(ClockGenerator, "_pll", wire)
    m = Module()
    m.submodules.clocks = clocks = ClockGenerator(25e6, 50e6)
    m.domains += clocks.domain
    count = Signal(16)
    m.d.sync += count.eq(count + 1)

    async def drive(context):
        async def cycles(number):
            for _ in range(number):
                context.set(clocks.clock_in, 1)
                await context.delay(1e-8)
                context.set(clocks.clock_in, 0)
                await context.delay(1e-8)

        await cycles(RESET_CYCLES + 100)
        assert context.get(count) == 0  # no lock, no start
        for _ in range(2):
            context.set(lock, 1)
            await cycles(RESET_CYCLES - 1)
            assert context.get(count) == 0
            await cycles(100)
            assert context.get(count) > 50
            context.set(lock, 0)  # for a moment
            await cycles(4)
            assert context.get(count) == 0

    simulator = Simulator(m)
    simulator.add_testbench(drive)
    simulator.run()


def test_the_lock_is_the_plls():
    clock, locked = Signal(), Signal()
    generator = ClockGenerator(25e6, 50e6)
    ports = {name: port for name, (port, _) in generator._pll(generator.setting, clock, locked).ports.items()}
    assert ports["LOCK"] is locked
    assert ports["CLKOP"] is ports["CLKFB"] is clock
    assert ports["CLKI"] is generator.clock_in


class OnPins(Elaboratable):
    """A board's design with simulated pins: it asks its platform for them, and Amaranth's simulator
    has no platform.
    """

    default_clk = "clk25"

    def __init__(self, top):
        self.top, self.pins = top, {}

    def request(self, name, number=0, dir=None):
        if name == "uart":
            self.pins |= {"rx": io.SimulationPort("i", 1), "tx": io.SimulationPort("o", 1)}
            return type("UART", (), {key: self.pins[key] for key in ("rx", "tx")})
        return self.pins.setdefault((name, number), io.SimulationPort("o" if name == "led" else "i", 1))

    def elaborate(self, platform):
        return self.top.elaborate(self)


def test_lights_and_the_button(monkeypatch):
    monkeypatch.setattr(hdl.board.clocks, "RESET_CYCLES", 16)
    board = BOARDS["ulx3s-12f"]
    make = lambda identity: BoardTop(Echo(), identity, board, FREQUENCY, 1 / BIT)  # noqa: E731
    top, link = stubbed(monkeypatch, make)
    design = OnPins(top)
    design.elaborate(None)  # asks for the pins
    clock, button = design.pins["clk25", 0].i, design.pins["button_fire", 0].i
    lights = [design.pins["led", number].o for number in range(3)]

    async def drive(context):
        async def cycles(number):
            for _ in range(number):
                context.set(clock, 1)
                await context.delay(PERIOD / 2)
                context.set(clock, 0)
                await context.delay(PERIOD / 2)

        async def send(byte):
            for bit in (0, *((byte >> place) & 1 for place in range(8)), 1):
                context.set(design.pins["rx"].i, bit)
                await cycles(DIVISOR)

        def lit():
            # the first one blinks once a second
            return [context.get(light) for light in lights][1:]

        context.set(design.pins["rx"].i, 1)
        await cycles(40)
        assert lit() == [0, 0]
        context.set(link.offers, 1)
        await cycles(2)
        context.set(link.offers, 0)
        await cycles(60)
        assert lit() == [1, 0]  # a token is long done, and its light still glows
        await send(0x11)
        assert lit() == [1, 0]
        await send(0x22)
        await cycles(20)
        assert lit() == [1, 1]
        context.set(button, 1)
        await cycles(4)
        assert lit() == [0, 0]
        context.set(button, 0)
        await cycles(40)
        assert lit() == [0, 0]

    simulator = Simulator(design)
    simulator.add_testbench(drive)
    simulator.run()


# clock, serial port as the FPGA sees it, reset, lights
PINS = {
    "ulx3s-12f": {"clk25": "G2", "rx": "M1", "tx": "L4", "button_fire": "R1", "led": "B2 C2 C1"},
    "orangecrab-25f": {"clk": "A9", "rx": "N17", "tx": "M18", "button": "J17", "rgb_led": "M3 J3 K4"},
    "orangecrab-85f": {"clk": "A9", "rx": "N17", "tx": "M18", "button": "J17", "rgb_led": "M3 J3 K4"},
    "colorlight-i5": {"clk25": "P3", "rx": "H18", "tx": "J17", "reset": "K18", "led": "U16"},
    "colorlight-5a-75b": {"clk25": "P6", "rx": "M13", "tx": "P11"},
}
PACKAGES = {"BG381": "CABGA381", "BG256": "CABGA256", "MG285": "CSFBGA285"}


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_s_design_has_its_pins_and_tools_are_told_its_device(name):
    board, platform = BOARDS[name], BOARDS[name].platform()
    size = platform.device.removeprefix("LFE5U-").lower().replace("f", "k")
    assert board.device_arguments == (f"--{size}", "--package", PACKAGES[platform.package], "--speed", platform.speed)
    assert any("openFPGALoader" in loader for loader in board.loaders)
    assert all(loader[-1] == "{}" for loader in board.loaders)
    if name not in PINS:
        return
    top = BoardTop(Echo(), Identity(1, 1, bytes(8)), board, board.frequency)
    assert top.frequency == board.frequency
    constraints = platform.prepare(top, "top").files["top.lpf"]
    sites = re.findall(r'LOCATE COMP "(\w+?)(?:_\d)?(?:__([a-z]+))?__io" SITE "(\w+)"', constraints)
    found = {}
    for resource, part, site in sites:
        found.setdefault(part if resource == "uart" else resource, []).append(site)
    found = {resource: " ".join(places) for resource, places in found.items() if resource not in ("rts", "dtr")}
    assert found == PINS[name]
    assert "FREQUENCY NET" in constraints and f"{board.frequency:.1f} HZ" in constraints
