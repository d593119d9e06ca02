"""Everything that stays the same during a run: its config, devices, data and train step, and where it reports."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.analysis.cost import operations
from jaxvision.data import source
from jaxvision.data.dataset import Dataset, open_dataset
from jaxvision.data.layout import check_outputs_outside
from jaxvision.data.pipeline import InputPipeline, batch_shapes
from jaxvision.data.pool import WorkerPool
from jaxvision.errors import UserError
from jaxvision.eval.metrics import Evaluation, is_lower_better, with_metric
from jaxvision.eval.split import evaluate_split
from jaxvision.eval.step import cached_eval_step, evaluation_loss
from jaxvision.parallel.chips import chip_of
from jaxvision.parallel.cores import cores_of_this_process, default_workers
from jaxvision.parallel.mesh import batch_sharding, check_batch_size, make_mesh, process_share
from jaxvision.parallel.preemption import Preemption
from jaxvision.run.program import Program, total_steps, train_program, wanted_devices
from jaxvision.run.recipe import resolve
from jaxvision.run.sections import TrainOptions, check_groups, without_none
from jaxvision.train.state import Cast, evaluated_state


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run works with. Everything that changes during a run is in `jaxvision.run.loop.TrainingLoop`.

    Attributes:
      config: completed.
      workdir: folder of the run.
      options: the section ``train``.
      console: for the user.
      clock: measures where the time goes.
      preemption: listens for SIGTERM.
      workers: read the images, for training and for evaluations.
      mesh: the devices.
      process: (index, count) of the part of each batch that this process reads.
      data: images by split: ``train``, and ``validation``, ``test`` or both.
      program: the train step and the shapes that it works on.
      steps_per_epoch: batches in the training data, usually not a whole number.
      steps: number of steps of the whole run.
      chosen: key -> value, for the keys of the config that are ``"auto"``.
      eval_batch_size: images per batch of an evaluation, over all devices.
      eval_step_for: returns the compiled evaluation step for images that reach the model in a given way.
    """

    config: ConfigDict
    workdir: Path
    options: TrainOptions
    console: report.Console
    clock: report.Clock
    preemption: Preemption
    workers: WorkerPool
    mesh: jax.sharding.Mesh
    process: tuple[int, int]
    data: dict[str, Dataset]
    program: Program
    steps_per_epoch: float
    steps: int
    chosen: dict[str, float]
    eval_batch_size: int
    eval_step_for: Callable[[InputPipeline], Any]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.data["train"].source.classes)

    @property
    def watched_split(self) -> str:
        """The split that is evaluated during training: the validation data, or without any the test data."""
        return "validation" if "validation" in self.data else "test"

    @property
    def final_split(self) -> str:
        """The split that the result is measured on: the test data, or without any the validation data."""
        return "test" if "test" in self.data else "validation"

    @property
    def decisive_metric(self) -> str:
        """The metric that decides which evaluation is the best."""
        return self.config.checkpoint.best or "top1"

    @property
    def is_lower_better(self) -> bool:
        """Whether a lower value of the decisive metric is better."""
        return is_lower_better(self.decisive_metric, self.config.metric.name)

    @property
    def checkpoint_options(self) -> dict[str, Any]:
        """Options of `Checkpoints`. Without validation data none is the best: the test data must not choose it."""
        chooses = self.watched_split == "validation"
        return {
            **self.config.checkpoint,
            "best": self.config.checkpoint.best if chooses else None,
            "best_mode": "min" if self.is_lower_better else "max",
        }

    def evaluate(self, state: nnx.State, split: str) -> Evaluation:
        """Returns the evaluation of a model on one split of the data.

        Args:
          state: of the model, from `jaxvision.train.state.evaluated_state`.
          split: name of the split.

        Raises:
          Preempted: a SIGTERM arrived during the evaluation.
        """
        evaluation = evaluate_split(
            self.data[split],
            state=state,
            name=split,
            step_of=self.eval_step_for,
            mesh=self.mesh,
            preprocess=self.program.preprocess,
            batch_size=self.eval_batch_size,
            workers=self.workers,
            process=self.process,
            classes=len(self.classes),
            console=self.console,
            should_stop=self.preemption.check,
        )
        return with_metric(evaluation, **self.config.metric)


