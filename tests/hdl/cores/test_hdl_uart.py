# amaranth: UnusedElaboratable=no
import random

import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator
from serial_wire import CLOCK_PERIOD, send_frame

from hdl import CircuitError
from hdl.cores.uart import UART, UARTReceiver, UARTTransmitter, baud_divisor
from sim.bench.bench import StreamBench
from sim.bench.core_benches import Wired
from sim.simulators.runner import simulate


def receive(stimulus, divisor=16, ready=lambda: 1):
    """Run a receiver while `stimulus(context, wire)` drives its wire; return bytes, framing errors,
    overruns.
    """
    receiver = UARTReceiver(divisor)
    received, events = [], {"framing_error": 0, "overrun": 0}

    async def drive(context):
        context.set(receiver.rx, 1)
        await context.delay(2 * divisor * CLOCK_PERIOD)
        await stimulus(context, receiver.rx)
        await context.delay(12 * divisor * CLOCK_PERIOD)

    async def monitor(context):
        async for _, reset, valid, payload, accepted, framing_error, overrun in context.tick().sample(
            receiver.o.valid, receiver.o.payload, receiver.o.ready, receiver.framing_error, receiver.overrun
        ):
            assert not reset
            if valid and accepted:
                received.append(payload)
            events["framing_error"] += framing_error
            events["overrun"] += overrun
            context.set(receiver.o.ready, ready())

    simulator = Simulator(receiver)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(drive)
    simulator.add_testbench(monitor, background=True)
    simulator.run()
    return received, events["framing_error"], events["overrun"]


def frames(values, bit_seconds, stop=1, gap=0.0):
    async def stimulus(context, wire):
        for value in values:
            await send_frame(context, wire, value, bit_seconds, stop)
            context.set(wire, 1)
            if gap:
                await context.delay(gap)

    return stimulus


@pytest.mark.parametrize("divisor", [4, 5, 16, 50])
@pytest.mark.parametrize("mismatch", [-0.02, 0.0, 0.02])
def test_receiver_takes_back_to_back_bytes_from_a_sender_two_percent_off(divisor, mismatch):
    generator = random.Random(divisor)
    values = [0x00, 0xFF, 0x55, 0xAA, *(generator.randrange(256) for _ in range(40))]
    bit_seconds = divisor * CLOCK_PERIOD * (1 + mismatch)
    assert receive(frames(values, bit_seconds), divisor) == (values, 0, 0)


def test_receiver_takes_every_byte_value():
    assert receive(frames(range(256), 8 * CLOCK_PERIOD), 8) == (list(range(256)), 0, 0)


def test_a_sender_ten_percent_off_is_not_understood():
    values = [0x80, 0x00, 0x7F, 0xFF] * 4
    assert receive(frames(values, 16 * CLOCK_PERIOD * 0.9))[0] != values


def test_a_byte_without_stop_bit_is_dropped_and_the_next_ones_are_taken():
    bit_seconds = 16 * CLOCK_PERIOD

    async def stimulus(context, wire):
        await send_frame(context, wire, 0x12, bit_seconds)
        await send_frame(context, wire, 0x34, bit_seconds, stop=0)
        await context.delay(30 * bit_seconds)  # a break: the wire stays low for longer than a byte
        context.set(wire, 1)
        await context.delay(2 * bit_seconds)
        await send_frame(context, wire, 0x56, bit_seconds)
        context.set(wire, 1)

    assert receive(stimulus) == ([0x12, 0x56], 1, 0)


def test_a_glitch_shorter_than_half_a_bit_starts_no_byte():
    bit_seconds = 16 * CLOCK_PERIOD

    async def stimulus(context, wire):
        for length in (0.1, 0.25, 0.4):
            context.set(wire, 0)
            await context.delay(length * bit_seconds)
            context.set(wire, 1)
            await context.delay(bit_seconds)
        await send_frame(context, wire, 0xA5, bit_seconds)
        context.set(wire, 1)

    assert receive(stimulus) == ([0xA5], 0, 0)


