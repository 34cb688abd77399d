r"""Rounding the layers in order, each for the inputs that the rounded layers before it give.

A layer whose inputs are x in the float model reads x' in the integer model, with an error that
calibration can foresee. Its weights w are therefore not rounded as they are: the least squares fit
w' of the float model's outputs y to x' is, and for a layer that adds to the residual stream y is
what makes the float model's stream of the integer model's. With H the covariance of x' and d = y −
w x',

\[ w' = w + \mathrm{cov}(d, x') (H + \lambda I)^{-1} \]

and the means of d and x' give the bias. Derived in docs/fixedpoint/quantization.md.

References: Frantar et al., arXiv:2210.17323 (inputs of the rounded model); Li et al. 2025,
arXiv:2504.02692 (outputs of the float one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from model import Transformer
from model.attention import Observer
from model.workspace import Workspace

from ..operators.linear import largest_fractions
from ..qformat import QFormat
from ..row_scales import storage_bits
from ..topology import LOGITS, Kind, Step, final_norm_step, in_decoder, linear_inputs
from .calibration import BATCH, Calibration, QuantizationSettings, integer_factor, model_block, weight_parameter
from .error_compensation import Compensated, Moments, compensate
from .tensor_rounding import TensorRounding

RIDGE = 0.01  # λ, of the mean variance of an input: calibration text is a sample

Part = Callable[[np.ndarray, int, Workspace, None, Observer, bool], object]  # as `Block.forward`


def round_in_order(
    model: Transformer, calibration: Calibration, settings: QuantizationSettings
) -> dict[str, Compensated]:
    """Return every linear layer's rounded weights and biases, by the layer's name.

    They are the integer model's: those of a query contain its `integer_factor`.
    """
    return _Rounding(model, calibration, settings).results


class _Rounding:
    """Both models' residual streams on the calibration text, and the layers rounded so far."""

    def __init__(self, model: Transformer, calibration: Calibration, settings: QuantizationSettings) -> None:
        self.model, self.calibration, self.settings = model, calibration, settings
        self.round_values = TensorRounding(model.config, calibration.formats)
        self.rounded = Transformer(model.config, parameters=model.parameters.flat.copy())
        self.workspace = Workspace(model.dtype).one_block()
        self.results: dict[str, Compensated] = {}
        self.shifts: dict[str, np.ndarray] = {}  # of biases, by layer
        windows = calibration.tokens
        batches = [windows[start : start + BATCH] for start in range(0, len(windows), BATCH)]
        self.streams = []  # (N, C) of the float model, and of the integer model
        for batch in batches:
            embedded = model.embedding.forward(batch, self.workspace)
            self.streams.append((len(batch), embedded.copy(), embedded.copy()))
        inner = model_block(model.config)
        for index, (exact, rounded) in enumerate(zip(model.blocks, self.rounded.blocks, strict=True)):
            self._round_part(exact.forward, rounded.forward, in_decoder(inner, index, "embedding"))
        self._round_part(_head(model), _head(self.rounded), (final_norm_step("embedding"), LOGITS))

    def _round_part(self, exact: Part, rounded: Part, steps: Sequence[Step]) -> None:
        """Round the layers of a part of the model, and let the streams pass it."""
        added = {name: step.name for step in steps if step.kind is Kind.RESIDUAL_ADD for name in step.inputs}
        inputs = linear_inputs(steps)
        for source in dict.fromkeys(inputs.values()):
            names = [name for name in inputs if inputs[name] == source]
            moments = Moments()
            for stream in self.streams:
                moments.add(self._errors(exact, rounded, stream, source, [added.get(name, name) for name in names]))
            first = self._weight(names[0]).shape[1]
            for name in names:
                rows = slice(first, first + len(self._weight(name)))
                self._round_layer(name, self.calibration.formats[source], moments, rows)
                first = rows.stop
        for count, x, y in self.streams:
            exact(x, count, self.workspace, None, lambda name, values: None, False)
            rounded(y, count, self.workspace, None, self._pass, False)

    def _errors(
        self, exact: Part, rounded: Part, stream: tuple[int, np.ndarray, np.ndarray], source: str, places: list[str]
    ) -> np.ndarray:
        """Return the rounded model's `source`, and what it lacks at `places`, side by side."""
        count, x, y = stream
        tensors: dict[str, np.ndarray] = {}

        def keep(name: str, values: np.ndarray) -> None:
            if name in places:
                tensors[name] = values.copy()

        def compare(name: str, values: np.ndarray) -> None:
            if name in places:
                tensors[name] -= values
            self._pass(name, values)
            if name == source:
                tensors[name] = values.copy()

        exact(x.copy(), count, self.workspace, None, keep, False)
        rounded(y.copy(), count, self.workspace, None, compare, False)
        return np.concatenate([tensors[name] for name in (source, *places)], axis=1)

    def _pass(self, name: str, values: np.ndarray) -> None:
        """Give a tensor of the rounded model the bias and the format of the integer model's."""
        if name in self.shifts:
            values += self.shifts[name]
        self.round_values(name, values)

    def _weight(self, name: str) -> np.ndarray:
        return self.model.parameters[weight_parameter(self.model.config, name)]

    def _round_layer(self, name: str, inputs: QFormat, moments: Moments, rows: slice) -> None:
        """Round a layer; its errors are `rows` of the moments, its inputs the first ones."""
        weight, bias = self._weight(name), self.model.parameters.get(f"{name}.bias")
        size, factor = weight.shape[1], integer_factor(self.model.config, name)
        covariance, mean = moments.covariance, moments.mean
        spread = covariance[:size, :size]
        ridge = RIDGE * float(np.trace(spread)) / size or 1.0
        # (K, K) \ (K, R) -> (K, R) -> (R, K)
        change = np.linalg.solve(spread + ridge * np.eye(size), covariance[:size, rows]).T
        shift = mean[rows] - change @ mean[:size]  # (R, K) @ (K,) -> (R,)
        original = np.zeros(len(weight)) if bias is None else bias.astype(np.float64)
        bits = self.calibration.weight_bits.get(name, self.settings.weight_bits)
        wanted, offset = (weight + change) * factor, (original + shift) * factor
        result = self.results[name] = compensate(
            wanted,
            offset,
            bits,
            Moments(moments.count, moments.origin[:size], moments.total[:size], moments.products[:size, :size]),
            largest_fractions(offset, size, storage_bits(bits), inputs),
            self.settings.scales == "tensor",
            improve=True,
        )
        self.rounded.parameters[weight_parameter(self.model.config, name)] = result.weight / factor
        self.shifts[name] = (result.bias / factor - original).astype(weight.dtype)


def _head(model: Transformer) -> Part:
    def forward(
        x: np.ndarray, batch: int, workspace: Workspace, generator: None, observe: Observer, keep: bool
    ) -> None:
        normalized = model.final_norm.forward(x, workspace)
        observe("final_norm", normalized)
        observe("logits", normalized @ model.output_weight.T)  # (N, C) @ (C, V) -> (N, V)

    return forward
