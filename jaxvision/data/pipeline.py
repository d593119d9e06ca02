"""From a source to batches: in which order, decoded where, padded how.

Which examples make batch number `step` is a pure function of (seed, step), so the position in the data is the number
of the step: a run that goes on needs no state of a reader, and any batch can be drawn again. A set of small, equal
pictures is decoded once and kept in memory; anything else is read and decoded by Grain's workers, ahead of the step.

Workers are started by spawning, not by forking: JAX's threads would not survive a fork. So a script that trains with
workers guards its main part with ``if __name__ == "__main__":``, as everywhere in Python's multiprocessing.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from jaxvision.augment import host
from jaxvision.augment.preprocess import Preprocess
from jaxvision.data.source import Example, Source
from jaxvision.errors import UserError

if TYPE_CHECKING:
    import jax

Batch = dict[str, np.ndarray]  # image uint8 [b, h, w, c], label int32 [b], index int32 [b], mask bool [b]
T = TypeVar("T")

AHEAD = 2  # batches that wait on the devices while one is used
_PROBES = 16  # pictures that tell of what shape all are
_CHUNK = 512  # examples read at once where a whole set is read


@dataclass
class Pictures:
    """A source that is ready to be read.

    Attributes:
      source: where the pictures come from.
      stored: all of them decoded, uint8 [n, h, w, c], if they are small and equal in shape; else None.
      labels: of `stored`.
      channels: of each picture.
      max_corrupt: how many damaged pictures are put up with.
      corrupt: those found so far, number -> (name, what is wrong).
      log: called with a message about each of the first few.
    """

    source: Source
    stored: np.ndarray | None
    labels: np.ndarray | None
    channels: int
    max_corrupt: int = 0
    corrupt: dict[int, tuple[str, str]] = field(default_factory=dict)
    log: Callable[[str], None] = print

    def __len__(self) -> int:
        return len(self.source)

    def picture(self, index: int) -> np.ndarray:
        """Returns one picture as it is, uint8 [h, w, c]."""
        if self.stored is not None:
            return self.stored[index]
        return _pixels(self.source[index]["image"])

    def found_corrupt(self, indices: Iterable[int]) -> None:
        """Notes damaged pictures.

        Raises:
          UserError: there are more than `max_corrupt`; the message names the first ones.
        """
        for index in indices:
            if index in self.corrupt:
                continue
            try:
                _pixels(self.source[index]["image"])
                why = "could not be read at first"
            except (host.BadImage, OSError) as e:
                why = str(e)
            self.corrupt[index] = (self.source.where(index), why)
            if len(self.corrupt) <= 5:
                self.log(f"skipped {self.source.where(index)}: {why}")
            if len(self.corrupt) > self.max_corrupt:
                named = "; ".join(f"{where} ({why})" for where, why in list(self.corrupt.values())[:5])
                raise UserError(
                    f"{self.source.name}: {len(self.corrupt)} damaged pictures, more than data.max_corrupt="
                    f"{self.max_corrupt} allows: {named}"
                )


def prepare(
    source: Source, *, memory_limit: float = 2.0, max_corrupt: int = 10, log: Callable[[str], None] = print
) -> Pictures:
    """Returns the source, decoded into memory if its pictures are all of one shape and small enough.

    Args:
      source: from `jaxvision.data.source.open_source`.
      memory_limit: gibibytes that the decoded pictures may take; 0 always streams.
      max_corrupt: how many damaged pictures are skipped; one more is an error.
      log: called with a message about damaged pictures, and about files that are none.

    Raises:
      UserError: too many damaged pictures.

    Example:
      >>> from jaxvision.data.source import open_source
      >>> prepare(open_source("digits").test).stored.shape
      (359, 8, 8, 1)
    """
    n = len(source)
    if passed_over := getattr(source, "passed_over", 0):
        files = "1 file that is no picture" if passed_over == 1 else f"{passed_over:,} files that are no pictures"
        log(f"{source.name}: passed over {files} by the ending")
    pictures = Pictures(source, None, None, 3, max_corrupt=max_corrupt, log=log)
    # A few pictures from all over the set tell whether it is worth trying: reading a million photographs is not.
    probed = (_try(source, int(i)) for i in np.unique(np.linspace(0, n - 1, _PROBES).astype(int)))
    probes = [pixels for pixels in probed if pixels is not None]
    if not probes:
        pictures.found_corrupt(range(n))
        raise UserError(f"{source.name}: none of its pictures can be read")
    shape = probes[0].shape
    pictures.channels = shape[-1]
    if any(p.shape != shape for p in probes) or n * math.prod(shape) > memory_limit * 2**30:
        return pictures
    stored, labels = np.zeros((n, *shape), np.uint8), np.zeros(n, np.int32)
    bad = []
    for start in range(0, n, _CHUNK):
        numbers = range(start, min(start + _CHUNK, n))
        for i, example in zip(numbers, read_examples(source, numbers), strict=True):
            if isinstance(example, OSError):
                bad.append(i)
                continue
            labels[i] = example["label"]
            try:
                pixels = _pixels(example["image"])
            except host.BadImage:
                bad.append(i)
                continue
            if pixels.shape != shape:
                return pictures
            stored[i] = pixels
    pictures.found_corrupt(bad)
    check_labels(source, np.arange(n), labels)
    pictures.stored, pictures.labels = stored, labels
    return pictures


def read_examples(source: Source, numbers: Sequence[int]) -> list[Example | OSError]:
    """Returns the examples of these numbers, and in the place of one that cannot be read the reason."""
    if hasattr(source, "__getitems__"):  # where reading many at once is cheaper
        return list(source.__getitems__(numbers))
    found: list[Example | OSError] = []
    for number in numbers:
        try:
            found.append(source[number])
        except OSError as e:
            found.append(e)
    return found


def check_labels(source: Source, numbers: np.ndarray, labels: np.ndarray) -> None:
    """Raises if one of the `labels`, of the examples with these `numbers`, names no class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(source.classes)))
    if len(wrong):
        where, label, n = source.where(int(numbers[wrong[0]])), labels[wrong[0]], len(source.classes)
        raise UserError(f"{where}: the label {label} is outside the {n} classes (0 to {n - 1})")


