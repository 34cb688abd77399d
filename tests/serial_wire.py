"""A serial wire in Amaranth's simulator: senders and listeners that keep their own time, as the far
end of a cable does.
"""

from collections import deque

CLOCK_PERIOD = 1e-8


async def send_frame(context, wire, byte, bit_seconds, stop=1):
    """Drive one 8N1 frame."""
    for bit in (0, *((byte >> place) & 1 for place in range(8)), stop):
        context.set(wire, bit)
        await context.delay(bit_seconds)


class SimulatedPort:
    """A simulated UART with the interface of `serial.Serial`: reading lets simulated time pass.

    Args:
        simulator: With its clock added and `rx`, `tx` driven by nobody else.
        rx, tx: The circuit's wires.
        bit_seconds: Duration of a bit on the host's side.
        timeout: Simulated seconds without a byte after which a read gives up.
    """

    def __init__(self, simulator, rx, tx, bit_seconds, timeout):
        self.simulator, self.rx, self.tx, self.bit_seconds, self.timeout = simulator, rx, tx, bit_seconds, timeout
        self.now = 0.0
        self.outgoing, self.incoming = deque(), deque()
        self.sent = 0
        self.framing_errors = 0
        simulator.add_testbench(self._send, background=True)
        simulator.add_testbench(self._listen, background=True)
        self.wait(bit_seconds)  # the line is idle before anybody speaks

    async def _send(self, context):
        context.set(self.rx, 1)
        while True:
            if self.outgoing:
                await send_frame(context, self.rx, self.outgoing.popleft(), self.bit_seconds)
                self.sent += 1
            else:
                await context.delay(self.bit_seconds)

    async def _listen(self, context):
        while True:
            if context.get(self.tx):
                await context.changed(self.tx)
                continue
            await context.delay(1.5 * self.bit_seconds)
            byte = 0
            for place in range(8):
                byte |= context.get(self.tx) << place
                await context.delay(self.bit_seconds)
            if context.get(self.tx):
                self.incoming.append(byte)
            else:
                self.framing_errors += 1

    def wait(self, seconds):
        self.now += seconds
        self.simulator.run_until(self.now)

    def read(self, size):
        deadline = self.now + self.timeout
        count = len(self.incoming)
        while len(self.incoming) < size and self.now < deadline:
            self.wait(5 * self.bit_seconds)
            if self.outgoing or len(self.incoming) != count:
                deadline, count = self.now + self.timeout, len(self.incoming)
        return bytes(self.incoming.popleft() for _ in range(min(size, len(self.incoming))))

    def write(self, data):
        self.outgoing.extend(data)
        return len(data)

    def flush(self):
        """Do nothing: a read's timeout begins when all has been sent."""

    @property
    def in_waiting(self):
        return len(self.incoming)

    def reset_input_buffer(self):
        self.incoming.clear()
