"""A source of images in arrays, and scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvision.data.source import Example, Splits, stratified_split


class ArraySource:
    """Images and labels in memory.

    Args:
      images: uint8 [n, h, w, c].
      labels: int [n].
      classes: names of the classes, in the order of their numbers.
      name: for messages.

    Example:
      >>> source = ArraySource(np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 1]), classes=["a", "b"], name="two")
      >>> len(source), source[1]["label"], source.where(1)
      (2, 1, 'two[1]')
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, classes: Sequence[str], name: str):
        self.images = images
        self.labels = np.asarray(labels, np.int32)
        self.classes = list(classes)
        self.name = name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_digits(*, test_fraction: float = 0.2, split_seed: int = 0) -> Splits:
    """Returns the handwritten digits: 8×8 pixels, gray, 10 classes.

    Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI 1998, from scikit-learn. The values 0 to 16 are
    scaled to 0 to 255.

    Args:
      test_fraction: share of each class that is held out for testing.
      split_seed: seed of the random choice. A split by writer is not possible, because the dataset does not name the
        writers.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    classes = [str(name) for name in digits.target_names]
    kept, held = stratified_split(digits.target, test_fraction, seed=split_seed)
    return Splits(
        train=ArraySource(images[kept], digits.target[kept], classes=classes, name="digits train"),
        test=ArraySource(images[held], digits.target[held], classes=classes, name="digits test"),
    )
