"""Where training steps run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .config import ModelConfig, TrainingConfig
from .training_step import StepResult, TrainingMemory, WorkerStep


class TrainingEngine:
    """Runs steps in this process."""

    def __init__(self, model: ModelConfig, training: TrainingConfig, total_steps: int, tokens: np.ndarray) -> None:
        self.num_workers = 1
        self.memory = TrainingMemory(model, training, 1)
        self._worker = WorkerStep(model, training, total_steps, tokens, self.memory)

    def run(self, first: int, count: int) -> list[StepResult]:
        """Do `count` steps beginning with number `first`."""
        return [self._worker.run(step) for step in range(first, first + count)]


@contextmanager
def open_engine(
    model: ModelConfig,
    training: TrainingConfig,
    total_steps: int,
    tokens: np.ndarray,
    tokens_path: Path | None,
    num_workers: int,
) -> Iterator[TrainingEngine]:
    """Yield an engine."""
    yield TrainingEngine(model, training, total_steps, tokens)
