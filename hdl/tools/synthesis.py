"""From a design to a bitstream and its figures: Yosys, nextpnr and ecppack, one after the other,
with what each says made readable.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from amaranth import __version__ as amaranth_version
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable
from amaranth.lib import wiring
from tqdm import tqdm

from fixedpoint import atomic_directory

from ..board.boards import BOARDS, Board
from ..board.requirements import refuse_if_too_large, shortage
from ..catalog.names import DEFAULT_FREQUENCY, DEFAULT_SEED
from ..errors import CircuitError, ToolError
from ..parts.payload import check_connections
from . import exchange
from .memory_check import refuse_block_ram_resets, refuse_lost_block_rams, unmappable_memory
from .output_registers import fold_output_registers
from .placement import PLACEMENT_FILE, summarize
from .synthesis_report import REPORT_FILE, ClockTiming, SynthesisReport, Usage, read_report
from .toolchain import ToolFailure, run_tool, tool_version

PLACED = "placed.json"
TOOL_NAMES = ("yosys", "nextpnr-ecp5", "ecppack")
STAGES = {"yosys": "synthesis", "nextpnr-ecp5": "place and route", "ecppack": "bitstream"}
# part of the recipe that a kept report is for
OUTPUT_REGISTERS = "registers behind block RAMs are folded into them, tables of 36 bits included"
# Amaranth names the elements of an array like Yosys names the bits of a wire, `x[0]`; such aliases
# are purged before they are mixed up.
READ_SCRIPT = "read_rtlil {name}.il; proc; opt_clean -purge"


def synthesize(
    top: Elaboratable,
    board: Board,
    directory: Path,
    *,
    name: str = "top",
    seed: int = DEFAULT_SEED,
    progress: bool = True,
    baud: int | None = None,
    exchangeable: bool = False,
    reused: Path | None = None,
) -> SynthesisReport:
    """Make a bitstream for a board.

    `directory` then holds NAME.bit, report.json, the circuit (NAME.il), its constraints (NAME.lpf)
    and the tools' logs. It is complete or untouched; a result whose circuit, constraints and tools
    are the same is used again.

    Args:
        top: Requests its pins from the platform.
        board: Where it shall run.
        directory: Where the results go; replaced as a whole.
        name: The design's name, a file name of letters, digits and underscores.
        seed: nextpnr's; the same inputs and seed give the same bitstream, byte for byte.
        progress: Show the stages and their seconds on stderr.
        baud: Bits per second of the design's serial port, for the report.
        exchangeable: A decoder's tables become block RAM, whatever their size, and what is needed
            to exchange their contents later is kept.
        reused: The directory of such a bitstream, whose contents are exchanged for this design's,
            without place and route; `exchangeable` is then implied, `seed` must be that one's.

    Raises:
        CircuitError: The design does not fit or is too slow, with how much, a memory that was to be
            block RAM became logic, a block RAM resets its output, ports of different formats are
            joined, or the reused bitstream is of another circuit, with what differs.
        ToolError: A tool is missing or failed.
    """
    files, exchangeable = board_files(top, board, name), exchangeable or reused is not None
    if exchangeable:
        files["il"] = exchange.tables_in_block_ram(files["il"])
    if reused is not None:
        exchange.refuse_other_design(files, reused, name)
    where = files, board, Path(directory), name
    return build(*where, seed=seed, progress=progress, baud=baud, exchangeable=exchangeable, reused=reused)


def board_files(top: Elaboratable, board: Board, name: str) -> dict[str, str]:
    """Return a board's circuit and constraints by suffix, once its connections are checked."""
    platform = board.platform()
    # Sources' file names and line numbers are left out, so that the same circuit is the same file
    # wherever it is made.
    plan = platform.prepare(check_connections(top, platform), name, emit_src=False)
    return {suffix: plan.files[f"{name}.{suffix}"] for suffix in ("il", "lpf")}


def synthesize_core(
    core: wiring.Component,
    directory: Path,
    *,
    board: Board = BOARDS["ulx3s-85f"],
    frequency: float = DEFAULT_FREQUENCY,
    name: str = "core",
    seed: int = DEFAULT_SEED,
    progress: bool = True,
) -> SynthesisReport:
    """Place and route one component alone: figures, no bitstream.

    Its ports end in nothing, so they need no pads and paths from or to them are not timed.

    Args:
        core: In the domain `sync`.
        directory: Where the results go; replaced as a whole.
        board: Whose FPGA.
        frequency: Hz to aim for; missing it is reported, not an error.
        name: The design's name.
        seed: nextpnr's.
        progress: Show the stages and their seconds on stderr.

    Raises:
        CircuitError: The core does not fit, a memory that was to be block RAM became logic, a block
            RAM resets its output, or ports of different formats are joined.
        ToolError: A tool is missing or failed.
    """
    platform = board.platform()
    check_connections(core, platform)
    files = {"il": rtlil.convert(core, name=name, platform=platform, emit_src=False)}
    arguments = ("--out-of-context", "--freq", f"{frequency / 1e6:g}")
    return build(files, board, Path(directory), name, arguments, seed=seed, progress=progress)


