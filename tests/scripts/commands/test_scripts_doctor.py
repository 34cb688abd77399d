import json

import pytest

from hdl.tools import toolchain
from scripts import cli
from scripts.commands import doctor


@pytest.fixture
def without(monkeypatch):
    """Return a function that makes tools disappear."""

    def hide(*names):
        find = toolchain.find_tool
        hidden = lambda name: None if name in names else find(name)  # noqa: E731
        monkeypatch.setattr(toolchain, "find_tool", hidden)
        monkeypatch.setattr(doctor, "find_tool", hidden)
        toolchain.tool_version.cache_clear()

    yield hide
    toolchain.tool_version.cache_clear()


def test_all_that_the_demonstration_needs_is_here(capsys):
    assert cli.main(["doctor"]) == 0
    assert "Ready for `make demo`" in capsys.readouterr().out


@pytest.mark.parametrize("tool", doctor.REQUIRED_TOOLS)
def test_a_missing_tool_is_named_with_what_to_install(without, capsys, tmp_path, tool):
    without(tool)
    assert cli.main(["doctor", "--json", str(tmp_path / "doctor.json")]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(tool))
    assert "missing" in line
    assert "pip install 'positron-transformer[fpga]'" in line
    figures = json.loads((tmp_path / "doctor.json").read_text())
    assert figures["ready"] is False
    assert [one["name"] for one in figures["findings"] if one["required"] and not one["usable"]] == [tool]


def test_without_a_compiler_the_demonstration_still_runs(without, capsys):
    without("c++")
    assert cli.main(["doctor"]) == 0
    assert "slower, on Amaranth's own simulator, without c++" in capsys.readouterr().out


def test_a_yosys_that_is_known_to_fail_is_not_usable(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "tool_version", lambda name: "0.70.0.0.post1300")
    assert cli.main(["doctor"]) == 1
    assert "bad version" in capsys.readouterr().out
