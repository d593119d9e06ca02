"""The model of a checkpoint, for a run that was stopped for good."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.checkpoint import Checkpoints, saved_steps
from jaxvision.classifier import Classifier
from jaxvision.data.pool import WorkerPool
from jaxvision.errors import UserError
from jaxvision.parallel.preemption import Preemption
from jaxvision.run import result
from jaxvision.run.context import open_run
from jaxvision.run.recorded import recorded_config


def load_checkpoint(
    workdir: str | Path, *, step: int | str | None = None, console: report.Console
) -> tuple[Classifier, int]:
    """Returns the classifier of a checkpoint, and its step. The run may continue meanwhile.

    Opens the run's data, which define the classes and the transform. Uses one device, whatever the run used.

    Args:
      workdir: folder of the run.
      step: ``"newest"``, ``"best"`` by the validation data, or the number of a step. None: the best if there is one,
        else the newest.
      console: for warnings about the data and damaged checkpoints.

    Raises:
      UserError: there is no run or no such checkpoint, or the data or the checkpoint cannot be read.
    """
    config = recorded_config(workdir)
    if config is None or not saved_steps(workdir):
        raise UserError(f"{workdir}: got no checkpoint, expected the workdir of a run that has saved one.")
    config.mesh = ConfigDict({"data": 1})
    # The preemption is not entered: a SIGTERM ends the process, because nothing has to be saved.
    run = open_run(
        config, Path(workdir), console=console, clock=report.Clock(), preemption=Preemption(), workers=WorkerPool(0)
    )
    with Checkpoints(run.workdir, read_only=True, log=run.console.warn, **run.checkpoint_options) as checkpoints:
        if step is None:
            step = "newest" if checkpoints.best_step() is None else "best"
        chosen = result.restore_chosen(run, checkpoints, step)
    return result.gather_classifier(run, chosen), chosen.step