def build(
    files: dict[str, str],
    board: Board,
    directory: Path,
    name: str,
    arguments: tuple[str, ...] = (),
    *,
    seed: int = DEFAULT_SEED,
    progress: bool = True,
    baud: int | None = None,
    netlist: Path | None = None,
    slow_too: bool = False,
    watch: Callable[[], object] = lambda: None,
    exchangeable: bool = False,
    reused: Path | None = None,
) -> SynthesisReport:
    """Run the tools; see `synthesize`.

    Args:
        files: Circuit and constraints by suffix.
        board: Where it shall run.
        directory: Where the results go.
        name: The design's name.
        arguments: nextpnr's for a core alone; without any there are pins and a bitstream.
        seed: nextpnr's.
        progress: Show the stages.
        baud: For the report.
        netlist: Where synthesis's result is kept for another seed, and taken from.
        slow_too: Keep a result that misses its clock instead of raising.
        watch: Called now and then; what it raises ends the tools.
        exchangeable: Keep what an exchange of block RAM contents needs.
        reused: See `synthesize`.
    """
    refuse_if_too_large(files["il"], board)
    out_of_context = bool(arguments)
    script = f"{READ_SCRIPT.format(name=name)}; synth_ecp5 -top {name} -json {name}.json"
    yosys = ("-q", "-l", "yosys.log", "-p", script)
    nextpnr = (
        *board.device_arguments,
        *("--json", f"{name}.json", "--report", "nextpnr.json", "--write", PLACED),
        *("--log", "nextpnr.log", "--quiet", "--seed", str(seed)),
        # Routes the 64-channel attention circuit in a minute; router2 circles around its last
        # twenty overused wires for good.
        *("--router", "router1"),
        # the report is wanted then too; who asked for a clock gets the error from here
        "--timing-allow-fail",
        *(arguments or ("--lpf", f"{name}.lpf", "--textcfg", f"{name}.config")),
        *(("--write", exchange.ROUTED_FILE) if exchangeable else ()),
    )
    ecppack = ("--compress", *board.pack_arguments, "--input", f"{name}.config", "--bit", f"{name}.bit")
    names = TOOL_NAMES[:2] if out_of_context else TOOL_NAMES
    commands = dict(zip(names, (yosys, nextpnr, ecppack), strict=False))
    tools = {tool: tool_version(tool) or "unknown" for tool in names} | {"amaranth": amaranth_version}
    recipe = [files, commands, tools, OUTPUT_REGISTERS]
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    report = read_report(directory)
    if (
        report is not None
        and report.inputs_sha256 == key
        and report.baud == baud
        and (slow_too or out_of_context or report.timing_met)
    ):
        return report

    failure_log = directory.with_name(f"{directory.name}_failed.log")
    with atomic_directory(directory) as work:
        for suffix, text in files.items():
            (work / f"{name}.{suffix}").write_text(text, encoding="utf-8")
        seconds: dict[str, float] = {}
        for tool, command in commands.items():
            start = time.perf_counter()
            if tool == "nextpnr-ecp5" and reused is not None:
                exchange.reuse(work, reused, name)
                continue
            try:
                before = None if report is None else report.seconds.get(STAGES[tool])
                with _progress(STAGES[tool], progress, before) as tick:
                    if tool == "yosys" and netlist is not None and netlist.is_dir():
                        for kept in netlist.iterdir():
                            shutil.copyfile(kept, work / kept.name)
                        continue
                    run_tool(tool, command, work, lambda: (tick(), watch()))
            except ToolFailure as failure:
                raise _explain(failure, board, work, failure_log) from failure
            seconds[STAGES[tool]] = round(time.perf_counter() - start, 2)
            if tool == "yosys":
                refuse_lost_block_rams(files["il"], _read(work / "yosys.log"))
                design = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
                refuse_block_ram_resets(name, design["modules"][name])
                if fold_output_registers(design["modules"][name]):
                    (work / f"{name}.json").write_text(json.dumps(design), encoding="utf-8")
                if netlist is not None:
                    with atomic_directory(netlist) as kept:
                        for file in (f"{name}.json", "yosys.log"):
                            shutil.copyfile(work / file, kept / file)
            elif tool == "nextpnr-ecp5" and exchangeable:
                exchange.keep(work, name)
        bitstream = None if out_of_context else f"{name}.bit"
        report = SynthesisReport(
            design=name,
            board=board.name,
            out_of_context=out_of_context,
            **_read_nextpnr(work),
            seconds=seconds,
            bitstream=bitstream,
            bitstream_sha256=bitstream and hashlib.sha256((work / bitstream).read_bytes()).hexdigest(),
            tools=tools,
            seed=seed,
            inputs_sha256=key,
            baud=baud,
        )
        if not report.timing_met and not out_of_context and not slow_too:
            keep(failure_log, work / "nextpnr.log")
            raise CircuitError(timing_message(report, failure_log))
        (design,) = json.loads((work / PLACED).read_text(encoding="utf-8"))["modules"].values()
        figures = json.loads((work / "nextpnr.json").read_text(encoding="utf-8"))
        (work / PLACEMENT_FILE).write_text(json.dumps(summarize(design, figures)), encoding="utf-8")
        for intermediate in (f"{name}.json", f"{name}.config", PLACED):
            (work / intermediate).unlink(missing_ok=True)  # large, and of no use to a reader
        (work / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
    failure_log.unlink(missing_ok=True)
    return report


@contextmanager
def _progress(stage: str, shown: bool, before: float | None = None) -> Iterator:
    """Show a stage's name and time while it runs, on a terminal, beside what it took before; the
    line stays.
    """
    expected = "" if before is None else f", {tqdm.format_interval(before)} last time"
    with tqdm(bar_format=f"{{desc:<16}} {{elapsed}}{expected}", desc=stage, disable=None if shown else True) as bar:
        yield bar.refresh


def _read_nextpnr(work: Path) -> dict:
    figures = json.loads((work / "nextpnr.json").read_text(encoding="utf-8"))
    log = _read(work / "nextpnr.log")
    carry = re.search(r"carry LUTs:\s*(\d+)/", log)
    usage = {kind: Usage(count["used"], count["available"]) for kind, count in figures["utilization"].items()}
    return {
        "luts": usage["TRELLIS_COMB"],
        "carry_luts": int(carry.group(1)) if carry else 0,
        "flip_flops": usage["TRELLIS_FF"],
        "block_rams": usage["DP16KD"],
        "multipliers": usage["MULT18X18D"],
        "clocks": tuple(
            ClockTiming(net.removeprefix("$glbnet$"), round(timing["achieved"], 2), round(timing["constraint"], 2))
            for net, timing in sorted(figures["fmax"].items())
        ),
    }


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""


def timing_message(report: SynthesisReport, log: Path) -> str:
    """Return how fast a design is that misses its clock, and what to do."""
    slow = next(clock for clock in report.clocks if not clock.met)
    return (
        f"{report.design} reaches {slow.achieved_mhz:.1f} MHz on {report.board}, but {slow.required_mhz:.1f} MHz were asked for ({slow.name}); "
        f"ask for {int(slow.achieved_mhz)} MHz or less (--frequency), or try another seed; the critical path is in {log}"
    )


def _explain(failure: ToolFailure, board: Board, work: Path, log: Path) -> ToolError | CircuitError:
    """Turn a tool's failure into one that says what to do."""
    name = {"yosys": "yosys.log", "nextpnr-ecp5": "nextpnr.log"}.get(failure.tool)
    if name is not None and (work / name).exists():
        keep(log, work / name)
        text = failure.output + _read(log)
    else:
        text = failure.output
        log.write_text(text, encoding="utf-8")
    memory = unmappable_memory(text)
    if memory is not None:
        return CircuitError(
            f"the memory {memory} was to be block RAM, but none on {board.name} does what it needs: "
            f"read it with a clock, write it whole; the log is {log}"
        )
    # nextpnr's "Device utilisation" lines, for instance `Info:  MULT18X18D:  160/ 156  102%`.
    kinds = {"TRELLIS_COMB": "luts", "TRELLIS_FF": "flip_flops", "DP16KD": "block_rams", "MULT18X18D": "multipliers"}
    counts = {name: re.search(rf"{kind}:\s*(\d+)/", text) for kind, name in kinds.items()}
    lacking = shortage(board, {name: int(match.group(1)) for name, match in counts.items() if match})
    if lacking is not None:
        return CircuitError(f"{lacking}; the log is {log}")
    if re.search(r"(no BELs remaining|[Uu]nable to (find|place)|failed to (place|legali[sz]e))", text):
        return CircuitError(f"the design does not fit {board.name}: {failure}; the log is {log}")
    return ToolError(f"{failure}; the log is {log}")


def keep(target: Path, log: Path) -> None:
    """Save a log from a directory that is about to vanish."""
    shutil.copyfile(log, target)
