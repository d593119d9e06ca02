"""The train step of a config, from shapes alone: what trains, how fast, and where each array lives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxvision.augment import on_device
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import find_export
from jaxvision.create import create_model
from jaxvision.data import pipeline
from jaxvision.errors import unknown_name_error
from jaxvision.models.base import Model
from jaxvision.parallel.rules import make_rules, state_shardings
from jaxvision.run.sections import Loop, set_keys
from jaxvision.train import optim, partial
from jaxvision.train.blocks import Blocks
from jaxvision.train.loss import make_loss
from jaxvision.train.schedule import make_schedule
from jaxvision.train.state import abstract_state, create_state
from jaxvision.train.step import make_train_step
from jaxvision.weights import catalog


@dataclass(frozen=True)
class Program:
    """The train step of a config, and the shapes of all that it works on; no array exists yet.

    Attributes:
      preprocess: the evaluation transform; it has the size and the normalization that training shares.
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


def _schedule(config: ConfigDict, steps_per_epoch: float, steps: int) -> dict[str, Any]:
    options = dict(config.schedule)
    epochs = options.pop("warmup_epochs")
    if epochs is not None:
        options["warmup_steps"] = min(round(epochs * steps_per_epoch), steps - 1)
    return options


def total_steps(loop: Loop, steps_per_epoch: float) -> int:
    """Returns how many steps a run takes."""
    return loop.steps or max(math.ceil(loop.epochs * steps_per_epoch), 1)


def wanted_devices(axes: Mapping[str, int]) -> list[jax.Device] | None:
    """Returns the first devices, if the mesh names fewer than there are; None for all.

    Of several processes each must have its part.
    """
    wanted = math.prod(axes.values())
    if jax.process_count() > 1:
        return None
    return jax.devices()[:wanted] if min(axes.values()) > 0 and wanted < jax.device_count() else None


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
    if own := find_export(config.model.checkpoint_path, entry.architecture):
        base, size = own.preprocess, config.model.image_size or own.preprocess.image_size
    if small:
        base = replace(base, crop_pct=1.0)
    chosen = {key: value for key, value in config.preprocess.items() if value is not None}
    if channels == 1 and "mean" not in chosen:
        # Gray pictures: the colors' mean.
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
    options = set_keys(config.model) | {"num_classes": num_classes, "in_channels": channels, "image_size": image_size}
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
        raise unknown_name_error("augment.crop", config.augment.crop, ("none", "resized"))
    if config.augment.crop == "none":
        return None
    keys = {"scale": "crop_scale", "ratio": "crop_ratio", "interpolation": "interpolation"}
    return {ours: config.augment[key] for ours, key in keys.items()}
