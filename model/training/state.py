"""The state of a run that stopped: what resuming to the same bytes needs, in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..checkpoint import read_npz, write_npz
from ..config import TrainingConfig
from ..errors import InputError
from ..run import RunDirectory
from .optimizers import STATE_NAMES

# Fields that a resumed run may change: they do not touch the weights.
FREE_FIELDS = ("log_every", "sample_every", "time_limit")


@dataclass
class Progress:
    """How far a run has come, in all sessions: numbers, stored as float64 in this order.

    Attributes:
        step: Steps done.
        best_loss: The lowest held-out loss.
        evaluations_without_improvement: Held-out losses since that one.
        seconds: Training time.
        loss_sum: Of the steps since the last line of the log.
        loss_count: Their number.
        num_workers: Worker processes; 0 before training has started.
        finished: 1 if there is nothing left to resume.
    """

    step: int = 0
    best_loss: float = math.inf
    evaluations_without_improvement: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    num_workers: int = 0
    finished: int = 0

    def to_array(self) -> np.ndarray:
        """Return the fields, float64 (8,)."""
        return np.array(list(vars(self).values()), dtype=np.float64)

    @classmethod
    def from_array(cls, array: np.ndarray) -> Progress:
        """Read what `to_array` returned."""
        defaults = vars(cls())
        return cls(**{name: type(value)(n) for (name, value), n in zip(defaults.items(), array.tolist(), strict=True)})


@dataclass
class TrainingState:
    """Everything that the next step depends on.

    Attributes:
        progress: How far the run has come.
        parameters: The model's, in one vector (P,).
        best_parameters: Those with the lowest held-out loss (P,).
        optimizer: The optimizer's vectors by name, each (P,).
    """

    progress: Progress
    parameters: np.ndarray
    best_parameters: np.ndarray
    optimizer: Mapping[str, np.ndarray] = field(repr=False)

    def save(self, run: RunDirectory) -> None:
        """Write the state, atomically."""
        arrays = {"parameters": self.parameters, "best_parameters": self.best_parameters}
        arrays |= {f"state_{name}": array for name, array in self.optimizer.items()}
        write_npz(run.training_state, arrays | {"progress": self.progress.to_array()})

    @classmethod
    def load(cls, run: RunDirectory, config: TrainingConfig, size: int) -> TrainingState:
        """Read the state of a run that stopped.

        Args:
            run: The run.
            config: How to resume it; only `FREE_FIELDS` may differ from its first configuration.
            size: Number of the model's parameters.

        Raises:
            InputError: There is no state, it is damaged, or the configuration is another one.
        """
        if not run.training_state.exists():
            raise InputError(f"{run.path} has no saved training state; train it from the start")
        check_same_configuration(run, config)
        optimizer = STATE_NAMES[config.optimizer]
        names = ["parameters", "best_parameters", *(f"state_{name}" for name in optimizer)]
        shapes = {**dict.fromkeys(names, (size,)), "progress": Progress().to_array().shape}
        saved = read_npz(run.training_state, shapes)
        return cls(
            Progress.from_array(saved["progress"]),
            saved["parameters"],
            saved["best_parameters"],
            {name: saved[f"state_{name}"] for name in optimizer},
        )


def check_same_configuration(run: RunDirectory, config: TrainingConfig) -> None:
    """Refuse a configuration that would not lead a run to the same bytes.

    Raises:
        InputError: A field outside `FREE_FIELDS` differs from what `training.json` says.
    """
    recorded = run.load_training_config().to_dict()
    differences = [
        f"{name} {recorded[name]!r}, not {value!r}"
        for name, value in config.to_dict().items()
        if name not in FREE_FIELDS and recorded[name] != value
    ]
    if differences:
        raise InputError(
            f"the run in {run.path} was trained with {'; '.join(differences)}; "
            "resume it with the same configuration, or train again"
        )
