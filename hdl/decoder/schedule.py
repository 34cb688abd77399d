"""Schedules as data: which unit works on what, in which order, and how long that takes.

A circuit's sequencer is generated from its `Schedule`, which also predicts the cycle count.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Operand(Enum):
    """What the multipliers' first operands are."""

    NONE = 0
    VECTOR = 1  # the token's vector, or the attention context after normalization
    QUERY = 2
    NUMERATORS = 3  # each head's exponential, broadcast to the head's lanes


class Source(Enum):
    """Which memory the multipliers' second operands come from."""

    NONE = 0
    WEIGHTS = 1
    KEYS = 2
    VALUES = 3


class Result(Enum):
    """Where the results go."""

    NONE = 0
    KEY = 1
    VALUE = 2
    QUERY = 3
    SCORES = 4
    CONTEXT = 5
    OUTPUT = 6


@dataclass(frozen=True)
class Step:
    """One stretch of work: `count` issues, one a cycle, then `drain` cycles until their results are
    complete.

    Attributes:
        name: For people.
        operand, source, result: What is multiplied by what, and where it goes.
        count: Issues; None means one for each token in the cache, the current one included.
        wait: Cycles before the first issue, spent waiting for an earlier step's results to arrive
            by handshake.
        drain: Cycles after the last issue before the next step may start.
    """

    name: str
    operand: Operand
    source: Source
    result: Result
    count: int | None
    wait: int = 0
    drain: int = 0

    def issues(self, tokens: int) -> int:
        """Return the number of issues with `tokens` tokens in the cache."""
        return tokens if self.count is None else self.count

    def cycles(self, tokens: int) -> int:
        """Return the step's cycles with `tokens` tokens in the cache."""
        return self.wait + self.issues(tokens) + self.drain


@dataclass(frozen=True)
class Schedule:
    """Steps in order, for one token."""

    steps: tuple[Step, ...]

    def cycles(self, tokens: int) -> int:
        """Return the cycles of a token that finds itself the `tokens`-th of its sequence (1 for the
        first), without stalls.
        """
        return sum(step.cycles(tokens) for step in self.steps)

    def timeline(self, tokens: int) -> Iterator[tuple[Step, int, int]]:
        """Yield each step with the cycles at which its issues begin and end (half open)."""
        now = 0
        for step in self.steps:
            start = now + step.wait
            yield step, start, start + step.issues(tokens)
            now += step.cycles(tokens)
