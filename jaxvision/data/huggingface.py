"""Parquet datasets of the Hugging Face hub, local or downloaded, read without the package `datasets`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.data.source import Example, Splits
from jaxvision.errors import UserError, unknown_name_error


class ParquetSource:
    """Rows of parquet files with an image and a label.

    A parquet file can only be read by row groups of hundreds of images. The image column is therefore copied once into
    an Arrow file, which is mapped into memory. It gives random access to the rows, and the workers share it.

    Args:
      files: Arrow files, in order, from `_arrow_copy`.
      labels: int [n].
      classes: names of the classes, in the order of their numbers.
      name: for messages.
    """

    def __init__(self, files: Sequence[Path], labels: np.ndarray, *, classes: Sequence[str], name: str):
        self._files = [str(file) for file in files]
        self._column: Any = None
        self.labels = np.asarray(labels, np.int32)
        self.classes = list(classes)
        self.name = name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        if self._column is None:
            import pyarrow as pa

            tables = [pa.ipc.open_file(pa.memory_map(file)).read_all() for file in self._files]
            self._column = pa.concat_tables(tables).column(0)
        # A row without bytes (a path without its file, or null) counts as a damaged image.
        return {"image": self._column[index].as_py() or b"", "label": int(self.labels[index])}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_column": None}  # each worker maps the files itself

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_huggingface(
    *,
    path: str,
    folder: str | None = None,
    image: str = "image",
    label: str = "label",
    train: str | None = "train",
    validation: str | None = None,
    test: str | None = "test",
    revision: str | None = None,
    cache_dir: str | None = None,
) -> Splits:
    """Returns the splits of a dataset in parquet files.

    Args:
      path: a folder with files such as ``data/train-00000-of-00004.parquet``, or the name of a dataset on the hub,
        such as ``"uoft-cs/cifar10"``, which is then downloaded into the hub's cache.
      folder: the folder within `path`, if the dataset has several (the hub calls them configurations).
      image: column of the images: bytes, or a struct with ``bytes``.
      label: column of the class numbers or names.
      train: the split for training: files whose name or folder begins with this.
      validation: the split for choosing the best checkpoint. None: no validation.
      test: the split for the final evaluation. None: no test.
      revision: revision of the dataset on the hub. None: the newest.
      cache_dir: folder for the copies of the image columns, which are as large as the files. None:
        ``~/.cache/jaxvision/parquet``.

    Raises:
      UserError: no such folder, files or columns, a row without a label, or the hub cannot be reached.
    """
    root = Path(path)
    if not root.is_dir():
        root = _fetch(path, revision)
    root = root / (folder or "")
    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise UserError(f"{root}: got no parquet files, expected at least one. Check source.path and source.folder.")
    named = {"train": train, "validation": validation, "test": test}
    chosen = {split: _files_of(name, files, root) for split, name in named.items() if name}
    columns = {split: [_labels(file, image, label) for file in chosen[split]] for split in chosen}
    classes = _classes([column for split in columns.values() for column in split], chosen, label)
    cache = Path(cache_dir or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "jaxvision" / "parquet").expanduser()
    number_of = {class_: i for i, class_ in enumerate(classes)}

    def source(split: str) -> ParquetSource:
        values = np.concatenate(columns[split])
        labels = np.array([number_of[v] for v in values]) if values.dtype.kind == "O" else values
        copies = [_arrow_copy(file, image, cache) for file in chosen[split]]
        return ParquetSource(copies, labels, classes=classes, name=f"{path} {named[split]}")

    return Splits(**{split: source(split) for split in chosen})


def _files_of(split: str, files: Sequence[Path], root: Path) -> list[Path]:
    found = [file for file in files if any(x.startswith(split) for x in file.relative_to(root).parts[-2:])]
    if not found:
        raise UserError(
            f"{root}: got no parquet files of the split {split!r}, only {_some(files)}. Set source.train, "
            "source.validation and source.test to the splits of the dataset, or to None."
        )
    folders = sorted({str(file.relative_to(root).parent) for file in found})
    if len(folders) > 1:
        raise UserError(
            f"{root}: got the split {split!r} in several folders: {_short(folders)}. Choose one with "
            "--config.source.folder."
        )
    return found


def _labels(file: Path, image: str, label: str) -> np.ndarray:
    """Returns the column of the labels: integers, or an array of strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            for column in (image, label):
                if column not in table.schema_arrow.names:
                    raise unknown_name_error(str(file), column, table.schema_arrow.names, expected="a column")
            values = table.read(columns=[label]).column(0)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file}: cannot be read as parquet ({e}). Repair or remove the file.") from e
    if values.null_count:
        row = next(i for i, value in enumerate(values) if not value.is_valid)
        raise UserError(
            f"{file}: row {row} has no {label!r}, expected a label in every row. Remove the {values.null_count} rows "
            "without one."
        )
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return values.to_numpy().astype(object)
    if not pa.types.is_integer(values.type):
        raise UserError(
            f"{file}: got {values.type} in the column {label!r}, expected the numbers or names of classes. Set "
            "source.label to another column."
        )
    return values.to_numpy()


