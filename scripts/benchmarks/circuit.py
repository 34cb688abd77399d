# amaranth: UnusedElaboratable=no
# (the circuit is built only to ask for its cycles)
"""Compare the attention circuit's speed with this machine's on the same layer.

The circuit's cycles a token follow from its program (test benches verify them cycle for cycle);
its clock is the synthesized one, or --frequency. The table compares it with NumPy on this machine:
the same layer in floating point, and its integer model.

Example:
  positron benchmark circuit runs/demo
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hdl.catalog.names import DEFAULT_FREQUENCY
from scripts.commands.synthesize import attention_of
from scripts.output import add_json_argument, format_table, write_json
from scripts.runs import add_run_argument, attention_synthesis, load_quantized, open_run

MINIMUM_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's arguments."""
    add_run_argument(parser)
    parser.add_argument("--layer", type=int, default=0, help="the transformer block (default: %(default)s)")
    parser.add_argument(
        "--frequency", type=float, metavar="MHZ", help="the circuit's clock (default: the synthesized one's)"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, and write the figures."""
    from hdl.tools.synthesis_report import read_report

    directory = open_run(arguments.run)
    report = read_report(attention_synthesis(directory))
    required = min((clock.required_mhz for clock in report.clocks), default=DEFAULT_FREQUENCY / 1e6) if report else None
    megahertz = arguments.frequency or required or DEFAULT_FREQUENCY / 1e6
    figures = measure(attention_of(load_quantized(directory), arguments.layer), megahertz)
    print(
        format_table(
            ("one attention layer", "tokens/s"),
            [
                (f"circuit, {megahertz:g} MHz, {figures['cycles_per_token']:,.0f} cycles a token", figures["circuit"]),
                ("this machine, NumPy float32, whole sequences at once", figures["float"]),
                ("this machine, integer model, whole sequences at once", figures["integer"]),
            ],
        )
    )
    if arguments.json:
        write_json(arguments.json, figures)
        print(f"figures: {arguments.json}")
    return 0


def measure(parameters: Any, megahertz: float) -> dict[str, float]:
    """Return tokens a second of the circuit and of this machine, for full-context sequences.

    Args:
        parameters: A `fixedpoint.Attention`.
        megahertz: The circuit's clock.
    """
    from hdl.decoder.attention import Attention

    length = parameters.context_length
    cycles = sum(map(Attention(parameters).token_cycles, range(length))) / length
    generator = np.random.default_rng(0)
    integers = generator.integers(-128, 128, (1, length, parameters.embed_dim))
    layer = float_layer(parameters)
    floats = integers.astype(np.float32)
    return {
        "megahertz": megahertz,
        "cycles_per_token": cycles,
        "circuit": megahertz * 1e6 / cycles,
        "float": length / fastest(lambda: layer(floats)),
        "integer": length / fastest(lambda: parameters.compute(integers)),
    }


def float_layer(parameters: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the same layer in float32, as plainly as NumPy allows without giving speed away."""
    query, key, value, output = (
        getattr(parameters, name).dequantized_weight().astype(np.float32).T.copy()
        for name in ("query", "key", "value", "output")
    )
    heads, length = parameters.num_heads, parameters.context_length
    mask = np.triu(np.full((length, length), -1e9, dtype=np.float32), 1)

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def layer(x: np.ndarray) -> np.ndarray:
        scores = split(x @ query) @ split(x @ key).transpose(0, 1, 3, 2) + mask
        weights = np.exp2(scores - scores.max(axis=-1, keepdims=True))
        context = weights @ split(x @ value) / weights.sum(axis=-1, keepdims=True)
        return np.asarray(context.transpose(0, 2, 1, 3).reshape(x.shape) @ output)

    return layer


def fastest(work: Callable[[], object]) -> float:
    """Return the shortest of many repetitions in seconds, after a warm-up."""
    work()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MINIMUM_SECONDS:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
