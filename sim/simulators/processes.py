"""Child processes that end with this one."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hdl import ToolError

TAIL_LINES = 30
GRACE_SECONDS = 2.0


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log file."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def end_group(process: subprocess.Popen) -> None:
    """End a process and all its children: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def run_logged(command: Sequence[str], log: Path, environment: Mapping[str, str], directory: Path) -> int:
    """Run a command in a process group of its own, its output in a file; return its exit status.

    An exception, Ctrl-C included, ends the whole group first.

    Raises:
        ToolError: The command cannot be started.
    """
    with log.open("ab") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=directory,
                start_new_session=True,
            )
        except OSError as error:
            raise ToolError(f"cannot start {command[0]}: {error}") from error
        try:
            return process.wait()
        except BaseException:
            end_group(process)
            raise
