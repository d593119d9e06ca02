"""Checks that no image is in two splits of a folder through links, so that no image of a test is trained on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvision.data.manifest import Manifest
from jaxvision.data.walk import path_digest
from jaxvision.errors import UserError, count


def check_class_folders_are_distinct(splits: Mapping[str, Path], classes: Mapping[str, Sequence[str]]) -> None:
    """Checks that no folder of a class is in two splits. Takes a moment, so it comes before the folders are read.

    Args:
      splits: split -> its folder.
      classes: split -> the names of the folders in it.

    Raises:
      UserError: a folder is in two splits.
    """
    seen: dict[tuple[int, int], tuple[str, Path]] = {}  # (device, inode) -> where it was found first
    for split, root in splits.items():
        for name in classes[split]:
            status = os.stat(root / name)
            other_split, other = seen.setdefault((status.st_dev, status.st_ino), (split, root / name))
            if other_split != split:
                raise _same_folder_error(root / name, split, other, other_split, splits)


def check_links_are_distinct(splits: Mapping[str, Path], manifests: Mapping[str, Manifest]) -> None:
    """Checks that no folder and no image anywhere below a split is also in another one, through links.

    Compares what the walks have noted about links, without a system call for each image. A file with two names on the
    disk (hard links) is not noticed.

    Args:
      splits: split -> its folder.
      manifests: split -> its images.

    Raises:
      UserError: a folder or an image is in two splits.
    """
    real = {split: manifests[split].real_folders(folder) for split, folder in splits.items()}
    digests = {split: {path_digest(path): path for path in folders} for split, folders in real.items()}
    for one, other in itertools.combinations(splits, 2):
        for path, folder in real[other].items():
            if path in real[one]:
                same = splits[one] / real[one][path]
                raise _same_folder_error(splits[other] / folder, other, same, one, splits)
        for split, target in ((one, other), (other, one)):
            for digest in manifests[split].linked_folders.tolist():
                if digest in digests[target]:
                    inner = splits[target] / real[target][digests[target][digest]]
                    raise _linked_images_error(splits[split], f"links to images in {inner}", split, target)
        if n := len(np.intersect1d(manifests[one].linked_files, manifests[other].linked_files)):
            found = f"links to {count(n, 'image')} to which {splits[one]} also has links"
            raise _linked_images_error(splits[other], found, other, one)


def _same_folder_error(
    folder: Path, split: str, other: Path, other_split: str, splits: Mapping[str, Path]
) -> UserError:
    held_out = split if other_split == "train" else other_split
    return UserError(
        f"{folder}: got the same folder as {other}, expected other images for {split} than for {other_split}. Remove "
        f"the link. To hold out images of {splits['train']} instead, remove {splits[held_out]} and set "
        "--config.source.validation_fraction=0.1."
    )


def _linked_images_error(folder: Path, found: str, split: str, other_split: str) -> UserError:
    return UserError(
        f"{folder}: got {found}, expected other images for {split} than for {other_split}. Remove the links of one of "
        f"the two; find {folder} -type l lists them."
    )
