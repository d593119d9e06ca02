"""Sources: labeled images by index, the interface of every dataset.

`open_source("folder", data_dir="images")` calls the function of a source with its keyword arguments. To read your own
data, write a function with keyword arguments that returns `Splits` of objects with the methods of `Source`; the config
names it as ``source.name``. `jaxvision.data.ArraySource` is such an object for arrays in memory.
"""

from __future__ import annotations

import inspect
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

import numpy as np

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.extend import call, check_returned, resolve


class Example(TypedDict):
    """An image with its label.

    Attributes:
      image: the bytes of an image file, or uint8 [h, w, c].
      label: number of the class.
    """

    image: bytes | np.ndarray
    label: int


class Source(Protocol):
    """Examples by index.

    Worker processes receive a pickled copy, so an example must not depend on which ones were read before. Raise
    `OSError` for an example that cannot be read; it is then counted as damaged and skipped, unless its ``errno`` says
    that the machine failed, such as EMFILE or EIO. A source that reads several examples faster together than one by one
    also has ``__getitems__(indices) -> list[Example]``.

    Attributes:
      name: for messages.
      classes: names of the classes, in the order of their numbers.
      labels: int [n] if known without reading the images, else None.

    It may also have ``notes`` and ``warnings``, lists of lines about how the dataset is read, which a run prints, and a
    method ``names_checksum()``, without which `names_checksum` asks `where` for the names of all images.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def where(self, index: int) -> str:
        """Returns the file or the position of an example, for messages."""
        ...


class Splits(NamedTuple):
    """The splits of a dataset; a split that does not exist is None.

    `validation` chooses the best checkpoint and stops training early; without it the last checkpoint is used. `test` is
    evaluated when training is over, and also during training if there is no `validation`.
    """

    train: Source | None = None
    validation: Source | None = None
    test: Source | None = None

    def split(self, name: str) -> Source:
        """Returns one split by name.

        Raises:
          UserError: there is no such split.
        """
        splits = {key: source for key, source in self._asdict().items() if source is not None}
        if name not in splits:
            raise unknown_name_error("split", name, splits, expected="a split of the dataset")
        return splits[name]


# Imported when the source is opened, because reading a folder needs neither pyarrow nor tensorflow_datasets.
SOURCES = {
    "digits": "jaxvision.data.digits:open_digits",
    "folder": "jaxvision.data.folder:open_folder",
    "tfds": "jaxvision.data.tfds:open_tfds",
    "huggingface": "jaxvision.data.huggingface:open_huggingface",
}


def source_function(name: str | Callable[..., Splits]) -> Callable[..., Splits]:
    """Returns the function that opens a source.

    Args:
      name: ``"digits"``, ``"folder"``, ``"tfds"``, ``"huggingface"``, or your own function: a callable or
        ``"package.module:function"`` with keyword arguments that returns `Splits`.

    Raises:
      UserError: no such source, module or function.
    """
    return resolve("source.name", name, SOURCES, expected="a source")


#: What `open_source` requires of each split; see `Source`.
_MEMBERS = ("name", "classes", "labels", "__len__", "__getitem__", "where")


def open_source(
    name: str | Callable[..., Splits],
    *,
    validation_fraction: float | Literal["auto"] | None = None,
    **options: Any,
) -> Splits:
    """Returns the splits of a dataset.

    Args:
      name: as for `source_function`.
      validation_fraction: as for `hold_out_validation`, whose seed is the source's option ``split_seed``, or else 0.
        ``"auto"``: `validation_share`, unless there are validation data or no image can be held out. None: the splits
        are those of the source.
      **options: keyword arguments of the source's function.

    Raises:
      UserError: no such source or option, or the dataset is missing or invalid.

    Example:
      >>> splits = open_source("digits")
      >>> len(splits.train), len(splits.test), splits.train.classes[3]
      (1438, 359, '3')
      >>> splits = open_source("digits", validation_fraction=0.1)
      >>> len(splits.train), len(splits.validation), len(splits.test)
      (1295, 143, 359)
    """
    function = source_function(name)
    valid = inspect.signature(function).parameters
    if validation_fraction is not None and "validation_fraction" in valid:  # the source holds out images itself
        options, validation_fraction = options | {"validation_fraction": validation_fraction}, None
    for key in options:
        if key not in valid:
            raise unknown_name_error("source", key, valid, expected=f"an option of the source {name!r}")
    splits = call("source.name", function, **options)
    check_returned("source.name", splits, valid=isinstance(splits, Splits), expected="jaxvision.data.Splits")
    sources = {split: source for split, source in splits._asdict().items() if source is not None}
    first = next(iter(sources), "")
    for split, source in sources.items():
        missing = [name for name in _MEMBERS if not hasattr(source, name)]
        expected = f"sources for all splits; that of {split!r} lacks {', '.join(missing)}"
        check_returned("source.name", source, valid=not missing, expected=expected)
        check(source, split)
        if list(source.classes) != list(sources[first].classes):
            raise UserError(
                f"{source.name}: got other classes in the split {split!r} than in {first!r}, expected the same in the "
                "same order. Number the classes alike in all splits."
            )
    if validation_fraction is None or (validation_fraction == "auto" and not _can_hold_out(splits)):
        return splits
    if validation_fraction == "auto":
        assert splits.train is not None
        validation_fraction = validation_share(len(splits.train))
    return hold_out_validation(splits, validation_fraction, seed=options.get("split_seed", 0))


def check(source: Source, split: str) -> None:
    """Checks a split of a dataset that has just been opened.

    Raises:
      UserError: no images, fewer than two classes, or a label that is not the number of a class.
    """
    if len(source) == 0:
        raise UserError(
            f"{source.name}: got no images in the split {split!r}, expected at least one. Check the source."
        )
    if source.labels is not None:
        labels = np.asarray(source.labels)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
        if len(wrong):
            i = int(wrong[0])
            raise UserError(
                f"{source.where(i)}: got the label {int(labels[i])}, expected 0 to {len(source.classes) - 1} for "
                f"{len(source.classes)} classes. Number of such labels in {source.name}: {len(wrong)}. Fix the labels "
                "or the classes."
            )
    if len(source.classes) < 2:
        raise UserError(
            f"{source.name}: got the classes {list(source.classes)}, expected two or more. In a folder of images each "
            "class is a folder; check that source.data_dir is not one level too high or too deep."
        )


def empty_classes_text(source: Source) -> str:
    """Returns a line about the classes without an image in a source; empty if there are none or the labels are unknown.

    Example:
      >>> from jaxvision.data.arrays import ArraySource
      >>> images, labels = np.zeros((2, 8, 8, 1), np.uint8), np.array([0, 2])
      >>> empty_classes_text(ArraySource(images, labels, classes=["cat", "dog", "horse"], name="mine"))
      "1 of 3 classes has no image: 'dog'"
    """
    if source.labels is None:
        return ""
    classes = list(source.classes)
    empty = np.flatnonzero(np.bincount(source.labels, minlength=len(classes)) == 0)
    if not len(empty):
        return ""
    named = ", ".join(repr(classes[i]) for i in empty[:5]) + (", ..." if len(empty) > 5 else "")
    return f"{len(empty):,} of {len(classes):,} classes {'has' if len(empty) == 1 else 'have'} no image: {named}"


def names_checksum(source: Source) -> int:
    """Returns a checksum of the names of all images in their order. A dataset may be moved without changing it.

    It is that of the source's own method, if it has one, else of the file names without their folders.
    """
    own: Callable[[], int] | None = getattr(source, "names_checksum", None)
    if own is not None:
        return own()
    n = len(source)
    if source.where(n - 1) == f"{source.name}[{n - 1}]":  # the names are numbers
        return _name_checksum(source.name, 0)
    checksum = 0
    for i in range(n):
        checksum = _name_checksum(source.where(i), checksum)
    return checksum


def _name_checksum(path: str, before: int) -> int:
    return zlib.crc32(os.path.basename(path).encode("utf-8", "surrogateescape"), before)


class Subset:
    """Some of the examples of a source.

    Args:
      source: all examples.
      rows: int [n], the indices of those that are kept.
      name: for messages.
    """

    def __init__(self, source: Source, rows: np.ndarray, *, name: str):
        self._source, self._rows = source, np.asarray(rows, np.int32)
        self.name = name
        self.classes = source.classes
        self.labels = None if source.labels is None else np.asarray(source.labels)[rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        return self._source[int(self._rows[index])]

    def where(self, index: int) -> str:
        return self._source.where(int(self._rows[index]))

    def names_checksum(self) -> int:
        """Returns a checksum of the names of all images of the source, and of which of them are in the subset."""
        return zlib.crc32(self._rows.tobytes(), names_checksum(self._source))


class _SubsetReadTogether(Subset):
    """Some of the examples of a source that reads several of them together."""

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        source: Any = self._source
        return source.__getitems__([int(row) for row in self._rows[list(indices)]])


def take_rows(source: Source, rows: np.ndarray, *, name: str) -> Subset:
    """Returns some of the examples of a source; the arguments are those of `Subset`."""
    return (_SubsetReadTogether if hasattr(source, "__getitems__") else Subset)(source, rows, name=name)


def hold_out_validation(splits: Splits, fraction: float, *, seed: int) -> Splits:
    """Returns the splits of a dataset, with a part of the training data as the validation data.

    Args:
      splits: without validation data.
      fraction: share of each class that is held out, in (0, 1). If the labels are known only after reading the images,
        it is a share of all images.
      seed: seed of the random choice.

    Raises:
      UserError: there are validation data already, there are no training data, or `fraction` holds out no image.
    """
    where = "source.validation_fraction"
    if splits.train is None or splits.validation is not None:
        found = "no training data" if splits.train is None else "a validation split"
        raise UserError(f"{where}: got {fraction} for a source with {found}. Set {where}=None.")
    labels = splits.train.labels
    if labels is None:
        labels = np.zeros(len(splits.train), int)  # as if all images had the same class
    kept, held = stratified_split(labels, fraction, seed=seed, where=where)
    if not len(held):
        raise UserError(f"{where}: got one image per class, expected at least two to hold one of them out. Add images.")
    train: Any = take_rows(splits.train, kept, name=f"{splits.train.name}, kept")
    train.notes = [
        *getattr(splits.train, "notes", ()),
        f"{len(held):,} of {len(labels):,} training images are held out for validation",
    ]
    train.warnings = [*getattr(splits.train, "warnings", ())]
    return splits._replace(train=train, validation=take_rows(splits.train, held, name=f"{splits.train.name}, held out"))


def validation_share(images: int) -> float:
    """Returns the share of a number of training images that ``validation_fraction="auto"`` holds out.

    A tenth. But up to a fifth while this is less than 100 images, because a choice by fewer is mostly chance, and at
    most 5,000 images, with which the standard error of an accuracy of 90 % is 0.4 %.

    >>> [round(n * validation_share(n)) for n in (200, 800, 2_000, 200_000)]
    [40, 100, 200, 5000]
    """
    return min(max(images / 10, min(images / 5, 100)), 5000) / images


def _can_hold_out(splits: Splits) -> bool:
    """Returns whether there are no validation data, and a class with two training images."""
    train = splits.train
    if train is None or splits.validation is not None:
        return False
    return train.labels is None or int(np.bincount(train.labels).max()) > 1


def stratified_split(
    labels: np.ndarray, fraction: float, *, seed: int, where: str = "source.test_fraction"
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (kept, held out), sorted indices, with a fraction of each class held out at random.

    A class of two or more images has at least one on each side. A single image is kept; `empty_classes_text` then names
    the class.

    Args:
      labels: int [n].
      fraction: share of each class that is held out, in (0, 1).
      seed: seed of the random choice.
      where: the key of `fraction`, for messages.

    >>> kept, held = stratified_split(np.array([0] * 10 + [1] * 10), 0.2, seed=0)
    >>> len(kept), len(held)
    (16, 4)
    """
    if not 0 < fraction < 1:
        raise UserError(f"{where}: got {fraction}, expected a number between 0 and 1.")
    rng = np.random.Generator(np.random.Philox(seed))
    is_held = np.zeros(len(labels), bool)
    by_label = np.argsort(labels, kind="stable")
    _, first = np.unique(labels[by_label], return_index=True)
    for members in np.split(by_label, first[1:]):
        n = min(max(round(fraction * len(members)), 1), len(members) - 1)
        is_held[rng.permutation(members)[:n]] = True
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)
