"""The tasks of the worker processes: a number of a batch -> its images, read, decoded and cropped.

Workers import this module, so neither it nor the modules it imports may import JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvision.augment import host
from jaxvision.augment.decoding import BadImage
from jaxvision.augment.preprocess import Preprocess
from jaxvision.data.order import batch_indices, crop_rng, eval_indices
from jaxvision.data.pool import Batch
from jaxvision.data.reading import check_labels, machine_errors_as_user_errors, read_examples
from jaxvision.data.source import Source
from jaxvision.errors import UserError


@dataclass(frozen=True)
class ReadTrainBatch:
    """A task of `jaxvision.data.pool`: step -> the rows of that training batch that one process reads.

    Attributes:
      source: the images.
      batch_size: images per batch, over all processes.
      rows: the rows of each batch that this process reads.
      channels: of each image.
      seed: seed of the order and of the crops.
      image_size: side of the model's input, in pixels.
      crop: options of `jaxvision.augment.host.train_crop`; None crops the middle.
    """

    source: Source
    batch_size: int
    rows: slice
    channels: int
    seed: int
    image_size: int
    crop: dict[str, Any] | None

    def __call__(self, step: int) -> Batch:
        epochs, indices = batch_indices(len(self.source), self.batch_size, seed=self.seed, step=step, rows=self.rows)
        uncropped = Preprocess(image_size=self.image_size, crop_pct=1.0)

        def transform(row: int, image: bytes | np.ndarray) -> np.ndarray:
            if self.crop is None:
                return host.eval_transform(image, uncropped)
            rng = crop_rng(self.seed, epoch=int(epochs[row]), index=int(indices[row]))
            return host.train_crop(image, self.image_size, rng, **self.crop)

        return _read_batch(self.source, indices, (self.image_size, self.image_size, self.channels), transform)


@dataclass(frozen=True)
class ReadEvalBatch:
    """A task of `jaxvision.data.pool`: number -> the rows of that evaluation batch that one process reads.

    Attributes:
      source: the images.
      batch_size: images per batch, over all processes.
      rows: the rows of each batch that this process reads.
      channels: of each image.
      preprocess: the evaluation transform.
    """

    source: Source
    batch_size: int
    rows: slice
    channels: int
    preprocess: Preprocess

    def __call__(self, number: int) -> Batch:
        indices = eval_indices(len(self.source), self.batch_size, number)[self.rows]
        size = self.preprocess.image_size

        def transform(row: int, image: bytes | np.ndarray) -> np.ndarray:
            return host.eval_transform(image, self.preprocess)

        return _read_batch(self.source, indices, (size, size, self.channels), transform)


def _read_batch(
    source: Source,
    indices: np.ndarray,
    shape: tuple[int, ...],
    transform: Callable[[int, bytes | np.ndarray], np.ndarray],
) -> Batch:
    """Returns a batch whose mask is False for padding (index -1) and damaged images."""
    labels = np.zeros(len(indices), np.int32)
    mask = indices >= 0
    images = np.zeros((len(indices), *shape), np.uint8)
    rows = np.flatnonzero(mask)
    for row, example in zip(rows, read_examples(source, [int(i) for i in indices[rows]]), strict=True):
        try:
            if isinstance(example, OSError):
                raise example
            labels[row] = example["label"]
            with machine_errors_as_user_errors(source, int(indices[row])):
                pixels = transform(int(row), example["image"])
            if pixels.shape[-1] not in (1, images.shape[-1]):  # a single channel is repeated
                raise UserError(
                    f"{source.where(int(indices[row]))}: got {pixels.shape[-1]} channels, expected {images.shape[-1]} "
                    "as in other images of the dataset. Give all images of the source the same number of channels."
                )
            images[row] = pixels
        except (BadImage, OSError):
            mask[row] = False
    check_labels(source, indices, labels)
    return {"image": images, "label": labels, "index": indices.astype(np.int32), "mask": mask}
