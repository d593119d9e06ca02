"""The predictions of an evaluation and the counts that derive from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BINS = 15  # of confidence, as in Guo et al., https://arxiv.org/abs/1706.04599


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions of a model for n images.

    Attributes:
      names: class names [k].
      label: correct class of each image, 0 to k - 1 [n].
      prediction: predicted class of each image, 0 to k - 1 [n].
      confidence: probability of the predicted class, 0 to 1 [n]. None: unknown.

    Raises:
      ValueError: the arrays differ in shape, or a class is outside of `names`.
    """

    names: Sequence[str]
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray | None = None

    def __post_init__(self) -> None:
        k = len(self.names)
        for name in ("label", "prediction", "confidence"):
            x = getattr(self, name)
            if x is not None and np.shape(x) != np.shape(self.label):
                raise ValueError(
                    f"{name}: got shape {np.shape(x)}, expected {np.shape(self.label)}, the shape of label"
                )
            if name != "confidence" and len(x) and not 0 <= np.min(x) <= np.max(x) < k:
                raise ValueError(
                    f"{name}: got values from {np.min(x)} to {np.max(x)}, expected 0 to {k - 1} ({k} classes)"
                )

    def totals(self) -> np.ndarray:
        """Returns the number of images of each class [k]."""
        return np.bincount(self.label, minlength=len(self.names))

    def cells(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns label, prediction and count of each nonzero cell of the confusion matrix, row by row.

        With many classes most of the matrix is zero, and the matrix itself would be too large.
        """
        k = len(self.names)
        cell, count = np.unique(self.label.astype(np.int64) * k + self.prediction, return_counts=True)
        return cell // k, cell % k, count

    def mistakes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the cells off the diagonal, the largest count first."""
        row, column, count = self.cells()
        wrong = np.flatnonzero(row != column)
        wrong = wrong[np.argsort(-count[wrong], kind="stable")]
        return row[wrong], column[wrong], count[wrong]

    def matrix(self) -> np.ndarray:
        """Returns the confusion matrix [k, k]: rows are labels, columns are predictions."""
        counts = np.zeros((len(self.names), len(self.names)), np.int64)
        row, column, count = self.cells()
        counts[row, column] = count
        return counts

    def calibration(self, bins: int = BINS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns mean confidence, accuracy and number of images of each confidence bin [bins].

        The bins are (0, 1/bins], (1/bins, 2/bins], and so on. Both means are 0 in an empty bin.
        """
        assert self.confidence is not None
        confidence = np.nan_to_num(np.asarray(self.confidence, np.float64))  # a diverged model has NaN: no confidence
        which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        count = np.bincount(which, minlength=bins)
        sums = (np.bincount(which, weights=x, minlength=bins) for x in (confidence, self.prediction == self.label))
        mean, accuracy = (x / np.maximum(count, 1) for x in sums)
        return mean, accuracy, count
