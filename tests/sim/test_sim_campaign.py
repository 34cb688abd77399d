# amaranth: UnusedElaboratable=no
import dataclasses
import json

import numpy as np
import pytest

from hdl import CircuitError
from hdl.catalog import registry
from hdl.catalog.registry import CORES
from hdl.parts.exponential import Exponential
from hdl.tools.toolchain import find_tool
from scripts import cli
from scripts.commands import campaign as command
from sim.bench.core_benches import core_words
from sim.bench.payload import pack_words
from sim.campaign import STALLS, CampaignResult, build_bench, run_campaign, stalls_of
from sim.simulators.native_bench import NEEDED_TOOLS

ENTRY = CORES["exponential"]
WRONG_PLACE = 17  # of 256 table entries

needs_verilator = pytest.mark.skipif(
    any(find_tool(tool) is None for tool in NEEDED_TOOLS), reason="Verilator or a compiler is missing"
)


def wrong_core():
    """The core with one bit of its table flipped, the lowest."""
    right = ENTRY.example()
    parameters = dataclasses.replace(right.parameters)
    table = parameters.table.copy()
    table[WRONG_PLACE] ^= 1
    parameters.__dict__["table"] = table
    return Exponential(parameters, right.width)


@pytest.fixture(scope="module")
def builds(simulation_builds):
    return simulation_builds


@needs_verilator
def test_one_flipped_bit_of_a_table_is_found_and_found_again(builds):
    bench = build_bench(ENTRY, wrong_core(), builds)
    done = []
    result = run_campaign(ENTRY, bench, 3000, seed=5, chunk=500, progress=done.append)
    assert "o[" in result.failure
    assert "expected" in result.failure
    assert 5 <= result.failed_seed < 11
    assert result.vectors == sum(done) == 500 * (result.failed_seed - 5)
    again = run_campaign(ENTRY, bench, result.failed_vectors, result.failed_seed, chunk=500)
    assert (again.failure, again.failed_seed) == (result.failure, result.failed_seed)


@needs_verilator
def test_the_command_counts_and_tells_right_from_wrong(builds, tmp_path, capsys, monkeypatch):
    figures = tmp_path / "figures.json"
    words = ["campaign", "exponential", "--out", str(builds), "--json", str(figures)]
    assert cli.main([*words, "--vectors", "2500", "--seed", "3"]) == 0
    assert "exponential    2,500    2,500" in capsys.readouterr().out
    [result] = json.loads(figures.read_text())["campaigns"]
    assert (result["core"], result["vectors"], result["results"], result["seed"]) == ("exponential", 2500, 2500, 3)
    assert result["cycles"] >= 2500
    assert result["failure"] == ""

    right = ENTRY.example()
    wrong = dataclasses.replace(
        ENTRY,
        build=lambda model, layer: wrong_core(),
        vectors=lambda core, generator, count: ENTRY.vectors(right, generator, count),
    )
    monkeypatch.setattr(registry, "find_core", lambda name: wrong)
    assert cli.main([*words, "--vectors", "2500", "--seed", "3"]) == 1
    printed = capsys.readouterr()
    assert "DIFFERENT" in printed.out
    assert "error: exponential: o[" in printed.err
    assert "to repeat it: positron campaign exponential --seed 3 --vectors 2500" in printed.err


@needs_verilator
def test_a_campaign_out_of_time_reports_its_progress(builds):
    bench = build_bench(ENTRY, ENTRY.example(), builds)
    result = run_campaign(ENTRY, bench, 1000, seed=0, seconds=0.0, chunk=100)
    assert (result.vectors, result.wanted, result.results, result.failure) == (100, 1000, 100, "")
    assert command.verdict(result) == "all equal; time was up, 1,000 wanted"
    whole = run_campaign(ENTRY, bench, 250, seed=0, chunk=100)
    assert (whole.vectors, whole.results, command.verdict(whole)) == (250, 250, "all equal")


def test_results_before_ctrl_c_are_printed(monkeypatch, capsys):
    def interrupted(entry, arguments):
        if entry.name == "softmax":
            raise KeyboardInterrupt
        return CampaignResult(entry.name, 0, 12, 12, 12, 99, 0.5)

    monkeypatch.setattr(command, "campaign", interrupted)
    assert cli.main(["campaign", "uart", "softmax", "exponential"]) == cli.EXIT_INTERRUPTED
    printed = capsys.readouterr()
    assert "uart" in printed.out
    assert "exponential" not in printed.out
    assert "compiled cores are kept in build/campaign" in printed.err


def test_seeds_bring_all_kinds_of_stalls():
    chosen = [stalls_of(ENTRY, seed) for seed in range(40)]
    assert {(stalls.source, stalls.sink, stalls.sink_delay) for stalls in chosen} == set(STALLS)
    assert chosen == [stalls_of(ENTRY, seed) for seed in range(40)]
    resets = [stalls.reset_after for stalls in chosen]
    assert min(resets) < 10
    assert max(resets) > 1000
    receiver = [stalls_of(CORES["uart"], seed) for seed in range(10)]  # cannot wait
    assert all(stalls.sink == stalls.sink_delay == 0 for stalls in receiver)


@pytest.mark.parametrize("name", CORES)
def test_every_core_has_vectors_by_the_thousand(name):
    """Each payload is used: no word is constant, and another seed gives other words."""
    entry = CORES[name]
    core = entry.example()
    first, second = (core_words(entry, core, 300, seed, pack_words) for seed in (1, 2))
    for words, others in ((first.inputs, second.inputs), (first.outputs, second.outputs)):
        for port in words:
            assert len(np.unique(words[port], axis=0)) > 1
            assert not np.array_equal(words[port], others[port])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"vectors": 0, "seed": 0}, "at least one vector in a chunk, not 0 in chunks of 20000"),
        ({"vectors": 1, "seed": 0, "chunk": 0}, "not 1 in chunks of 0"),
        ({"vectors": 1, "seed": -1}, "the seeds of a campaign, -1 to -1, must have 32 bits"),
        ({"vectors": 40_001, "seed": (1 << 32) - 2}, "must have 32 bits"),
    ],
    ids=str,
)
def test_impossible_campaigns_are_refused(settings, message):
    with pytest.raises(CircuitError, match=message):
        run_campaign(ENTRY, None, **settings)


@pytest.mark.parametrize(
    "words, message",
    [
        (["softmaxx"], "there is no core 'softmaxx'; choose one of activation, "),
        (["--vectors", "0"], "--vectors must be at least 1, not 0"),
        (["--minutes", "0"], "--minutes must be above 0, not 0"),
        (["--minutes", "nan"], "--minutes must be above 0, not nan"),
    ],
    ids=str,
)
def test_the_command_refuses_bad_arguments(words, message, capsys):
    assert cli.main(["campaign", *words]) == 1
    assert message in capsys.readouterr().err
