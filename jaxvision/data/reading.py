"""Reading and checking of the examples of a source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxvision.augment.decoding import decode
from jaxvision.augment.host import check_image
from jaxvision.data.source import Example, Source
from jaxvision.errors import UserError


def read_examples(source: Source, indices: Sequence[int]) -> list[Example | OSError]:
    """Returns the examples at `indices`, with the error in place of an example that cannot be read."""
    if hasattr(source, "__getitems__"):  # faster, for sources that have it
        return list(source.__getitems__(indices))
    found: list[Example | OSError] = []
    for index in indices:
        try:
            found.append(source[index])
        except OSError as e:
            found.append(e)
    return found


def check_labels(source: Source, indices: np.ndarray, labels: np.ndarray) -> None:
    """Raises `UserError` if one of `labels`, those of the examples at `indices`, is not the number of a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
    if len(wrong):
        where, label, n = source.where(int(indices[wrong[0]])), labels[wrong[0]], len(source.classes)
        raise UserError(
            f"{where}: got the label {label}, expected 0 to {n - 1} for {n} classes. Fix the label or the classes."
        )


def to_pixels(image: bytes | np.ndarray) -> np.ndarray:
    """Returns an image, decoded if it is a file, as uint8 [h, w, c].

    Raises:
      BadImage: the file is damaged or not an image.
      UserError: an array of another type or shape.
    """
    if not isinstance(image, np.ndarray):
        return np.asarray(decode(image))
    check_image(image)
    return image
