"""Training: the straight line from a config to a result."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.data.pool import WorkerPool
from jaxvision.errors import disk_errors_as_user_errors
from jaxvision.parallel import distributed
from jaxvision.parallel.accelerators import check_accelerator
from jaxvision.parallel.preemption import Preemption
from jaxvision.run import result
from jaxvision.run.config import complete
from jaxvision.run.context import open_run
from jaxvision.run.start import start_loop


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains a model and returns its metrics on the test data.

    Called again with the same workdir, training resumes from the newest intact checkpoint, with bit-identical results.

    Args:
      config: sections as in `jaxvision.run.sections.SECTIONS`, and ``source``, ``mesh`` and ``seed``. A missing key has
        the default of the function that its section is passed to.
      workdir: folder for ``config.json``, ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``report.html``,
        ``mistakes.csv`` and ``export/``, the model in timm's format with its classes and its transform.

    Returns:
      ``top1``, ``top5``, ``loss``, ``calibration_error`` and ``count``. Without test data, on the validation data.

    Raises:
      UserError: the config, the data or the weights are wrong; or a loss is not finite.
      Preempted: a SIGTERM arrived; the state has been saved.
    """
    config, workdir, clock = complete(config), Path(workdir), report.Clock()
    with ExitStack() as stack:
        preemption = stack.enter_context(Preemption())  # first, because joining other processes may take minutes
        console = _open_console(stack, workdir)
        workers = stack.enter_context(WorkerPool(config.data.workers))
        run = open_run(config, workdir, console=console, clock=clock, preemption=preemption, workers=workers)
        loop = start_loop(run, stack)
        loop.train()
        chosen = result.choose(run, loop)
        evaluation = result.test(run, chosen)
        result.export(run, chosen, evaluation)
        return evaluation.scalars()


def _open_console(stack: ExitStack, workdir: Path) -> report.Console:
    """Joins the other processes and returns the console, which asks JAX for the devices."""
    distributed.initialize()  # before anything that asks JAX for the devices
    warnings: list[str] = []
    check_accelerator(warnings.append)
    console = stack.enter_context(report.Console())
    stack.enter_context(disk_errors_as_user_errors(workdir))
    for warning in warnings:
        console.warn(warning)
    return console
