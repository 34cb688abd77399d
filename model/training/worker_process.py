"""One worker process of `model.training.workers`: commands and answers as JSON lines."""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import ModelConfig, TrainingConfig
from .step import TrainingMemory, WorkerStep
from .straight_through import StraightThrough


class Barrier:
    """Returns from a call when every worker has made it.

    Args:
        links: A socket to each other worker. A call sends a byte on each and waits for one; an end
            of stream means that the other worker has ended.
    """

    def __init__(self, links: list[socket.socket]) -> None:
        self.links = links

    def __call__(self) -> None:
        """Wait for the others."""
        for link in self.links:
            link.send(b"h")
        for link in self.links:
            if not link.recv(1):
                raise ConnectionError("another training worker has ended")


def open_tokens(place: dict[str, Any]) -> np.ndarray:
    """Return the tokens that `model.training.workers` described."""
    if "path" in place:
        tokens = np.load(place["path"], mmap_mode="r", allow_pickle=False)
        assert isinstance(tokens, np.ndarray)
        return tokens
    memory = mmap.mmap(place["descriptor"], 0, access=mmap.ACCESS_READ)
    return np.ndarray(place["shape"], place["dtype"], memory)


def main(build_straight_through: Callable[[dict[str, Any]], StraightThrough] | None = None) -> None:
    """Work until the input ends.

    Args:
        build_straight_through: Returns what `to_dict()` described; for jobs that round.
    """
    line = sys.stdin.readline()
    if not line.endswith("\n"):
        return  # the parent ended before it sent the job
    job = json.loads(line)
    model, training = ModelConfig.from_dict(job["model"]), TrainingConfig.from_dict(job["training"])
    buffer = np.frombuffer(mmap.mmap(job["memory"]["descriptor"], job["memory"]["size"]), np.float32)
    rounding = None if build_straight_through is None else build_straight_through(job["straight_through"])
    worker = WorkerStep(
        model,
        training,
        job["total_steps"],
        open_tokens(job["tokens"]),
        open_tokens(job["validation"]),
        TrainingMemory(model, training, job["num_workers"], buffer, rounding=rounding is not None),
        job["worker"],
        job["num_workers"],
        Barrier([socket.socket(fileno=descriptor) for descriptor in job["links"]]),
        rounding,
    )
    for line in sys.stdin:
        command = json.loads(line)
        answer: Any
        if command["command"] == "evaluate":
            answer = worker.evaluate(*command["windows"])
        elif command["command"] == "round":
            worker.round()
            answer = None
        else:
            steps = range(command["first"], command["first"] + command["count"])
            answer = [(result.loss, result.gradient_norm) for result in map(worker.run, steps)]
        print(json.dumps(answer), flush=True)


def run(build_straight_through: Callable[[dict[str, Any]], StraightThrough] | None = None) -> None:
    """Run `main`, and end quietly when the parent or another worker was killed."""
    try:
        main(build_straight_through)
    except (BrokenPipeError, ConnectionError):
        os._exit(1)


if __name__ == "__main__":
    run()
