# amaranth: UnusedElaboratable=no
import random
import zlib

import pytest
from amaranth.sim import Simulator
from serial_wire import CLOCK_PERIOD

from hdl import CircuitError
from hdl.board.frames import CRC, ESCAPE, FLAG, FrameDecoder, FrameReceiver, FrameTransmitter, encode_frame

LARGEST = 12


def random_packets(count, seed):
    """Half of their bytes are those that frames escape."""
    generator = random.Random(seed)
    return [
        bytes(generator.choice((FLAG, ESCAPE, generator.randrange(256))) for _ in range(generator.randint(1, LARGEST)))
        for _ in range(count)
    ]


def damaged(frame, generator):
    place = generator.randrange(len(frame))
    return generator.choice(
        (
            frame,
            frame[:place] + frame[place + 1 :],
            frame[:place],
            frame[:place] + bytes([frame[place] ^ 1 << generator.randrange(8)]) + frame[place + 1 :],
            frame[:place] + bytes([generator.choice((FLAG, ESCAPE, 0))]) + frame[place:],
        )
    )


def test_a_frames_bytes_are_as_documented():
    # CRC-32's check value in every catalogue is that of these nine digits.
    assert zlib.crc32(b"123456789") == 0xCBF43926 == CRC.compute(b"123456789")
    assert encode_frame(b"a\x7e\x7d").hex(" ") == "7e 03 00 61 7d 5e 7d 5d 23 75 9f 57 7e"


def test_packets_come_back_in_any_pieces():
    packets = random_packets(200, 1)
    wire = b"".join(map(encode_frame, packets))
    assert FrameDecoder(LARGEST).feed(wire) == packets
    generator, decoder, received = random.Random(2), FrameDecoder(LARGEST), []
    while wire:
        size = generator.randrange(1, 9)
        received += decoder.feed(wire[:size])
        wire = wire[size:]
    assert received == packets


def test_neighbours_may_share_a_flag_and_garbage_between_frames_does_no_harm():
    one, other = encode_frame(b"one"), encode_frame(b"other")
    assert FrameDecoder().feed(one + other[1:]) == [b"one", b"other"]
    for garbage in (b"I", b"TR", b"\x7d", b"\x7e\x7e", bytes(range(256))):
        assert FrameDecoder().feed(garbage + one + garbage + other) == [b"one", b"other"]


def test_every_single_damage_is_noticed():
    frame = encode_frame(b"\x01\x7e\x02\x7d\x03")
    for place in range(len(frame)):
        for value in set(range(256)) - {frame[place]}:
            changed = frame[:place] + bytes([value]) + frame[place + 1 :]
            assert FrameDecoder().feed(changed) == [], changed.hex(" ")
        assert FrameDecoder().feed(frame[:place] + frame[place + 1 :]) == []


def test_a_length_that_is_wrong_is_refused_although_the_check_is_right():
    wire = b""
    for packet, length in ((b"abc", 0), (b"abc", 2), (b"abc", 4), (b"abc", 0x103), (b"", 0), (b"", 1)):
        content = length.to_bytes(2, "little") + packet
        content += zlib.crc32(content).to_bytes(4, "little")
        assert not {FLAG, ESCAPE} & set(content)
        frame = b"\x7e" + content + b"\x7e"
        assert FrameDecoder().feed(frame) == []
        wire += frame
    assert run_receiver(wire + encode_frame(b"right"), 0, gap=4 * LARGEST) == [b"right"]


@pytest.mark.parametrize("size", [0, 1 << 16])
def test_sizes_that_no_frame_has_are_refused(size):
    with pytest.raises(ValueError, match=f"1 to 65535 bytes, not {size}"):
        encode_frame(bytes(size))
    with pytest.raises(CircuitError, match=rf"largest .*{size}"):
        FrameReceiver(size)


def test_packets_too_long_for_a_receiver_are_dropped():
    decoder = FrameDecoder(LARGEST)
    assert decoder.feed(encode_frame(bytes(LARGEST + 1)) + encode_frame(bytes([FLAG]) * LARGEST)) == [
        bytes([FLAG]) * LARGEST
    ]


def run_receiver(wire, stall, gap):
    """Feed bytes to the circuit; return its packets."""
    receiver, generator = FrameReceiver(LARGEST), random.Random(3)
    packets, packet = [], bytearray()

    async def feed(context):
        for byte in wire:
            context.set(receiver.i.valid, 1)
            context.set(receiver.i.payload, byte)
            await context.tick()
            context.set(receiver.i.valid, 0)
            if byte == FLAG and gap:
                await context.tick().repeat(gap)
        await context.tick().repeat(50)

    async def take(context):
        expected, held = None, None
        async for _, _, valid, payload, ready in context.tick().sample(
            receiver.o.valid, receiver.o.payload, receiver.o.ready
        ):
            now = (payload.data, payload.remaining)
            assert held is None or (valid and now == held), "a payload changed before it was taken"
            held = now if valid and not ready else None
            if valid and ready:
                assert expected in (None, payload.remaining)
                packet.append(payload.data)
                expected = payload.remaining - 1 if payload.remaining else None
                if payload.remaining == 0:
                    packets.append(bytes(packet))
                    packet.clear()
            context.set(receiver.o.ready, generator.random() >= stall)

    simulator = Simulator(receiver)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(feed)
    simulator.add_testbench(take, background=True)
    simulator.run()
    return packets


@pytest.mark.parametrize("stall", [0, 0.5])
def test_the_receiver_takes_what_the_decoder_takes(stall):
    generator = random.Random(4)
    frames = [encode_frame(packet) for packet in random_packets(60, 5)]
    frames[10:10] = [encode_frame(bytes(size)) for size in range(LARGEST, LARGEST + 8)]
    wire = b"Before" + b"".join(damaged(frame, generator) for frame in frames)
    expected = FrameDecoder(LARGEST).feed(wire)
    assert 10 < len(expected) < 50
    assert run_receiver(wire, stall, gap=4 * LARGEST) == expected


def test_a_frame_that_cannot_wait_is_dropped_and_no_other_is_damaged():
    packets = [bytes([index]) * LARGEST for index in range(30)]
    received = run_receiver(b"".join(map(encode_frame, packets)), 0.9, gap=0)
    assert 2 <= len(received) < 30
    assert set(received) <= set(packets)
    assert received == sorted(received)


def test_the_transmitter_gives_what_the_encoder_gives():
    transmitter, generator = FrameTransmitter(), random.Random(6)
    packets, sent = random_packets(60, 7), bytearray()

    async def feed(context):
        for packet in packets:
            for index, byte in enumerate(packet):
                context.set(transmitter.i.valid, 0)
                await context.tick().repeat(generator.randrange(1, 4))
                context.set(transmitter.i.valid, 1)
                context.set(transmitter.i.payload, {"data": byte, "remaining": len(packet) - 1 - index})
                await context.tick().until(transmitter.i.ready)
            context.set(transmitter.i.valid, 0)
        await context.tick().repeat(100)

    async def take(context):
        held = None
        async for _, _, valid, payload, ready in context.tick().sample(
            transmitter.o.valid, transmitter.o.payload, transmitter.o.ready
        ):
            assert held is None or (valid and payload == held), "a byte changed before it was taken"
            held = payload if valid and not ready else None
            if valid and ready:
                sent.append(payload)
            context.set(transmitter.o.ready, generator.random() < 0.6)

    simulator = Simulator(transmitter)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(feed)
    simulator.add_testbench(take, background=True)
    simulator.run()
    assert bytes(sent) == b"".join(map(encode_frame, packets))
