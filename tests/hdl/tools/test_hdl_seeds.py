"""Several seeds of place and route, with tools that only pretend."""

import json
from pathlib import Path

import pytest
from test_hdl_synthesis import BOARD, Echo

from hdl import CircuitError
from hdl.tools import synthesis
from hdl.tools.seeds import synthesize_seeds
from hdl.tools.synthesis_report import read_report
from hdl.tools.toolchain import ToolFailure

MEGAHERTZ = {1: 70.0, 2: 90.0, 3: 40.0}  # that a seed reaches


@pytest.fixture
def runs(monkeypatch):
    """What ran, a tool's name or a seed; seed 4 fails."""
    found = []

    def run_tool(tool, arguments, directory, tick):
        found.append(tool if tool != "nextpnr-ecp5" else int(arguments[arguments.index("--seed") + 1]))
        if tool == "yosys":
            (directory / "echo.json").write_text('{"modules": {"echo": {"cells": {}, "ports": {}}}}')
            (directory / "yosys.log").write_text("")
        elif tool == "nextpnr-ecp5":
            if found[-1] == 4:
                raise ToolFailure(tool, 1, "ERROR: seed 4")
            kinds = ("TRELLIS_COMB", "TRELLIS_FF", "DP16KD", "MULT18X18D")
            clock = {"achieved": MEGAHERTZ[found[-1]], "constraint": 50.0}
            figures = {
                "fmax": {"clk": clock},
                "critical_paths": [],
                "utilization": {kind: {"used": 1, "available": 9} for kind in kinds},
            }
            (directory / "nextpnr.json").write_text(json.dumps(figures))
            (directory / "placed.json").write_text('{"modules": {"top": {"cells": {}}}}')
            (directory / "nextpnr.log").write_text(f"seed {found[-1]}")
        else:
            (directory / "echo.bit").write_text((directory / "nextpnr.log").read_text())

    monkeypatch.setattr(synthesis, "run_tool", run_tool)
    return found


def make(directory: Path, *seeds: int):
    return synthesize_seeds(Echo(), BOARD, directory, seeds, name="echo", progress=False, at_once=1)


def test_the_fastest_seed_is_kept_and_all_are_reported(runs, tmp_path):
    report = make(tmp_path / "result", 1, 2, 3)
    assert (report.seed, report.seed_mhz) == (2, {"1": 70.0, "2": 90.0, "3": 40.0})
    assert "3 seeds: worst 40.0, median 70.0, best 90.0 MHz; kept: seed 2" in str(report)
    assert (tmp_path / "result" / "echo.bit").read_text() == "seed 2"
    assert read_report(tmp_path / "result") == report
    assert runs == ["yosys", 1, "ecppack", 2, "ecppack", 3, "ecppack"]


def test_finished_seeds_are_not_done_again_and_a_failed_one_ends_the_rest(runs, tmp_path):
    with pytest.raises(Exception, match="seed 4"):
        make(tmp_path / "result", 1, 4, 3)
    assert not (tmp_path / "result").exists()
    del runs[:]
    report = make(tmp_path / "result", 1, 2)
    assert report.seed == 2
    assert runs == [2, "ecppack"]  # nor is the netlist made again


def test_it_is_too_slow_if_the_fastest_is(runs, tmp_path):
    with pytest.raises(CircuitError, match=r"echo reaches 40\.0 MHz .* 50\.0 MHz .*\(the fastest of 1 seeds\)"):
        make(tmp_path / "result", 3)
    assert not (tmp_path / "result").exists()
    assert (tmp_path / "result_failed.log").read_text() == "seed 3"
