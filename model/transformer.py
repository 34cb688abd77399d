"""The decoder-only transformer: embeddings, pre-norm blocks, final norm, logits, loss, gradients.

For tokens (B, T), with x (B·T, C) the residual stream:
    x = embedding(tokens)
    each block:  x = x + attention(norm(x));  x = x + feed_forward(norm(x))
    logits = norm(x) · output.weightᵀ
Backward runs the same list from its end: a residual branch y = x + f(norm(x)) passes
dx = dy + norm'(f'(dy)).

Sizes: B sequences, T tokens, C embed_dim, H num_heads, V vocab_size, N = B·T rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .attention import Attention, Observer
from .config import ModelConfig, model_config
from .dropout import dropout_mask
from .embedding import Embedding, sinusoidal_positions
from .errors import InputError
from .feed_forward import FeedForward
from .loss import IGNORED, cross_entropy
from .normalization import Normalization
from .parameters import Parameters, initialize, multiply_accumulate_counts, parameter_counts, parameter_shapes
from .rotary import rotation_table
from .softmax import exponentials
from .workspace import Workspace, row_blocks

# A loss without gradients computes so many logits at a time, 4 MiB: many rows for BLAS, few for the
# memory.
LOGITS_AT_A_TIME = 1 << 20


def quiet() -> np.errstate:
    """Return a context without NumPy's warnings; softmax, norms and training handle overflow."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


class Block:
    """One pre-norm block: attention and feed-forward, each on the normalised residual stream."""

    def __init__(
        self, name: str, config: ModelConfig, parameters: Parameters, gradients: Parameters, rotation: np.ndarray | None
    ) -> None:
        self.name = name
        self.dropout = config.dropout
        self.attention_norm = Normalization(f"{name}.attention_norm", parameters, gradients, config.norm_epsilon)
        self.attention = Attention(f"{name}.attention", config, parameters, gradients, rotation)
        self.feed_forward_norm = Normalization(f"{name}.feed_forward_norm", parameters, gradients, config.norm_epsilon)
        self.feed_forward = FeedForward(f"{name}.feed_forward", config, parameters, gradients)

    def forward(
        self,
        x: np.ndarray,
        batch: int,
        workspace: Workspace,
        generator: np.random.Generator | None,
        observe: Observer | None,
        keep: bool,
    ) -> None:
        """Add both branches to the residual stream x (N, C), in place."""
        observe_tensor = observe if observe is not None else _ignore
        y = self.attention_norm.forward(x, workspace)
        observe_tensor(f"{self.name}.attention_norm", y)
        y = self.attention.forward(y, batch, workspace, generator, observe)
        observe_tensor(f"{self.name}.attention.output", y)
        x += self._drop("attention", y, generator, workspace)
        observe_tensor(f"{self.name}.attention_residual", x)
        y = self.feed_forward_norm.forward(x, workspace)
        observe_tensor(f"{self.name}.feed_forward_norm", y)
        y = self.feed_forward.forward(y, workspace, keep=keep, observe=observe)
        observe_tensor(f"{self.name}.feed_forward.down", y)
        x += self._drop("feed_forward", y, generator, workspace)
        observe_tensor(f"{self.name}.feed_forward_residual", x)

    def backward(self, d_x: np.ndarray, batch: int, workspace: Workspace) -> None:
        """Turn d_x after the block into d_x before it, in place; write parameter gradients."""
        d_y = self.feed_forward.backward(self._drop_backward("feed_forward", d_x, workspace), workspace)
        d_x += self.feed_forward_norm.backward(d_y, workspace)
        d_y = self.attention.backward(self._drop_backward("attention", d_x, workspace), batch, workspace)
        d_x += self.attention_norm.backward(d_y, workspace)

    def _drop(
        self, branch: str, y: np.ndarray, generator: np.random.Generator | None, workspace: Workspace
    ) -> np.ndarray:
        self.dropping = generator is not None and self.dropout > 0
        if generator is not None and self.dropping:
            y *= dropout_mask((self.name, branch, "mask"), y.shape, self.dropout, generator, workspace)
        return y

    def _drop_backward(self, branch: str, d_y: np.ndarray, workspace: Workspace) -> np.ndarray:
        if not self.dropping:
            return d_y
        mask = workspace.array((self.name, branch, "mask"), *d_y.shape)
        return np.multiply(d_y, mask, out=workspace.array("dropped gradient", *d_y.shape))


