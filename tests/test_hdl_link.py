# amaranth: UnusedElaboratable=no
import random
from itertools import pairwise

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from serial_wire import CLOCK_PERIOD, SimulatedPort

from hdl import CircuitError, ToolError
from hdl.link import IDLE_SECONDS, Command, Host, HostLink, Identity
from hdl.uart import UARTReceiver, UARTTransmitter

CHANNELS = 5
IDENTITY = Identity(CHANNELS, 0x0203, bytes(range(0xF0, 0xF8)))
DIVISOR = 4
BIT = DIVISOR * CLOCK_PERIOD
IDLE_CYCLES = 100 * DIVISOR


class Counting(wiring.Component):
    """Stands for the accelerator: 100·x + tokens since the sequence began, in reverse order of the elements."""

    i: In(stream.Signature(data.StructLayout({"data": signed(8), "restart": 1})))
    o: Out(stream.Signature(data.StructLayout({"data": signed(16), "last": 1})))

    def elaborate(self, platform):
        m = Module()
        elements = [Signal(signed(8), name=f"element_{place}") for place in range(CHANNELS)]
        count, index, position = Signal(range(CHANNELS)), Signal(range(CHANNELS)), Signal(8)
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += [here.eq(before) for here, before in zip(elements[1:], elements, strict=False)]
                    m.d.sync += [elements[0].eq(self.i.payload.data), count.eq(count + 1)]
                    with m.If(count == 0):
                        m.d.sync += position.eq(position + 1)
                        with m.If(self.i.payload.restart):
                            m.d.sync += position.eq(0)
                    with m.If(count == CHANNELS - 1):
                        m.d.sync += count.eq(0)
                        m.next = "GIVE"
            with m.State("GIVE"):
                m.d.comb += [
                    self.o.valid.eq(1),
                    self.o.payload.data.eq(elements[0] * 100 + position),
                    self.o.payload.last.eq(index == CHANNELS - 1),
                ]
                with m.If(self.o.ready):
                    m.d.sync += [here.eq(after) for here, after in pairwise(elements)]
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == CHANNELS - 1):
                        m.d.sync += index.eq(0)
                        m.next = "TAKE"
        return m


def expected(vector, position):
    return 100 * vector[::-1].astype(np.int16) + position


@pytest.fixture
def port():
    m = Module()
    m.submodules.receiver = receiver = UARTReceiver(DIVISOR)
    m.submodules.transmitter = transmitter = UARTTransmitter(DIVISOR)
    m.submodules.link = link = HostLink(IDENTITY, IDLE_CYCLES)
    m.submodules.accelerator = accelerator = Counting()
    wiring.connect(m, receiver.o, link.i_bytes)
    wiring.connect(m, link.o_bytes, transmitter.i)
    wiring.connect(m, link.o_token, accelerator.i)
    wiring.connect(m, accelerator.o, link.i_result)
    simulator = Simulator(m)
    simulator.add_clock(CLOCK_PERIOD)
    return SimulatedPort(simulator, receiver.rx, transmitter.tx, BIT, timeout=60 * BIT)


@pytest.fixture
def host(port):
    # The circuit's idle time is shortened for the simulation, and the host's silence in proportion.
    return Host(port, wait=lambda seconds: port.wait(seconds / IDLE_SECONDS * IDLE_CYCLES * CLOCK_PERIOD))


def vectors(count, seed=1):
    return np.random.default_rng(seed).integers(-128, 128, (count, CHANNELS), dtype=np.int8)


def test_identity_goes_through_the_wire(host, port):
    assert host.connect(IDENTITY) == IDENTITY
    assert port.framing_errors == 0


def test_tokens_and_restarts(host):
    host.connect()
    position = 0
    for index, vector in enumerate(vectors(12)):
        restart = index in (0, 5, 6)
        position = 0 if restart else position + 1
        assert host.send(vector, restart).tolist() == expected(vector, position).tolist()


def test_extreme_values(host):
    host.connect()
    for value in (-128, 127, 0, -1):
        vector = np.full(CHANNELS, value, dtype=np.int8)
        assert host.send(vector, restart=True).tolist() == [100 * value] * CHANNELS


def test_command_bytes_inside_a_vector_are_data(host):
    host.connect()
    vector = np.array([Command.IDENTIFY, Command.TOKEN, Command.RESTART_TOKEN, 0, Command.IDENTIFY], dtype=np.int8)
    assert host.send(vector, restart=True).tolist() == expected(vector, 0).tolist()


def test_unknown_commands_are_ignored(host, port):
    host.connect()
    port.write(bytes(sorted(set(range(256)) - set(Command))))
    assert port.read(1) == b""
    vector = vectors(1)[0]
    assert host.send(vector, restart=True).tolist() == expected(vector, 0).tolist()


