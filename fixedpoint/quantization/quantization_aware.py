r"""Quantization-aware training: the float model computes with the integer model's numbers.

The weights of linear layers are frozen in stages: first the half that is nearest to the integer
model's weights takes their values, then half of the rest, and so on, while the others go on
learning and make up for the errors. Before each step embeddings and biases are rounded as
`quantize_transformer` rounds them, and in the forward pass the activations are rounded to their
formats. Gradients go straight through (see `model.training.straight_through`). What is too fine to
matter is left to floats: the roundings of the norms' shifts, of exponentials, reciprocals and the
residual stream. The held-out loss has no such gaps: it is that of the integer model, built from the
rounded weights of the moment.

A product of rounded activations and rounded weights with a rounded bias is a sum of multiples of
one power of two that float32 holds exactly: the accumulators of training are those of the integer
model, ties included; but for the query, whose factor is no power of two: its ties may fall to the
other side.

References: Jacob et al. 2018, arXiv:1712.05877; Bengio et al. 2013, arXiv:1308.3432; Zhou et al.
2017, arXiv:1702.03044. Derived in docs/fixedpoint/quantization_aware.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model import InputError, ModelConfig, RunDirectory, Transformer
from model.checkpoint import read_npz, write_npz
from model.files import read_json, write_json
from model.parameters import Parameters, parameter_counts, parameter_shapes

from ..errors import QuantizationError
from ..fast.transformer import prepared
from ..qformat import IntegerArray, QFormat, covering_fraction
from ..row_scales import FRACTION, WeightBits, least_squares_fractions, weight_range
from ..topology import linear_inputs, residual_format_tensors
from ..transformer import QuantizedTransformer
from .calibration import Calibration, QuantizationSettings, calibrate, integer_factor, model_steps
from .quantize import quantize_transformer
from .tensor_rounding import TensorRounding, round_half_up

FloatVector = NDArray[np.float32]

FORMAT = "positron-number-format"
VERSION = 1

# A stage freezes half of the weights that are not frozen yet, the last one all.
FREEZING_STAGES = 11
# A model that learns its teacher's probabilities alone gets no better than the teacher; one that
# learns the next tokens alone overfits. Measured in docs/fixedpoint/quantization_aware.md.
HARD_TARGET_SHARE = 0.25
# Steps of its grid that a weight which is not frozen may lie outside its range.
MARGIN = 0.25


@dataclass(frozen=True)
class _Grid:
    """Values of a matrix (rows, columns) or vector (rows,): `step` · (`lowest` to `highest`)."""

    parameter: str
    step: np.ndarray  # (rows, 1), float32
    inverse: np.ndarray
    lowest: float
    highest: float
    freezes: bool  # instead of being rounded in each step

    def rows(self, parameters: Parameters, share: int, num_shares: int) -> tuple[np.ndarray, slice]:
        """Return a share of the parameter, a view (rows of the share, columns), and which rows."""
        count = len(self.step)
        part = slice(count * share // num_shares, count * (share + 1) // num_shares)
        # (rows, ...) -> (rows, columns), of which `part`
        return parameters[self.parameter].reshape(count, -1, copy=False)[part], part

    def rounded(self, values: np.ndarray, part: slice, out: np.ndarray | None = None) -> np.ndarray:
        """Return the nearest values of the rows `part`."""
        out = np.multiply(values, self.inverse[part], out=out)
        round_half_up(out, self.lowest, self.highest)
        out *= self.step[part]
        return out

    def freeze(self, values: np.ndarray, part: slice, fraction: float) -> None:
        """Round this fraction of the values, the nearest ones and all that were frozen before."""
        nearest = self.rounded(values, part)
        errors = np.abs(values - nearest) * self.inverse[part]
        count = math.ceil(fraction * errors.size)
        if count:
            np.copyto(values, nearest, where=errors <= np.partition(errors, count - 1, axis=None)[count - 1])

    def limit(self, values: np.ndarray, part: slice) -> None:
        """Keep values (rows of the share, columns) from leaving the range."""
        step = self.step[part]
        np.clip(values, step * (self.lowest - MARGIN), step * (self.highest + MARGIN), out=values)


@dataclass(frozen=True, eq=False)
class QuantizationAware:
    """The number format that a model is trained for, a `StraightThrough` of `model.training`.

    Attributes:
        model: Shape of the model.
        settings: Widths.
        formats: Formats of the activations, as in `Calibration`.
        fractions: Fraction of each row (R,) of every matrix and table, by parameter name.
        hard_target_share: Share of the next token itself in the training targets, 0 to 1; the
            rest are the teacher's probabilities.
        teacher: Parameters (n,) of the float model that was quantized; worker processes find them
            in the training memory instead.
    """

    model: ModelConfig
    settings: QuantizationSettings
    formats: Mapping[str, QFormat]
    fractions: Mapping[str, IntegerArray]
    hard_target_share: float = 0.0
    teacher: FloatVector = field(default_factory=lambda: np.empty(0, np.float32))

    def __post_init__(self) -> None:
        if not 0 <= self.hard_target_share <= 1:
            raise QuantizationError(f"the hard targets' share must be from 0 to 1, not {self.hard_target_share}")
        matrices = _matrices(self.model, self.settings)
        shapes = parameter_shapes(self.model)
        if self.fractions.keys() != matrices.keys():
            raise QuantizationError(
                f"fractions are of other matrices: {sorted(self.fractions.keys() ^ matrices.keys())[:3]}"
            )
        for name, fractions in self.fractions.items():
            if fractions.shape != shapes[name][:1] or not FRACTION.holds(fractions):
                raise QuantizationError(
                    f"{name} needs {shapes[name][0]} fractions from {FRACTION.minimum_integer} to {FRACTION.maximum_integer}"
                )
        missing = [name for name in _activations(self.model) if name not in self.formats]
        if missing:
            raise QuantizationError(f"the formats lack {', '.join(missing[:3])}")

    worker_module = "fixedpoint.quantization.quantization_aware_worker"

    @classmethod
    def from_model(
        cls,
        model: Transformer,
        tokens: np.ndarray,
        settings: QuantizationSettings,
        hard_target_share: float = HARD_TARGET_SHARE,
    ) -> QuantizationAware:
        """Choose all formats for a trained float model.

        Args:
            model: The model that training starts from; of a tied one, `model.untied()` is trained.
            tokens: Calibration windows (N, T).
            settings: Widths.
            hard_target_share: Of the training targets; 0 where the text is the model's own.

        Raises:
            QuantizationError: The model cannot be quantized.
        """
        model = model.untied()
        settings = replace(settings, rounding="nearest")  # errors are made good by training
        formats = calibrate(model, tokens, settings).formats
        fractions = {}
        for name, (scale, bits) in _matrices(model.config, settings).items():
            fractions[name] = least_squares_fractions(model.parameters[name].astype(np.float64) * scale, bits)
        return cls(model.config, settings, formats, fractions, hard_target_share, model.parameters.flat.copy())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON holds it."""
        return {
            "model": self.model.to_dict(),
            "settings": asdict(self.settings),
            "formats": {name: str(target) for name, target in self.formats.items()},
            "fractions": {name: fractions.tolist() for name, fractions in self.fractions.items()},
            "hard_target_share": self.hard_target_share,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> QuantizationAware:
        """Return what `to_dict` described."""
        return cls(
            ModelConfig.from_dict(content["model"]),
            QuantizationSettings(**content["settings"]),
            {name: QFormat.parse(text) for name, text in content["formats"].items()},
            {name: np.array(fractions, dtype=np.int64) for name, fractions in content["fractions"].items()},
            content.get("hard_target_share", 0.0),  # the teacher's alone in older runs
        )

    def save(self, run: RunDirectory) -> None:
        """Write everything into a run directory."""
        write_npz(run.teacher_weights, {"parameters": self.teacher})
        write_json(run.number_format, {"format": FORMAT, "version": VERSION, **self.to_dict()})

    @classmethod
    def load(cls, run: RunDirectory) -> QuantizationAware:
        """Read what `save` wrote.

        Raises:
            InputError: A file is missing, damaged, edited, or written by another version.
        """
        path = run.number_format
        content = read_json(path)
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            raise InputError(
                f"{path} is {content.get('format')!r} version {content.get('version')!r}; this program reads {FORMAT!r} version {VERSION}"
            )
        try:
            plain = cls.from_dict(content)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{path} describes no number format ({error}); train the run again") from None
        size = parameter_counts(plain.model)["total"]
        return replace(plain, teacher=read_npz(run.teacher_weights, {"parameters": (size,)})["parameters"])

    def calibration(self, model: Transformer, tokens: np.ndarray) -> Calibration:
        """Return this format as a calibration, with its errors on windows of tokens (N, T)."""
        measured = calibrate(model, tokens, self.settings)
        tensors = []
        for row in measured.tensors:
            target, histogram = self.formats.get(row.name, self.formats["residual"]), measured.histograms[row.name]
            quality = histogram.signal_to_noise(target), histogram.saturated(target)
            tensors.append(replace(row, format=str(target), signal_to_noise=quality[0], saturated=quality[1]))
        return replace(measured, formats=self.formats, tensors=tuple(tensors))

    def quantize(self, model: Transformer) -> QuantizedTransformer:
        """Return the integer model of rounded parameters; norms' shifts are rounded again."""
        return quantize_transformer(model, Calibration(self.formats, ()), self.settings, self.fractions)

    def loss(
        self,
        model: Transformer,
        inputs: np.ndarray,
        targets: np.ndarray,
        progress: Callable[[int], object] = lambda count: None,
    ) -> float:
        """Return the integer model's mean loss in nats over windows (N, T)."""
        return prepared(self.quantize(model)).loss(inputs, targets, progress)

    def round_parameters(self, latent: np.ndarray, rounded: np.ndarray, share: int, num_shares: int) -> None:
        """Write a share of the rounded parameters (n,): rows of each matrix; norms in share 0."""
        shapes = parameter_shapes(self.model)
        source, target = Parameters(shapes, latent), Parameters(shapes, rounded)
        for grid in self._grids:
            values, part = grid.rows(source, share, num_shares)
            grid.rounded(values, part, out=grid.rows(target, share, num_shares)[0])
        if share == 0:
            self._round_norms(source, target)

    def begin_step(
        self, latent: np.ndarray, used: np.ndarray, share: int, num_shares: int, step: int, total_steps: int
    ) -> None:
        """Write a share of what a step computes with; at a stage's first step freeze weights.

        A frozen weight has exactly a value of its grid, also among the latent ones; that is how it
        is known, so nothing else has to be stored for a run that goes on later.
        """
        shapes = parameter_shapes(self.model)
        source, target = Parameters(shapes, latent), Parameters(shapes, used)
        stage = step * FREEZING_STAGES // total_steps
        begins = step == -(-stage * total_steps // FREEZING_STAGES)
        for grid in self._grids:
            values, part = grid.rows(source, share, num_shares)
            out = grid.rows(target, share, num_shares)[0]
            if not grid.freezes:
                grid.rounded(values, part, out=out)
                continue
            grid.limit(values, part)
            if begins:
                grid.freeze(values, part, 1.0 if stage == FREEZING_STAGES - 1 else 1 - 0.5 ** (stage + 1))
            np.copyto(out, values)
        if share == 0:
            self._round_norms(source, target)

    def end_step(self, latent: np.ndarray, used: np.ndarray, share: int, num_shares: int) -> None:
        """Give a share of the frozen weights their values back, which the optimizer changed."""
        shapes = parameter_shapes(self.model)
        target, source = Parameters(shapes, latent), Parameters(shapes, used)
        for grid in self._grids:
            if grid.freezes:
                values, part = grid.rows(source, share, num_shares)
                frozen = grid.rounded(values, part) == values
                np.copyto(grid.rows(target, share, num_shares)[0], values, where=frozen)

    def _round_norms(self, source: Parameters, target: Parameters) -> None:
        for name in self._norms:
            target[name] = source[name]
            if not name.endswith(".scale"):
                continue
            scale = target[name]
            fraction = covering_fraction(float(np.abs(scale).max()), self.settings.activation_bits)
            scale *= np.float32(2.0**fraction)
            round_half_up(scale, -np.inf, np.inf)
            scale *= np.float32(2.0**-fraction)

    def round_tensor(self, name: str, values: np.ndarray) -> None:
        """Round a tensor (N, channels) of the float model's forward pass in place."""
        self._rounding(name, values)

    @cached_property
    def _rounding(self) -> TensorRounding:
        return TensorRounding(self.model, self.formats)

    @cached_property
    def _grids(self) -> tuple[_Grid, ...]:
        grids, shapes = [], parameter_shapes(self.model)
        sources = linear_inputs(model_steps(self.model))

        def add(name: str, exponent: IntegerArray, scale: float, lowest: float, highest: float, freezes: bool) -> None:
            # (rows,) -> (rows, 1)
            step, inverse = np.ldexp(1 / scale, -exponent[:, None]), np.ldexp(scale, exponent[:, None])
            grids.append(_Grid(name, step.astype(np.float32), inverse.astype(np.float32), lowest, highest, freezes))

        for name, (scale, bits) in _matrices(self.model, self.settings).items():
            add(name, self.fractions[name], scale, *weight_range(bits), freezes=name.endswith(".weight"))
            bias = name.replace(".weight", ".bias")
            if bias != name and bias in shapes:  # counts the accumulator's units
                source = self.formats[sources[name.removesuffix(".weight")]]
                add(bias, self.fractions[name] + source.fraction, scale, -np.inf, np.inf, freezes=False)
        return tuple(grids)

    @cached_property
    def _norms(self) -> tuple[str, ...]:
        """The parameters of the norms; a shift is finer in the integer model than it matters."""
        return tuple(name for name in parameter_shapes(self.model) if "_norm." in name)


def _activations(config: ModelConfig) -> list[str]:
    """Return the tensors of the float model that the integer model has in a format of its own."""
    steps = model_steps(config)
    shared = residual_format_tensors(steps)
    return [*(step.name for step in steps if step.name not in shared), "residual"]


def _matrices(config: ModelConfig, settings: QuantizationSettings) -> dict[str, tuple[float, WeightBits]]:
    """Return the factor and the bits of every matrix and table."""
    matrices: dict[str, tuple[float, WeightBits]] = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 2:
            # A tied table is rounded as the coarser of its two uses.
            table = name == "position_embedding" or (name == "token_embedding" and not config.tie_embeddings)
            matrices[name] = integer_factor(config, name), settings.embedding_bits if table else settings.weight_bits
    return matrices
