"""The training loop: steps, and logs, held-out losses, checkpoints and samples where due."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from ..config import TrainingConfig
from ..data import random_batch
from ..errors import DivergenceError, InputError
from ..files import file_digest, write_json
from ..generation.generate import generate_text
from ..run import RunDirectory
from ..tokenizers.tokenizer import Tokenizer
from ..transformer import Transformer
from .divergence import explain_divergence
from .evaluation import evaluation_windows
from .interrupts import first_interrupt
from .log import LogRow, TrainingLog, add_sample
from .schedules import learning_rate
from .state import Progress, TrainingState
from .step import StepResult
from .straight_through import StraightThrough
from .workers import TrainingExecutor, open_executor

logger = logging.getLogger(__name__)

# Steps between checks of Ctrl-C and the clock.
STEPS_AT_A_TIME = 10


@dataclass
class TrainingResult:
    """What training reached.

    Attributes:
        step: Steps done in all sessions.
        total_steps: Steps planned.
        validation_loss: Of the weights that are left in the model, over the whole held-out split,
            nats.
        seconds: Training time of all sessions, the evaluation of the whole held-out split included.
        interrupted: Whether Ctrl-C or the time limit ended it; it can be resumed.
        timed_out: Whether it was the time limit.
        stopped_early: Whether the held-out loss no longer improved.
        num_workers: Worker processes used.
        rows: The log.
    """

    step: int
    total_steps: int
    validation_loss: float
    seconds: float
    interrupted: bool
    timed_out: bool
    stopped_early: bool
    num_workers: int
    rows: list[LogRow] = field(repr=False)


class Trainer:
    """Runs the steps, and logs, evaluates, saves and samples where due."""

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
        if self.length > model.config.max_seq_len:
            raise InputError(f"seq_len {self.length} exceeds the model's context of {model.config.max_seq_len}")
        self.tokens_per_step = config.batch_size * self.length
        if config.num_epochs is None:
            assert config.num_steps is not None
            self.total_steps = config.num_steps
        else:
            self.total_steps = max(1, math.ceil(config.num_epochs * len(training_tokens) / self.tokens_per_step))
        self.evaluate_every = config.evaluate_every or max(50, self.total_steps // 20)
        self.progress = Progress()
        self.best_parameters = model.parameters.flat.copy()
        self.stop_requested = self.timed_out = False

    def train(self, *, resume: bool) -> TrainingResult:
        """Train from the start or from the saved state to the end, or until something stops it."""
        saved = self._load_state() if resume else None
        csv_path, json_path = (None, None) if self.run is None else (self.run.log_csv, self.run.log_json_lines)
        self.earlier_seconds, self.started = self.progress.seconds, time.monotonic()
        self.log = TrainingLog(csv_path, json_path, self.progress.step)
        with open_executor(
            self.model.config,
            self.config,
            self.total_steps,
            self.training_tokens,
            self.validation_tokens,
            self.progress.num_workers,
            self.straight_through,
        ) as executor:
            self.progress.num_workers = executor.num_workers
            self._fill(executor, saved)
            if self.run is not None:
                self._write_record()
                if saved is None:
                    self._begin(executor, self.run)
            stopped_early = self._run_steps(executor)
            interrupted = self.stop_requested and self.progress.step < self.total_steps and not stopped_early
            self.progress.finished = int(not interrupted)
            self._save_state(executor)
            self._take_parameters(executor)
            if math.isfinite(self.progress.best_loss):
                executor.memory.rounded[:] = self.model.parameters.flat[:] = self.best_parameters
            with self._bar(executor.num_windows, "evaluating", "window") as bar:
                loss = self._evaluate(executor, progress=bar.update)
        return self._finish(loss, interrupted, stopped_early)

    def _fill(self, executor: TrainingExecutor, saved: TrainingState | None) -> None:
        """Put the starting point into the executor's memory."""
        if self.straight_through is not None:
            executor.memory.teacher[:] = self.straight_through.teacher
        executor.memory.parameters[:] = self.model.parameters.flat if saved is None else saved.parameters
        if saved is not None:
            for name, array in executor.memory.state.items():
                array[:] = saved.optimizer[name]

    def _begin(self, executor: TrainingExecutor, run: RunDirectory) -> None:
        """Write what a run that is killed from now on needs to be resumed."""
        if self.straight_through is not None:
            self.straight_through.save(run)
        run.samples.unlink(missing_ok=True)
        self._take_parameters(executor)
        self._save_state(executor)
        self._save_best()  # the last: a directory with a model can be resumed

    def _run_steps(self, executor: TrainingExecutor) -> bool:
        """Do steps until done, stopped, or no longer improving; return whether the last."""
        stopped_early = False
        with (
            first_interrupt(self._request_stop),
            self._bar(self.total_steps, "training", "step", self.progress.step) as bar,
        ):
            self.started = self.last_line = time.monotonic()
            self.last_line_step = self.progress.step
            while (
                not (self.stop_requested or stopped_early or self.progress.finished)
                and self.progress.step < self.total_steps
            ):
                results = executor.run(self.progress.step, self._steps_to_next_event())
                self._take(executor, results, bar)
                stopped_early = self._events(executor, results[-1])
                limit = self.config.time_limit
                if limit is not None and self._elapsed() - self.earlier_seconds >= limit:
                    self.stop_requested = self.timed_out = True
        return stopped_early

    def _steps_to_next_event(self) -> int:
        step = self.progress.step
        ends = [STEPS_AT_A_TIME, self.total_steps - step]
        for every in (self.config.log_every, self.evaluate_every, self.config.sample_every):
            if every:
                ends.append(every - step % every)
        return min(ends)

    def _take(self, executor: TrainingExecutor, results: list[StepResult], bar: tqdm[Any]) -> None:
        """Count steps that were done; stop if one diverged."""
        for result in results:
            if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
                self.model.parameters.flat[:] = executor.memory.rounded
                batch = random_batch(
                    self.training_tokens, self.config.batch_size, self.length, self.config.seed, self.progress.step
                )
                raise DivergenceError(explain_divergence(self.model, self.config, self.progress.step, result, *batch))
            self.progress.step += 1
            self.progress.loss_sum += result.loss
            self.progress.loss_count += 1
        bar.set_postfix_str(f"loss {results[-1].loss:z.3f}", refresh=False)
        bar.update(len(results))

    def _events(self, executor: TrainingExecutor, last: StepResult) -> bool:
        """Log, evaluate, save and sample where due; return whether to stop early."""
        step, last_step = self.progress.step, self.progress.step == self.total_steps
        evaluate = step % self.evaluate_every == 0 or last_step
        if not evaluate and step % self.config.log_every != 0 and not self._due(self.config.sample_every):
            return False
        validation_loss, stop = None, False
        if evaluate:
            self._take_parameters(executor)
            windows = self.config.evaluation_batches * self.tokens_per_step // self.model.config.max_seq_len
            validation_loss = self._evaluate(executor, max(1, windows))
            stop = self._judge(validation_loss)
        if evaluate or step % self.config.log_every == 0:
            self._log(last, validation_loss)
        if self._due(self.config.sample_every):
            self._take_parameters(executor)
            text = generate_text(self.model, self.tokenizer, "", 100, seed=step)
            self._print(text)
            if self.run is not None:
                add_sample(self.run.samples, step, text)
        if evaluate:
            self._save_state(executor)
        return stop

    def _take_parameters(self, executor: TrainingExecutor) -> None:
        """Put the parameters that the last step left into the model."""
        executor.round()
        self.model.parameters.flat[:] = executor.memory.rounded

    def _evaluate(
        self,
        executor: TrainingExecutor,
        max_windows: int | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> float:
        """Return the held-out loss of the model's parameters, which the executor's memory has."""
        if self.straight_through is None:
            return executor.evaluate(max_windows, progress)
        inputs, targets = evaluation_windows(self.validation_tokens, self.model.config.max_seq_len, max_windows)
        return self.straight_through.loss(self.model, inputs, targets, progress)

    def _due(self, every: int) -> bool:
        return every > 0 and self.progress.step % every == 0

    def _judge(self, validation_loss: float) -> bool:
        """Keep the weights if they are the best so far; return whether patience has run out."""
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
        held_out = "" if validation_loss is None else f"   held out {validation_loss:z.4f}"
        self._print(
            f"step {row.step:>{len(str(self.total_steps))}}/{self.total_steps}   loss {row.training_loss:z.4f}{held_out}   "
            f"rate {row.learning_rate:.2e}   {row.tokens_per_second:,.0f} tokens/s"
        )

    def _print(self, line: str) -> None:
        if self.show:
            tqdm.write(line, file=sys.stdout)
        else:
            logger.info("%s", line)

    def _bar(self, total: int, name: str, unit: str, done: int = 0) -> tqdm[Any]:
        return tqdm(
            total=total,
            initial=done,
            desc=name,
            unit=unit,
            disable=None if self.show else True,  # None: where standard error is no terminal
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

    def _save_state(self, executor: TrainingExecutor) -> None:
        """Write everything that resuming needs."""
        if self.run is None:
            return
        self.progress.seconds = self._elapsed()
        memory = executor.memory
        TrainingState(self.progress, memory.parameters, self.best_parameters, memory.state).save(self.run)

    def _load_state(self) -> TrainingState:
        """Load the state of a run that stopped; `_fill` gives the executor its part."""
        assert self.run is not None
        saved = TrainingState.load(self.run, self.config, self.model.parameters.flat.size)
        self.progress = saved.progress
        self.best_parameters[:] = saved.best_parameters
        return saved

    def _write_record(self, results: Mapping[str, Any] | None = None) -> None:
        """Write training.json: the settings and, at the end, the results."""
        if self.run is None:
            return
        record: dict[str, Any] = {
            "training": self.config.to_dict(),
            "model": self.model.config.to_dict(),
            "source": self.source,
            "vocabulary_sha256": self.tokenizer.fingerprint(),
            "total_steps": self.total_steps,
            "training_tokens": len(self.training_tokens),
            "validation_tokens": self.validation_tokens.size,
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
            self._elapsed(),
            interrupted,
            interrupted and self.timed_out,
            stopped_early,
            progress.num_workers,
            self.log.rows,
        )
        if self.run is not None:
            self._save_best()
            model_sha256 = file_digest(self.run.model_weights)
            if not interrupted:
                sample = generate_text(self.model, self.tokenizer, "", 500, seed=self.config.seed)
                self.run.save_sample(sample, "", model_sha256=model_sha256)
            figures = {
                "step": result.step,
                "seconds": result.seconds,
                "interrupted": interrupted,
                "stopped_early": stopped_early,
                "model_sha256": model_sha256,
            }
            self._write_record(figures | {"validation_loss": loss})
            if self.log.rows:
                from .pictures import plot_losses

                plot_losses(self.log.rows, self.run.loss_plot)
        return result