def _classes(columns: Sequence[np.ndarray], files: dict[str, list[Path]], label: str) -> list[str]:
    """Returns the names of the classes: the labels if they are names, else those in the files, else numbers."""
    if any(column.dtype.kind == "O" for column in columns):
        return sorted(set().union(*(column.tolist() for column in columns)))
    import pyarrow.parquet as pq

    names_of = {split: _class_names(pq.read_schema(of[0]).metadata, label) for split, of in files.items()}
    names = next((names for names in names_of.values() if names), None)
    for split, other in names_of.items():
        if other and other != names:
            raise UserError(
                f"source.{split}: got the classes {_short(other)}, expected those of the other splits: {_short(names)}."
                " Choose splits with the same classes."
            )
    return names or [str(i) for i in range(max(int(column.max(initial=-1)) for column in columns) + 1)]


def _arrow_copy(file: Path, image: str, cache: Path) -> Path:
    """Returns an Arrow file with the images of a parquet file; creates it if it does not exist."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    state = file.stat()
    identity = f"{file.resolve()} {state.st_size} {state.st_mtime_ns} {image}"
    copy = cache / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.arrow"
    if copy.exists():
        return copy
    incomplete = copy.with_suffix(f".{os.getpid()}")
    schema = pa.schema([("image", pa.large_binary())])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with pq.ParquetFile(file) as table, pa.ipc.new_file(str(incomplete), schema) as writer:
            for batch in table.iter_batches(batch_size=256, columns=[image]):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                writer.write_batch(pa.record_batch([images.cast(pa.large_binary())], schema=schema))
        incomplete.replace(copy)  # atomic: the copy is complete or missing
    except (pa.ArrowException, OSError, KeyError) as e:
        raise UserError(
            f"{file}: cannot copy the images to {cache}: {e}. Check source.image, and set source.cache_dir to a folder "
            "with enough space."
        ) from e
    finally:
        with contextlib.suppress(OSError):
            incomplete.unlink()
    return copy


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(
            f"source.path: got {name!r}, expected a folder that exists, or the name of a dataset on the Hugging Face "
            "hub: OWNER/NAME. Check the path."
        )
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns="*.parquet"))
    except Exception as e:  # huggingface_hub raises many classes: no network, no such dataset, offline mode
        raise UserError(
            f"source.path: cannot download the dataset {name!r} ({type(e).__name__}). Check the name and the network. "
            "Without a network, set --config.source.path to the folder of its parquet files."
        ) from e


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """Returns the class names that `datasets` writes into the schema, or None."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _some(files: Sequence[Path]) -> str:
    return _short([file.name for file in files])


def _short(names: Iterable[str] | None) -> str:
    listed = list(names or ())
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")
