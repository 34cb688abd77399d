"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019) over the channels of each token.

LayerNorm:  x̂ = (x − mean(x)) / sqrt(var(x) + ε),   y = x̂·scale + shift
RMSNorm:    x̂ = x / sqrt(mean(x²) + ε),             y = x̂·scale

Backward, with g = dy·scale and r = 1 / sqrt(var(x) + ε):
    dx = r·(g − mean(g) − x̂·mean(g·x̂))        LayerNorm
    dx = r·(g − x̂·mean(g·x̂))                  RMSNorm
    dscale = Σ dy·x̂,  dshift = Σ dy            over all tokens
Derived in docs/model/normalization.md. Saved from the forward pass: x̂ and r.

Sizes: N rows, one a token, of C channels.
"""

from __future__ import annotations

import numpy as np

from .parameters import Parameters
from .workspace import Workspace


class Normalization:
    """One norm with its parameters.

    Args:
        name: Prefix of its parameters `NAME.scale` and, for LayerNorm, `NAME.shift`, each (C,).
        parameters: Where they are.
        gradients: Where their gradients go; each backward pass overwrites them.
        epsilon: Added to the variance or the mean square.
    """

    def __init__(self, name: str, parameters: Parameters, gradients: Parameters, epsilon: float) -> None:
        self.name = name
        self.scale, self.d_scale = parameters[f"{name}.scale"], gradients[f"{name}.scale"]
        self.centred = f"{name}.shift" in parameters
        if self.centred:
            self.shift, self.d_shift = parameters[f"{name}.shift"], gradients[f"{name}.shift"]
        self.epsilon = epsilon

    def forward(self, x: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return the normalised rows (N, C) of x (N, C)."""
        num_rows, width = x.shape
        normalized = workspace.array((self.name, "normalized"), num_rows, width)
        y = workspace.array((self.name, "y"), num_rows, width)
        inverse = self._standardize(x, normalized, self.epsilon, workspace)
        if not np.isfinite(inverse).all() or not inverse.all():
            # A sum overflowed. Scaling a row changes nothing but the weight of ε, so bring each
            # row's largest value to 1.
            peak = np.maximum(np.abs(x).max(axis=1), 1)  # (N, C) -> (N,)
            # (N, C) / (N, 1) -> (N, C)
            inverse = self._standardize(x / peak[:, None], normalized, self.epsilon / peak / peak, workspace)
            normalized *= inverse[:, None]  # (N,) -> (N, 1)
            inverse /= peak
        else:
            normalized *= inverse[:, None]  # (N,) -> (N, 1)
        np.multiply(normalized, self.scale, out=y)
        if self.centred:
            y += self.shift
        self.saved = normalized, inverse
        return y

    def _standardize(
        self, x: np.ndarray, centred: np.ndarray, epsilon: float | np.ndarray, workspace: Workspace
    ) -> np.ndarray:
        """Write x − mean(x) (RMSNorm: x) to `centred`; return 1 / sqrt(mean(centred²) + ε) (N,)."""
        width = x.shape[1]
        if self.centred:
            mean = np.matmul(x, workspace.ones(width))  # (N, C) @ (C,) -> (N,)
            mean *= 1 / width
            np.subtract(x, mean[:, None], out=centred)  # (N, C) − (N, 1) -> (N, C)
        else:
            centred[...] = x
        inverse = np.vecdot(centred, centred)  # (N, C) -> (N,)
        inverse *= 1 / width
        inverse += epsilon
        np.sqrt(inverse, out=inverse)
        # A row of equal values with ε = 0: x̂ is 0 / tiny = 0, not NaN.
        np.maximum(inverse, np.finfo(x.dtype).tiny, out=inverse)
        np.divide(1, inverse, out=inverse)
        return inverse

    def backward(self, d_y: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return dx (N, C) for dy (N, C), which is overwritten; write dscale and dshift."""
        normalized, inverse = self.saved
        num_rows, width = d_y.shape
        ones = workspace.ones(num_rows)
        product = workspace.array("norm product", num_rows, width)
        np.multiply(d_y, normalized, out=product)
        np.matmul(ones, product, out=self.d_scale)  # (N,) @ (N, C) -> (C,)
        if self.centred:
            np.matmul(ones, d_y, out=self.d_shift)  # (N,) @ (N, C) -> (C,)
        d_y *= self.scale  # g
        mean_product = np.vecdot(d_y, normalized)  # mean(g·x̂): (N, C) -> (N,)
        mean_product *= 1 / width
        np.multiply(normalized, mean_product[:, None], out=product)  # (N, C) * (N, 1) -> (N, C)
        if self.centred:
            mean = np.matmul(d_y, workspace.ones(width))  # (N, C) @ (C,) -> (N,)
            mean *= 1 / width
            d_y -= mean[:, None]  # (N,) -> (N, 1)
        d_y -= product
        d_y *= inverse[:, None]  # (N,) -> (N, 1)
        return d_y
