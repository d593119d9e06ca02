"""The teacher of a config: which model it is, the shapes and places of its arrays, and its weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxvision.augment.preprocess import Preprocess
from jaxvision.create import create_model
from jaxvision.data.order import eval_steps
from jaxvision.data.prefetch import prefetch
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.models.layers.deferred import deferred, place_parts
from jaxvision.parallel.mesh import batch_sharding, replicated, shard_batch
from jaxvision.parallel.rules import make_rules, state_shardings
from jaxvision.train.blocks import Blocks
from jaxvision.train.distill import Distillation
from jaxvision.train.state import place_model
from jaxvision.weights import catalog, files, foreign
from jaxvision.weights.folder import find_export

if TYPE_CHECKING:
    from jaxvision.run.context import RunContext

#: How to set another normalization of a teacher; the keys of the section ``preprocess`` are the student's.
_SET_MEAN = (
    "Write a folder with jaxvision convert, replace mean and std in its config.json, and set teacher.name to the "
    "folder instead of teacher.checkpoint_path."
)


@dataclass(frozen=True)
class Teacher:
    """The teacher of a run. No array exists yet.

    Attributes:
      name: for messages.
      classes: names of its classes.
      num_features: width of its pooled features.
      build: returns the model with its weights; to be called within `deferred`.
      shardings: of its arrays.
      abstract: shapes of what the train step takes, with their shardings.
      distillation: how the student learns from it.
    """

    name: str
    classes: tuple[str, ...]
    num_features: int
    build: Callable[[], Model]
    shardings: Any
    abstract: Any
    distillation: Distillation

    def load(self) -> nnx.State:
        """Returns the arrays of the teacher on their devices.

        Raises:
          UserError: the weights do not fit the model, or cannot be read.
        """
        return place_model(self.build, self.shardings)[1]


def find_teacher(
    config: ConfigDict, mesh: Mesh, *, num_classes: int, channels: int, num_images: int, student: Preprocess
) -> Teacher | None:
    """Returns the teacher that the section ``teacher`` describes; None if it names none. Reads no values of weights.

    Args:
      config: completed.
      mesh: the devices. The teacher's arrays are sharded by the same rules as the student's.
      num_classes: number of classes of the data.
      channels: number of channels of the images.
      num_images: number of training images.
      student: normalization of the images that the student gets.

    Raises:
      UserError: the section is wrong, there is no such model or folder, or the teacher has other classes.
    """
    section = config.teacher
    name, path = _find_weights(section)
    if name is None:
        return None
    entry = catalog.lookup(name, where="teacher.name")
    source = find_export(path, entry.architecture) or entry
    preprocess = replace(source.preprocess, image_size=section.image_size or source.preprocess.image_size)
    preprocess = preprocess.for_channels(channels)
    build = functools.partial(_build, config, name, path, channels, preprocess)
    with deferred():
        model = build(weights=path is not None)  # a file states the number of classes
    graph, leaves = nnx.split(model)
    rules = make_rules(mesh, model.tensor_rules, **config.sharding)
    shardings = state_shardings({"model": leaves}, mesh, rules.stored, unused_ok=True)["model"]
    blocks = Blocks(mesh, rules, pattern=model.block_pattern)
    how = {key: section[key] for key in ("kind", "weight", "temperature") if section[key] is not None}
    distillation = Distillation(
        graph,
        {"outputs": replicated(mesh)} if section.cache else shardings,
        student=student,
        teacher=preprocess,
        blocks=None if blocks.is_default else blocks,
        cached=bool(section.cache),
        **how,
    )
    what, features = str(section.name or section.checkpoint_path), distillation.kind == "features"
    _check(config, what, None if features else model.num_classes, num_classes)
    if distillation.kind == "soft" and source.probabilities == "sigmoid":
        raise UserError(
            f"config.teacher.name: got {what}, which was trained with sigmoids, expected a model whose probabilities "
            "are a softmax, as those that teacher.kind=soft compares. Set teacher.kind=hard or features."
        )
    taken: Any = leaves
    if section.cache:
        width = model.num_features if features else num_classes
        taken = {"outputs": jax.ShapeDtypeStruct((num_images, width), jnp.float32)}
    abstract = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), taken, distillation.shardings
    )
    # A model from a file is not built again, so that each message about the file is logged once.
    load: Callable[[], Model] = functools.partial(build, weights=True) if path is None else lambda: model
    return Teacher(what, source.classes, model.num_features, load, shardings, abstract, distillation)


def cached_outputs(run: RunContext, state: nnx.State) -> dict[str, jax.Array]:
    """Returns the teacher's outputs for each training image without augmentation, on every device.

    Args:
      run: the context of a run with a teacher.
      state: the arrays of the teacher, from `Teacher.load`.
    """
    teacher, images = cast(Teacher, run.program.teacher), run.data["train"]
    transform = teacher.distillation.teacher
    transform = replace(transform, crop_pct=images.pipeline.crop_pct(transform.crop_pct))

    def predict(state: nnx.State, batch: Any) -> dict[str, jax.Array]:
        outputs = teacher.distillation.outputs(state, images.pipeline.prepare_eval(batch, transform))
        return {"outputs": outputs, "index": batch["index"], "mask": batch["mask"]}

    inputs = (teacher.shardings, batch_sharding(run.mesh))
    predict = jax.jit(predict, in_shardings=inputs, out_shardings=replicated(run.mesh))
    batches = images.eval_batches(
        batch_size=run.eval_batch_size, preprocess=transform, workers=run.workers, process=run.process
    )
    on_devices = prefetch(batches, functools.partial(shard_batch, mesh=run.mesh))
    total = eval_steps(len(images), run.eval_batch_size)
    outputs = np.zeros(teacher.abstract["outputs"].shape, np.float32)
    for batch in run.console.evaluation(on_devices, total=total, name="teacher"):
        found = jax.device_get(predict(state, batch))
        outputs[found["index"][found["mask"]]] = found["outputs"][found["mask"]]
    return {"outputs": place_parts(outputs.__getitem__, outputs.shape, replicated(run.mesh))}


def _find_weights(section: ConfigDict) -> tuple[str | None, str | None]:
    """Returns the name of the teacher's model, and the path of its weights if the name does not determine them."""
    name, path = section.name, section.checkpoint_path
    if name is None and path is None:
        for key, value in section.items():
            if value is not None:
                raise UserError(
                    f"config.teacher.{key}: got {value!r} without a teacher. Set teacher.name, or remove this key."
                )
        return None, None
    source = Path(path if name is None else name).expanduser()
    if os.path.isdir(source):
        try:
            return f"local-dir:{files.weights_folder(source)}", path if name is not None else None
        except UserError as e:
            raise UserError(f"config.teacher.{'checkpoint_path' if name is None else 'name'}: {e}") from e
    if name is not None and "/" in name and ":" not in name:
        raise UserError(
            f"config.teacher.name: got {name}, a folder that does not exist, expected the workdir of a finished run or "
            "a folder in timm's format. Check the path."
        )
    if name is None:
        raise UserError(
            f"config.teacher.name: not set, expected the name of the model whose weights are in {path}. Add "
            "--config.teacher.name=NAME."
        )
    return name, path


