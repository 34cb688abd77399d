"""Stalls and resets of a run: one definition for every simulator."""

from dataclasses import dataclass

from hdl import CircuitError

SEED_BITS = 32


@dataclass(frozen=True)
class Stalls:
    """How sources and sinks pause, and when the circuit is reset.

    Most pauses last a cycle; one in some thousand is long, up to thousands of cycles, as
    `sim.bench.streams.long_pause` says. A long pause and the sinks' delay do not count as a
    deadlock.

    With a reset in the middle, the run begins as any other, and what the circuit gives is compared.
    After `reset_after` cycles, or when all is done if that is earlier, the reset is high at one
    clock edge, without a transfer; then everything is offered and expected again, from the first
    word on.

    Attributes:
        seed: Of everything below, and of the random data between transfers.
        source: Probability, each cycle, that a source pauses; 0 is full speed.
        sink: Probability that a sink pauses.
        reset_after: Cycles after which the circuit is reset and all begins again; 0: no reset.
        sink_delay: Cycles after every reset in which the first sink takes no word, so that all
            queues fill up. The second sink waits twice as long, the third three times, and so on.
    """

    seed: int = 0
    source: float = 0.0
    sink: float = 0.0
    reset_after: int = 0
    sink_delay: int = 0

    def __post_init__(self) -> None:
        """Refuse a run that never ends."""
        if not (0 <= self.source < 1 and 0 <= self.sink < 1):
            raise CircuitError(
                f"a stall is a probability from 0 to below 1, not {self.source} (source), {self.sink} (sink)"
            )
        if not (0 <= self.seed < 1 << SEED_BITS and self.reset_after >= 0):
            raise CircuitError(
                f"a seed has 32 bits and a reset comes after 0 or more cycles, not {self.seed}, {self.reset_after}"
            )
        if self.sink_delay < 0:
            raise CircuitError(f"the sinks' delay is 0 or more cycles, not {self.sink_delay}")

    def __str__(self) -> str:
        """Everything that repeats the run, for a message."""
        reset = f", reset after {self.reset_after}" if self.reset_after else ""
        sink_delay = f", sink delay {self.sink_delay}" if self.sink_delay else ""
        return f"seed {self.seed}, source stall {self.source:g}, sink stall {self.sink:g}{reset}{sink_delay}"

    @property
    def at_full_speed(self) -> bool:
        """Whether nothing pauses."""
        return self.source == 0 and self.sink == 0 and self.sink_delay == 0
