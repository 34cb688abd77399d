"""The log of a training run, as a table and as JSON lines, that survives being cut off anywhere."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path

from ..files import atomic_write


@dataclass(frozen=True)
class LogRow:
    """One line of the log.

    Attributes:
        step: Steps done.
        training_loss: Mean over the steps since the last line, nats.
        validation_loss: Held-out loss, or None when it was not measured here.
        learning_rate: Of the last step.
        gradient_norm: Global norm at the last step, before clipping.
        tokens_per_second: Since the last line.
        seconds: Training time so far, over all sessions of the run.
    """

    step: int
    training_loss: float
    validation_loss: float | None
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    seconds: float


FIELDS = [field.name for field in dataclasses.fields(LogRow)]


class TrainingLog:
    """Keeps rows in memory and, with a directory, in `log.csv` and `log.jsonl`.

    Args:
        csv_path: The table, or None to keep rows in memory only.
        json_path: The JSON lines, likewise.
        resume_step: Rows up to this step are kept from an earlier session; later ones, and a line
            cut short, are dropped.
    """

    def __init__(self, csv_path: Path | None, json_path: Path | None, resume_step: int = 0) -> None:
        self.csv_path, self.json_path = csv_path, json_path
        self.rows: list[LogRow] = []
        if csv_path is not None and json_path is not None:
            if resume_step:
                self.rows = [row for row in read_log(csv_path) if row.step <= resume_step]
            with atomic_write(csv_path) as file:
                file.write(",".join(FIELDS) + "\n" + "".join(map(_csv_line, self.rows)))
            with atomic_write(json_path) as file:
                file.write("".join(map(_json_line, self.rows)))

    def add(self, row: LogRow) -> None:
        """Append a row."""
        self.rows.append(row)
        if self.csv_path is not None and self.json_path is not None:
            with self.csv_path.open("a", encoding="utf-8", newline="") as file:
                file.write(_csv_line(row))
            with self.json_path.open("a", encoding="utf-8", newline="") as file:
                file.write(_json_line(row))


def read_log(path: str | Path) -> list[LogRow]:
    """Return the whole rows of a `log.csv`; a missing file has none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    rows = []
    for values in csv.reader(io.StringIO(text[: text.rfind("\n") + 1])):
        try:
            step, training, validation, *others = values
            rows.append(
                LogRow(int(step), float(training), float(validation) if validation else None, *map(float, others))
            )
        except (ValueError, TypeError):
            continue  # the heading, or a damaged line
    return rows


def add_sample(path: Path, step: int, text: str) -> None:
    """Append what the model wrote after a step."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(json.dumps({"step": step, "text": text}) + "\n")


def read_samples(path: Path) -> list[tuple[int, str]]:
    """Return the steps and texts of `add_sample`, the last of a step; a missing file has none."""
    found: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            found[int(row["step"])] = str(row["text"])
        except (ValueError, TypeError, KeyError):
            continue  # cut off
    return sorted(found.items())


def _csv_line(row: LogRow) -> str:
    values = dataclasses.astuple(row)
    return ",".join("" if value is None else repr(value) for value in values) + "\n"


def _json_line(row: LogRow) -> str:
    return json.dumps(dataclasses.asdict(row)) + "\n"
