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
from jaxvision.data.reading import check_labels, read_examples
from jaxvision.data.source import Source
from jaxvision.errors import UserError


@dataclass(frozen=True)
class ReadTrainBatch:
    """The training batches by step, as one process reads them: a task of `jaxvision.data.pool`.

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

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the images: (b, h, w, c)."""
        return (self.rows.stop - self.rows.start, self.image_size, self.image_size, self.channels)

    def read(self, number: int, rows: slice, images: np.ndarray) -> Batch:
        """Reads rows of the batch of step `number`, counted from the first row of this process."""
        rows = _shifted(rows, self.rows.start)
        epochs, indices = batch_indices(len(self.source), self.batch_size, seed=self.seed, step=number, rows=rows)
        uncropped = Preprocess(image_size=self.image_size, crop_pct=1.0)

        def transform(row: int, image: bytes | np.ndarray) -> np.ndarray:
            if self.crop is None:
                return host.eval_transform(image, uncropped)
            rng = crop_rng(self.seed, epoch=int(epochs[row]), index=int(indices[row]))
            return host.train_crop(image, self.image_size, rng, **self.crop)

        return _read_rows(self.source, indices, images, transform)


@dataclass(frozen=True)
class ReadEvalBatch:
    """The batches of an evaluation by number, as one process reads them: a task of `jaxvision.data.pool`.

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

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the images: (b, h, w, c)."""
        size = self.preprocess.image_size
        return (self.rows.stop - self.rows.start, size, size, self.channels)

    def read(self, number: int, rows: slice, images: np.ndarray) -> Batch:
        """Reads rows of batch `number`, counted from the first row of this process."""
        rows = _shifted(rows, self.rows.start)
        indices = eval_indices(len(self.source), self.batch_size, number)[rows]
        return _read_rows(self.source, indices, images, lambda row, image: host.eval_transform(image, self.preprocess))


def _shifted(rows: slice, by: int) -> slice:
    return slice(rows.start + by, rows.stop + by)


def _read_rows(
    source: Source,
    indices: np.ndarray,
    images: np.ndarray,
    transform: Callable[[int, bytes | np.ndarray], np.ndarray],
) -> Batch:
    """Writes images, and returns their labels, indices and mask, which is False for padding (-1) and damaged images."""
    labels = np.zeros(len(indices), np.int32)
    mask = indices >= 0
    rows = np.flatnonzero(mask)
    for row, example in zip(rows, read_examples(source, [int(i) for i in indices[rows]]), strict=True):
        try:
            if isinstance(example, OSError):
                raise example
            labels[row] = example["label"]
            pixels = transform(int(row), example["image"])
            if pixels.shape[-1] not in (1, images.shape[-1]):  # a single channel is repeated
                raise UserError(
                    f"{source.where(int(indices[row]))}: got {pixels.shape[-1]} channels, expected {images.shape[-1]} "
                    "as in other images of the dataset. Give all images of the source the same number of channels."
                )
            images[row] = pixels
        except (BadImage, OSError):
            mask[row] = False
    images[~mask] = 0
    check_labels(source, indices, labels)
    return {"label": labels, "index": indices.astype(np.int32), "mask": mask}
