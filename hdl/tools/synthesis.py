"""From a design to a bitstream and its figures: Yosys, nextpnr and ecppack, one after the other,
with what each says made readable.
"""

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from .memory_check import refuse_block_ram_resets, refuse_lost_block_rams, unmappable_memory
from .output_registers import fold_output_registers
from .toolchain import ToolFailure, run_tool, tool_version

TOOL_NAMES = ("yosys", "nextpnr-ecp5", "ecppack")
STAGES = {"yosys": "synthesis", "nextpnr-ecp5": "place and route", "ecppack": "bitstream"}
REPORT_FILE = "report.json"
# part of the recipe that a kept report is for
OUTPUT_REGISTERS = "registers behind block RAMs are folded into them, tables of 36 bits included"
# Amaranth names the elements of an array like Yosys names the bits of a wire, `x[0]`; such aliases
# are purged before they are mixed up.
READ_SCRIPT = "read_rtlil {name}.il; proc; opt_clean -purge"


@dataclass(frozen=True)
class Usage:
    """How much of one kind of resource a design takes."""

    used: int
    available: int


@dataclass(frozen=True)
class ClockTiming:
    """The speed of one clock.

    Attributes:
        name: The clock's net.
        achieved_mhz: Highest frequency after routing.
        required_mhz: What was asked for.
    """

    name: str
    achieved_mhz: float
    required_mhz: float

    @property
    def met(self) -> bool:
        """The design may run at the required frequency."""
        return self.achieved_mhz >= self.required_mhz


