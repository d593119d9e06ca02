"""Images that resemble no other image of the dataset."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np


def find_outliers(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns the outliers, the farthest first: int [m]; the distance of each image: float [n]; and the threshold.

    The distance of an image is its mean cosine distance to its k nearest neighbors. If distances were normally
    distributed, one image of n would be expected beyond the threshold. The mean is estimated by the median, and the
    standard deviation by 1.4826 times the median deviation of the distances above the median.

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
