"""Images that resemble no other image of the dataset."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np


def find_outliers(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the outliers, the farthest first: int [m]; the distance of each image: float [n]; and the threshold.

    The distance of an image is its mean cosine distance to its k nearest neighbors. The threshold is where one image of
    n is expected if distances have a normal distribution, whose center is the median, and whose width is that of the
    distances above the median: 1.4826 times their median deviation. More images beyond it are not chance.

    Args:
      similarity: float [n, k], cosine similarities to the nearest neighbors.

    Example:
      >>> similarity = np.array([[0.9], [0.8], [0.85], [0.82], [0.88], [0.1]])
      >>> find_outliers(similarity)[0]
      array([5])
    """
    distance = 1 - similarity.mean(axis=1, dtype=np.float64)
    median = np.median(distance)
    spread = 1.4826 * np.median(distance[distance >= median] - median)
    threshold = median + NormalDist().inv_cdf(1 - 1 / len(distance)) * spread
    row = np.flatnonzero(distance > threshold + 1e-6)
    return row[np.argsort(-distance[row], kind="stable")], distance, float(threshold)
