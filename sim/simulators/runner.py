"""Running benches: Verilog, builds that are kept, and the three simulators."""

import contextlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator

from hdl import CircuitError, ToolError
from hdl.tools.toolchain import run_tool, tool_version

from ..bench.bench import SimulationResult, StreamBench, judge, plan
from ..bench.harness import Harness
from ..bench.stalls import Stalls
from ..bench.streams import Exchange, Record
from .builds import Compilation, copy_library, hash_texts, kept_build, refuse_spaces, simulator_environment
from .processes import run_logged, tail
from .tools import NEEDED_TOOLS, default_simulator, missing_for

# cocotb's runner makes every signal public, which forbids Verilator to optimize; only the top's
# ports need to be.
VERILATOR_ARGUMENTS = ("-Wno-fatal", "-Wno-WIDTH", "--x-initial", "unique", "--no-public-flat-rw")
# A run spends its time in Python, so what counts is how long the circuit takes to compile.
COMPILATION = Compilation(
    ("--assert", "--vpi", "--no-timing", "--output-split", "0"),
    "-O0",
    '#include "verilated.h"\n#include "verilated_vpi.h"\n',
    "verilated_dpi.o",
)
PUBLIC_PORTS = "`verilator_config\n" + "".join(
    f'public_flat_rw -module "top" -var "{port}"\n' for port in ("clk", "rst", "inputs", "outputs")
)
# As Amaranth's own conversion, with the Yosys from pip: processes keep their assertions.
YOSYS_SCRIPT = "read_rtlil top.il; proc -nomux -norom; memory_collect; write_verilog -norename top.v"
# A failed assertion in a log, after its message: Verilator's form, then Icarus's.
ASSERTION = re.compile(r"^(.*?)(?:\[\d+\] %Error: .*Assertion failed|FATAL: \S+top\.v:\d+:)", re.MULTILINE)
IMMEDIATE_ASSERTION = re.compile(r"^(\s*assert \(.*\));$", re.MULTILINE)
# how Yosys writes a signal without bits in an assertion's message; Verilator refuses it
EMPTY_VALUE = "{0{1'b0}}"
CLOCK_PERIOD = 10e-9  # seconds; any would do
EXECUTABLES = {"verilator": "top", "icarus": "sim.vvp"}


def simulate(
    bench: StreamBench,
    simulator: str | None = None,
    *,
    build_directory: str | Path,
    seed: int = 0,
    source_stall: float = 0.0,
    sink_stall: float = 0.0,
    reset_after: int = 0,
    sink_delay: int = 0,
    waveform: str | Path | None = None,
) -> SimulationResult:
    """Run a bench.

    Args:
        bench: What to run.
        simulator: 'verilator', 'icarus' or 'amaranth'; None takes the best that this machine has.
        build_directory: Where builds and logs are kept; a circuit that was built there before is
            not built again.
        seed: Of the stalls and of the random data between transfers.
        source_stall: Probability, each cycle, that a source pauses; 0 is full speed.
        sink_stall: Probability, each cycle, that a sink pauses.
        reset_after: Cycles after which the circuit is reset and all begins again, as
            `sim.bench.stalls.Stalls` says; 0: no reset.
        sink_delay: Cycles after a reset in which no sink takes a word, likewise.
        waveform: Where Amaranth's simulator writes all signals as VCD, also of a run that fails.

    Raises:
        BenchFailure: The circuit did not do what the bench expects.
        ToolError: The simulator is missing or failed.
        CircuitError: The settings or the circuit are impossible.
    """
    stalls = Stalls(int(seed), float(source_stall), float(sink_stall), int(reset_after), int(sink_delay))
    return simulate_each(bench, [stalls], simulator, build_directory=build_directory, waveform=waveform)[0]


