"""The two ways in which images reach the model, and what the device does in each.

`FromMemory`: a dataset of small images of one shape is decoded once and kept in memory. Whole images go to the device,
which crops and resizes them inside the jitted step. `FromWorkers`: worker processes read, decode, crop and resize, and
the device receives images of the model's size.

`jaxvision.data.dataset.open_dataset` chooses between them; a dataset has its choice as the attribute `pipeline`. A
plan creates one from shapes alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxvision.augment import on_device
from jaxvision.augment.preprocess import Preprocess


@dataclass(frozen=True)
class FromMemory:
    """Images kept in memory, and cropped and resized on the device.

    Attributes:
      shape: (h, w, c) of each image in memory.
    """

    shape: tuple[int, int, int]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[-1]

    def shape_on_arrival(self, image_size: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of an image when it arrives on the device; `image_size` is that of the model."""
        return self.shape

    def crop_pct(self, published: float) -> float:
        """Returns the share of the side that the evaluation crop keeps: 1, because the images are small."""
        return 1.0

    def host_crop(self, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns None: the device crops."""
        return None

    def augment(self, batch: Mapping[str, jax.Array], **options: Any) -> tuple[jax.Array, jax.Array]:
        """Returns (images, targets) of a training batch; `options` are those of `on_device.augment_batch`."""
        return on_device.augment_batch(batch, **options)

    def prepare_eval(self, batch: Mapping[str, jax.Array], preprocess: Preprocess) -> jax.Array:
        """Returns the images of an evaluation batch, ready for the model: float32 [b, h, w, c]."""
        return on_device.prepare_eval(batch, preprocess=preprocess, resize=True)


@dataclass(frozen=True)
class FromWorkers:
    """Images decoded, cropped and resized by worker processes.

    Attributes:
      channels: number of channels.
    """

    channels: int = 3

    def shape_on_arrival(self, image_size: int) -> tuple[int, int, int]:
        """Returns (h, w, c) of an image when it arrives on the device; `image_size` is that of the model."""
        return (image_size, image_size, self.channels)

    def crop_pct(self, published: float) -> float:
        """Returns the share of the side that the evaluation crop keeps: the published one."""
        return published

    def host_crop(self, options: Mapping[str, Any]) -> dict[str, Any] | None:
        """Returns the options of the workers' random crop, those of `host.train_crop`; None for no random crop.

        Args:
          options: the arguments of `on_device.augment_batch`, with their defaults.
        """
        if options["crop"] == "none":
            return None
        keys = {"scale": "crop_scale", "ratio": "crop_ratio", "interpolation": "interpolation"}
        return {ours: options[key] for ours, key in keys.items()}

    def augment(
        self, batch: Mapping[str, jax.Array], *, crop: str = "none", **options: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (images, targets) of a training batch; `options` are those of `on_device.augment_batch`."""
        on_device.check_choices(crop=crop)
        return on_device.augment_batch(batch, **options)  # without `crop`, because the workers have cropped

    def prepare_eval(self, batch: Mapping[str, jax.Array], preprocess: Preprocess) -> jax.Array:
        """Returns the images of an evaluation batch, ready for the model: float32 [b, h, w, c]."""
        return on_device.prepare_eval(batch, preprocess=preprocess, resize=False)


InputPipeline = FromMemory | FromWorkers


def batch_shapes(
    pipeline: InputPipeline, *, batch_size: int, image_size: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of a batch when it arrives on the device.

    Args:
      pipeline: how the images reach the model.
      batch_size: images in the batch.
      image_size: side of the model's input, in pixels.
      sharding: sharding of each array of the batch, if it is known.

    >>> batch_shapes(FromWorkers(), batch_size=8, image_size=224)["image"].shape
    (8, 224, 224, 3)
    """
    shape = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    image = shape((batch_size, *pipeline.shape_on_arrival(image_size)), np.uint8)
    rest = {"label": np.int32, "mask": np.bool_, "index": np.int32}
    return {"image": image} | {key: shape((batch_size,), kind) for key, kind in rest.items()}


def blank_batch(pipeline: InputPipeline, *, batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    """Returns a batch of zeros on the host, for compilation; the arguments are those of `batch_shapes`."""
    shapes = batch_shapes(pipeline, batch_size=batch_size, image_size=image_size)
    return {key: np.zeros(x.shape, x.dtype) for key, x in shapes.items()}
