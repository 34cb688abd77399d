"""Running benches: Verilog, builds that are kept, and the three simulators."""

import json
import os
import re
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from amaranth.back import rtlil, verilog
from amaranth.hdl import Elaboratable
from amaranth.sim import Simulator

from hdl import CircuitError, ToolError
from hdl.toolchain import require_tool, tool_version

from .bench import SimulationResult, StreamBench, judge, plan
from .builds import hash_texts, keep_objects, kept_build, refuse_spaces, simulator_environment, take_objects
from .harness import Harness
from .processes import run_logged, tail
from .streams import Exchange, Record
from .tools import NEEDED_TOOLS, default_simulator, missing_for

# cocotb's runner makes every signal public, which forbids Verilator to optimize; only the top's ports need to be.
VERILATOR_ARGUMENTS = ("-Wno-fatal", "-Wno-WIDTH", "--assert", "--x-initial", "unique", "--no-public-flat-rw")
PUBLIC_PORTS = "`verilator_config\n" + "".join(
    f'public_flat_rw -module "top" -var "{port}"\n' for port in ("clk", "rst", "inputs", "outputs")
)
# How a failed assertion looks in a log, after its message: Verilator's words, then Icarus's.
ASSERTION = re.compile(r"^(.*?)(?:\[\d+\] %Error: .*Assertion failed|ERROR: \S+top\.v:\d+:)", re.MULTILINE)
EMPTY_VALUE = "{0{1'b0}}"  # how Yosys writes a signal without bits in an assertion's message; Verilator refuses it
CLOCK_PERIOD = 10e-9  # seconds; of no consequence
EXECUTABLES = {"verilator": "top", "icarus": "sim.vvp"}


def simulate(
    bench: StreamBench,
    simulator: str | None = None,
    *,
    build_directory: str | Path,
    seed: int = 0,
    source_stall: float = 0.0,
    sink_stall: float = 0.0,
) -> SimulationResult:
    """Run a bench.

    Args:
        bench: What to run.
        simulator: 'verilator', 'icarus' or 'amaranth'; None takes the best that this machine has.
        build_directory: Where builds and logs are kept; a circuit that was built there before is not built again.
        seed: Of the stalls and of the rubbish between transfers.
        source_stall: Probability, each cycle, that a source pauses; 0 is full speed.
        sink_stall: Probability, each cycle, that a sink pauses.

    Raises:
        BenchFailure: The circuit did not do what the bench expects.
        ToolError: The simulator is missing or failed.
        CircuitError: The settings or the circuit are impossible.
    """
    if simulator is None:
        simulator, _ = default_simulator()
    missing = missing_for(simulator)
    if missing:
        raise ToolError(f"the simulator {simulator} lacks {', '.join(missing)}; --simulator amaranth needs nothing")
    build_directory = Path(build_directory).resolve()
    if simulator == "verilator":
        refuse_spaces(build_directory)
    for name, stall in (("source_stall", source_stall), ("sink_stall", sink_stall)):
        if not 0 <= stall < 1:
            raise CircuitError(f"{name} is a probability from 0 (full speed) to below 1 (never), not {stall}")
    started = time.perf_counter()
    harness = bench.harness()
    settings = plan(bench, harness, seed, source_stall, sink_stall)
    if simulator == "amaranth":
        record = _run_amaranth(harness, settings)
    else:
        record = _run_cocotb(bench.name, harness, settings, simulator, build_directory)
    judge(bench, record, settings, simulator)
    return SimulationResult(
        name=bench.name,
        simulator=simulator,
        transfers={port: len(words) for port, words in record.received.items()},
        cycles=record.cycles,
        total_cycles=record.total_cycles,
        seed=seed,
        source_stall=source_stall,
        sink_stall=sink_stall,
        seconds=time.perf_counter() - started,
        simulation_seconds=record.seconds,
    )


def _run_amaranth(harness: Harness, settings: dict) -> Record:
    """Run a plan in Amaranth's own simulator."""
    exchange = Exchange(settings)

    async def run(context):
        last = exchange.start()
        context.set(harness.inputs, last)
        async for _, _, outputs in context.tick().sample(harness.outputs):
            word = exchange.edge(outputs)
            if exchange.stopped:
                return
            if word != last:
                context.set(harness.inputs, word)
                last = word

    simulation = Simulator(harness)
    simulation.add_clock(CLOCK_PERIOD)
    simulation.add_testbench(run)
    started = time.perf_counter()
    try:
        simulation.run()
    except AssertionError as failure:
        record = exchange.record(time.perf_counter() - started)
        record.stopped, record.detail = "assertion", [str(failure)]
        return record
    return exchange.record(time.perf_counter() - started)


