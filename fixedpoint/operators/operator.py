"""What every operator of the specification has in common, and the one that adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..arithmetic import Integers
from ..errors import QuantizationError
from ..qformat import IntegerArray, Overflow, QFormat, as_int64


class Operator(Protocol):
    """A function of integer tensors (..., channels)."""

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        """Formats of what it reads."""

    @property
    def output(self) -> QFormat:
        """Format of what it makes."""

    @property
    def compute(self) -> Callable[..., IntegerArray]:
        """The function: a tensor for each of `inputs`."""

    @property
    def output_channels(self) -> Callable[..., int]:
        """The output's channels for the inputs'; raises QuantizationError where they do not fit."""


class UnaryOperator:
    """An operator of one tensor, of format `input`, with as many channels out as in."""

    input: QFormat

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        """Formats of what it reads."""
        return (self.input,)

    def output_channels(self, channels: int) -> int:
        """Return the channels of the output."""
        return channels


@dataclass(frozen=True)
class ResidualAdd:
    """Saturating addition of a layer's output to the residual stream, all in one format.

    Attributes:
        output: Format of the residual stream.
    """

    output: QFormat

    @property
    def inputs(self) -> tuple[QFormat, ...]:
        """Formats of what it reads."""
        return self.output, self.output

    def output_channels(self, stream: int, update: int) -> int:
        """Return the channels of the output."""
        return same_channels(stream, update)

    def compute(self, stream: Integers, update: Integers) -> IntegerArray:
        """Return the saturated sum of tensors (..., C); the adder has one bit more than they."""
        return self.output.fit(as_int64(stream) + as_int64(update), Overflow.SATURATE)


def same_channels(expected: int, *others: int) -> int:
    """Return `expected` if all others are it.

    Raises:
        QuantizationError: One is not.
    """
    for channels in others:
        if channels != expected:
            raise QuantizationError(f"takes {expected} channels, not {channels}")
    return expected
