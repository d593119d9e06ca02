"""Wrong labels, by confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial
Intelligence Research 2021, https://arxiv.org/abs/1911.00068. The tests compare the results with those of the
package cleanlab. It is not used, because it needs pandas.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: The labels of classes with fewer images are not judged, because their probabilities are unreliable.
FEWEST = 5


class LabelErrors(NamedTuple):
    """Images whose label is likely wrong, the most certain first.

    Attributes:
      row: int [m], positions of the images.
      suggested: int [m], the classes that they more likely belong to.
      margin: float [m], probability of the suggested class minus that of the label.
      estimated: the estimated number of wrong labels in the whole dataset.
    """

    row: np.ndarray
    suggested: np.ndarray
    margin: np.ndarray
    estimated: int


def confident_examples(probabilities: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Returns the class of which each image is a confident example: int [n], -1 for none.

    An image is a confident example of a class if the probability of this class is at least the mean over all images
    with this label; of several such classes the most probable one counts.

    Args:
      probabilities: float [n, classes], each row by a model that was not fitted to this image.
      label: int [n].
    """
    n, classes = probabilities.shape
    counts = np.bincount(label, minlength=classes)
    of_label = probabilities[np.arange(n), label]
    threshold = np.bincount(label, of_label, minlength=classes) / np.maximum(counts, 1)
    threshold[counts < FEWEST] = np.inf
    confident = np.where(probabilities >= threshold - 1e-6, probabilities, -1.0)
    return np.where(confident.max(axis=1) < 0, -1, confident.argmax(axis=1))


def find_label_errors(probabilities: np.ndarray, label: np.ndarray) -> LabelErrors:
    """Returns the images that are confident examples of another class than their label.

    The model must also find another class the most probable, as in cleanlab's ``filter_by="confident_learning"``. The
    order is that of its ``"normalized_margin"``. The labels of classes with fewer than five images are not judged.

    Args:
      probabilities: float [n, classes], each row by a model that was not fitted to this image.
      label: int [n].

    Example:
      >>> probabilities = np.array([[0.9, 0.1]] * 5 + [[0.1, 0.9]] * 6)
      >>> find_label_errors(probabilities, np.array([0] * 6 + [1] * 5)).row.tolist()
      [5]
    """
    example_of = confident_examples(probabilities, label)
    classes = probabilities.shape[1]
    counts = np.bincount(label, minlength=classes)
    suggested = probabilities.argmax(axis=1)
    wrong = (example_of >= 0) & (example_of != label) & (suggested != label) & (counts[label] >= FEWEST)
    row = np.flatnonzero(wrong)
    margin = probabilities[row, suggested[row]] - probabilities[row, label[row]]
    order = np.argsort(-margin, kind="stable")
    # Of the paper's confident joint, a matrix [classes, classes], only the row sums and the diagonal are needed.
    # Each row is scaled to the number of images with this label; off the diagonal are the wrong labels.
    row_sum = np.bincount(label[example_of >= 0], minlength=classes)
    diagonal = np.bincount(label[example_of == label], minlength=classes)
    share_right = diagonal / np.maximum(row_sum, 1)
    judged = (counts >= FEWEST) & (row_sum > 0)
    estimated = round(float(((1 - share_right) * counts)[judged].sum()))
    return LabelErrors(row[order], suggested[row[order]], margin[order], estimated)
