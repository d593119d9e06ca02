"""Image folders with one folder per class."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxvision.data.distinct import check_class_folders_are_distinct, check_links_are_distinct
from jaxvision.data.layout import check_classes_hold_no_splits, decide, split_of, subfolders
from jaxvision.data.manifest import ImageFiles, read_folder
from jaxvision.data.source import SOURCES, Example, Splits, stratified_split
from jaxvision.data.walk import Ignored, ignored_text, walk_images
from jaxvision.errors import UserError, unknown_name_error


class FolderSource:
    """Image files and their labels.

    Args:
      files: their paths.
      labels: int [n].
      classes: names of the classes, in the order of their numbers.
      name: for messages.
      notes: lines about how the folder is read.
      warnings: lines about files that are ignored.
    """

    def __init__(
        self,
        files: ImageFiles,
        labels: np.ndarray,
        *,
        classes: Sequence[str],
        name: str,
        notes: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ):
        self.files = files
        self.labels = np.asarray(labels, np.int32)
        self.classes = list(classes)
        self.name = name
        self.notes = list(notes)
        self.warnings = list(warnings)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Example:
        return {"image": Path(self.files[index]).read_bytes(), "label": int(self.labels[index])}

    def where(self, index: int) -> str:
        return self.files[index]

    def names_checksum(self) -> int:
        """Returns a checksum of the paths, relative to the folder of the split, in their order."""
        return self.files.checksum()


def open_folder(*, data_dir: str, layout: str | None = None, test_fraction: float = 0.2, split_seed: int = 0) -> Splits:
    """Returns the images of a folder with one folder per class.

    Reads ``data_dir/CLASS/...`` and holds out some images for testing, or reads ``data_dir/train/CLASS/...`` and the
    folders ``val`` and ``test`` next to ``train``, if they exist. Classes are the sorted names of the folders. Images
    may be in subfolders. See `jaxvision.data.walk` for which files are images.

    Args:
      data_dir: the folder.
      layout: whether the folders in `data_dir` are ``"classes"`` or ``"splits"``, such as ``train`` and ``val``. None
        decides by their names and contents.
      test_fraction: share of each class that is held out for testing if there is neither ``val`` nor ``test``. 0 holds
        out none.
      split_seed: seed of the random choice.

    Raises:
      UserError: no such folder, no classes, a class without images, a class that ``train`` does not have, a folder in
        two splits, an image in two splits through links, or a layout that is ambiguous.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(
            f"source.data_dir: got {data_dir!r}, expected a folder that exists. Set --config.source.data_dir to the "
            "folder of your images."
        )
    splits, note = decide(root, layout, option="--config.source.layout")
    if splits and "train" not in splits:
        found = ", ".join(folder.name for folder in splits.values())
        raise UserError(
            f"{root}: got only {found}, expected also a folder 'train'. Add one with the training images, or set "
            "--config.source.layout=classes if these are classes."
        )
    layout_flag = None if layout else f"--config.source.layout={'splits' if splits else 'classes'}"
    if set(splits) <= {"train"}:
        folder = splits.get("train", root)
        images = _read(folder, _classes(folder), "folder", layout_flag=layout_flag)
        if test_fraction == 0:
            images.notes.append(note)
            return Splits(train=images)
        kept, held = stratified_split(images.labels, test_fraction, seed=split_seed)
        if not len(held):
            raise UserError(
                f"{root}: got one image per class, expected at least two, one of them for testing. Add images."
            )
        note = f"{note}; {test_fraction:.0%} of each class are held out for testing"
        train = _take(images, kept, "train", notes=[note], warnings=images.warnings)
        return Splits(train=train, test=_take(images, held, "held out"))
    read = _read_splits(splits, layout_flag)
    read["train"].notes.append(note)
    return Splits(**read)


