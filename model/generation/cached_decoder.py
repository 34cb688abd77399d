"""The transformer for one new token at a time, with cached keys and values.

The weights are rearranged once, so that each token costs few NumPy calls (their overhead, not
arithmetic, limits a small model):
- A norm's scale and shift are folded into the linear layer that follows: W(x̂·s + b₀) + b =
  (W·diag(s)) x̂ + (W b₀ + b). So is the factor sqrt(C) that turns x / sqrt(Σx² + C·ε) into x̂.
- LayerNorm subtracts the mean of the residual stream. Everything that is added to the stream
  (embeddings, output and down projections) is linear, so the mean is removed from those weights
  instead.
- 1/sqrt(D) is folded into the query projection.
- Softmax first runs without subtracting the maximum in all layers; one check of all row sums at the
  end tells whether the token must be computed again with it.
Results agree with `Transformer.forward` up to rounding.

Sizes: B sequences, t of at most T tokens in the cache, C channels, H heads of D channels in K
groups of G, F hidden channels, V tokens in the vocabulary, M = C + 2·K·D, N = B·t rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..activations import POINTWISE
from ..linear import Linear
from ..normalization import Normalization
from ..rotary import rotate, rotation_table
from ..softmax import LARGEST_SUM, SMALLEST_SUM
from ..transformer import Block, Transformer, quiet
from ..workspace import Workspace


@dataclass(frozen=True)
class _Layer:
    """Rearranged weights of a block (outputs, inputs) as in the model, and its cache."""

    projections: np.ndarray  # (M, C)
    projections_bias: np.ndarray
    output: np.ndarray  # (C, C)
    output_bias: np.ndarray
    up: np.ndarray  # (F, C), or (2F, C) with a gate
    up_bias: np.ndarray
    down: np.ndarray  # (C, F)
    down_bias: np.ndarray
    cache: np.ndarray  # keys and values (B, 2, K, T, D)
    sums: np.ndarray  # row sums of the last softmax (B, K, G)


class CachedDecoder:
    """A model ready to make tokens for `batch` sequences that all stand at the same position.

    It copies the weights: a model that is trained on needs a new decoder.
    """

    def __init__(self, model: Transformer, batch: int = 1) -> None:
        config = self.config = model.config
        self.model = model
        self.batch = batch
        self.length = 0
        self._centred = config.norm == "layer"
        self._workspace = Workspace(model.dtype)
        # C·ε, and never 0, so that a row of zeros stays one
        self._epsilon = max(config.embed_dim * config.norm_epsilon, float(np.finfo(model.dtype).tiny))
        self._tokens = self._centre(model.parameters["token_embedding"])
        self._positions = self._centre(model.position_table())
        group = config.num_heads // config.kv_heads
        self._sums = np.ones((config.num_layers, batch, config.kv_heads, group), model.dtype)
        self._layers = [self._rearrange(block, sums) for block, sums in zip(model.blocks, self._sums, strict=True)]
        self._logits, self._logits_bias = self._fold(model.output_weight, None, model.final_norm)
        self._rotation = None
        if config.position == "rotary":
            self._rotation = rotation_table(config.max_seq_len, config.head_dim, config.rotary_base, model.dtype)

    def _centre(self, values: np.ndarray) -> np.ndarray:
        """Subtract the mean over channels, the last axis, from a residual stream's summand."""
        return values - values.mean(axis=-1, keepdims=True) if self._centred else values.copy()

    def _fold(self, weight: np.ndarray, bias: np.ndarray | None, norm: Normalization) -> tuple[np.ndarray, np.ndarray]:
        """Return a weight and bias with the norm before the layer folded in."""
        folded_bias = np.zeros(len(weight), weight.dtype) if bias is None else bias.copy()
        if norm.centred:
            folded_bias += weight @ norm.shift  # (outputs, C) @ (C,) -> (outputs,)
        return weight * (norm.scale * math.sqrt(self.config.embed_dim)), folded_bias

    def _writing(self, linear: Linear) -> tuple[np.ndarray, np.ndarray]:
        """Return the weight and bias of a layer that writes to the residual stream."""
        bias = linear.bias if linear.has_bias else np.zeros(len(linear.weight), linear.weight.dtype)
        mean = linear.weight.mean(axis=0) if self._centred else 0  # (C, inputs) -> (inputs,)
        return linear.weight - mean, self._centre(bias)

    def _rearrange(self, block: Block, sums: np.ndarray) -> _Layer:
        config = self.config
        attention, feed_forward = block.attention, block.feed_forward
        biases = [linear.bias if linear.has_bias else None for linear in (attention.projections, feed_forward.up)]
        projections, projections_bias = self._fold(attention.projections.weight, biases[0], block.attention_norm)
        projections[: config.embed_dim] *= config.head_dim**-0.5
        projections_bias[: config.embed_dim] *= config.head_dim**-0.5
        return _Layer(
            projections,
            projections_bias,
            *self._writing(attention.output),
            *self._fold(feed_forward.up.weight, biases[1], block.feed_forward_norm),
            *self._writing(feed_forward.down),
            np.zeros((self.batch, 2, config.kv_heads, config.max_seq_len, config.head_dim), self.model.dtype),
            sums,
        )

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """Start again with tokens (B, t), 1 <= t <= T; return logits (B, V) after the last."""
        config = self.config
        batch, length = tokens.shape
        logits = self.model.forward(tokens)
        for layer, block in zip(self._layers, self.model.blocks, strict=True):
            # (N, M) -> (B, t, M) -> (B, t, 2·K·D)
            projected = block.attention.saved[0].reshape(batch, length, -1)[..., config.embed_dim :]
            # (B, t, 2·K·D) -> (B, t, 2, K, D)
            by_head = projected.reshape(batch, length, 2, config.kv_heads, config.head_dim)
            # (B, t, 2, K, D) -> (B, 2, K, t, D)
            layer.cache[:, :, :, :length] = by_head.transpose(0, 2, 3, 1, 4)
        self.length = length
        return logits[:, -1]  # (B, t, V) -> (B, V)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Append one token to each sequence, (B,), and return the logits (B, V) after it."""
        if self.length >= self.config.max_seq_len:
            raise ValueError("the cache is full; prefill again with fewer tokens")
        with quiet():
            logits = self._step(tokens, shifted=False)
            if not (self._sums.min() > SMALLEST_SUM and self._sums.max() < LARGEST_SUM):
                logits = self._step(tokens, shifted=True)
        self.length += 1
        return logits

    def _step(self, tokens: np.ndarray, *, shifted: bool) -> np.ndarray:
        x = self._tokens[tokens]  # (V, C)[(B,)] -> (B, C)
        x += self._positions[self.length]  # (T, C) -> (C,)
        for layer in self._layers:
            self._attend(layer, x, shifted)
            self._feed_forward(layer, x)
        logits: np.ndarray = self._normalize(x) @ self._logits.T  # (B, C) @ (C, V) -> (B, V)
        logits += self._logits_bias
        return logits

    def _normalize(self, x: np.ndarray) -> np.ndarray:
        """Return x / sqrt(Σx² + C·ε) for rows x (B, C); with LayerNorm their mean is 0."""
        squares = np.vecdot(x, x)  # (B, C) -> (B,)
        squares += self._epsilon
        np.sqrt(squares, out=squares)
        return x / squares[:, None]  # (B, C) / (B, 1) -> (B, C)

    def _attend(self, layer: _Layer, x: np.ndarray, shifted: bool) -> None:
        """Add attention to the new rows x (B, C), and write their keys and values to the cache."""
        config = self.config
        batch, width, now = len(x), config.embed_dim, self.length
        projected = self._normalize(x) @ layer.projections.T  # (B, C) @ (C, M) -> (B, M)
        projected += layer.projections_bias
        if self._rotation is not None:
            # (B, M) -> (B, 1, C + K·D)
            rotate(projected[:, None, : width + config.kv_dim], self._rotation[now : now + 1])
        # (B, 2·K·D) -> (B, 2, K, D)
        layer.cache[:, :, :, now] = projected[:, width:].reshape(batch, 2, config.kv_heads, config.head_dim)
        # (B, C) -> (B, K, G, D)
        query = projected[:, :width].reshape(batch, config.kv_heads, -1, config.head_dim)
        known = layer.cache[:, :, :, : now + 1]  # (B, 2, K, T, D) -> (B, 2, K, t, D)
        # (B, K, G, D) @ (B, K, D, t) -> (B, K, G, t)
        scores = query @ known[:, 0].swapaxes(-1, -2)
        if shifted:
            scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        # (B, K, G, t) @ (t,) -> (B, K, G)
        np.matmul(scores, self._workspace.ones(now + 1), out=layer.sums)
        context = scores @ known[:, 1]  # (B, K, G, t) @ (B, K, t, D) -> (B, K, G, D)
        context /= layer.sums[..., None]  # (B, K, G) -> (B, K, G, 1)
        # (B, K, G, D) -> (B, C) @ (C, C) -> (B, C)
        x += context.reshape(batch, width) @ layer.output.T
        x += layer.output_bias

    def _feed_forward(self, layer: _Layer, x: np.ndarray) -> None:
        """Add the feed-forward part of rows x (B, C) to them."""
        hidden = self._normalize(x) @ layer.up.T  # (B, C) @ (C, F or 2F) -> (B, F or 2F)
        hidden += layer.up_bias
        activation = self.config.activation
        if activation == "swiglu":
            # (B, 2F) -> 2 × (B, F)
            gate, hidden = hidden[:, : self.config.hidden_dim], hidden[:, self.config.hidden_dim :]
            POINTWISE[activation](gate, gate, None, self._workspace)
            hidden *= gate
        else:
            POINTWISE[activation](hidden, hidden, None, self._workspace)
        x += hidden @ layer.down.T  # (B, F) @ (F, C) -> (B, C)
        x += layer.down_bias
