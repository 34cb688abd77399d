"""An accelerator for tests of the host link, the same as a function, and boards that have it."""

from collections import deque
from itertools import pairwise

import numpy as np
from amaranth.hdl import Module, ResetInserter, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator
from link_model import LinkModel
from serial_wire import CLOCK_PERIOD

from hdl.board.frames import FLAG
from hdl.board.link import HostLink, Identity

CHANNELS = 5
ANSWER_CYCLES = 120  # more than `Counting` needs behind a link
IDENTITY = Identity(CHANNELS, 7, bytes(range(0xF0, 0xF8)))


class Counting(wiring.Component):
    """Stands for the accelerator: 100·x + tokens since the sequence began, in reverse order of the
    elements.
    """

    i: In(stream.Signature(data.StructLayout({"data": signed(8), "restart": 1})))
    o: Out(stream.Signature(data.StructLayout({"data": signed(16), "last": 1})))

    def elaborate(self, platform):
        m = Module()
        elements = [Signal(signed(8), name=f"element_{place}") for place in range(CHANNELS)]
        count, index, position = Signal(range(CHANNELS)), Signal(range(CHANNELS)), Signal(8)
        started = Signal()
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.i.ready.eq(1)
                with m.If(self.i.valid):
                    m.d.sync += [here.eq(before) for here, before in zip(elements[1:], elements, strict=False)]
                    m.d.sync += [elements[0].eq(self.i.payload.data), count.eq(count + 1)]
                    with m.If(count == 0):
                        m.d.sync += [started.eq(1), position.eq(position + 1)]
                        with m.If(self.i.payload.restart | ~started | (position == IDENTITY.context_length - 1)):
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


class Count:
    """`Counting`, one token after the other."""

    def __init__(self):
        self.position = -1

    def __call__(self, vector, restart):
        self.position = 0 if restart else (self.position + 1) % IDENTITY.context_length
        return expected(vector, self.position)


def expected(vector, position):
    return 100 * np.asarray(vector)[::-1].astype(np.int16) + position


def expected_stream(tokens, restart):
    return np.array([count(*token) for count in [Count()] for token in zip(tokens, restart, strict=True)])


def vectors(count, seed=1):
    return np.random.default_rng(seed).integers(-128, 128, (count, CHANNELS), dtype=np.int8)


class ModelBoard(LinkModel):
    """A board in Python."""

    def __init__(self):
        super().__init__(IDENTITY, Count())

    def reset(self):
        super().reset()
        self.accelerate = Count()


class CircuitBoard:
    """The link's circuit and the accelerator, a byte a cycle; a frame waits until the one before
    was answered.
    """

    def __init__(self):
        self.answer_cycles = ANSWER_CYCLES
        m = Module()
        m.submodules.link = self.link = HostLink(IDENTITY)
        m.submodules.accelerator = accelerator = Counting()
        wiring.connect(m, self.link.o_token, accelerator.i)
        wiring.connect(m, accelerator.o, self.link.i_result)
        self._reset = Signal()
        self._simulator = Simulator(ResetInserter(self._reset)(m))
        self._simulator.add_clock(CLOCK_PERIOD)
        self._simulator.add_testbench(self._feed, background=True)
        self._simulator.add_testbench(self._collect, background=True)
        self._outgoing, self._collected, self._cycles = deque(), bytearray(), 0

    def exchange(self, received):
        self._outgoing.extend(received)
        while self._outgoing:
            self._run(10)
        self._run(ANSWER_CYCLES)
        answer = bytes(self._collected)
        self._collected.clear()
        return answer

    def reset(self):
        self._outgoing.append(None)
        self._run(5)

    def _run(self, cycles):
        self._cycles += cycles
        self._simulator.run_until(self._cycles * CLOCK_PERIOD)

    async def _feed(self, context):
        port, inside = self.link.i_bytes, False
        while True:
            item = self._outgoing.popleft() if self._outgoing else -1
            context.set(self._reset, item is None)
            context.set(port.valid, item is not None and item >= 0)
            context.set(port.payload, max(item or 0, 0))
            await context.tick()
            context.set(port.valid, 0)
            if item == FLAG and inside and self.answer_cycles:
                await context.tick().repeat(self.answer_cycles)
            inside = item != FLAG and (inside or item != -1)

    async def _collect(self, context):
        port = self.link.o_bytes
        context.set(port.ready, 1)
        async for _, _, valid, payload in context.tick().sample(port.valid, port.payload):
            if valid:
                self._collected.append(payload)
