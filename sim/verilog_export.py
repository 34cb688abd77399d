"""Writing a core with its interface and test bench for other projects; running such a bench."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from amaranth.lib import wiring

from fixedpoint import atomic_directory
from hdl import ToolError
from hdl.catalog.registry import CoreEntry
from hdl.tools.verilog import VerilogPort, interface_text, memory_text, stream_ports, testbench, to_plain_verilog
from model.errors import InputError

from .bench.core_benches import CoreWords, core_words
from .simulators.verilog_bench import compiled_bench

# What the commands that stand in an exported bench leave beside it.
LEFT_BY_HAND = ("bench", "obj_dir")


def module_name(entry: CoreEntry) -> str:
    """Return a core's name as a Verilog identifier."""
    return entry.name.replace("-", "_")


def bench_files(
    entry: CoreEntry, module: str, core: wiring.Component, ports: Sequence[VerilogPort], words: CoreWords
) -> dict[str, str]:
    """Return a core's Verilog test bench and the words of each stream: file name → text."""
    streams = {**words.inputs, **words.outputs}
    files = {f"{port.name}.mem": memory_text(streams[port.name], port.width) for port in stream_ports(core)}
    counts = {name: len(values) for name, values in streams.items()}
    text = testbench(module, core, ports, counts, wires=entry.wires, constants=entry.constants)
    return {**files, f"{module}_testbench.v": text}


def export_core(
    entry: CoreEntry, core: wiring.Component, directory: Path, count: int, seed: int, module: str | None = None
) -> list[str]:
    """Write MODULE.v, MODULE.md, MODULE_testbench.v and the bench's words into a directory, which
    is replaced as a whole if it holds an earlier export.

    Args:
        entry: The core's entry.
        core: A fresh component that the entry built.
        directory: Where the files go.
        count: Rows, tokens or values for the bench.
        seed: Of the random ones among them.
        module: The module's name, with which those of its submodules begin; None for the core's.

    Returns:
        The names of the files.

    Raises:
        CircuitError: The name is none for a module.
        InputError: The directory holds something else, which would be lost.
        ToolError: Yosys is missing or failed.
    """
    words = core_words(entry, core, count, seed)
    module = module or module_name(entry)
    text, ports = to_plain_verilog(core, module)
    files = {
        f"{module}.v": text,
        f"{module}.md": interface_text(module, core, ports),
        **bench_files(entry, module, core, ports, words),
    }
    refuse_to_lose(Path(directory), {*files, *LEFT_BY_HAND})
    with atomic_directory(Path(directory)) as work:
        for name, content in files.items():
            (work / name).write_text(content, encoding="utf-8")
    return list(files)


def refuse_to_lose(directory: Path, names: Collection[str]) -> None:
    """Refuse a path that is no directory, and a directory that holds files of other names.

    Raises:
        InputError: It is one.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; choose another one to export to")
    others = sorted(path.name for path in directory.iterdir() if path.name not in names)
    if others:
        raise InputError(
            f"{directory} also holds {others[0]}, which would be lost; choose a directory for this core alone"
        )


def run_testbench(
    directory: Path,
    module: str,
    sources: Sequence[str],
    simulator: str | None = None,
    *,
    stalls: Sequence[int] = (25,),
    options: Sequence[str] = (),
    tick: Callable[[], None] | None = None,
) -> list[str]:
    """Compile a test bench and its module in a directory, run it, and return its verdicts, a line
    that begins with PASS each.

    Args:
        directory: Where the bench and its vectors are.
        module: The module under test.
        sources: The other Verilog files there.
        simulator: 'verilator' or 'icarus'; None: the one that `choose_simulator` returns.
        stalls: One verdict for each: percent of the cycles in which sources and sinks pause.
        options: More options for the simulator.
        tick: Called about five times a second; what it raises ends the simulation.

    Raises:
        ToolError: No simulator can run or it failed, or the bench says FAIL or nothing.
    """
    directory, top = Path(directory).resolve(), f"{module}_testbench"
    verdicts = []
    with compiled_bench(directory, top, [f"{top}.v", *sources], simulator, options=options, tick=tick) as bench:
        for stall in stalls:
            outputs = bench.run(directory, [f"+stall={stall}"], tick)
            judged = [_verdict(module, output) for output in outputs]
            if len(set(judged)) > 1:
                raise ToolError(f"what the test bench of {module} does depends on unknown bits: {'; '.join(judged)}")
            verdicts.append(judged[0])
    return verdicts


def _verdict(module: str, output: str) -> str:
    """Return the line that a bench has printed.

    Raises:
        ToolError: It begins with FAIL, or there is none.
    """
    # FAIL comes first
    lines = sorted(line for line in output.splitlines() if line.startswith(("PASS", "FAIL")))
    if not lines or not lines[0].startswith("PASS"):
        raise ToolError(f"the test bench of {module} says: {lines[0] if lines else output.strip()[-500:] or 'nothing'}")
    return lines[0]
