"""A source that is ready to be read: kept in memory, or streamed by workers.

Both kinds yield the same images in the same order. See `jaxvision.data.pipeline` for what differs on the device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np

from jaxvision.augment.decoding import BadImage
from jaxvision.augment.host import check_crop
from jaxvision.augment.preprocess import Preprocess
from jaxvision.data.order import batch_indices, eval_indices, eval_steps, process_rows
from jaxvision.data.pipeline import FromMemory, FromWorkers, InputPipeline
from jaxvision.data.pool import Batch, Task, WorkerPool
from jaxvision.data.reading import (
    check_labels,
    machine_errors_as_user_errors,
    read_examples,
    read_pixels,
    to_pixels,
)
from jaxvision.data.source import Source, take_rows
from jaxvision.data.workers import ReadEvalBatch, ReadTrainBatch
from jaxvision.errors import UserError, count, printable

_PROBES = 16  # images that are checked for a common shape before the whole dataset is read
_CHUNK = 512  # examples per read when a whole dataset is read


class Dataset(ABC):
    """A source that is ready to be read, with the damaged images found so far.

    Args:
      source: the images.
      max_corrupt: number of damaged images that are skipped; one more is an error.
      log: called with a message about each of the first five damaged images.

    Attributes:
      corrupt: the damaged images found so far, index -> (name, reason).
      pipeline: how its images reach the model.
    """

    pipeline: InputPipeline

    def __init__(self, source: Source, *, max_corrupt: int = 0, log: Callable[[str], None] = print):
        self.source = source
        self.max_corrupt = max_corrupt
        self.log = log
        self.corrupt: dict[int, tuple[str, str]] = {}

    def __len__(self) -> int:
        return len(self.source)

    @property
    def channels(self) -> int:
        """Number of channels of each image."""
        return self.pipeline.channels

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Returns one decoded image, neither cropped nor resized: uint8 [h, w, c]."""

    @abstractmethod
    def train_batches(
        self,
        *,
        batch_size: int,
        image_size: int,
        seed: int,
        start_step: int,
        stop_step: int,
        crop: dict[str, Any] | None = None,
        workers: int | WorkerPool | None = None,
        process: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yields the training batches of steps `start_step` to `stop_step` - 1.

        Args:
          batch_size: images per batch, over all processes.
          image_size: side of the model's input, in pixels.
          seed: seed of the order and of the crops.
          start_step: the first step; in a resumed run, the step of the checkpoint.
          stop_step: one past the last step.
          crop: options of `jaxvision.augment.host.train_crop`, for workers. None resizes the shorter side and crops
            the middle. A dataset in memory leaves cropping to the device.
          workers: processes that read and decode: a pool that is also used for other batches, or the `count` of a
            `jaxvision.data.pool.WorkerPool` for these batches alone.
          process: (index, count) of the JAX processes; each yields its own rows.

        Raises:
          UserError: too many damaged images.
        """

    @abstractmethod
    def eval_batches(
        self,
        *,
        batch_size: int,
        preprocess: Preprocess,
        workers: int | WorkerPool | None = None,
        process: tuple[int, int] = (0, 1),
    ) -> Iterator[Batch]:
        """Yields every image once, in order. The last batch is padded; ``mask`` is False for padding.

        Args:
          batch_size: images per batch, over all processes.
          preprocess: the evaluation transform, for workers.
          workers: as for `train_batches`.
          process: as for `train_batches`.

        Raises:
          UserError: too many damaged images.
        """

    def record_corrupt(self, indices: Iterable[int]) -> None:
        """Records damaged images.

        Raises:
          UserError: there are more than `max_corrupt`; the message names the first ones.
        """
        for index in indices:
            if index in self.corrupt:
                continue
            where, reason = self.source.where(index), self._why_corrupt(index)
            self.corrupt[index] = (where, reason)
            if len(self.corrupt) <= 5:
                self.log(printable(f"skipped the damaged image {where}: {reason}"))
            if len(self.corrupt) > self.max_corrupt:
                named = "; ".join(f"{where} ({reason})" for where, reason in list(self.corrupt.values())[:5])
                damaged = count(len(self.corrupt), "damaged image")
                raise UserError(
                    f"{self.source.name}: got {damaged}, expected at most data.max_corrupt="
                    f"{self.max_corrupt}: {named}. Repair or remove damaged images, or raise "
                    "data.max_corrupt (--max-corrupt)."
                )

    def _why_corrupt(self, index: int) -> str:
        try:
            read_pixels(self.source, index)
        except (BadImage, OSError) as e:
            return str(e)
        return "the first attempt to read it failed"


class StreamedDataset(Dataset):
    """Images read from the source by worker processes, ahead of the step."""

    def __init__(self, source: Source, *, channels: int = 3, **options: Any):
        super().__init__(source, **options)
        self.pipeline = FromWorkers(channels)

    def image(self, index: int) -> np.ndarray:
        return read_pixels(self.source, index)

    def train_batches(
        self, *, batch_size, image_size, seed, start_step, stop_step, crop=None, workers=None, process=(0, 1)
    ):  # fmt: skip
        if crop is not None:
            check_crop(**crop)
        rows = process_rows(batch_size, process)
        task = ReadTrainBatch(self.source, batch_size, rows, self.channels, seed, image_size, crop)
        yield from self._read(task, start_step, stop_step, workers)

    def eval_batches(self, *, batch_size, preprocess, workers=None, process=(0, 1)):
        task = ReadEvalBatch(self.source, batch_size, process_rows(batch_size, process), self.channels, preprocess)
        yield from self._read(task, 0, eval_steps(len(self), batch_size), workers)

    def _read(self, task: Task, start: int, stop: int, workers: int | WorkerPool | None) -> Iterator[Batch]:
        """Yields the batches of a task, and records the images that the workers could not read."""
        with ExitStack() as stack:
            pool = workers if isinstance(workers, WorkerPool) else stack.enter_context(WorkerPool(workers))
            batches = stack.enter_context(closing(pool.run_ahead(task, start, stop)))
            for batch in batches:
                self.record_corrupt(int(i) for i in batch["index"][~batch["mask"]] if i >= 0)
                yield batch
                del batch  # so that its memory is free while this generator waits


class StoredDataset(Dataset):
    """Images of one shape, decoded once and kept in memory.

    Args:
      source: the source of the images.
      images: uint8 [n, h, w, c].
      labels: int32 [n].
    """

    def __init__(self, source: Source, images: np.ndarray, labels: np.ndarray, **options: Any):
        super().__init__(source, **options)
        self.images = images
        self.labels = labels
        _, h, w, c = images.shape
        self.pipeline = FromMemory((h, w, c))

    def image(self, index: int) -> np.ndarray:
        return self.images[index]

    def train_batches(
        self, *, batch_size, image_size, seed, start_step, stop_step, crop=None, workers=None, process=(0, 1)
    ):  # fmt: skip
        if crop is not None:
            check_crop(**crop)
        rows = process_rows(batch_size, process)
        for step in range(start_step, stop_step):
            yield self._batch(batch_indices(len(self), batch_size, seed=seed, step=step)[1][rows])

    def eval_batches(self, *, batch_size, preprocess, workers=None, process=(0, 1)):
        rows = process_rows(batch_size, process)
        for number in range(eval_steps(len(self), batch_size)):
            yield self._batch(eval_indices(len(self), batch_size, number)[rows])

    def _batch(self, indices: np.ndarray) -> Batch:
        mask = indices >= 0
        if self.corrupt:
            mask &= ~np.isin(indices, list(self.corrupt))
        return {
            "image": self.images[indices],  # padding (-1) reads the last image, which the mask then hides
            "label": np.where(indices >= 0, self.labels[indices], 0).astype(np.int32),
            "index": indices.astype(np.int32),
            "mask": mask,
        }


def open_dataset(
    source: Source, *, memory_limit: float = 2.0, max_corrupt: int = 10, log: Callable[[str], None] = print
) -> Dataset:
    """Returns a source ready to be read: in memory if its images have one shape and are small enough, else streamed.

    Args:
      source: a split of what `jaxvision.data.open_source` returns.
      memory_limit: GiB that the decoded images may take; 0 always streams.
      max_corrupt: number of damaged images that are skipped; one more is an error.
      log: called with a message about each of the source's warnings and about damaged images.

    Raises:
      UserError: too many damaged images.

    Example:
      >>> from jaxvision.data.source import open_source
      >>> open_dataset(open_source("digits").test).images.shape
      (359, 8, 8, 1)
    """
    n = len(source)
    for warning in getattr(source, "warnings", ()):
        log(printable(warning))
    streamed = StreamedDataset(source, max_corrupt=max_corrupt, log=log)
    # Checks a few images first, because reading a million photographs only to find two shapes would take long.
    probes = [_pixels_or_none(source, int(i)) for i in np.unique(np.linspace(0, n - 1, _PROBES).astype(int))]
    shapes = {pixels.shape for pixels in probes if pixels is not None}
    if not shapes:
        streamed.record_corrupt(range(n))
        raise UserError(f"{source.name}: no image can be read ({n:,} tried). Check the files.")
    shape = next(pixels.shape for pixels in probes if pixels is not None)
    streamed.pipeline = FromWorkers(max(shape[-1] for shape in shapes))  # single channels are repeated
    if len(shapes) > 1 or n * math.prod(shape) > memory_limit * 2**30:
        return streamed
    return _store(source, shape, max_corrupt=max_corrupt, log=log) or streamed


def take(images: Dataset, rows: np.ndarray) -> Dataset:
    """Returns some of the images of a dataset. They reach the model as those of the whole dataset do.

    Args:
      images: from `open_dataset`.
      rows: int [n], positions in the dataset.
    """
    source = take_rows(images.source, rows, name=images.source.name)
    options: dict[str, Any] = {"max_corrupt": images.max_corrupt, "log": images.log}
    part: Dataset
    if isinstance(images, StoredDataset):
        part = StoredDataset(source, images.images[rows], images.labels[rows], **options)
    else:
        part = StreamedDataset(source, channels=images.channels, **options)
    part.corrupt = {i: images.corrupt[row] for i, row in enumerate(rows.tolist()) if row in images.corrupt}
    return part


def _store(source: Source, shape: tuple[int, ...], **options: Any) -> StoredDataset | None:
    """Returns the whole source in memory, or None if an image has another shape."""
    n = len(source)
    images, labels = np.zeros((n, *shape), np.uint8), np.zeros(n, np.int32)
    corrupt = []
    for start in range(0, n, _CHUNK):
        indices = range(start, min(start + _CHUNK, n))
        for i, example in zip(indices, read_examples(source, indices), strict=True):
            if isinstance(example, OSError):
                corrupt.append(i)
                continue
            labels[i] = example["label"]
            try:
                with machine_errors_as_user_errors(source, i):
                    pixels = to_pixels(example["image"])
            except BadImage:
                corrupt.append(i)
                continue
            if pixels.shape != shape:
                return None
            images[i] = pixels
    stored = StoredDataset(source, images, labels, **options)
    stored.record_corrupt(corrupt)
    check_labels(source, np.arange(n), labels)
    return stored


def _pixels_or_none(source: Source, index: int) -> np.ndarray | None:
    try:
        return read_pixels(source, index)
    except (BadImage, OSError):
        return None
