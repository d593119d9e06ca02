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
SPLITS = {
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
      ignored: number of other files in the folder, whose extension is not that of an image.
    """

    def __init__(
        self, files: Sequence[str], labels: Sequence[int], *, classes: Sequence[str], name: str, ignored: int = 0
    ):
        self.files = list(files)
        self.labels = np.asarray(labels, np.int32)
        self.classes = list(classes)
        self.name = name
        self.ignored = ignored

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return {"image": Path(self.files[index]).read_bytes(), "label": int(self.labels[index])}

    def where(self, index: int) -> str:
        return self.files[index]


def open_folder(*, data_dir: str, test_fraction: float = 0.2, split_seed: int = 0) -> Splits:
    """Returns the images of a folder with one folder per class.

    Reads ``data_dir/train/CLASS/...`` and the folders ``val`` and ``test`` next to ``train``, if they exist. Otherwise
    reads ``data_dir/CLASS/...`` and holds out some images for testing. Classes are the sorted names of the folders.
    Images may be in subfolders. Hidden files and files without an image's extension are ignored.

    Args:
      data_dir: the folder.
      test_fraction: share of each class that is held out for testing if there is neither ``val`` nor ``test``.
      split_seed: seed of the random choice.

    Raises:
      UserError: no such folder, no classes, a class without images, or a class that ``train`` does not have.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(
            f"source.data_dir: got {data_dir!r}, expected a folder that exists. Set --config.source.data_dir to the "
            "folder of your images."
        )
    splits = split_folders(root)
    if splits and "train" not in splits:
        found = ", ".join(folder.name for folder in splits.values())
        raise UserError(f"{root}: got only {found}, expected also a folder 'train'. Add one with the training images.")
    if set(splits) <= {"train"}:
        folder = splits.get("train", root)
        images = _read(folder, _classes(folder), "folder")
        kept, held = stratified_split(images.labels, test_fraction, seed=split_seed)
        if not len(held):
            raise UserError(
                f"{root}: got one image per class, expected at least two, one of them for testing. Add images."
            )
        return Splits(train=_take(images, kept, "train"), test=_take(images, held, "held out"))
    classes = _classes(splits["train"])
    classes_of = {split: _classes(folder) for split, folder in splits.items()}
    for split, names in classes_of.items():
        if unknown := sorted(set(names) - set(classes)):
            raise UserError(
                f"{splits[split]}: got the class {unknown[0]!r}{_and_more(unknown)}, expected only classes of "
                f"{splits['train']}. Rename the folder or move it away."
            )
    return Splits(**{split: _read(folder, classes, split, only=classes_of[split]) for split, folder in splits.items()})


def split_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of `root` that are splits of a dataset: ``train`` and so on, in any spelling of `SPLITS`."""
    folders = {path.name.lower(): path for path in sorted(root.iterdir(), reverse=True) if path.is_dir()}
    return {split: folders[name] for split, names in SPLITS.items() for name in reversed(names) if name in folders}


def open_test_folder(data_dir: str | Path, classes: Sequence[str], split: str = "test") -> FolderSource:
    """Returns the images of ``data_dir/CLASS/...`` with the class numbers of a trained model.

    Args:
      data_dir: the folder.
      classes: the model's classes, in the order of their numbers.
      split: the folder to read if `data_dir` has folders such as ``train``, ``validation`` and ``test``.

    Raises:
      UserError: a folder that is not one of the classes, or no such split.
    """
    root = Path(data_dir)
    splits = split_folders(root)
    if splits and not set(_classes(root)) <= set(classes):
        split = next((name for name, spellings in SPLITS.items() if split.lower() in spellings), split)
        if split not in splits:
            valid = ", ".join(f"{name} ({folder.name}/)" for name, folder in splits.items())
            raise UserError(f"{root}: got the split {split!r}, expected one of {valid}. Choose one of them.")
        root = splits[split]
    found = _classes(root)
    if unknown := [name for name in found if name not in classes]:
        known = ", ".join(list(classes)[:8]) + _and_more(classes, shown=8)
        raise UserError(
            f"{root}: got the class {unknown[0]!r}{_and_more(unknown)}, expected the classes of the model: {known}. "
            "Rename the folder or move it away."
        )
    return _read(root, classes, root.name, only=found)


def _and_more(names: Sequence[str], *, shown: int = 1) -> str:
    return f" and {len(names) - shown:,} more" if len(names) > shown else ""


def _classes(folder: Path) -> list[str]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise UserError(
            f"{folder}: got no folders, expected one for each class. Move the images of each class into one."
        )
    for name in classes:
        if any("\ud800" <= character <= "\udfff" for character in name):  # Python decodes invalid UTF-8 to these
            raise UserError(f"{folder}: got the folder name {name!r}, expected UTF-8. Rename the folder.")
    return classes


def _read(folder: Path, classes: Sequence[str], name: str, *, only: Sequence[str] | None = None) -> FolderSource:
    files: list[str] = []
    labels: list[int] = []
    ignored = 0
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
            kinds = f" (only {', '.join(sorted(other))})" if other else ""
            raise UserError(f"{folder / class_}: got no images{kinds}, expected at least one. Add images or remove it.")
        ignored += other.total()
    return FolderSource(files, labels, classes=classes, name=f"{folder} ({name})", ignored=ignored)


def _walk(folder: Path) -> Iterator[str]:
    """Yields the files below a folder in sorted order, except hidden ones. Follows links."""
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.join(path, name)


def _take(source: FolderSource, rows: np.ndarray, split: str) -> FolderSource:
    return FolderSource(
        [source.files[i] for i in rows],
        source.labels[rows],
        classes=source.classes,
        name=f"{source.name}, {split}",
        ignored=source.ignored if split == "train" else 0,
    )