@functools.lru_cache(maxsize=2)  # a batch may touch two epochs; sorting a million numbers for each step would show
def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the numbers 0 to n - 1 in the order of one epoch, a pure function of (seed, epoch).

    Made by sorting the raw output of Philox, which is the same in every version of NumPy; how NumPy shuffles is not.

    >>> epoch_order(5, seed=1, epoch=2).tolist()
    [2, 0, 4, 3, 1]
    """
    order = np.argsort(np.random.Philox(key=[seed, epoch << 32]).random_raw(n), kind="stable")
    order.flags.writeable = False
    return order


def batch_indices(n: int, batch_size: int, *, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epoch, number) of each example in the training batch of `step`, both int64 [batch_size].

    Epochs follow each other without a gap: nothing is dropped, and a batch may begin in one epoch and end in the next.

    >>> [batch_indices(4, 3, seed=0, step=s)[0].tolist() for s in range(3)]
    [[0, 0, 0], [0, 1, 1], [1, 1, 2]]
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // n
    numbers = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        numbers[rows] = epoch_order(n, seed=seed, epoch=int(epoch))[positions[rows] % n]
    return epochs, numbers


@dataclass(frozen=True)
class _TrainBatch:
    """step -> batch; what a worker is sent."""

    source: Source
    batch_size: int
    rows: slice
    channels: int
    seed: int
    image_size: int
    crop: dict[str, Any] | None

    def __call__(self, step: int) -> Batch:
        epochs, numbers = batch_indices(len(self.source), self.batch_size, seed=self.seed, step=step)
        epochs, numbers = epochs[self.rows], numbers[self.rows]
        whole = Preprocess(image_size=self.image_size, crop_pct=1.0)

        def read(row: int, image: Any) -> np.ndarray:
            if self.crop is None:
                return _resized(image, whole)
            # Keyed by seed, epoch and example: which worker reads it, and with what else, does not matter. The key of
            # "example -1" orders the epoch.
            draw = (int(epochs[row]) << 32) + int(numbers[row]) + 1
            rng = np.random.Generator(np.random.Philox(key=[self.seed, draw]))
            return host.train_crop(image, self.image_size, rng, **self.crop)

        return _read_batch(self.source, numbers, (self.image_size, self.image_size, self.channels), read)


@dataclass(frozen=True)
class _EvalBatch:
    source: Source
    batch_size: int
    rows: slice
    channels: int
    preprocess: Preprocess

    def __call__(self, number: int) -> Batch:
        numbers = _padded_range(number, self.batch_size, len(self.source))[self.rows]

        def read(row: int, image: Any) -> np.ndarray:
            return _resized(image, self.preprocess)

        size = self.preprocess.image_size
        return _read_batch(self.source, numbers, (size, size, self.channels), read)


def train_batches(
    pictures: Pictures,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    crop: dict[str, Any] | None = None,
    workers: int | None = None,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields the training batches of steps `start_step` to `stop_step` - 1.

    Args:
      pictures: from `prepare`. Stored ones come as they are (the device crops and resizes them); others come cropped
        and resized, uint8 [b, image_size, image_size, 3].
      batch_size: over all processes.
      image_size: side of the pictures that the model sees.
      seed: of the order and of the crops.
      start_step: the first step; a run that goes on gives the step it has reached.
      stop_step: where to stop.
      crop: options of `jaxvision.augment.host.train_crop` for pictures that are not stored; None: no random crop, the
        shorter side is resized and the middle taken.
      workers: processes that read and decode; 0 reads in threads of this one. None: one for each core but at
        most 16, and none where there are at most two.
      process: (index, count) of the JAX processes; each yields its own rows.

    Raises:
      UserError: too many damaged pictures.
    """
    rows = _rows(batch_size, process)
    if crop is not None:
        host.check_crop(**crop)
    if pictures.stored is not None:
        for step in range(start_step, stop_step):
            numbers = batch_indices(len(pictures), batch_size, seed=seed, step=step)[1][rows]
            yield _stored_batch(pictures, numbers)
        return
    work = _TrainBatch(pictures.source, batch_size, rows, pictures.channels, seed, image_size, crop)
    for batch in _stream(work, start_step, stop_step, workers):
        pictures.found_corrupt(int(i) for i in batch["index"][~batch["mask"]])
        yield batch