def _build(
    config: ConfigDict, name: str, path: str | None, channels: int, preprocess: Preprocess, *, weights: bool
) -> Model:
    """Returns the teacher. A warning is logged if the library of its weights normalizes by another mean."""
    file = files.open_weights(path) if weights and path is not None else None
    model = create_model(
        name,
        pretrained=weights and file is None,
        checkpoint_path=file,
        in_channels=channels,
        image_size=preprocess.image_size,
        dtype=config.teacher.dtype or config.model.dtype,
    )
    if file is not None:
        foreign.log_normalization(file, preprocess.mean, advice=_SET_MEAN)
    return model


def _check(config: ConfigDict, what: str, found: int | None, num_classes: int) -> None:
    """Raises unless the teacher fits the data.

    Args:
      config: completed.
      what: the teacher, for the message.
      found: number of its classes; None if they do not matter.
      num_classes: number of classes of the data.

    Raises:
      UserError: it has other classes, or cannot be cached.
    """
    if found not in (None, num_classes):
        raise UserError(
            f"config.teacher.name: got {what}, which has {found} classes, expected {num_classes}, those of the data. "
            "Train it on these data first and set teacher.name to the workdir of that run, or set "
            "teacher.kind=features, for which the classes do not matter."
        )
    if config.teacher.cache and (config.augment.mixup or config.augment.cutmix):
        raise UserError(
            "config.teacher.cache: got True with augment.mixup or augment.cutmix, whose images the teacher would not "
            "see. Set teacher.cache=False, or turn off mixing."
        )
