"""The most similar images of each image, and the k-nearest-neighbor classifier, which has nothing to fit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_CHUNK = 512  # images whose similarities to all others are computed at once


def knn_accuracy(
    values: np.ndarray,
    label: np.ndarray,
    queries: np.ndarray | None = None,
    query_label: np.ndarray | None = None,
    *,
    k: int = 20,
    temperature: float = 0.07,
    most: int = 10_000,
) -> float:
    """Returns the accuracy of the weighted k-nearest-neighbor classifier of Wu et al. and DINO.

    The k most similar images vote with the weight exp(cosine similarity / temperature).

    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", https://arxiv.org/abs/2104.14294,
    appendix F.1.

    Args:
      values: float [n, d], features of the labeled images.
      label: int [n].
      queries: float [m, d], features of the images to classify. None: those of `values`, each without itself.
      query_label: int [m], with `queries`.
      k: number of neighbors.
      temperature: of the weights.
      most: number of images to classify; of more, a random choice stands for all.

    Example:
      >>> knn_accuracy(np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), np.array([0, 0, 1, 1]), k=1)
      1.0
    """
    base = _unit(values)
    query, wanted = (base, label) if queries is None else (_unit(queries), np.asarray(query_label))
    rows = np.arange(len(query))
    if len(rows) > most:
        rows = np.sort(np.random.Generator(np.random.Philox(0)).permutation(rows)[:most])
    k = min(k, len(base) - (queries is None))
    classes = int(max(label.max(), wanted.max())) + 1
    correct = 0
    for chunk in np.split(rows, range(_CHUNK, len(rows), _CHUNK)):
        similarity = query[chunk] @ base.T
        if queries is None:
            similarity[np.arange(len(chunk)), chunk] = -np.inf
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes = np.zeros((len(chunk), classes))
        np.add.at(votes, (np.arange(len(chunk))[:, None], label[nearest]), weight)
        correct += int((votes.argmax(axis=1) == wanted[chunk]).sum())
    return correct / len(rows)


def nearest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k most similar other rows of each row: cosine similarities float32 [n, k] and rows int32 [n, k].

    The most similar comes first. A device compares a block of rows with all rows, so that no n × n matrix exists.

    Args:
      values: float [n, d], features.
      k: number of neighbors, less than n.

    Example:
      >>> similarity, row = nearest(np.array([[1.0, 0], [1, 1], [0, 2]]), 1)
      >>> row.ravel().tolist(), np.allclose(similarity, 0.5**0.5)
      ([1, 0, 1], True)
    """
    n = len(values)
    unit = jnp.asarray(_unit(values))
    similarity, row = np.empty((n, k), np.float32), np.empty((n, k), np.int32)
    block = min(_CHUNK, n)
    for start in [*range(0, n - block, block), n - block]:  # the last block overlaps, so that all have one shape
        rows = slice(start, start + block)
        similarity[rows], row[rows] = jax.device_get(_nearest_of_block(unit, start, block=block, k=k))
    return similarity, row


@functools.partial(jax.jit, static_argnames=("block", "k"))
def _nearest_of_block(unit: jax.Array, start: int, *, block: int, k: int) -> tuple[jax.Array, jax.Array]:
    rows = start + jnp.arange(block)
    similarity = jnp.matmul(unit[rows], unit.T, precision=jax.lax.Precision.HIGHEST)
    values, neighbors = jax.lax.top_k(similarity.at[jnp.arange(block), rows].set(-jnp.inf), k)
    return values, neighbors


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(length, 1e-12)).astype(np.float32)
