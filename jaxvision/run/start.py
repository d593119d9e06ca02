"""Where a run starts: the newest intact checkpoint of its workdir, else the given weights, else random ones."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxvision import report
from jaxvision.checkpoint import Checkpoint, Checkpoints
from jaxvision.data import order
from jaxvision.data.dataset import Dataset
from jaxvision.data.pool import Batch
from jaxvision.data.prefetch import prefetch
from jaxvision.data.source import names_checksum
from jaxvision.errors import UserError, count
from jaxvision.parallel import distributed
from jaxvision.parallel.mesh import mesh_text, shard_batch
from jaxvision.parallel.rules import state_bytes
from jaxvision.run.context import RunContext
from jaxvision.run.head import images_to_probe, start_with_probe
from jaxvision.run.loop import TrainingLoop
from jaxvision.run.not_finite import NonFiniteSteps
from jaxvision.run.recipe import AUTO
from jaxvision.run.recorded import read_classifier_record, write_classifier_record
from jaxvision.run.sections import MAY_DIFFER
from jaxvision.run.teacher import cached_outputs
from jaxvision.run.workdir import check_config, config_record, lock, write_config
from jaxvision.train.distill import weights_checksum
from jaxvision.train.partial import parameter_counts
from jaxvision.train.state import initialize
from jaxvision.weights.weight_file import first_names


def start_loop(run: RunContext, stack: ExitStack) -> TrainingLoop:
    """Returns the training loop at its first step. Writes the first files once everything is known to fit.

    Args:
      run: the context.
      stack: closes the checkpoints and the metrics, and releases the lock of the workdir.

    Raises:
      UserError: the workdir belongs to another config, other data or another run; or the weights do not fit.
    """
    workdir, console, program = run.workdir, run.console, run.program
    record = config_record(run.config)
    is_resumed = check_config(workdir, record, may_differ=MAY_DIFFER)
    if is_resumed:  # before anything is read, because another run may be writing
        stack.enter_context(lock(workdir))
    checkpoints = stack.enter_context(Checkpoints(workdir, config=record, log=console.warn, **run.checkpoint_options))
    with run.clock.phase("start"):
        if checkpoints.steps():
            _check_same_number_of_classes(run)  # before the weights, which would only have other shapes
        restored = checkpoints.restore(program.abstract, program.shardings)
        start = restored or Checkpoint(
            step=0,
            state=initialize(program.create, functools.partial(program.build, weights=True), program.shardings),
            position={},
            metrics={},
        )
        teacher: Any = None if program.teacher is None else program.teacher.load()
    fingerprint = _fingerprint(run)
    _check_same_data(run, start, fingerprint)
    fingerprint |= _check_teacher(run, start, teacher)
    batches = prefetch(_train_batches(run, start.step), functools.partial(shard_batch, mesh=run.mesh))
    stack.callback(batches.close)
    probed = images_to_probe(run) if restored is None and run.options.head_init == "probe" else None
    _announce(run, start.step)
    if program.teacher is not None and program.teacher.distillation.cached:
        with run.clock.phase("start"):
            teacher = cached_outputs(run, teacher)

    # The config, the data, the classes and the weights fit, so the first files may be written.
    if not is_resumed:
        stack.enter_context(lock(workdir))
        if distributed.is_main() and check_config(workdir, record, may_differ=MAY_DIFFER):
            raise UserError(f"{workdir}: another run has just started in it. Choose another --workdir.")
    write_config(workdir, record)
    write_classifier_record(run)
    non_finite = NonFiniteSteps(
        workdir,
        resume_step=start.step,
        skip=run.options.not_finite == "skip",
        image_name=run.data["train"].source.where,
        log=console.warn,
    )
    metrics = stack.enter_context(report.MetricsWriter(workdir, resume_step=start.step if restored else None))
    if start.step == 0:
        for warning in [*_unlikely_settings(run.config, run.steps, len(run.data["train"])), *_few_images(run)]:
            console.warn(warning)
    if probed is not None:
        leaves = start.state["model"]
        del start  # frees the optimizer's state and the average, which are made again with the new head
        start = start_with_probe(run, leaves, probed)
        with run.clock.phase("checkpoint"):  # now, because SIGTERM ends the process at once until a step is done
            checkpoints.save(0, start.state, position={**start.position, "step": 0, "data": fingerprint})
            checkpoints.wait()
    return TrainingLoop(
        run,
        start,
        data_fingerprint=fingerprint,
        batches=batches,
        checkpoints=checkpoints,
        metrics=metrics,
        non_finite=non_finite,
        teacher=teacher,
    )


def data_fingerprint(images: Dataset) -> dict[str, int]:
    """Returns what identifies the images of each step.

    That is their number, checksums of their classes, labels and file names, and the version of the order. The location
    of the dataset is not part of it, so the dataset may be moved.
    """
    source = images.source
    labels = b"" if source.labels is None else np.asarray(source.labels, np.int32).tobytes()
    return {
        "images": len(images),
        "classes": zlib.crc32("\n".join(source.classes).encode("utf-8", "surrogateescape")),
        "labels": zlib.crc32(labels),
        "files": names_checksum(source),
        "order": order.VERSION,
    }


def fingerprint_checksum(images: Dataset) -> int:
    """Returns a checksum of `data_fingerprint`."""
    return zlib.crc32(repr(sorted(data_fingerprint(images).items())).encode())


def _fingerprint(run: RunContext) -> dict[str, int]:
    """Returns that of the training data, and a checksum ``validation`` of the validation data; 0 if there are none.

    Metrics of other validation data cannot be compared with those before, which chose the best checkpoint so far.
    """
    validation = fingerprint_checksum(run.data["validation"]) if "validation" in run.data else 0
    return {**data_fingerprint(run.data["train"]), "validation": validation}


def _check_same_number_of_classes(run: RunContext) -> None:
    """Raises `UserError` if a run that resumes was started with fewer or more classes."""
    try:
        before = read_classifier_record(run.workdir).classes
    except UserError:  # is written again before the first step
        return
    if len(before) != len(run.classes):
        news = [f"{x!r} is new" for x in run.classes if x not in before]
        news += [f"{x!r} is gone" for x in before if x not in run.classes]
        named = ", ".join(news[:4]) + (", ..." if len(news) > 4 else "")
        counts = f"{count(len(before), 'class', 'classes')} then, {len(run.classes)} now"
        raise _other_data_error(run, "training", f"{counts} ({named})")


def _other_data_error(run: RunContext, kind: str, differences: str) -> UserError:
    return UserError(
        f"{run.workdir}: got other {kind} data than this run was started with: {differences}. Restore the dataset. To "
        f"start from the weights of this run instead, run `jaxvision convert {run.workdir} FOLDER`, then this command "
        "with --workdir NEW --config.model.checkpoint_path=FOLDER."
    )


def _check_same_data(run: RunContext, start: Checkpoint, fingerprint: dict[str, int]) -> None:
    """Raises `UserError` if a run that resumes was started with other data, or saw it in another order."""
    before = dict(start.position.get("data", {} if start.step else fingerprint))
    before.pop("teacher", None)  # `_check_teacher` compares it
    now = dict(fingerprint)
    if "validation" not in before:  # the checkpoint of an earlier version of jaxvision
        del now["validation"]
    version = before.get("order", 1)
    if version != order.VERSION:
        raise UserError(
            f"{run.workdir}: got a run whose images have order {version}, expected order {order.VERSION}, that of this "
            f"version of jaxvision. Finish it with the version that started it, or choose another --workdir."
        )
    if {**before, "validation": None} != {**now, "validation": None}:
        raise _other_data_error(run, "training", _differences(before, now))
    if before != now:
        found = f"{count(len(run.data['validation']), 'image')} now" if now["validation"] else "none now"
        found += " and other ones then" if before["validation"] else ", none then"
        raise _other_data_error(run, "validation", f"{found}, so their metrics cannot be compared")


def _check_teacher(run: RunContext, start: Checkpoint, state: nnx.State | None) -> dict[str, int]:
    """Returns the checksum of the teacher's weights, ``{"teacher": ...}``; nothing if there is no teacher.

    Raises:
      UserError: the run was started with other weights, or the teacher numbers the same classes in another order.
    """
    teacher = run.program.teacher
    if teacher is None or state is None:
        return {}
    checksum = weights_checksum(state)
    if start.position.get("data", {}).get("teacher", checksum) != checksum:
        raise UserError(
            f"{run.workdir}: got a teacher with other weights than this run was started with, {teacher.name}. Restore "
            "its weights, or choose another --workdir."
        )
    if teacher.distillation.kind != "features" and teacher.classes != run.classes:
        if sorted(teacher.classes) == sorted(run.classes):
            raise UserError(
                f"config.teacher.name: got {teacher.name}, whose classes have another order than those of the data. "
                "Train it on these data, or set teacher.kind=features."
            )
        if start.step == 0:
            run.console.warn(
                f"the classes of the teacher have other names than those of the data: {first_names(teacher.classes)} "
                f"instead of {first_names(run.classes)}. They are matched by their numbers."
            )
    return {"teacher": checksum}


def _differences(before: dict[str, int], now: dict[str, int]) -> str:
    """Returns what differs between two fingerprints, in words."""
    n = now["images"]
    if before["images"] != n:  # files and labels then differ as well
        others = ", and other classes" if before["classes"] != now["classes"] else ""
        return f"{before['images']:,} images then, {n:,} now{others}"
    words = {"classes": "other classes", "labels": "other labels", "files": "other files or another order of them"}
    changed = [text for key, text in words.items() if before[key] != now[key]]
    return f"{count(n, 'image')} then and now, but {', '.join(changed)}"


def _train_batches(run: RunContext, first_step: int) -> Iterator[Batch]:
    images = run.data["train"]
    return images.train_batches(
        batch_size=run.config.data.batch_size,
        image_size=run.program.preprocess.image_size,
        seed=run.config.seed,
        start_step=first_step,
        stop_step=run.steps,
        crop=images.pipeline.host_crop(run.config.augment),
        workers=run.workers,
        process=run.process,
    )


def _announce(run: RunContext, first_step: int) -> None:
    """Prints what is about to run."""
    total, trainable = parameter_counts(run.program.abstract["model"])
    run.console.start(
        model=run.config.model.name,
        teacher=None if run.program.teacher is None else run.program.teacher.name,
        parameters=total,
        trainable=trainable,
        dataset=run.config.source.name,
        classes=len(run.classes),
        data={name: len(images) for name, images in run.data.items()},
        mesh=_mesh_text(run),
        steps=run.steps,
        steps_per_epoch=run.steps_per_epoch,
        first_step=first_step,
        workdir=run.workdir,
    )
    if run.chosen:
        values = ", ".join(f"{key}={x if x is None else format(x, 'g')}" for key, x in run.chosen.items())
        images = len(run.data["train"])
        run.console.note(f'"auto" for this model and {images:,} training images: {values}')
    if run.mesh.size < jax.device_count():
        run.console.warn(
            f"config.mesh uses {run.mesh.size} of {jax.device_count()} devices. Set one axis to -1 to use all of them."
        )


def _mesh_text(run: RunContext) -> str | None:
    """Returns the mesh and the size of the state on each device; None for a single device."""
    if run.mesh.size == 1 == jax.device_count():
        return None
    abstract = run.program.abstract
    per_device = sum(state_bytes(abstract, run.program.shardings).values())
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    share = f"{per_device / 2**20:.1f} of {total / 2**20:.1f} MiB of state on each device"
    return f"{mesh_text(run.mesh.shape, zero1=run.config.sharding.zero1)}; {share}"


def _few_images(run: RunContext) -> list[str]:
    """Returns a warning if a checkpoint is chosen by a handful of images."""
    n = len(run.data[run.watched_split])
    if run.checkpoint_options["best"] is None or n >= 50:
        return []
    fix = "Add validation images, or set checkpoint.best=None to export the last step."
    if run.config.source.validation_fraction == AUTO:
        fix = "With so few images, also run `jaxvision probe`, whose cross-validation tests all of them."
    return [
        f"the best checkpoint is chosen by {count(n, 'validation image')}, so one image is {1 / n:.1%} of "
        f"{run.decisive_metric}. {fix}"
    ]


def _unlikely_settings(config: ConfigDict, steps: int, images: int) -> list[str]:
    """Returns warnings about settings that are valid, but probably not intended."""
    model = config.model
    is_loaded = model.pretrained or model.checkpoint_path
    freezes = (model.freeze_backbone, model.freeze_layers, model.freeze_batch_norm, model.freeze, config.lora.rank)
    is_frozen = any(freezes)
    warnings = []
    if is_frozen and not is_loaded:
        warnings.append("the frozen layers have random weights. Set model.pretrained or model.checkpoint_path.")
    if config.data.batch_size > images:
        warnings.append(
            f"data.batch_size: got {config.data.batch_size} for {count(images, 'training image')}, so each step "
            f"repeats images and takes more than an epoch. Set data.batch_size to {images} or less."
        )
    if steps < 100 and config.train.epochs != AUTO:
        warnings.append(
            f"training takes only {count(steps, 'step')}. Set a smaller data.batch_size or more train.epochs "
            f"for more steps."
        )
    decay = config.train.ema_decay
    if decay is not None and 1 / (1 - decay) > steps:
        limited = "the warm-up keeps the decay smaller" if config.train.ema_warmup else "the average stays untrained"
        warnings.append(
            f"config.train.ema_decay: got {decay}, which averages about {1 / (1 - decay):,.0f} steps, but training "
            f"takes only {steps:,}: {limited}. Set a smaller one, or train.ema_decay=None."
        )
    return warnings
