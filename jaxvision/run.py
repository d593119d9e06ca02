"""From a config to a result: the whole story of a run on one page.

`train` reads top to bottom: devices, data, model, optimizer, shardings from shapes only, restore or initialise, step,
loop, report. Each section of the config is splatted into one keyword-only function (`SECTIONS`), so a misspelt
key is an error that names the function and the nearest valid key.
"""

from __future__ import annotations

import csv
import errno
import functools
import inspect
import io
import json
import math
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_dict

from jaxvision import report
from jaxvision.analysis.cost import operations
from jaxvision.analysis.saliency import explain, overlay
from jaxvision.augment import on_device
from jaxvision.augment.preprocess import Preprocess
from jaxvision.checkpoint import Checkpoints, check_config, lock, write_config
from jaxvision.create import Classifier, create_model, exported, save_classifier
from jaxvision.data import pipeline, source
from jaxvision.data.folder import open_test_folder
from jaxvision.errors import Preempted, UserError, unknown
from jaxvision.eval.evaluate import evaluate as evaluate_batches
from jaxvision.eval.evaluate import make_eval_step
from jaxvision.eval.metrics import Evaluation
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.parallel import distributed
from jaxvision.parallel import plan as planning
from jaxvision.parallel.accelerators import check_accelerator
from jaxvision.parallel.mesh import AXES, batch_devices, check_batch_size, make_mesh, process_share, shard_batch
from jaxvision.parallel.preemption import Preemption
from jaxvision.parallel.rules import make_rules, state_shardings
from jaxvision.report.files import write_atomically
from jaxvision.train import optim, partial
from jaxvision.train.blocks import REMAT, Blocks
from jaxvision.train.loss import make_loss
from jaxvision.train.schedule import make_schedule
from jaxvision.train.state import abstract_state, create_state, evaluated_model, gather_model, initialise
from jaxvision.train.step import check_finite, make_train_step
from jaxvision.weights import catalog


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The section ``train``: how long, and what happens on the way.

    Args:
      epochs: passes over the training data; may be a fraction.
      steps: number of steps, instead of epochs.
      accumulate: microbatches per step: the memory of one, the gradient of all.
      ema_decay: weight of the old value in the moving average of parameters and BatchNorm statistics, such as 0.9998;
        None keeps no average. With one, the average is evaluated and exported.
      ema_warmup: let the average forget quickly at first (decay 1 - (1 + t)^(-2/3), up to `ema_decay`).
      evaluate_every: epochs between evaluations; there is always one at the end.
      patience: stop after this many evaluations without a better top-1; None never stops early.
      log_every: steps between lines of metrics.jsonl.
      save_every: steps between checkpoints, beside the one at each evaluation; None: those only.
      remat: what a block of the model keeps for the backward pass, which computes the rest a second time: "products"
        (of matrices, and convolutions) or "nothing" (but what went in). None leaves it to the compiler; with `scan`
        or mesh.fsdp it is "products".
      scan: compile blocks that are alike as one loop: a deep ViT compiles in the time of a shallow one.
      not_finite: "stop" or "skip" where a step's loss or gradient is not finite. Such a step changes nothing either
        way, and its images are listed in not_finite.jsonl. The tenth in a row stops the run.
      batch_norm_group: images that BatchNorm normalises together, such as 32; None: the whole batch, over all devices.
    """

    epochs: float = 10.0
    steps: int | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    ema_warmup: bool = False
    evaluate_every: float = 1.0
    patience: int | None = None
    log_every: int = 10
    save_every: int | None = None
    remat: str | None = None
    scan: bool = False
    batch_norm_group: int | None = None
    not_finite: str = "stop"

    def __post_init__(self) -> None:
        for name in ("epochs", "evaluate_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"train.{name} is a number above 0, got {getattr(self, name)}")
        if self.remat not in (None, *REMAT):
            raise unknown("train.remat", str(self.remat), REMAT)
        if self.not_finite not in ("stop", "skip"):
            raise unknown("train.not_finite", str(self.not_finite), ("stop", "skip"))
        for name in ("steps", "accumulate", "patience", "log_every", "save_every", "batch_norm_group"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"train.{name} is 1 or more, got {getattr(self, name)}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"train.ema_decay is between 0 and 1, such as 0.9998, or None; got {self.ema_decay}")


# --- The config ---


def _data_options(
    *,
    batch_size: int = 64,
    eval_batch_size: int | None = None,
    workers: int | None = None,
    memory_limit: float = 2.0,
    max_corrupt: int = 10,
) -> None:
    """The section ``data``.

    Args:
      batch_size: images per step, over all devices.
      eval_batch_size: in evaluation; None: the same.
      workers: processes that read and decode; None: one for each core, at most 16.
      memory_limit: gibibytes; smaller sets of equal pictures are decoded once and kept in memory.
      max_corrupt: damaged pictures that are named and skipped; one more is an error.
    """


def _schedule_options(*, warmup_epochs: float | None = None) -> None:
    """What the section ``schedule`` has beside `make_schedule`'s arguments.

    Args:
      warmup_epochs: length of the warm-up in epochs, instead of ``warmup_steps``.
    """


def _preprocess_options(
    *,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> None:
    """The section ``preprocess``, the evaluation transform. None: as the weight tag says; without weights ImageNet's
    mean and std, bicubic, and a crop of 0.875 (small pictures that are all alike are never cropped).

    Args:
      crop_pct: the share of the resized picture's side that the crop keeps.
      crop_mode: "center", "squash" or "border".
      interpolation: Pillow's filter, such as "bicubic".
      mean: of the pictures in [0, 1], by channel; also used in training.
      std: likewise.
    """


def _sharding_options(*, zero1: bool = False, min_size: int = 2**16) -> None:
    """The section ``sharding``: what the axes of the mesh leave open.

    Args:
      zero1: split the optimizer's moments and the moving average over mesh.data, too (ZeRO-1).
      min_size: arrays with fewer elements are not split.
    """


# Section of the config -> the functions that it is splatted into, and the arguments that `train` gives itself.
SECTIONS: dict[str, tuple[tuple[Callable[..., Any], ...], set[str]]] = {
    "data": ((_data_options,), set()),
    "preprocess": ((_preprocess_options,), set()),
    "model": ((create_model,), {"num_classes", "in_channels", "seed", "features_only", "out_indices"}),
    "lora": ((partial.add_lora,), {"model", "rngs"}),
    "augment": (
        (on_device.augment_batch,),
        {"batch", "seed", "step", "num_classes", "image_size", "mean", "std", "label_smoothing"},
    ),
    "loss": ((make_loss,), set()),
    "optimizer": ((optim.create_optimizer,), {"model"}),
    "schedule": ((make_schedule, _schedule_options), {"steps", "learning_rate"}),
    "train": ((Loop,), set()),
    "sharding": ((_sharding_options,), set()),
    "checkpoint": ((Checkpoints,), {"workdir", "config", "say", "read_only"}),
}
METRICS = ("top1", "top5", "loss", "calibration_error")
# What may change between a run and its continuation.
MAY_DIFFER = (
    "checkpoint", "data.workers", "data.memory_limit", "data.eval_batch_size", "train.log_every", "train.save_every",
    "train.remat", "train.scan", "train.not_finite", "mesh", "sharding",
)  # fmt: skip


def complete(config: Mapping[str, Any]) -> ConfigDict:
    """Returns `config` with every key that a section's functions take, at their defaults.

    Raises:
      UserError: a section or key that nothing takes; the message names the nearest.
    """
    given = ConfigDict(config)
    if not isinstance(given.get("seed", 0), int) or not 0 <= given.get("seed", 0) < 2**31:
        raise UserError(f"config.seed is a whole number, 0 or more and below 2**31; got {given.seed!r}")
    _check_mesh(given.get("mesh", {"data": -1}))
    full = ConfigDict({"seed": given.get("seed", 0), "mesh": ConfigDict(given.get("mesh", {"data": -1}))})
    for name in given:
        if name not in {"seed", "mesh", "source", *SECTIONS}:
            raise unknown("section of the config", name, {"seed", "mesh", "source", *SECTIONS})
    if "source" not in given or "name" not in given.source:
        raise UserError("the config needs source.name: one of " + ", ".join(source.SOURCES))
    if "model" not in given or "name" not in given.model:
        raise UserError("the config needs model.name, such as 'resnet50'")
    sections = {"source": ((source.source_function(given.source.name),), set()), **SECTIONS}
    for name, (functions, ours) in sections.items():
        parameters: dict[str, inspect.Parameter] = {}
        for function in functions:
            parameters |= _options(function, ours)
        section = ConfigDict()
        if name == "source":
            section.name = given.source.name
        for key, parameter in parameters.items():
            _set_default(section, key, parameter)
        if name == "lora":
            section.rank = 0  # off
        if name == "model":  # the architecture's own options: None is what its row says
            architecture = catalog.lookup(given.model.name).architecture
            # A module class is called through NNX's metaclass, whose own signature says nothing.
            build = cast(Any, registry.variant(architecture).build)
            own = _options(build.__init__, {"self", "rngs", *build.table_only, *section, *sections[name][1]})
            for key, parameter in own.items():
                simple = parameter.annotation if parameter.annotation in (int, float, str, bool) else object
                section[key] = config_dict.placeholder(simple)
        for key, value in given.get(name, {}).items():
            if key in sections[name][1]:
                raise UserError(f"config.{name}.{key} cannot be set: it follows from the data, or from config.seed")
            if key not in section:
                if name == "model":  # options of the architecture's own class are checked when it is built
                    section[key] = value
                    continue
                raise unknown(f"key of config.{name} ({functions[0].__name__.strip('_')})", key, section)
            kind = section.get_type(key)
            if kind is float and type(value) is int:
                value = float(value)  # a file's `epochs = 10` must not make 0.5 an error on the command line
            if kind in (int, float, bool) and not isinstance(value, kind | None):
                raise UserError(f"config.{name}.{key} is of the type {kind.__name__}, got {value!r}")
            with section.ignore_type():
                section[key] = value
        full[name] = section
    return full


def explain_keys(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns ``{"section.key": what it does}`` for a completed config, from the docstrings of its functions.

    >>> from jaxvision.main import load
    >>> explain_keys(load("configs/quickstart.py:vit"))["train.patience"]
    'stop after this many evaluations without a better top-1; None never stops early.'
    """
    texts = {"seed": "of everything random: weights, order, augmentation.",
             "source.name": f"where the pictures come from: {', '.join(source.SOURCES)}.",
             "mesh.data": "devices along the axis that batches are split over; -1 is what the others leave.",
             "mesh.fsdp": "devices that split batches, and parameters with all that belongs to them, too.",
             "mesh.tensor": "devices that share the work of a layer, on the same images."}  # fmt: skip
    sections = {"source": ((source.source_function(config["source"]["name"]),), set()), **SECTIONS}
    family: Callable[..., Any] = registry.variant(catalog.lookup(config["model"]["name"]).architecture).build
    for name, (functions, _) in sections.items():
        # A family's own options first: what `create_model` says of the common ones is meant for all.
        for function in (family, *functions) if name == "model" else functions:
            texts |= {f"{name}.{key}": text for key, text in argument_texts(function).items()}
    return texts


