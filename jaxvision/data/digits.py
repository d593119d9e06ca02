"""scikit-learn's 1,797 handwritten digits, which need no download."""

from __future__ import annotations

import numpy as np

from jaxvision.data.arrays import ArraySource
from jaxvision.data.source import Splits, stratified_split


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
