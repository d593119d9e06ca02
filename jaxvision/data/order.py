"""The order of the images: a pure function from the seed and the number of a batch to its images.

The step number alone determines the position in the dataset. A resumed run needs no reader state, and any batch can be
reproduced.
"""

from __future__ import annotations

import functools

import numpy as np

from jaxvision.errors import UserError


@functools.lru_cache(maxsize=2)  # a batch may span two epochs, and sorting a million numbers at each step takes time
def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the indices 0 to n - 1 in the order of one epoch, int64 [n], read-only.

    Sorts the raw output of Philox, which is the same in every version of NumPy, unlike NumPy's shuffle.

    >>> epoch_order(5, seed=1, epoch=2).tolist()
    [2, 0, 4, 3, 1]
    """
    order = np.argsort(np.random.Philox(key=[seed, epoch << 32]).random_raw(n), kind="stable")
    order.flags.writeable = False
    return order


def crop_rng(seed: int, *, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator of one image's random crop in one epoch, the same in every process.

    Its key differs from all keys of `epoch_order`.
    """
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) + index + 1]))


def batch_indices(n: int, batch_size: int, *, seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epoch, index) of each image in the training batch of `step`, both int64 [batch_size].

    No image is dropped between epochs: a batch may begin in one epoch and end in the next.

    >>> [batch_indices(4, 3, seed=0, step=s)[0].tolist() for s in range(3)]
    [[0, 0, 0], [0, 1, 1], [1, 1, 2]]
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // n
    indices = np.empty(batch_size, np.int64)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        indices[rows] = epoch_order(n, seed=seed, epoch=int(epoch))[positions[rows] % n]
    return epochs, indices


def eval_indices(n: int, batch_size: int, number: int) -> np.ndarray:
    """Returns the indices of evaluation batch `number`, int64 [batch_size]; -1 marks padding at the end.

    >>> eval_indices(5, 4, 1).tolist()
    [4, -1, -1, -1]
    """
    indices = np.arange(number * batch_size, (number + 1) * batch_size)
    return np.where(indices < n, indices, -1)


def eval_steps(n: int, batch_size: int) -> int:
    """Returns the number of batches that hold n images.

    >>> eval_steps(10, 4)
    3
    """
    return -(-n // batch_size)


def process_rows(batch_size: int, process: tuple[int, int]) -> slice:
    """Returns the rows of a batch that process (index, count) reads.

    Raises:
      UserError: the batch size is not a multiple of the number of processes.

    >>> process_rows(8, (1, 2))
    slice(4, 8, None)
    """
    index, count = process
    if batch_size % count:
        raise UserError(
            f"data.batch_size: got {batch_size}, expected a multiple of the {count} processes. "
            f"Set data.batch_size to {-(-batch_size // count) * count}."
        )
    share = batch_size // count
    return slice(index * share, (index + 1) * share)
