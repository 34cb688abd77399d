"""What a report shows: the results of a run, and why a section shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scripts.report.charts import Series
from scripts.report.tensors import Usage

SHOWN_DIGITS = 12  # of a SHA-256
# Section of the page → the command that makes its figures.
COMMANDS = {
    "sample": "generate",
    "attention": "generate",
    "quantization": "quantize",
    "simulation": "simulate",
    "synthesis": "synthesize",
}


@dataclass(frozen=True)
class Gap:
    """Why a section shows nothing.

    Attributes:
        reason: A sentence.
        commands: What to do, in this order: subcommands of `positron` with their arguments.
    """

    reason: str
    commands: Sequence[str]


@dataclass(frozen=True)
class ReportData:
    """What a run directory holds; None or empty where a step has not been run.

    All of it belongs to the model and the integer model that are named here; results of others are
    left out.

    Attributes:
        name: The run's directory.
        model: Configuration of the model, and `parameters`, their number.
        model_sha256: Of the model's weights.
        manifest_sha256: Of the manifest of its integer model.
        training: `training.json`.
        loss_curves: Series for the loss chart.
        samples: Step and text, of what the model wrote while it learned.
        prompt, sample: The prompt, and the generated text that begins with it.
        sample_is_of_integers: Whether the integer model wrote it.
        tokens: Tokens that the attention maps are about.
        attention: Attention weights (L, H, T, T).
        quantization, simulation, synthesis: The steps' JSON files.
        interactive: What the page's scripts read: the integer model; None where there is none.
        usage: Title → histograms of integers over their formats' ranges.
        sweep: `quantization_sweep.json`.
        others: File → its content, of results without a section of their own.
        gaps: Section → why it shows nothing although its step has been run.
    """

    name: str
    model: Mapping[str, Any]
    model_sha256: str
    training: Mapping[str, Any]
    loss_curves: Sequence[Series] = ()
    samples: Sequence[tuple[int, str]] = ()
    prompt: str = ""
    sample: str = ""
    sample_is_of_integers: bool = False
    tokens: Sequence[str] = ()
    attention: np.ndarray | None = None
    quantization: Mapping[str, Any] | None = None
    simulation: Mapping[str, Any] | None = None
    synthesis: Mapping[str, Any] | None = None
    manifest_sha256: str | None = None
    interactive: Mapping[str, Any] | None = None
    usage: Mapping[str, Sequence[Usage]] = field(default_factory=dict)
    sweep: Mapping[str, Any] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
