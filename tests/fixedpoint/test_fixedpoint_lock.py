"""Two processes and one directory: the second is told who is there, and nothing is left when the
first is killed.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from fixedpoint import InUseError, atomic_directory, lock_directory, lock_target
from hdl.tools.synthesis import synthesize_core
from scripts import cli

HOLDER = """
import sys
import fixedpoint
with getattr(fixedpoint, sys.argv[1])(sys.argv[2]):
    print("there", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(kind: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a lock."""
    command = [sys.executable, "-c", HOLDER, kind, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("kind", "lock"), [("lock_directory", lock_directory), ("lock_target", lock_target)])
def test_a_second_process_is_told_who_is_there(kind, lock, tmp_path):
    with held(kind, tmp_path / "place") as other:
        with pytest.raises(InUseError) as refusal, lock(tmp_path / "place"):
            pass
        message = str(refusal.value)
        assert message.startswith(f"{tmp_path / 'place'} is in use by process {other.pid} (")
        assert f"{kind} {tmp_path / 'place'})" in message
        assert "\n" not in message
        assert other.poll() is None
        other.kill()
        other.wait()
        with lock(tmp_path / "place"):  # a killed process has let go
            pass
    assert not (tmp_path / ".place.lock").exists()
    assert not (tmp_path / "place" / ".lock").exists()


def test_the_same_process_may_come_in_again(tmp_path):
    with lock_directory(tmp_path), lock_directory(tmp_path):
        pass
    with held("lock_directory", tmp_path), pytest.raises(InUseError), lock_directory(tmp_path):
        pass


def test_an_error_inside_lets_go(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock_directory(tmp_path):
        raise KeyboardInterrupt
    with held("lock_directory", tmp_path):
        pass


def test_a_directory_that_stays_empty_is_taken_away_again(tmp_path):
    with lock_directory(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with lock_directory(tmp_path / "run"):
        pass
    assert (tmp_path / "run").exists()


def test_a_file_that_the_last_owner_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    flock, files = fcntl.flock, []

    def late(descriptor, operation):
        flock(descriptor, operation)
        if not files:  # the owner removed it, and let go, between our opening and locking it
            (tmp_path / ".target.lock").unlink()
        files.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock_target(tmp_path / "target"):
        command = [sys.executable, "-c", HOLDER, "lock_target", str(tmp_path / "target")]
        other = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert f"is in use by process {os.getpid()} " in other.stderr
    assert len(files) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_fills_is_left_alone(tmp_path):
    with held("atomic_directory", tmp_path / "export"):
        (filling,) = tmp_path.glob(".export.*.tmp")
        with pytest.raises(InUseError, match="is in use by process"), atomic_directory(tmp_path / "export"):
            pass
        assert filling.is_dir()


class Wire(wiring.Component):
    data: Out(1)

    def elaborate(self, platform):
        from amaranth import Module

        m = Module()
        m.d.sync += self.data.eq(~self.data)
        return m


def test_one_synthesis_of_a_target_at_a_time(tmp_path):
    with held("atomic_directory", tmp_path / "wire") as other:
        with pytest.raises(InUseError, match=f"process {other.pid} "):
            synthesize_core(Wire(), tmp_path / "wire", progress=False)


@pytest.mark.parametrize("words", ["quantize RUN", "train --out RUN --force --steps 1", "demo --out RUN --steps 1"])
def test_one_command_at_a_time_changes_a_run(words, tiny_run, capsys):
    before = {file: file.stat().st_mtime_ns for file in tiny_run.rglob("*")}
    with held("lock_directory", tiny_run) as other:
        assert cli.main(words.replace("RUN", str(tiny_run)).split()) == 1
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {tiny_run} is in use by process {other.pid} (")
        assert errors.count("\n") == 1
    (tiny_run / ".lock").unlink()  # which the killed process left
    assert {file: file.stat().st_mtime_ns for file in tiny_run.rglob("*")} == before


def test_one_command_at_a_time_proves_in_a_directory(tmp_path, monkeypatch, capsys):
    started = []
    monkeypatch.setattr("sim.proofs.proof.settle", lambda *arguments, **_: started.append(arguments))
    with held("lock_directory", tmp_path) as other:
        assert cli.main(["prove", "requantize", "--out", str(tmp_path)]) == 1
        errors = capsys.readouterr().err
        assert errors.startswith(f"error: {tmp_path} is in use by process {other.pid} (")
        assert errors.count("\n") == 1
    assert started == []
