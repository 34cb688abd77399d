"""The one cocotb test: runs inside Verilator or Icarus, reads its plan from a file and writes down
what happened, run by run.

The verdict falls outside (`sim.bench.bench.judge`), so it is the same for every simulator. Only
handles of the two words of `sim.bench.harness` are touched, once each per clock edge, on the rising
edge itself: values read there are those before the edge.
"""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from .streams import Exchange, Record

PLAN_VARIABLE, RECORDS_VARIABLE = "POSITRON_BENCH_PLAN", "POSITRON_BENCH_RECORDS"


def _split_undefined(text: str) -> tuple[int, int]:
    """Return a four-valued word's ones, and the mask of its bits that are neither 0 nor 1."""
    ones = int("".join("1" if bit == "1" else "0" for bit in text), 2)
    return ones, int("".join("0" if bit in "01" else "1" for bit in text), 2)


def _write(records: list[Record]) -> None:
    path = Path(os.environ[RECORDS_VARIABLE])
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps([asdict(record) for record in records]))
    temporary.replace(path)


@cocotb.test()
async def run_plan(dut: Any) -> None:
    """Exchange words with the circuit until every run is done."""
    job = json.loads(Path(os.environ[PLAN_VARIABLE]).read_text())
    inputs, outputs, edge = dut.inputs, dut.outputs, RisingEdge(dut.clk)
    dut.rst.value = 0
    Clock(dut.clk, 10, unit="ns").start(start_high=False)
    records: list[Record] = []
    for stalls in job["stalls"]:
        exchange = Exchange(job["plan"], stalls)
        inputs.value = last = exchange.start()
        started = time.perf_counter()
        try:
            while not exchange.stopped:
                await edge
                text = str(outputs.value)
                try:
                    word = exchange.edge(int(text, 2))
                except ValueError:
                    word = exchange.edge(*_split_undefined(text))
                if word != last:
                    inputs.value = last = word
        finally:  # an assertion of the circuit ends the simulation from outside
            records.append(exchange.record(time.perf_counter() - started))
            _write(records)
        if exchange.stopped != "done":
            return
