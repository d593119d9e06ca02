"""What a data set is here: pictures by number, with labels, and the names of the classes.

A source is opened by name: `open_source("folder", data_dir="pictures")`. Its function takes keyword-only options and
returns the parts of the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

import numpy as np

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.extend import resolve


class Example(TypedDict):
    """One picture.

    ``image`` is an encoded file (bytes), or uint8 [h, w, c]; ``label`` is the number of its class.
    """

    image: bytes | np.ndarray
    label: int


class Source(Protocol):
    """Examples by number. Reading must not depend on what was read before; workers get a copy by pickle.

    Attributes:
      name: for messages.
      classes: names of the classes, in the order of their numbers.
      labels: int [n], known without reading any picture; None where that would mean reading all.

    Where reading many at once is cheaper a source also has ``__getitems__(indices) -> list[Example]``.
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
        """Returns what names the picture for a person: its file, or its place in the set."""
        ...


class Splits(NamedTuple):
    """The parts of a data set; a part that is not there is None.

    Best checkpoints are chosen on `validation`; where there is none nothing is chosen, and the last one counts. `test`
    is looked at when training is over, or at each evaluation where there is no validation part.
    """

    train: Source | None = None
    validation: Source | None = None
    test: Source | None = None

    def part(self, name: str) -> Source:
        """Returns one part by name.

        Raises:
          UserError: there is no such part; the message says which there are.
        """
        there = {key: source for key, source in self._asdict().items() if source is not None}
        if name not in there:
            raise unknown_name_error("part of the data", name, there)
        return there[name]


# Modules are imported when a source is opened: pyarrow or tensorflow_datasets are not needed to read a folder.
SOURCES = {
    "digits": ("jaxvision.data.digits", "open_digits"),
    "folder": ("jaxvision.data.folder", "open_folder"),
    "tfds": ("jaxvision.data.tfds", "open_tfds"),
    "huggingface": ("jaxvision.data.huggingface", "open_huggingface"),
}


def source_function(name: str) -> Callable[..., Splits]:
    """Returns the function that opens a source, with its own keyword-only options.

    Raises:
      UserError: no such source.
    """
    return resolve("data source", name, {key: ":".join(place) for key, place in SOURCES.items()})


def open_source(name: str, **options: Any) -> Splits:
    """Returns the parts of a data set.

    Args:
      name: ``"digits"``, ``"folder"``, ``"tfds"`` or ``"huggingface"``.
      **options: of that source's function.

    Raises:
      UserError: no such source or option, or data that are not there or not sound.

    Example:
      >>> splits = open_source("digits")
      >>> len(splits.train), len(splits.test), splits.train.classes[3]
      (1438, 359, '3')
    """
    function = source_function(name)
    valid = inspect.signature(function).parameters
    for key in options:
        if key not in valid:
            raise unknown_name_error(f"option of the source {name!r}", key, valid)
    splits = function(**options)
    for part, source in splits._asdict().items():
        if source is not None:
            check(source, part)
    return splits


def check(source: Source, part: str) -> None:
    """Raises unless there are pictures of two classes or more, and every label that is known names a class."""
    if len(source) == 0:
        raise UserError(f"{source.name}: the {part} part has no pictures")
    if source.labels is not None:
        labels = np.asarray(source.labels)
        wrong = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
        if len(wrong):
            i = int(wrong[0])
            raise UserError(
                f"{source.name}: the label {int(labels[i])} of {source.where(i)} is outside the "
                f"{len(source.classes)} classes (0 to {len(source.classes) - 1}); so are {len(wrong) - 1} more"
            )
    if len(source.classes) < 2:
        raise UserError(
            f"{source.name} has one class, {source.classes[0]!r}: there is nothing to tell apart; in a folder of "
            f"pictures each class is a folder (is it one level higher or deeper?)"
        )


def stratified_split(labels: np.ndarray, fraction: float, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (kept, held out): sorted positions, with `fraction` of each class held out, chosen by the seed.

    A class with two pictures or more has at least one on each side; a single picture is kept.

    >>> kept, held = stratified_split(np.array([0] * 10 + [1] * 10), 0.2, seed=0)
    >>> len(kept), len(held)
    (16, 4)
    """
    if not 0 < fraction < 1:
        raise UserError(f"the fraction that is held out is between 0 and 1, got {fraction}")
    rng = np.random.Generator(np.random.Philox(seed))
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        n = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held.append(members[:n])
    out = np.sort(np.concatenate(held)) if held else np.array([], int)
    return np.setdiff1d(np.arange(len(labels)), out), out
