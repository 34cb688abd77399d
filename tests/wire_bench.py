"""A board's circuit in Verilator, on a serial wire driven by C++ (`wire.cpp`)."""

import struct
import subprocess
from pathlib import Path

from amaranth.lib import wiring

from hdl import ToolError
from hdl.cores.uart import FRAME_BITS
from sim.simulators.builds import simulator_environment
from sim.simulators.native_bench import compile_bench

SOURCE = Path(__file__).with_name("wire.cpp")
COUNT = struct.Struct("=I")


class WireBoard:
    """A running simulation of a circuit with wires `rx` and `tx`. A context manager: leaving it
    ends the simulation.

    Args:
        name: For messages.
        circuit: With ports `rx` and `tx` in its signature, such as
            `hdl.board.boards.SerialAccelerator`.
        divisor: Its clock cycles of a bit.
        quiet_cycles: The answer is complete when the circuit has sent nothing for so many cycles.
        build_directory: Where compiled simulations are kept.

    Raises:
        ToolError: A tool is missing or failed.
    """

    def __init__(self, name: str, circuit: wiring.Component, divisor: int, quiet_cycles: int, build_directory: Path):
        directory = compile_bench(name, circuit, {}, SOURCE, build_directory)
        self._process = subprocess.Popen(
            [directory / "bench", str(divisor), str(quiet_cycles + FRAME_BITS * divisor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=simulator_environment(),
        )

    def __enter__(self) -> "WireBoard":
        """Return the board."""
        return self

    def __exit__(self, *failure: object) -> None:
        """End the simulation."""
        self._process.communicate()

    def exchange(self, received: bytes) -> bytes:
        """Return what the board sends when it receives these bytes.

        Raises:
            ToolError: The simulation ended, or the board sent a byte without its stop bit.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(b"W" + COUNT.pack(len(received)) + received)
        stdin.flush()
        count = stdout.read(COUNT.size)
        if len(count) != COUNT.size:
            status = self._process.wait()
            raise ToolError(
                "the board sent a byte without its stop bit" if status == 1 else f"the simulation ended ({status})"
            )
        return stdout.read(COUNT.unpack(count)[0])

    def reset(self) -> None:
        """Press the board's reset button."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"R")
