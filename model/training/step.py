"""One training step, shared among W workers that see the same memory.

Worker w computes the gradients of its share of the batch. Then it sums the gradients of all workers
for its share of the parameters, in the order of the workers, and updates that share. Where one
worker must not run ahead of another there is a barrier:

    gradients of own sequences           | barrier
    sum own share of parameters, norm    | barrier
    clip and update own share            | barrier

With one worker nothing is shared and a barrier does nothing, so this is also the plain training
step. The batch of a step depends on (seed, step) alone, and so does all else: the same seed and
number of workers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import ModelConfig, TrainingConfig
from ..data import random_batch
from ..parameters import Parameters, parameter_counts, parameter_shapes
from ..transformer import Transformer
from .evaluation import evaluation_windows, summed_loss
from .muon import Muon
from .optimizers import STATE_NAMES, Optimizer, clip_scale
from .schedules import learning_rate
from .straight_through import StraightThrough

# A worker's values for the others in each step: its loss, and its share's squared gradient norm.
NUM_MESSAGES = 2


@dataclass(frozen=True)
class StepResult:
    """What a step reports.

    Attributes:
        loss: Mean over the batch in nats, before the update.
        gradient_norm: Global norm before clipping.
    """

    loss: float
    gradient_norm: float


class TrainingMemory:
    """All arrays of training as views of one buffer, which may be shared memory.

    Attributes:
        parameters: Flat (n,), what the optimizer updates.
        rounded: Flat (n,), what the model computes with: a copy that straight-through training
            rounds, or else `parameters` itself.
        teacher: Flat (n,), the parameters of the model that straight-through training imitates;
            empty otherwise.
        state: The optimizer's running means by name, each (n,).
        gradients: For each worker (n,).
        messages: (W, 2), float64.
    """

    def __init__(
        self,
        model: ModelConfig,
        training: TrainingConfig,
        num_workers: int,
        buffer: np.ndarray | None = None,
        *,
        rounding: bool = False,
    ) -> None:
        size = parameter_counts(model)["total"]
        names = STATE_NAMES[training.optimizer]
        length = self.required_size(model, training, num_workers, rounding=rounding)
        memory = np.zeros(length, np.float32) if buffer is None else buffer
        if memory.shape != (length,):
            raise ValueError(f"the buffer has shape {memory.shape}, not ({length},)")
        # (4·W,) float32 -> (2·W,) float64 -> (W, 2)
        self.messages = memory[: 2 * NUM_MESSAGES * num_workers].view(np.float64).reshape(num_workers, NUM_MESSAGES)
        # (vectors·n,) -> (vectors, n)
        vectors = memory[2 * NUM_MESSAGES * num_workers :].reshape(-1, size)
        self.parameters = vectors[0]
        self.state = {name: vectors[1 + index] for index, name in enumerate(names)}
        self.gradients = vectors[1 + len(names) : 1 + len(names) + num_workers]
        self.rounded: np.ndarray = vectors[-2] if rounding else self.parameters
        self.teacher: np.ndarray = vectors[-1] if rounding else np.empty(0, np.float32)

    @staticmethod
    def required_size(model: ModelConfig, training: TrainingConfig, num_workers: int, *, rounding: bool = False) -> int:
        """Return how many float32 values the buffer has."""
        vectors = 1 + len(STATE_NAMES[training.optimizer]) + num_workers + 2 * rounding
        return 2 * NUM_MESSAGES * num_workers + vectors * parameter_counts(model)["total"]


class WorkerStep:
    """One worker's part of the steps.

    Args:
        model_config: Shape of the model.
        config: How to train.
        total_steps: Length of the schedule.
        tokens: Training tokens (n,).
        validation: Held-out tokens (m,).
        memory: Shared by all workers.
        worker: Number of this one, from 0.
        num_workers: W.
        barrier: Returns when all workers have called it.
        straight_through: Rounds parameters and activations, unless None.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        config: TrainingConfig,
        total_steps: int,
        tokens: np.ndarray,
        validation: np.ndarray,
        memory: TrainingMemory,
        worker: int = 0,
        num_workers: int = 1,
        barrier: Callable[[], None] = lambda: None,
        straight_through: StraightThrough | None = None,
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self.tokens = tokens
        self.validation = validation
        self.memory = memory
        self.worker = worker
        self.num_workers = num_workers
        self.barrier = barrier
        self.straight_through = straight_through
        self.length = config.seq_len or model_config.max_seq_len
        self.model = Transformer(model_config, parameters=memory.rounded, gradients=memory.gradients[worker])
        self.teacher = None if straight_through is None else Transformer(model_config, parameters=memory.teacher)
        self.optimizer = Optimizer(config, self.model.parameters.num_decayed, memory.state)
        self.rows = _share(config.batch_size, worker, num_workers)
        self.part = _share(memory.parameters.size, worker, num_workers)
        self.optimized = [self.part]
        self.muon: Muon | None = None
        if config.optimizer == "muon":
            shapes = parameter_shapes(model_config)
            parameters, gradients, means = (
                Parameters(shapes, flat) for flat in (memory.parameters, memory.gradients[0], memory.state["mean"])
            )
            self.muon = Muon(model_config, parameters, gradients, means, config.weight_decay, worker, num_workers)
            first, last = self.muon.part.start, self.muon.part.stop
            self.optimized = [
                slice(self.part.start, min(self.part.stop, first)),
                slice(max(self.part.start, last), self.part.stop),
            ]

    def run(self, step: int) -> StepResult:
        """Do one step, counted from 0."""
        memory, config, rounding = self.memory, self.config, self.straight_through
        copies = memory.parameters, memory.rounded, self.worker, self.num_workers
        if rounding is not None:
            rounding.begin_step(*copies, step, self.total_steps)
            self.barrier()
        memory.messages[self.worker, 0] = self._compute_gradients(step)
        self.barrier()
        total = memory.gradients[0, self.part]
        for other in memory.gradients[1:, self.part]:
            total += other
        memory.messages[self.worker, 1] = float(np.vecdot(total, total))  # (part,) -> ()
        self.barrier()
        loss = float(memory.messages[:, 0].sum())
        norm = math.sqrt(float(memory.messages[:, 1].sum())) if np.isfinite(memory.messages[:, 1]).all() else math.inf
        # else the parameters stay unchanged, to explain the divergence
        if math.isfinite(loss) and math.isfinite(norm):
            rate = learning_rate(config, step, self.total_steps)
            scale = clip_scale(norm, config.gradient_clip)
            for part in self.optimized:
                self.optimizer.update(memory.parameters, memory.gradients[0], part, step, rate, scale)
            if self.muon is not None:
                self.muon.update(rate, scale)
        self.barrier()
        if rounding is not None:
            rounding.end_step(*copies)
        return StepResult(loss, norm)

    def round(self) -> None:
        """Round all parameters, each worker a share of them."""
        if self.straight_through is not None:
            self.straight_through.round_parameters(
                self.memory.parameters, self.memory.rounded, self.worker, self.num_workers
            )
            self.barrier()

    def evaluate(self, max_windows: int | None, first: int, last: int) -> float:
        """Return the sum of held-out losses of windows [first, last); each worker does a part.

        All lives in the memory of the steps: as many tokens at a time as a step has, if that is a
        whole window.
        """
        inputs, targets = evaluation_windows(self.validation, self.model.config.max_seq_len, max_windows)
        share = _share(last - first, self.worker, self.num_workers)
        part = slice(first + share.start, first + share.stop)
        self.memory.messages[self.worker, 0] = summed_loss(
            self.model, inputs[part], targets[part], self.windows_at_a_time, self.model.training_workspace
        )
        self.barrier()
        loss = float(self.memory.messages[:, 0].sum())
        self.barrier()
        return loss

    @property
    def windows_at_a_time(self) -> int:
        """Number of evaluation windows with no more tokens than one micro-batch; at least 1."""
        num_rows = self.rows.stop - self.rows.start
        sequences = -(-num_rows // self.config.accumulation_steps)
        return max(1, sequences * self.length // self.model.config.max_seq_len)

    def _compute_gradients(self, step: int) -> float:
        """Compute this worker's share of the gradients; return its share of the batch's loss."""
        config, model = self.config, self.model
        gradients = self.memory.gradients[self.worker]
        inputs, targets = random_batch(self.tokens, config.batch_size, self.length, config.seed, step)
        generator = np.random.default_rng((config.seed, step, self.worker + 1)) if model.config.dropout > 0 else None
        num_rows = self.rows.stop - self.rows.start
        pieces = min(config.accumulation_steps, num_rows)
        accumulated = np.zeros_like(gradients) if pieces > 1 else gradients
        transform = None if self.straight_through is None else self.straight_through.round_tensor
        loss = 0.0
        for piece in range(pieces):
            part = _share(num_rows, piece, pieces)
            rows = slice(self.rows.start + part.start, self.rows.start + part.stop)
            weight = (rows.stop - rows.start) / config.batch_size
            soft = self._soft_targets(inputs[rows], targets[rows])
            piece_loss, _ = model.loss_and_gradients(inputs[rows], targets[rows], generator, weight, transform, soft)
            loss += piece_loss * weight
            if pieces > 1:
                accumulated += gradients
        if pieces > 1:
            gradients[...] = accumulated
        elif pieces == 0:
            gradients[...] = 0
        return loss

    def _soft_targets(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray | None:
        """Return the probabilities (N, V) to learn from windows (B, T); None without a teacher."""
        if self.teacher is None or self.straight_through is None:
            return None
        probabilities = self.teacher.probabilities(inputs)  # (N, V)
        share = self.straight_through.hard_target_share
        if share:
            probabilities *= 1 - share
            probabilities[np.arange(len(probabilities)), targets.ravel()] += share
        return probabilities


def _share(size: int, index: int, count: int) -> slice:
    """Return the part of range(size) that share `index` of `count` gets."""
    return slice(size * index // count, size * (index + 1) // count)