class Transformer:
    """A decoder-only transformer with random starting weights.

    Args:
        config: A `ModelConfig`, or a dictionary with some of its fields.
        seed: Of the starting weights.
        dtype: `float32`, or `float64` to check gradients.
        parameters: Flat memory that holds the parameters, which are kept; None to allocate it and
            fill it with random values.
        gradients: Flat memory for the gradients; None to allocate it.

    Attributes:
        config: The typed configuration.
        parameters: All parameters by name; see `model.parameters`.
        gradients: Their gradients after `loss_and_gradients`, the same names and shapes.

    Raises:
        InputError: An unknown field or an impossible value.
    """

    def __init__(
        self,
        config: ModelConfig | Mapping[str, Any],
        *,
        seed: int = 0,
        dtype: np.typing.DTypeLike = np.float32,
        parameters: np.ndarray | None = None,
        gradients: np.ndarray | None = None,
    ) -> None:
        self.config = model_config(config)
        self.dtype = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise InputError(f"dtype must be float32 or float64, not {self.dtype}")
        shapes = parameter_shapes(self.config)
        size = parameter_counts(self.config)["total"]
        self.parameters = Parameters(shapes, np.zeros(size, self.dtype) if parameters is None else parameters)
        self.gradients = Parameters(shapes, np.zeros(size, self.dtype) if gradients is None else gradients)
        if parameters is None:
            initialize(self.parameters, self.config, seed)
        self.training_workspace = Workspace(self.dtype)
        self._build()

    def _build(self) -> None:
        config, parameters, gradients = self.config, self.parameters, self.gradients
        self._positions = self._make_positions()
        rotation = None
        if config.position == "rotary":
            rotation = rotation_table(config.max_seq_len, config.head_dim, config.rotary_base, self.dtype)
        self.embedding = Embedding(parameters, gradients, self._positions)
        self.blocks = [
            Block(f"blocks.{index}", config, parameters, gradients, rotation) for index in range(config.num_layers)
        ]
        self.final_norm = Normalization("final_norm", parameters, gradients, config.norm_epsilon)
        name = "token_embedding" if config.tie_embeddings else "output.weight"
        self.output_weight, self.d_output_weight = parameters[name], gradients[name]

    def _make_positions(self) -> np.ndarray | None:
        config = self.config
        if config.position == "learned":
            return self.parameters["position_embedding"]
        if config.position == "sinusoidal":
            return sinusoidal_positions(config.max_seq_len, config.embed_dim, self.dtype)
        return None

    def position_table(self) -> np.ndarray:
        """Return what is added to token embeddings (T, C): learned, sinusoidal, or zeros."""
        if self._positions is None:
            return np.zeros((self.config.max_seq_len, self.config.embed_dim), self.dtype)
        return self._positions

    def untied(self) -> Transformer:
        """Return the same model with output weights of its own; itself if it has them already."""
        if not self.config.tie_embeddings:
            return self
        model = Transformer({**self.config.to_dict(), "tie_embeddings": False}, dtype=self.dtype)
        for name, values in model.parameters.items():
            values[...] = self.parameters["token_embedding" if name == "output.weight" else name]
        return model

    def get_num_parameters(self) -> int:
        """Return the number of trainable values."""
        return int(self.parameters.flat.size)

    def count_parameters(self) -> dict[str, int]:
        """Return the number of parameters by part."""
        return parameter_counts(self.config)

    def count_multiply_accumulates(self, context: int | None = None) -> dict[str, int]:
        """Return multiply-accumulates a token by part; `context` tokens attended (default: all)."""
        return multiply_accumulate_counts(self.config, context)

    def forward(self, tokens: np.ndarray, observe: Observer | None = None) -> np.ndarray:
        """Return logits (B, T, V) for tokens (B, T).

        Args:
            tokens: Integers from 0 to V − 1; T from 1 to max_seq_len.
            observe: Called as `observe(name, array)` with every intermediate tensor, (B, T,
                channels) or, for attention weights, (B, H, T, T). It may keep the arrays.

        Raises:
            InputError: Tokens of another shape or type, out of range, or longer than the context.
        """
        tokens = self._check_tokens(tokens)
        batch, length = tokens.shape
        # Each block keeps its keys and values: the cached decoder takes them from there.
        workspace = Workspace(self.dtype, reuse=observe is None)
        watch = None
        if observe is not None:
            callback = observe

            def watch(name: str, array: np.ndarray) -> None:
                # (N, channels) -> (B, T, channels); attention weights (B, H, T, T) stay
                callback(name, array.reshape(batch, length, -1).copy() if array.ndim == 2 else array.copy())

        with quiet():
            logits = self._forward(tokens, workspace, None, watch, keep=False)
        return logits.reshape(batch, length, -1)  # (N, V) -> (B, T, V)

    __call__ = forward

    def loss(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        transform: Observer | None = None,
        workspace: Workspace | None = None,
    ) -> float:
        """Return the mean cross-entropy in nats of targets (B, T); targets of −1 do not count.

        The memory is that of one block, and of a part of the logits.

        Args:
            tokens: (B, T).
            targets: (B, T); −1 does not count.
            transform: May change tensors on the way, as in `loss_and_gradients`. It sees the logits
                as a whole.
            workspace: Where arrays live, for many calls; None for a new one.
        """
        tokens, targets = self._check_tokens(tokens), self._check_targets(targets, tokens)
        targets = targets.reshape(-1)  # (B, T) -> (N,)
        workspace = (Workspace(self.dtype) if workspace is None else workspace).one_block()
        num_counted = int(np.count_nonzero(targets != IGNORED))
        with quiet():
            if transform is not None:
                return cross_entropy(self._forward(tokens, workspace, None, transform, keep=False), targets, workspace)
            normalized = self._normalized(tokens, workspace, None, None, keep=False)
            total = 0.0
            for rows in row_blocks(len(normalized), self.config.vocab_size, LOGITS_AT_A_TIME):
                logits = self._logits(normalized[rows], workspace)
                total += cross_entropy(logits, targets[rows], workspace) * np.count_nonzero(targets[rows] != IGNORED)
        return float(total / max(1, num_counted))

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """Return next-token probabilities (N, V); the next training call overwrites them."""
        workspace = self.training_workspace.one_block()
        with quiet():
            logits = self._forward(self._check_tokens(tokens), workspace, None, None, keep=False)
            original = logits.copy()
            sums = exponentials(logits, workspace, lambda: np.copyto(logits, original))
            logits /= sums[:, None]  # (N,) -> (N, 1)
        return logits

    def loss_and_gradients(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        generator: np.random.Generator | None = None,
        weight: float = 1.0,
        transform: Observer | None = None,
        soft_targets: np.ndarray | None = None,
    ) -> tuple[float, Parameters]:
        """Return the loss and its gradients by parameter name.

        The gradients are `self.gradients`: the next call overwrites them.

        Args:
            tokens: (B, T).
            targets: (B, T); −1 does not count.
            generator: Source of dropout; None for no dropout.
            weight: Factor on the gradients (not on the loss), for a batch that is part of a larger
                one.
            transform: Called as `transform(name, array)` with the tensors that `forward` shows to
                `observe`, (N, channels) each. The model continues with what it writes into
                them; gradients pass as if it were the identity. Attention weights are only shown.
            soft_targets: Probabilities (N, V) that the gradients lead to instead of the targets;
                overwritten. None for the targets.
        """
        tokens, targets = self._check_tokens(tokens), self._check_targets(targets, tokens)
        batch = len(tokens)
        workspace = self.training_workspace
        with quiet():
            logits = self._forward(tokens, workspace, generator, transform, keep=True)
            d_logits = workspace.array("d logits", *logits.shape)
            rows = targets.reshape(-1)  # (B, T) -> (N,)
            loss = cross_entropy(logits, rows, workspace, d_logits, weight, soft_targets)
            self._backward(d_logits, tokens, batch, workspace)
        return loss, self.gradients

    def _forward(
        self,
        tokens: np.ndarray,
        workspace: Workspace,
        generator: np.random.Generator | None,
        observe: Observer | None,
        *,
        keep: bool,
    ) -> np.ndarray:
        """Return logits (N, V)."""
        self.normalized = self._normalized(tokens, workspace, generator, observe, keep=keep)
        logits = self._logits(self.normalized, workspace)
        if observe is not None:
            observe("logits", logits)
        return logits

    def _normalized(
        self,
        tokens: np.ndarray,
        workspace: Workspace,
        generator: np.random.Generator | None,
        observe: Observer | None,
        *,
        keep: bool,
    ) -> np.ndarray:
        """Return what the output layer reads (N, C)."""
        observe_tensor = observe if observe is not None else _ignore
        batch = len(tokens)
        x = self.embedding.forward(tokens, workspace)  # (B, T) -> (N, C)
        if generator is not None and self.config.dropout > 0:
            x *= dropout_mask("embedding mask", x.shape, self.config.dropout, generator, workspace)
        self.embedding_dropped = generator is not None and self.config.dropout > 0
        observe_tensor("embedding", x)
        for block in self.blocks:
            block.forward(x, batch, workspace, generator, observe, keep)
        normalized = self.final_norm.forward(x, workspace)
        observe_tensor("final_norm", normalized)
        return normalized

    def _logits(self, normalized: np.ndarray, workspace: Workspace) -> np.ndarray:
        """Return logits (n, V) of rows (n, C)."""
        logits = workspace.array("logits", len(normalized), self.config.vocab_size)
        return np.matmul(normalized, self.output_weight.T, out=logits)  # (n, C) @ (C, V) -> (n, V)

    def _backward(self, d_logits: np.ndarray, tokens: np.ndarray, batch: int, workspace: Workspace) -> None:
        # (V, N) @ (N, C) -> (V, C)
        np.matmul(d_logits.T, self.normalized, out=self.d_output_weight)
        d_x = workspace.array("d residual", *self.normalized.shape)
        np.matmul(d_logits, self.output_weight, out=d_x)  # (N, V) @ (V, C) -> (N, C)
        d_x = self.final_norm.backward(d_x, workspace)
        for block in reversed(self.blocks):
            block.backward(d_x, batch, workspace)
        if self.embedding_dropped:
            d_x *= workspace.array("embedding mask", *d_x.shape)
        self.embedding.backward(d_x, tokens, add=self.config.tie_embeddings)

    def _check_tokens(self, tokens: np.ndarray) -> np.ndarray:
        array = np.asarray(tokens)
        limit = self.config.max_seq_len
        if array.ndim != 2 or not 1 <= array.shape[1] <= limit or len(array) == 0 or array.dtype.kind not in "iu":
            raise InputError(
                f"tokens must be whole numbers of shape (batch, length) with length from 1 to {limit} (max_seq_len); "
                f"got {array.dtype} of shape {array.shape}"
            )
        self._check_range("token", array, 0)
        return array.astype(np.intp, copy=False)

    def _check_targets(self, targets: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        array = np.asarray(targets)
        if array.shape != tokens.shape or array.dtype.kind not in "iu":
            raise InputError(
                f"targets must be whole numbers of the tokens' shape {tokens.shape}; got {array.dtype} of shape {array.shape}"
            )
        self._check_range("target", array, IGNORED)
        return array.astype(np.intp, copy=False)

    def _check_range(self, what: str, array: np.ndarray, lowest: int) -> None:
        smallest, largest = int(array.min()), int(array.max())
        if smallest < lowest or largest >= self.config.vocab_size:
            raise InputError(
                f"{what} {smallest if smallest < lowest else largest} is outside the vocabulary of {self.config.vocab_size} tokens"
            )


def _ignore(name: str, array: np.ndarray) -> None:
    """Observe nothing."""