def find_folder(data: str | Path, options: Collection[str] = ()) -> Path | None:
    """Returns the folder that an argument names, or None if it names a source.

    Args:
      data: a folder, or the name of a source. A folder of the same name as a source comes first.
      options: names of options, of which a folder takes only ``layout``.

    Raises:
      UserError: there is neither such a folder nor such a source, or a folder does not take the options.

    >>> find_folder("digits") is None
    True
    """
    folder = Path(data).expanduser()
    if os.path.isdir(folder):  # unlike Path.is_dir, it does not raise for a name that no file can have
        if unknown := sorted({*options} - {"layout"}):
            raise unknown_name_error("--option", unknown[0], ["layout"], expected="an option of a folder")
        return folder
    if data not in SOURCES and ":" not in str(data):
        raise UserError(
            f"data: got {str(data)!r}, expected a folder that exists or one of the sources {', '.join(SOURCES)}. "
            "Check the path."
        )
    return None


def open_all_images(data_dir: str | Path, *, layout: str | None = None) -> dict[str, FolderSource]:
    """Returns all images of a folder by split, without holding any out.

    A folder without splits has the single split ``"all"``. Images directly in the folder have no class: `classes` is
    then a single empty name.

    Args:
      data_dir: the folder.
      layout: as for `open_folder`.

    Raises:
      UserError: no such folder, no images, or as for `open_folder`.
    """
    root = Path(data_dir)
    if not root.is_dir():
        raise UserError(f"data: got {str(data_dir)!r}, expected a folder that exists. Check the path.")
    if layout is None and not subfolders(root):
        manifest, warning = read_folder(root)
        if not len(manifest):
            raise _no_images_error(root, [""])
        files = ImageFiles(str(root), manifest, range(len(manifest)))
        ignored = [f"{root}: ignored {ignored_text(manifest.ignored)}"] if manifest.ignored else []
        warnings = [*ignored, *filter(None, [warning])]
        return {"all": FolderSource(files, np.zeros(len(files)), classes=[""], name=str(root), warnings=warnings)}
    splits, note = decide(root, layout, option="--option layout")
    flag = None if layout else f"--option layout={'splits' if splits else 'classes'}"
    if "train" in splits:
        read = _read_splits(splits, flag)
    else:
        classes_of = {split: _classes(folder) for split, folder in (splits or {"all": root}).items()}
        classes = sorted({name for names in classes_of.values() for name in names})
        read = {
            split: _read(splits.get(split, root), classes, split, only=names, layout_flag=flag)
            for split, names in classes_of.items()
        }
    next(iter(read.values())).notes.append(note)
    return read


def open_test_folder(
    data_dir: str | Path, classes: Sequence[str], split: str = "test", *, layout: str | None = None
) -> FolderSource:
    """Returns the images of ``data_dir/CLASS/...`` with the class numbers of a trained model.

    Args:
      data_dir: the folder.
      classes: the model's classes, in the order of their numbers.
      split: the folder to read if `data_dir` has folders such as ``train``, ``validation`` and ``test``.
      layout: as for `open_folder`. None also considers which folders have the names of the model's classes.

    Raises:
      UserError: a folder that is not one of the classes, no such split, or a layout that is ambiguous.
    """
    root = Path(data_dir)
    splits, note = decide(root, layout, option="--option layout", classes=classes)
    if splits:
        split = split_of(split) or split
        if split not in splits:
            valid = ", ".join(f"{name} ({folder.name}/)" for name, folder in splits.items())
            first = "validation" if "validation" in splits else next(iter(splits))
            default = " (the default)" if split == "test" else ""
            raise UserError(
                f"{root}: got no folder for the split {split!r}{default}, expected one of {valid}. Choose one of "
                f"them, such as with --split {first}."
            )
        root = splits[split]
    found = _classes(root)
    if unknown := [name for name in found if name not in classes]:
        known = ", ".join(list(classes)[:8]) + _and_more(classes, shown=8)
        raise UserError(
            f"{root}: got the class {unknown[0]!r}{_and_more(unknown)}, expected the classes of the model: {known}. "
            "Rename the folder or move it away."
        )
    layout_flag = None if layout else f"--option layout={'splits' if splits else 'classes'}"
    source = _read(root, classes, root.name, only=found, layout_flag=layout_flag)
    source.notes.append(note)
    return source


