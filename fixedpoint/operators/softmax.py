r"""Integer softmax in base 2.

\(p_j = 2^{s_j - \max s} / \sum_k 2^{s_k - \max s}\). The scores are base-2 logarithms (see
`exponential`), so this is the usual softmax of \(s \ln 2\). Subtracting the maximum keeps every
exponent at or below zero: nothing can overflow, and the denominator is never zero because the
largest element contributes a full-scale exponential.

Attention uses the numerators unnormalized: it multiplies them into the values and applies the row's
reciprocal once, to the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..arithmetic import Integers, requantize
from ..qformat import IntegerArray, QFormat, as_int64
from .exponential import Exponential
from .reciprocal import Reciprocal


@dataclass(frozen=True)
class Softmax:
    """Softmax over rows of up to `length` integer scores.

    Equations: `e_j = exponential(max s − s_j)`,
    `p_j = requantize(e_j · r.mantissa, r.exponent − probability.fraction)` with `r ~ 1 / Σe`.

    Error: with p the exact probability of N scores, a the error of a numerator (`Exponential`) and
    r the reciprocal's, at most `q + r·(p + q)` with `q = a·(1 + N·p) / Σe`, and half a unit of the
    result (a whole one where 1 saturates). Derived in docs/fixedpoint/softmax.md.

    Widths: `max s − s_j` has `score.bits`, unsigned; Σe has `denominator_bits`; `e_j · r.mantissa`
    those of its factors together.

    Attributes:
        score: Format of the scores, signed; `exponential.fraction` equals `score.fraction`.
        length: The longest row.
        exponential: The function from distance below the maximum to numerator.
        reciprocal: The function from denominator to its reciprocal.
        probability: Format of normalized results, unsigned with all bits behind the point: 1
            saturates to 1 − 2**-bits.
    """

    score: QFormat
    length: int
    exponential: Exponential
    reciprocal: Reciprocal = field(default_factory=Reciprocal)
    probability: QFormat = QFormat(8, 8, signed=False)  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        if not self.score.signed or not 2 <= self.score.bits <= 32:
            raise ValueError(f"softmax score format must be signed with 2 to 32 bits, not {self.score}")
        if not 1 <= self.length <= 1 << 16:
            raise ValueError(f"softmax length must be 1 to 65536, not {self.length}")
        if self.exponential.fraction != self.score.fraction:
            raise ValueError(
                f"softmax exponential reads {self.exponential.fraction} fraction bits, but scores have {self.score.fraction}"
            )
        if self.probability.signed or self.probability.bits != self.probability.fraction:
            raise ValueError(f"softmax probability format must be UQ0.n, not {self.probability}")

    @property
    def denominator_bits(self) -> int:
        """Width of the largest sum of numerators."""
        return (self.length * self.exponential.maximum).bit_length()

    def numerators(self, scores: Integers, valid: np.ndarray | None = None) -> IntegerArray:
        """Return `2**(s - max s)` in units of `1 / exponential.maximum`.

        Args:
            scores: Integers (..., N) of format `score`, 1 <= N <= length.
            valid: Booleans that broadcast to the scores' shape; elements that are not valid do not
                take part (their numerator is 0). Each row needs a valid element. None means all.

        Returns:
            int64 (..., N).

        Raises:
            ValueError: An empty row, one longer than `length`, or one without a valid element.
        """
        wide = as_int64(scores)
        if not 1 <= wide.shape[-1] <= self.length:
            raise ValueError(f"a softmax row has 1 to {self.length} elements, not {wide.shape[-1]}")
        if not self.score.holds(wide):
            raise ValueError(f"a softmax score does not fit {self.score}")
        if valid is None:
            return self.exponential.compute(wide.max(axis=-1, keepdims=True) - wide)
        if not np.broadcast_to(valid, wide.shape).any(axis=-1).all():
            raise ValueError("a softmax row has no valid element")
        masked = np.where(valid, wide, self.score.minimum_integer)
        numerators = self.exponential.compute(masked.max(axis=-1, keepdims=True) - masked)
        return np.where(valid, numerators, 0)

    def compute(self, scores: Integers) -> IntegerArray:
        """Return the probabilities of rows of scores, in format `probability`.

        Args:
            scores: Integers (..., N) of format `score`.

        Returns:
            int64 (..., N). A row sums to one within the rounding of its elements.
        """
        numerators = self.numerators(scores)
        # (..., N) -> (..., 1)
        scale = self.reciprocal.compute(numerators.sum(axis=-1, keepdims=True))
        return requantize(numerators * scale.mantissa, scale.exponent - self.probability.fraction, self.probability)
