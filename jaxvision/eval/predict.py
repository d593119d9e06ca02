"""Predictions for image files: decoded by threads ahead of the devices, computed in batches, yielded in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from jaxvision.ensemble import Ensemble
from jaxvision.errors import UserError
from jaxvision.parallel.cores import usable_cores
from jaxvision.parallel.mesh import IMAGES_PER_DEVICE, batch_devices, batch_sharding, make_mesh, replicated
from jaxvision.platform import compiled_for

File = TypeVar("File", bound=str | Path)
#: The pixels of an image after each of the transforms, or the error of its file.
Pixels = tuple[np.ndarray, ...] | UserError


def predict_files(
    ensemble: Ensemble,
    files: Sequence[File],
    *,
    batch_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Generator[tuple[File, np.ndarray | UserError]]:
    """Yields the probabilities for each image file, in the order of the files, as soon as they are computed.

    Threads decode the images of the next batches while the devices compute. A batch is padded, so that all of them run
    the same program; fewer images than a batch are padded to a power of two.

    Args:
      ensemble: one or several classifiers; `Ensemble([classifier])` makes one of a single classifier.
      files: image files.
      batch_size: images per step, over all devices; it is rounded up to a multiple of their number. None: 32 for each
        device.
      mesh: the devices, each of which computes its part of a batch. None: all devices of this process.

    Yields:
      (file, float32 [classes]), or (file, error) for a file that is not a readable image.

    Raises:
      UserError: `batch_size` is less than 1. As with any generator, this happens when the first result is requested.

    Example:
      >>> import tempfile
      >>> import jaxvision
      >>> from PIL import Image
      >>> from jaxvision.augment.preprocess import Preprocess
      >>> model = jaxvision.create_model("test_vit", num_classes=2, image_size=32, patch_size=8)
      >>> ensemble = Ensemble([jaxvision.Classifier(model, ("cat", "dog"), Preprocess(image_size=32))])
      >>> photo = Path(tempfile.mkdtemp(), "photo.png")
      >>> Image.new("RGB", (60, 40)).save(photo)
      >>> for file, result in predict_files(ensemble, [photo, "missing.png"]):
      ...     print(type(result).__name__)
      ndarray
      UserError
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch_size: got {batch_size}, expected 1 or more.")
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    devices = batch_devices(mesh)
    size = min(batch_size or IMAGES_PER_DEVICE * devices, 1 << max(len(files) - 1, 0).bit_length())
    size = -(-size // devices) * devices
    members = [replace(each, model=jax.device_put(each.model, replicated(mesh))) for each in ensemble.members]
    ensemble = replace(ensemble, members=members)
    running: tuple[list[tuple[File, Pixels]], jax.Array | None] | None = None
    with closing(_decoded(ensemble, files, ahead=2 * size)) as decoded:
        while batch := list(itertools.islice(decoded, size)):
            # The next step is queued before the result of the previous one is fetched, so that no device waits.
            running, done = (batch, _start(ensemble, batch, size, mesh)), running
            if done is not None:
                yield from _finish(*done)
        if running is not None:
            yield from _finish(*running)


def _decoded(ensemble: Ensemble, files: Sequence[File], *, ahead: int) -> Generator[tuple[File, Pixels]]:
    """Yields each file with its pixels or its error. At most `ahead` files are decoded in advance."""

    def pixels(file: File) -> Pixels:
        try:
            return ensemble.pixels(file)
        except UserError as e:
            return e

    waiting: deque[tuple[File, Future[Pixels]]] = deque()
    pool = ThreadPoolExecutor(max(1, min(int(usable_cores()), 16)))  # decoding and resizing release Python's lock
    try:
        for file in files:
            waiting.append((file, pool.submit(pixels, file)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start(
    ensemble: Ensemble, batch: Sequence[tuple[File, Pixels]], size: int, mesh: jax.sharding.Mesh
) -> jax.Array | None:
    """Returns the probabilities of the readable images of a batch, [size, classes], which need not be computed yet."""
    readable = [pixels for _, pixels in batch if not isinstance(pixels, UserError)]
    if not readable:
        return None
    padding = [(0, size - len(readable)), (0, 0), (0, 0), (0, 0)]
    stacked = (np.pad(np.stack(each), padding) for each in zip(*readable, strict=True))
    placed = [jax.device_put(each, batch_sharding(mesh)) for each in stacked]
    with compiled_for(mesh):
        return ensemble.predict(ensemble.normalize(placed))


def _finish(
    batch: Sequence[tuple[File, Pixels]], probabilities: jax.Array | None
) -> Iterator[tuple[File, np.ndarray | UserError]]:
    rows = iter(() if probabilities is None else np.asarray(probabilities))
    for file, pixels in batch:
        yield file, pixels if isinstance(pixels, UserError) else next(rows)
