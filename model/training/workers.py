"""Worker processes that share one training step, and the memory that they share.

Two processes with BLAS on one core each are faster than one process with BLAS on two cores:
everything between the matrix products is then done twice at a time as well. Each worker is a fresh
interpreter (`python -P -m model.training.worker_process`) that inherits a file descriptor for the
shared memory and one end of a socket to every other worker; it takes commands as JSON lines on its
standard input and answers on its standard output. Nothing has a name in the file system, so nothing
is left behind when a process is killed; the others then read an end of file and end too.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..config import ModelConfig, TrainingConfig
from ..data import count_windows
from ..threads import BLAS_THREADS
from .step import StepResult, TrainingMemory, WorkerStep
from .straight_through import StraightThrough

MOST_WORKERS = 4
WINDOWS_AT_A_TIME = 64  # of an evaluation, between two looks at its progress
ONE_BLAS_THREAD = dict.fromkeys(BLAS_THREADS, "1")


class TrainingExecutor(ABC):
    """Does training steps and evaluations on the arrays in `memory`."""

    num_workers: int
    num_windows: int
    memory: TrainingMemory

    @abstractmethod
    def run(self, first: int, count: int) -> list[StepResult]:
        """Do `count` steps beginning with number `first`."""

    @abstractmethod
    def round(self) -> None:
        """Bring `memory.rounded` up to date with `memory.parameters`."""

    def evaluate(self, max_windows: int | None = None, progress: Callable[[int], object] = lambda count: None) -> float:
        """Return the held-out loss of the parameters in memory, over all or `max_windows` windows.

        `progress` is called with a number of windows when these are done.
        """
        count = self.num_windows if max_windows is None else min(self.num_windows, max_windows)
        total = 0.0
        for first in range(0, count, WINDOWS_AT_A_TIME):
            last = min(first + WINDOWS_AT_A_TIME, count)
            total += self._evaluate(max_windows, first, last)
            progress(last - first)
        return total / count

    @abstractmethod
    def _evaluate(self, max_windows: int | None, first: int, last: int) -> float:
        """Return the sum of the losses of some windows."""


class LocalExecutor(TrainingExecutor):
    """One worker: this process."""

    def __init__(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        total_steps: int,
        tokens: np.ndarray,
        validation: np.ndarray,
        straight_through: StraightThrough | None = None,
    ) -> None:
        self.num_workers = 1
        self.num_windows = count_windows(validation, model.max_seq_len)
        self.memory = TrainingMemory(model, training, 1, rounding=straight_through is not None)
        self._worker = WorkerStep(
            model, training, total_steps, tokens, validation, self.memory, straight_through=straight_through
        )

    def run(self, first: int, count: int) -> list[StepResult]:
        """Do the steps here."""
        return [self._worker.run(step) for step in range(first, first + count)]

    def round(self) -> None:
        """Round here."""
        self._worker.round()

    def _evaluate(self, max_windows: int | None, first: int, last: int) -> float:
        return self._worker.evaluate(max_windows, first, last)


class ProcessExecutor(TrainingExecutor):
    """Several worker processes.

    Args:
        model: Shape of the model.
        training: How to train.
        total_steps: Length of the schedule.
        tokens: Training tokens; passed on as a file name when they are memory-mapped.
        validation: Held-out tokens, likewise.
        num_workers: At least 2.
        resources: Closes files and ends processes.
        straight_through: Rounds parameters and activations, unless None; its `worker_module` is
            what the processes then run.
    """

    def __init__(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        total_steps: int,
        tokens: np.ndarray,
        validation: np.ndarray,
        num_workers: int,
        resources: ExitStack,
        straight_through: StraightThrough | None = None,
    ) -> None:
        self.num_workers = num_workers
        self.num_windows = count_windows(validation, model.max_seq_len)
        self._worker_module = (
            "model.training.worker_process" if straight_through is None else straight_through.worker_module
        )
        rounding = straight_through is not None
        size = 4 * TrainingMemory.required_size(model, training, num_workers, rounding=rounding)
        shared = _unnamed_file(resources)
        shared.truncate(size)
        self.memory = TrainingMemory(model, training, num_workers, _map(shared.fileno(), size), rounding=rounding)
        job = {
            "model": model.to_dict(),
            "training": training.to_dict(),
            "total_steps": total_steps,
            "num_workers": num_workers,
            "memory": {"descriptor": shared.fileno(), "size": size},
            "tokens": _describe(tokens, resources),
            "validation": _describe(validation, resources),
            "straight_through": None if straight_through is None else straight_through.to_dict(),
        }
        # links[worker][other] is this worker's end of the socket between the two
        links: list[dict[int, socket.socket]] = [{} for _ in range(num_workers)]
        for first, second in itertools.combinations(range(num_workers), 2):
            ends = socket.socketpair()
            links[first][second], links[second][first] = (resources.enter_context(end) for end in ends)
        self._processes = [
            self._start(
                {**job, "worker": worker, "links": [link.fileno() for link in links[worker].values()]}, resources
            )
            for worker in range(num_workers)
        ]
        for ends_of_worker in links:
            for link in ends_of_worker.values():
                link.close()  # an open end here would hide from a worker that another has ended

    def _start(self, job: dict[str, Any], resources: ExitStack) -> subprocess.Popen[bytes]:
        inherited = [
            job[name]["descriptor"] for name in ("memory", "tokens", "validation") if "descriptor" in job[name]
        ]
        search_path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, sys.path)])
        process = subprocess.Popen(
            # -P: no model.py of the current directory is ours
            [sys.executable, "-P", "-m", self._worker_module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_BLAS_THREAD, "PYTHONPATH": search_path},
            pass_fds=[*inherited, *job["links"]],
            # Ctrl-C at the terminal is for the parent, which ends training in an orderly way
            start_new_session=True,
        )
        resources.callback(_end, process)
        self._send(process, job)
        return process

    def run(self, first: int, count: int) -> list[StepResult]:
        """Have the workers do the steps."""
        answers = self._ask({"command": "run", "first": first, "count": count})
        return [StepResult(*result) for result in answers[0]]

    def round(self) -> None:
        """Have each worker round a part of the parameters."""
        self._ask({"command": "round"})

    def _evaluate(self, max_windows: int | None, first: int, last: int) -> float:
        return float(self._ask({"command": "evaluate", "windows": [max_windows, first, last]})[0])

    def _ask(self, command: dict[str, Any]) -> list[Any]:
        """Send a command to all workers, and return their answers."""
        for process in self._processes:
            self._send(process, command)
        answers = []
        for process in self._processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.endswith(b"\n"):
                raise RuntimeError(
                    f"a training worker ended unexpectedly (exit status {process.wait()}); see its message above"
                )
            answers.append(json.loads(line))
        return answers

    @staticmethod
    def _send(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"a training worker ended unexpectedly (exit status {process.wait()})") from None


@contextmanager
def open_executor(
    model: ModelConfig,
    training: TrainingConfig,
    total_steps: int,
    tokens: np.ndarray,
    validation: np.ndarray,
    num_workers: int | None = None,
    straight_through: StraightThrough | None = None,
) -> Iterator[TrainingExecutor]:
    """Yield an executor with `num_workers` workers; None: by configuration and machine."""
    count = num_workers or training.num_workers or available_workers(training.batch_size)
    count = min(count, training.batch_size)
    if count == 1:
        yield LocalExecutor(model, training, total_steps, tokens, validation, straight_through)
        return
    with ExitStack() as resources:
        yield ProcessExecutor(model, training, total_steps, tokens, validation, count, resources, straight_through)


def available_workers(batch_size: int) -> int:
    """Return one worker for each core, at most 4, and at most one for each sequence."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, batch_size))


def _unnamed_file(resources: ExitStack) -> IO[bytes]:
    """Return a temporary file without a name, in memory where the system offers that."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return resources.enter_context(tempfile.TemporaryFile(dir=place))


def _map(descriptor: int, size: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, size), np.float32)


def _describe(tokens: np.ndarray, resources: ExitStack) -> dict[str, Any]:
    """Return how a worker finds tokens: by its .npy file, or an unnamed copy's descriptor."""
    if (
        isinstance(tokens, np.memmap)
        and tokens.filename is not None
        and tokens.shape == np.load(tokens.filename, mmap_mode="r").shape
    ):
        return {"path": str(tokens.filename)}
    copy = _unnamed_file(resources)
    copy.write(np.ascontiguousarray(tokens).tobytes())
    copy.flush()
    return {"descriptor": copy.fileno(), "dtype": tokens.dtype.str, "shape": tokens.shape}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a worker end by closing its input; insist if it does not."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
