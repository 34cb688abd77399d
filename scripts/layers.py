"""One token layer by layer: what the float model, the integer model and the circuit compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fixedpoint import QuantizedTransformer
from fixedpoint.quantization.analysis import tensor_formats
from fixedpoint.quantization.calibration import integer_factor
from hdl.board.selftest import TOKENS, token_stages
from hdl.decoder.accelerator import Turn
from hdl.errors import CircuitError
from model.transformer import Transformer

if TYPE_CHECKING:
    from sim.simulators.decoder_process import SimulatedDecoder

SHOWN = 96  # values of a tensor that are kept for a picture


@dataclass(frozen=True)
class StageValues:
    """A tensor of one token.

    Attributes:
        name: As the specification calls it.
        exact, integers: Its values in floats and, scaled back, in integers, `SHOWN` at most, evenly
            spaced over the channels.
        size: The largest of all float values.
        error: The largest difference of all values.
        decibels: Signal-to-noise ratio of all values; None without any difference.
        checksum: Of the integers, which the circuit gave too.
    """

    name: str
    exact: list[float]
    integers: list[float]
    size: float
    error: float
    decibels: float | None
    checksum: str


def layer_by_layer(
    model: Transformer, quantized: QuantizedTransformer, decoder: SimulatedDecoder, tokens: np.ndarray
) -> list[StageValues]:
    """Return what is computed at each stage for the last of a sequence's first tokens.

    Args:
        model: The float model.
        quantized: Its integer model.
        decoder: The circuit, probed.
        tokens: Integers (n,), of which the first few are taken.

    Raises:
        CircuitError: At some stage the circuit's checksum is not the integer model's.
    """
    sequence = tokens[: min(TOKENS, quantized.context_length)].tolist()
    formats = tensor_formats(quantized)
    exact: dict[str, np.ndarray] = {}
    integers: dict[str, np.ndarray] = {}
    model.forward(np.array([sequence]), observe=exact.__setitem__)
    quantized.forward(np.array([sequence]), observe=integers.__setitem__)
    found = []
    for stage in token_stages(decoder.machine, sequence):
        for place, token in enumerate(sequence):
            checksum = decoder.ask([Turn(token, place == 0)], stage.unit, stage.last)
        if checksum != stage.checksum:
            raise CircuitError(
                f"decoder: {stage.name} of token {len(sequence) - 1} has the checksum {checksum:08x}, the integer model's "
                f"has {stage.checksum:08x}"
            )
        wanted = exact[stage.name][0, -1].ravel().astype(np.float64) * integer_factor(model.config, stage.name)
        given = formats[stage.name].dequantize(integers[stage.name][0, -1].ravel())
        noise = np.square(wanted - given).sum()
        shown = np.unique(np.linspace(0, wanted.size - 1, min(SHOWN, wanted.size)).round().astype(int))
        found.append(
            StageValues(
                stage.name,
                [float(f"{value:.4g}") for value in wanted[shown]],
                [float(f"{value:.4g}") for value in given[shown]],
                float(np.abs(wanted).max()),
                float(np.abs(wanted - given).max()),
                float(10 * np.log10(np.square(wanted).sum() / noise)) if noise and wanted.any() else None,
                f"{checksum:08x}",
            )
        )
    return found
