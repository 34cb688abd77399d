"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..checks import is_real, is_whole
from ..errors import InputError

COLDEST = 1e-6  # temperatures closer to 0 would overflow, and choose the same token
HOTTEST = 1e30  # temperatures and penalties beyond would leave float32, and choose no other token


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_k: Only the k most likely tokens, of equally likely ones those with the smaller numbers;
            None for all.
        top_p: Only the fewest most likely tokens whose probabilities sum to at least this; None for
            all (Holtzman et al. 2020).
        repetition_penalty: Logits of tokens that are in the context are divided by it if positive,
            multiplied if negative; 1 for none (Keskar et al. 2019).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not is_real(self.temperature) or not 0 <= self.temperature < float("inf"):
            raise InputError(
                f"temperature must be 0 (most likely token) or a positive number, not {self.temperature!r}"
            )
        if self.top_k is not None and (not is_whole(self.top_k) or self.top_k < 1):
            raise InputError(f"top_k must be a whole number of at least 1, not {self.top_k!r}")
        if self.top_p is not None and not (is_real(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p!r}")
        if not is_real(self.repetition_penalty) or not 0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty must be a positive number, not {self.repetition_penalty!r}")

    @property
    def _divisor(self) -> float:
        return min(max(float(self.temperature), COLDEST), HOTTEST)

    def choose_rows(self, logits: np.ndarray, random: np.ndarray, contexts: Sequence[Sequence[int]]) -> list[int]:
        """Return a token for each row of logits (B, V), as `choose` does, at once if possible."""
        plain = self.temperature > 0 and self.top_k is None and self.top_p is None and self.repetition_penalty == 1
        if not plain or len(logits) == 1:
            return [self.choose(*row) for row in zip(logits, random.tolist(), contexts, strict=True)]
        scores = logits - logits.max(axis=1, keepdims=True)  # (B, V) − (B, 1) -> (B, V)
        if self.temperature != 1:
            scores /= self._divisor
        cumulative = np.cumsum(np.exp(scores, out=scores), axis=1, dtype=np.float64)
        # (B, V) <= (B, 1) -> (B, V)
        below = cumulative <= (random * cumulative[:, -1])[:, None]
        return np.minimum(np.count_nonzero(below, axis=1), logits.shape[1] - 1).tolist()

    def choose(self, logits: np.ndarray, random: float, context: Sequence[int]) -> int:
        """Return a token.

        Args:
            logits: (V,); not changed.
            random: Uniform in [0, 1); the same logits and number give the same token.
            context: Tokens so far, for the repetition penalty.
        """
        penalty = min(max(float(self.repetition_penalty), 1 / HOTTEST), HOTTEST)
        if penalty != 1:
            logits = logits.copy()
            seen = np.unique(np.asarray(context, dtype=np.intp))
            values = logits[seen]
            with np.errstate(over="ignore", under="ignore"):
                logits[seen] = np.where(values > 0, values / penalty, values * penalty)
        if self.temperature == 0 or self.top_k == 1:
            return int(logits.argmax())
        scores = logits - logits.max()
        if self.temperature != 1:
            scores /= self._divisor
        weights = np.exp(scores)
        if self.top_k is not None and self.top_k < len(weights):
            least = np.partition(logits, -self.top_k)[-self.top_k]
            kept = logits > least
            kept[np.flatnonzero(logits == least)[: self.top_k - np.count_nonzero(kept)]] = True
            weights[~kept] = 0
        if self.top_p is not None and self.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            cumulative = np.cumsum(weights[order], dtype=np.float64)
            num_kept = int(np.searchsorted(cumulative, self.top_p * cumulative[-1])) + 1
            weights[order[num_kept:]] = 0
        cumulative = np.cumsum(weights, dtype=np.float64)
        return min(int(np.searchsorted(cumulative, random * cumulative[-1], side="right")), len(weights) - 1)
