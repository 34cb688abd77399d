"""The transformer for one new token at a time, with cached keys and values.

The weights are rearranged once, so that each token costs few NumPy calls (their overhead, not arithmetic, limits a small model):
- A norm's scale and shift are folded into the linear layer that follows: W(x̂·s + b₀) + b = (W·diag(s)) x̂ + (W b₀ + b).
- LayerNorm subtracts the mean of the residual stream. Everything that is ever added to the stream (embeddings, output and down
  projections) is linear, so the mean is taken out of those weights instead, and no mean is left to subtract.
- 1/sqrt(D) is folded into the query projection.
Results agree with `Transformer.forward` up to rounding.

Sizes: B sequences, t tokens in the cache, C channels, H heads in K groups of G, D channels a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .activations import activate
from .linear import Linear
from .normalization import Normalization
from .rotary import rotate, rotation_table
from .softmax import exponentials
from .transformer import Block, Transformer
from .workspace import Workspace


@dataclass(frozen=True)
class _Layer:
    """Rearranged weights of a block, transposed for rows on the left, and its cache."""

    projections: np.ndarray  # (C, C + 2·K·D)
    projections_bias: np.ndarray
    output: np.ndarray  # (C, C)
    output_bias: np.ndarray
    up: np.ndarray  # (C, F), or (C, 2F) with a gate
    up_bias: np.ndarray
    down: np.ndarray  # (F, C)
    down_bias: np.ndarray
    keys: np.ndarray  # (B, K, T, D)
    values: np.ndarray  # (B, K, T, D)


class CachedDecoder:
    """A model ready to make tokens for `batch` sequences that all stand at the same position.

    It copies the weights: a model that is trained on needs a new decoder.
    """

    def __init__(self, model: Transformer, batch: int = 1) -> None:
        self.model = model
        self.batch = batch
        self.config = model.config
        self.length = 0
        self._centred = self.config.norm == "layer"
        self._workspace = Workspace(model.dtype)
        self._tokens = self._centre(model.parameters["token_embedding"])
        self._positions = self._centre(model.position_table())
        self._layers = [self._rearrange(block) for block in model.blocks]
        scale = model.final_norm.scale
        self._logits = np.ascontiguousarray((model.output_weight * scale).T)
        shift = model.final_norm.shift if self._centred else np.zeros_like(scale)
        self._logits_bias = model.output_weight @ shift
        self._rotation = None
        if self.config.position == "rotary":
            config = self.config
            self._rotation = rotation_table(config.max_seq_len, config.head_dim, config.rotary_base, model.dtype)

    def _centre(self, table: np.ndarray) -> np.ndarray:
        """Take the mean over channels out of rows that are added to the residual stream."""
        return table - table.mean(axis=-1, keepdims=True) if self._centred else table.copy()

    def _rearrange(self, block: Block) -> _Layer:
        config = self.config
        projections, projections_bias = _fold(block.attention.projections, block.attention_norm)
        projections[:, : config.embed_dim] *= config.head_dim**-0.5
        projections_bias[: config.embed_dim] *= config.head_dim**-0.5
        up, up_bias = _fold(block.feed_forward.up, block.feed_forward_norm)
        output, output_bias = _plain(block.attention.output)
        down, down_bias = _plain(block.feed_forward.down)
        shape = (self.batch, config.kv_heads, config.max_seq_len, config.head_dim)
        return _Layer(
            projections,
            projections_bias,
            self._centre(output),
            self._centre(output_bias),
            up,
            up_bias,
            self._centre(down),
            self._centre(down_bias),
            np.zeros(shape, self.model.dtype),
            np.zeros(shape, self.model.dtype),
        )

    def prefill(self, tokens: np.ndarray) -> np.ndarray:
        """Start again with tokens (B, t), 1 <= t <= max_seq_len, and return the logits (B, V) after the last one."""
        config = self.config
        batch, length = tokens.shape
        logits = self.model.forward(tokens)
        for layer, block in zip(self._layers, self.model.blocks, strict=True):
            projected = block.attention.saved[0].reshape(batch, length, -1)
            start = config.embed_dim
            for cache in (layer.keys, layer.values):
                rows = projected[..., start : start + config.kv_dim]
                cache[:, :, :length] = rows.reshape(batch, length, config.kv_heads, -1).swapaxes(1, 2)
                start += config.kv_dim
        self.length = length
        return logits[:, -1]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Append one token to each sequence, (B,), and return the logits (B, V) after it; they are valid until the next call."""
        if self.length >= self.config.max_seq_len:
            raise ValueError("the cache is full; prefill again with fewer tokens")
        with np.errstate(over="ignore", under="ignore"):
            x = self._tokens[tokens]
            x += self._positions[self.length]
            for layer in self._layers:
                self._attend(layer, x)
                self._feed_forward(layer, x)
            self.length += 1
            logits = self._normalize(x) @ self._logits
            logits += self._logits_bias
        return logits

    def _normalize(self, x: np.ndarray) -> np.ndarray:
        """Return x / sqrt(mean(x²) + ε) for rows x (B, C), whose mean is 0 where the model has LayerNorm."""
        squares = np.vecdot(x, x)
        squares *= 1 / x.shape[1]
        squares += self.config.norm_epsilon
        np.sqrt(squares, out=squares)
        np.maximum(squares, np.finfo(x.dtype).tiny, out=squares)
        return x / squares[:, None]

    def _attend(self, layer: _Layer, x: np.ndarray) -> None:
        """Add the attention of the new rows x (B, C) to them, and put their keys and values into the cache."""
        config = self.config
        width, kv_dim, kv_heads = config.embed_dim, config.kv_dim, config.kv_heads
        now, after = self.length, self.length + 1
        projected = self._normalize(x) @ layer.projections
        projected += layer.projections_bias
        if self._rotation is not None:
            rotate(projected[:, None, : width + kv_dim], self._rotation[now:after])
        layer.keys[:, :, now] = projected[:, width : width + kv_dim].reshape(-1, kv_heads, config.head_dim)
        layer.values[:, :, now] = projected[:, width + kv_dim :].reshape(-1, kv_heads, config.head_dim)
        query = projected[:, :width].reshape(len(x), kv_heads, -1, config.head_dim)  # (B, K, G, D)
        keys = layer.keys[:, :, :after].swapaxes(-1, -2)  # (B, K, D, t)
        scores = query @ keys  # (B, K, G, t)
        sums = exponentials(scores, self._workspace, lambda: np.copyto(scores, query @ keys))
        context = scores @ layer.values[:, :, :after]  # (B, K, G, D)
        context /= sums[..., None]
        x += context.reshape(len(x), width) @ layer.output
        x += layer.output_bias

    def _feed_forward(self, layer: _Layer, x: np.ndarray) -> None:
        """Add the feed-forward part of rows x (B, C) to them."""
        config = self.config
        hidden = self._normalize(x) @ layer.up
        hidden += layer.up_bias
        if config.activation == "swiglu":
            gate, hidden = hidden[:, : config.hidden_dim], hidden[:, config.hidden_dim :]
            activate(config.activation, gate, gate, None, self._workspace)
            hidden *= gate
        else:
            activate(config.activation, hidden, hidden, None, self._workspace)
        x += hidden @ layer.down
        x += layer.down_bias


def _fold(linear: Linear, norm: Normalization) -> tuple[np.ndarray, np.ndarray]:
    """Return a linear layer's transposed weight and bias with the scale and shift of the norm before it folded in."""
    weight, bias = _plain(linear)
    if norm.centred:
        bias += norm.shift @ weight
    weight *= norm.scale[:, None]
    return weight, bias


def _plain(linear: Linear) -> tuple[np.ndarray, np.ndarray]:
    """Return copies of a linear layer's transposed weight (inputs, outputs) and bias (zeros if it has none)."""
    weight = linear.weight.T.copy(order="C")
    return weight, linear.bias.copy() if linear.has_bias else np.zeros(weight.shape[1], weight.dtype)