def simulate_each(
    bench: StreamBench,
    stalls: Sequence[Stalls],
    simulator: str | None = None,
    *,
    build_directory: str | Path,
    waveform: str | Path | None = None,
) -> list[SimulationResult]:
    """Run a bench several times, one run after the other on the same circuit, which is built and
    started only once.

    Each run begins with a reset, so it finds registers as after power-up, but memories as the run
    before has left them.

    Args:
        bench: What to run.
        stalls: Stalls and resets of each run.
        simulator: As for `simulate`.
        build_directory: As for `simulate`.
        waveform: As for `simulate`; of all runs.

    Raises:
        BenchFailure, ToolError, CircuitError: As for `simulate`.
    """
    if simulator is None:
        simulator, _ = default_simulator()
    missing = missing_for(simulator)
    if missing:
        raise ToolError(f"the simulator {simulator} lacks {', '.join(missing)}; --simulator amaranth needs nothing")
    if waveform is not None and simulator != "amaranth":
        raise CircuitError(f"a waveform is written by the simulator amaranth, not by {simulator}")
    build_directory = Path(build_directory).resolve()
    if simulator == "verilator":
        refuse_spaces(build_directory)
    if not stalls:
        raise CircuitError(f"bench {bench.name} needs at least one run, or it cannot fail")
    started = time.perf_counter()
    harness = bench.harness()
    settings = plan(bench, harness)
    if simulator == "amaranth":
        records = _run_amaranth(harness, settings, stalls, waveform)
    else:
        records = _run_cocotb(bench.name, harness, settings, stalls, simulator, build_directory)
    for record, one in zip(records, stalls, strict=False):  # a run that is not done is the last one
        judge(bench, record, one, simulator)
    seconds = time.perf_counter() - started
    return [
        SimulationResult(
            name=bench.name,
            simulator=simulator,
            transfers={port: len(words) for port, words in record.received.items()},
            cycles=record.cycles,
            total_cycles=record.total_cycles,
            seed=one.seed,
            source_stall=one.source,
            sink_stall=one.sink,
            reset_after=one.reset_after,
            sink_delay=one.sink_delay,
            seconds=seconds,
            simulation_seconds=record.seconds,
        )
        for record, one in zip(records, stalls, strict=True)
    ]


def _run_amaranth(
    harness: Harness, settings: dict, stalls: Sequence[Stalls], waveform: str | Path | None
) -> list[Record]:
    """Run a plan in Amaranth's own simulator, until a run is not done."""
    records: list[Record] = []
    exchange, started = Exchange(settings, asdict(stalls[0])), 0.0

    async def run(context: Any) -> None:
        nonlocal exchange, started
        for one in stalls:
            exchange, started = Exchange(settings, asdict(one)), time.perf_counter()
            last = exchange.start()
            context.set(harness.inputs, last)
            async for _, _, outputs in context.tick().sample(harness.outputs):
                word = exchange.edge(outputs)
                if exchange.stopped:
                    break
                if word != last:
                    context.set(harness.inputs, word)
                    last = word
            records.append(exchange.record(time.perf_counter() - started))
            if exchange.stopped != "done":
                return

    simulation = Simulator(harness)
    simulation.add_clock(CLOCK_PERIOD)
    simulation.add_testbench(run)
    try:
        with contextlib.nullcontext() if waveform is None else simulation.write_vcd(str(waveform)):
            simulation.run()
    except AssertionError as failure:
        record = exchange.record(time.perf_counter() - started)
        record.stopped, record.detail = "assertion", [str(failure)]
        records.append(record)
    return records


def to_verilog(circuit: Elaboratable) -> str:
    """Return a circuit as Verilog, as `rtlil_to_verilog` does."""
    return rtlil_to_verilog(rtlil.convert(circuit, name="top", emit_src=False))


def rtlil_to_verilog(netlist: str) -> str:
    """Return a netlist in RTLIL as Verilog, its top module named `top`.

    Raises:
        ToolError: Yosys is missing or failed.
    """
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        (directory / "top.il").write_text(netlist, encoding="utf-8")
        run_tool("yosys", ("-q", "-p", YOSYS_SCRIPT), directory)
        return (directory / "top.v").read_text(encoding="utf-8").replace(EMPTY_VALUE, "1'b0")


