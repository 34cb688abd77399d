"""Configuration: plain dictionaries to copy and change, and the typed, checked dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from .checks import is_real, is_whole, plain, refuse

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu_squared", "silu", "swiglu")
POSITIONS = ("learned", "sinusoidal", "rotary")
NORMS = ("layer", "rms")
OPTIMIZERS = ("adamw", "muon", "adam", "rmsprop", "sgd")
SCHEDULES = ("cosine", "linear", "constant")

# Sizes beyond these are typing errors or damaged files, and would only end in exhausted memory.
LARGEST_SIZE = 1 << 20
LARGEST_PARAMETER_COUNT = 1 << 31
DEFAULT_STEPS = 5000


@dataclass(frozen=True)
class _Config:
    """Shared by both configurations: construction from a dictionary, and checks of fields."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from a dictionary; missing fields take their defaults.

        Raises:
            InputError: Unknown fields, values of the wrong type, or impossible values; the message
                names all of them.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = []
        for key in values:
            if key not in names:
                close = difflib.get_close_matches(str(key), names, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(names)}"
                unknown.append(f"{cls.__name__} has no field {key!r}{hint}")
        refuse(*unknown)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as a plain dictionary, ready for JSON."""
        return dataclasses.asdict(self)

    # Each of these returns what is wrong with a field, None where nothing is.

    def _whole(self, name: str, lowest: int, highest: int, optional: bool = False) -> str | None:
        value = plain(getattr(self, name))
        if optional and value is None:
            return None
        if not is_whole(value) or not lowest <= value <= highest:
            return f"{name} must be a whole number from {lowest:,} to {highest:,}, not {value!r}"
        object.__setattr__(self, name, value)
        return None

    def _real(
        self,
        name: str,
        lowest: float,
        highest: float,
        *,
        above: bool = False,
        below: bool = False,
        optional: bool = False,
    ) -> str | None:
        value = plain(getattr(self, name))
        if optional and value is None:
            return None
        valid = is_real(value) and math.isfinite(value)
        if valid:
            valid = (lowest < value if above else lowest <= value) and (value < highest if below else value <= highest)
        if not valid:
            low, high = "above" if above else "from", "below" if below else "to"
            return f"{name} must be a number {low} {lowest:g} {high} {highest:g}, not {value!r}"
        object.__setattr__(self, name, value)
        return None

    def _choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        value = getattr(self, name)
        return None if value in choices else f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}"

    def _boolean(self, name: str) -> str | None:
        value = getattr(self, name)
        return None if isinstance(value, bool) else f"{name} must be True or False, not {value!r}"


@dataclass(frozen=True)
class ModelConfig(_Config):
    """Shape of a decoder-only transformer.

    Attributes:
        vocab_size: Number of different tokens, V.
        embed_dim: Width of the residual stream, C; a multiple of `num_heads`.
        num_heads: Query heads, H. Each is C / H wide.
        num_layers: Blocks.
        ff_dim: Width inside the feed-forward part, F; None for 4 · C.
        max_seq_len: Context in tokens, T.
        dropout: Probability of dropping an activation during training (embedding, attention, both
            branches).
        activation: `gelu` (exact), `gelu_tanh`, `relu`, `relu_squared`, `silu`, or `swiglu` (adds a
            gate).
        position: `learned` or `sinusoidal` tables added to the embedding, or `rotary` queries and
            keys.
        tie_embeddings: Whether the output layer uses the token embedding's weights.
        norm: `layer` (LayerNorm) or `rms` (RMSNorm, without shift).
        norm_epsilon: Added to the variance or mean square before the root.
        num_kv_heads: Key and value heads for grouped-query attention; None for as many as
            `num_heads`.
        use_bias: Whether the linear layers inside the blocks have biases. The output layer never
            has one.
        rotary_base: The longest wavelength of rotary positions is about 2π times this, in tokens.
    """

    vocab_size: int = 128
    embed_dim: int = 128
    num_heads: int = 4
    num_layers: int = 4
    ff_dim: int | None = None
    max_seq_len: int = 64
    dropout: float = 0.0
    activation: str = "gelu"
    position: str = "learned"
    tie_embeddings: bool = False
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    num_kv_heads: int | None = None
    use_bias: bool = True
    rotary_base: float = 10000.0

    def __post_init__(self) -> None:
        refuse(
            self._whole("vocab_size", 1, 1 << 24),
            self._whole("embed_dim", 1, LARGEST_SIZE),
            self._whole("num_heads", 1, LARGEST_SIZE),
            self._whole("num_layers", 1, 10_000),
            self._whole("ff_dim", 1, LARGEST_SIZE, optional=True),
            self._whole("max_seq_len", 1, LARGEST_SIZE),
            self._whole("num_kv_heads", 1, LARGEST_SIZE, optional=True),
            self._real("dropout", 0, 1, below=True),
            self._real("norm_epsilon", 0, 1),
            self._real("rotary_base", 1, 1e9, above=True),
            self._choice("activation", ACTIVATIONS),
            self._choice("position", POSITIONS),
            self._choice("norm", NORMS),
            self._boolean("tie_embeddings"),
            self._boolean("use_bias"),
        )
        problems = []
        if self.embed_dim % self.num_heads:
            problems.append(
                f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}, so that each head is equally wide"
            )
        elif self.position == "rotary" and self.head_dim % 2:
            problems.append(
                f"rotary positions rotate pairs of channels: embed_dim / num_heads must be even, not {self.head_dim}"
            )
        if self.num_heads % self.kv_heads:
            problems.append(f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.kv_heads}")
        refuse(*problems)
        if self.ff_dim is None:
            object.__setattr__(self, "ff_dim", 4 * self.embed_dim)

    @property
    def hidden_dim(self) -> int:
        """Width inside the feed-forward part, F."""
        return 4 * self.embed_dim if self.ff_dim is None else self.ff_dim

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.embed_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Width of the key and of the value projection."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class TrainingConfig(_Config):
    """How to train.

    Attributes:
        learning_rate: The highest one, after warm-up.
        batch_size: Sequences a step, all micro-batches and worker processes together.
        num_steps: Optimizer steps; None for what `num_epochs` says, or 5,000 where that is None
            too.
        num_epochs: Passes over the training tokens, in place of `num_steps`; both is an error.
        seq_len: Tokens a sequence; None for the model's max_seq_len.
        seed: Of batches and dropout.
        optimizer: `adamw`, `muon` (for the blocks' matrices, `adamw` for the rest), `adam`,
            `rmsprop` or `sgd`.
        beta1: Decay of the mean of gradients; momentum for `sgd`.
        beta2: Decay of the mean of squared gradients (not `sgd`).
        epsilon: Added to the root of the mean square.
        weight_decay: Decoupled decay of matrices (`adamw`, `muon`), or L2 penalty on them (the
            others).
        schedule: `cosine`, `linear` or `constant` after warm-up.
        warmup_steps: Steps of linear rise; None for 5 % of all steps, at most 100.
        final_learning_rate_ratio: Learning rate at the last step as a share of the highest.
        gradient_clip: Largest global gradient norm; 0 for no clipping.
        accumulation_steps: Micro-batches that a batch is cut into, to save memory.
        validation_split: Share of the tokens, at the end, held out.
        log_every: Batches between log lines.
        evaluate_every: Steps between held-out losses; None for 20 times a run.
        evaluation_batches: Batches of a held-out loss on the way; the last one uses the whole
            split.
        sample_every: Steps between samples of generated text; 0 for none.
        early_stop_patience: Held-out losses without an improvement that end training; 0 for never.
        time_limit: Seconds after which training stops as if interrupted, ready to resume; None for
            no limit.
        num_workers: Worker processes; None for one a core, at most 4. Results are reproducible for
            the same number.
    """

    learning_rate: float = 3e-3
    batch_size: int = 16
    num_steps: int | None = None
    num_epochs: float | None = None
    seq_len: int | None = None
    seed: int = 1
    optimizer: str = "adamw"
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    schedule: str = "cosine"
    warmup_steps: int | None = None
    final_learning_rate_ratio: float = 0.05
    gradient_clip: float = 1.0
    accumulation_steps: int = 1
    validation_split: float = 0.1
    log_every: int = 50
    evaluate_every: int | None = None
    evaluation_batches: int = 20
    sample_every: int = 0
    early_stop_patience: int = 0
    time_limit: float | None = None
    num_workers: int | None = None

    def __post_init__(self) -> None:
        refuse(
            self._real("learning_rate", 0, 100, above=True),
            self._whole("batch_size", 1, LARGEST_SIZE),
            self._whole("num_steps", 1, 1 << 40, optional=True),
            self._whole("seq_len", 1, LARGEST_SIZE, optional=True),
            self._whole("seed", 0, (1 << 63) - 1),
            self._choice("optimizer", OPTIMIZERS),
            self._real("beta1", 0, 1, below=True),
            self._real("beta2", 0, 1, below=True),
            self._real("epsilon", 0, 1, above=True),
            self._real("weight_decay", 0, 100),
            self._choice("schedule", SCHEDULES),
            self._whole("warmup_steps", 0, 1 << 40, optional=True),
            self._real("final_learning_rate_ratio", 0, 1),
            self._real("gradient_clip", 0, 1e9),
            self._real("validation_split", 0, 0.5, above=True),
            self._whole("log_every", 1, 1 << 40),
            self._whole("evaluate_every", 1, 1 << 40, optional=True),
            self._whole("evaluation_batches", 1, 1 << 40),
            self._whole("sample_every", 0, 1 << 40),
            self._whole("early_stop_patience", 0, 1 << 40),
            self._whole("num_workers", 1, 256, optional=True),
            self._real("num_epochs", 0, 1e9, above=True, optional=True),
            self._real("time_limit", 0, 1e9, above=True, optional=True),
        )
        problems = [self._whole("accumulation_steps", 1, self.batch_size)]
        if self.num_epochs is not None and self.num_steps is not None:
            problems.append(
                f"num_steps {self.num_steps:,} and num_epochs {self.num_epochs:g} both say how long to train: give one of them"
            )
        refuse(*problems)
        if self.num_epochs is None and self.num_steps is None:
            object.__setattr__(self, "num_steps", DEFAULT_STEPS)


# To copy and change: `config = MODEL_CONFIG.copy(); config.update(embed_dim=64)`. None stands for a
# value that is derived from other fields.
MODEL_CONFIG: dict[str, Any] = {**ModelConfig().to_dict(), "ff_dim": None}
TRAINING_CONFIG: dict[str, Any] = {**TrainingConfig().to_dict(), "num_steps": None}


def model_config(config: ModelConfig | Mapping[str, Any]) -> ModelConfig:
    """Return a typed model configuration of either form."""
    return config if isinstance(config, ModelConfig) else ModelConfig.from_dict(config)


def training_config(config: TrainingConfig | Mapping[str, Any]) -> TrainingConfig:
    """Return a typed training configuration of either form."""
    return config if isinstance(config, TrainingConfig) else TrainingConfig.from_dict(config)
