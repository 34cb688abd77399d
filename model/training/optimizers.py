"""SGD with momentum, RMSprop, Adam and AdamW on a flat vector of parameters.

With gradient g, step t = 1, 2, …, learning rate η, decay λ of matrices:
    SGD      m ← β₁·m + g;                          p ← p − η·m
    RMSprop  v ← β₂·v + (1 − β₂)·g²;                p ← p − η·g / (√v + ε)
    Adam     m ← β₁·m + (1 − β₁)·g, v as above;     p ← p − η·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)
    AdamW    p ← p·(1 − η·λ), then as Adam          (Kingma and Ba 2015; Loshchilov and Hutter 2019)
The others add λ·p to g instead (L2 penalty). PyTorch defines them the same way. `muon` is AdamW
here; `model.training.muon` updates the blocks' matrices in its place.

m and v are stored divided by (1 − β): then `m *= β; m += g` updates them without a temporary array,
and the factors join the bias corrections in two numbers per step. The vector is worked on in chunks
that stay in the cache over all passes.
"""

from __future__ import annotations

import math

import numpy as np

from ..config import TrainingConfig

CHUNK = 1 << 14

STATE_NAMES = {
    "sgd": ("mean",),
    "rmsprop": ("square",),
    **dict.fromkeys(("adam", "adamw", "muon"), ("mean", "square")),
}


class Optimizer:
    """Updates a slice of a flat vector.

    Args:
        config: Kind and constants.
        num_decayed: Leading part of the vector that weight decay applies to.
        state: Running means by name (see `STATE_NAMES`), each as long as the vector, zero at the
            start.
    """

    def __init__(self, config: TrainingConfig, num_decayed: int, state: dict[str, np.ndarray]) -> None:
        self.config = config
        self.num_decayed = num_decayed
        self.state = state
        self._scratch: np.ndarray = np.empty(0)

    def update(
        self, parameters: np.ndarray, gradients: np.ndarray, part: slice, step: int, rate: float, scale: float = 1.0
    ) -> None:
        """Apply one step to parameters[part].

        Args:
            parameters: The flat vector (n,), changed in place.
            gradients: Its gradients (n,); overwritten where that saves a pass.
            part: The slice of both to work on.
            step: Steps done before this one.
            rate: Learning rate.
            scale: Factor on the gradients, from clipping.
        """
        if self._scratch.dtype != parameters.dtype or self._scratch.size == 0:
            self._scratch = np.empty(CHUNK, parameters.dtype)
        start = part.start
        while start < part.stop:
            stop = min(start + CHUNK, part.stop)
            if start < self.num_decayed < stop:
                stop = self.num_decayed
            decay = self.config.weight_decay if start < self.num_decayed else 0.0
            self._update_chunk(parameters, gradients, slice(start, stop), step, rate, scale, decay)
            start = stop

    def _update_chunk(
        self,
        parameters: np.ndarray,
        gradients: np.ndarray,
        chunk: slice,
        step: int,
        rate: float,
        scale: float,
        decay: float,
    ) -> None:
        config = self.config
        p, g = parameters[chunk], gradients[chunk]
        t = self._scratch[: p.size]
        if scale != 1.0:
            g *= scale
        if config.optimizer in ("adamw", "muon"):
            if decay:
                p *= 1 - rate * decay
        elif decay:
            np.multiply(p, decay, out=t)
            g += t
        if config.optimizer == "sgd":
            m = self.state["mean"][chunk]
            m *= config.beta1
            m += g
            np.multiply(m, rate, out=t)
            p -= t
            return
        v = self.state["square"][chunk]  # Σ β₂ᵏ·g²: the mean square divided by (1 − β₂)
        np.multiply(g, g, out=t)
        v *= config.beta2
        v += t
        if config.optimizer == "rmsprop":
            mean, mean_correction, square_correction = g, 1.0, 1 - config.beta2
        else:
            mean = self.state["mean"][chunk]  # the mean divided by (1 − β₁)
            mean *= config.beta1
            mean += g
            mean_correction = (1 - config.beta1) / (1 - config.beta1 ** (step + 1))
            square_correction = (1 - config.beta2) / (1 - config.beta2 ** (step + 1))
        # η·m·c₁ / (√(v·c₂) + ε) = (η·c₁/√c₂)·m / (√v + ε/√c₂)
        root = math.sqrt(square_correction)
        np.sqrt(v, out=t)
        t += config.epsilon / root
        np.divide(mean, t, out=t)
        t *= rate * mean_correction / root
        p -= t


def clip_scale(norm: float, limit: float) -> float:
    """Return the factor that limits a gradient's global norm; 1 below the limit or if that is 0."""
    return limit / norm if 0 < limit < norm else 1.0