def test_a_byte_that_nobody_takes_is_kept_and_later_ones_are_counted_as_overrun():
    asked = iter(range(1 << 30))
    ready = lambda: next(asked) > 16 * 10 * 3 + 60  # noqa: E731 (a stall of three bytes)
    received, _, overruns = receive(frames([1, 2, 3, 4, 5], 16 * CLOCK_PERIOD), ready=ready)
    assert received[0] == 1
    assert received[-1] == 5
    assert overruns == 5 - len(received) > 0


@pytest.mark.parametrize("divisor", [4, 7, 16])
def test_transmitter_frames_have_exact_bits_and_leave_back_to_back(divisor):
    transmitter = UARTTransmitter(divisor)
    values = [0x00, 0xFF, 0x35, 0xCA]
    levels = []

    async def drive(context):
        for value in values:
            context.set(transmitter.i.payload, value)
            context.set(transmitter.i.valid, 1)
            await context.tick().until(transmitter.i.ready)
        context.set(transmitter.i.valid, 0)
        context.set(transmitter.i.payload, 0x99)
        await context.tick().repeat(12 * divisor)

    async def monitor(context):
        async for _, _, level in context.tick().sample(transmitter.tx):
            levels.append(level)

    simulator = Simulator(transmitter)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(drive)
    simulator.add_testbench(monitor, background=True)
    simulator.run()

    expected = []
    for value in values:
        bits = [0, *((value >> place) & 1 for place in range(8)), 1]
        expected += [bit for bit in bits for _ in range(divisor)]
    start = levels.index(0)
    assert levels[start : start + len(expected)] == expected
    assert set(levels[:start] + levels[start + len(expected) :]) == {1}


def test_transmitter_and_receiver_understand_each_other_under_stalls():
    m = Module()
    m.submodules.transmitter = transmitter = UARTTransmitter(5)
    m.submodules.receiver = receiver = UARTReceiver(5)
    m.d.comb += receiver.rx.eq(transmitter.tx)
    generator = random.Random(3)
    values = [generator.randrange(256) for _ in range(60)]
    received = []

    async def drive(context):
        for value in values:
            await context.tick().repeat(generator.randrange(1, 80))
            context.set(transmitter.i.payload, value)
            context.set(transmitter.i.valid, 1)
            await context.tick().until(transmitter.i.ready)
            context.set(transmitter.i.valid, 0)
        await context.tick().repeat(100)

    async def monitor(context):
        async for _, _, valid, value, ready in context.tick().sample(
            receiver.o.valid, receiver.o.payload, receiver.o.ready
        ):
            if valid and ready:
                received.append(value)
            context.set(receiver.o.ready, generator.random() < 0.2)

    simulator = Simulator(m)
    simulator.add_clock(CLOCK_PERIOD)
    simulator.add_testbench(drive)
    simulator.add_testbench(monitor, background=True)
    simulator.run()
    assert received == values


def test_every_byte_goes_out_and_comes_back(tmp_path):
    """The transmitter's wire led to the receiver, all 256 bytes back to back."""
    values = list(range(256))
    bench = StreamBench("uart", Wired(UART(4), {"rx": "tx"}), {"i": values}, {"o": values})
    simulate(bench, "amaranth", build_directory=tmp_path)


def test_divisor_is_the_nearest_number_of_cycles():
    assert baud_divisor(25e6, 115_200) == 217
    assert baud_divisor(50e6, 1_000_000) == 50
    assert baud_divisor(110e6, 921_600) == 119


@pytest.mark.parametrize(
    ("clock", "baud", "message"),
    [
        (1e6, 1e6, "needs a clock of at least 4,000,000 Hz, not 1,000,000 Hz"),
        (4.5e6, 1e6, "12.5% off 1,000,000"),
        (0, 115_200, "positive"),
        (1e6, -1, "positive"),
    ],
)
def test_unreachable_rates_are_refused(clock, baud, message):
    with pytest.raises(CircuitError, match=message):
        baud_divisor(clock, baud)


@pytest.mark.parametrize("divisor", [3, 0, -1, 8.0, True])
@pytest.mark.parametrize("component", [UARTReceiver, UARTTransmitter])
def test_useless_divisors_are_refused(component, divisor):
    with pytest.raises(CircuitError, match="divisor"):
        component(divisor)