def to_verilog(circuit: Elaboratable) -> str:
    """Return a circuit as Verilog, its top module named `top`, made by the Yosys that pip has installed.

    Raises:
        ToolError: Yosys is missing.
    """
    # Amaranth finds Yosys by this variable; a user should not have to know.
    before = os.environ.get("YOSYS")
    os.environ["YOSYS"] = str(require_tool("yosys"))
    try:
        return verilog.convert(circuit, name="top", emit_src=False).replace(EMPTY_VALUE, "1'b0")
    finally:
        if before is None:
            del os.environ["YOSYS"]
        else:
            os.environ["YOSYS"] = before


def build(harness: Elaboratable, simulator: str, build_directory: Path) -> Path:
    """Return the directory with a circuit's simulator, built unless it has been before.

    The key is a hash of the circuit, the simulator's version and its options.

    Raises:
        ToolError: The build failed.
    """
    options = list(VERILATOR_ARGUMENTS) if simulator == "verilator" else []
    # RTLIL is what Verilog is made from, and is there a second earlier.
    circuit = rtlil.convert(harness, name="top", emit_src=False)
    tools = [version("cocotb"), *(f"{tool} {tool_version(tool)}" for tool in NEEDED_TOOLS[simulator])]
    library = build_directory / f"verilator-library-{hash_texts(*options, *tools)}"

    def make(directory: Path, log: Path) -> list[Path]:
        source = directory / "top.v"
        text = to_verilog(harness)
        if simulator == "icarus":
            # Icarus sets initial values before `always @*` starts to wait for a change, so a block that depends on nothing but
            # registers would leave its output undefined until one of them changes. `always_comb` runs once at the start.
            text = text.replace("always @*", "always_comb")
        source.write_text(text, encoding="utf-8")
        sources, objects = [source], directory / "build"
        objects.mkdir()
        if simulator == "verilator":
            control = directory / "ports.vlt"
            control.write_text(PUBLIC_PORTS)
            sources.append(control)
            take_objects(library, objects)
        job = {
            "task": "build",
            "simulator": simulator,
            "directory": str(objects),
            "sources": [str(file) for file in sources],
            "build_args": options,
        }
        status = _run_job(job, log, directory)
        product = objects / EXECUTABLES[simulator]
        if status or not product.exists():
            raise ToolError(f"{simulator} could not build the circuit (exit status {status}); {log} ends:\n{tail(log)}")
        if simulator == "verilator":
            keep_objects(objects, library)
        return [source, product]

    return kept_build(build_directory, f"{simulator}-{hash_texts(circuit, simulator, *options, *tools)}", make)


def _run_job(job: dict, log: Path, directory: Path) -> int:
    """Let `sim.cocotb_process` do a job."""
    description = directory / "job.json"
    description.write_text(json.dumps(job))
    return run_logged(
        [sys.executable, "-m", "sim.cocotb_process", str(description)], log, simulator_environment(), directory
    )


def _run_cocotb(name: str, harness: Harness, settings: dict, simulator: str, build_directory: Path) -> Record:
    """Run a plan with cocotb."""
    directory = build(harness, simulator, build_directory)
    # Runs of the same circuit at the same time must not share files.
    with tempfile.TemporaryDirectory(prefix="run-", dir=build_directory) as made:
        run_directory = Path(made)
        plan_file, record_file = run_directory / "plan.json", run_directory / "record.json"
        plan_file.write_text(json.dumps(settings))
        job = {
            "task": "run",
            "simulator": simulator,
            "directory": str(directory),
            "run_directory": str(run_directory),
            "environment": {"POSITRON_BENCH_PLAN": str(plan_file), "POSITRON_BENCH_RECORD": str(record_file)},
        }
        log = run_directory / "run.log"
        status = _run_job(job, log, run_directory)
        kept = build_directory / f"{''.join(c if c.isalnum() else '_' for c in name)}-{simulator}.log"
        output = log.read_text(encoding="utf-8", errors="replace")  # before another run of this name may replace it
        shutil.move(log, kept)
        record = Record(**json.loads(record_file.read_text())) if record_file.exists() else None
    failed = ASSERTION.search(output)
    if failed:
        if record is None:
            record = Record({port.name: [] for port in harness.sinks}, {port.name: 0 for port in harness.sources})
        record.stopped, record.detail = "assertion", [failed.group(1).strip() or "no message"]
    if record is None or not record.stopped:
        raise ToolError(f"{simulator} ended without a result (exit status {status}); {kept} ends:\n{tail(kept)}")
    return record
