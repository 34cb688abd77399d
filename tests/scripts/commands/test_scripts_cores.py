import dataclasses
import json

import pytest

from hdl import CircuitError
from hdl.catalog.registry import CORES
from hdl.tools import synthesis
from hdl.tools.synthesis_report import ClockTiming, SynthesisReport, Usage
from scripts import cli
from scripts.commands import cores

REPORT = SynthesisReport(
    design="softmax",
    board="ulx3s-85f",
    out_of_context=True,
    luts=Usage(1234, 83640),
    carry_luts=30,
    flip_flops=Usage(333, 83640),
    block_rams=Usage(2, 208),
    multipliers=Usage(1, 156),
    clocks=(ClockTiming("clk", 141.6, 150.0),),
    seconds={"synthesis": 1.0, "place and route": 2.5},
    bitstream=None,
    bitstream_sha256=None,
    tools={"yosys": "0.69"},
    seed=1,
    inputs_sha256="abcd",
)


@pytest.fixture
def calls(monkeypatch):
    """What `synthesize_core` was called with; it gives a fixed report."""
    made = []

    def fake(core, directory, **settings):
        made.append((type(core).__name__, str(directory), settings))
        directory.mkdir(parents=True)
        (directory / "report.json").write_text(REPORT.to_json())
        return REPORT

    monkeypatch.setattr(synthesis, "synthesize_core", fake)
    return made


def test_a_core_is_measured_by_name(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = "synthesize --core softmax --board ulx3s-25f --frequency 120 --json figures.json"
    assert cli.main(words.split()) == 0
    ((name, directory, settings),) = calls
    assert (name, directory) == ("Softmax", "build/cores/softmax")
    assert (settings["board"].name, settings["frequency"], settings["name"]) == ("ulx3s-25f", 120e6, "softmax")
    out = capsys.readouterr().out
    assert "block RAMs              2      of 208" in out
    assert "141.6 MHz, required 150.0 MHz: NOT met" in out
    assert json.loads((tmp_path / "figures.json").read_text())["multipliers"] == {"used": 1, "available": 156}


def test_a_core_of_a_run_is_kept_beside_it(calls, tiny_run, capsys):
    assert cli.main(["synthesize", "--core", "matrix-vector", "--run", str(tiny_run), "--layer", "1"]) == 0
    ((name, directory, _),) = calls
    assert (name, directory) == ("MatrixVector", str(tiny_run / "synthesis_matrix-vector"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--core sofmax", "there is no core 'sofmax'; choose one of"),
        ("--core softmax --board ulx4", "there is no board 'ulx4'"),
        (
            "runs/x --core softmax",
            "with --core the run is given by --run: positron synthesize --core softmax --run RUN",
        ),
        ("", "say which run: positron synthesize RUN; --run belongs to --core"),
        ("runs/x --run runs/y", "say which run: positron synthesize RUN; --run belongs to --core"),
        ("--core softmax --frequency 0", "--frequency must be positive, not 0"),
        ("--core softmax --frequency nan", "--frequency must be positive, not nan"),
        ("--core softmax --layer 3", "--layer chooses a block of a run: it needs --run"),
    ],
)
def test_wrong_arguments_are_refused(words, message, calls, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["synthesize", *words.split()]) == 1
    assert message in capsys.readouterr().err
    assert not calls


def test_the_table_is_written_after_every_core(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "cores.md"
    page.write_text(f"before\n{cores.BEGIN}\nold\n{cores.END}\nafter\n")
    monkeypatch.setattr(cores, "PAGE", page)
    monkeypatch.setattr(cores, "FIGURES", tmp_path / "cores.json")
    assert cli.main(["cores", "--only", "softmax"]) == 0
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert "old" not in lines
    row = next(line for line in lines if line.startswith("| `softmax` "))
    assert row.startswith("| `softmax` | 1,234 | 333 | 2 | 1 | 142 | N + ")
    assert sum(line.startswith("| `") for line in lines) == len(CORES)
    assert "| `uart` | – | – | – | – | – |" in page.read_text()
    assert json.loads((tmp_path / "cores.json").read_text())["softmax"]["luts"]["used"] == 1234


@pytest.mark.parametrize("failure", [CircuitError("too large"), KeyboardInterrupt()])
def test_a_core_that_fails_leaves_the_others_and_ctrl_c_what_was_measured(failure, tmp_path, monkeypatch, capsys):
    def fake(core, directory, **settings):
        if settings["name"] == "uart":
            raise failure
        directory.mkdir(parents=True)
        (directory / "report.json").write_text(REPORT.to_json())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(synthesis, "synthesize_core", fake)
    monkeypatch.setattr(cores, "PAGE", tmp_path / "cores.md")
    monkeypatch.setattr(cores, "FIGURES", tmp_path / "cores.json")
    (tmp_path / "cores.md").write_text(f"{cores.BEGIN}\n{cores.END}\n")
    interrupted = isinstance(failure, KeyboardInterrupt)
    assert cli.main(["cores", "--only", "softmax", "--only", "uart", "--only", "argmax"]) == (130 if interrupted else 1)
    assert ("stopped: what was measured" if interrupted else "error: uart: too large") in capsys.readouterr().err
    measured = json.loads((tmp_path / "cores.json").read_text())
    assert set(measured) == ({"softmax"} if interrupted else {"softmax", "argmax"})


def test_the_table_needs_its_page(calls, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cores, "PAGE", tmp_path / "cores.md")
    assert cli.main(["cores", "--only", "softmax"]) == 1
    assert "cores.md does not exist; the table is written in the project's source" in capsys.readouterr().err
    assert not calls


def test_a_core_without_a_clock_has_no_frequency():
    table = cores.markdown({"softmax": dataclasses.replace(REPORT, clocks=())})
    assert "| `softmax` | 1,234 | 333 | 2 | 1 | – |" in table


@pytest.mark.slow
def test_a_core_with_a_block_ram_is_placed_and_routed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["synthesize", "--core", "reciprocal", "--json", "figures.json"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["block_rams"]["used"], figures["multipliers"]["used"]) == (1, 0)
    assert figures["clocks"][0]["achieved_mhz"] > 120
    assert (tmp_path / "build" / "cores" / "reciprocal" / "yosys.log").exists()
