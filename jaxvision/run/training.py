"""Training: the straight line from a config to a result."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.data.pool import WorkerPool
from jaxvision.errors import UserError, disk_errors_as_user_errors, memory_errors_as_user_errors, printable
from jaxvision.parallel import distributed
from jaxvision.parallel.accelerators import check_accelerator
from jaxvision.parallel.preemption import Preemption
from jaxvision.run import result
from jaxvision.run.config import complete
from jaxvision.run.context import open_run, trace_steps, worker_count
from jaxvision.run.start import start_loop
from jaxvision.run.workdir import read_result, result_files, write_result

_LESS_MEMORY = (
    "Set a smaller data.batch_size (data.eval_batch_size for the evaluations), a larger train.accumulate or "
    "train.remat=nothing. `jaxvision plan` computes what fits."
)


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains a model and returns its metrics on the test data.

    Called again with the same workdir, training resumes from the newest intact checkpoint, with bit-identical results.
    A finished run returns its result without doing anything again.

    Args:
      config: sections as in `jaxvision.run.sections.SECTIONS`, and ``source``, ``mesh`` and ``seed``. A missing key has
        the default of the function that its section is passed to.
      workdir: folder for ``config.json``, ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``report.html``,
        ``mistakes.csv``, ``export/``, the model in timm's format with its classes and its transform, and, when all of
        them are written, ``result.json``.

    Returns:
      ``top1``, ``top5``, ``loss``, ``calibration_error`` and ``count``. Without test data, on the validation data.

    Raises:
      UserError: the config, the data or the weights are wrong; a loss is not finite; or a device is out of memory.
      Preempted: a SIGTERM arrived; the state has been saved.
    """
    config, workdir, clock = complete(config), Path(workdir).expanduser(), report.Clock()
    if printable(str(workdir)) != str(workdir):
        raise UserError(
            f"workdir: got {workdir}, expected a name in UTF-8, for the checkpoints. Choose another --workdir."
        )
    with ExitStack() as stack:
        stack.enter_context(memory_errors_as_user_errors(_LESS_MEMORY))
        preemption = stack.enter_context(Preemption())  # first, because joining other processes may take minutes
        console = _open_console(stack, workdir)
        if finished := read_result(workdir, config, log=console.warn):
            return _finished(console, workdir, finished)
        workers = stack.enter_context(WorkerPool(worker_count(config)))
        run = open_run(config, workdir, console=console, clock=clock, preemption=preemption, workers=workers)
        trace_steps(run)
        loop = start_loop(run, stack)
        loop.train()
        chosen = result.choose(run, loop)
        evaluation = result.test(run, chosen)
        result.export(run, chosen, evaluation)
        write_result(workdir, step=chosen.step, split=run.final_split, metrics=evaluation.scalars())
        return evaluation.scalars()


def _finished(console: report.Console, workdir: Path, finished: dict[str, Any]) -> dict[str, float]:
    """Prints the result of a finished run and returns its metrics."""
    console.note(
        f"this run is finished, and {workdir} has its result, the model of step {finished['step']:,}. Choose another "
        f"--workdir to train again, or remove {workdir / 'result.json'} to evaluate and export again."
    )
    metrics = finished["metrics"]
    console.finish(final=metrics, name=finished["split"], files=result_files(workdir))
    return metrics


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
