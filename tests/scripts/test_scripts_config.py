"""Options from a TOML file, what a run keeps of them, and completion by the shell."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts import cli


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_gives_options_and_the_run_keeps_them(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def text(*words: str) -> str:
        assert cli.main(["generate", str(tiny_run), *words]) == 0
        return capsys.readouterr().out

    file = write(
        tmp_path / "options.toml",
        "seed = 3\n[generate]\nlength = 9\ntemperature = 2\nquantized = true\ntop_k = 1\n[train]\nsteps = 2\n",
    )
    given = ["--length", "9", "--temperature", "2", "--seed", "3"]
    assert cli.main(["generate", str(tiny_run), "--config", file]) == 1, "top_k reached the command"
    assert "--top-k and --top-p exist for the float model alone" in capsys.readouterr().err
    file = write(tmp_path / "options.toml", Path(file).read_text().replace("top_k = 1\n", ""))
    assert text("--config", file) == text(*given, "--quantized") != text(*given[:4], "--quantized")
    kept = tiny_run / "options" / "generate.toml"
    assert tomllib.loads(kept.read_text()) == {"length": 9, "temperature": 2.0, "quantized": True, "seed": 3}
    # the command line overrides the file, and the run keeps what was used
    assert text("--seed=4", f"--config={file}") == text(*given[:4], "--seed", "4", "--quantized")
    assert tomllib.loads(kept.read_text())["seed"] == 4
    again = write(tmp_path / "again.toml", kept.read_text())
    assert text("--config", again) == text(*given[:4], "--seed", "4", "--quantized")


@pytest.mark.parametrize(
    ("words", "text", "message"),
    [
        ("train", "stepz = 5", "positron train has no option 'stepz'; it has text, out, resume, "),
        ("train", "steps = 'many'", "argument --steps: invalid int value: 'many'"),
        ("train", "steps = true", "argument --steps: invalid value: True"),
        ("train", "steps = [1, 2]", "argument --steps: invalid value: [1, 2]"),
        ("train", "force = 1", "argument --force: invalid value: 1"),
        ("train", "position = 'sideways'", "argument --position: invalid choice: 'sideways'"),
        ("train", "[tarin]\nsteps = 5", "there is no command 'tarin'"),
        ("train", "steps = ", "is not TOML"),
        ("benchmark train", "[benchmark.train]\nstepz = 5", "positron benchmark train has no option 'stepz'"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "options.toml", text)
    assert cli.main([*words.split(), "--config", file]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {file}")
    assert message in shown
    assert shown.count("\n") == 1


def test_lists_and_required_options(tmp_path: Path) -> None:
    for words, text, name, value in (
        ("simulate runs/x", "only = ['softmax', 'attention']", "only", ["softmax", "attention"]),
        ("quantize runs/x", "beside = ['a', 'b']", "beside", [Path("a"), Path("b")]),
        ("import model.bin", "out = 'runs/y'", "out", Path("runs/y")),
        ("train", "resume = true", "resume", True),
        ("quantize runs/x", "weight-bits = 'ternary'", "weight_bits", "ternary"),
    ):
        file = write(tmp_path / "options.toml", text)
        command = words.split()[0]
        parser = cli.build_parser(command, cli.import_command(command))
        cli.config.take_config(parser, [*words.split(), "--config", file])
        assert getattr(cli.parse(parser, words.split()), name) == value


@pytest.mark.parametrize(
    ("line", "found", "other"),
    [
        ("positron qu", "quantize", "train"),
        ("positron quantize --weight-b", "--weight-bits", "--steps"),
        ("positron train --position r", "rotary", "learned"),
    ],
)
def test_the_shell_completes(line: str, found: str, other: str, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    answers = tmp_path / "answers"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run([Path(sys.executable).with_name("positron")], env=environment, check=False, timeout=60)
    words = [word.strip() for word in answers.read_text().split("\n")]
    assert found in words
    assert other not in words
