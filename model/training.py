"""Training from texts to a model: batches, logs, held-out losses, checkpoints, stopping and resuming."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from .checkpoint import ModelBuilder, read_npz, write_npz
from .config import TrainingConfig, training_config
from .data import encode_texts, random_batch, save_tokens, split_tokens
from .divergence import explain_divergence
from .errors import DivergenceError, InputError
from .evaluation import evaluation_windows
from .files import atomic_write, write_json
from .generation import generate_text
from .interrupts import first_interrupt
from .optimizers import STATE_NAMES
from .run import RunDirectory
from .schedules import learning_rate
from .straight_through import StraightThrough
from .tokenizer import Tokenizer
from .training_log import LogRow, TrainingLog
from .training_step import StepResult
from .transformer import Transformer
from .workers import TrainingEngine, open_engine

logger = logging.getLogger(__name__)

# Steps between looks at Ctrl-C and at the clock.
STEPS_AT_A_TIME = 10
# Fields that a resumed run may change: they do not touch the weights.
FREE_FIELDS = ("log_every", "sample_every", "time_limit")


@dataclass
class TrainingResult:
    """What training reached.

    Attributes:
        step: Steps done in all sessions.
        total_steps: Steps planned.
        validation_loss: Of the weights that are left in the model, over the whole held-out split, nats.
        seconds: Training time of all sessions.
        interrupted: Whether Ctrl-C or the time limit ended it; it can be resumed.
        stopped_early: Whether the held-out loss no longer improved.
        num_workers: Worker processes used.
        rows: The log.
    """

    step: int
    total_steps: int
    validation_loss: float
    seconds: float
    interrupted: bool
    stopped_early: bool
    num_workers: int
    rows: list[LogRow] = field(repr=False)


@dataclass
class _Progress:
    """What resuming needs besides the arrays. All fields are numbers, stored as float64."""

    step: int = 0
    best_loss: float = math.inf
    evaluations_without_improvement: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    num_workers: int = 0
    finished: int = 0


def train_model(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: str | Iterable[str] | None,
    config: TrainingConfig | Mapping[str, Any],
    *,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    source: Mapping[str, Any] | None = None,
    straight_through: StraightThrough | None = None,
) -> TrainingResult:
    """Train a model, and leave the weights with the lowest held-out loss in it.

    Ctrl-C ends training after the running step and saves; a second Ctrl-C ends it at once.

    Args:
        model: Its weights are the starting point.
        tokenizer: Trained; its vocabulary is the model's.
        texts: One text or several; the last part of their tokens is held out. None with `resume`: the run's own tokens.
        config: A `TrainingConfig`, or a dictionary with some of its fields.
        directory: Run directory for checkpoints, logs and the loss plot; None to write nothing.
        resume: Go on where the run in `directory` stopped, to the same bytes as a run that never did.
        progress: Show a progress bar and log lines on the terminal; without, they go to `logging`.
        source: What `training.json` is to say about the text.
        straight_through: A number format to train the model for, or None. Held-out losses are then those in this format, and the weights
            that are left in the model are rounded to it.

    Raises:
        InputError: The text is too short, an option is impossible, or there is nothing to resume.
        DivergenceError: The loss became NaN or infinite.
    """
    settings = training_config(config)
    if tokenizer.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the model has vocab_size {model.config.vocab_size}, the tokenizer {tokenizer.vocab_size}; make them equal"
        )
    length = settings.seq_len or model.config.max_seq_len
    if length > model.config.max_seq_len:
        raise InputError(f"seq_len {length} is longer than the model's max_seq_len {model.config.max_seq_len}")
    run = None if directory is None else RunDirectory(directory)
    if resume:
        if run is None:
            raise InputError("resume needs the directory of the run")
        training_tokens = run.load_training_tokens(model.config.vocab_size)
        validation_tokens = run.load_validation_tokens(model.config.vocab_size)
    else:
        if texts is None:
            raise InputError("training needs a text")
        if run is not None:
            run.path.mkdir(parents=True, exist_ok=True)
        tokens = encode_texts(
            tokenizer, [texts] if isinstance(texts, str) else texts, None if run is None else run.path
        )
        training_tokens, validation_tokens = split_tokens(tokens, settings.validation_split, model.config.max_seq_len)
        if run is not None:
            training_tokens, validation_tokens = store_tokens(run, tokenizer, training_tokens, validation_tokens)
    trainer = Trainer(
        model, tokenizer, settings, training_tokens, validation_tokens, run, progress, source, straight_through
    )
    return trainer.train(resume=resume)


def store_tokens(
    run: RunDirectory, tokenizer: Tokenizer, training: np.ndarray, validation: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Begin a run directory, and return its tokens memory-mapped."""
    for earlier in (run.training_state, run.number_format, run.teacher_weights):  # they do not belong to these tokens
        earlier.unlink(missing_ok=True)
    tokenizer.save(run.tokenizer)
    save_tokens(run.train_tokens, training)
    save_tokens(run.validation_tokens, validation)
    return run.load_training_tokens(), run.load_validation_tokens()


