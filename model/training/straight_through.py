"""The interface between training and a number format that a model is trained for.

The optimizer updates *latent* parameters. The model computes with copies of them, of which some are
rounded, and some of its tensors are rounded on the way; the gradients that arrive at rounded
numbers are applied to the latent ones as if rounding were the identity: the straight-through
estimator (Bengio, Léonard and Courville 2013, arXiv:1308.3432). A latent parameter thus sums small
updates until its rounded copy changes. Others are frozen, more of them from stage to stage: they
are rounded once and no longer change (Zhou et al. 2017, arXiv:1702.03044).

The training targets are the probabilities of a teacher, the float model that training began with,
mixed with the next token itself (Hinton, Vinyals and Dean 2015, arXiv:1503.02531).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..run import RunDirectory
from ..transformer import Transformer


class StraightThrough(Protocol):
    """A number format that a model is trained for."""

    @property
    def worker_module(self) -> str:
        """Module to run as a worker process, which builds this object from `to_dict()`."""

    @property
    def teacher(self) -> np.ndarray:
        """Parameters (n,) of the model whose probabilities are learned; not in `to_dict()`."""

    @property
    def hard_target_share(self) -> float:
        """Share of the next token itself in the training targets, from 0 to 1."""

    def to_dict(self) -> dict[str, Any]:
        """Return all that makes this object, as JSON holds it."""

    def save(self, run: RunDirectory) -> None:
        """Write `to_dict()` and the teacher into a run directory, for resuming."""

    def round_parameters(self, latent: np.ndarray, rounded: np.ndarray, share: int, num_shares: int) -> None:
        """Write one share of the rounded copy (n,) of the latent parameters (n,)."""

    def begin_step(
        self, latent: np.ndarray, used: np.ndarray, share: int, num_shares: int, step: int, total_steps: int
    ) -> None:
        """Write one share of the parameters (n,) that a step computes with; freeze what is due."""

    def end_step(self, latent: np.ndarray, used: np.ndarray, share: int, num_shares: int) -> None:
        """Give one share of the frozen parameters (n,) the values back that the step used."""

    def round_tensor(self, name: str, values: np.ndarray) -> None:
        """Round a forward tensor (N, channels) in place; see `Transformer.loss_and_gradients`."""

    def loss(
        self, model: Transformer, inputs: np.ndarray, targets: np.ndarray, progress: Callable[[int], object]
    ) -> float:
        """Return the mean loss in nats of windows (N, T), computed in the number format itself.

        `progress` is called with a number of windows when these are done.
        """
