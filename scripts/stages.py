"""Redo only what changed: skip a step whose inputs, code and results are those of the last time.

A step's fingerprint is written to `stages.json` in the run directory when it starts, those of its
results when it has finished, so a step that was interrupted is done again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from positron_start import PROJECT
from scripts.output import write_json


@dataclass(frozen=True)
class Stage:
    """One step from text to bitstream.

    Attributes:
        command: The subcommand of `positron`.
        words: Its arguments.
        inputs: Files that it reads.
        outputs: Files and directories that it leaves.
        sources: Files of this project that it runs, as paths from the project's root.
        tools: Distributions whose version matters to the result.
    """

    command: str
    words: Sequence[str]
    inputs: Sequence[Path]
    outputs: Sequence[Path]
    sources: Sequence[str]
    tools: Sequence[str] = ()

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything that the result depends on."""
        versions = {tool: _version(tool) for tool in self.tools}
        sources = [PROJECT / source for source in self.sources]
        parts = [[self.command, *self.words], digests(self.inputs), digests(sources), versions]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class StageRecords:
    """Fingerprints and results of the steps of one run directory, in `stages.json`."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "stages.json"

    def is_up_to_date(self, stage: Stage) -> bool:
        """Whether the step's results exist, unchanged, and were made from the present inputs."""
        record = self._read().get(stage.command, {})
        return (
            "outputs" in record
            and record.get("fingerprint") == stage.fingerprint()
            and all(output.exists() for output in stage.outputs)
            and record["outputs"] == digests(stage.outputs)
        )

    def was_started(self, stage: Stage) -> bool:
        """Whether the step was started from the present inputs and did not finish."""
        record = self._read().get(stage.command, {})
        return "outputs" not in record and record.get("fingerprint") == stage.fingerprint()

    def mark_started(self, stage: Stage) -> None:
        """Record what the step is about to be made from; later changes make it stale."""
        self._write(stage.command, {"fingerprint": stage.fingerprint()})

    def mark_done(self, stage: Stage) -> None:
        """Record the results of a step that has finished."""
        record = self._read().get(stage.command, {})
        self._write(stage.command, {"fingerprint": record.get("fingerprint"), "outputs": digests(stage.outputs)})

    def _write(self, command: str, record: dict[str, object]) -> None:
        write_json(self.path, {**self._read(), command: record})

    def _read(self) -> dict[str, dict[str, object]]:
        try:
            records = json.loads(self.path.read_text(encoding="utf-8"))
            return {command: dict(record) for command, record in records.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}  # no usable records: everything is done again


def digests(paths: Iterable[Path]) -> list[list[str | None]]:
    """Return name and SHA-256 (None if missing) of each file, directories file by file.

    Names start with the given path's last part, so that a moved project or run directory is the
    same one.
    """
    result: list[list[str | None]] = []
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if "__pycache__" in file.parts or file.is_dir():
                continue
            name = (Path(path.name) / file.relative_to(path)).as_posix()
            result.append([name, hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None])
    return result


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
