"""Examples as files of ArrayRecord, in the order of TFDS."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxvision.data.prepare.split import Split
from jaxvision.errors import UserError, first_line
from jaxvision.report import show_progress


def write_split(split: Split, folder: Path, *, dataset: str, features: Any, file_bytes: int = 2**29) -> Any:
    """Writes the examples of a split, and returns its `tfds.core.SplitInfo`.

    The order is that of TFDS, so that a slice such as ``"train[:98%]"`` has the same images: by the MD5 digest of the
    split's name and the example's key.

    Args:
      split: the examples.
      folder: where to write the files.
      dataset: name of the dataset.
      features: of the dataset, from TFDS.
      file_bytes: size from which a file is complete and the next one begins.

    Raises:
      ValueError: there are no examples.
      UserError: a file cannot be written.
    """
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter

    def digest(i: int) -> bytes:
        return hashlib.md5(f"{split.name}{split.keys[i]}".encode(), usedforsecurity=False).digest()

    if not split.keys:
        raise ValueError(f"it has no examples of the split {split.name}")
    order = sorted(range(len(split.keys)), key=digest)
    lengths: list[int] = []
    total = size = 0
    writer: Any = None
    with show_progress(f"write {dataset} {split.name}", len(order), unit="images") as update:
        for done, i in enumerate(order, start=1):
            example = split.example(i)
            record = features.serialize_example({name: example[name] for name in features})
            with _errors_of_writer(folder):
                if writer is None:
                    path = _path(folder, dataset, split.name, len(lengths))
                    writer = ArrayRecordWriter(str(path), "group_size:1")
                    lengths.append(0)
                    size = 0
                writer.write(record)
                lengths[-1] += 1
                size += len(record)
                total += len(record)
                if size >= file_bytes or done == len(order):
                    writer.close()
                    writer = None
            update(done)
    for number in range(len(lengths)):
        path = _path(folder, dataset, split.name, number)
        path.rename(path.with_name(f"{path.name}-of-{len(lengths):05d}"))
    return tfds.core.SplitInfo(name=split.name, shard_lengths=lengths, num_bytes=total)


@contextmanager
def _errors_of_writer(folder: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as e:
        raise UserError(f"{folder}: {first_line(e)}. Make room on the disk, and run the same command again.") from e


def _path(folder: Path, dataset: str, split: str, number: int) -> Path:
    """Returns the path of a file before the number of files is known."""
    return folder / f"{dataset}-{split}.array_record-{number:05d}"
