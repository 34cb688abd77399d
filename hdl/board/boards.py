"""The attention accelerator on a board: clock, reset, serial port, lights."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from amaranth.hdl import C, ClockDomain, ClockSignal, Elaboratable, Instance, Module, Signal
from amaranth.lib import io, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth_boards.ulx3s import ULX3S_12F_Platform, ULX3S_25F_Platform, ULX3S_45F_Platform, ULX3S_85F_Platform

from ..catalog.names import DEFAULT_BAUD, DEFAULT_FREQUENCY
from ..cores.uart import UARTReceiver, UARTTransmitter, baud_divisor
from ..decoder.attention import Attention
from ..errors import CircuitError
from ..parts.payload import connect, payload_shape
from .link import HostLink, Identity

# Cycles that reset lasts after the clock is stable. iCE40 block RAM reads 0 for some 36 cycles
# after power-up, and no family promises more than ECP5 does.
RESET_CYCLES = 1024


@dataclass(frozen=True)
class Board:
    """A board and what its FPGA holds.

    Attributes:
        name: As on the command line.
        platform: Makes Amaranth's platform; a fresh one for every build.
        device_arguments: What nextpnr-ecp5 must be told about the device.
        luts, flip_flops, block_rams, multipliers: As nextpnr counts them; block RAMs of 18 Kbit,
            multipliers of 18×18 bits.
    """

    name: str
    platform: Callable
    device_arguments: tuple[str, ...]
    luts: int
    flip_flops: int
    block_rams: int
    multipliers: int


def _ulx3s(size: str, platform: Callable, device: str, luts: int, block_rams: int, multipliers: int) -> Board:
    arguments = (f"--{device}", "--package", "CABGA381", "--speed", "6")
    return Board(f"ulx3s-{size}", platform, arguments, luts, luts, block_rams, multipliers)


BOARDS = {
    board.name: board
    for board in (
        _ulx3s("12f", ULX3S_12F_Platform, "12k", 24288, 56, 28),  # the 25F's die under another name
        _ulx3s("25f", ULX3S_25F_Platform, "25k", 24288, 56, 28),
        _ulx3s("45f", ULX3S_45F_Platform, "45k", 43848, 108, 72),
        _ulx3s("85f", ULX3S_85F_Platform, "85k", 83640, 208, 156),
    )
}


def find_board(name: str) -> Board:
    """Return a board by its name.

    Raises:
        CircuitError: There is none of this name; the message lists them.
    """
    if name not in BOARDS:
        raise CircuitError(f"there is no board {name!r}; choose one of {', '.join(sorted(BOARDS))}")
    return BOARDS[name]


@dataclass(frozen=True)
class PLLSetting:
    """Dividers of an ECP5 PLL with feedback from its primary output: output = input / input_divider
    · feedback_divider.

    Attributes:
        input_divider: CLKI_DIV.
        feedback_divider: CLKFB_DIV.
        output_divider: CLKOP_DIV; the oscillator runs at output · output_divider.
        frequency: Hz of the output.
    """

    input_divider: int
    feedback_divider: int
    output_divider: int
    frequency: float

    @property
    def oscillator_frequency(self) -> float:
        """Hz of the voltage-controlled oscillator."""
        return self.frequency * self.output_divider


def pll_setting(input_frequency: float, output_frequency: float) -> PLLSetting:
    """Return the PLL dividers that come closest to a frequency, with the oscillator as near to 600
    MHz as possible.

    Limits from Lattice's ECP5 family data sheet (FPGA-DS-02012), "sysCLOCK PLL Timing": input 8 to
    400 MHz, phase detector 3.125 to 400 MHz, oscillator 400 to 800 MHz, output 3.125 to 400 MHz,
    dividers 1 to 128 (feedback 1 to 80).

    Args:
        input_frequency: Hz.
        output_frequency: Hz wanted.

    Raises:
        CircuitError: Nothing comes within 1 %.
    """
    if not 8e6 <= input_frequency <= 400e6:
        raise CircuitError(f"an ECP5 PLL takes 8 to 400 MHz, not {input_frequency / 1e6:g} MHz")
    source, target = Fraction(input_frequency), Fraction(output_frequency)
    best: tuple[tuple[Fraction, Fraction], PLLSetting] | None = None
    reachable: set[Fraction] = set()
    for input_divider in range(1, 129):
        detector = source / input_divider
        if not 3_125_000 <= detector <= 400_000_000:
            continue
        for feedback_divider in range(1, 81):
            output = detector * feedback_divider
            if not 3_125_000 <= output <= 400_000_000:
                continue
            reachable.add(output)
            if abs(output - target) * 100 > target:
                continue
            for output_divider in range(1, 129):
                oscillator = output * output_divider
                if not 400_000_000 <= oscillator <= 800_000_000:
                    continue
                distance = abs(output - target), abs(oscillator - 600_000_000)
                if best is None or distance < best[0]:
                    best = distance, PLLSetting(input_divider, feedback_divider, output_divider, float(output))
    if best is None:
        near = sorted(reachable, key=lambda output: abs(output - target))[:2]
        raise CircuitError(
            f"an ECP5 PLL cannot make {output_frequency / 1e6:g} MHz from {input_frequency / 1e6:g} MHz; "
            f"the nearest are {' and '.join(f'{float(output) / 1e6:.5g}' for output in sorted(near))} MHz"
        )
    return best[1]


def clock_frequency(input_frequency: float, frequency: float) -> float:
    """Return the clock that a board gets when it asks for `frequency`, Hz: its own, or the nearest
    that a PLL makes.

    Raises:
        CircuitError: No PLL setting comes within 1 %.
    """
    return frequency if frequency == input_frequency else pll_setting(input_frequency, frequency).frequency


class ClockGenerator(Elaboratable):
    """A clock domain from a board's clock: a PLL, and a reset that waits for it. The module above
    adds `domain` to its own domains.

    It is held in reset until the PLL has been locked for `RESET_CYCLES` cycles, so that no memory
    is read before it can be, and again whenever `reset` is high or the lock is lost. Without a PLL
    (same frequency) the count alone does it.

    Attributes:
        domain: The clock domain `sync`.
        frequency: Its Hz, as near to what was asked as the PLL comes.
        clock_in: The board's clock.
        reset: Asynchronous request to start over, active high.
    """

    def __init__(self, input_frequency: float, frequency: float):
        self.setting = None if frequency == input_frequency else pll_setting(input_frequency, frequency)
        self.input_frequency = input_frequency
        self.frequency = clock_frequency(input_frequency, frequency)
        self.domain = ClockDomain("sync")
        self.clock_in = Signal()
        self.reset = Signal()

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        clock, locked, stable, again = Signal(name="system_clock"), Signal(), Signal(), Signal()
        m.domains.power_up = ClockDomain(reset_less=True, local=True)
        m.d.comb += [self.domain.clk.eq(clock), ClockSignal("power_up").eq(clock)]
        if self.setting is None:
            m.d.comb += [clock.eq(self.clock_in), locked.eq(1)]
        else:
            m.submodules.pll = self._pll(clock, locked)
        if platform is not None:
            platform.add_clock_constraint(clock, self.frequency)
        m.submodules.stable = FFSynchronizer(locked, stable, o_domain="power_up")
        m.submodules.again = FFSynchronizer(self.reset, again, o_domain="power_up")
        count = Signal(range(RESET_CYCLES))
        in_reset = Signal(init=1)
        m.d.comb += self.domain.rst.eq(in_reset)
        with m.If(~stable | again):
            m.d.power_up += [count.eq(0), in_reset.eq(1)]
        with m.Elif(count == RESET_CYCLES - 1):
            m.d.power_up += in_reset.eq(0)
        with m.Else():
            m.d.power_up += count.eq(count + 1)
        return m

    def _pll(self, clock: Signal, locked: Signal) -> Instance:
        setting = self.setting
        return Instance(
            "EHXPLLL",
            # Charge pump and loop filter as Lattice's tools and Project Trellis set them for every
            # frequency.
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            a_FREQUENCY_PIN_CLKI=f"{self.input_frequency / 1e6:g}",
            a_FREQUENCY_PIN_CLKOP=f"{setting.frequency / 1e6:g}",
            p_CLKI_DIV=setting.input_divider,
            p_CLKFB_DIV=setting.feedback_divider,
            p_CLKOP_DIV=setting.output_divider,
            p_CLKOP_CPHASE=setting.output_divider // 2,
            p_CLKOP_FPHASE=0,
            p_CLKOP_ENABLE="ENABLED",
            p_FEEDBK_PATH="CLKOP",
            p_OUTDIVIDER_MUXA="DIVA",
            p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC",
            p_OUTDIVIDER_MUXD="DIVD",
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            i_CLKI=self.clock_in,
            i_CLKFB=clock,
            i_RST=C(0),
            i_STDBY=C(0),
            i_PHASESEL0=C(0),
            i_PHASESEL1=C(0),
            i_PHASEDIR=C(1),
            i_PHASESTEP=C(1),
            i_PHASELOADREG=C(1),
            i_PLLWAKESYNC=C(0),
            i_ENCLKOP=C(0),
            o_CLKOP=clock,
            o_LOCK=locked,
        )


class SerialAccelerator(wiring.Component):
    """An accelerator behind a UART: everything of the board's design that has no pins, so it can be
    simulated whole.

    Attributes:
        rx, tx: The wires.
        busy: Out, high from a token's first element to its last result.
        fault: Out, high for a cycle when a byte from the host was lost.
    """

    def __init__(self, accelerator: wiring.Component, identity: Identity, frequency: float, baud: float = DEFAULT_BAUD):
        self.accelerator = accelerator
        divisor = baud_divisor(frequency, baud)
        self._receiver, self._transmitter = UARTReceiver(divisor), UARTTransmitter(divisor)
        element, result = payload_shape(accelerator.i)["data"].shape, payload_shape(accelerator.o)["data"].shape
        self._link = HostLink(identity, element, result)
        super().__init__(
            {
                "rx": wiring.In(1, init=1),
                "tx": wiring.Out(1, init=1),
                "busy": wiring.Out(1),
                "fault": wiring.Out(1),
            }
        )

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        m.submodules.accelerator = accelerator = self.accelerator
        m.submodules.receiver = receiver = self._receiver
        m.submodules.transmitter = transmitter = self._transmitter
        m.submodules.link = link = self._link
        connect(m, receiver.o, link.i_bytes)
        connect(m, link.o_bytes, transmitter.i)
        connect(m, link.o_token, accelerator.i)
        connect(m, accelerator.o, link.i_result)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            self.fault.eq(receiver.framing_error | receiver.overrun),
        ]
        with m.If(link.o_token.valid & link.o_token.ready):
            m.d.sync += self.busy.eq(1)
        with m.Elif(link.i_result.valid & link.i_result.ready & link.i_result.payload.last):
            m.d.sync += self.busy.eq(0)
        return m


class BoardTop(Elaboratable):
    """A `SerialAccelerator` on a board's pins.

    Lights: 0 blinks about once a second while the clock runs; 1 is lit for a moment after each
    token; 2 stays lit once a byte from the host was lost. Button "fire 1" resets.

    Attributes:
        board: Where it runs.
        frequency: Hz of the circuit's clock.
        baud: Bits per second of the serial port.
    """

    def __init__(
        self,
        accelerator: wiring.Component,
        identity: Identity,
        board: Board,
        frequency: float = DEFAULT_FREQUENCY,
        baud: float = DEFAULT_BAUD,
    ):
        self.board = board
        self._clocks = ClockGenerator(board.platform().default_clk_frequency, frequency)
        self.frequency = self._clocks.frequency
        self.baud = baud
        self._core = SerialAccelerator(accelerator, identity, self.frequency, baud)

    def elaborate(self, platform):
        """Build the circuit."""
        m = Module()
        m.submodules.clocks = clocks = self._clocks
        m.domains += clocks.domain
        m.submodules.core = core = self._core
        uart = platform.request("uart", 0, dir={"rx": "-", "tx": "-", "rts": "-", "dtr": "-"})
        m.submodules.clock_pin = clock_pin = io.Buffer("i", platform.request(platform.default_clk, dir="-"))
        m.submodules.reset_pin = reset_pin = io.Buffer("i", platform.request("button_fire", 0, dir="-"))
        m.submodules.rx_pin = rx_pin = io.Buffer("i", uart.rx)
        m.submodules.tx_pin = tx_pin = io.Buffer("o", uart.tx)
        m.d.comb += [
            clocks.clock_in.eq(clock_pin.i),
            clocks.reset.eq(reset_pin.i),
            core.rx.eq(rx_pin.i),
            tx_pin.o.eq(core.tx),
        ]

        blink = Signal(range(round(self.frequency)))
        glow = Signal(range(round(self.frequency / 20)))
        faulty = Signal()
        m.d.sync += blink.eq(blink + 1)
        with m.If(core.busy):
            m.d.sync += glow.eq((1 << len(glow)) - 1)
        with m.Elif(glow != 0):
            m.d.sync += glow.eq(glow - 1)
        with m.If(core.fault):
            m.d.sync += faulty.eq(1)
        for number, light in enumerate((blink[-1], glow != 0, faulty)):
            m.submodules[f"light_pin_{number}"] = pin = io.Buffer("o", platform.request("led", number, dir="-"))
            m.d.comb += pin.o.eq(light)
        return m


class AttentionTop(BoardTop):
    """The attention accelerator on a board.

    Args:
        parameters: `fixedpoint.Attention`.
        board: A board of `BOARDS`.
        frequency: Hz wanted.
        baud: Bits per second of the serial port.
    """

    def __init__(self, parameters, board: Board, frequency: float = DEFAULT_FREQUENCY, baud: float = DEFAULT_BAUD):
        bits = parameters.query.input.bits, parameters.output.output.bits
        if bits != (8, 16):
            raise CircuitError(
                f"the serial protocol carries 8-bit inputs and 16-bit results, not {bits[0]} and {bits[1]} bits"
            )
        identity = Identity.of(parameters)
        # What cannot be is refused before any circuit exists.
        baud_divisor(clock_frequency(board.platform().default_clk_frequency, frequency), baud)
        super().__init__(Attention(parameters), identity, board, frequency, baud)
