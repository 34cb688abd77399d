"""The attention accelerator on a board: clock, reset, serial port, lights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from amaranth.build import Platform
from amaranth.hdl import Elaboratable, Module, Signal
from amaranth.lib import io, wiring
from amaranth_boards.colorlight_5a75b_r7_0 import Colorlight_5A75B_R70Platform
from amaranth_boards.ulx3s import ULX3S_12F_Platform, ULX3S_25F_Platform, ULX3S_45F_Platform, ULX3S_85F_Platform

import fixedpoint

from ..catalog.names import DEFAULT_BAUD, DEFAULT_FREQUENCY
from ..cores.uart import UARTReceiver, UARTTransmitter, baud_divisor
from ..decoder.accelerator import DecoderAccelerator
from ..decoder.attention import Attention
from ..decoder.machine import Machine
from ..errors import CircuitError
from ..parts.payload import connect, payload_shape
from .clocks import ClockGenerator, clock_frequency
from .link import HostLink, Identity
from .platforms import ColorlightI5Platform, orangecrab


@dataclass(frozen=True)
class Board:
    """A board and what its FPGA holds.

    Attributes:
        name: As on the command line.
        platform: Makes Amaranth's platform; a fresh one for every build.
        device_arguments: What nextpnr-ecp5 must be told about the device.
        luts, flip_flops, block_rams, multipliers: As nextpnr counts them; block RAMs of 18 Kbit,
            multipliers of 18×18 bits.
        loaders: Command lines of which each loads the file `{}` into the FPGA, the usual one first.
        reset: Name of its button's resource, None where none is free.
        lights: Resource, number and part (None for the whole) of up to three.
        frequency: Hz of the circuit's clock where nothing else is asked for.
        pack_arguments: What ecppack must be told about the board.
    """

    name: str
    platform: Callable[[], Platform]
    device_arguments: tuple[str, ...]
    luts: int
    flip_flops: int
    block_rams: int
    multipliers: int
    loaders: tuple[tuple[str, ...], ...]
    reset: str | None
    lights: tuple[tuple[str, int, str | None], ...]
    frequency: float = DEFAULT_FREQUENCY
    pack_arguments: tuple[str, ...] = ()


# LUTs and flip-flops, block RAMs, multipliers; the 12F is the 25F's die under another name
_SIZES = {"12k": (24288, 56, 28), "25k": (24288, 56, 28), "45k": (43848, 108, 72), "85k": (83640, 208, 156)}


def _board(name: str, platform: Callable[[], Platform], device: str, package: str, speed: int, **others: Any) -> Board:
    luts, block_rams, multipliers = _SIZES[device]
    arguments = (f"--{device}", "--package", package, "--speed", str(speed))
    return Board(name, platform, arguments, luts, luts, block_rams, multipliers, **others)


def _ulx3s(size: str, platform: Callable[[], Platform]) -> Board:
    return _board(
        f"ulx3s-{size}f",
        platform,
        f"{size}k",
        "CABGA381",
        6,
        loaders=(("openFPGALoader", "-b", "ulx3s", "{}"), ("fujprog", "{}")),
        reset="button_fire",
        lights=tuple(("led", number, None) for number in range(3)),
    )


def _orangecrab(size: str) -> Board:
    return _board(
        f"orangecrab-{size}f",
        partial(orangecrab, f"{size}f"),
        f"{size}k",
        "CSFBGA285",
        8,
        loaders=(("dfu-util", "-d", "1209:5af0", "-a", "0", "-D", "{}"), ("openFPGALoader", "-b", "orangeCrab", "{}")),
        reset="button",
        lights=tuple(("rgb_led", 0, color) for color in "gbr"),
        frequency=48e6,  # its own; no PLL setting makes 50 MHz of it
        pack_arguments=("--freq", "38.8"),
    )


BOARDS = {
    board.name: board
    for board in (
        _ulx3s("12", ULX3S_12F_Platform),
        _ulx3s("25", ULX3S_25F_Platform),
        _ulx3s("45", ULX3S_45F_Platform),
        _ulx3s("85", ULX3S_85F_Platform),
        _orangecrab("25"),
        _orangecrab("85"),
        _board(
            "colorlight-i5",
            ColorlightI5Platform,
            "25k",
            "CABGA381",
            6,
            loaders=(
                ("ecpdap", "program", "--freq", "5000", "{}"),
                ("openFPGALoader", "-b", "colorlight-i5", "{}"),
            ),
            reset="reset",
            lights=(("led", 0, None),),
        ),
        # The serial port takes the pins of its only button and light, so there is neither.
        _board(
            "colorlight-5a-75b",
            Colorlight_5A75B_R70Platform,
            "25k",
            "CABGA256",
            6,
            loaders=(("openFPGALoader", "-c", "ft232", "{}"),),
            reset=None,
            lights=(),
        ),
    )
}


def find_board(name: str) -> Board:
    """Return a board by its name.

    Raises:
        CircuitError: There is none of this name; the message lists them.
    """
    if name not in BOARDS:
        raise CircuitError(f"there is no board {name!r}; choose one of {', '.join(BOARDS)}")
    return BOARDS[name]


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
        more = (accelerator.results, True) if isinstance(accelerator, DecoderAccelerator) else ()
        self._link = HostLink(identity, element, result, *more)
        super().__init__(
            {"rx": wiring.In(1, init=1), "tx": wiring.Out(1, init=1), "busy": wiring.Out(1), "fault": wiring.Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
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

    Lights, as many as the board has: 0 blinks about once a second while the clock runs; 1 is lit
    for a moment after each token; 2 stays lit once a byte from the host was lost. The board's
    button resets; where there is none, a new bitstream does.

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

    def elaborate(self, platform: Platform) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.clocks = clocks = self._clocks
        m.domains += clocks.domain
        m.submodules.core = core = self._core
        uart = platform.request("uart", 0, dir="-")
        m.submodules.clock_pin = clock_pin = io.Buffer("i", platform.request(platform.default_clk, dir="-"))
        if self.board.reset is not None:
            m.submodules.reset_pin = reset_pin = io.Buffer("i", platform.request(self.board.reset, 0, dir="-"))
            m.d.comb += clocks.reset.eq(reset_pin.i)
        m.submodules.rx_pin = rx_pin = io.Buffer("i", uart.rx)
        m.submodules.tx_pin = tx_pin = io.Buffer("o", uart.tx)
        m.d.comb += [
            clocks.clock_in.eq(clock_pin.i),
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
        lights = {
            place: platform.request(*place, dir="-") for place in dict.fromkeys(one[:2] for one in self.board.lights)
        }
        for number, (place, light) in enumerate(zip(self.board.lights, (blink[-1], glow != 0, faulty), strict=False)):
            port = lights[place[:2]] if place[2] is None else getattr(lights[place[:2]], place[2])
            m.submodules[f"light_pin_{number}"] = pin = io.Buffer("o", port)
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

    def __init__(
        self,
        parameters: fixedpoint.Attention,
        board: Board,
        frequency: float = DEFAULT_FREQUENCY,
        baud: float = DEFAULT_BAUD,
    ):
        bits = parameters.query.input.bits, parameters.output.output.bits
        if bits != (8, 16):
            raise CircuitError(
                f"the serial protocol carries 8-bit inputs and 16-bit results, not {bits[0]} and {bits[1]} bits"
            )
        identity = Identity.of(parameters)
        # What cannot be is refused before any circuit exists.
        baud_divisor(clock_frequency(board.platform().default_clk_frequency, frequency), baud)
        super().__init__(Attention(parameters), identity, board, frequency, baud)


def decoder_identity(accelerator: DecoderAccelerator, digest: bytes) -> Identity:
    """Return what a decoder says about itself."""
    return Identity(accelerator.request.size // 8, accelerator.machine.plan.context_length, digest)


class DecoderTop(BoardTop):
    """The whole decoder on a board.

    Args:
        machine: The decoder.
        digest: First bytes of a hash of model and tokenizer, with which the host compares its own.
        board: A board of `BOARDS`.
        frequency: Hz wanted.
        baud: Bits per second of the serial port.
    """

    def __init__(
        self,
        machine: Machine,
        digest: bytes,
        board: Board,
        frequency: float = DEFAULT_FREQUENCY,
        baud: float = DEFAULT_BAUD,
    ):
        accelerator = DecoderAccelerator(machine)
        baud_divisor(clock_frequency(board.platform().default_clk_frequency, frequency), baud)
        super().__init__(accelerator, decoder_identity(accelerator, digest), board, frequency, baud)