@pytest.mark.parametrize("length", range(CHANNELS))
def test_a_host_that_lost_its_place_finds_it_again(host, port, length):
    host.connect()
    first, second = vectors(2)
    host.send(first, restart=True)
    port.write(IDENTITY.encode_token(second, False)[: 1 + length])
    host.connect(IDENTITY)
    # The unfinished token has not reached the accelerator: the next one follows the first.
    assert host.send(second).tolist() == expected(second, 1).tolist()


def test_a_pause_shorter_than_the_idle_time_loses_nothing(host, port):
    host.connect()
    vector = vectors(1)[0]
    message = IDENTITY.encode_token(vector, True)
    for byte in message:
        port.write(bytes([byte]))
        port.wait(0.8 * IDLE_CYCLES * CLOCK_PERIOD)
    assert IDENTITY.decode_result(port.read(IDENTITY.result_bytes)).tolist() == expected(vector, 0).tolist()


def test_an_identity_asked_for_during_an_answer_follows_it(host, port):
    host.connect()
    vector = vectors(1)[0]
    port.write(IDENTITY.encode_token(vector, True) + bytes([Command.IDENTIFY]))
    assert IDENTITY.decode_result(port.read(IDENTITY.result_bytes)).tolist() == expected(vector, 0).tolist()
    assert port.read(Identity.SIZE) == IDENTITY.to_bytes()


def test_streams_hold_under_random_stalls():
    link = HostLink(IDENTITY, 1000)
    generator = random.Random(5)
    tokens = vectors(30, seed=9)
    sent, received = [], []

    async def feed(context):
        for index, vector in enumerate(tokens):
            for byte in IDENTITY.encode_token(vector, index % 3 == 0):
                context.set(link.i_bytes.valid, 0)
                context.set(link.i_bytes.payload, generator.randrange(256))
                await context.tick().repeat(generator.randrange(1, 4))
                context.set(link.i_bytes.valid, 1)
                context.set(link.i_bytes.payload, byte)
                await context.tick().until(link.i_bytes.ready)
        context.set(link.i_bytes.valid, 0)
        await context.tick().repeat(100)

    async def take(context):
        held = None
        async for _, _, valid, payload, ready in context.tick().sample(
            link.o_token.valid, link.o_token.payload, link.o_token.ready
        ):
            now = (payload.data, payload.restart)
            if held is not None:
                assert valid and now == held, "a payload changed before it was taken"
            held = now if valid and not ready else None
            if valid and ready:
                received.append(now)
            context.set(link.o_token.ready, generator.random() < 0.4)

    simulator = Simulator(link)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(feed)
    simulator.add_testbench(take, background=True)
    simulator.run()
    sent = [(int(value), int(index % 3 == 0)) for index, vector in enumerate(tokens) for value in vector]
    assert received == sent


def test_another_model_on_the_board_is_refused(host):
    with pytest.raises(ToolError, match=r"another model: 5 channels, 515 tokens, digest f0.*wanted 6 channels"):
        host.connect(Identity(6, 515, IDENTITY.digest))


def test_a_silent_board_is_reported():
    class Silent:
        def read(self, size):
            return b""

        def write(self, data):
            return len(data)

        def reset_input_buffer(self):
            pass

    with pytest.raises(ToolError, match=r"0 of the identity's 17 bytes; is it powered"):
        Host(Silent(), wait=lambda seconds: None).connect()


def test_answers_that_are_no_identity_are_refused():
    with pytest.raises(ToolError, match="no Positron accelerator"):
        Identity.from_bytes(b"x" * Identity.SIZE)
    newer = bytearray(IDENTITY.to_bytes())
    newer[4] += 1
    with pytest.raises(ToolError, match="protocol version 2, this program version 1"):
        Identity.from_bytes(bytes(newer))


def test_identity_bytes_are_as_documented():
    assert IDENTITY.to_bytes().hex() == "50535452" + "01" + "0500" + "0302" + "f0f1f2f3f4f5f6f7"
    assert Identity.from_bytes(IDENTITY.to_bytes()) == IDENTITY


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(CHANNELS + 1, int),
        np.zeros((1, CHANNELS), int),
        np.zeros(CHANNELS),
        np.full(CHANNELS, 128),
        np.full(CHANNELS, -129),
    ],
)
def test_vectors_that_are_no_token_are_refused(vector):
    with pytest.raises(ValueError, match="a token"):
        IDENTITY.encode_token(vector, False)


def test_sizes_that_do_not_fit_the_identity_are_refused():
    with pytest.raises(CircuitError, match="context_length must be 1 to 65535"):
        Identity(1, 65536, bytes(8))
    with pytest.raises(CircuitError, match="digest must have 8 bytes, not 32"):
        Identity(1, 1, bytes(32))
    with pytest.raises(CircuitError, match="idle_cycles"):
        HostLink(IDENTITY, 0)


def test_sending_before_connecting_is_refused(host):
    with pytest.raises(ToolError, match="connect"):
        host.send(vectors(1)[0])
