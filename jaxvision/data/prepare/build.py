"""From the files of an original to a folder that TFDS reads, in one process while the others wait."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from jaxvision.data.prepare.downloads import download, downloaded_bytes
from jaxvision.data.prepare.originals import ORIGINALS, Original
from jaxvision.data.prepare.records import write_split
from jaxvision.data.prepare.split import Split
from jaxvision.disk import hold_lock, temporary_path
from jaxvision.errors import UserError, disk_errors_as_user_errors

logger = logging.getLogger(__name__)


class Target(NamedTuple):
    """What is prepared.

    Attributes:
      name: key of `ORIGINALS`.
      original: its value.
      root: the folder of all datasets.
      folder: the folder of this dataset, to be written.
      builder: of TFDS, with the features and the description.
    """

    name: str
    original: Original
    root: Path
    folder: Path
    builder: Any


def find_original(dataset: str, data_dir: str | None) -> Target | None:
    """Returns how to prepare a dataset without TensorFlow, or None if that is not possible.

    Args:
      dataset: as for `tfds.builder`.
      data_dir: folder of all datasets. None: the default of TFDS.
    """
    import tensorflow_datasets as tfds

    name = dataset.partition("/")[0].partition(":")[0]
    if name not in {key.partition("/")[0] for key in ORIGINALS}:
        return None
    # TFDS does not have Imagewoof, whose files are laid out as those of Imagenette.
    known = dataset.replace("imagewoof", "imagenette", 1) if name == "imagewoof" else dataset
    builder = tfds.builder(known, data_dir=data_dir)
    parts = [name] + ([builder.builder_config.name] if builder.builder_config else [])
    root = Path(builder.data_path).parents[len(parts)]
    original = ORIGINALS.get("/".join(parts))
    if original is None or "://" in str(builder.data_path):
        return None
    return Target("/".join(parts), original, root, root.joinpath(*parts, str(builder.version)), builder)


def prepare(target: Target) -> None:
    """Downloads a dataset and writes it as TFDS would. Leaves no folder that looks complete if it is interrupted.

    Raises:
      UserError: no network, or a file is missing, damaged or cannot be written.
    """
    waiting = f"waiting for another process that prepares {target.name}"
    with (
        disk_errors_as_user_errors(target.root),
        hold_lock(target.folder.parent / f".{target.folder.name}.lock", lambda: logger.warning(waiting)) as is_locked,
    ):
        if (target.folder / "dataset_info.json").exists():  # another process has prepared it while this one waited
            return
        if target.folder.exists():
            raise UserError(
                f"{target.folder}: got a folder without dataset_info.json, expected a prepared dataset or none. Remove "
                "it, and run the same command again."
            )
        if is_locked:
            for left in target.folder.parent.glob(f".{target.folder.name}.*.tmp"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
        _check_room(target)
        paths = _files(target)
        temporary = temporary_path(target.folder)
        try:
            _write(target, paths, temporary)
            temporary.rename(target.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check_room(target: Target) -> None:
    """Raises a `UserError` if the disk has too little room.

    A download needs room for what is missing of it, for the unpacked archive and for the dataset; an archive of the
    user only for the dataset.
    """
    folder = _download_folder(target)
    manual = [_manual_folder(target) / file.name for file in target.original.files if not file.urls]
    needed = sum(
        3 * file.size - min(downloaded_bytes(file, folder), file.size)
        for file in target.original.files
        if file.size is not None
    )
    needed += sum(path.stat().st_size for path in manual if path.is_file())
    free = shutil.disk_usage(next(parent for parent in target.folder.parents if parent.exists())).free
    if free < needed:
        raise UserError(
            f"tfds {target.name}: {target.root} has {free / 1e9:.1f} GB of free space, expected {needed / 1e9:.1f}. "
            "Make room, or set --config.source.data_dir to a folder on another disk."
        )


def _files(target: Target) -> dict[str, Path]:
    """Returns the path of each file of the original, downloaded if necessary."""
    files = target.original.files
    if not files[0].urls:
        folder = _manual_folder(target)
        missing = [file.name for file in files if not (folder / file.name).is_file()]
        if missing:
            raise UserError(
                f"tfds {target.name}: not prepared in {target.root}, and only its owner may distribute it. Download "
                f"{' and '.join(missing)} from https://image-net.org/download-images to {folder}, and run the same "
                "command again, or set --config.source.data_dir to the folder of a prepared dataset."
            )
        return {file.name: folder / file.name for file in files}
    folder = _download_folder(target)
    try:
        return {file.name: download(file, folder) for file in files}
    except OSError as e:
        listed = ", ".join(f"{file.name} ({file.urls[0]})" for file in files)
        raise UserError(
            f"tfds {target.name}: cannot download it ({e}). Run the same command again when there is a network, or put "
            f"{listed} into {folder}, or set --config.source.data_dir to the folder of a prepared dataset."
        ) from e


def _download_folder(target: Target) -> Path:
    return target.root / "downloads" / target.name


def _manual_folder(target: Target) -> Path:
    """Returns the folder in which TFDS, too, expects what the user downloads."""
    return target.root / "downloads" / "manual"


def _write(target: Target, paths: dict[str, Path], folder: Path) -> None:
    """Writes the dataset into a new folder."""
    import tensorflow_datasets as tfds

    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    info, dataset = target.builder.info, target.folder.relative_to(target.root).parts[0]
    features, description = info.features, info.description
    if target.original.classes:
        classes = tfds.features.ClassLabel(names=target.original.classes)
        features = tfds.features.FeaturesDict({**features, "label": classes})
        description = f"{dataset.capitalize()}, with the features of {info.name}."
    try:
        splits = []
        for split in target.original.read(paths, features, scratch):
            if target.original.images is not None:
                _check_number(split, target.original.images[split.name])
            splits.append(write_split(split, folder, dataset=dataset, features=features))
    except Exception as e:  # a damaged file raises arbitrary exceptions; only those of the disk have a number
        if isinstance(e, UserError) or (isinstance(e, OSError) and e.errno is not None):
            raise
        names = ", ".join(str(path) for path in paths.values())
        reason = f"it lacks {e}" if type(e) is KeyError else " ".join(str(e).split()) or type(e).__name__
        raise UserError(
            f"tfds {target.name}: cannot read {names}: {reason}. Replace the damaged file, and try again."
        ) from e
    shutil.rmtree(scratch)
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=splits,
        version=str(target.builder.version),
        supervised_keys=info.supervised_keys,
        description=description,
        homepage=info.homepage,
        citation=info.citation,
        check_data=False,
    )


def _check_number(split: Split, expected: int) -> None:
    """Raises a `ValueError` if images of a split are missing."""
    if len(split.keys) != expected:
        raise ValueError(f"found {len(split.keys):,} of {expected:,} images of the split {split.name}")