def argument_texts(function: Callable[..., Any]) -> dict[str, str]:
    """Returns the texts under ``Args:`` of a docstring in Google's form."""
    lines = (inspect.getdoc(function) or "").splitlines()
    if "Args:" not in lines:
        return {}
    texts: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Args:") + 1 :]:
        indent = len(line) - len(line.lstrip())
        if not line.strip() or indent == 0:
            break
        if indent == 2:
            name, _, text = line.strip().partition(": ")
            texts[name] = text
        else:
            texts[name] += " " + line.strip()
    for joined in [name for name in texts if ", " in name]:
        texts |= dict.fromkeys(joined.split(", "), texts.pop(joined))
    return {name.lstrip("*"): text.replace("``", "").replace("`", "") for name, text in texts.items()}


def _options(function: Callable[..., Any], ours: set[str]) -> dict[str, inspect.Parameter]:
    hints = typing.get_type_hints(function if inspect.isfunction(function) else function.__init__)
    return {
        name: parameter.replace(annotation=hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ours and parameter.kind is not parameter.VAR_KEYWORD
    }


def _set_default(section: ConfigDict, key: str, parameter: inspect.Parameter) -> None:
    """Sets a key to its default; None becomes a placeholder of the annotated type, so that a flag can be parsed."""
    if parameter.default not in (None, inspect.Parameter.empty):
        section[key] = parameter.default
        return
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    simple = [kind for kind in kinds if kind in (int, float, str, bool)]
    section[key] = config_dict.placeholder(simple[0] if simple else object)


# --- The straight line ---


def train(config: ConfigDict, workdir: str | Path) -> dict[str, float]:
    """Trains what `config` describes, and returns what the result is worth.

    Started again with the same workdir it goes on from the newest good checkpoint, to the same bits.

    Args:
      config: sections as in `SECTIONS`, ``source``, ``mesh`` and ``seed``; a missing key has its function's default.
      workdir: gets ``config.json``, ``checkpoints/``, ``metrics.jsonl``, ``tensorboard/``, ``report.html``,
        ``mistakes.csv`` and ``export/`` (the model as timm reads it, with its classes and its transform).

    Returns:
      ``top1``, ``top5``, ``loss``, ``calibration_error`` and ``count``, on the test data.

    Raises:
      UserError: a mistake in the config, in the data or in the weights; or a loss that is not finite.
    """
    config, workdir, clock = complete(config), Path(workdir), report.Clock()
    _check_values(config)
    with ExitStack() as stack:
        preemption = stack.enter_context(Preemption())  # first: to wait for the other processes may take minutes
        distributed.initialize()  # before anything that looks at the devices
        doubts: list[str] = []
        check_accelerator(doubts.append)  # before the console, which looks at them, too
        console = stack.enter_context(report.Console())
        stack.enter_context(_told_of_the_disk(workdir))
        for doubt in doubts:
            console.warn(doubt)

        # Devices and data. Data tells its classes, its channels and its length once.
        if config.checkpoint.best not in (None, *METRICS):
            raise unknown("metric of checkpoint.best", config.checkpoint.best, METRICS)
        mesh = make_mesh(config.mesh.to_dict(), devices=wanted_devices(config.mesh))
        process = process_share(mesh)
        loop = Loop(**config.train)
        batch_size, eval_batch_size = config.data.batch_size, config.data.eval_batch_size or config.data.batch_size
        check_batch_size(batch_size, mesh, accumulate=loop.accumulate)
        check_batch_size(eval_batch_size, mesh)
        _check_groups(loop, batch_size)
        with clock.part("data preparation"):
            parts = source.open_source(**_given(config.source))
            keep = {"memory_limit": config.data.memory_limit, "max_corrupt": config.data.max_corrupt}
            data = {
                name: pipeline.prepare(part, **keep, say=console.warn)
                for name, part in parts._asdict().items()
                if part is not None
            }
        if not {"train"} < set(data):
            raise UserError("a run needs a train part, and a validation or test part to tell what it learned")
        classes, channels = data["train"].source.classes, data["train"].channels
        steps_per_epoch = len(data["train"]) / batch_size
        steps = total_steps(loop, steps_per_epoch)

        # The model, the optimizer and the step, from shapes alone.
        stored = None if data["train"].stored is None else data["train"].stored.shape[1:]
        program = train_program(
            config, mesh, num_classes=len(classes), channels=channels, stored=stored, steps_per_epoch=steps_per_epoch
        )
        preprocess, graph = program.preprocess, program.graph
        abstract, shardings = program.abstract, program.shardings

        # Where the run starts: this workdir's newest good checkpoint, else the given weights, else random.
        started = check_config(workdir, config.to_dict(), may_differ=MAY_DIFFER)
        if started:  # nothing in it is looked at while another run may be writing
            stack.enter_context(lock(workdir))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, config=config.to_dict(), say=console.warn, **config.checkpoint)
        )
        with clock.part("start"):
            restored = checkpoints.restore(abstract, shardings)
            state = restored.state if restored else initialise(program.create, program.build(weights=True), shardings)
        start = restored.step if restored else 0

        # What happens to a batch on the devices in evaluation.
        step_of = functools.partial(
            _eval_step, graph, mesh, make_loss(kind=config.loss.kind), config.loss.kind, preprocess, evaluated_model
        )
        assess = functools.partial(
            assess_part,
            step_of=step_of,
            mesh=mesh,
            preprocess=preprocess,
            batch_size=eval_batch_size,
            workers=config.data.workers,
            process=process,
            classes=len(classes),
            console=console,
            told_to_stop=preemption.check,
        )
        batches = pipeline.prefetch(
            pipeline.train_batches(
                data["train"],
                batch_size=batch_size,
                image_size=preprocess.image_size,
                seed=config.seed,
                start_step=start,
                stop_step=steps,
                crop=host_crop(config),
                workers=config.data.workers,
                process=process,
            ),
            functools.partial(shard_batch, mesh=mesh),
        )
        total, trainable = parameter_counts(abstract["model"])
        console.start(
            model=config.model.name,
            parameters=total,
            trainable=trainable,
            dataset=config.source.name,
            classes=len(classes),
            data={name: len(part) for name, part in data.items()},
            steps=steps,
            steps_per_epoch=steps_per_epoch,
            first_step=start,
            workdir=workdir,
        )

        # Whatever was wrong with config, data and weights has been told by now: the first files are written.
        if not started:
            stack.enter_context(lock(workdir))
            if distributed.is_main() and check_config(workdir, config.to_dict(), may_differ=MAY_DIFFER):
                raise UserError(f"another run has begun in {workdir} meanwhile; take another workdir, or try again")
        write_config(workdir, config.to_dict())
        watch = _Watch(
            workdir,
            resume_step=start,
            skip=loop.not_finite == "skip",
            images=data["train"].source.where,
            say=console.warn,
        )
        metrics = stack.enter_context(report.MetricsWriter(workdir, resume_step=start if restored else None))

        for text in _doubts(config, steps=steps, restored=start > 0):
            console.warn(text)
        # The loop. Numbers are fetched now and then, so that the devices never wait for the host.
        watched = "validation" if "validation" in data else "test"
        if start < steps:
            # The evaluation's program first: what would not fit is known at once, and no compilation comes later on, in
            # which the process would be deaf.
            console.note("compiling the evaluation and the step ...")
            with clock.part("compile"):
                blank = pipeline.blank_batch(data[watched], eval_batch_size // process[1], preprocess.image_size)
                evaluation_step = step_of(data[watched].stored is not None)
                jax.block_until_ready(evaluation_step(state, shard_batch(blank, mesh)))
        else:
            console.note("this run is finished: no step is left to train")
        evaluate_every = max(loop.evaluate_every * steps_per_epoch, 1)  # not whole: epochs follow without a gap
        step, result = start, None
        best, worse = _standing(workdir, watched)
        position = restored.position if restored else {}
        recent = [{key: np.float32(x) for key, x in values.items()} for values in position.get("recent", ())]
        due = position.get("evaluation_due", False)  # the run was told to stop while it evaluated

        def save() -> None:
            if recent:
                watch.look(recent, step)
            with clock.part("checkpoint"):
                position = {"step": step, "recent": _floats(recent), "evaluation_due": due}
                checkpoints.save(step, state, position=position)

        def save_and_stop() -> NoReturn:
            save()
            checkpoints.wait()
            raise Preempted(f"told to stop at step {step:,}, which is saved; the same command goes on")

        while due or (step < steps and (loop.patience is None or worse < loop.patience)):
            if not due:
                with clock.part("data wait"):
                    batch = next(batches)
                with (
                    clock.part("compile") if step == start else nullcontext()
                ):  # the clock takes what is left for steps
                    state, values = program.step(state, batch)
                    if step == start:
                        jax.block_until_ready(values)
                        preemption.working()
                clock.step(batch_size)
                recent.append(values | {"index": batch["index"]})
                step += 1
                due = step // evaluate_every > (step - 1) // evaluate_every or step == steps
                if due or step % loop.log_every == 0:
                    last = watch.look(recent, step)
                    recent, pace, epoch = [], clock.lap(), step / steps_per_epoch
                    metrics.write(step, "train", last | pace, epoch=epoch)
                    pace.pop("step_seconds", None)
                    console.step(step, epoch=epoch, loss=last["loss"], **pace)
            if due:
                try:
                    with clock.part("evaluation"):
                        result = assess(data[watched], state=state, name=watched)
                except Preempted:
                    save_and_stop()
                if step > start:  # else the step is not compiled yet, and what was lost is one evaluation
                    preemption.working()
                better = best is None or result.top1 > best
                kept = better or result.top1 == best  # of equals the newest, which will be the result
                best, worse = (result.top1, 0) if better else (best, worse + 1)
                metrics.write(step, watched, result.scalars(), epoch=step / steps_per_epoch)
                console.result(
                    _headline(result),
                    name=watched,
                    step=step,
                    epoch=step / steps_per_epoch,
                    best=kept and watched != "test",
                )
                with clock.part("checkpoint"):
                    checkpoints.save(step, state, position={"step": step}, metrics=result.scalars(), anew=step == start)
                due = False
            elif loop.save_every and step % loop.save_every == 0:
                save()
            if preemption.check():
                save_and_stop()

        batches.close()  # ends the workers; the memory that they share goes with the last batch
        batch = None
        if step < steps:
            console.note(f"stopped early: {worse} evaluations without a better top-1")

        # The result: the best by the validation data; without those nothing may be chosen, and the last one counts.
        with clock.part("checkpoint"):
            checkpoints.wait()
        preemption.nothing_to_lose()
        chosen, reason = step, "the best on the validation data"
        if watched != "validation":
            reason = "the last: no validation data to choose by"
        elif checkpoints.best_step() not in (None, step):
            try:
                restored = checkpoints.restore(abstract, shardings, step="best")
                assert restored is not None
                state, chosen, result = restored.state, restored.step, None
            except UserError as e:  # it is damaged; the work of a whole run is not thrown away for that
                console.warn(str(e))
                reason = "the last: the best cannot be read"
        console.note(f"exported is the model of step {chosen:,}, {reason}")
        final = "test" if "test" in data else watched
        if result is None or final != watched:
            with clock.part("evaluation"):
                result = assess(data[final], state=state, name=final)
        # Every process takes part in gathering the model; what follows is for one process and one device of it.
        model = gather_model(graph, state, shardings)
        state = restored = None  # of a model that only fits in parts there would be no room for both
        if distributed.is_main():
            with clock.part("report"):
                classifier = Classifier(partial.merge_lora(cast(Model, model)), tuple(classes), preprocess)
                save_classifier(workdir / "export", classifier)
                page = describe(
                    classifier,
                    result,
                    data[final],
                    title=config.model.name,
                    subtitle=f"{final} data of {config.source.name}, step {chosen:,} of {steps:,}",
                    notes=[*_notes(data), *_targets_note(config)],
                    config=config.to_dict(),
                    command=[Path(sys.argv[0]).name, *sys.argv[1:]],
                )
            path = report.write_report(workdir, replace(page, timing=clock.timing()))
            console.finish(
                final=_headline(result),
                timing=clock.timing(),
                files={
                    "report": path,
                    "mistakes": write_mistakes(workdir, tuple(classes), result, data[final]),
                    "model": workdir / "export",
                    "metrics": workdir / "metrics.jsonl",
                },
            )
        return result.scalars()


def evaluate(
    classifier: Classifier,
    data: str,
    *,
    split: str = "test",
    batch_size: int = 32,
    workers: int | None = None,
    report_dir: str | Path | None = None,
    max_corrupt: int = 10,
    quiet: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Returns what a classifier is worth on a data set.

    Args:
      classifier: from `jaxvision.create.load_classifier`.
      data: a folder with one folder for each class, or the name of a source.
      split: ``"train"``, ``"validation"`` or ``"test"``, of a source or of a folder that has such parts.
      batch_size: images at once.
      workers: as in training.
      report_dir: folder for ``report.html``; None writes none.
      max_corrupt: damaged pictures that are named and skipped.
      quiet: print nothing.
      **options: of the source.

    Raises:
      UserError: data that are not there, or of other classes than the model's.
    """
    clock = report.Clock()
    with report.Console(io.StringIO() if quiet else None) as console:
        if not Path(data).is_dir() and data not in source.SOURCES:
            raise UserError(f"no such folder: {data}; nor is it a source ({', '.join(source.SOURCES)})")
        if Path(data).is_dir():
            if options:
                raise UserError(f"a folder takes no option {min(options)!r}; a source does")
            folders = {path.name for depth in ("*", "*/*") for path in Path(data).glob(depth) if path.is_dir()}
            names = _spelled(classifier.classes, folders)
            chosen: Any = open_test_folder(data, names, split)
        else:
            chosen = source.open_source(data, **options).part(split)
            names = _spelled(classifier.classes, chosen.classes)
        if len(chosen.classes) != len(classifier.classes):
            raise UserError(f"{chosen.name} has {len(chosen.classes)} classes, the model {len(classifier.classes)}")
        pairs = zip(chosen.classes, names, strict=True)
        if differing := [f"{i} is {a!r} in the data, {b!r} in the model" for i, (a, b) in enumerate(pairs) if a != b]:
            # Names alone may differ ("3" and "class 3"); the same names in another order cannot be meant.
            if set(chosen.classes) == set(names):
                raise UserError(f"{chosen.name} numbers the model's classes in another order: {differing[0]}")
            console.warn(f"classes are compared by number, but their names differ: {differing[0]}")
        check_batch_size(batch_size, make_mesh(devices=jax.devices()[:1]))
        if report_dir is not None and (Path(report_dir) / "metrics.jsonl").exists():
            raise UserError(f"{report_dir} has the report of a training run, which would be lost; take another folder")
        try:
            if report_dir is not None:
                Path(report_dir).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UserError(f"cannot make the folder {report_dir}: {e.strerror or e}") from e
        pictures = pipeline.prepare(chosen, max_corrupt=max_corrupt, say=console.warn)
        mesh = make_mesh(devices=jax.devices()[:1])
        graph, state = nnx.split(classifier.model)
        console.start(
            model=classifier.model.architecture,
            parameters=parameter_counts(state)[0],
            dataset=chosen.name,
            classes=len(chosen.classes),
            data={split: len(chosen)},
        )
        with clock.part("evaluation"):
            result = assess_part(
                pictures,
                state=state,
                name=split,
                step_of=functools.partial(
                    _eval_step, graph, mesh, make_loss(), "softmax", classifier.preprocess, lambda merged: merged
                ),
                mesh=mesh,
                preprocess=classifier.preprocess,
                batch_size=batch_size,
                workers=workers,
                process=(0, 1),
                classes=len(classifier.classes),
                console=console,
            )
        files = {}
        if report_dir is not None:
            page = describe(
                classifier,
                result,
                pictures,
                title=classifier.model.architecture,
                subtitle=f"evaluated on {chosen.name}",
                notes=_notes({split: pictures}),
                command=[Path(sys.argv[0]).name, *sys.argv[1:]],
            )
            with _told_of_the_disk(Path(report_dir)):
                files["report"] = report.write_report(report_dir, replace(page, timing=clock.timing()))
                files["mistakes"] = write_mistakes(report_dir, classifier.classes, result, pictures)
        console.finish(final=_headline(result) | {"count": result.count}, timing=clock.timing(), files=files)
        return result.scalars()


def plan(
    config: ConfigDict,
    *,
    topology: str | None = None,
    device: str | None = None,
    num_classes: int = 1000,
    channels: int = 3,
    stored: int | None = None,
    compare: bool = True,
    search: bool = True,
    quick: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> planning.Answer:
    """Returns what the train step of `config` would take, compiled for devices that need not be there.

    No parameter is allocated and no data are read, so what data tell is given here.

    Args:
      config: as for `train`.
      topology: TPUs to compile for, such as ``v5e:16x16``; needs libtpu.
      device: a GPU such as ``h100``, or a memory such as ``8GB``: compiled for the backend at hand, which is the
        program that would run only on a GPU of that kind, and rough on a CPU.
      num_classes: of the data.
      channels: of the pictures.
      stored: side of small pictures, in pixels, that are kept in memory and cropped on the device; None: the workers
        crop them.
      compare: compare the config's mesh with `planning.candidates`, each of which is compiled.
      search: look for the largest batch on the best of them, which takes up to four further compilations.
      quick: ask a TPU's compiler for its least effort: a fraction of the time for a convnet, and a program that is
        larger and reads more than the one that would run.
      say: told what goes on.

    Raises:
      UserError: a mistake in the config, or an unknown device.
      MissingPackage: no libtpu.
    """
    config = complete(config)
    _check_values(config)
    if (topology is None) == (device is None):
        raise UserError("a plan is for one topology (--topology v5e:2x4) or one device (--device a100-40g)")
    if topology is not None:
        devices, chip = planning.topology(topology)
    else:
        devices, chip = jax.devices()[:1], planning.device(cast(str, device))
    facts: dict[str, Any] = {
        "num_classes": num_classes,
        "channels": channels,
        "stored": None if stored is None else (stored, stored, channels),
        "steps_per_epoch": 1000.0,  # of the schedule: changes a constant of the program
    }
    if min(num_classes, channels, stored or 1, config.data.batch_size) < 1:
        raise UserError("a plan is for 1 or more classes, channels, pixels and images")
    accumulate, group = config.train.accumulate, config.train.batch_norm_group or 1

    def unit(mesh: jax.sharding.Mesh) -> int:
        """Returns the smallest batch."""
        return math.lcm(batch_devices(mesh), group) * accumulate

    def laid_out(mesh: jax.sharding.Mesh, zero1: bool) -> ConfigDict:
        ours = config.copy_and_resolve_references()
        ours.sharding.zero1 = zero1
        ours.data.batch_size = unit(mesh)
        return ours

    def at(mesh: jax.sharding.Mesh, zero1: bool, units: int) -> planning.Plan:
        """Returns the plan for so many times the smallest batch."""
        ours = laid_out(mesh, zero1)
        ours.data.batch_size *= units
        words = planning.mesh_text(mesh.shape, zero1=zero1)
        say(f"compiling the step of {ours.data.batch_size:,} images for {words} ...")
        program = train_program(ours, mesh, **facts)
        traced = program.step.trace(program.abstract, program.batch)
        done = useful = operations(traced.jaxpr.jaxpr)
        if ours.train.remat == "nothing":  # what is computed a second time is work, but not the model's
            ours.train.remat = "products"
            once = train_program(ours, mesh, **facts)
            useful = operations(once.step.trace(once.abstract, once.batch).jaxpr.jaxpr)
        return planning.read(
            traced,
            chip=chip,
            mesh=mesh,
            abstract=program.abstract,
            shardings=program.shardings,
            batch=program.batch,
            flops=done,
            useful=useful,
            ahead=pipeline.AHEAD,
            zero1=zero1,
            quick=quick,
            float32=config.model.dtype in (None, "float32"),
        )

    def units(mesh: jax.sharding.Mesh) -> int:
        return math.ceil(config.data.batch_size / unit(mesh))

    axes = [(config.mesh.to_dict(), config.sharding.zero1)]
    if compare and len(devices) > 1:
        axes += planning.candidates(devices)
    layouts: dict[Any, tuple[jax.sharding.Mesh, bool]] = {}  # those that lay the state out in the same way are one
    for sizes, zero1 in axes:
        mesh = make_mesh(sizes, devices=devices)
        program = train_program(laid_out(mesh, zero1), mesh, **facts)
        state = planning.state_bytes(program.abstract, program.shardings)
        layouts.setdefault((batch_devices(mesh), *state.values()), (mesh, zero1))
    found = [(at(mesh, zero1, units(mesh)), mesh) for mesh, zero1 in layouts.values()]
    best = planning.best([done for done, _ in found])
    mesh = next(mesh for done, mesh in found if done is best)
    known = {units(mesh): best}

    def used(n: int) -> float:
        if n not in known:
            known[n] = at(mesh, best.zero1, n)
        return known[n].total

    held = sum(best.bytes[kind] for kind in planning.STATE)
    limit = planning.largest(used, chip.memory, units(mesh), empty=held) if search else None
    return planning.Answer(
        plans=tuple(sorted((done for done, _ in found), key=lambda done: done is not best)),
        asked=config.data.batch_size,
        largest=None if limit is None else limit * unit(mesh),
        tried={done.batch_size: done.total for done in known.values()},
        assumptions=planning.assumptions(
            best, topology=topology, num_classes=num_classes, stored=stored, backend=jax.default_backend()
        ),
    )


def plan_scaling(config: ConfigDict, topologies: Sequence[str], **options: Any) -> dict[str, planning.Answer]:
    """Returns the plan for each of several topologies, with as many images on a chip of each.

    Args:
      config: as for `train`; its batch is the one of the first topology.
      topologies: such as ``["v5e:2x4", "v5e:16x16"]``.
      **options: of `plan`.

    Raises:
      UserError: as `plan` does.
    """
    chips = [len(planning.topology(name)[0]) for name in topologies]
    answers = {}
    for name, n in zip(topologies, chips, strict=True):
        ours = ConfigDict(config)
        ours.data = ConfigDict({**config.data, "batch_size": max(config.data.batch_size * n // chips[0], 1)})
        answers[name] = plan(ours, topology=name, search=False, **options)
    return answers


def _spelled(classes: Sequence[str], found: Collection[str]) -> Sequence[str]:
    """Returns `classes` as the data call them: ImageNet's come by their names, or as WordNet's identifiers."""
    by_wordnet = tuple(classes) == catalog.class_names() and not set(found).isdisjoint(catalog.synsets())
    return catalog.synsets() if by_wordnet else classes


# --- Its parts, in the order in which they are used ---


def wanted_devices(axes: Mapping[str, int]) -> list[jax.Device] | None:
    """Returns the first devices, if the mesh names fewer than there are; None for all.

    Of several processes each must have its part.
    """
    wanted = math.prod(axes.values())
    if jax.process_count() > 1:
        return None
    return jax.devices()[:wanted] if min(axes.values()) > 0 and wanted < jax.device_count() else None


def total_steps(loop: Loop, steps_per_epoch: float) -> int:
    """Returns how many steps a run takes."""
    return loop.steps or max(math.ceil(loop.epochs * steps_per_epoch), 1)


@dataclass(frozen=True)
class Program:
    """The train step of a config, and the shapes of all that it works on; no array exists yet.

    Attributes:
      preprocess: the evaluation transform; it has the size and the normalisation that training shares.
      build: builds the model, ``weights=True`` or ``False``.
      create: makes the training state of a model.
      graph: structure of the state.
      abstract: shapes of the state.
      shardings: of the state.
      step: (state, batch) -> (state, metrics), from `make_train_step`.
      batch: shapes of the batch over all devices.
    """

    preprocess: Preprocess
    build: Callable[..., Model]
    create: Callable[..., Any]
    graph: nnx.GraphDef
    abstract: nnx.State
    shardings: Any
    step: Any
    batch: dict[str, jax.ShapeDtypeStruct]


def train_program(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    num_classes: int,
    channels: int,
    stored: tuple[int, ...] | None,
    steps_per_epoch: float,
) -> Program:
    """Returns the train step of a config for the devices of `mesh`, which need not be there.

    What trains, how fast, and where each array lives: the one place that decides it, for `train` and for `plan`.

    Args:
      config: completed.
      mesh: the devices.
      num_classes: of the data.
      channels: of the pictures.
      stored: shape [h, w, c] of pictures that are kept in memory and cropped on the device; None where the workers
        crop them.
      steps_per_epoch: for the schedule.
    """
    loop = Loop(**config.train)
    steps = total_steps(loop, steps_per_epoch)
    preprocess = preprocess_of(config, channels, small=stored is not None)
    build = functools.partial(build_model, config, num_classes, channels, preprocess.image_size)
    bare = functools.partial(build, weights=False)
    template = nnx.eval_shape(bare)
    rate = make_schedule(config.optimizer.learning_rate, steps=steps, **_schedule(config, steps_per_epoch, steps))
    tx = optim.create_optimizer(template, **{**config.optimizer, "learning_rate": rate})
    create = functools.partial(create_state, tx=tx, ema_decay=loop.ema_decay, ema_warmup=loop.ema_warmup)
    graph, abstract = abstract_state(create, bare)
    rules = make_rules(mesh, **config.sharding)
    shardings = state_shardings(abstract, mesh, rules.stored, moments=rules.moments, unused_ok=True)
    blocks = Blocks(mesh, rules, remat=loop.remat, scan=loop.scan)
    prepare = training_images(config, preprocess, num_classes, stored=stored is not None)
    shape = stored or (preprocess.image_size, preprocess.image_size, channels)
    batch = pipeline.batch_shapes(shape, config.data.batch_size)
    jax.eval_shape(prepare, batch, 0)
    step = make_train_step(
        graph,
        mesh=mesh,
        shardings=shardings,
        loss=make_loss(**config.loss),
        prepare=prepare,
        learning_rate=rate,
        accumulate=loop.accumulate,
        blocks=None if blocks.plain else blocks,
        batch_norm_group=loop.batch_norm_group,
    )
    return Program(preprocess, build, create, graph, abstract, shardings, step, batch)


def preprocess_of(config: ConfigDict, channels: int, *, small: bool) -> Preprocess:
    """Returns the evaluation transform: that of the weights where some are loaded, else a plain one; the section wins.

    Args:
      config: completed.
      channels: of the pictures.
      small: the pictures are small and all alike (CIFAR, digits), so that nothing should be cut off.
    """
    entry = catalog.lookup(config.model.name)
    size = config.model.image_size or entry.preprocess.image_size
    loaded = config.model.pretrained or config.model.checkpoint_path
    base = entry.preprocess if loaded else Preprocess(crop_pct=1.0 if small else 0.875)
    if own := exported(config.model.checkpoint_path, entry.architecture):
        base, size = own.preprocess, config.model.image_size or own.preprocess.image_size
    if small:
        base = replace(base, crop_pct=1.0)
    chosen = {key: value for key, value in config.preprocess.items() if value is not None}
    if channels == 1 and "mean" not in chosen:
        # Grey pictures: the colours' mean.
        chosen["mean"], chosen["std"] = (float(np.mean(base.mean)),), (float(np.mean(base.std)),)
    elif channels not in (1, 3) and "mean" not in chosen:
        chosen["mean"], chosen["std"] = (0.5,) * channels, (0.25,) * channels
    return replace(base, image_size=size, **chosen)


def build_model(config: ConfigDict, num_classes: int, channels: int, image_size: int, *, weights: bool) -> Model:
    """Returns the model of the config, with LoRA where it is asked for.

    Args:
      config: completed.
      num_classes: of the data.
      channels: of the pictures.
      image_size: side in pixels.
      weights: load the weights that the config names; False only builds (under `nnx.eval_shape`, at no cost).
    """
    options = _given(config.model) | {"num_classes": num_classes, "in_channels": channels, "image_size": image_size}
    if not weights:
        options |= {"pretrained": False, "checkpoint_path": None, "revision": None}
    model = create_model(**options, seed=config.seed)
    if config.lora.rank:
        partial.add_lora(model, **config.lora, rngs=nnx.Rngs(config.seed + 2))
    return model


def training_images(
    config: ConfigDict, preprocess: Preprocess, num_classes: int, *, stored: bool
) -> Callable[..., Any]:
    """Returns (batch, step) -> (images, targets), for inside the train step.

    Labels stay numbers unless pictures are mixed, so that the step can tell the accuracy.
    """
    options = dict(config.augment)
    if not stored:
        options["crop"] = "none"  # the workers have cropped
    mixes = bool(options["mixup"] or options["cutmix"])
    fixed = {
        "seed": config.seed,
        "num_classes": num_classes,
        "image_size": preprocess.image_size,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }

    def prepare(batch: Mapping[str, Any], step: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, targets = on_device.augment_batch(batch, step=step, **options, **fixed)
        return images, targets if mixes else batch["label"]

    return prepare


def host_crop(config: ConfigDict) -> dict[str, Any] | None:
    """Returns the options of the workers' random crop, or None where the config crops nothing."""
    if config.augment.crop not in ("none", "resized"):
        raise unknown("augment.crop", config.augment.crop, ("none", "resized"))
    if config.augment.crop == "none":
        return None
    keys = {"scale": "crop_scale", "ratio": "crop_ratio", "interpolation": "interpolation"}
    return {ours: config.augment[key] for ours, key in keys.items()}


def assess_part(
    pictures: pipeline.Pictures,
    *,
    state: nnx.State,
    name: str,
    step_of: Callable[[bool], Any],
    mesh: jax.sharding.Mesh,
    preprocess: Preprocess,
    batch_size: int,
    workers: int | None,
    process: tuple[int, int],
    classes: int,
    console: report.Console,
    told_to_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Returns what the model in `state` is worth on one part of the data.

    Raises:
      Preempted: told to stop on the way.
    """

    def unless_stopped(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if told_to_stop():
                raise Preempted(f"told to stop while the {name} data were evaluated; the same command goes on")
            yield batch

    batches = pipeline.eval_batches(
        pictures, batch_size=batch_size, preprocess=preprocess, workers=workers, process=process
    )
    placed = pipeline.prefetch(batches, functools.partial(shard_batch, mesh=mesh))
    total = pipeline.eval_steps(len(pictures), batch_size)
    shown = console.evaluation(unless_stopped(placed), total=total, name=name)
    return evaluate_batches(step_of(pictures.stored is not None), state, shown, classes=classes)


@functools.lru_cache(maxsize=8)
def _eval_step(graph, mesh, loss, probabilities, preprocess, model_of, stored):
    # Cached: each evaluation of a run is the same program, and must not be compiled anew.
    return make_eval_step(
        graph,
        mesh=mesh,
        loss=loss,
        probabilities=probabilities,
        prepare=lambda batch: on_device.prepare_eval(batch, preprocess=preprocess, resize=stored),
        model_of=model_of,
    )


def describe(
    classifier: Classifier,
    result: Evaluation,
    pictures: pipeline.Pictures,
    *,
    mistakes: int = 24,
    explanations: int = 8,
    **facts: Any,
) -> report.Report:
    """Returns the report's page on an evaluation: numbers, mistakes as pictures, and where the model looked.

    Args:
      classifier: what was evaluated.
      result: what came out.
      pictures: what it was evaluated on.
      mistakes: how many of the most confident ones are shown.
      explanations: how many pictures are explained: half of them mistakes, where there are that many.
      **facts: further fields of `jaxvision.report.Report`.
    """
    model, preprocess = classifier.model, classifier.preprocess
    whole = replace(preprocess, image_size=max(preprocess.image_size, 96), crop_pct=1.0)

    def picture(row: int, over: np.ndarray | None = None, image: np.ndarray | None = None) -> report.Picture:
        index = int(result.index[row])
        if image is None:
            image = pictures.picture(index)
            if max(image.shape[:2]) > 160:
                image = pipeline.host.eval_transform(image, replace(whole, image_size=160))
        return report.Picture(
            image=image,
            overlay=over,
            true=int(result.label[row]),
            predicted=int(result.prediction[row]),
            confidence=float(result.confidence[row]),
            where=pictures.source.where(index),
        )

    wrong = result.mistakes(mistakes)
    right = np.flatnonzero(result.prediction == result.label)
    spread = right[np.linspace(0, len(right) - 1, min(explanations, len(right))).astype(int)] if len(right) else right
    half = min(len(wrong), explanations // 2)
    explained = [*wrong[:half], *spread[: explanations - half]]
    shown = []
    if explained:
        pixels = np.stack(
            [pipeline.host.eval_transform(pictures.picture(int(result.index[row])), preprocess) for row in explained]
        )
        images = on_device.normalise(pixels, preprocess.mean, preprocess.std)
        heats = np.asarray(jax.jit(explain)(model, images))
        for row, image, heat in zip(explained, pixels, heats, strict=True):
            image = pipeline.host.eval_transform(image, replace(whole, image_size=max(image.shape[0], 128)))
            image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
            shown.append(picture(row, over=overlay(image, heat), image=image))
    return report.Report(
        metrics=_headline(result),
        classes=classifier.classes,
        label=result.label,
        prediction=result.prediction,
        confidence=result.confidence,
        mistakes=[picture(row) for row in wrong],
        explanations=shown,
        explanation_method="attention rollout" if model.family == "vit" else "Grad-CAM",
        **facts,
    )


def write_mistakes(folder: str | Path, classes: Sequence[str], result: Evaluation, pictures: pipeline.Pictures) -> Path:
    """Writes ``mistakes.csv``, every wrong answer, the most confident first; returns its path."""
    path = Path(folder) / "mistakes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "true", "predicted", "confidence"])
        for row in result.mistakes(result.count):
            where = pictures.source.where(int(result.index[row]))
            names = classes[result.label[row]], classes[result.prediction[row]]
            rows.writerow([where, *names, f"{result.confidence[row]:.4f}"])
    return path


def parameter_counts(model_state: nnx.State) -> tuple[int, int]:
    """Returns (all, trainable) parameters, from arrays or shapes."""
    trainable = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.filter_state(model_state, nnx.Param)))
    frozen = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.filter_state(model_state, partial.Frozen)))
    return trainable + frozen, trainable


def _given(section: ConfigDict) -> dict[str, Any]:
    """Returns the keys of a section that have a value: None means that the function's own default holds."""
    return {key: value for key, value in section.items() if value is not None}


def _schedule(config: ConfigDict, steps_per_epoch: float, steps: int) -> dict[str, Any]:
    options = dict(config.schedule)
    epochs = options.pop("warmup_epochs")
    if epochs is not None:
        options["warmup_steps"] = min(round(epochs * steps_per_epoch), steps - 1)
    return options


def _step_of(line: str) -> float:
    """Returns the step of a line of not_finite.jsonl; infinity for one that was not written to its end."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class _Watch:
    """Looks at the metrics of each step. A step that was not finite goes into ``not_finite.jsonl``, with its images.

    Args:
      workdir: folder of the run.
      resume_step: the step that was restored. What is listed past it will happen again, and is dropped.
      skip: go on after such a step, though not after ten in a row.
      images: what an image is called.
      say: called with a line for each step that is skipped.
    """

    MOST_IN_A_ROW = 10

    def __init__(
        self,
        workdir: Path,
        *,
        resume_step: int,
        skip: bool,
        images: Callable[[int], str],
        say: Callable[[str], None],
    ):
        self._path = workdir / "not_finite.jsonl"
        self._skip, self._images, self._say = skip, images, say
        self._in_a_row = 0
        if distributed.is_main() and self._path.exists():
            listed = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in listed if _step_of(line) <= resume_step]
            write_atomically(self._path, "".join(kept))

    def look(self, recent: Sequence[dict[str, Any]], step: int) -> dict[str, float]:
        """Returns the mean of the metrics of the steps up to `step`; steps that were not finite do not count.

        Each step is looked at once: it loses its ``index``.

        Raises:
          UserError: a step was not finite and is not to be skipped, or was the last of too many.
        """
        fetched = jax.device_get([{key: x for key, x in values.items() if key != "index"} for values in recent])
        for i, values in enumerate(fetched):
            if "index" not in recent[i]:
                continue
            index = recent[i].pop("index")
            self._in_a_row = 0 if values["finite"] else self._in_a_row + 1
            if not values["finite"]:
                self._tell(step - len(recent) + 1 + i, values, index)
        finite = [values for values in fetched if values["finite"]] or fetched[-1:]
        means = {key: float(np.mean([values[key] for values in finite])) for key in finite[0] if key != "finite"}
        return means | {"learning_rate": float(fetched[-1]["learning_rate"])}

    def _tell(self, step: int, values: Mapping[str, Any], index: jax.Array) -> None:
        names = [self._images(int(n)) for n in _everywhere(index)]
        if distributed.is_main():
            line = {"step": step, "loss": str(values["loss"]), "grad_norm": str(values["grad_norm"]), "images": names}
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if not self._skip or self._in_a_row >= self.MOST_IN_A_ROW:
            check_finite(values, step)
        self._say(f"step {step}: loss or gradient is not finite; skipped (its images: {self._path})")


@contextmanager
def _told_of_the_disk(folder: Path) -> Iterator[None]:
    """Makes a user's error of a disk that is full, or cannot be written to."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        raise UserError(
            f"{e.filename or folder}: {e.strerror}; what was saved before stands, and once that is mended the same "
            f"command goes on"
        ) from e


def _everywhere(x: jax.Array) -> np.ndarray:
    """Returns a global array on this host, as every process asks for it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _floats(recent: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Returns metrics of steps as JSON can hold them, to the bit."""
    fetched = jax.device_get([{key: x for key, x in values.items() if key != "index"} for values in recent])
    return [{key: float(x) for key, x in values.items()} for values in fetched]


def _doubts(config: ConfigDict, *, steps: int, restored: bool) -> list[str]:
    """Returns what a user may not have meant."""
    if restored:
        return []
    loaded, model = config.model.pretrained or config.model.checkpoint_path, config.model
    doubts = []
    if not loaded and (model.freeze_backbone or model.freeze_layers or model.freeze or config.lora.rank):
        doubts.append("what is frozen has random weights; set model.pretrained or model.checkpoint_path")
    if steps < 100:
        doubts.append(f"{steps} steps in all are few; a smaller data.batch_size or more train.epochs make more")
    return doubts


def _check_groups(loop: Loop, batch_size: int) -> None:
    images, group = batch_size // loop.accumulate, loop.batch_norm_group or 1
    if images % group:
        raise UserError(f"train.batch_norm_group={group} does not divide the {images} images of a (micro)batch")


def _check_mesh(axes: Any) -> None:
    if not isinstance(axes, Mapping | ConfigDict) or not axes:
        raise UserError(f"config.mesh names axes and their sizes, such as {{'data': -1}}; got {axes!r}")
    for name, size in axes.items():
        if name not in AXES:
            raise unknown("axis of config.mesh", name, AXES)
        if type(size) is not int:
            raise UserError(f"config.mesh.{name} is a whole number, or -1 for what the others leave; got {size!r}")


def _check_values(config: ConfigDict) -> None:
    """Raises for a key that must be given and is not, and for numbers that make no sense."""
    _check_mesh(config.mesh)
    sections = {"source": ((source.source_function(config.source.name),), set()), **SECTIONS}
    for name, (functions, ours) in sections.items():
        for function in functions:
            for key, parameter in _options(function, ours).items():
                if parameter.default is parameter.empty and config[name].get(key) is None:
                    raise UserError(f"the config needs {name}.{key}: --config.{name}.{key}=... or a line in the file")
    least: dict[str, float] = {
        "optimizer.weight_decay": 0, "data.max_corrupt": 0, "data.memory_limit": 0, "data.workers": 0,
        "model.image_size": 1, "data.eval_batch_size": 1,
    }  # fmt: skip
    for name, smallest in least.items():
        section, key = name.split(".")
        value = config[section].get(key)
        if value is not None and not value >= smallest:
            raise UserError(f"{name} is {smallest} or more, got {value}")
    if not 0 < config.optimizer.learning_rate < math.inf:
        raise UserError(f"optimizer.learning_rate is a number above 0, got {config.optimizer.learning_rate}")
    for key in ("mean", "std"):
        value = config.preprocess[key]
        if value is not None and (not isinstance(value, tuple | list) or (key == "std" and min(value) <= 0)):
            raise UserError(f"preprocess.{key} has one number for each channel, above 0 for std; got {value!r}")


def _standing(workdir: Path, split: str) -> tuple[float | None, int]:
    """Returns the best top-1 so far, and how many evaluations there were since: what a run that goes on must know."""
    best, worse = None, 0
    for line in report.read_metrics(workdir):
        if line["split"] == split:
            better = best is None or line["top1"] > best
            best, worse = (line["top1"], 0) if better else (best, worse + 1)
    return best, worse


def _headline(result: Evaluation) -> dict[str, float]:
    left_out = {"count", "top5"} if result.classes <= 5 else {"count"}  # of five classes, five are always right
    return {key: value for key, value in result.scalars().items() if key not in left_out}


def _targets_note(config: ConfigDict) -> list[str]:
    softened = {
        "label smoothing": config.loss.label_smoothing,
        "mixup": config.augment.mixup,
        "cutmix": config.augment.cutmix,
    }
    names = [name for name, strength in softened.items() if strength]
    if not names:
        return []
    return [f"The training loss is with {', '.join(names)}, the evaluation's without: they do not compare."]


def _notes(data: Mapping[str, pipeline.Pictures]) -> list[str]:
    return [
        f"{len(part.corrupt)} damaged pictures of the {name} data were skipped: "
        + ", ".join(where for where, _ in list(part.corrupt.values())[:5])
        for name, part in data.items()
        if part.corrupt
    ]
