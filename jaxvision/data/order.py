"""The order of the images: a pure function from the seed and the number of a batch to its images.

The step number alone determines the position in the dataset. A resumed run needs no reader state, and any batch can be
reproduced. No table of the order exists: each index is computed from its position, so a dataset of a billion images
takes no memory here.
"""

from __future__ import annotations

import math

import numpy as np

from jaxvision.errors import UserError

#: Version of the order and of the checksums of the data, stored in each checkpoint. Change it whenever a seed gives
#: another order than before, or the same data other checksums.
VERSION = 3

_ROUNDS = 12  # with 8, the permutations of five images are visibly not equally frequent


def shuffle(positions: np.ndarray, n: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns the indices at some positions of one epoch, int64, of the shape of `positions`.

    A permutation of 0 to n - 1 that needs no table: a Feistel network on pairs (position % a, position // a), with a
    the side of the smallest near-square that holds n (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002,
    https://doi.org/10.1007/3-540-45760-7_9). A result of n or more is permuted again until it is below n. The keys are
    raw output of Philox, which is the same in every version of NumPy, unlike NumPy's shuffle.

    Args:
      positions: int, 0 to n - 1.
      n: number of images, at least 1.
      seed: seed of the run.
      epoch: number of the epoch.

    >>> shuffle(np.arange(5), 5, seed=1, epoch=2).tolist()
    [3, 4, 1, 2, 0]
    """
    keys = np.random.Philox(key=[seed, epoch << 32]).random_raw(_ROUNDS)
    a = math.isqrt(n - 1) + 1
    b = -(-n // a)
    found = _permute(np.asarray(positions, np.uint64), np.uint64(a), np.uint64(b), keys)
    while (outside := found >= n).any():
        found[outside] = _permute(found[outside], np.uint64(a), np.uint64(b), keys)
    return found.astype(np.int64)


def _permute(x: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    """Returns a permutation of 0 to a * b - 1, uint64."""
    right, left = np.divmod(x, a)
    for i, key in enumerate(keys):
        if i % 2 == 0:
            left = (left + _mix(right ^ key) % a) % a
        else:
            right = (right + _mix(left ^ key) % b) % b
    return left + a * right


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns uint64 hashes of uint64: the finalizer of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def crop_rng(seed: int, *, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator of one image's random crop in one epoch, the same in every process.

    Its key differs from all keys of `shuffle`.
    """
    return np.random.Generator(np.random.Philox(key=[seed, (epoch << 32) + index + 1]))


def batch_indices(
    n: int, batch_size: int, *, seed: int, step: int, rows: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epoch, index) of some rows of the training batch of `step`, both int64.

    No image is dropped between epochs: a batch may begin in one epoch and end in the next.

    >>> [batch_indices(4, 3, seed=0, step=s)[0].tolist() for s in range(3)]
    [[0, 0, 0], [0, 1, 1], [1, 1, 2]]
    """
    epochs, positions = np.divmod(step * batch_size + np.arange(*rows.indices(batch_size)), n)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        same = epochs == epoch
        indices[same] = shuffle(positions[same], n, seed=seed, epoch=int(epoch))
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
