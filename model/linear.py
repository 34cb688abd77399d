"""Linear layer y = x Wᵀ + b.

Backward: dx = dy W,  dW = dyᵀ x,  db = Σ dy over all rows. Saved from the forward pass: x.

Sizes: N rows, I inputs, O outputs of all layers together.
"""

from __future__ import annotations

import numpy as np

from .parameters import Parameters
from .workspace import Workspace


class Linear:
    """Linear layers of one input, whose parameters are adjacent in memory and act as one matrix.

    Args:
        names: Prefixes of the parameters `NAME.weight` (O, I) and, if there are any, `NAME.bias`
            (O,).
        parameters: Where they are.
        gradients: Where their gradients go; each backward pass overwrites them.
    """

    def __init__(self, names: list[str], parameters: Parameters, gradients: Parameters) -> None:
        self.name = "+".join(names)
        # The same layer of every block shares the memory for dx, which is used up before the next
        # block begins.
        self.role = names[0].split(".", 2)[-1]
        weights, biases = [f"{name}.weight" for name in names], [f"{name}.bias" for name in names]
        self.weight, self.d_weight = parameters.stacked(weights), gradients.stacked(weights)
        self.has_bias = biases[0] in parameters
        if self.has_bias:
            self.bias, self.d_bias = parameters.stacked(biases), gradients.stacked(biases)

    def forward(self, x: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return y (N, O) for x (N, I)."""
        y = workspace.array((self.name, "y"), len(x), len(self.weight))
        np.matmul(x, self.weight.T, out=y)  # (N, I) @ (I, O) -> (N, O)
        if self.has_bias:
            y += self.bias
        self.saved = x
        return y

    def backward(self, d_y: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return dx (N, I) for dy (N, O), and write the gradients of weight and bias."""
        x = self.saved
        np.matmul(d_y.T, x, out=self.d_weight)  # (O, N) @ (N, I) -> (O, I)
        if self.has_bias:
            np.matmul(workspace.ones(len(d_y)), d_y, out=self.d_bias)  # (N,) @ (N, O) -> (O,)
        d_x = workspace.array(("dx", self.role), *x.shape)
        np.matmul(d_y, self.weight, out=d_x)  # (N, O) @ (O, I) -> (N, I)
        return d_x
