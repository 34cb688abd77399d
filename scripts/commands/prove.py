"""Prove claims about the cores with SymbiYosys and z3: streams, termination, errors, overflow.

A claim is proven for all inputs of a small core, by induction for all time and all stalls, or for
the first cycles after reset: the table shows the method, docs/hardware/proofs.md its limits. A
refuted claim leaves a waveform of its counterexample. With --bugs each proof, covers excepted, is
also run on a circuit with a seeded bug, which it must refute.

Example:
  positron prove
  positron prove layer-norm softmax --bugs
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from fixedpoint import lock_directory
from hdl.errors import CircuitError
from scripts.output import add_json_argument, format_table, write_json

if TYPE_CHECKING:
    from sim.proofs.proof import Proof, Verdict

# Whether the proof is a cover → the solver's answer → the verdict.
OUTCOMES = {
    False: {True: "proven", False: "refuted", None: "unsettled"},
    True: {True: "reached", False: "not reached", None: "unsettled"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("cores", nargs="*", metavar="CORE", help="only the claims about these cores (default: all)")
    parser.add_argument("--bugs", action="store_true", help="also run each proof on a faulty circuit, which must fail")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="proofs at a time (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/proofs"), metavar="DIR", help="working directory (default: %(default)s)"
    )
    add_json_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Settle the proofs and print a table."""
    from sim.proofs.catalog import all_proofs

    proofs = all_proofs()
    known = sorted({proof.core for proof in proofs})
    unknown = [name for name in arguments.cores if name not in known]
    if unknown:
        raise CircuitError(f"there is no proof about {unknown[0]!r}; there are proofs about {', '.join(known)}")
    if arguments.jobs < 1:
        raise CircuitError(f"--jobs must be at least 1, not {arguments.jobs}")
    chosen = [proof for proof in proofs if not arguments.cores or proof.core in arguments.cores]
    tasks = [(proof, False) for proof in chosen]
    if arguments.bugs:
        tasks += [(proof, True) for proof in chosen if proof.faulty is not None]
    with lock_directory(arguments.out):
        verdicts = settle_all(tasks, arguments.out, arguments.jobs)
    rows, wrong = [], []
    for (proof, faulty), verdict in zip(tasks, verdicts, strict=True):
        expected = verdict.holds is not faulty and verdict.holds is not None
        words = OUTCOMES[proof.mode == "cover"][verdict.holds]
        claim = f"{proof.claim}; bug: {proof.bug}" if faulty else proof.claim
        rows.append(
            (proof.core, claim, method(proof, faulty), words if expected else words.upper(), round(verdict.seconds, 1))
        )
        if not expected:
            wrong.append((proof, verdict))
    print(format_table(("core", "claim", "method", "verdict", "seconds"), rows))
    proven = sum(1 for (_, faulty), verdict in zip(tasks, verdicts, strict=True) if not faulty and verdict.holds)
    print(f"{proven} of {len(chosen)} claims hold", end="")
    refuted = sum(1 for (_, faulty), verdict in zip(tasks, verdicts, strict=True) if faulty and verdict.holds is False)
    print(f"; {refuted} of {len(tasks) - len(chosen)} bugs were found" if arguments.bugs else "")
    print(f"scripts and logs: {arguments.out}")
    for proof, verdict in wrong:
        place = f"; counterexample: {verdict.trace}" if verdict.trace else ""
        place = f"; {verdict.log}" if verdict.holds is None and "\n" not in verdict.log else place
        print(f"wrong: {proof.core}: {proof.claim}{place}", file=sys.stderr)
    if arguments.json:
        names = ("core", "claim", "method", "verdict", "seconds")
        write_json(arguments.json, {"proofs": [dict(zip(names, row, strict=True)) for row in rows]})
        print(f"figures: {arguments.json}")
    return 1 if wrong else 0


def settle_all(tasks: list[tuple[Proof, bool]], directory: Path, jobs: int) -> list[Verdict]:
    """Settle proofs in parallel, deepest first; one on which the tools give up is unsettled.

    Ctrl-C ends all tools first.
    """
    from sim.proofs.proof import Unsettled, Verdict, settle

    stopped = threading.Event()

    def tick() -> None:
        if stopped.is_set():
            raise KeyboardInterrupt

    def verdict(task: tuple[Proof, bool]) -> Verdict:
        start = time.perf_counter()
        try:
            return settle(task[0], directory, faulty=task[1], tick=tick)
        except Unsettled as failure:
            return Verdict(None, time.perf_counter() - start, None, str(failure))

    order = sorted(range(len(tasks)), key=lambda number: -tasks[number][0].depth)
    with ThreadPoolExecutor(jobs) as executor, tqdm(total=len(tasks), unit="proof", disable=None) as bar:
        verdicts: dict[int, Verdict] = {}
        try:
            futures = {executor.submit(verdict, tasks[number]): number for number in order}
            for future in as_completed(futures):
                verdicts[futures[future]] = future.result()
                bar.update()
        except BaseException:
            stopped.set()
            executor.shutdown(cancel_futures=True)
            raise
    return [verdicts[number] for number in range(len(tasks))]


def method(proof: Proof, faulty: bool = False) -> str:
    """Return how a claim is settled, or its bug looked for, in a few words."""
    if faulty and proof.mode == "prove":
        return f"first {max(proof.depth, proof.bug_depth)} cycles"
    words = {"prove": "induction over {}", "bmc": "first {} cycles", "cover": "within {} cycles"}
    return words[proof.mode].format(proof.depth)
