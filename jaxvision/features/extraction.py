"""The pooled features of a model for every image of a dataset."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision import report
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.data.dataset import Dataset
from jaxvision.data.order import eval_steps
from jaxvision.data.pipeline import InputPipeline
from jaxvision.data.pool import WorkerPool
from jaxvision.data.prefetch import prefetch
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import Model
from jaxvision.models.layers.mode import eval_view
from jaxvision.parallel.mesh import (
    IMAGES_PER_DEVICE,
    batch_devices,
    batch_sharding,
    make_mesh,
    process_share,
    replicated,
    shard_batch,
)
from jaxvision.platform import compiled_for


@dataclass(frozen=True)
class Features:
    """The features of n images. Damaged images have no row.

    Attributes:
      values: float32 [n, d].
      label: int32 [n], class numbers; -1 for images without a class.
      index: int32 [n], positions of the images in their dataset.
      path: file or position of each image, as in messages.
      split: name of the split of each image, such as ``"train"``.
      classes: names of the classes.
    """

    values: np.ndarray
    label: np.ndarray
    index: np.ndarray
    path: tuple[str, ...]
    split: tuple[str, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)


def concatenate(parts: Sequence[Features]) -> Features:
    """Returns the rows of several features, such as those of all splits of a dataset."""
    return Features(
        values=np.concatenate([part.values for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        index=np.concatenate([part.index for part in parts]),
        path=tuple(path for part in parts for path in part.path),
        split=tuple(split for part in parts for split in part.split),
        classes=parts[0].classes,
    )


def level_number(model: Model, level: int | str | None) -> int | None:
    """Returns the position of a level in `Model.feature_info`; None for the input of the head.

    Args:
      model: the model.
      level: None, or the name or the position of a level. A negative position counts from the end.

    Raises:
      UserError: no such level.

    Example:
      >>> from jaxvision.create import create_model
      >>> model = create_model("test_resnet", num_classes=2, image_size=32)
      >>> level_number(model, "layer3"), level_number(model, -1), level_number(model, None)
      (3, 4, None)
    """
    if level is None:
        return None
    names = [info.name for info in model.feature_info]
    if not names:
        raise UserError(f"level: got {level!r}, but {type(model).__name__} has no levels of features. Leave it out.")
    if isinstance(level, str) and level.removeprefix("-").isdecimal():
        level = int(level)
    if isinstance(level, str):
        if level not in names:
            raise unknown_name_error("level", level, names, expected=f"a level of {model.architecture}")
        return names.index(level)
    if not -len(names) <= level < len(names):
        named = ", ".join(f"{i} {name}" for i, name in enumerate(names))
        raise UserError(f"level: got {level}, expected a level of {model.architecture}. Valid levels: {named}.")
    return level % len(names)


def transform_of(classifier: Classifier, pipeline: InputPipeline) -> Preprocess:
    """Returns the transform of a classifier for images of a dataset, as a run chooses it.

    Args:
      classifier: the model and its transform.
      pipeline: how the images reach the model. Small images in memory are resized, but not cropped.
    """
    own = classifier.preprocess
    return replace(own.for_channels(pipeline.channels), crop_pct=pipeline.crop_pct(own.crop_pct))


def extract(
    classifier: Classifier,
    images: Dataset,
    *,
    level: int | str | None = None,
    preprocess: Preprocess | None = None,
    name: str = "images",
    batch_size: int | None = None,
    workers: int | WorkerPool | None = None,
    mesh: jax.sharding.Mesh | None = None,
    console: report.Console | None = None,
) -> Features:
    """Returns the features of all images of a dataset, through the input pipeline of evaluations.

    With several processes, all of them must call it, and all get all features.

    Args:
      classifier: a model and its transform. It may have no head.
      images: from `jaxvision.data.open_dataset`.
      level: None for what the head takes (``forward_head(..., pre_logits=True)``), or the name or the position of a
        level of `Model.feature_info`, whose map is averaged over its height and width.
      preprocess: the transform, such as that of another split, whose features are compared with these. None:
        `transform_of` the classifier for these images.
      name: of the split, for progress and for `Features.split`.
      batch_size: images per step, over all devices. None: 32 for each device.
      workers: processes that decode images; as for `Dataset.eval_batches`.
      mesh: the devices. None: all devices, each with its part of the batch.
      console: shows the progress.

    Raises:
      UserError: no such level, too many damaged images, or a model whose features are not pooled.

    Example:
      >>> from jaxvision.create import create_model
      >>> from jaxvision.data import open_dataset, open_source
      >>> model = create_model("test_resnet", num_classes=0, in_channels=1, image_size=32)
      >>> classifier = Classifier(model, (), Preprocess(image_size=32, mean=(0.5,), std=(0.25,)))
      >>> extract(classifier, open_dataset(open_source("digits").test), batch_size=64).values.shape
      (359, 96)
    """
    parts = extract_parts(
        classifier,
        images,
        level=level,
        preprocess=preprocess,
        batch_size=batch_size,
        mesh=mesh,
        name=name,
        workers=workers,
        console=console,
    )
    values, index, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return describe(values, label, index, images, name=name)


def describe(values: np.ndarray, label: np.ndarray, index: np.ndarray, images: Dataset, *, name: str) -> Features:
    """Returns features with the paths of their images and the classes of the dataset.

    Args:
      values: float32 [n, d].
      label: int32 [n].
      index: int32 [n], positions in the dataset.
      images: the dataset.
      name: of the split.
    """
    source = images.source
    has_classes = list(source.classes) != [""]  # as `jaxvision.data.folder.open_all_images` marks images without
    return Features(
        values=values,
        label=label if has_classes else np.full_like(label, -1),
        index=index,
        path=tuple(source.where(int(i)) for i in index),
        split=(name,) * len(index),
        classes=tuple(source.classes) if has_classes else (),
    )


def extract_parts(
    classifier: Classifier,
    images: Dataset,
    *,
    level: int | str | None = None,
    preprocess: Preprocess | None = None,
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **options: Any,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the features of each batch: values [b, d], index [b] and label [b], without padding and damaged images.

    Args:
      classifier, images, level, preprocess, batch_size, mesh: as for `extract`.
      **options: ``name``, ``workers`` and ``console`` of `extract`.
    """
    mesh = make_mesh() if mesh is None else mesh
    usual = IMAGES_PER_DEVICE * batch_devices(mesh)
    batch_size = min(batch_size or usual, max(1, -(-len(images) // usual)) * usual)  # more would only be padding
    graph, state = nnx.split(classifier.model)
    yield from extract_sharded(
        graph,
        jax.device_put(state, replicated(mesh)),
        images,
        preprocess=preprocess or transform_of(classifier, images.pipeline),
        mesh=mesh,
        level=level_number(classifier.model, level),
        batch_size=batch_size,
        **options,
    )


def extract_sharded(
    graph: nnx.GraphDef,
    state: nnx.State,
    images: Dataset,
    *,
    preprocess: Preprocess,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    level: int | None = None,
    name: str = "images",
    workers: int | WorkerPool | None = None,
    console: report.Console | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields the features of a model whose arrays are on the devices already, in any sharding, as `extract_parts`.

    Args:
      graph: structure of the model.
      state: of the model.
      images: from `jaxvision.data.open_dataset`.
      preprocess: the evaluation transform.
      mesh: the devices.
      batch_size: images per step, over all devices.
      level: as for `pooled_features`.
      name, workers, console: as for `extract`.
    """
    step = _step(graph, mesh, preprocess, images.pipeline, level)
    batches = images.eval_batches(
        batch_size=batch_size, preprocess=preprocess, workers=workers, process=process_share(mesh)
    )
    placed: Iterable[Any] = prefetch(batches, functools.partial(shard_batch, mesh=mesh))
    if console is not None:
        placed = console.evaluation(placed, total=eval_steps(len(images), batch_size), name=name)
    with closing(placed):  # type: ignore[type-var]
        running = None
        for batch in placed:
            # The next step is queued before the result of the previous one is fetched, so that the device never waits.
            running, done = step(state, batch), running
            if done is not None:
                yield _without_padding(done)
        if running is not None:
            yield _without_padding(running)


@functools.lru_cache(maxsize=8)
def _step(
    graph: nnx.GraphDef, mesh: jax.sharding.Mesh, preprocess: Preprocess, pipeline: InputPipeline, level: int | None
) -> Any:
    """Returns the compiled function (state, batch) -> features; equal arguments return the same function."""

    def step(state: nnx.State, batch: Any) -> dict[str, jax.Array]:
        with compiled_for(mesh):
            model: Any = eval_view(nnx.merge(graph, state))
            values = pooled_features(model, pipeline.prepare_eval(batch, preprocess), level)
        return {key: batch[key] for key in ("index", "label", "mask")} | {"values": values}

    return jax.jit(step, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


def pooled_features(model: Model, images: jax.Array, level: int | None = None) -> jax.Array:
    """Returns the pooled features of normalized images: float32 [b, d].

    Args:
      model: in evaluation.
      images: float [b, h, w, c], normalized.
      level: None for the input of the head, or a position in `Model.feature_info`, whose map is averaged.

    Raises:
      UserError: the model does not pool its features.
    """
    if level is None:
        values = model.forward_head(model.forward_features(images), pre_logits=True)
    else:
        (map_,) = model.forward_intermediates(images, [level], intermediates_only=True)
        values = map_.astype(jnp.float32).mean(axis=(1, 2))
    if values.ndim != 2:
        raise UserError(
            f"{model.architecture}: got features of shape {list(values.shape)}, expected [b, d]. Create the model with "
            "a pooling, such as global_pool='avg', or choose a level."
        )
    return values.astype(jnp.float32)


def _without_padding(result: dict[str, jax.Array]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    host: dict[str, np.ndarray] = jax.device_get(result)
    return tuple(host[key][host["mask"]] for key in ("values", "index", "label"))  # type: ignore[return-value]
