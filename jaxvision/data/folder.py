"""Image folders with one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jaxvision.data.source import Example, Splits, stratified_split
from jaxvision.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


class FolderSource:
    """Image files and their labels.

    Args:
      files: paths.
      labels: int [n].
      classes: names of the classes, in the order of their numbers.
      name: for messages.
      passed_over: number of other files in the folder, which are not images by their extension.
    """

    def __init__(
        self, files: Sequence[str], labels: Sequence[int], *, classes: Sequence[str], name: str, passed_over: int = 0
    ):
        self.files = list(files)
        self.labels = np.asarray(labels, np.int32)
        self.classes = list(classes)
        self.name = name
        self.passed_over = passed_over

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return {"image": Path(self.files[index]).read_bytes(), "label": int(self.labels[index])}

    def where(self, index: int) -> str:
        return self.files[index]


def open_folder(*, data_dir: str, test_fraction: float = 0.2, split_seed: int = 0) -> Splits:
    """Returns the images of a folder with one folder per class.

    Reads ``data_dir/train/CLASS/...`` and the folders ``val`` and ``test`` next to ``train``, if they exist. Otherwise
    reads ``data_dir/CLASS/...`` and holds out a part for testing. Classes are the sorted names of the folders. Images
    may be in subfolders. Hidden files and files without an image's extension are ignored.

    Args:
      data_dir: the folder.
      test_fraction: share of each class that is held out for testing if there is neither ``val`` nor ``test``.
      split_seed: seed of the random choice.

    Raises:
      UserError: no such folder, no classes, a class without images, or a class that ``train`` does not have.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"no such folder: {data_dir}; set --config.source.data_dir to the folder of your images")
    parts = part_folders(root)
    if parts and "train" not in parts:
        raise UserError(f"{root} has {', '.join(p.name for p in parts.values())} but no folder 'train'")
    if set(parts) <= {"train"}:
        folder = parts.get("train", root)
        whole = _read(folder, _classes(folder), "folder")
        kept, held = stratified_split(whole.labels, test_fraction, seed=split_seed)
        if not len(held):
            raise UserError(f"{root}: one image per class leaves none to test on; add images")
        return Splits(train=_take(whole, kept, "train"), test=_take(whole, held, "held out"))
    classes = _classes(parts["train"])
    found = {part: _classes(folder) for part, folder in parts.items()}
    for part, there in found.items():
        if strangers := sorted(set(there) - set(classes)):
            raise UserError(
                f"{parts[part]} has the class {strangers[0]!r}, which {parts['train']} has not "
                f"({len(strangers)} such classes)"
            )
    return Splits(**{part: _read(folder, classes, part, only=found[part]) for part, folder in parts.items()})


def part_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of `root` that are parts of a dataset: ``train`` and so on, in any spelling of `PARTS`."""
    there = {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()}
    return {part: there[name] for part, names in PARTS.items() for name in reversed(names) if name in there}


def open_test_folder(data_dir: str | Path, classes: Sequence[str], part: str = "test") -> FolderSource:
    """Returns the images of ``data_dir/CLASS/...`` with the class numbers of a trained model.

    Args:
      data_dir: the folder.
      classes: the model's classes, in the order of their numbers.
      part: the folder to read if `data_dir` has folders such as ``train``, ``validation`` and ``test``.

    Raises:
      UserError: a folder that is not one of the classes, or no such part.
    """
    root = Path(data_dir)
    parts = part_folders(root)
    if parts and not set(_classes(root)) <= set(classes):
        part = next((whole for whole, names in PARTS.items() if part.lower() in names), part)
        if part not in parts:
            there = ", ".join(f"{name} ({folder.name}/)" for name, folder in parts.items())
            raise UserError(f"{root} has no part {part!r}; there are {there}")
        root = parts[part]
    found = _classes(root)
    if strangers := [name for name in found if name not in classes]:
        known = ", ".join(list(classes)[:8]) + (f" and {len(classes) - 8:,} more" if len(classes) > 8 else "")
        more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
        raise UserError(
            f"{root}: the model does not know the class {strangers[0]!r}{more}, only {known}; rename the folder, or "
            f"move it away"
        )
    return _read(root, classes, root.name, only=found)


def _classes(folder: Path) -> list[str]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise UserError(f"{folder} has no folders; it needs one for each class, with the images inside")
    for name in classes:
        if any("\ud800" <= character <= "\udfff" for character in name):  # how Python represents other bytes
            raise UserError(f"{folder}: the name of the folder {name!r} is not UTF-8; rename it")
    return classes


def _read(folder: Path, classes: Sequence[str], name: str, *, only: Sequence[str] | None = None) -> FolderSource:
    files: list[str] = []
    labels: list[int] = []
    passed_over = 0
    for label, class_ in enumerate(classes):
        if only is not None and class_ not in only:
            continue
        before, other = len(files), Counter[str]()
        for path in _walk(folder / class_):
            ending = os.path.splitext(path)[1].lower()
            if ending in EXTENSIONS:
                files.append(path)
                labels.append(label)
            else:
                other[ending or os.path.basename(path)] += 1
        if len(files) == before:
            kinds = f" (but files of the kinds {', '.join(sorted(other))})" if other else ""
            raise UserError(f"the class folder {folder / class_} has no images{kinds}; fill it or remove it")
        passed_over += other.total()
    return FolderSource(files, labels, classes=classes, name=f"{folder} ({name})", passed_over=passed_over)


def _walk(folder: Path) -> Iterator[str]:
    """Yields the files below a folder in sorted order, without hidden ones; follows links."""
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(path, name)


def _take(source: FolderSource, rows: np.ndarray, part: str) -> FolderSource:
    return FolderSource(
        [source.files[i] for i in rows],
        source.labels[rows],
        classes=source.classes,
        name=f"{source.name}, {part}",
        passed_over=source.passed_over if part == "train" else 0,
    )