def batch_shapes(shape: tuple[int, ...], batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of what `train_batches` yields, of the batch over all processes.

    Args:
      shape: [h, w, c] of a picture on its way to the device: as it is stored, or as the workers crop it.
      batch_size: images per step.
    """
    import jax  # not above: the workers, which import this file, do without

    image = jax.ShapeDtypeStruct((batch_size, *shape), np.uint8)
    rest = {"label": np.int32, "mask": np.bool_, "index": np.int32}
    return {"image": image} | {key: jax.ShapeDtypeStruct((batch_size,), kind) for key, kind in rest.items()}


def eval_batches(
    pictures: Pictures,
    *,
    batch_size: int,
    preprocess: Preprocess,
    workers: int | None = None,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields every picture once, in order; the last batch is padded, and ``mask`` tells padding apart.

    Args:
      pictures: from `prepare`. Stored ones come as they are (`jaxvision.augment.on_device.prepare_eval` with
        ``resize=True`` does the rest); others come resized and cropped.
      batch_size: over all processes.
      preprocess: the model's own.
      workers: as for `train_batches`.
      process: likewise.
    """
    rows = _rows(batch_size, process)
    count = eval_steps(len(pictures), batch_size)
    if pictures.stored is not None:
        for number in range(count):
            yield _stored_batch(pictures, _padded_range(number, batch_size, len(pictures))[rows])
        return
    work = _EvalBatch(pictures.source, batch_size, rows, pictures.channels, preprocess)
    for batch in _stream(work, 0, count, workers):
        pictures.found_corrupt(int(i) for i in batch["index"][~batch["mask"]] if i >= 0)
        yield batch


def blank_batch(pictures: Pictures, batch_size: int, image_size: int) -> Batch:
    """Returns a batch like those of `eval_batches` in which all is zero, to compile with.

    Args:
      pictures: from `prepare`.
      batch_size: of this process.
      image_size: of pictures that are not stored.
    """
    shape = (image_size, image_size, pictures.channels) if pictures.stored is None else pictures.stored.shape[1:]
    return {key: np.zeros(x.shape, x.dtype) for key, x in batch_shapes(shape, batch_size).items()}


def eval_steps(n: int, batch_size: int) -> int:
    """Returns how many batches hold n pictures.

    >>> eval_steps(10, 4)
    3
    """
    return -(-n // batch_size)


def prefetch(batches: Iterable[T], place: Callable[[T], Any], *, ahead: int = AHEAD) -> Generator[Any, None, None]:
    """Yields ``place(batch)`` for each batch, begun `ahead` batches before it is asked for.

    Placing on a device returns before the copy is done, so the copy of one batch goes on during the step of another.

    >>> list(prefetch(range(4), lambda x: 10 * x))
    [0, 10, 20, 30]
    """
    waiting: deque[Any] = deque()
    try:
        for batch in batches:
            waiting.append(place(batch))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:  # what has been given away is not held
            yield waiting.popleft()
    finally:
        if hasattr(batches, "close"):
            batches.close()


def _rows(batch_size: int, process: tuple[int, int]) -> slice:
    index, count = process
    if batch_size % count:
        raise UserError(f"batch size {batch_size} is not divisible by {count} processes")
    share = batch_size // count
    return slice(index * share, (index + 1) * share)


def _padded_range(number: int, batch_size: int, n: int) -> np.ndarray:
    numbers = np.arange(number * batch_size, (number + 1) * batch_size)
    return np.where(numbers < n, numbers, -1)


def _stored_batch(pictures: Pictures, numbers: np.ndarray) -> Batch:
    assert pictures.stored is not None
    assert pictures.labels is not None
    # Padding (-1) reads the last picture, which the mask then hides.
    mask = numbers >= 0
    if pictures.corrupt:
        mask &= ~np.isin(numbers, list(pictures.corrupt))
    return {
        "image": pictures.stored[numbers],
        "label": np.where(numbers >= 0, pictures.labels[numbers], 0).astype(np.int32),
        "index": numbers.astype(np.int32),
        "mask": mask,
    }


def _read_batch(
    source: Source, numbers: np.ndarray, shape: tuple[int, ...], read: Callable[[int, Any], np.ndarray]
) -> Batch:
    labels = np.zeros(len(numbers), np.int32)
    mask = numbers >= 0
    images = np.zeros((len(numbers), *shape), np.uint8)  # as all processes have them, though one may read none
    rows = np.flatnonzero(mask)
    for row, example in zip(rows, read_examples(source, [int(i) for i in numbers[rows]]), strict=True):
        try:
            if isinstance(example, OSError):
                raise example
            labels[row] = example["label"]
            pixels = read(int(row), example["image"])
        except (host.BadImage, OSError):
            mask[row] = False
            continue
        images[row] = pixels
    check_labels(source, numbers, labels)
    return {"image": images, "label": labels, "index": numbers.astype(np.int32), "mask": mask}


def _stream(work: Callable[[int], Batch], start: int, stop: int, workers: int | None) -> Iterator[Batch]:
    """Yields ``work(i)`` for each i, made ahead by Grain's worker processes or, without any, by two threads."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        # Grain asks absl's flags when it starts workers, and fails in a program that has not parsed any. This says
        # that their defaults are meant; a program that does parse its flags is not disturbed.
        flags.FLAGS.mark_as_parsed()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = (min(cores, 16) if cores > 2 else 0) if workers is None else workers
    if stop <= start:
        return
    steps = grain.MapDataset.range(start, stop).map(work)
    # An element is a whole batch, so the buffers are short.
    options = grain.ReadOptions(num_threads=2 if count == 0 else 1, prefetch_buffer_size=4 if count == 0 else 1)
    batches = steps.to_iter_dataset(options)
    if count:
        processes = grain.MultiprocessingOptions(num_workers=min(count, stop - start), per_worker_buffer_size=2)
        batches = batches.mp_prefetch(processes, worker_init_fn=_begin_worker)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:  # also when the run is interrupted or ends early: the workers go, and the memory that they share
        iterator.close()


def _begin_worker(index: int, count: int) -> None:
    # Ctrl-C reaches every process of the terminal. The main one decides, and tells its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # After a `kill -9` nobody tells the workers: they would wait for ever, with their memory and the shared one.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _resized(image: bytes | np.ndarray, preprocess: Preprocess) -> np.ndarray:
    return host.eval_transform(host.decode(image) if isinstance(image, bytes) else image, preprocess)


def _pixels(image: bytes | np.ndarray) -> np.ndarray:
    return image if isinstance(image, np.ndarray) else np.asarray(host.decode(image))


def _try(source: Source, index: int) -> np.ndarray | None:
    try:
        return _pixels(source[index]["image"])
    except (host.BadImage, OSError):
        return None