@dataclass(frozen=True)
class SynthesisReport:
    """What a design takes on a board and how fast it runs there.

    Attributes:
        design: Its name.
        board: The board's name.
        out_of_context: A core alone, without pins; there is no bitstream.
        luts: Four-input lookup tables, carry cells and distributed RAM included.
        carry_luts: Those of `luts` that are halves of carry cells.
        flip_flops, block_rams, multipliers: The others.
        clocks: Each clock's speed.
        seconds: Duration of each stage.
        bitstream: File name of the bitstream in the report's directory, None out of context.
        bitstream_sha256: Its SHA-256, None out of context.
        tools: Name → version.
        seed: nextpnr's.
        inputs_sha256: SHA-256 of the circuit, the constraints, the command lines and the tools'
            versions.
        baud: Bits per second of the board's serial port, None without one.
    """

    design: str
    board: str
    out_of_context: bool
    luts: Usage
    carry_luts: int
    flip_flops: Usage
    block_rams: Usage
    multipliers: Usage
    clocks: tuple[ClockTiming, ...]
    seconds: dict[str, float]
    bitstream: str | None
    bitstream_sha256: str | None
    tools: dict[str, str]
    seed: int
    inputs_sha256: str
    baud: int | None = None

    @property
    def timing_met(self) -> bool:
        """Every clock is as fast as required."""
        return all(clock.met for clock in self.clocks)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return (resource, used, available, share) rows for a table."""
        rows = []
        for name, usage in (
            ("LUTs", self.luts),
            ("flip-flops", self.flip_flops),
            ("block RAMs", self.block_rams),
            ("multipliers", self.multipliers),
        ):
            share = usage.used / usage.available if usage.available else 0.0
            rows.append((name, f"{usage.used:,}", f"{usage.available:,}", f"{share:.1%}"))
        rows.insert(1, ("  of them carry", f"{self.carry_luts:,}", "", ""))
        return rows

    def __str__(self) -> str:
        """Return the report as a text table."""
        lines = [f"{self.design} on {self.board}{' (out of context)' if self.out_of_context else ''}"]
        lines += [
            f"  {name:<16}{used:>9}{available and f' of {available}':>12}{share:>8}".rstrip()
            for name, used, available, share in self.rows()
        ]
        for clock in self.clocks:
            verdict = "met" if clock.met else "NOT met"
            lines.append(
                f"  {clock.name}: {clock.achieved_mhz:.1f} MHz, required {clock.required_mhz:.1f} MHz: {verdict}"
            )
        lines.append("  " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items()))
        if self.bitstream is not None:
            lines.append(f"  {self.bitstream}: sha256 {self.bitstream_sha256}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the report as JSON text."""
        figures = {**dataclasses.asdict(self), "timing_met": self.timing_met}
        return json.dumps(figures, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "SynthesisReport":
        """Read `to_json`'s text.

        Raises:
            ValueError: It is not a report.
        """
        try:
            figures = json.loads(text)
            del figures["timing_met"]
            for name in ("luts", "flip_flops", "block_rams", "multipliers"):
                figures[name] = Usage(**figures[name])
            figures["clocks"] = tuple(ClockTiming(**clock) for clock in figures["clocks"])
            return cls(**figures)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a synthesis report: {error}") from error


def synthesize(
    top: Elaboratable,
    board: Board,
    directory: Path,
    *,
    name: str = "top",
    seed: int = DEFAULT_SEED,
    progress: bool = True,
    baud: int | None = None,
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

    Raises:
        CircuitError: The design does not fit or is too slow, with how much, a memory that was to be
            block RAM became logic, a block RAM resets its output, or ports of different formats are
            joined.
        ToolError: A tool is missing or failed.
    """
    platform = board.platform()
    # Sources' file names and line numbers are left out, so that the same circuit is the same file
    # wherever it is made.
    plan = platform.prepare(check_connections(top, platform), name, emit_src=False)
    files = {suffix: plan.files[f"{name}.{suffix}"] for suffix in ("il", "lpf")}
    arguments = ("--lpf", f"{name}.lpf", "--textcfg", f"{name}.config")
    return _build(files, board, Path(directory), name, arguments, seed, progress, out_of_context=False, baud=baud)


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
    return _build(files, board, Path(directory), name, arguments, seed, progress, out_of_context=True)


def read_report(directory: Path) -> SynthesisReport | None:
    """Return the report in a directory; None when there is none, it is damaged, or its bitstream is
    not the one it describes.
    """
    try:
        report = SynthesisReport.from_json((directory / REPORT_FILE).read_text(encoding="utf-8"))
        if report.bitstream is not None:
            digest = hashlib.sha256((directory / report.bitstream).read_bytes()).hexdigest()
            if digest != report.bitstream_sha256:
                return None
    except (OSError, ValueError):
        return None
    return report


def _build(
    files: dict[str, str],
    board: Board,
    directory: Path,
    name: str,
    arguments: tuple[str, ...],
    seed: int,
    progress: bool,
    *,
    out_of_context: bool,
    baud: int | None = None,
) -> SynthesisReport:
    refuse_if_too_large(files["il"], board)
    script = f"{READ_SCRIPT.format(name=name)}; synth_ecp5 -top {name} -json {name}.json"
    yosys = ("-q", "-l", "yosys.log", "-p", script)
    nextpnr = (
        *board.device_arguments,
        *("--json", f"{name}.json", "--report", "nextpnr.json"),
        *("--log", "nextpnr.log", "--quiet", "--seed", str(seed)),
        # Routes the 64-channel attention circuit in a minute; router2 circles around its last
        # twenty overused wires for good.
        *("--router", "router1"),
        # the report is wanted then too; who asked for a clock gets the error from here
        "--timing-allow-fail",
        *arguments,
    )
    ecppack = ("--compress", *board.pack_arguments, "--input", f"{name}.config", "--bit", f"{name}.bit")
    names = TOOL_NAMES[:2] if out_of_context else TOOL_NAMES
    commands = dict(zip(names, (yosys, nextpnr, ecppack), strict=False))
    tools = {tool: tool_version(tool) or "unknown" for tool in names} | {"amaranth": amaranth_version}
    recipe = [files, commands, tools, OUTPUT_REGISTERS]
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    report = read_report(directory)
    if report is not None and report.inputs_sha256 == key and report.baud == baud:
        return report

    failure_log = directory.with_name(f"{directory.name}_failed.log")
    with atomic_directory(directory) as work:
        for suffix, text in files.items():
            (work / f"{name}.{suffix}").write_text(text, encoding="utf-8")
        seconds = {}
        for tool, command in commands.items():
            start = time.perf_counter()
            try:
                with _progress(STAGES[tool], progress) as tick:
                    run_tool(tool, command, work, tick)
            except ToolFailure as failure:
                raise _explain(failure, board, work, failure_log) from failure
            seconds[STAGES[tool]] = round(time.perf_counter() - start, 2)
            if tool == "yosys":
                refuse_lost_block_rams(files["il"], _read(work / "yosys.log"))
                design = json.loads((work / f"{name}.json").read_text(encoding="utf-8"))
                refuse_block_ram_resets(name, design["modules"][name])
                if fold_output_registers(design["modules"][name]):
                    (work / f"{name}.json").write_text(json.dumps(design), encoding="utf-8")
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
        if not report.timing_met and not out_of_context:
            _keep(failure_log, work / "nextpnr.log")
            raise CircuitError(_timing_message(report, failure_log))
        for intermediate in (f"{name}.json", f"{name}.config"):
            (work / intermediate).unlink(missing_ok=True)  # large, and of no use to a reader
        (work / REPORT_FILE).write_text(report.to_json(), encoding="utf-8")
    failure_log.unlink(missing_ok=True)
    return report


@contextmanager
def _progress(stage: str, shown: bool) -> Iterator:
    """Show a stage's name and seconds while it runs, on a terminal; the line stays."""
    with tqdm(bar_format="{desc:<16} {elapsed}", desc=stage, disable=None if shown else True) as bar:
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


def _timing_message(report: SynthesisReport, log: Path) -> str:
    slow = next(clock for clock in report.clocks if not clock.met)
    return (
        f"{report.design} reaches {slow.achieved_mhz:.1f} MHz on {report.board}, but {slow.required_mhz:.1f} MHz were asked for ({slow.name}); "
        f"ask for {int(slow.achieved_mhz)} MHz or less (--frequency), or try another seed; the critical path is in {log}"
    )


def _explain(failure: ToolFailure, board: Board, work: Path, log: Path) -> ToolError | CircuitError:
    """Turn a tool's failure into one that says what to do."""
    name = {"yosys": "yosys.log", "nextpnr-ecp5": "nextpnr.log"}.get(failure.tool)
    if name is not None and (work / name).exists():
        _keep(log, work / name)
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


def _keep(target: Path, log: Path) -> None:
    """Save a log from a directory that is about to vanish."""
    shutil.copyfile(log, target)
