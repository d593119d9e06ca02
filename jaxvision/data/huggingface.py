"""Parquet files of the Hugging Face hub, local or fetched, without the package `datasets`."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvision.data.source import Example, Splits
from jaxvision.errors import UserError, unknown


class ParquetSource:
    """Rows of parquet files with a picture and a class number.

    A row group is decoded when one of its rows is asked for, and the last one is kept. The labels are read at once.

    Args:
      files: paths, in order.
      image: column of the pictures: bytes, or struct with ``bytes``.
      label: column of the class numbers, or of class names.
      name: for messages.
    """

    def __init__(self, files: Sequence[Path], *, image: str, label: str, name: str):
        import pyarrow.parquet as pq

        self.name = name
        self._files = [str(file) for file in files]
        self._image = image
        self._groups: list[tuple[int, int]] = []  # (file, row group)
        self._starts: list[int] = [0]
        labels: list[np.ndarray] = []
        names: list[str] | None = None
        for number, file in enumerate(self._files):
            try:
                table = pq.ParquetFile(file)
                for column in (image, label):
                    if column not in table.schema_arrow.names:
                        raise unknown(f"column of {file}", column, table.schema_arrow.names)
                for group in range(table.num_row_groups):
                    self._groups.append((number, group))
                    self._starts.append(self._starts[-1] + table.metadata.row_group(group).num_rows)
                labels.append(table.read(columns=[label])[label].to_numpy())
                names = names or _class_names(table.schema_arrow.metadata, label)
            except UserError:
                raise
            except Exception as e:  # pyarrow raises several kinds on damaged files
                raise UserError(f"{file} cannot be read as parquet: {e}") from e
        values = np.concatenate(labels) if labels else np.array([], np.int32)
        if values.dtype.kind in "OU":
            self.classes = sorted({str(value) for value in values})
            number_of = {class_: i for i, class_ in enumerate(self.classes)}
            values = np.array([number_of[str(value)] for value in values])
        else:
            self.classes = names or [str(i) for i in range(int(values.max(initial=-1)) + 1)]
        self.labels = values.astype(np.int32)
        self._cached: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Example:
        import pyarrow.parquet as pq

        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self._starts, index) - 1
        if self._cached[0] != group:
            file, row_group = self._groups[group]
            column = pq.ParquetFile(self._files[file]).read_row_group(row_group, columns=[self._image])[self._image]
            self._cached = (group, column)
        value = self._cached[1][index - self._starts[group]].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        return {"image": data or b"", "label": int(self.labels[index])}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": (-1, None)}

    def where(self, index: int) -> str:
        return f"{self.name}[{index}]"


def open_huggingface(
    *,
    path: str,
    image: str = "image",
    label: str = "label",
    train: str | None = "train",
    validation: str | None = None,
    test: str | None = "test",
    revision: str | None = None,
) -> Splits:
    """Returns the parts of a data set that is kept as parquet files.

    Args:
      path: a folder with files such as ``data/train-00000-of-00004.parquet``, or a data set's name on the hub, such
        as ``"uoft-cs/cifar10"``, whose files are then fetched into the hub's cache.
      image: column of the pictures.
      label: column of the class numbers or names.
      train: the part to train on: files whose name begins with this.
      validation: the part to choose on; None for none.
      test: the part to report on; None for none.
      revision: of the data set on the hub; None for the newest.

    Raises:
      UserError: no such folder, files or columns, or the hub cannot be reached.
    """
    root = Path(path)
    if not root.is_dir():
        root = _fetch(path, revision)
    files = sorted(root.rglob("*.parquet"))
    if not files:
        raise UserError(f"{path} has no parquet files")

    def part(name: str | None) -> ParquetSource | None:
        if not name:
            return None
        chosen = [file for file in files if file.name.startswith(name) or file.parent.name == name]
        if not chosen:
            raise UserError(f"{path} has no parquet files of the part {name!r}; there are: {_some(files)}")
        return ParquetSource(chosen, image=image, label=label, name=f"{path} {name}")

    splits = Splits(train=part(train), validation=part(validation), test=part(test))
    known = [source for source in splits if source is not None]
    for source in known:
        if source.classes != known[0].classes:
            raise UserError(f"{source.name} and {known[0].name} differ in their classes")
    return splits


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"no such folder: {name} (nor is it a name on the hub, which is OWNER/NAME)")
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns="*.parquet"))
    except Exception as e:  # no network, no such data set, offline mode: the hub's library has a class for each
        raise UserError(
            f"the data set {name!r} could not be fetched ({type(e).__name__}); without a network, "
            f"give the folder of its parquet files as --config.source.path"
        ) from e


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """Returns the class names that `datasets` writes into the schema, or None."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return list(features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _some(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:4]) + (", ..." if len(files) > 4 else "")
