"""Parquet datasets of the Hugging Face hub, local or downloaded, read without the package `datasets`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvision.data.source import Example, Splits
from jaxvision.disk import cache_folder, temporary_path
from jaxvision.errors import UserError, unknown_name_error

_MAX_CLASSES = 1_000_000  # a larger label is an identifier, not the number of a class


class ParquetSource:
    """Rows of parquet files with an image and a label.

    A parquet file can only be read by row groups of hundreds of images. The image column is therefore copied once into
    an Arrow file, which is mapped into memory. It gives random access to the rows, and the workers share it. Images
    that are separate files are read from there.

    Args:
      files: Arrow files, in order, from `_arrow_copy`.
      labels: int [n].
      classes: names of the classes, in the order of their numbers.
      name: for messages.
    """

    def __init__(self, files: Sequence[Path], labels: np.ndarray, *, classes: Sequence[str], name: str):
        self._files = [str(file) for file in files]
        self._table: Any = None
        self.labels = np.asarray(labels, np.int32)
        self.classes = list(classes)
        self.name = name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        if self._table is None:
            import pyarrow as pa

            self._table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(file)).read_all() for file in self._files])
        image = self._table["image"][index].as_py()
        if image is None:  # a separate file; without a path, the row counts as a damaged image
            path = self._table["path"][index].as_py()
            image = Path(path).read_bytes() if path else b""
        return {"image": image, "label": int(self.labels[index])}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # each worker maps the files itself

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
      image: column of the images: bytes, paths relative to the parquet file, or a struct with ``bytes`` and ``path``.
      label: column of the class numbers or names.
      train: the split for training: files named after it, such as ``train.parquet``, ``train-00000-of-00004.parquet``
        and ``train/0000.parquet``.
      validation: the split for choosing the best checkpoint. None: no validation.
      test: the split for the final evaluation. None: no test.
      revision: revision of the dataset on the hub. None: the newest.
      cache_dir: folder for the copies of the image columns, which are as large as the files. None:
        ``~/.cache/jaxvision/parquet``.

    Raises:
      UserError: no such folder, files or columns, an unusable label or image column, or the hub cannot be reached.
    """
    root = Path(path)
    if not root.is_dir():
        root = _fetch(path, revision)
    root = root / (folder or "")
    files = sorted(f for f in root.rglob("*.parquet") if not any(x.startswith(".") for x in f.relative_to(root).parts))
    if not files:
        raise UserError(f"{root}: got no parquet files, expected at least one. Check source.path and source.folder.")
    named = {"train": train, "validation": validation, "test": test}
    chosen = {split: _files_of(name, files, root) for split, name in named.items() if name}
    columns = {split: [_labels(file, image, label) for file in chosen[split]] for split in chosen}
    classes = _classes([column for split in columns.values() for column in split])
    cache = Path(cache_dir).expanduser() if cache_dir else cache_folder("parquet")
    number_of = {class_: i for i, class_ in enumerate(classes)}

    def source(split: str) -> ParquetSource:
        labels = np.concatenate([column.numbers(number_of) for column in columns[split]])
        copies = [_arrow_copy(file, image, cache) for file in chosen[split]]
        return ParquetSource(copies, labels, classes=classes, name=f"{path} {named[split]}")

    return Splits(**{split: source(split) for split in chosen})


def _files_of(split: str, files: Sequence[Path], root: Path) -> list[Path]:
    """Returns the files of a split by the hub's rule: in their name, the split ends at ``-``, ``.`` or ``/``."""
    named = [file for file in files if file.name.startswith((f"{split}-", f"{split}."))]
    elsewhere = {file.parent for file in files} - {file.parent for file in named}
    found = named + [file for file in files if file.parent in elsewhere - {root} and file.parent.name == split]
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


class _Labels(NamedTuple):
    """The label column of a file.

    Attributes:
      file: the file.
      values: int64 [n], or an array of strings.
      names: the class names in the metadata of the file, or None.
    """

    file: Path
    values: np.ndarray
    names: list[str] | None

    def numbers(self, number_of: Mapping[str, int]) -> np.ndarray:
        is_named = self.values.dtype.kind == "O"
        return np.array([number_of[v] for v in self.values], np.int64) if is_named else self.values


