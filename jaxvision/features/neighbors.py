"""The most similar images of each image, and the k-nearest-neighbor classifier, which has nothing to fit."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 512  # images whose similarities to all others are computed at once


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
      most: number of images to classify; if there are more, a random sample.

    Example:
      >>> knn_accuracy(np.array([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]]), np.array([0, 0, 1, 1]), k=1)
      1.0
    """
    base = _unit(values)
    query, wanted = (base, label) if queries is None else (_unit(queries), np.asarray(query_label))
    rows = np.arange(len(query))
    if len(rows) > most:
        rows = np.sort(np.random.Generator(np.random.Philox(0)).permutation(rows)[:most])
    itself = rows if queries is None else np.full(len(rows), len(base))
    similarity, neighbor = _search(base, query[rows], itself, min(k, len(base) - (queries is None)))
    classes = label[neighbor]
    weight = np.exp(similarity / temperature)
    votes = ((classes[:, :, None] == classes[:, None, :]) * weight[:, None, :]).sum(axis=2)  # for each neighbor's class
    predicted = classes[np.arange(len(rows)), votes.argmax(axis=1)]
    return float((predicted == wanted[rows]).mean())


def nearest_neighbors(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k most similar other rows of each row: cosine similarities float32 [n, k] and rows int32 [n, k].

    The most similar comes first.

    Args:
      values: float [n, d], features.
      k: number of neighbors, less than n.

    Example:
      >>> similarity, row = nearest_neighbors(np.array([[1.0, 0], [1, 1], [0, 2]]), 1)
      >>> row.ravel().tolist(), np.allclose(similarity, 0.5**0.5)
      ([1, 0, 1], True)
    """
    unit = _unit(values)
    return _search(unit, unit, np.arange(len(unit)), k)


def _search(base: np.ndarray, queries: np.ndarray, itself: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k rows of `base` that are most similar to each query, as `nearest_neighbors` does.

    A device compares a block of queries with all rows, so that no [m, n] matrix exists.

    Args:
      base: float32 [n, d], of length 1.
      queries: float32 [m, d], of length 1.
      itself: int [m], the row of each query in `base`, which is no neighbor; n if it has none.
      k: number of neighbors.
    """
    m, on_device = len(queries), jnp.asarray(base)
    similarity, row = np.empty((m, k), np.float32), np.empty((m, k), np.int32)
    block = min(_BLOCK, m)
    for start in [*range(0, m - block, block), m - block]:  # the last block overlaps, so that all have one shape
        rows = slice(start, start + block)
        similarity[rows], row[rows] = jax.device_get(_search_block(on_device, queries[rows], itself[rows], k))
    return similarity, row


@functools.partial(jax.jit, static_argnames="k")
def _search_block(base: jax.Array, queries: jax.Array, itself: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    similarity = jnp.matmul(queries, base.T, precision=jax.lax.Precision.HIGHEST)
    similarity = similarity.at[jnp.arange(len(queries)), itself].set(-jnp.inf, mode="drop")
    values, rows = jax.lax.top_k(similarity, k)
    return values, rows


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(length, 1e-12)).astype(np.float32)
