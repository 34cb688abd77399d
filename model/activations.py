"""Pointwise activations y = f(x), each with its derivative f'(x).

| name | f(x) | f'(x) |
|---|---|---|
| `gelu` | x·Φ(x) | Φ(x) + x·φ(x) |
| `gelu_tanh` | x·(1 + t)/2, t = tanh(√(2/π)·(x + 0.044715·x³)) | (1 + t)/2 + x·(1 − t²)/2·√(2/π)·(1 + 0.134145·x²) |
| `relu` | max(x, 0) | 1 where x > 0, else 0 |
| `relu_squared` | max(x, 0)² | 2·max(x, 0) |
| `silu` | x·σ(x) | σ(x)·(1 + x·(1 − σ(x))) |

Φ and φ are the normal distribution and its density (Hendrycks and Gimpel 2016); σ is the logistic
function, here (1 + tanh(x/2))/2 because NumPy's `tanh` takes half the time of its `exp`. `swiglu`
uses `silu` on its gate (Shazeer 2020). Squared ReLU: So et al. 2021.

The derivative is computed together with the value, while x and the intermediate results are in the
cache; the backward pass is then a single product. Every step writes into an array that exists: a
temporary array would cost more than the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .errors import InputError
from .workspace import Workspace, row_blocks

# f(x, y, derivative, workspace): writes f(x) to y and, unless derivative is None, f'(x) to
# derivative. x and y may be one array.
PointwiseFunction = Callable[[np.ndarray, np.ndarray, np.ndarray | None, Workspace], None]

# Φ(x) = (1 + tanh(x·P(x²)))/2 with this P (constant first) errs by at most 7e-8 in x·Φ(x), the
# rounding error of float32. Fitted by iteratively reweighted least squares on |x| ≤ 5.6; beyond, P
# only grows, and tanh is ±1 to the last bit.
NORMAL_TANH_POLYNOMIAL = (
    0.7978842164034246,
    0.036334282955416373,
    -3.312967703848044e-05,
    -5.524023228683078e-05,
    3.969117231001311e-06,
    -1.3344676389294248e-07,
    1.8056217611276471e-09,
)
TANH_SLOPE = math.sqrt(2 / math.pi)
TANH_CUBIC = 0.044715

_complementary_error_function = np.frompyfunc(math.erfc, 1, 1)


def normal_distribution(x: np.ndarray, out: np.ndarray, workspace: Workspace) -> None:
    """Write Φ(x), the probability that a standard normal variable is below x, to `out`."""
    if x.dtype != np.float32:
        out[...] = _complementary_error_function(x * -math.sqrt(0.5))
        out *= 0.5
        return
    square = workspace.array("square", *x.shape)
    np.multiply(x, x, out=square)
    np.multiply(square, np.float32(NORMAL_TANH_POLYNOMIAL[-1]), out=out)
    for coefficient in NORMAL_TANH_POLYNOMIAL[-2:0:-1]:
        out += np.float32(coefficient)
        out *= square
    out += np.float32(NORMAL_TANH_POLYNOMIAL[0])
    out *= x
    np.tanh(out, out=out)
    out *= np.float32(0.5)
    out += np.float32(0.5)


def _gelu(x: np.ndarray, y: np.ndarray, derivative: np.ndarray | None, workspace: Workspace) -> None:
    below = workspace.array("below", *x.shape)
    normal_distribution(x, below, workspace)
    if derivative is not None:
        density = workspace.array("square", *x.shape)
        np.multiply(x, x, out=density)
        density *= -0.5
        np.exp(density, out=density)
        density *= 1 / math.sqrt(2 * math.pi)
        density *= x
        np.add(below, density, out=derivative)
    np.multiply(x, below, out=y)


def _gelu_tanh(x: np.ndarray, y: np.ndarray, derivative: np.ndarray | None, workspace: Workspace) -> None:
    # Beyond |x| = 8 tanh is ±1 to the last bit: clipping changes nothing, and x² stays finite.
    clipped = workspace.array("clipped", *x.shape)
    half = workspace.array("half", *x.shape)
    np.clip(x, -8, 8, out=clipped)
    square = workspace.array("square", *x.shape)
    np.multiply(clipped, clipped, out=square)
    np.multiply(square, TANH_SLOPE * TANH_CUBIC, out=half)
    half += TANH_SLOPE
    half *= clipped
    np.tanh(half, out=half)  # t
    half *= 0.5
    half += 0.5  # h = (1 + t)/2, and (1 − t²)/2 = 2·h·(1 − h)
    if derivative is not None:
        # With a = 2·√(2/π)·(1 + 3·0.044715·x²)·x:  f' = h + h·(1 − h)·a
        square *= 6 * TANH_SLOPE * TANH_CUBIC
        square += 2 * TANH_SLOPE
        square *= clipped
        square *= half
        np.subtract(1, half, out=clipped)
        square *= clipped
        np.add(square, half, out=derivative)
    np.multiply(x, half, out=y)


def _silu(x: np.ndarray, y: np.ndarray, derivative: np.ndarray | None, workspace: Workspace) -> None:
    logistic = workspace.array("half", *x.shape)
    np.multiply(x, 0.5, out=logistic)
    np.tanh(logistic, out=logistic)
    logistic *= 0.5
    logistic += 0.5
    if derivative is not None:
        # f' = σ + y·(1 − σ)
        product = workspace.array("square", *x.shape)
        rest = workspace.array("clipped", *x.shape)
        np.multiply(x, logistic, out=product)
        np.subtract(1, logistic, out=rest)
        rest *= product
        np.add(rest, logistic, out=derivative)
        y[...] = product
    else:
        np.multiply(x, logistic, out=y)


def _relu(x: np.ndarray, y: np.ndarray, derivative: np.ndarray | None, workspace: Workspace) -> None:
    if derivative is not None:
        np.greater(x, 0, out=derivative)
    np.clip(x, 0, np.inf, out=y)  # a third of the time of np.maximum with a number


def _relu_squared(x: np.ndarray, y: np.ndarray, derivative: np.ndarray | None, workspace: Workspace) -> None:
    positive = workspace.array("half", *x.shape)
    np.clip(x, 0, np.inf, out=positive)
    if derivative is not None:
        np.add(positive, positive, out=derivative)
    np.multiply(positive, positive, out=y)


POINTWISE: dict[str, PointwiseFunction] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu_squared": _relu_squared,
    "silu": _silu,
    "swiglu": _silu,
}


def activate(name: str, x: np.ndarray, y: np.ndarray, derivative: np.ndarray | None, workspace: Workspace) -> None:
    """Apply an activation to a matrix, block by block of rows.

    Args:
        name: The activation, as in `ModelConfig.activation`.
        x: Input (N, F).
        y: Receives f(x); may be `x` itself.
        derivative: Receives f'(x), unless None.
        workspace: Where intermediate blocks live.
    """
    function = POINTWISE[name]
    with np.errstate(over="ignore", under="ignore"):  # x² of a value that is clipped afterwards
        for rows in row_blocks(*x.shape):
            function(x[rows], y[rows], None if derivative is None else derivative[rows], workspace)


def activation_function(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return an activation as a function of an array of any shape, in the array's own precision.

    Raises:
        InputError: The name is not an activation.
    """
    if name not in POINTWISE:
        raise InputError(f"unknown activation {name!r}; known are {', '.join(POINTWISE)}")

    def function(values: np.ndarray) -> np.ndarray:
        array = np.asarray(values)
        if array.dtype != np.float32:
            array = array.astype(np.float64)
        result = np.empty_like(array)
        with np.errstate(over="ignore", under="ignore"):
            POINTWISE[name](array, result, None, Workspace(array.dtype, reuse=False))
        return result

    return function
