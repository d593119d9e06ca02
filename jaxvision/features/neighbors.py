"""The k-nearest-neighbor classifier, which has nothing to fit."""

from __future__ import annotations

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


def _unit(values: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.maximum(length, 1e-12)).astype(np.float32)
