"""Float and fixed-point loss of a run on the same windows of text."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from fixedpoint import QuantizedTransformer
from fixedpoint.fast.transformer import prepared
from model.data import windows
from model.errors import InputError
from model.threads import one_blas_thread
from model.transformer import Transformer

BATCH = 32
LOGITS_AT_A_TIME = 1 << 21  # some copies of them are made, in double precision


@dataclass(frozen=True)
class Comparison:
    """How far the integer model is from the float one.

    Attributes:
        tokens: Predictions compared.
        float_loss: Mean cross-entropy of the float model in nats.
        fixed_loss: The same of the integer model.
        difference: fixed_loss − float_loss.
        same_choice: Fraction of positions where both find the same token the likeliest.
        largest_logit_error: Largest absolute difference of two logits.
    """

    tokens: int
    float_loss: float
    fixed_loss: float
    difference: float
    same_choice: float
    largest_logit_error: float

    def rows(self) -> list[tuple[str, str, str]]:
        """Return rows for a table: model, loss in nats, perplexity."""
        return [
            (name, f"{loss:z.4f}", f"{math.exp(loss):z.3f}")
            for name, loss in (("float", self.float_loss), ("fixed point", self.fixed_loss))
        ]


def compare(model: Transformer, quantized: QuantizedTransformer, tokens: np.ndarray) -> Comparison:
    """Run both models over all of a text, cut into windows of the context's length.

    Raises:
        InputError: The text is shorter than one window.
    """
    length = model.config.max_seq_len
    if tokens.size < length + 1:
        raise InputError(
            f"the text has {tokens.size} tokens; the loss needs at least {length + 1} (one context and one more)"
        )
    inputs, targets = windows(tokens, length)
    losses = np.zeros(2)
    same, largest = 0, 0.0
    step = max(1, min(BATCH, LOGITS_AT_A_TIME // (length * model.config.vocab_size)))
    starts = range(0, len(inputs), step)
    for start in tqdm(starts, desc="comparing", unit="batch", leave=False, disable=None):
        batch, wanted = inputs[start : start + step], targets[start : start + step]
        with one_blas_thread(batch.size * model.config.embed_dim * model.config.hidden_dim):
            exact = model.forward(batch).astype(np.float64)
        fixed = quantized.logits.output.dequantize(prepared(quantized).forward(batch))
        losses += [cross_entropy_sum(exact, wanted), cross_entropy_sum(fixed, wanted)]
        same += int((exact.argmax(axis=-1) == fixed.argmax(axis=-1)).sum())
        largest = max(largest, float(np.abs(exact - fixed).max()))
    float_loss, fixed_loss = (float(loss) / targets.size for loss in losses)
    return Comparison(
        tokens=targets.size,
        float_loss=float_loss,
        fixed_loss=fixed_loss,
        difference=fixed_loss - float_loss,
        same_choice=same / targets.size,
        largest_logit_error=largest,
    )


def cross_entropy_sum(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return Σ −log softmax(logits)[target] over logits (N, T, V) and targets (N, T)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    correct = np.take_along_axis(shifted, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    # rounding may give a little less than 0
    return float(np.maximum((np.log(np.exp(shifted).sum(axis=-1)) - correct).sum(), 0))
