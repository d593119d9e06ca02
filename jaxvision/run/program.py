"""The train step of a config, from shapes alone: what trains, at which rate, and where each array lives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx
from ml_collections import ConfigDict

from jaxvision.augment.preprocess import Preprocess
from jaxvision.create import create_model
from jaxvision.data.pipeline import InputPipeline, batch_shapes
from jaxvision.models.base import Model
from jaxvision.models.layers.mode import train_view
from jaxvision.parallel.mesh import batch_sharding
from jaxvision.parallel.rules import make_rules, state_shardings
from jaxvision.run.head import check_head
from jaxvision.run.sections import TrainOptions, without_none
from jaxvision.run.teacher import Teacher, find_teacher
from jaxvision.train import distill, optim, partial
from jaxvision.train.blocks import Blocks
from jaxvision.train.loss import make_loss
from jaxvision.train.schedule import make_schedule
from jaxvision.train.state import abstract_state, create_state
from jaxvision.train.step import make_train_step
from jaxvision.weights import catalog, files, foreign
from jaxvision.weights.folder import find_export


@dataclass(frozen=True)
class Program:
    """The train step of a config, and the shapes of everything that it works on. No array exists yet.

    Attributes:
      preprocess: the evaluation transform. Training has the same image size and normalization.
      build: builds the model, ``weights=True`` or ``weights=False``.
      create: makes the training state of a model.
      graph: structure of the state.
      model_graph: structure of the model.
      features: width of the pooled features that its head takes.
      abstract: shapes of the state, with their shardings.
      shardings: sharding of each leaf of the state.
      step: (state, batch) -> (state, metrics), from `make_train_step`.
      batch: shapes of a batch over all devices, with their sharding.
      teacher: from which the model also learns, or None.
    """

    preprocess: Preprocess
    build: Callable[..., Model]
    create: Callable[..., Any]
    graph: nnx.GraphDef
    model_graph: nnx.GraphDef
    features: int
    abstract: nnx.State
    shardings: Any
    step: Any
    batch: dict[str, jax.ShapeDtypeStruct]
    teacher: Teacher | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Shapes of the arguments of the step."""
        return (self.abstract, self.batch, *([self.teacher.abstract] if self.teacher else []))


def train_program(
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    *,
    num_classes: int,
    pipeline: InputPipeline,
    steps_per_epoch: float,
) -> Program:
    """Returns the train step of a config. `train` runs it, and `plan` compiles it without hardware.

    Args:
      config: completed.
      mesh: the devices; they may be descriptions of devices that this machine does not have.
      num_classes: number of classes of the data.
      pipeline: how the images reach the model.
      steps_per_epoch: batches per epoch, for the schedule.

    Raises:
      UserError: the config is wrong, or does not fit the mesh.
    """
    options = TrainOptions(**config.train)
    steps = total_steps(options, steps_per_epoch)
    preprocess = preprocess_of(config, pipeline)
    build = functools.partial(build_model, config, num_classes, pipeline.channels, preprocess)
    teacher = find_teacher(
        config,
        mesh,
        num_classes=num_classes,
        channels=pipeline.channels,
        num_images=round(steps_per_epoch * config.data.batch_size),
        student=preprocess,
    )
    if teacher is not None and teacher.distillation.kind == "features":
        build = functools.partial(_build_with_projection, build, teacher.num_features, config.seed + 3)
    bare = functools.partial(build, weights=False)
    template = nnx.eval_shape(bare)
    train_view(template, batch_norm_group=options.batch_norm_group)  # raises if there is no BatchNorm
    check_head(config, template)
    rate = make_schedule(config.optimizer.learning_rate, steps=steps, **_schedule(config, steps_per_epoch, steps))
    tx = optim.create_optimizer(template, **{**config.optimizer, "learning_rate": rate})
    create = functools.partial(create_state, tx=tx, ema_decay=options.ema_decay, ema_warmup=options.ema_warmup)
    graph, abstract = abstract_state(create, bare)
    rules = make_rules(mesh, template.tensor_rules, **config.sharding)
    shardings = state_shardings(abstract, mesh, rules.stored, moments=rules.moments, unused_ok=True)
    # With the shardings of the arrays to come, so that the first step reuses a trace that was made from shapes.
    abstract = jax.tree.map(lambda x, sharding: x.update(sharding=sharding), abstract, shardings)
    blocks = Blocks(mesh, rules, pattern=template.block_pattern, remat=options.remat, scan=options.scan)
    prepare = training_images(config, preprocess, num_classes, pipeline)
    batch = batch_shapes(
        pipeline,
        batch_size=config.data.batch_size,
        image_size=preprocess.image_size,
        sharding=batch_sharding(mesh),
    )
    step = make_train_step(
        graph,
        mesh=mesh,
        shardings=shardings,
        loss=make_loss(**config.loss),
        prepare=prepare,
        learning_rate=rate,
        accumulate=options.accumulate,
        blocks=None if blocks.is_default else blocks,
        batch_norm_group=options.batch_norm_group,
        distillation=None if teacher is None else teacher.distillation,
    )
    return Program(
        preprocess=preprocess,
        build=build,
        create=create,
        graph=graph,
        model_graph=nnx.graphdef(template),
        features=template.num_features,
        abstract=abstract,
        shardings=shardings,
        step=step,
        batch=batch,
        teacher=teacher,
    )


