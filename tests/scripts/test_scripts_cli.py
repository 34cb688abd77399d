"""The command line itself: help, errors in one line, exit statuses, Ctrl-C, a closed pipe."""

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from model.errors import InputError
from scripts import cli
from scripts.commands import benchmark

ROOT = Path(__file__).resolve().parents[2]

BENCHMARKS = [f"benchmark {name}" for name in benchmark.BENCHMARKS]


def command(run) -> ModuleType:
    """Return something that looks like a command's module."""
    return SimpleNamespace(run=run)  # type: ignore[return-value]


def raising(error: BaseException) -> ModuleType:
    def run(arguments: argparse.Namespace) -> int:
        raise error

    return command(run)


def test_every_command_has_a_module_with_the_two_functions() -> None:
    files = {file.stem for file in (ROOT / "scripts" / "commands").glob("[!_]*.py")}
    assert files == {cli.import_command(name).__name__.rpartition(".")[2] for name in cli.COMMANDS}
    for name in cli.COMMANDS:
        module = cli.import_command(name)
        assert callable(module.add_arguments)
        assert callable(module.run)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_a_summary_and_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert f"positron {name}" in shown.partition("\n\n")[0]
    assert f"  positron {name}" in shown.partition("Example")[2], "no example"
    summary = cli.help_text(name).partition("\n")[0]
    assert 10 < len(summary) < 116
    assert summary in " ".join(shown.split()), "folded or not"


def test_every_option_is_explained() -> None:
    for name in cli.COMMANDS:
        parser = argparse.ArgumentParser()
        cli.import_command(name).add_arguments(parser)
        for action in parser._actions:
            assert action.help, f"positron {name} {action.option_strings or action.dest} has no help text"


@pytest.mark.parametrize("name", ["evaluate", "simulate", "synthesize", "quantize", "doctor", *BENCHMARKS])
def test_measuring_commands_take_json(name: str) -> None:
    parser = argparse.ArgumentParser()
    cli.import_command(name).add_arguments(parser)
    assert any("--json" in action.option_strings for action in parser._actions)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_explain_themselves(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    assert cli.help_text(name).partition("\n")[0] in " ".join(capsys.readouterr().out.split())
    parser = argparse.ArgumentParser()
    cli.import_command(name).add_arguments(parser)
    assert all(action.help for action in parser._actions)


def test_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in shown


def test_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tarin"])
    assert stopped.value.code == 2
    assert "invalid choice: 'tarin'" in capsys.readouterr().err


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"positron \d+\.\d+\.\d+, Python 3\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("words", ["train --stepz 5", "benchmark train --stepz 5", "quantize runs/x extra", "--stepz"])
def test_what_no_command_knows_is_refused_with_that_commands_usage(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    shown = capsys.readouterr().err
    command = " ".join(["positron", *words.partition(" --")[0].partition(" runs")[0].split()]).replace(" --stepz", "")
    assert stopped.value.code == 2
    assert shown.startswith(f"usage: {command} [-h]")
    assert f"{command}: error: unrecognized arguments: " in shown


@pytest.mark.parametrize("words", ["", *cli.COMMANDS, *(f"benchmark {name}" for name in benchmark.BENCHMARKS)])
def test_help_fits_80_columns(words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*words.split(), "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) >= 80] == []


def user_mistakes() -> list[Exception]:
    errors = [getattr(importlib.import_module(module), name) for module, name in cli.USER_ERRORS]
    return [error("something is wrong") for error in errors]


@pytest.mark.parametrize("error", user_mistakes(), ids=lambda error: type(error).__name__)
def test_users_mistake_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(raising(error), argparse.Namespace()) == 1
    assert capsys.readouterr().err == "error: something is wrong\n"


def test_operating_system_error_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: argparse.Namespace) -> int:
        (tmp_path / "absent").read_text()
        return 0

    assert cli.execute(command(run), argparse.Namespace()) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'absent'}: No such file or directory\n"


def test_bug_shows_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli.execute(raising(ZeroDivisionError("a bug")), argparse.Namespace())
    with pytest.raises(ValueError, match="no user's mistake"):
        cli.execute(raising(ValueError("no user's mistake")), argparse.Namespace())


def test_interrupt_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted = raising(KeyboardInterrupt())
    assert cli.execute(interrupted, argparse.Namespace()) == 130
    assert capsys.readouterr().err == "\nstopped: nothing was left half written; run the command again\n"
    interrupted.how_to_resume = lambda arguments: f"resume from step {arguments.step}"  # type: ignore[attr-defined]
    assert cli.execute(interrupted, argparse.Namespace(step=3)) == 130
    assert capsys.readouterr().err == "\nstopped: resume from step 3\n"


def test_exit_status_is_the_commands() -> None:
    assert cli.execute(command(lambda arguments: 0), argparse.Namespace()) == 0
    assert cli.execute(command(lambda arguments: 1), argparse.Namespace()) == 1


def test_input_error_is_the_packages_own() -> None:
    assert InputError in cli.user_errors()


def test_closed_pipe_is_no_error() -> None:
    program = (
        "import sys, types; from scripts import cli\n"
        "def run(arguments):\n"
        "    for _ in range(100000): print('a line of text')\n"
        "    return 0\n"
        "sys.exit(cli.execute(types.SimpleNamespace(run=run), None))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "a line of text\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 1


EVERY_HELP = """
import runpy, sys
script, *names = sys.argv[1:]
for name in names:
    sys.argv = [script, name, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, (name, end.code)
"""


def test_a_command_runs_without_the_installed_program(tmp_path: Path) -> None:
    # From another directory, as `python …/scripts/cli.py train`.
    script = str(ROOT / "scripts" / "cli.py")
    for command in ([script, cli.COMMANDS[0], "--help"], ["-P", "-c", EVERY_HELP, script, *cli.COMMANDS]):
        result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert result.returncode == 0, result.stderr
    usages = re.findall(r"^usage: positron (\S+)", result.stdout, re.MULTILINE)
    assert usages == list(cli.COMMANDS)