class Trainer:
    """Runs the steps, and does at each step what is due there."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        config: TrainingConfig,
        training_tokens: np.ndarray,
        validation_tokens: np.ndarray,
        run: RunDirectory | None,
        progress: bool,
        source: Mapping[str, Any] | None,
        straight_through: StraightThrough | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.training_tokens, self.validation_tokens = training_tokens, validation_tokens
        self.run, self.show, self.source = run, progress, dict(source or {})
        self.straight_through = straight_through
        self.length = config.seq_len or model.config.max_seq_len
        self.tokens_per_step = config.batch_size * self.length
        steps = config.num_steps or math.ceil(config.num_epochs * len(training_tokens) / self.tokens_per_step)
        self.total_steps = max(1, steps)
        self.evaluate_every = config.evaluate_every or max(50, self.total_steps // 20)
        self.progress = _Progress()
        self.best_parameters = model.parameters.flat.copy()
        self.stop_requested = False

    def train(self, *, resume: bool) -> TrainingResult:
        """Train from the start or from the saved state to the end, or until something stops it."""
        saved = self._load_state() if resume else None
        csv_path, json_path = (None, None) if self.run is None else (self.run.log_csv, self.run.log_json_lines)
        self.earlier_seconds, self.started = self.progress.seconds, time.monotonic()
        self.log = TrainingLog(csv_path, json_path, self.progress.step)
        stopped_early = False
        with open_engine(
            self.model.config,
            self.config,
            self.total_steps,
            self.training_tokens,
            self.validation_tokens,
            self.progress.num_workers,
            self.straight_through,
        ) as engine:
            self.progress.num_workers = engine.num_workers
            self._fill(engine, saved)
            if self.run is not None:
                self._write_record()
                if saved is None:
                    if self.straight_through is not None:
                        self.straight_through.save(self.run)
                    self._take_parameters(engine)
                    self._save_best()
                    self._save_state(engine)  # so that a run killed from now on can be resumed
            with first_interrupt(self._request_stop), self._bar() as bar:
                self.started = self.last_line = time.monotonic()
                self.last_line_step = self.progress.step
                while (
                    not (self.stop_requested or stopped_early or self.progress.finished)
                    and self.progress.step < self.total_steps
                ):
                    results = engine.run(self.progress.step, self._steps_to_next_event())
                    self._take(engine, results, bar)
                    stopped_early = self._events(engine, results[-1])
                    if (
                        self.config.time_limit is not None
                        and self._elapsed() - self.earlier_seconds >= self.config.time_limit
                    ):
                        self.stop_requested = True
            interrupted = self.stop_requested and self.progress.step < self.total_steps and not stopped_early
            self.progress.finished = int(not interrupted)
            self._save_state(engine)
            self._take_parameters(engine)
            if math.isfinite(self.progress.best_loss):
                engine.memory.rounded[:] = self.model.parameters.flat[:] = self.best_parameters
            loss = self._evaluate(engine)
        return self._finish(loss, interrupted, stopped_early)

    def _fill(self, engine: TrainingEngine, saved: dict[str, np.ndarray] | None) -> None:
        """Put the starting point into the engine's memory."""
        if self.straight_through is not None:
            engine.memory.teacher[:] = self.straight_through.teacher
        engine.memory.parameters[:] = self.model.parameters.flat if saved is None else saved["parameters"]
        if saved is not None:
            for name, array in engine.memory.state.items():
                array[:] = saved[f"state_{name}"]

    def _steps_to_next_event(self) -> int:
        step = self.progress.step
        ends = [STEPS_AT_A_TIME, self.total_steps - step]
        for every in (self.config.log_every, self.evaluate_every, self.config.sample_every):
            if every:
                ends.append(every - step % every)
        return min(ends)

    def _take(self, engine: TrainingEngine, results: list[StepResult], bar: tqdm[Any]) -> None:
        """Count steps that were done; stop if one diverged."""
        for result in results:
            if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
                self.model.parameters.flat[:] = engine.memory.rounded
                batch = random_batch(
                    self.training_tokens, self.config.batch_size, self.length, self.config.seed, self.progress.step
                )
                raise DivergenceError(explain_divergence(self.model, self.config, self.progress.step, result, *batch))
            self.progress.step += 1
            self.progress.loss_sum += result.loss
            self.progress.loss_count += 1
        bar.set_postfix_str(f"loss {results[-1].loss:.3f}", refresh=False)
        bar.update(len(results))

    def _events(self, engine: TrainingEngine, last: StepResult) -> bool:
        """Log, evaluate, save and sample where it is due; return whether to stop because nothing improves."""
        step, last_step = self.progress.step, self.progress.step == self.total_steps
        evaluate = step % self.evaluate_every == 0 or last_step
        if not evaluate and step % self.config.log_every != 0 and not self._due(self.config.sample_every):
            return False
        validation_loss, stop = None, False
        if evaluate:
            self._take_parameters(engine)
            validation_loss = self._evaluate(engine, self.config.evaluation_batches * self.config.batch_size)
            stop = self._judge(validation_loss)
        if evaluate or step % self.config.log_every == 0:
            self._log(last, validation_loss)
        if self._due(self.config.sample_every):
            self._take_parameters(engine)
            self._say(generate_text(self.model, self.tokenizer, "", 100, seed=step))
        if evaluate:
            self._save_state(engine)
        return stop

    def _take_parameters(self, engine: TrainingEngine) -> None:
        """Put the parameters that the last step left into the model."""
        engine.round()
        self.model.parameters.flat[:] = engine.memory.rounded

    def _evaluate(self, engine: TrainingEngine, max_windows: int | None = None) -> float:
        """Return the held-out loss of the model's parameters, which the engine's memory has too."""
        if self.straight_through is None:
            return engine.evaluate(max_windows)
        inputs, targets = evaluation_windows(self.validation_tokens, self.model.config.max_seq_len, max_windows)
        return self.straight_through.loss(self.model, inputs, targets)

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _judge(self, validation_loss: float) -> bool:
        """Keep the weights if they are the best so far; return whether patience is at its end."""
        if validation_loss < self.progress.best_loss:
            self.progress.best_loss = validation_loss
            self.progress.evaluations_without_improvement = 0
            self.best_parameters[:] = self.model.parameters.flat
            if self.run is not None:
                self._save_best()
            return False
        self.progress.evaluations_without_improvement += 1
        patience = self.config.early_stop_patience
        return patience > 0 and self.progress.evaluations_without_improvement >= patience

    def _log(self, last: StepResult, validation_loss: float | None) -> None:
        now, progress = time.monotonic(), self.progress
        tokens = (progress.step - self.last_line_step) * self.tokens_per_step
        row = LogRow(
            step=progress.step,
            training_loss=progress.loss_sum / max(1, progress.loss_count),
            validation_loss=validation_loss,
            learning_rate=learning_rate(self.config, progress.step - 1, self.total_steps),
            gradient_norm=last.gradient_norm,
            tokens_per_second=tokens / max(1e-9, now - self.last_line),
            seconds=self._elapsed(),
        )
        self.log.add(row)
        self.last_line, self.last_line_step = now, progress.step
        progress.loss_sum, progress.loss_count = 0.0, 0
        held_out = "" if validation_loss is None else f"   held out {validation_loss:.4f}"
        self._say(
            f"step {row.step:>{len(str(self.total_steps))}}/{self.total_steps}   loss {row.training_loss:.4f}{held_out}   "
            f"rate {row.learning_rate:.2e}   {row.tokens_per_second:,.0f} tokens/s"
        )

    def _say(self, line: str) -> None:
        if self.show:
            tqdm.write(line, file=sys.stdout)
        else:
            logger.info("%s", line)

    def _bar(self) -> tqdm[Any]:
        return tqdm(
            total=self.total_steps,
            initial=self.progress.step,
            desc="training",
            unit="step",
            disable=not self.show,
            dynamic_ncols=True,
        )

    def _elapsed(self) -> float:
        """Return the training time of all sessions in seconds."""
        return self.earlier_seconds + time.monotonic() - self.started

    def _request_stop(self) -> None:
        self.stop_requested = True

    def _save_best(self) -> None:
        if self.run is not None:
            self.run.save_model(self.model)

    def _save_state(self, engine: TrainingEngine) -> None:
        """Write everything that resuming needs, in one file."""
        if self.run is None:
            return
        self.progress.seconds = self._elapsed()
        arrays = {"parameters": engine.memory.parameters, "best_parameters": self.best_parameters}
        arrays |= {f"state_{name}": array for name, array in engine.memory.state.items()}
        arrays["progress"] = np.array(list(vars(self.progress).values()), dtype=np.float64)
        write_npz(self.run.training_state, arrays)

    def _load_state(self) -> dict[str, np.ndarray]:
        """Read the state of a run that stopped."""
        assert self.run is not None
        if not self.run.training_state.exists():
            raise InputError(f"{self.run.path} has no saved training state; train it from the start")
        self._check_same_configuration()
        size = self.model.parameters.flat.shape
        names = ["parameters", "best_parameters", *(f"state_{name}" for name in STATE_NAMES[self.config.optimizer])]
        saved = read_npz(self.run.training_state, {**dict.fromkeys(names, size), "progress": (len(vars(_Progress())),)})
        for (name, value), number in zip(vars(_Progress()).items(), saved["progress"].tolist(), strict=True):
            setattr(self.progress, name, type(value)(number))
        self.best_parameters[:] = saved["best_parameters"]
        return saved

    def _check_same_configuration(self) -> None:
        assert self.run is not None
        recorded = self.run.load_training_record().get("training", {})
        for name, value in self.config.to_dict().items():
            if name not in FREE_FIELDS and recorded.get(name) != value:
                raise InputError(
                    f"the run in {self.run.path} was trained with {name} {recorded.get(name)!r}, not {value!r}; "
                    "resume it with the same configuration, or train anew"
                )

    def _write_record(self, results: Mapping[str, Any] | None = None) -> None:
        """Write training.json: what was asked for, and at the end what came out."""
        if self.run is None:
            return
        record: dict[str, Any] = {
            "training": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            "source": self.source,
            "total_steps": self.total_steps,
            "training_tokens": len(self.training_tokens),
            "validation_tokens": len(self.validation_tokens),
            "num_workers": self.progress.num_workers,
            "results": dict(results or {}),
        }
        if not self.source and self.run.training.exists():
            record["source"] = self.run.load_training_record().get("source", {})
        write_json(self.run.training, record)

    def _finish(self, loss: float, interrupted: bool, stopped_early: bool) -> TrainingResult:
        """Write the last files and return the result."""
        progress = self.progress
        result = TrainingResult(
            progress.step,
            self.total_steps,
            loss,
            progress.seconds,
            interrupted,
            stopped_early,
            progress.num_workers,
            self.log.rows,
        )
        if self.run is not None:
            self._save_best()
            if not interrupted:
                sample = generate_text(self.model, self.tokenizer, "", 500, seed=self.config.seed)
                with atomic_write(self.run.sample) as file:
                    file.write(sample)
            figures = {
                "step": result.step,
                "seconds": result.seconds,
                "interrupted": interrupted,
                "stopped_early": stopped_early,
            }
            self._write_record(figures | {"validation_loss": loss})
            if self.log.rows:
                from .pictures import plot_losses

                plot_losses(self.log.rows, self.run.loss_plot)
        return result


def resume_model(directory: str | Path) -> tuple[Transformer, Tokenizer, TrainingConfig]:
    """Return what `train_model(..., resume=True)` needs, from a run directory.

    Raises:
        InputError: The run is missing or damaged.
    """
    run = RunDirectory(directory)
    model = ModelBuilder.from_checkpoint(run.path) if run.model_config.exists() else run.load_model()
    recorded = run.load_training_record().get("training")
    if not isinstance(recorded, dict):
        raise InputError(f"{run.training} lacks the training configuration; train the run from the start")
    return model, run.load_tokenizer(), TrainingConfig.from_dict(recorded)
