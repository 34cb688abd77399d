"""Feed-forward part: down(f(up(x))), or with SwiGLU down(silu(gate(x))∘up(x)) (Shazeer 2020).

Backward, with h = up(x), a = f(h): da = dy W_down, dh = da∘f'(h). With a gate g: a = f(g)∘h,
dg = da∘h∘f'(g), dh = da∘f(g). f' comes from the forward pass, so the backward pass of a plain
activation is one product.

Sizes: N rows, C channels, F hidden channels.
"""

from __future__ import annotations

import numpy as np

from .activations import activate
from .attention import Observer
from .config import ModelConfig
from .linear import Linear
from .parameters import Parameters
from .workspace import Workspace, row_blocks


class FeedForward:
    """One feed-forward part with its linear layers.

    Args:
        name: Prefix of its parameters.
        config: Shape of the model.
        parameters: Where the parameters are.
        gradients: Where their gradients go.
    """

    def __init__(self, name: str, config: ModelConfig, parameters: Parameters, gradients: Parameters) -> None:
        self.name = name
        self.activation = config.activation
        self.gated = config.activation == "swiglu"
        self.up = Linear(
            [f"{name}.{part}" for part in (["gate", "up"] if self.gated else ["up"])], parameters, gradients
        )
        self.down = Linear([f"{name}.down"], parameters, gradients)

    def forward(
        self, x: np.ndarray, workspace: Workspace, *, keep: bool = True, observe: Observer | None = None
    ) -> np.ndarray:
        """Return (N, C) for normalised rows x (N, C); `keep` prepares for a backward pass."""
        hidden = self.up.forward(x, workspace)  # (N, C) -> (N, F), or (N, 2F) with a gate
        num_rows, width = len(x), hidden.shape[1] // (2 if self.gated else 1)
        if observe is not None:
            if self.gated:
                observe(f"{self.name}.gate", hidden[:, :width])
            observe(f"{self.name}.up", hidden[:, -width:])
        derivative = workspace.array((self.name, "derivative"), num_rows, width) if keep else None
        if self.gated:
            gate = workspace.array((self.name, "gate"), num_rows, width)  # f(g)
            activate(self.activation, hidden[:, :width], gate, derivative, workspace)
            if observe is not None:
                observe(f"{self.name}.gate_activation", gate)
            activated = workspace.array((self.name, "activated"), num_rows, width)
            np.multiply(gate, hidden[:, width:], out=activated)
        else:
            gate, activated = None, hidden  # in place: h itself is not needed again
            activate(self.activation, hidden, activated, derivative, workspace)
        if observe is not None:
            observe(f"{self.name}.activation", activated)
        self.saved = hidden, gate, derivative
        return self.down.forward(activated, workspace)  # (N, F) -> (N, C)

    def backward(self, d_y: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return dx (N, C) for dy (N, C), and write the gradients of the linear layers."""
        hidden, gate, derivative = self.saved
        if derivative is None:
            raise RuntimeError("backward needs a forward pass with keep=True")
        d_activated = self.down.backward(d_y, workspace)  # (N, C) -> (N, F)
        if gate is None:
            d_activated *= derivative
            return self.up.backward(d_activated, workspace)  # (N, F) -> (N, C)
        width = gate.shape[1]
        d_hidden = workspace.array("d hidden", *hidden.shape)
        for rows in row_blocks(*hidden.shape):
            np.multiply(d_activated[rows], gate[rows], out=d_hidden[rows, width:])
            np.multiply(d_activated[rows], hidden[rows, width:], out=d_hidden[rows, :width])
            d_hidden[rows, :width] *= derivative[rows]
        return self.up.backward(d_hidden, workspace)  # (N, 2F) -> (N, C)
