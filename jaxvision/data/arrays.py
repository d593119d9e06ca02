"""A source of images in arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvision.data.source import Example
from jaxvision.errors import UserError, count


class ArraySource:
    """Images and labels in memory.

    Args:
      images: uint8 [n, h, w, c].
      labels: int [n].
      classes: names of the classes, in the order of their numbers.
      name: for messages.

    Raises:
      UserError: `images` is not uint8 [n, h, w, c], or there is not one label for each image.

    Example:
      >>> from jaxvision.data import ArraySource
      >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), classes=["a", "b"], name="two")
      >>> len(source), source[1]["label"], source.where(1)
      (2, 1, 'two[1]')
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, classes: Sequence[str], name: str):
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise UserError(
                f"{name}: got images {images.dtype} {list(images.shape)} and "
                f"{count(len(labels), 'label')}, expected images uint8 [n, h, w, c] and n labels."
            )
        labels = np.asarray(labels)
        if labels.dtype.kind not in "iu":
            raise UserError(f"{name}: got labels {labels.dtype}, expected whole numbers. Number the classes from 0.")
        self.images = images
        self.labels = labels.astype(np.int64)
        self.classes = list(classes)
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"
