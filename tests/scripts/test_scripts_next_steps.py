"""The command that follows each command: it exists, and its options too."""

import shlex
from pathlib import Path

import pytest

from scripts import cli
from scripts.next_steps import next_command, run_of

FOLLOWING = {
    "train --out 'runs/my run'": "generate 'runs/my run'",
    "train --text poems.txt": "generate runs/poems",
    "import gpt2 --out runs/x": "quantize runs/x --calibrate-on-samples 100000",
    "generate runs/x": "quantize runs/x",
    "quantize runs/x": "simulate runs/x",
    "quantize runs/x --sweep": "quantize runs/x",
    "evaluate runs/x": "quantize runs/x --analyze",
    "simulate runs/x": "synthesize runs/x --estimate",
    "synthesize runs/x --estimate": "synthesize runs/x",
    "synthesize runs/x": "load runs/x",
    "synthesize runs/x --only attention": "load runs/x --only attention",
    "synthesize --core softmax": "export-verilog softmax --out build/verilog/softmax",
    "export-verilog softmax --out x": "netlist --only softmax",
    "load runs/x": "selftest /dev/ttyUSB0 runs/x",
    "load runs/x --only attention": "host runs/x --port /dev/ttyUSB0",
    "selftest COM3 runs/x": "generate runs/x --device COM3 --temperature 0",
    "export runs/x --format c": "report runs/x",
    "demo": "generate runs/demo --quantized --prompt 'The '",
    "doctor": "demo",
    "prove": "campaign",
    "campaign": "netlist",
    "netlist": "cores",
    "report runs/x": None,
    "host runs/x --port COM3": None,
    "cores": None,
    "benchmark circuit runs/x": None,
}


def test_every_command_is_here() -> None:
    assert {line.split()[0] for line in FOLLOWING} == set(cli.COMMANDS)


@pytest.mark.parametrize(("line", "following"), FOLLOWING.items())
def test_what_follows(line: str, following: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def parsed(text: str):
        words = shlex.split(text)
        return cli.parse(cli.build_parser(words[0], cli.import_command(words[0])), words)

    arguments = parsed(line)
    run = run_of(cli.import_command(arguments.command), arguments)
    found = next_command(arguments, run)
    assert found == (following and f"positron {following}")
    if following is not None:
        parsed(following)  # exits on what the command does not know


def test_it_is_said_after_success_alone(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["generate", str(tiny_run), "--length", "3", "--quantized"]) == 0
    shown = capsys.readouterr()
    assert shown.err.endswith(f"Next: positron simulate {shlex.quote(str(tiny_run))}\n")
    assert "Next" not in shown.out
    assert cli.main(["generate", str(tmp_path / "absent")]) == 1
    assert "Next" not in capsys.readouterr().err
