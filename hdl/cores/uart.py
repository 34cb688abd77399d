# amaranth: UnusedElaboratable=no
# (a core may be built only to ask for its latency)
r"""A UART: bytes over two wires, eight data bits, no parity, one stop bit (8N1), least significant
bit first.

idle ‾‾‾‾\_start_/ bit 0 ╳ bit 1 ╳ … ╳ bit 7 ╱‾stop‾‾‾
"""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from ..errors import CircuitError
from ..parts.internals import Internals
from ..parts.parameter_checks import check_whole
from ..parts.payload import connect

SMALLEST_DIVISOR = 4  # clock cycles of a bit
FRAME_BITS = 10  # start, eight data bits, stop
# Both ends together may be off by half a bit at the middle of the stop bit, 9.5 bits after the
# start edge: 5 %. Half of that is the far end's.
LARGEST_BAUD_ERROR = 0.02


def baud_divisor(clock_frequency: float, baud: float) -> int:
    """Return the clock cycles of one bit.

    Args:
        clock_frequency: Hz.
        baud: Bits per second.

    Raises:
        CircuitError: No whole number of cycles comes within 2 % of the rate, or a bit has fewer
            than 4 cycles.
    """
    if clock_frequency <= 0 or baud <= 0:
        raise CircuitError(f"a UART needs a positive clock and baud rate, not {clock_frequency} Hz and {baud} baud")
    divisor = round(clock_frequency / baud)
    if divisor < SMALLEST_DIVISOR:
        raise CircuitError(
            f"a UART at {baud:,.0f} baud needs a clock of at least {SMALLEST_DIVISOR * baud:,.0f} Hz, not {clock_frequency:,.0f} Hz"
        )
    error = abs(clock_frequency / divisor / baud - 1)
    if error > LARGEST_BAUD_ERROR:
        raise CircuitError(
            f"a clock of {clock_frequency:,.0f} Hz makes {clock_frequency / divisor:,.0f} baud, {error:.1%} off {baud:,.0f}; "
            f"choose a rate below {clock_frequency / 25:,.0f} baud or one that divides the clock"
        )
    return divisor


class UARTTransmitter(wiring.Component):
    """Bytes to a wire.

    Latency: none; the start bit begins at the clock edge at which a byte is taken. Throughput: one
    byte in 10·divisor cycles, back to back. Resources: a shift register of 10 bits and two
    counters.

    Attributes:
        divisor: Clock cycles of one bit.
        i: In, stream of bytes, 8 bits unsigned.
        tx: Out, the wire; high when idle.
    """

    def __init__(self, divisor: int):
        check_whole("divisor", divisor, SMALLEST_DIVISOR)
        self.divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        # The frame leaves from bit 0; idle ones follow it, so the wire is a register's output and
        # never glitches.
        shift = Signal(FRAME_BITS, init=(1 << FRAME_BITS) - 1)
        timer = Signal(range(self.divisor))
        remaining = Signal(range(FRAME_BITS + 1))
        bit_ends = timer == 0
        m.d.comb += [self.tx.eq(shift[0]), self.i.ready.eq((remaining == 0) | ((remaining == 1) & bit_ends))]
        with m.If(~bit_ends):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(remaining != 0):
            m.d.sync += [timer.eq(self.divisor - 1), remaining.eq(remaining - 1), shift.eq(Cat(shift[1:], 1))]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [timer.eq(self.divisor - 1), remaining.eq(FRAME_BITS), shift.eq(Cat(0, self.i.payload, 1))]
        self.internals = Internals(timer=timer, remaining=remaining)
        return m


