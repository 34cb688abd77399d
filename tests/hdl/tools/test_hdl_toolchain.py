import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hdl import ToolError
from hdl.tools import toolchain
from hdl.tools.toolchain import (
    TOOLS,
    ToolFailure,
    find_tool,
    is_known_bad_yosys,
    require_tool,
    run_tool,
    tool_environment,
)


def make_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\nPATH={os.defpath}\n{text}\n")  # whatever PATH the test leaves it
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(toolchain, "search_path", lambda: [tmp_path])
    return tmp_path


def test_the_tools_beside_this_python_are_found_without_path(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for name in ("yosys", "nextpnr-ecp5", "ecppack"):
        assert find_tool(name).parent == Path(sys.executable).parent


def test_tools_find_those_beside_this_python_first():
    assert tool_environment()["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.parametrize(
    "line", ["ERROR: no rule", "%Error: a.v:3:1: syntax", "a.cpp:1:2: fatal error: a.h: No such file"]
)
def test_the_first_line_that_says_error_is_the_reason(line):
    assert str(
        ToolFailure("make", 2, f"warning: 3 errors may follow\n{line}\n%Error: another\nmake: *** [all] 1\n")
    ).endswith(f"status 2: {line}")


@pytest.mark.parametrize("name", TOOLS)
def test_a_missing_tool_is_named_with_what_to_install(nothing_installed, name):
    assert find_tool(name) is None
    with pytest.raises(ToolError) as error:
        require_tool(name)
    assert TOOLS[name].programs[0] in str(error.value)
    assert TOOLS[name].install in str(error.value)


def test_the_first_directory_wins_and_programs_are_tried_in_order(nothing_installed):
    make_program(nothing_installed / "clang++", "")
    assert find_tool("c++").name == "clang++"
    make_program(nothing_installed / "g++", "")
    assert find_tool("c++").name == "g++"


def test_a_file_that_is_not_executable_is_no_tool(nothing_installed):
    (nothing_installed / "perl").write_text("")
    assert find_tool("perl") is None


@pytest.mark.parametrize(
    ("version", "bad"),
    [("0.70", True), ("0.70.0.0.post1300", True), ("0.54+1", True), ("0.69.0.0.post1233", False), ("0.7", False)],
)
def test_known_bad_versions_of_yosys(version, bad):
    assert is_known_bad_yosys(version) is bad


def test_the_installed_yosys_is_not_a_known_bad_one():
    assert not is_known_bad_yosys(toolchain.tool_version("yosys"))


def test_a_failing_tool_is_reported_with_its_first_error_line(nothing_installed, tmp_path):
    make_program(nothing_installed / "make", "echo fine; echo ERROR: no rule >&2; echo bye; exit 3")
    with pytest.raises(ToolFailure, match=r"^make failed with exit status 3: ERROR: no rule$") as error:
        run_tool("make", (), tmp_path)
    assert error.value.status == 3
    assert error.value.output == "fine\nERROR: no rule\nbye\n"


def test_a_tool_runs_in_its_directory_and_ticks(nothing_installed, tmp_path):
    make_program(nothing_installed / "make", 'pwd; echo "$1"; sleep 0.6')
    work = tmp_path / "work"
    work.mkdir()
    ticks = []
    assert run_tool("make", ("word",), work, lambda: ticks.append(1)) == f"{work}\nword\n"
    assert len(ticks) >= 2
    assert list(work.iterdir()) == []


def test_an_interrupt_ends_the_tool_and_its_children(nothing_installed, tmp_path):
    make_program(nothing_installed / "make", "(sleep 1; touch survived) & sleep 30")

    def interrupt():
        raise KeyboardInterrupt

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        run_tool("make", (), tmp_path, interrupt)
    assert time.perf_counter() - start < 5
    time.sleep(1.3)
    assert not (tmp_path / "survived").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_tool_ends_when_this_program_is_killed(tmp_path):
    program = make_program(tmp_path / "make", "touch started; sleep 1; touch survived")
    code = f"""
from pathlib import Path
from hdl.tools import toolchain
toolchain.search_path = lambda: [Path({str(program.parent)!r})]
toolchain.run_tool("make", (), Path({str(tmp_path)!r}))
"""
    victim = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    victim.kill()
    victim.wait()
    time.sleep(1.5)
    assert (tmp_path / "started").exists()
    assert not (tmp_path / "survived").exists()
