"""Simulators for tests to run through, and Verilog test benches of the tests' own."""

from pathlib import Path

import pytest

from sim.simulators.tools import SIMULATORS
from sim.simulators.verilog_bench import compiled_bench

ICARUS = pytest.param("icarus", marks=pytest.mark.icarus)
EVERY_VERILOG_SIMULATOR = ["verilator", ICARUS]
EVERY_SIMULATOR = [ICARUS if name == "icarus" else name for name in SIMULATORS]


def run_bench(directory: Path, sources: dict[str, str], simulator: str = "verilator") -> list[str]:
    """Write the sources into the directory, run their module `bench`, and return what each run
    printed.
    """
    for name, text in sources.items():
        (directory / name).write_text(text)
    with compiled_bench(directory, "bench", list(sources), simulator) as bench:
        return bench.run(directory)


def counts(outputs: list[str]) -> list[tuple[int, ...]]:
    """The numbers that each run printed in its last line that holds nothing else."""
    return [
        tuple(map(int, [line for line in output.splitlines() if line.replace(" ", "").isdigit()][-1].split()))
        for output in outputs
    ]
