import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fixedpoint import atomic_directory

CHILD = """
import os, signal, sys
from pathlib import Path
from fixedpoint import atomic_directory
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits an ignored one
with atomic_directory(sys.argv[1]) as directory:
    (directory / "new").write_text("half")
    {death}
"""


def fill(path, text):
    with atomic_directory(path) as directory:
        assert list(directory.iterdir()) == []
        assert directory.parent == path.parent  # the same file system, so that a rename suffices
        (directory / "content").write_text(text)
        assert not (path / "content").exists() or (path / "content").read_text() != text


def only(path):
    """The target is all there is: nothing temporary was left."""
    return sorted(entry.name for entry in path.parent.iterdir()) == [path.name]


def test_appears_whole(tmp_path):
    target = tmp_path / "deep" / "below" / "export"
    fill(target, "one")
    assert (target / "content").read_text() == "one"
    assert only(target)
    assert target.stat().st_mode & 0o777 == 0o755


def test_replaces_all_of_the_old(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "stale").write_text("old")
    fill(target, "two")
    assert [entry.name for entry in target.iterdir()] == ["content"]
    assert only(target)


def test_relative_paths_and_odd_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("plain", "with [brackets] and *", "dotted.name"):
        fill(Path(name).absolute(), "x")
        with atomic_directory(name) as directory:
            (directory / "content").write_text("y")
        assert (tmp_path / name / "content").read_text() == "y"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_an_exception_leaves_the_old_one(tmp_path, error, existing):
    target = tmp_path / "export"
    if existing:
        fill(target, "old")
    with pytest.raises(error), atomic_directory(target) as directory:
        (directory / "content").write_text("new")
        raise error
    assert target.exists() == existing
    assert not existing or (target / "content").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"] * existing


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_at_either_rename_leaves_the_old_one(tmp_path, monkeypatch, step, error):
    """The worst moment: the old directory has been moved away, the new one not yet moved in."""
    target = tmp_path / "export"
    fill(target, "old")
    replace, calls = Path.replace, []

    def interrupted(self, destination):
        calls.append(self)
        if len(calls) == step:
            raise error
        return replace(self, destination)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(error):
        fill(target, "new")
    assert len(calls) >= step
    assert (target / "content").read_text() == "old"
    assert only(target)


def run_child(target, death):
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(death=death), str(target)], check=False, capture_output=True, timeout=60
    )


@pytest.mark.parametrize("existing", [True, False])
def test_a_killed_process_leaves_the_old_one_and_the_next_call_cleans_up(tmp_path, existing):
    target = tmp_path / "export"
    if existing:
        fill(target, "old")
    child = run_child(target, "os.kill(os.getpid(), signal.SIGKILL)")
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert target.exists() == existing
    assert not existing or (target / "content").read_text() == "old"
    leftovers = list(tmp_path.glob(".export.*.tmp"))
    assert len(leftovers) == 1  # the child did come as far as that
    fill(target, "new")
    assert only(target)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    target = tmp_path / "export"
    fill(target, "old")
    child = run_child(target, "os.kill(os.getpid(), signal.SIGINT)\n    import time; time.sleep(30)")
    assert b"KeyboardInterrupt" in child.stderr
    assert (target / "content").read_text() == "old"
    assert only(target)


def test_a_process_killed_between_the_renames_is_recovered_from(tmp_path):
    target = tmp_path / "export"
    fill(target, "old")
    death = (
        "replace = Path.replace\n"
        "    def killed(self, destination):\n"
        "        replace(self, destination)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    Path.replace = killed"
    )
    child = run_child(target, death)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not target.exists()
    with pytest.raises(ValueError, match="stop"), atomic_directory(target):
        assert (target / "content").read_text() == "old"  # put back before anything else happens
        raise ValueError("stop")
    assert (target / "content").read_text() == "old"
    assert only(target)


def test_other_targets_are_left_alone(tmp_path):
    """A target's name may be the beginning of another's, which may be being filled."""
    with atomic_directory(tmp_path / "export.old") as other:
        (other / "content").write_text("other")
        fill(tmp_path / "export", "mine")
    assert (tmp_path / "export.old" / "content").read_text() == "other"
    assert (tmp_path / "export" / "content").read_text() == "mine"
