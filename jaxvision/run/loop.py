"""The training loop: step, log, evaluate, save and stop."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax import nnx

from jaxvision import report
from jaxvision.checkpoint import Checkpoint, Checkpoints
from jaxvision.data.pipeline import blank_batch
from jaxvision.errors import Preempted, count
from jaxvision.eval.metrics import Evaluation
from jaxvision.eval.split import share_damaged
from jaxvision.parallel.mesh import shard_batch
from jaxvision.run.context import RunContext
from jaxvision.run.not_finite import NonFiniteSteps, fetch_metrics, mean_metrics
from jaxvision.run.profiler import StepProfiler
from jaxvision.train.state import evaluated_state


@dataclass
class Patience:
    """The best evaluation so far, and how many evaluations have not improved on it.

    Attributes:
      metric: name of the metric that decides.
      lower_is_better: whether a lower value of it is better.
      best: best value; None before the first evaluation.
      waited: number of evaluations since then.
    """

    metric: str = "top1"
    lower_is_better: bool = False
    best: float | None = None
    waited: int = 0

    def update(self, metrics: Mapping[str, float | None]) -> bool:
        """Counts one more evaluation, and returns whether it is the best so far.

        An equal value is no improvement, nor is NaN, which a file holds as None.
        """
        value, sign = metrics[self.metric], -1 if self.lower_is_better else 1
        if value is not None and math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    def read(self, workdir: Path, split: str, *, before: int) -> None:
        """Counts the evaluations of a run that resumes, from its ``metrics.jsonl``.

        Args:
          workdir: folder of the run.
          split: the split that is evaluated during training.
          before: leave out evaluations at this step and later. They are repeated, and process 0 may not have removed
            their lines from the file yet.
        """
        for line in report.read_metrics(workdir):
            # The metric may be new since the run was interrupted.
            if line["split"] == split and line["step"] < before and self.metric in line:
                self.update(line)


class TrainingLoop:
    """Trains, and logs, evaluates and saves on the way.

    Metrics are fetched from the devices only when they are logged, so that the devices never wait for the host.

    Args:
      run: everything that stays the same.
      start: the state, the step and the position to start from.
      data_fingerprint: identifies the training data; stored in each checkpoint.
      batches: training batches on the devices, from the first step on.
      checkpoints: where to save.
      metrics: where to log.
      non_finite: checks that the steps are finite.
      teacher: the arrays of the teacher, if there is one.

    Attributes:
      state: the training state on the devices.
      step: number of steps done.
      first_step: number of steps that were done when the loop was created.
      unlogged: metrics of the steps since the last line of the log, on the devices.
      log_due: whether the metrics of this step and those before it still have to be logged.
      evaluation_due: whether this step still has to be evaluated.
      patience: the best evaluation so far, for early stopping.
      evaluation: of `state`; None if this loop has not evaluated it.
    """

    def __init__(
        self,
        run: RunContext,
        start: Checkpoint,
        *,
        data_fingerprint: dict[str, int],
        batches: Generator[Any, None, None],
        checkpoints: Checkpoints,
        metrics: report.MetricsWriter,
        non_finite: NonFiniteSteps,
        teacher: nnx.State | None = None,
    ):
        position = start.position
        self.run = run
        self.state: Any = start.state
        self.step = self.first_step = start.step
        self.unlogged = [{key: np.float32(x) for key, x in values.items()} for values in position.get("recent", ())]
        self.log_due = False
        self.evaluation_due = position.get("evaluation_due", False)  # True if the run was stopped while it evaluated
        first_repeated = start.step if self.evaluation_due else start.step + 1
        self.patience = Patience(run.decisive_metric, run.is_lower_better)
        self.patience.read(run.workdir, run.watched_split, before=first_repeated)
        self.evaluation: Evaluation | None = None
        self.checkpoints = checkpoints
        self._data_fingerprint = data_fingerprint
        self._batches, self._metrics, self._non_finite = batches, metrics, non_finite
        self._teacher = () if teacher is None else (teacher,)
        self._profiler = StepProfiler(run.options.profile, run.workdir)
        # In steps, not rounded: a batch may contain the end of one epoch and the start of the next.
        self._evaluate_every = max(run.options.evaluate_every * run.steps_per_epoch, 1)

    def train(self) -> None:
        """Trains to the last step, or until ``train.patience`` evaluations have not improved on the best one.

        Raises:
          Preempted: a SIGTERM arrived; the state has been saved.
          UserError: a step is not finite, or a file cannot be written.
        """
        run = self.run
        if self.step < run.steps:
            self._compile_evaluation()
        else:
            run.console.note("this run is finished: no step is left to train")
        while self.evaluation_due or (self.step < run.steps and not self._is_out_of_patience()):
            if not self.evaluation_due:
                self._train_step()
            if self.evaluation_due:
                self._evaluate()
            elif run.options.save_every and self.step % run.options.save_every == 0:
                self._save()
            if run.preemption.check():
                self._save_and_stop()
        self._batches.close()  # frees the memory that the workers share
        self._note(self._profiler.close())
        if self.step < run.steps:
            run.console.note(
                f"stopped early: {count(self.patience.waited, 'evaluation')} without a better {run.decisive_metric}"
            )

    def take_state(self) -> nnx.State:
        """Returns the state and releases it, so that it is freed when the caller releases it. Frees the teacher."""
        state, self.state, self._teacher = self.state, None, ()
        return state

    def _is_out_of_patience(self) -> bool:
        patience = self.run.options.patience
        return patience is not None and self.patience.waited >= patience

    def _compile_evaluation(self) -> None:
        """Compiles the evaluation before the first step.

        A lack of memory shows at once, and no later compilation blocks signal handling.
        """
        run = self.run
        images = run.data[run.watched_split]
        settings: Any = jax.config
        folder = settings.jax_compilation_cache_dir if settings.jax_enable_compilation_cache else None
        unless = f", unless they are in {folder}" if folder else ""
        run.console.note(f"compiling the evaluation and the step{unless} ...")
        with run.clock.phase("compile"):
            blank = blank_batch(
                images.pipeline,
                batch_size=run.eval_batch_size // run.process[1],
                image_size=run.program.preprocess.image_size,
            )
            eval_step = run.eval_step_for(images.pipeline)
            jax.block_until_ready(eval_step(evaluated_state(self.state), shard_batch(blank, run.mesh)))

    def _train_step(self) -> None:
        run, clock, is_first = self.run, self.run.clock, self.step == self.first_step
        with clock.phase("data wait"):
            batch = next(self._batches)
        with (
            clock.phase("compile") if is_first else nullcontext(),  # the clock counts the rest as steps
            self._profiler.step(self.step + 1),
        ):
            self.state, values = run.program.step(self.state, batch, *self._teacher)
            if is_first:
                jax.block_until_ready(values)
                run.preemption.working()
        if self.log_due:
            self._log()  # of the steps before, while the devices compute this one
        self._note(self._profiler.end(self.step + 1, values))
        clock.step(run.config.data.batch_size)
        self.unlogged.append(values | {"index": batch["index"]})
        self.evaluation = None
        self.step += 1
        every = self._evaluate_every
        self.evaluation_due = self.step // every > (self.step - 1) // every or self.step == run.steps
        self.log_due = self.step % run.options.log_every == 0
        if self.evaluation_due:
            self._log()

    def _log(self) -> None:
        run, step = self.run, self.step
        self._non_finite.check(self.unlogged, step)
        means = mean_metrics(self.unlogged)
        self.unlogged, self.log_due, rates, epoch = [], False, run.clock.lap(), step / run.steps_per_epoch
        self._metrics.write(step, "train", means | rates, epoch=epoch)
        rates.pop("step_seconds", None)
        run.console.step(step, epoch=epoch, loss=means["loss"], **rates)

    def _evaluate(self) -> None:
        """Evaluates the state and saves it with its metrics."""
        run, split, step = self.run, self.run.watched_split, self.step
        try:
            with run.clock.phase("evaluation"):
                result = run.evaluate(evaluated_state(self.state), split)
                share_damaged(run.data["train"])
        except Preempted:
            self._save_and_stop()
        # If a resumed run evaluates before its first step, only this evaluation is unsaved: SIGTERM may still end the
        # process at once, also while the step compiles.
        if step > self.first_step:
            run.preemption.working()
        epoch, metrics = step / run.steps_per_epoch, result.scalars()
        is_best = self.patience.update(metrics) and run.checkpoint_options["best"] is not None
        self._metrics.write(step, split, metrics, epoch=epoch)
        run.console.result(result.headline(), name=split, step=step, epoch=epoch, best=is_best)
        with run.clock.phase("checkpoint"):
            self.checkpoints.save(
                step,
                self.state,
                position={"step": step, "data": self._data_fingerprint},
                metrics=metrics,
                overwrite=step == self.first_step,
            )
        self.evaluation, self.evaluation_due = result, False

    def _save(self) -> None:
        """Saves the state between evaluations, with the metrics that are not logged yet."""
        if self.log_due:
            self._log()
        self._non_finite.check(self.unlogged, self.step)
        with self.run.clock.phase("checkpoint"):
            position = {
                "step": self.step,
                "data": self._data_fingerprint,
                "recent": _as_floats(self.unlogged),
                "evaluation_due": self.evaluation_due,
            }
            self.checkpoints.save(self.step, self.state, position=position)

    def _note(self, text: str | None) -> None:
        if text is not None:
            self.run.console.note(text)

    def _save_and_stop(self) -> NoReturn:
        self._note(self._profiler.close())
        self._save()
        self.checkpoints.wait()
        raise Preempted(f"stopped by SIGTERM at step {self.step:,}, which is saved. Run the same command to resume.")


def _as_floats(metrics: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Returns the metrics of steps as floats, which JSON stores exactly."""
    return [{key: float(x) for key, x in values.items()} for values in fetch_metrics(metrics)]
