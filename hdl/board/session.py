"""Requests and answers that survive a bad wire: each request is carried out once, and a board that
was reset is noticed. Both ends: a class and a circuit.

A packet is a session's number (32 bits), a sequence number (32 bits), both little-endian, and a
message of at least one byte, its kind. The host draws a number at random for every session and
numbers its requests 0, 1, 2, …; it sends one when the one before was answered. The answer has the
numbers of its request. The board knows one session and its last request:

| session | sequence number | the board |
|---|---|---|
| its own | the last one's | sends the last answer again |
| its own | the next one | carries the request out |
| another, or it knows none | 0 | makes it its own and carries the request out |
| otherwise | | answers `REFUSED` |

So a request that was sent twice is carried out once. After a reset the board knows no session and
refuses the next request; the host learns that what it built on is gone. Sequence numbers never
wrap. What is carried out is a matter of the messages: `hdl.board.link` has those of attention.
"""

import secrets
import struct
from collections.abc import Callable
from typing import Protocol

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..errors import ToolError
from .frames import PACKET, FrameDecoder, check_largest, encode_frame

HEADER = struct.Struct("<II")
LAST_SEQUENCE = (1 << 32) - 1
REFUSED = 0xFF  # the kind of the message, and all of it
ANSWER_SECONDS = 0.5  # without a byte, after which a request is sent again
ATTEMPTS = 6
# that are no answer, after which none is waited for; the longest answer has half as many
NOISE_BYTES = 1 << 19


class SessionLost(ToolError):
    """The board does not know this session's last request: it was reset, or another one began."""


