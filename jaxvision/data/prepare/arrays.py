"""Originals that are arrays of pixels: CIFAR's binary files, MNIST's IDX files and SVHN's MATLAB files."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxvision.data.prepare.split import Split
from jaxvision.data.prepare.tar import Tar


def read_cifar(
    files: Mapping[str, Path],
    features: Any,
    scratch: Path,
    *,
    splits: Mapping[str, Sequence[str]],
    labels: Mapping[str, str],
) -> Iterator[Split]:
    """Yields the splits of CIFAR-10 or CIFAR-100, whose binary files have rows of labels and pixels.

    Args:
      files: the archive.
      features: of the dataset. Its labels get their names from the archive.
      scratch: folder for the decompressed archive.
      splits: names of the files of each split.
      labels: feature -> name of the file with the names of its classes, in the order of a row.
    """
    (archive,) = files.values()
    with Tar(archive, scratch) as tar:
        members = {Path(path).name: member for path, member in tar.files().items()}
        for label, classes in labels.items():
            features[label].names = members[classes].read().decode().split()
        for split, names in splits.items():
            data = b"".join(members[name].read() for name in names)
            rows = np.frombuffer(data, np.uint8).reshape(-1, len(labels) + 3 * 32 * 32)
            pixels = rows[:, len(labels) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            numbers = {label: rows[:, i] for i, label in enumerate(labels)}
            yield _split_of_arrays(split, pixels, numbers, name_of=f"{split}_{{:05d}}".format)


def read_mnist(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of MNIST or Fashion-MNIST."""
    for split, prefix in {"train": "train", "test": "t10k"}.items():
        pixels = _read_idx(files[f"{prefix}-images-idx3-ubyte.gz"])
        yield _split_of_arrays(split, pixels, {"label": _read_idx(files[f"{prefix}-labels-idx1-ubyte.gz"])})


def read_svhn(files: Mapping[str, Path], features: Any, scratch: Path) -> Iterator[Split]:
    """Yields the splits of SVHN's cropped digits, in which 10 stands for the digit 0."""
    from scipy.io import loadmat

    for split in ("train", "test", "extra"):
        arrays = loadmat(files[f"{split}_32x32.mat"])
        pixels, labels = arrays["X"].transpose(3, 0, 1, 2), arrays["y"].reshape(-1) % 10
        yield _split_of_arrays(split, pixels, {"label": labels}, name_of=f"{split}_{{:06d}}".format)


def _split_of_arrays(
    split: str, pixels: np.ndarray, labels: Mapping[str, np.ndarray], *, name_of: Callable[[int], str] = str
) -> Split:
    """Returns a split of images [n, h, w, c] or [n, h, w]; `name_of` returns the feature ``id`` of an image."""

    def example(i: int) -> dict[str, Any]:
        numbers = {label: int(values[i]) for label, values in labels.items()}
        return {"image": Image.fromarray(np.ascontiguousarray(pixels[i])), "id": name_of(i), **numbers}

    return Split(split, range(len(pixels)), example)


def _read_idx(path: Path) -> np.ndarray:
    """Returns the array of bytes in an IDX file: two zeros, the type, the number of axes, their sizes, the values."""
    with gzip.open(path) as file:
        data = file.read()
    axes = data[3]
    sizes = np.frombuffer(data, ">u4", count=axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)
