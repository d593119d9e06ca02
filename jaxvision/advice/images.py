"""What a folder of images contains: how many, of which classes and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from jaxvision.data.folder import FolderSource, open_folder
from jaxvision.errors import UserError, count

_SAMPLE = 100  # images whose size is read


@dataclass(frozen=True)
class Images:
    """The images of a folder.

    Attributes:
      folder: the folder.
      total: number of images, in all splits.
      training: number of images to train on; the others are for validation and testing.
      classes: number of classes.
      smallest, largest: the class with the fewest training images and the one with the most, with their numbers.
      side: median of the shorter side in pixels, of a sample of the training images; None if none of them can be read.
    """

    folder: str
    total: int
    training: int
    classes: int
    smallest: tuple[str, int]
    largest: tuple[str, int]
    side: int | None

    @property
    def imbalance(self) -> float:
        """Training images of the largest class for each one of the smallest."""
        return self.largest[1] / self.smallest[1]

    def __str__(self) -> str:
        """Returns the facts in one line."""
        sizes = "" if self.side is None else f", {self.side:,} px on the shorter side (median)"
        held = self.total - self.training
        (_, fewest), (_, most) = self.smallest, self.largest
        per_class = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
        return (
            f"{self.folder}: {count(self.total, 'image')} in {count(self.classes, 'class', 'classes')}, "
            f"{self.training:,} to train and {held:,} to validate and test; {per_class} training images per class"
            f"{sizes}"
        )


def describe_folder(folder: str | Path) -> Images:
    """Returns what a folder of images contains. Reads the names of all images, and the headers of a hundred.

    Args:
      folder: a folder as `jaxvision.data.folder.open_folder` takes it.

    Raises:
      UserError: no such folder, or one that training would refuse.
    """
    if not Path(folder).is_dir():
        raise UserError(
            f"data: got {str(folder)!r}, expected a folder that exists, with one folder of images per class. Without "
            "images, pass their number (images=800, or --images 800)."
        )
    splits = open_folder(data_dir=str(folder))
    train = splits.train
    assert isinstance(train, FolderSource)
    per_class = np.bincount(train.labels, minlength=len(train.classes))
    fewest, most = int(per_class.argmin()), int(per_class.argmax())
    return Images(
        folder=str(folder),
        total=sum(len(split) for split in splits if split is not None),
        training=len(train),
        classes=len(train.classes),
        smallest=(train.classes[fewest], int(per_class[fewest])),
        largest=(train.classes[most], int(per_class[most])),
        side=_median_side(train),
    )


def _median_side(source: FolderSource) -> int | None:
    sides = []
    for row in np.unique(np.linspace(0, len(source) - 1, _SAMPLE).astype(int)):
        try:
            with Image.open(source.where(int(row))) as image:
                sides.append(min(image.size))
        except (OSError, ValueError, Image.DecompressionBombError):  # training reports a damaged image
            continue
    return round(median(sides)) if sides else None