def _schedule(config: ConfigDict, steps_per_epoch: float, steps: int) -> dict[str, Any]:
    options = dict(config.schedule)
    epochs = options.pop("warmup_epochs")
    if epochs is not None:
        options["warmup_steps"] = min(round(epochs * steps_per_epoch), steps - 1)
    return options


def total_steps(options: TrainOptions, steps_per_epoch: float) -> int:
    """Returns the number of steps of a run."""
    return options.steps or max(math.ceil(float(options.epochs) * steps_per_epoch), 1)


def wanted_devices(axes: Mapping[str, int]) -> list[jax.Device] | None:
    """Returns the first devices if the mesh needs fewer than there are; None for all.

    With several processes it is always all, because each process needs its share of the mesh.
    """
    wanted = math.prod(axes.values())
    if jax.process_count() > 1:
        return None
    return jax.devices()[:wanted] if min(axes.values()) > 0 and wanted < jax.device_count() else None


def preprocess_of(config: ConfigDict, pipeline: InputPipeline) -> Preprocess:
    """Returns the evaluation transform: that of the loaded weights, else a default; config.preprocess overrides both.

    Args:
      config: completed.
      pipeline: how the images reach the model.
    """
    entry = catalog.lookup(config.model.name)
    loaded = config.model.pretrained or config.model.checkpoint_path
    base = entry.preprocess if loaded else Preprocess(crop_pct=0.875)
    if own := find_export(config.model.checkpoint_path, entry.architecture):
        base = own.preprocess
    size = config.model.image_size
    if size is None:
        size = (own or entry).preprocess.image_size
    base = replace(base.for_channels(pipeline.channels), crop_pct=pipeline.crop_pct(base.crop_pct))
    return replace(base, image_size=size, **without_none(config.preprocess))


def build_model(config: ConfigDict, num_classes: int, channels: int, preprocess: Preprocess, *, weights: bool) -> Model:
    """Returns the model of the config, with LoRA if ``lora.rank`` is set.

    Args:
      config: completed.
      num_classes: number of classes of the data.
      channels: number of channels of the images.
      preprocess: the transform of its images. Logs a warning if the library of the weights normalizes by another mean.
      weights: load the weights that the config names. False initializes at random; under `nnx.eval_shape` that takes
        neither time nor memory.
    """
    options = without_none(config.model) | {
        "num_classes": num_classes,
        "in_channels": channels,
        "image_size": preprocess.image_size,
    }
    path = config.model.checkpoint_path
    file = files.open_weights(path) if weights and path is not None else None
    if not weights:
        options |= {"pretrained": False, "checkpoint_path": None, "revision": None}
    elif file is not None:
        options["checkpoint_path"] = file
    model = create_model(**options, seed=config.seed)
    if file is not None:
        foreign.log_normalization(file, preprocess.mean)
    if config.lora.rank:
        partial.add_lora(model, **config.lora, rngs=nnx.Rngs(config.seed + 2))
    return model


def _build_with_projection(build: Callable[..., Model], features: int, seed: int, *, weights: bool) -> Model:
    return distill.add_projection(build(weights=weights), features, rngs=nnx.Rngs(seed))


def training_images(
    config: ConfigDict, preprocess: Preprocess, num_classes: int, pipeline: InputPipeline
) -> Callable[..., Any]:
    """Returns the function (batch, step) -> (images, targets) that runs inside the train step.

    Targets are class numbers, with which the step computes the accuracy, unless mixup or cutmix mixes images.
    """
    options = dict(config.augment)
    mixes = bool(options["mixup"] or options["cutmix"])
    fixed = {
        "seed": config.seed,
        "num_classes": num_classes,
        "image_size": preprocess.image_size,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }

    def prepare(batch: Mapping[str, Any], step: jax.Array) -> tuple[jax.Array, jax.Array]:
        augmented, targets = pipeline.augment(batch, step=step, **options, **fixed)
        return augmented, targets if mixes else batch["label"]

    return prepare
