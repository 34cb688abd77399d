"""What else is called `model` or `scripts` on a user's machine is named, or does not matter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import positron_start

CONSOLE_SCRIPT = ["-P", "-c", "import sys, positron_start; sys.exit(positron_start.main())"]
MODULE = ["-m", "scripts.cli"]


def start(words: list[str], directory: Path, *search: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words, "train", "--help"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*search, positron_start.PROJECT)))},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("file", ["model.py", "model/__init__.py", "fixedpoint.py", "sim/__init__.py", "hdl.py"])
def test_what_is_in_the_way_is_named_in_one_line(file: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("raise SystemExit('imported')")
    result = start(MODULE, tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path / file} is in the way of this project's package {file[:3]}")
    assert "rename or uninstall it, or start in another directory" in result.stderr


def test_another_distributions_scripts_are_named(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    result = start(CONSOLE_SCRIPT, tmp_path, tmp_path)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert f"{tmp_path / 'scripts' / '__init__.py'} is in the way" in result.stderr


def test_the_command_does_not_mind_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('imported')")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "__init__.py").touch()
    result = start(CONSOLE_SCRIPT, tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: positron train")


def test_a_directory_that_is_no_package_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert start(MODULE, tmp_path).returncode == 0


def test_our_own_packages_are_not_shadowed() -> None:
    assert positron_start.find_shadowing() is None
