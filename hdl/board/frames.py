"""Frames: packets of bytes on a wire that damages them. Both directions use the same ones, and both
ends are here: functions and circuits.

```text
frame  = 0x7E, stuffed(length, packet, CRC), 0x7E
length = bytes of the packet, 16 bits, little-endian, at least 1
CRC    = CRC-32 of length and packet as zlib's, 32 bits, little-endian
stuffed: 0x7E → 0x7D 0x5E and 0x7D → 0x7D 0x5D, as in RFC 1662 (HDLC-like framing)
```

So 0x7E occurs only between frames: whatever was lost or inserted, the next frame is found again,
without a timer. An incomplete frame is dropped without an answer; who misses an answer asks again
(`hdl.board.session`).
"""

import re
import struct
import zlib

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import crc, data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..errors import CircuitError
from ..parts.parameter_checks import check_whole
from ..parts.stream_parts import StreamRegister

FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
LENGTH, CHECK = struct.Struct("<H"), struct.Struct("<I")
LARGEST_PACKET = (1 << 16) - 1
CRC = crc.catalog.CRC32_ISO_HDLC(data_width=8)  # what zlib.crc32 computes
# A packet's bytes in a stream; `remaining` says how many follow, so the first one tells the length
# and the last one has 0.
PACKET = data.StructLayout({"data": 8, "remaining": 16})
_ESCAPED = re.compile(rb"\x7d(.)", re.DOTALL)


def encode_frame(packet: bytes) -> bytes:
    """Return a packet of 1 to 65535 bytes as a frame.

    Raises:
        ValueError: The packet is empty or longer.
    """
    if not 1 <= len(packet) <= LARGEST_PACKET:
        raise ValueError(f"a packet has 1 to {LARGEST_PACKET} bytes, not {len(packet)}")
    content = LENGTH.pack(len(packet)) + packet
    content += CHECK.pack(zlib.crc32(content))
    for special in (ESCAPE, FLAG):
        content = content.replace(bytes([special]), bytes([ESCAPE, special ^ FLIP]))
    return bytes([FLAG]) + content + bytes([FLAG])


class FrameDecoder:
    """Packets out of the bytes that arrive, whatever the pieces in which they come.

    Args:
        largest: Bytes of the longest packet; longer ones are dropped.
    """

    def __init__(self, largest: int = LARGEST_PACKET):
        self._largest = largest
        # what came since a flag; None where the frame can be none any more
        self._pending: bytes | None = None

    def feed(self, received: bytes) -> list[bytes]:
        """Return the packets of all frames that end in these bytes."""
        packets = []
        first, *others = received.split(bytes([FLAG]))
        self._extend(first)
        for content in others:
            packet = None if self._pending is None else self._decode(self._pending)
            if packet is not None:
                packets.append(packet)
            self._pending = b""
            self._extend(content)
        return packets

    def _extend(self, content: bytes) -> None:
        if self._pending is not None:
            self._pending += content
            if len(self._pending) > 2 * (LENGTH.size + self._largest + CHECK.size):
                self._pending = None

    def _decode(self, stuffed: bytes) -> bytes | None:
        """Return the packet between two flags, None if it is not whole."""
        if b"\x7d\x7d" in stuffed or stuffed.endswith(b"\x7d"):
            return None
        content = _ESCAPED.sub(lambda pair: bytes([pair[1][0] ^ FLIP]), stuffed)
        packet = content[LENGTH.size : -CHECK.size]
        if not 1 <= len(packet) <= self._largest or LENGTH.unpack_from(content)[0] != len(packet):
            return None
        return packet if zlib.crc32(content[: -CHECK.size]) == CHECK.unpack(content[-CHECK.size :])[0] else None


def check_largest(name: str, size: int) -> None:
    """Refuse a size that no packet has.

    Raises:
        CircuitError: It is not a whole number from 1 to 65535.
    """
    check_whole(name, size)
    if size > LARGEST_PACKET:
        raise CircuitError(f"{name} must be at most {LARGEST_PACKET} to be sent in 16 bits, not {size}")


