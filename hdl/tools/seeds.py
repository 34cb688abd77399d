"""Place and route with several seeds, and keep the fastest result."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from amaranth import __version__ as amaranth_version
from amaranth.hdl import Elaboratable
from tqdm import tqdm

from fixedpoint import atomic_directory

from ..board.boards import Board
from ..errors import CircuitError
from .synthesis import OUTPUT_REGISTERS, board_files, build, keep, timing_message
from .synthesis_report import REPORT_FILE, SynthesisReport
from .toolchain import tool_version

BYTES_A_RUN = 2 << 30  # of memory that nextpnr takes for a full ECP5-85F


def synthesize_seeds(
    top: Elaboratable,
    board: Board,
    directory: Path,
    seeds: Sequence[int],
    *,
    name: str = "top",
    baud: int | None = None,
    progress: bool = True,
    at_once: int | None = None,
) -> SynthesisReport:
    """Make a bitstream for a board with each of several seeds, and keep the fastest one.

    The circuit is synthesized once. Each seed's result is kept in `DIRECTORY_seeds/SEED`, so that
    what is finished is not done again.

    Args:
        top: As in `hdl.tools.synthesis.synthesize`, like `board`, `name` and `baud`.
        board: Where it shall run.
        directory: Where the fastest result goes; replaced as a whole.
        seeds: nextpnr's.
        name: The design's name.
        baud: For the report.
        progress: Count the seeds on stderr.
        at_once: Runs of nextpnr at a time; by default as many as cores and free memory allow.

    Returns:
        The fastest seed's report, with the frequencies of all.

    Raises:
        CircuitError, ToolError: As `synthesize`; too slow is a design of which every seed is.
    """
    files, directory = board_files(top, board, name), Path(directory)
    runs = directory.with_name(f"{directory.name}_seeds")
    versions = [tool_version("yosys"), amaranth_version, OUTPUT_REGISTERS]
    netlist = runs / f"netlist_{hashlib.sha256(json.dumps([files, versions]).encode()).hexdigest()[:16]}"
    stopped = Event()

    def watch() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    def run(seed: int) -> SynthesisReport:
        return build(
            files,
            board,
            runs / str(seed),
            name,
            seed=seed,
            progress=False,
            baud=baud,
            netlist=netlist,
            slow_too=True,
            watch=watch,
        )

    with tqdm(total=len(seeds), unit="seed", desc="place and route", disable=None if progress else True) as bar:
        reports = [run(seeds[0])]  # which makes the netlist
        bar.update()
        with ThreadPoolExecutor(at_once or _runs_at_once()) as pool:
            try:
                for report in pool.map(run, seeds[1:]):
                    reports.append(report)
                    bar.update()
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)
    best = max(reports, key=lambda report: report.slowest_mhz)
    if not best.timing_met:
        log = directory.with_name(f"{directory.name}_failed.log")
        keep(log, runs / str(best.seed) / "nextpnr.log")
        raise CircuitError(f"{timing_message(best, log)} (the fastest of {len(seeds)} seeds)")
    best = dataclasses.replace(best, seed_mhz={str(report.seed): report.slowest_mhz for report in reports})
    with atomic_directory(directory) as work:
        shutil.copytree(runs / str(best.seed), work, dirs_exist_ok=True)
        (work / REPORT_FILE).write_text(best.to_json(), encoding="utf-8")
    shutil.rmtree(netlist, ignore_errors=True)
    return best


def _runs_at_once() -> int:
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_A_RUN))
