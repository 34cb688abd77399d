"""Cross-entropy and its gradient: N rows of V logits, one for each token of the vocabulary."""

from __future__ import annotations

import numpy as np

from .softmax import exponentials
from .workspace import Workspace

IGNORED = -1  # a target that does not count: padding


def cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    workspace: Workspace,
    d_logits: np.ndarray | None = None,
    weight: float = 1.0,
    soft_targets: np.ndarray | None = None,
) -> float:
    """Return the mean over counted rows of −log softmax(logits)[target], in nats.

    Backward: dlogits = (softmax(logits) − onehot(target)) / number of counted rows; rows with an
    ignored target get 0. Soft targets take the place of onehot(target) there, not in the loss that
    is returned.

    Args:
        logits: (N, V).
        targets: Token of each row (N,), or `IGNORED`.
        workspace: Where the exponentials live when there is no `d_logits`.
        d_logits: Receives the gradient (N, V), unless None.
        weight: Factor on the gradient.
        soft_targets: Probabilities (N, V) to learn, or None.
    """
    num_rows, vocab_size = logits.shape
    probabilities = workspace.array("d logits", num_rows, vocab_size) if d_logits is None else d_logits
    shift = np.zeros(num_rows)

    def restore() -> None:
        np.copyto(probabilities, logits)
        shift[:] = logits.max(axis=-1)  # (N, V) -> (N,)

    np.copyto(probabilities, logits)
    sums = exponentials(probabilities, workspace, restore)
    rows = np.arange(num_rows)
    counted = targets != IGNORED
    num_counted = max(1, int(np.count_nonzero(counted)))
    # (N, V)[(N,), (N,)] -> (N,); −1 indexes the last token, and those rows are zeroed below.
    losses = np.log(sums.astype(np.float64)) + shift - logits[rows, targets]
    if num_counted < num_rows:
        losses[~counted] = 0
    if d_logits is not None:
        # (N,) -> (N, 1)
        d_logits *= (weight / (sums * num_counted))[:, None].astype(logits.dtype, copy=False)
        if soft_targets is None:
            d_logits[rows, targets] -= weight / num_counted
        else:
            soft_targets *= weight / num_counted
            d_logits -= soft_targets
        if num_counted < num_rows:
            d_logits[~counted] = 0
    return float(np.maximum(losses.sum() / num_counted, 0))  # rounding may give less than 0
