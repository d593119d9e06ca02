"""The layout of a folder of images: whether its subfolders are classes, or the splits of a dataset."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jaxvision.data.walk import ending_of, image_endings, is_hidden, walk_images
from jaxvision.errors import UserError, count, unknown_name_error

LAYOUTS = ("classes", "splits")

#: Split -> the names that its folder may have, in any case.
SPELLINGS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class Layout(NamedTuple):
    """How a folder of images is read.

    Attributes:
      splits: split -> its folder. Empty: the subfolders are classes.
      note: what was decided and which folders are ignored, in one line.
    """

    splits: Mapping[str, Path]
    note: str


class _Folder(NamedTuple):
    """What is in a subfolder.

    Attributes:
      images: whether images are directly in it.
      inner: names of the folders in it if at least one of them has images below it, else empty.
    """

    images: bool
    inner: Sequence[str]

    @property
    def is_empty(self) -> bool:
        """Whether there are no images in it or below it."""
        return not (self.images or self.inner)

    @property
    def contents(self) -> str:
        """What is in it, in words."""
        return " and ".join(filter(None, ("images" * self.images, "folders of images" * bool(self.inner))))


def subfolders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted, without hidden ones.

    Raises:
      UserError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_hidden(entry.name) and _is_folder(entry))
    except OSError as e:
        raise UserError(f"{folder}: cannot be read: {e.strerror or e}. Check the path and its permissions.") from e


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which the walk reports as broken
        return False


def split_of(name: str) -> str | None:
    """Returns the split that a folder's name stands for, or None.

    >>> split_of("Valid"), split_of("dev"), split_of("cat")
    ('validation', 'validation', None)
    """
    return next((split for split, names in SPELLINGS.items() if name.lower() in names), None)


def decide(root: Path, layout: str | None = None, *, option: str, classes: Collection[str] = ()) -> Layout:
    """Returns how to read a folder: as classes, or as splits.

    Looks at the whole folder, because ``train`` and ``test`` may also be classes. A split has a folder for each class,
    a class has images.

    Args:
      root: the folder.
      layout: ``"classes"``, ``"splits"``, or None to decide.
      option: the flag that sets `layout`, for messages, such as ``"--config.source.layout"``.
      classes: those of a trained model. None are known by default.

    Raises:
      UserError: no such layout, a folder that can be read in both ways, or one without a split.
    """
    if layout not in (None, *LAYOUTS):
        raise unknown_name_error(option.removeprefix("--"), str(layout), LAYOUTS)
    names = subfolders(root)
    one_each = f"{root}: read as {count(len(names), 'class', 'classes')}, one for each folder"
    if layout == "classes":
        return Layout({}, one_each)
    if layout is None and not any(map(split_of, names)):
        if not classes:
            _check_not_renamed_splits(root, names, option)
        return Layout({}, one_each)
    folders = {name: _look_into(root / name) for name in names}
    chosen = layout or _choose(root, folders, option, classes)
    if chosen == "splits":
        return _splits(root, folders, option, is_given=layout is not None)
    named = ", ".join(repr(name) for name in names if split_of(name))
    return Layout({}, f"{one_each}, also for {named}")


def _look_into(folder: Path) -> _Folder:
    inner = subfolders(folder)
    has_images = any(next(walk_images(folder / name).files, None) is not None for name in inner)
    return _Folder(_has_images(folder), inner if has_images else ())


def _has_images(folder: Path) -> bool:
    """Returns whether images are directly in a folder. Reads it up to the first one."""
    with os.scandir(folder) as entries:
        return any(
            ending_of(entry.name) in image_endings() and not is_hidden(entry.name) and not _is_folder(entry)
            for entry in entries
        )


def _check_not_renamed_splits(root: Path, names: Sequence[str], option: str) -> None:
    """Checks that folders are not splits with other names, such as ``train_set`` and ``test_set``.

    Looks for two folders that have no images of their own, and the same two or more folders in them. Looks only at the
    first folder if it has images, as almost every class has.

    Raises:
      UserError: there are two.
    """
    if not names or _is_unreadable_or_has_images(root / names[0]):
        return
    seen: dict[tuple[str, ...], str] = {}  # the folders in a folder -> its name
    for name in names:
        if _is_unreadable_or_has_images(root / name):
            continue
        inner = tuple(subfolders(root / name))
        if len(inner) < 2 or any(map(split_of, inner)):
            continue  # such as CLASS/images/, or splits in classes, for which there is another check
        other = seen.setdefault(inner, name)
        if other != name:
            raise UserError(
                f"{root}: got {other}/ and {name}/ with the same folders in them, {', '.join(inner[:3])}"
                f"{', ...' if len(inner) > 3 else ''}, expected classes, which have images, or splits with the names "
                f"train, val and test. Rename them to train/ and test/, or set {option}=classes if {other} and {name} "
                "are classes."
            )


def _is_unreadable_or_has_images(folder: Path) -> bool:
    try:
        return _has_images(folder)
    except OSError:  # which the walk reports
        return True


def _choose(root: Path, folders: Mapping[str, _Folder], option: str, classes: Collection[str]) -> str:
    """Returns the layout of a folder, or raises if both are plausible."""
    full = {name: folder for name, folder in folders.items() if not folder.is_empty}
    named = [folder for name, folder in full.items() if split_of(name)]
    others = [folder for name, folder in full.items() if not split_of(name)]
    train = next((folder for name, folder in full.items() if split_of(name) == "train"), None)
    if classes:
        inner_are_classes = any(set(folder.inner) & set(classes) for folder in named)
        if inner_are_classes != (set(folders) <= set(classes)):
            return "splits" if inner_are_classes else "classes"
    if not any(folder.inner for folder in named):
        return "classes"  # splits would have folders of images
    if all(folder.images for folder in named) and any(folder.images for folder in others):
        return "classes"  # all alike
    if train is None:
        if not others and not any(folder.images for folder in named):
            return "splits"
    elif train.inner and not any(folder.images and folder.inner for folder in named):
        # Other folders may be classes beside the class "train". A second split with the same classes decides.
        alike = [folder for folder in named if set(folder.inner) & set(train.inner)]
        if not others or len(alike) > 1:
            return "splits"
    seen = ", ".join(f"{name}/ with {folder.contents}" for name, folder in list(full.items())[:6])
    raise UserError(
        f"{root}: got {seen}{', ...' if len(full) > 6 else ''}, expected either classes, which have images, or splits, "
        f"which have a folder for each class. Set {option}=classes or {option}=splits."
    )


def check_classes_hold_no_splits(root: Path, folders: Iterable[str], *, fix: str) -> None:
    """Checks that no class has its own splits, such as ``cat/train`` and ``cat/test``. They would be one class.

    Args:
      root: the folder with a folder for each class.
      folders: the paths of the folders with images in it, relative to `root`.
      fix: the flag that reads them as one class, such as ``"--config.source.layout=classes"``.

    Raises:
      UserError: a class has two splits.
    """
    found: dict[str, dict[str, str]] = {}  # class -> split -> name of its folder
    flat: set[str] = set()  # classes whose splits have images of their own
    classes: set[str] = set()
    for path in folders:
        class_, *inner = path.split(os.sep, 2)
        classes.add(class_)
        if inner and (split := split_of(inner[0])):
            found.setdefault(class_, {})[split] = inner[0]
            if len(inner) == 1:
                flat.add(class_)
    for class_, splits in found.items():
        if len(splits) > 1:
            first, second = list(splits.values())[:2]
            if len(classes) == 1 and not flat:
                inside = root / class_
                flag = "--config.source.data_dir=" if fix.startswith("--config.source") else "--data "
                raise UserError(
                    f"{root}: got only the folder {class_}/ with the splits {first}/ and {second}/ in it, expected the "
                    f"splits themselves. Set {flag}{inside}, or set {fix} if all images in {class_}/ are one class "
                    "without splits."
                )
            raise UserError(
                f"{root}: got splits in a class, {class_}/{first}/ and {class_}/{second}/, expected classes in "
                f"splits, {first}/{class_}/ and {second}/{class_}/. Move the folders, or set {fix} if all images in "
                f"{class_}/ are one class without splits."
            )


def _splits(root: Path, folders: Mapping[str, _Folder], option: str, *, is_given: bool) -> Layout:
    """Returns the splits among the subfolders; the note names the folders that are ignored."""
    splits: dict[str, Path] = {}
    ignored = [f"{name}/" for name, folder in folders.items() if not split_of(name)]
    for split, spellings in SPELLINGS.items():
        names = sorted((name for name in folders if split_of(name) == split), key=lambda x: spellings.index(x.lower()))
        for name in names:
            if not folders[name].inner:
                what = "images without class folders" if folders[name].images else "no images"
                ignored.append(f"{name}/ ({what})")
            elif split not in splits:
                splits[split] = root / name
            elif is_given:
                ignored.append(f"{name}/ (a second {split} split)")
            else:
                raise UserError(
                    f"{root}: got the folders {splits[split].name!r} and {name!r}, expected one for the split "
                    f"{split!r}. Move one away, or set {option}=splits, which reads only {splits[split].name!r}."
                )
    if not splits:
        raise UserError(
            f"{root}: got no splits, expected a folder 'train' with a folder for each class. Set {option}=classes if "
            "its folders are classes."
        )
    read = ", ".join(f"{folder.name}/ ({split})" for split, folder in splits.items())
    return Layout(splits, f"{root}: read as splits {read}" + (f"; ignored {', '.join(ignored)}" if ignored else ""))


def check_outputs_outside(files: Sequence[Path], data: str | Path, layout: str | None = None) -> None:
    """Checks that no output of a command makes a folder that would later be read as a class.

    Args:
      files: to be written.
      data: a folder of images, or the name of a source, for which nothing is checked.
      layout: as for `decide`.

    Raises:
      UserError: a file is in a subfolder of a folder with classes.
    """
    root = Path(data).expanduser()
    if not os.path.isdir(root):
        return
    splits: Mapping[str, Path] = {}
    with suppress(UserError):  # which opening the folder raises as well
        splits = decide(root, layout, option="layout").splits
    for folder in splits.values() or [root]:
        for file in files:
            if not file.resolve().is_relative_to(folder.resolve()):
                continue
            *inner, _ = file.resolve().relative_to(folder.resolve()).parts
            if inner and not any(map(is_hidden, inner)):
                raise UserError(
                    f"output: got {folder / inner[0]}, which would be read as a class of {folder}, expected a folder "
                    f"outside of {folder}. Choose another one, and move earlier results out of {folder}."
                )
