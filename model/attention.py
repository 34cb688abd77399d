"""Causal multi-head and grouped-query attention (Vaswani et al. 2017; Ainslie et al. 2023).

For each head, with q, k, v of one sequence as (T, D) matrices:
    S = q kᵀ / sqrt(D), −inf where the key comes after the query
    P = softmax(S),  O = P v
Backward, from dO:
    dv = Pᵀ dO,  dP = dO vᵀ,  dS = P∘(dP − rowsum(dO∘O))
    dq = dS k / sqrt(D),  dk = dSᵀ q / sqrt(D)
Derived in docs/model/attention.md. Three rearrangements make it fast:

- 1/sqrt(D) multiplies q, which is smaller than S.
- With E = exp(S) and the row sums z, O = (E v)/z. P is never formed: the backward pass divides dO
  by z instead, once, and uses E where the formulas say P.
- Queries are taken in blocks of R rows, and a block sees only the J keys up to its own end: the
  part of S that the mask would erase is, apart from the blocks on the diagonal, not computed.

Sizes: B sequences, T tokens, N = B·T rows, C = H·D channels, H heads of D channels in K groups of G
that share a key and value head, M = C + 2·K·D channels of query, key and value together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .config import ModelConfig
from .dropout import dropout_mask
from .linear import Linear
from .parameters import Parameters
from .rotary import rotate
from .softmax import exponentials as softmax_exponentials
from .workspace import Workspace

Observer = Callable[[str, np.ndarray], None]

QUERY_BLOCK = 64


class _Block(NamedTuple):
    """What the backward pass needs of one block of query rows."""

    rows: slice
    keys: slice
    exponentials: np.ndarray  # (B, K, G, R, J)
    mask: np.ndarray | None  # dropout, the same shape


class Attention:
    """One attention layer with its projections.

    Args:
        name: Prefix of its parameters.
        config: Shape of the model.
        parameters: Where the parameters are.
        gradients: Where their gradients go.
        rotation: Factors of rotary positions (T, D/2), or None.
    """

    def __init__(
        self, name: str, config: ModelConfig, parameters: Parameters, gradients: Parameters, rotation: np.ndarray | None
    ) -> None:
        self.name = name
        self.config = config
        self.rotation = rotation
        self.projections = Linear([f"{name}.{part}" for part in ("query", "key", "value")], parameters, gradients)
        self.output = Linear([f"{name}.output"], parameters, gradients)

    def forward(
        self,
        x: np.ndarray,
        batch: int,
        workspace: Workspace,
        generator: np.random.Generator | None = None,
        observe: Observer | None = None,
    ) -> np.ndarray:
        """Return the projected attention result (N, C) for normalised rows x (N, C), N = B·T.

        Args:
            x: Input rows.
            batch: B.
            workspace: Where arrays live.
            generator: Source of dropout, or None for none.
            observe: Called with intermediate tensors, unless None.
        """
        config = self.config
        width, kv_width = config.embed_dim, config.kv_dim
        projected = self.projections.forward(x, workspace)  # (N, C) -> (N, M)
        if observe is not None:
            observe(f"{self.name}.query", projected[:, :width])
            observe(f"{self.name}.key", projected[:, width : width + kv_width])
            observe(f"{self.name}.value", projected[:, width + kv_width :])
        self._rotate(projected, batch, backward=False)
        if observe is not None and self.rotation is not None:
            observe(f"{self.name}.rotated_query", projected[:, :width])
            observe(f"{self.name}.rotated_key", projected[:, width : width + kv_width])
        projected[:, :width] *= config.head_dim**-0.5
        # (N, M) -> (B, K, G, T, D), (B, K, 1, T, D), (B, K, 1, T, D)
        query, key, value = self._split(projected, batch)
        length = query.shape[-2]
        context = workspace.array((self.name, "context"), len(x), width)
        context_heads = self._queries_by_head(context, batch)  # (N, C) -> (B, K, G, T, D)
        inverse_sums = workspace.array((self.name, "inverse sums"), *query.shape[:-1])
        weights = np.zeros((*query.shape[:-1], length), x.dtype) if observe is not None else None
        self.blocks: list[_Block] = []
        for start in range(0, length, QUERY_BLOCK):
            rows, keys = slice(start, min(start + QUERY_BLOCK, length)), slice(0, min(start + QUERY_BLOCK, length))
            # (B, K, G, R, J), (B, K, G, R)
            exponentials, sums = self._exponentials(query, key, rows, keys, workspace)
            np.divide(1, sums, out=inverse_sums[..., rows])
            if weights is not None:
                # (B, K, G, R, J) * (B, K, G, R, 1) -> (B, K, G, R, J)
                weights[..., rows, keys] = exponentials * inverse_sums[..., rows, None]
            mask, mixed = None, exponentials
            if generator is not None and config.dropout > 0:
                mask = dropout_mask(
                    (self.name, "mask", start), exponentials.shape, config.dropout, generator, workspace
                )
                mixed = np.multiply(exponentials, mask, out=workspace.array(("dropped", start), *mask.shape))
            # (B, K, G, R, J) @ (B, K, 1, J, D) -> (B, K, G, R, D)
            np.matmul(mixed, value[..., keys, :], out=context_heads[..., rows, :])
            self.blocks.append(_Block(rows, keys, exponentials, mask))
        context_heads *= inverse_sums[..., None]  # (B, K, G, T) -> (B, K, G, T, 1)
        self.saved = projected, context, inverse_sums
        if observe is not None and weights is not None:
            # (B, K, G, T, T) -> (B, H, T, T)
            observe(f"{self.name}.weights", weights.reshape(batch, config.num_heads, length, length))
            observe(f"{self.name}.context", context)
        return self.output.forward(context, workspace)

    def backward(self, d_y: np.ndarray, batch: int, workspace: Workspace) -> np.ndarray:
        """Return dx (N, C) for dy (N, C), and write the gradients of all projections."""
        projected, context, inverse_sums = self.saved
        # (N, M) -> (B, K, G, T, D), (B, K, 1, T, D), (B, K, 1, T, D)
        query, key, value = self._split(projected, batch)
        d_context = self.output.backward(d_y, workspace)
        # Everything below sees dO / z: see the second rearrangement.
        # (N, C) -> (B, K, G, T, D), both
        d_output, output = self._queries_by_head(d_context, batch), self._queries_by_head(context, batch)
        d_output *= inverse_sums[..., None]  # (B, K, G, T) -> (B, K, G, T, 1)
        # rowsum(dO∘O) / z: (B, K, G, T, D) -> (B, K, G, T) -> (B, K, G, T, 1)
        row_sums = np.vecdot(d_output, output)[..., None]
        d_projected = workspace.array("d projected", *projected.shape)
        # (N, M) -> (B, K, G, T, D), (B, K, 1, T, D), (B, K, 1, T, D)
        d_query, d_key, d_value = self._split(d_projected, batch)
        # the last block sees all keys: it writes, the others add
        for block in reversed(self.blocks):
            rows, keys, exponentials, mask = block
            add = block is not self.blocks[-1]
            mixed = exponentials
            d_scores = workspace.array(("d scores", rows.start), *exponentials.shape)
            # (B, K, G, R, D) @ (B, K, 1, D, J) -> (B, K, G, R, J)
            np.matmul(d_output[..., rows, :], value[..., keys, :].swapaxes(-1, -2), out=d_scores)
            if mask is not None:
                d_scores *= mask
                mixed = np.multiply(exponentials, mask, out=workspace.array(("dropped", rows.start), *mask.shape))
            d_scores -= row_sums[..., rows, :]
            d_scores *= exponentials
            # (B, K, G, R, J) @ (B, K, 1, J, D) -> (B, K, G, R, D)
            np.matmul(d_scores, key[..., keys, :], out=d_query[..., rows, :])
            self._key_gradient(d_scores, query[..., rows, :], d_key[..., keys, :], add, workspace)
            self._key_gradient(mixed, d_output[..., rows, :], d_value[..., keys, :], add, workspace)
        d_projected[:, : self.config.embed_dim] *= self.config.head_dim**-0.5
        self._rotate(d_projected, batch, backward=True)
        return self.projections.backward(d_projected, workspace)

    def _exponentials(
        self, query: np.ndarray, key: np.ndarray, rows: slice, keys: slice, workspace: Workspace
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return exp(S − row constant) (B, K, G, R, J), 0 where masked, and its row sums."""
        size = rows.stop - rows.start
        scores = workspace.array((self.name, "scores", rows.start), *query.shape[:-2], size, keys.stop)
        diagonal = scores[..., rows.start : rows.stop]  # (B, K, G, R, J) -> (B, K, G, R, R)
        later = workspace.later_keys(size)

        def compute() -> None:
            # (B, K, G, R, D) @ (B, K, 1, D, J) -> (B, K, G, R, J)
            np.matmul(query[..., rows, :], key[..., keys, :].swapaxes(-1, -2), out=scores)
            np.add(diagonal, later, out=diagonal)

        compute()
        return scores, softmax_exponentials(scores, workspace, compute)

    def _key_gradient(
        self, weights: np.ndarray, rows: np.ndarray, gradient: np.ndarray, add: bool, workspace: Workspace
    ) -> None:
        """Write or add Σ over the group of weightsᵀ rows to a dk or dv (B, K, 1, J, D)."""
        transposed = weights.swapaxes(-1, -2)  # (B, K, G, R, J) -> (B, K, G, J, R)
        if rows.shape[2] == 1 and not add:
            np.matmul(transposed, rows, out=gradient)  # -> (B, K, 1, J, D)
            return
        product = workspace.array(
            ("key gradient", weights.shape[-1]), *weights.shape[:3], weights.shape[-1], rows.shape[-1]
        )
        # (B, K, G, J, R) @ (B, K, G, R, D) -> (B, K, G, J, D)
        np.matmul(transposed, rows, out=product)
        # (B, K, G, J, D) -> (B, K, 1, J, D)
        total = product if rows.shape[2] == 1 else product.sum(axis=2, keepdims=True)
        if add:
            gradient += total
        else:
            gradient[...] = total

    def _queries_by_head(self, rows: np.ndarray, batch: int) -> np.ndarray:
        """View rows (N, C) as (B, K, G, T, D)."""
        kv_heads, head_dim = self.config.kv_heads, self.config.head_dim
        # (N, C) -> (B, T, K, G, D) -> (B, K, G, T, D)
        return rows.reshape(batch, len(rows) // batch, kv_heads, -1, head_dim, copy=False).transpose(0, 2, 3, 1, 4)

    def _split(self, projected: np.ndarray, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """View queries as (B, K, G, T, D), keys and values as (B, K, 1, T, D)."""
        config = self.config
        width, kv_width = config.embed_dim, config.kv_dim
        length = len(projected) // batch
        by_token = projected.reshape(batch, length, -1, copy=False)  # (N, M) -> (B, T, M)

        def heads(start: int, stop: int, group: int) -> np.ndarray:
            part = by_token[..., start:stop]
            # (B, T, K·group·D) -> (B, T, K, group, D) -> (B, K, group, T, D)
            return part.reshape(batch, length, config.kv_heads, group, config.head_dim, copy=False).transpose(
                0, 2, 3, 1, 4
            )

        query = heads(0, width, config.num_heads // config.kv_heads)
        return query, heads(width, width + kv_width, 1), heads(width + kv_width, width + 2 * kv_width, 1)

    def _rotate(self, projected: np.ndarray, batch: int, *, backward: bool) -> None:
        """Rotate queries and keys, which lie side by side, in place."""
        if self.rotation is None:
            return
        length = len(projected) // batch
        table = self.rotation[:length]
        rotated_width = self.config.embed_dim + self.config.kv_dim
        # (N, M) -> (N, C + K·D) -> (B, T, C + K·D)
        queries_and_keys = projected[:, :rotated_width].reshape(batch, length, -1, copy=False)
        rotate(queries_and_keys, table.conj() if backward else table)