def build(harness: Elaboratable, simulator: str, build_directory: Path) -> Path:
    """Return the directory with a circuit's simulator, built unless it has been before.

    The key is a hash of the circuit, the simulator's version and its options.

    Raises:
        ToolError: The build failed.
    """
    options = [*VERILATOR_ARGUMENTS, *COMPILATION.options] if simulator == "verilator" else []
    # RTLIL rather than the Verilog made from it: that takes a second longer.
    circuit = rtlil.convert(harness, name="top", emit_src=False)
    tools = [version("cocotb"), *(f"{tool} {tool_version(tool)}" for tool in NEEDED_TOOLS[simulator])]

    def make_verilog(directory: Path, log: Path) -> list[Path]:
        (directory / "top.v").write_text(rtlil_to_verilog(circuit), encoding="utf-8")
        return [directory / "top.v"]

    def make(directory: Path, log: Path) -> list[Path]:
        source = directory / "top.v"
        # the same for both simulators
        verilog_key = f"verilog-{hash_texts(circuit, tool_version('yosys') or '')}"
        text = (kept_build(build_directory, verilog_key, make_verilog) / "top.v").read_text(encoding="utf-8")
        if simulator == "icarus":
            # Icarus sets initial values before `always @*` starts to wait for a change, so a block
            # that depends on nothing but registers would leave its output undefined until one of
            # them changes. `always_comb` runs once at the start.
            text = text.replace("always @*", "always_comb")
            # It would report a failed assertion and go on.
            text = IMMEDIATE_ASSERTION.sub(r"\1 else $fatal;", text)
        source.write_text(text, encoding="utf-8")
        sources, objects, make_flags = [source], directory / "build", []
        objects.mkdir()
        if simulator == "verilator":
            control = directory / "ports.vlt"
            control.write_text(PUBLIC_PORTS)
            sources.append(control)
            library = COMPILATION.library(build_directory)
            copy_library(library, objects)
            make_flags = COMPILATION.flags(library)
        job = {
            "task": "build",
            "simulator": simulator,
            "directory": str(objects),
            "sources": [str(file) for file in sources],
            "build_args": options,
        }
        status = _run_job(job, log, directory, make_flags)
        product = objects / EXECUTABLES[simulator]
        if status or not product.exists():
            raise ToolError(f"{simulator} could not build the circuit (exit status {status}); {log} ends:\n{tail(log)}")
        return [source, product]

    return kept_build(
        build_directory, f"{simulator}-{hash_texts(circuit, simulator, *options, *COMPILATION.flags(), *tools)}", make
    )


def _run_job(job: dict, log: Path, directory: Path, make_flags: Sequence[str] = ()) -> int:
    """Let `sim.simulators.cocotb_process` do a job; cocotb's runner has no arguments for make."""
    description = directory / "job.json"
    description.write_text(json.dumps(job))
    command = [sys.executable, "-P", "-m", "sim.simulators.cocotb_process", str(description)]
    environment = {"MAKEFLAGS": " ".join(flag.replace(" ", "\\ ") for flag in make_flags)}
    return run_logged(command, log, {**simulator_environment(), **environment}, directory)


def _run_cocotb(
    name: str, harness: Harness, settings: dict, stalls: Sequence[Stalls], simulator: str, build_directory: Path
) -> list[Record]:
    """Run a plan with cocotb, until a run is not done."""
    directory = build(harness, simulator, build_directory)
    # Runs of the same circuit at the same time must not share files.
    with tempfile.TemporaryDirectory(prefix="run-", dir=build_directory) as made:
        run_directory = Path(made)
        plan_file, record_file = run_directory / "plan.json", run_directory / "records.json"
        plan_file.write_text(json.dumps({"plan": settings, "stalls": [asdict(one) for one in stalls]}))
        job = {
            "task": "run",
            "simulator": simulator,
            "directory": str(directory),
            "run_directory": str(run_directory),
            "environment": {"POSITRON_BENCH_PLAN": str(plan_file), "POSITRON_BENCH_RECORDS": str(record_file)},
        }
        log = run_directory / "run.log"
        status = _run_job(job, log, run_directory)
        kept = build_directory / f"{''.join(c if c.isalnum() else '_' for c in name)}-{simulator}.log"
        # before another run of this name may replace it
        output = log.read_text(encoding="utf-8", errors="replace")
        shutil.move(log, kept)
        records = [Record(**one) for one in json.loads(record_file.read_text())] if record_file.exists() else []
    failed = ASSERTION.search(output)
    if failed:
        if not records or (records[-1].stopped == "done" and len(records) < len(stalls)):
            records.append(
                Record({port.name: [] for port in harness.sinks}, {port.name: 0 for port in harness.sources})
            )
        records[-1].stopped, records[-1].detail = "assertion", [failed.group(1).strip() or "no message"]
    elif not records or not records[-1].stopped or (records[-1].stopped == "done" and len(records) < len(stalls)):
        raise ToolError(f"{simulator} ended without a result (exit status {status}); {kept} ends:\n{tail(kept)}")
    return records
