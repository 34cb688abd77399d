"""Token and position embeddings.

x[b, t] = token_table[tokens[b, t]] + position_table[t]. Backward: the gradient of a token's row is
the sum over all places where the token stands, that of a position's row the sum over all sequences.

Sizes: B sequences, T tokens, N = B·T rows, C channels, V tokens in the vocabulary.
"""

from __future__ import annotations

import numpy as np

from .parameters import Parameters
from .workspace import Workspace, row_blocks


def sinusoidal_positions(length: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Return the table (T, C): sin, cos of t / 10000^(2i/C) in channels 2i, 2i+1 (Vaswani 2017)."""
    positions, channels = np.arange(length)[:, None], np.arange(width)  # (T, 1), (C,) -> (T, C)
    angles = positions * 10000.0 ** (-(channels - channels % 2) / width)
    return np.where(channels % 2, np.cos(angles), np.sin(angles)).astype(dtype)


class Embedding:
    """The first layer.

    Args:
        parameters: Holds `token_embedding` (V, C) and, when positions are learned,
            `position_embedding` (T, C).
        gradients: Where their gradients go.
        positions: The table (T, C) that is added, or None for none (rotary positions act in the
            attention).
    """

    def __init__(self, parameters: Parameters, gradients: Parameters, positions: np.ndarray | None) -> None:
        self.tokens, self.d_tokens = parameters["token_embedding"], gradients["token_embedding"]
        self.positions = positions
        self.d_positions = gradients.get("position_embedding")

    def forward(self, tokens: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return x (N, C) for tokens (B, T)."""
        batch, length = tokens.shape
        width = self.tokens.shape[1]
        x = workspace.array("embedding", batch, length, width)
        # (V, C)[(B, T)] -> (B, T, C); indices were checked, "clip" writes without a buffer
        np.take(self.tokens, tokens, axis=0, out=x, mode="clip")
        if self.positions is not None:
            x += self.positions[:length]  # (B, T, C) + (T, C) -> (B, T, C)
        return x.reshape(batch * length, width)  # (B, T, C) -> (N, C)

    def backward(self, d_x: np.ndarray, tokens: np.ndarray, *, add: bool) -> None:
        """Write the tables' gradients for dx (N, C); `add` keeps what the tied output wrote."""
        batch, length = tokens.shape
        if self.d_positions is not None:
            self.d_positions[length:] = 0
            # (N, C) -> (B, T, C) -> (T, C)
            np.sum(d_x.reshape(batch, length, -1), axis=0, out=self.d_positions[:length])
        if not add:
            self.d_tokens[...] = 0
        # np.add.at is fast with one index for each value, and only then. Neither the vocabulary nor
        # how often a token occurs changes the time.
        width = d_x.shape[1]
        # (V, C) -> (V·C,); (...) -> (n, 1)
        flat, first = self.d_tokens.reshape(-1, copy=False), tokens.reshape(-1, 1) * width
        for rows in row_blocks(*d_x.shape):
            # (n, 1) + (C,) -> (n, C) -> (n·C,)
            np.add.at(flat, (first[rows] + np.arange(width)).reshape(-1), d_x[rows].reshape(-1))
