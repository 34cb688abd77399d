"""The same transformer in eager PyTorch, for tests and benchmarks to compare with.

It is written the way PyTorch is usually used: `nn.Module`s, `scaled_dot_product_attention`,
`torch.optim`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from model.config import ModelConfig
from model.transformer import Transformer


class Norm(nn.Module):
    """LayerNorm or RMSNorm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.epsilon = config.norm_epsilon
        self.scale = nn.Parameter(torch.ones(config.embed_dim))
        self.shift = nn.Parameter(torch.zeros(config.embed_dim)) if config.norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised rows."""
        if self.shift is None:
            return functional.rms_norm(x, self.scale.shape, self.scale, self.epsilon)
        return functional.layer_norm(x, self.scale.shape, self.scale, self.shift, self.epsilon)


class Attention(nn.Module):
    """Causal attention with as few kernels as PyTorch offers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.projections = nn.Linear(config.embed_dim, config.embed_dim + 2 * config.kv_dim, bias=config.use_bias)
        self.output = nn.Linear(config.embed_dim, config.embed_dim, bias=config.use_bias)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """Return the result for x (B, T, C); with a cache, x is one new token a sequence."""
        config = self.config
        batch, length, width = x.shape
        query, key, value = self.projections(x).split([width, config.kv_dim, config.kv_dim], dim=2)
        query = query.view(batch, length, config.num_heads, config.head_dim).transpose(1, 2)
        key = key.view(batch, length, config.kv_heads, config.head_dim).transpose(1, 2)
        value = value.view(batch, length, config.kv_heads, config.head_dim).transpose(1, 2)
        position = 0
        if cache is not None:
            keys, values, position = cache[0], cache[1], int(cache[2])
            keys[:, :, position : position + length] = key
            values[:, :, position : position + length] = value
            key, value = keys[:, :, : position + length], values[:, :, : position + length]
        if config.position == "rotary":
            raise NotImplementedError("the reference has learned and sinusoidal positions")
        if config.kv_heads < config.num_heads:
            key = key.repeat_interleave(config.num_heads // config.kv_heads, dim=1)
            value = value.repeat_interleave(config.num_heads // config.kv_heads, dim=1)
        causal = cache is None or length > 1
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """Feed-forward part."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if self.activation == "swiglu":
            self.gate = nn.Linear(config.embed_dim, config.hidden_dim, bias=config.use_bias)
        self.up = nn.Linear(config.embed_dim, config.hidden_dim, bias=config.use_bias)
        self.down = nn.Linear(config.hidden_dim, config.embed_dim, bias=config.use_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result for x (B, T, C)."""
        hidden = self.up(x)
        match self.activation:
            case "gelu":
                hidden = functional.gelu(hidden)
            case "gelu_tanh":
                hidden = functional.gelu(hidden, approximate="tanh")
            case "relu":
                hidden = functional.relu(hidden)
            case "relu_squared":
                hidden = functional.relu(hidden).square()
            case "silu":
                hidden = functional.silu(hidden)
            case "swiglu":
                hidden = functional.silu(self.gate(x)) * hidden
        return self.down(hidden)


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(config), Attention(config)
        self.feed_forward_norm, self.feed_forward = Norm(config), FeedForward(config)

    def forward(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        """Return the residual stream after the block."""
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TorchTransformer(nn.Module):
    """A `model.Transformer` in PyTorch, with the same weights.

    Args:
        model: Where the weights come from.
    """

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        config = self.config = model.config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
        self.position_embedding = nn.Parameter(torch.zeros(config.max_seq_len, config.embed_dim))
        self.position_embedding.requires_grad = config.position == "learned"
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = Norm(config)
        self.output = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.token_embedding.weight
        if model.dtype == np.float64:
            self.double()
        with torch.no_grad():
            self.position_embedding.copy_(torch.from_numpy(model.position_table().copy()))
            for name, tensor in self.named_model_tensors().items():
                tensor.copy_(torch.from_numpy(model.parameters[name].copy()))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, T, V) for tokens (B, T)."""
        x = self.token_embedding(tokens) + self.position_embedding[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.output(self.final_norm(x))

    def new_caches(self, batch: int) -> list[list[Tensor]]:
        """Return empty caches of keys, values and the position, one for each block."""
        config = self.config
        shape = (batch, config.kv_heads, config.max_seq_len, config.head_dim)
        return [[torch.zeros(shape), torch.zeros(shape), torch.tensor(0)] for _ in self.blocks]

    def step(self, tokens: Tensor, position: int, caches: list[list[Tensor]]) -> Tensor:
        """Return logits (B, V) after tokens (B, t), the first of which stands at `position`."""
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.position_embedding[position : position + length]
        for block, cache in zip(self.blocks, caches, strict=True):
            cache[2] = torch.tensor(position)
            x = block(x, cache)
        return self.output(self.final_norm(x[:, -1]))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy; targets of -1 do not count."""
        logits = self.forward(tokens)
        return functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-1)

    def named_model_tensors(self, *, gradients: bool = False) -> dict[str, Tensor]:
        """Return this model's parameters, or their gradients, under the NumPy model's names."""

        def of(parameter: nn.Parameter | Tensor) -> Tensor:
            if gradients:
                assert parameter.grad is not None
                return parameter.grad
            return parameter

        config = self.config
        tensors = {"token_embedding": of(self.token_embedding.weight)}
        if config.position == "learned":
            tensors["position_embedding"] = of(self.position_embedding)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            name = f"blocks.{index}"
            sizes = [config.embed_dim, config.kv_dim, config.kv_dim]
            parts = ("query", "key", "value")
            for part, tensor in zip(parts, of(block.attention.projections.weight).split(sizes), strict=True):
                tensors[f"{name}.attention.{part}.weight"] = tensor
            if config.use_bias:
                for part, tensor in zip(parts, of(block.attention.projections.bias).split(sizes), strict=True):
                    tensors[f"{name}.attention.{part}.bias"] = tensor
            for other, parameter in block.named_parameters():
                if "projections" not in other:
                    tensors[f"{name}.{other}"] = of(parameter)
        for other, parameter in self.final_norm.named_parameters():
            tensors[f"final_norm.{other}"] = of(parameter)
        if not config.tie_embeddings:
            tensors["output.weight"] = of(self.output.weight)
        return tensors

    def decay_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """Return parameter groups for `torch.optim`: weight decay for matrices only."""
        used = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = [parameter for parameter in used if parameter.ndim > 1]
        vectors = [parameter for parameter in used if parameter.ndim == 1]
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