def _labels(file: Path, image: str, label: str) -> _Labels:
    """Returns the labels of a file, after checking that its image column can hold images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            for key, column in (("image", image), ("label", label)):
                if column not in schema.names:
                    fix = f"Set source.{key} to the column of the {key}s."
                    raise unknown_name_error(str(file), column, schema.names, expected="a column", fix=fix)
            values = table.read(columns=[label]).column(0)
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"{file}: cannot be read as parquet ({e}). Repair or remove the file.") from e
    kind = schema.field(image).type
    if len(values) and not _holds_images(kind):
        raise UserError(
            f"{file}: got {kind} in the column {image!r}, expected the bytes or the paths of images, or a struct with "
            "both. Set source.image to another column."
        )
    return _Labels(file, _label_values(file, label, values), _class_names(schema.metadata, label))


def _label_values(file: Path, label: str, values: Any) -> np.ndarray:
    """Returns the labels of an Arrow column: int64, or an array of strings."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if values.null_count:
        row = next(i for i, value in enumerate(values) if not value.is_valid)
        raise UserError(
            f"{file}: row {row} has no {label!r}, expected a label in every row. Remove the rows without one "
            f"({values.null_count:,})."
        )
    if pa.types.is_boolean(values.type) or _is_text(values.type):
        return values.cast(pa.large_string()).to_numpy().astype(object)
    if not pa.types.is_integer(values.type) and len(values):
        raise UserError(
            f"{file}: got {values.type} in the column {label!r}, expected the numbers or names of classes. Set "
            "source.label to another column."
        )
    numbers = values.to_numpy()
    row = int(numbers.argmax()) if len(numbers) else 0
    if len(numbers) and numbers[row] >= _MAX_CLASSES:
        raise UserError(
            f"{file}: row {row} has the label {numbers[row]}, expected numbers of classes from 0, below "
            f"{_MAX_CLASSES:,}. Number the classes 0, 1, 2, ..., or write their names instead."
        )
    return np.maximum(numbers.astype(np.int64), -1)  # `source.check` refuses negative labels; -1 fits into an int32


def _is_text(type: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type)


def _is_bytes(type: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    return types.is_binary(type) or types.is_large_binary(type) or types.is_binary_view(type)


def _holds_images(type: Any) -> bool:
    """Returns whether a column of this Arrow type may hold images: bytes, paths, or a struct of them."""
    import pyarrow as pa

    if not pa.types.is_struct(type):
        return _is_bytes(type) or _is_text(type)
    fields = {field.name: field.type for field in type}
    return _is_bytes(fields.get("bytes", pa.null())) or _is_text(fields.get("path", pa.null()))


def _classes(columns: Sequence[_Labels]) -> list[str]:
    """Returns the names of the classes: the labels if they are names, else those in the files, else numbers."""
    full = [column for column in columns if len(column.values)]
    named = next((column for column in full if column.values.dtype.kind == "O"), None)
    numbered = next((column for column in full if column.values.dtype.kind != "O"), None)
    if named and numbered:
        raise UserError(
            f"{named.file}: got names as labels, expected numbers as in {numbered.file}. Write the labels of all files "
            "in one form."
        )
    if named:
        return sorted(set().union(*(column.values.tolist() for column in full)))
    known = [column for column in columns if column.names]
    for column in known:
        if column.names != known[0].names:
            raise UserError(
                f"{column.file}: got the classes {_short(column.names)}, expected those of {known[0].file}: "
                f"{_short(known[0].names)}. Choose files with the same classes."
            )
    if known and known[0].names:
        return known[0].names
    return [str(i) for i in range(max((int(column.values.max()) for column in full), default=-1) + 1)]


def _arrow_copy(file: Path, image: str, cache: Path) -> Path:
    """Returns an Arrow file with the images of a parquet file; creates it if it does not exist.

    Its columns are the bytes of each image, and the path of an image without bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    state = file.stat()
    identity = f"{file.resolve()} {state.st_size} {state.st_mtime_ns} {image} bytes and paths"
    copy = cache / f"{file.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.arrow"
    if copy.exists():
        return copy
    incomplete = temporary_path(copy)
    schema = pa.schema([("image", pa.large_binary()), ("path", pa.large_string())])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with pq.ParquetFile(file) as table, pa.ipc.new_file(str(incomplete), schema) as writer:
            for batch in table.iter_batches(batch_size=256, columns=[image]):
                writer.write_batch(pa.record_batch(_bytes_and_paths(batch.column(0), file), schema=schema))
        incomplete.replace(copy)  # atomic: the copy is complete or missing
    except (pa.ArrowException, OSError) as e:
        raise UserError(
            f"{file}: cannot copy the images to {cache}: {e}. Repair the file, or set source.cache_dir to a folder "
            "with enough space."
        ) from e
    finally:
        with contextlib.suppress(OSError):
            incomplete.unlink()
    return copy


def _bytes_and_paths(images: Any, file: Path) -> list[Any]:
    """Returns the columns of the copy: bytes, and absolute paths where there are none. Either may be null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(images.type):
        fields = {field.name for field in images.type}
        # Unlike `field`, this respects rows in which the whole struct is null.
        found = {name: pc.struct_field(images, name) for name in ("bytes", "path") if name in fields}
    else:
        found = {"path" if _is_text(images.type) else "bytes": images}
    nulls = pa.nulls(len(images))
    contents = found.get("bytes", nulls).cast(pa.large_binary())
    paths = [
        None if path is None or content.is_valid else str(file.parent / path)
        for content, path in zip(contents, found.get("path", nulls).to_pylist(), strict=True)
    ]
    if url := next((path for path in paths if path and ":/" in path), None):
        raise UserError(
            f"{file}: got the address {url.removeprefix(f'{file.parent}/')!r} as an image, expected a path relative to "
            "the parquet file. Download the images first."
        )
    return [contents, pa.array(paths, pa.large_string())]


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