def open_run(
    config: ConfigDict,
    workdir: Path,
    *,
    console: report.Console,
    clock: report.Clock,
    preemption: Preemption,
    workers: WorkerPool,
) -> RunContext:
    """Opens the devices and the data of a config. Writes nothing, and allocates no array of the model.

    Args:
      config: completed.
      workdir: folder of the run.
      console: for warnings about the data.
      clock: measures how long it takes to prepare the data.
      preemption: listens for SIGTERM.
      workers: read the images.

    Raises:
      UserError: the config is wrong, or does not fit the devices or the data.
    """
    batch_size, accumulate = config.data.batch_size, config.train.accumulate
    mesh = make_mesh(config.mesh.to_dict(), devices=wanted_devices(config.mesh))
    process = process_share(mesh)
    eval_batch_size = config.data.eval_batch_size or batch_size
    check_batch_size(batch_size, mesh, what="config.data.batch_size", accumulate=accumulate)
    check_batch_size(eval_batch_size, mesh, what="config.data.eval_batch_size")
    check_groups(TrainOptions(**config.train), batch_size)
    if config.source.name == "folder":
        check_outputs_outside([workdir / "export" / "config.json"], config.source.data_dir, config.source.layout)
    with clock.phase("data preparation"):
        data = _open_data(config, console)
    _check_validation(config, data)
    train_data = data["train"]
    steps_per_epoch = len(train_data) / batch_size
    settings, chosen = resolve(config, len(train_data))
    options = TrainOptions(**settings.train)
    program = train_program(
        settings,
        mesh,
        num_classes=len(train_data.source.classes),
        pipeline=train_data.pipeline,
        steps_per_epoch=steps_per_epoch,
    )
    loss, probabilities = evaluation_loss(**config.loss)
    return RunContext(
        config=config,
        workdir=workdir,
        options=options,
        console=console,
        clock=clock,
        preemption=preemption,
        workers=workers,
        mesh=mesh,
        process=process,
        data=data,
        program=program,
        steps_per_epoch=steps_per_epoch,
        steps=total_steps(options, steps_per_epoch),
        chosen=chosen,
        eval_batch_size=eval_batch_size,
        eval_step_for=functools.partial(
            cached_eval_step,
            program.model_graph,
            mesh,
            loss,
            probabilities,
            program.preprocess,
            Cast.to(program.abstract["model"]),
        ),
    )


def worker_count(config: ConfigDict) -> int:
    """Returns the number of worker processes of this process. All processes of the run must call it."""
    given = config.data.workers
    return default_workers(cores_of_this_process()) if given is None else given


def trace_steps(run: RunContext) -> None:
    """Traces the train step and the evaluation step, which raises the errors of a user's loss or augmentation.

    JAX keeps the traces, and the first call of each step reuses its trace.
    """
    program = run.program
    pipeline = run.data[run.watched_split].pipeline
    batch = batch_shapes(
        pipeline,
        batch_size=run.eval_batch_size,
        image_size=program.preprocess.image_size,
        sharding=batch_sharding(run.mesh),
    )
    with run.clock.phase("compile"):
        traced = program.step.trace(*program.arguments)
        run.clock.peak_images_per_second = _peak_images_per_second(run, traced.jaxpr.jaxpr)
        run.eval_step_for(pipeline).trace(evaluated_state(program.abstract), batch)


def _peak_images_per_second(run: RunContext, step: Any) -> float | None:
    """Returns the rate at which the products of the step take all of the devices' peak; None for an unknown chip.

    With ``remat="nothing"`` the products that are computed twice count twice.
    """
    chip = chip_of(run.mesh.devices.flat[0])
    peak = chip.flops_float32 if run.config.model.dtype in (None, "float32") else chip.flops
    products = operations(step)
    return run.config.data.batch_size / products * peak * run.mesh.size if peak and products else None


def _open_data(config: ConfigDict, console: report.Console) -> dict[str, Dataset]:
    """Returns the images of each split that the source has."""
    data: dict[str, Dataset] = {}
    for name, images in source.open_source(**without_none(config.source))._asdict().items():
        if images is None:
            continue
        for note in getattr(images, "notes", ()):
            console.note(note)
        if text := source.empty_classes_text(images):
            console.warn(f"{name} data: {text}")
        data[name] = open_dataset(
            images, memory_limit=config.data.memory_limit, max_corrupt=config.data.max_corrupt, log=console.warn
        )
    if not {"train"} < set(data):
        raise UserError(
            f"config.source: got the splits {', '.join(data) or 'none'}, expected 'train' and at least one of "
            f"'validation' and 'test' to evaluate on. Choose the splits with the keys of config.source."
        )
    return data


def _check_validation(config: ConfigDict, splits: Collection[str]) -> None:
    """Checks that there are validation data if a key needs them.

    Raises:
      UserError: `train.patience` or a `checkpoint.best` other than the default is set without validation data. A choice
        by the test data would bias the result that is measured on them.
    """
    if "validation" in splits:
        return
    if config.train.patience is not None:
        key, value = "train.patience", config.train.patience
    elif config.checkpoint.best not in (None, "top1"):  # the default chooses only if there are validation data
        key, value = "checkpoint.best", config.checkpoint.best
    else:
        return
    raise UserError(
        f"config.{key}: got {value!r} without validation data, expected a validation split, because a choice by the "
        "test data would bias the result. Hold out a part of the training data, for example with "
        "--config.source.validation_fraction=0.1."
    )