class SerialPort(Protocol):
    """What the host needs of a `serial.Serial` whose timeout is set."""

    @property
    def in_waiting(self) -> int:
        """Bytes that have arrived."""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, fewer when the timeout ended the wait."""

    def write(self, data: bytes) -> int | None:
        """Send bytes."""

    def flush(self) -> None:
        """Wait until all bytes have left."""

    def reset_input_buffer(self) -> None:
        """Throw away what has arrived."""


class Requester:
    """The host's end.

    Args:
        port: An open serial port, 8N1, with a read timeout of about `ANSWER_SECONDS`.
        draw: Makes the sessions' numbers, 0 to 2³² − 1, seldom the same.

    Attributes:
        repeated: Requests that were sent again because no answer came.
    """

    def __init__(self, port: SerialPort, draw: Callable[[], int] = lambda: secrets.randbits(32)):
        self._port = port
        self._draw = draw
        self._decoder = FrameDecoder()
        self._number: int | None = None
        self._sequence = 0
        self.repeated = 0

    def open(self, message: bytes) -> bytes:
        """Begin a session with its first request and return the answer.

        Raises:
            ToolError: None came.
        """
        self._port.reset_input_buffer()
        self._number, self._sequence = self._draw(), 0
        return self._exchange(message)

    def request(self, message: bytes) -> bytes:
        """Send the session's next request and return the answer.

        Raises:
            SessionLost: The board lost its state; begin a new session.
            ToolError: No answer came.
        """
        if self._number is None:
            raise ToolError("connect to the board before sending anything else")
        if self._sequence == LAST_SEQUENCE:
            raise SessionLost("the session's numbers are used up")
        self._sequence += 1
        return self._exchange(message)

    def _exchange(self, message: bytes) -> bytes:
        header = HEADER.pack(self._number, self._sequence)
        frame = encode_frame(header + message)
        for attempt in range(ATTEMPTS):
            self.repeated += attempt > 0
            self._port.write(frame)
            self._port.flush()
            answer = self._await(header)
            if answer is not None:
                if answer[0] == REFUSED:
                    raise SessionLost("the board was reset, or another program began to use it")
                return answer
        raise ToolError(
            f"the board did not answer {ATTEMPTS} times; is it powered, programmed with a bitstream of this version, and is this its port and baud rate?"
        )

    def _await(self, header: bytes) -> bytes | None:
        """Return the message that answers the request with this header, None if it does not come;
        answers to earlier ones are skipped.
        """
        left = NOISE_BYTES
        while left > 0:
            received = self._port.read(max(1, self._port.in_waiting))
            if not received:
                return None
            left -= len(received)
            for packet in self._decoder.feed(received):
                if packet[: HEADER.size] == header and len(packet) > HEADER.size:
                    return packet[HEADER.size :]
        return None


class Responder(wiring.Component):
    """The board's end: takes packets and gives packets, hands on the messages of those to be
    carried out and keeps the last answer.

    One request is in work at a time. Each message that is handed on must be answered by one.

    Resources: a memory for the longest answer, 128 flip-flops for numbers.

    Attributes:
        largest_answer: Bytes of the longest message that answers.
        i_packet, o_packet: In and out, streams of `PACKET`.
        o_request: Out, stream of `PACKET`: messages to carry out.
        i_answer: In, stream of `PACKET`: their answers.
    """

    def __init__(self, largest_answer: int):
        check_largest("largest_answer", largest_answer)
        self.largest_answer = largest_answer
        super().__init__(
            {
                "i_packet": In(stream.Signature(PACKET)),
                "o_packet": Out(stream.Signature(PACKET)),
                "o_request": Out(stream.Signature(PACKET)),
                "i_answer": In(stream.Signature(PACKET)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.answer = answer = memory.Memory(shape=8, depth=self.largest_answer, init=[])
        write, read = answer.write_port(), answer.read_port()
        number, sequence = Signal(32), Signal(32)  # of the packet
        known, own, last = Signal(), Signal(32), Signal(32)  # the session and its last request
        place = Signal(range(HEADER.size))
        index = Signal(range(self.largest_answer + 1))
        following = Signal(16)  # bytes after the kept answer's first
        refused = Signal()
        left = Signal(16)
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(index),
            write.addr.eq(index),
            write.data.eq(self.i_answer.payload.data),
            self.o_request.payload.eq(self.i_packet.payload),
            self.o_packet.payload.remaining.eq(left),
        ]
        rotated = Cat(Cat(number, sequence)[8:], number[:8])
        # Comparisons of 32 bits, in a register each; the state COMPARE waits for them.
        ours, first, again, follows, expected = Signal(), Signal(), Signal(), Signal(), Signal(32)
        m.d.sync += [
            ours.eq(known & (number == own)),
            first.eq(sequence == 0),
            again.eq(sequence == last),
            follows.eq(sequence == expected),
            expected.eq(last + 1),
        ]
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += self.i_packet.ready.eq(1)
                m.d.sync += index.eq(0)
                with m.If(self.i_packet.valid):
                    m.d.sync += [
                        Cat(number, sequence).eq(Cat(Cat(number, sequence)[8:], self.i_packet.payload.data)),
                        place.eq(place + 1),
                    ]
                    with m.If(self.i_packet.payload.remaining == 0):  # no message
                        m.d.sync += place.eq(0)
                    with m.Elif(place == HEADER.size - 1):
                        m.d.sync += place.eq(0)
                        m.next = "COMPARE"
            with m.State("COMPARE"):
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.d.sync += refused.eq(0)
                m.next = "SKIP"
                with m.If(Mux(ours, follows, first)):
                    m.d.sync += [known.eq(1), own.eq(number), last.eq(sequence)]
                    m.next = "HAND ON"
                with m.Elif(~ours | ~again):
                    m.d.sync += refused.eq(1)
            with m.State("SKIP"):
                m.d.comb += self.i_packet.ready.eq(1)
                with m.If(self.i_packet.valid & (self.i_packet.payload.remaining == 0)):
                    m.next = "PREPARE"
            with m.State("HAND ON"):
                m.d.comb += [self.o_request.valid.eq(self.i_packet.valid), self.i_packet.ready.eq(self.o_request.ready)]
                with m.If(self.i_packet.valid & self.i_packet.ready & (self.i_packet.payload.remaining == 0)):
                    m.next = "KEEP"
            with m.State("KEEP"):
                m.d.comb += [self.i_answer.ready.eq(1), write.en.eq(self.i_answer.valid)]
                with m.If(index == 0):  # until the first byte has come
                    m.d.sync += following.eq(self.i_answer.payload.remaining)
                with m.If(self.i_answer.valid):
                    m.d.sync += index.eq(index + 1)
                    with m.If(self.i_answer.payload.remaining == 0):
                        m.next = "PREPARE"
            with m.State("PREPARE"):
                m.d.sync += [index.eq(0), left.eq(HEADER.size + Mux(refused, 0, following))]
                m.next = "NUMBERS"
            with m.State("NUMBERS"):
                m.d.comb += [self.o_packet.valid.eq(1), self.o_packet.payload.data.eq(number[:8])]
                with m.If(self.o_packet.ready):
                    m.d.sync += [Cat(number, sequence).eq(rotated), left.eq(left - 1), place.eq(place + 1)]
                    with m.If(place == HEADER.size - 1):
                        m.d.sync += place.eq(0)
                        m.next = "MESSAGE"
            with m.State("MESSAGE"):
                m.d.comb += [self.o_packet.valid.eq(1), self.o_packet.payload.data.eq(Mux(refused, REFUSED, read.data))]
                with m.If(self.o_packet.ready):
                    m.d.comb += read.addr.eq(index + 1)
                    m.d.sync += [index.eq(index + 1), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.next = "HEADER"
        return m
