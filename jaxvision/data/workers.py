"""Batches made by worker processes, which read, decode and crop ahead of the step.

Workers import this module and unpickle its tasks, so neither it nor the modules it imports may import JAX. They are
spawned instead of forked, because JAX's threads would not survive a fork. A script that trains with workers must
therefore guard its main part with ``if __name__ == "__main__":``, as always with Python's multiprocessing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxvision.augment import host
from jaxvision.augment.decoding import BadImage
from jaxvision.augment.preprocess import Preprocess
from jaxvision.data.order import batch_indices, crop_rng, eval_indices
from jaxvision.data.reading import check_labels, read_examples
from jaxvision.data.source import Source
from jaxvision.errors import UserError
from jaxvision.parallel.cores import default_workers, usable_cores

Batch = dict[str, np.ndarray]  # image uint8 [b, h, w, c], label int32 [b], index int32 [b], mask bool [b]


@dataclass(frozen=True)
class ReadTrainBatch:
    """A task: step -> the rows of that training batch that one process reads."""

    source: Source
    batch_size: int
    rows: slice
    channels: int
    seed: int
    image_size: int
    crop: dict[str, Any] | None

    def __call__(self, step: int) -> Batch:
        epochs, indices = batch_indices(len(self.source), self.batch_size, seed=self.seed, step=step)
        epochs, indices = epochs[self.rows], indices[self.rows]
        uncropped = Preprocess(image_size=self.image_size, crop_pct=1.0)

        def transform(row: int, image: bytes | np.ndarray) -> np.ndarray:
            if self.crop is None:
                return host.eval_transform(image, uncropped)
            rng = crop_rng(self.seed, epoch=int(epochs[row]), index=int(indices[row]))
            return host.train_crop(image, self.image_size, rng, **self.crop)

        return _read_batch(self.source, indices, (self.image_size, self.image_size, self.channels), transform)


@dataclass(frozen=True)
class ReadEvalBatch:
    """A task: number -> the rows of that evaluation batch that one process reads."""

    source: Source
    batch_size: int
    rows: slice
    channels: int
    preprocess: Preprocess

    def __call__(self, number: int) -> Batch:
        indices = eval_indices(len(self.source), self.batch_size, number)[self.rows]
        size = self.preprocess.image_size

        def transform(row: int, image: bytes | np.ndarray) -> np.ndarray:
            return host.eval_transform(image, self.preprocess)

        return _read_batch(self.source, indices, (size, size, self.channels), transform)


def _read_batch(
    source: Source,
    indices: np.ndarray,
    shape: tuple[int, ...],
    transform: Callable[[int, bytes | np.ndarray], np.ndarray],
) -> Batch:
    """Returns a batch whose mask is False for padding (index -1) and damaged images."""
    labels = np.zeros(len(indices), np.int32)
    mask = indices >= 0
    images = np.zeros((len(indices), *shape), np.uint8)
    rows = np.flatnonzero(mask)
    for row, example in zip(rows, read_examples(source, [int(i) for i in indices[rows]]), strict=True):
        try:
            if isinstance(example, OSError):
                raise example
            labels[row] = example["label"]
            pixels = transform(int(row), example["image"])
            if pixels.shape[-1] not in (1, shape[-1]):  # a single channel is repeated
                raise UserError(
                    f"{source.where(int(indices[row]))}: got {pixels.shape[-1]} channels, expected {shape[-1]} as in "
                    "other images of the dataset. Give all images of the source the same number of channels."
                )
            images[row] = pixels
        except (BadImage, OSError):
            mask[row] = False
    check_labels(source, indices, labels)
    return {"image": images, "label": labels, "index": indices.astype(np.int32), "mask": mask}


def run_ahead(task: Callable[[int], Batch], start: int, stop: int, workers: int | None) -> Iterator[Batch]:
    """Yields ``task(i)`` for i in start, ..., stop - 1, computed ahead by Grain's worker processes.

    Args:
      task: `ReadTrainBatch` or `ReadEvalBatch`.
      start: the first number.
      stop: one past the last number.
      workers: number of processes; 0 uses two threads of this process. None: `default_workers` of all usable cores.
    """
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # Grain reads absl's flags when it starts workers, and fails in a program that has not parsed any. This uses
        # their defaults. A program that parses its flags is not affected.
        flags.FLAGS.mark_as_parsed()
    count = default_workers(usable_cores()) if workers is None else workers
    if stop <= start:
        return
    steps = grain.MapDataset.range(start, stop).map(task)
    # An element is a whole batch, so a few suffice.
    options = grain.ReadOptions(num_threads=2 if count == 0 else 1, prefetch_buffer_size=4 if count == 0 else 1)
    batches = steps.to_iter_dataset(options)
    if count:
        processes = grain.MultiprocessingOptions(num_workers=min(count, stop - start), per_worker_buffer_size=2)
        batches = batches.mp_prefetch(processes, worker_init_fn=_start_worker)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:  # stops the workers and frees their shared memory, also after an interrupt
        iterator.close()


def _start_worker(index: int, count: int) -> None:
    # Ctrl-C reaches every process of the terminal. Only the main process handles it, and then stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    # After a `kill -9` of the main process, workers would otherwise wait forever and keep the shared memory.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