def _read_splits(splits: Mapping[str, Path], layout_flag: str | None) -> dict[str, FolderSource]:
    """Returns the images of each split, all with the classes of ``train``."""
    classes = _classes(splits["train"])
    classes_of = {split: _classes(folder) for split, folder in splits.items()}
    for split, names in classes_of.items():
        if unknown := sorted(set(names) - set(classes)):
            raise UserError(
                f"{splits[split]}: got the class {unknown[0]!r}{_and_more(unknown)}, expected only classes of "
                f"{splits['train']}. Rename the folder or move it away."
            )
    check_class_folders_are_distinct(splits, classes_of)
    read = {
        split: _read(folder, classes, split, only=classes_of[split], layout_flag=layout_flag)
        for split, folder in splits.items()
    }
    check_links_are_distinct(splits, {split: images.files.manifest for split, images in read.items()})
    return read


def _and_more(names: Sequence[str], *, shown: int = 1) -> str:
    return f" and {len(names) - shown:,} more" if len(names) > shown else ""


def _classes(folder: Path) -> list[str]:
    classes = subfolders(folder)
    if not classes:
        raise UserError(
            f"{folder}: got no folders, expected one for each class. Move the images of each class into one."
        )
    for name in classes:
        if any("\ud800" <= character <= "\udfff" for character in name):  # Python decodes invalid UTF-8 to these
            raise UserError(f"{folder}: got the folder name {name!r}, expected UTF-8. Rename the folder.")
    return classes


def _read(
    folder: Path, classes: Sequence[str], name: str, *, layout_flag: str | None, only: Sequence[str] | None = None
) -> FolderSource:
    """Returns the images of the classes in a folder.

    Args:
      folder: the folder.
      classes: names of the classes, in the order of their numbers.
      name: of the split, for messages.
      layout_flag: flag that the error suggests if a class contains splits, such as
        ``--config.source.layout=classes``; None skips the check.
      only: the classes that must have an image. None: all of them.
    """
    manifest, warning = read_folder(folder)
    number = {class_: i for i, class_ in enumerate(classes)}
    counts = np.diff(manifest.ends, prepend=0)
    folders = manifest.folders()
    if layout_flag is not None:
        check_classes_hold_no_splits(folder, itertools.compress(folders, counts), fix=layout_flag)
    outside = int(counts[0]) if folders and not folders[0] else 0  # images directly in `folder`, which come first
    class_of = np.array([number.get(path.partition(os.sep)[0], -1) for path in folders], np.int32)
    labels = np.repeat(class_of, counts)[outside:]
    per_class = np.bincount(labels, minlength=len(classes))
    if empty := [class_ for class_ in (classes if only is None else only) if not per_class[number[class_]]]:
        raise _no_images_error(folder, empty)
    files = ImageFiles(str(folder), manifest, range(outside, len(manifest)))
    ignored = dict(manifest.ignored)
    if outside:
        ignored["image outside of the class folders"] = Ignored(outside, manifest.path(0))
    warnings = [f"{folder}: ignored {ignored_text(ignored)}"] if ignored else []
    if warning:
        warnings.append(warning)
    return FolderSource(files, labels, classes=classes, name=f"{folder} ({name})", warnings=warnings)


def _no_images_error(root: Path, empty: Sequence[str]) -> UserError:
    """Returns the error for the folders of classes without images; says of the first one what is in it instead."""
    folder = root / empty[0]
    walk = walk_images(folder)
    only_links = next(walk.files, None) is not None
    kinds = "links to images of other classes" if only_links else ignored_text(walk.ignored)
    only = f" (only {kinds})" if kinds else ""
    if len(empty) == 1:
        return UserError(f"{folder}: got no images{only}, expected at least one. Add images or remove it.")
    named = ", ".join(empty[1:5]) + (f" and {len(empty) - 5:,} more" if len(empty) > 5 else "")
    return UserError(
        f"{root}: got {len(empty):,} class folders without images: {empty[0]}{only}, {named}, expected at least one "
        "image in each. Add images or remove the folders."
    )


def _take(
    source: FolderSource, rows: np.ndarray, split: str, *, notes: Sequence[str] = (), warnings: Sequence[str] = ()
) -> FolderSource:
    return FolderSource(
        source.files.take(rows),
        source.labels[rows],
        classes=source.classes,
        name=f"{source.name}, {split}",
        notes=notes,
        warnings=warnings,
    )