class FrameReceiver(wiring.Component):
    """Bytes to packets.

    A packet is offered when its frame has arrived whole. The wire does not wait: a frame that
    begins before the packet in front of it was taken is dropped.

    Latency: 2 cycles from the closing flag to the packet's first byte. Throughput: a byte a cycle,
    in and out. Resources: a memory of largest + 4 bytes, a CRC of 32 flip-flops.

    Attributes:
        largest: Bytes of the longest packet.
        i: In, stream of bytes, always ready.
        o: Out, stream of `PACKET`.
    """

    def __init__(self, largest: int):
        check_largest("largest", largest)
        self.largest = largest
        super().__init__({"i": In(stream.Signature(8)), "o": Out(stream.Signature(PACKET))})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        bound = LENGTH.size + self.largest + CHECK.size
        m.submodules.buffer = buffer = memory.Memory(shape=8, depth=self.largest + CHECK.size, init=[])
        write, read = buffer.write_port(), buffer.read_port()
        m.submodules.check = check = CRC.create()

        count = Signal(range(bound + 1))  # bytes since the flag
        length = Signal(16)
        escaped = Signal()
        broken = Signal(init=1)  # until the first flag too
        held = Signal()  # a packet waits to be taken
        arrived, byte, flag, escape = Signal(), Signal(8), Signal(), Signal()
        m.d.sync += [arrived.eq(self.i.valid), byte.eq(self.i.payload)]
        m.d.sync += [flag.eq(self.i.payload == FLAG), escape.eq(self.i.payload == ESCAPE)]
        m.d.comb += [
            self.i.ready.eq(1),
            check.data.eq(byte ^ Mux(escaped, FLIP, 0)),
            write.addr.eq(count - LENGTH.size),
            write.data.eq(check.data),
        ]
        with m.If(arrived):
            with m.If(flag):
                whole = (
                    check.match_detected
                    & ~escaped
                    & ~broken
                    & (length != 0)
                    & (count == length + (LENGTH.size + CHECK.size))
                )
                m.d.comb += check.start.eq(1)
                m.d.sync += [count.eq(0), escaped.eq(0), broken.eq(0)]
                with m.If(whole):
                    m.d.sync += held.eq(1)
            with m.Elif(escape):
                m.d.sync += escaped.eq(1)
                with m.If(escaped):
                    m.d.sync += broken.eq(1)
            with m.Else():
                m.d.sync += escaped.eq(0)
                with m.If(held | (count == bound)):
                    m.d.sync += broken.eq(1)
                with m.Else():
                    m.d.comb += [check.valid.eq(1), write.en.eq(count >= LENGTH.size)]
                    m.d.sync += count.eq(count + 1)
                    with m.If(count < LENGTH.size):
                        m.d.sync += length.eq((length >> 8) | (check.data << 8))

        index = Signal(range(self.largest))
        taken = held & self.o.ready
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(index + taken),
            self.o.valid.eq(held),
            self.o.payload.data.eq(read.data),
            self.o.payload.remaining.eq(length - 1 - index),
        ]
        with m.If(taken):
            m.d.sync += index.eq(index + 1)
            with m.If(self.o.payload.remaining == 0):
                m.d.sync += [index.eq(0), held.eq(0)]
        return m


class FrameTransmitter(wiring.Component):
    """Packets to bytes.

    Latency: 1 cycle; the flag leaves while the packet's first byte waits. Throughput: a byte a
    cycle. Resources: a CRC of 32 flip-flops, two bytes.

    Attributes:
        i: In, stream of `PACKET`.
        o: Out, stream of bytes.
    """

    def __init__(self) -> None:
        super().__init__({"i": In(stream.Signature(PACKET)), "o": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        """Build the circuit."""
        m = Module()
        m.submodules.check = check = CRC.create()
        length = Signal(16)
        place = Signal(range(CHECK.size))
        escaped = Signal()

        # Bytes and flags before they are escaped; a register, so that neither waits for the other.
        m.submodules.plain = plain = StreamRegister(data.StructLayout({"data": 8, "flag": 1}))
        content, offered, sent, flag, checked = Signal(8), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            plain.i.valid.eq(offered),
            plain.i.payload.data.eq(Mux(flag, FLAG, content)),
            plain.i.payload.flag.eq(flag),
            sent.eq(offered & plain.i.ready),
        ]
        m.d.sync += [check.data.eq(content), check.valid.eq(sent & checked)]
        byte = plain.o.payload.data
        special = ~plain.o.payload.flag & ((byte == FLAG) | (byte == ESCAPE))
        m.d.comb += [
            self.o.valid.eq(plain.o.valid),
            self.o.payload.eq(Mux(escaped, byte ^ FLIP, Mux(special, ESCAPE, byte))),
            plain.o.ready.eq(self.o.ready & (escaped | ~special)),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += escaped.eq(special & ~escaped)

        with m.FSM():
            with m.State("OPEN"):
                m.d.comb += [offered.eq(self.i.valid), flag.eq(1), check.start.eq(1)]
                m.d.sync += [length.eq(self.i.payload.remaining + 1), place.eq(0)]
                with m.If(sent):
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.d.comb += [offered.eq(1), content.eq(length.word_select(place[0], 8)), checked.eq(1)]
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == LENGTH.size - 1):
                        m.next = "PACKET"
            with m.State("PACKET"):
                m.d.comb += [offered.eq(self.i.valid), content.eq(self.i.payload.data), self.i.ready.eq(sent)]
                m.d.comb += checked.eq(1)
                m.d.sync += place.eq(0)
                with m.If(sent & (self.i.payload.remaining == 0)):
                    m.next = "SUM"
            with m.State("SUM"):  # the last byte's
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.comb += [offered.eq(1), content.eq(check.crc.word_select(place, 8))]
                with m.If(sent):
                    m.d.sync += place.eq(place + 1)
                    with m.If(place == CHECK.size - 1):
                        m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [offered.eq(1), flag.eq(1)]
                with m.If(sent):
                    m.next = "OPEN"
        return m