class UARTReceiver(wiring.Component):
    """A wire to bytes.

    A byte without its stop bit is dropped, and the wire must become high before another one starts.
    A wire cannot be stalled: a byte that arrives while the one before still waits is dropped.

    Latency: floor(9.5·divisor) + 4 cycles from the start bit's edge to the byte offered.
    Throughput: one byte in 10·divisor cycles, back to back. Resources: two registers of 8 bits, one
    of them shifting, a synchronizer and two counters.

    Attributes:
        divisor: Clock cycles of one bit.
        latency: The formula above.
        rx: In, the wire, asynchronous to the clock.
        o: Out, stream of bytes, 8 bits unsigned.
        framing_error: Out, high for one cycle when a byte had no stop bit.
        overrun: Out, high for one cycle when a byte was dropped because nobody had taken the one
            before.

    Internals:
        Every bit is sampled once, in its middle, counted from the start bit's edge; a start bit
        that is high again in its middle is taken for noise. A byte is offered when the middle of
        its stop bit has passed the synchronizer and the receiver's own registers.
    """

    def __init__(self, divisor: int):
        check_whole("divisor", divisor, SMALLEST_DIVISOR)
        self.divisor = divisor
        self.latency = 19 * divisor // 2 + 4
        super().__init__(
            {"rx": In(1, init=1), "o": Out(stream.Signature(8)), "framing_error": Out(1), "overrun": Out(1)}
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        rx = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, rx, init=1)
        timer = Signal(range(self.divisor))
        count = Signal(range(8))
        shift = Signal(8)
        sample = timer == 0
        m.d.sync += [timer.eq(timer - 1), self.framing_error.eq(0), self.overrun.eq(0)]
        with m.If(sample):
            m.d.sync += timer.eq(self.divisor - 1)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += self.o.valid.eq(0)

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += timer.eq(self.divisor // 2 - 1)
                with m.If(~rx):
                    m.next = "START"
            with m.State("START"):
                m.d.sync += count.eq(0)
                with m.If(sample):
                    m.next = "DATA"
                    with m.If(rx):
                        m.next = "IDLE"
            with m.State("DATA"), m.If(sample):
                m.d.sync += [shift.eq(Cat(shift[1:], rx)), count.eq(count + 1)]
                with m.If(count == 7):
                    m.next = "STOP"
            with m.State("STOP"), m.If(sample):
                with m.If(~rx):
                    m.d.sync += self.framing_error.eq(1)
                    m.next = "RECOVER"
                with m.Else():
                    # Half a bit is left of the stop bit: a sender that is a little fast may start
                    # its next byte in it.
                    m.next = "IDLE"
                    with m.If(self.o.valid & ~self.o.ready):
                        m.d.sync += self.overrun.eq(1)
                    with m.Else():
                        m.d.sync += [self.o.valid.eq(1), self.o.payload.eq(shift)]
            with m.State("RECOVER"), m.If(rx):
                m.next = "IDLE"
        self.internals = Internals(timer=timer)
        return m


class UART(wiring.Component):
    """Both directions of a serial port.

    Equation: a frame on a wire is `0, b0, …, b7, 1`, each for `divisor` cycles; `o` = the bytes
    framed on `rx`, and `tx` = the frames of `i`.

    Latency: `latency` = floor(9.5·divisor) + 4 cycles from a start bit's edge on `rx` to its byte
    offered, and so from a byte taken on `i` to it offered on `o` where `tx` leads to `rx`.
    Throughput: one byte in 10·divisor cycles, back to back, in each direction. Resources: both
    parts; 44 flip-flops and 157 lookup tables on ECP5 with a divisor of 4, no memory, no
    multiplier.

    Attributes:
        divisor: Clock cycles of one bit, at least 4.
        latency: The formula above.
        i: In, stream of bytes to send, 8 bits unsigned.
        tx: Out, the wire that they leave on.
        rx: In, the other wire, asynchronous to the clock.
        o: Out, stream of bytes received, 8 bits unsigned; whoever lets one wait for longer than a
            byte takes loses the next.
        framing_error, overrun: Out, as `UARTReceiver`'s.

    Internals:
        A `UARTTransmitter` and a `UARTReceiver`, which share only the divisor.
    """

    def __init__(self, divisor: int):
        self._transmitter, self._receiver = UARTTransmitter(divisor), UARTReceiver(divisor)
        self.divisor = divisor
        self.latency = self._receiver.latency
        members = dict(self._transmitter.signature.members)
        super().__init__({**members, **dict(self._receiver.signature.members)})

    def cycles(self, count: int) -> int:
        """Return the cycles from the first of so many bytes taken to the last one given, offered
        without a pause, where `tx` leads to `rx`.
        """
        return (count - 1) * FRAME_BITS * self.divisor + self.latency

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.transmitter, m.submodules.receiver = self._transmitter, self._receiver
        for part in (self._transmitter, self._receiver):
            for name, member in part.signature.members.items():
                inner, outer = getattr(part, name), getattr(self, name)
                if member.is_signature:
                    connect(m, wiring.flipped(outer), inner)
                else:
                    m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
        self.internals = Internals(transmitter=self._transmitter, receiver=self._receiver)
        return m
