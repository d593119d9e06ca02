"""The numbers of an evaluation, from what was predicted for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jaxvision.errors import UserError
from jaxvision.extend import resolve

BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What a model is worth on a data set.

    Attributes:
      count: n, the number of images.
      top1: fraction whose most likely class is the label.
      top5: fraction whose label is among the five most likely classes (all classes, if there are fewer).
      loss: mean of the loss.
      calibration_error: see `calibration_error`.
      per_class: [classes] fraction of each class's images that were recognized; NaN for a class without images.
      classes: number of classes.
      index: [n] which image of the data set each row of the following is.
      label, prediction: [n] class numbers.
      confidence: [n] probability that the model gave to its prediction.
    """

    count: int
    top1: float
    top5: float
    loss: float
    calibration_error: float
    per_class: np.ndarray
    classes: int
    index: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confidence: np.ndarray

    @property
    def confusion(self) -> np.ndarray:
        """Counts [classes, classes]: rows are labels, columns predictions."""
        # Made on demand: for the 21,841 classes of ImageNet-21k it takes 4 GB.
        pairs = self.label.astype(np.int64) * self.classes + self.prediction
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def scalars(self) -> dict[str, float]:
        """Returns the numbers that go on one line of a log."""
        return {name: getattr(self, name) for name in ("top1", "top5", "loss", "calibration_error", "count")}

    def mistakes(self, n: int = 16) -> np.ndarray:
        """Returns the rows [<= n] of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.prediction != self.label)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:n]


def summarize(
    *,
    label: np.ndarray,
    prediction: np.ndarray,
    confidence: np.ndarray,
    in_top5: np.ndarray,
    loss: np.ndarray,
    index: np.ndarray,
    classes: int,
) -> Evaluation:
    """Returns the evaluation of n images.

    Sums are made in float64 on the host: the mean over 50,000 images has all its digits.

    Args:
      label: [n] class numbers.
      prediction: [n] the most likely class.
      confidence: [n] its probability.
      in_top5: [n] whether the label is among the five most likely.
      loss: [n].
      classes: number of classes.
      index: [n] which image of the data set it was.
      classes: number of classes.

    Raises:
      UserError: no images, or a label outside [0, classes).

    Example:
      >>> result = summarize(label=np.array([0, 1, 1]), prediction=np.array([0, 1, 0]), in_top5=np.ones(3, bool),
      ...                    confidence=np.array([0.9, 0.8, 0.7]), loss=np.ones(3), index=np.arange(3), classes=2)
      >>> round(result.top1, 4), result.per_class.tolist(), result.mistakes().tolist()
      (0.6667, [1.0, 0.5], [2])
      >>> result.confusion
      array([[1, 0],
             [1, 1]])
    """
    if not len(label):
        raise UserError("evaluation: the data set has no images")
    outside = np.flatnonzero((label < 0) | (label >= classes))
    if len(outside):
        i = outside[0]
        raise UserError(
            f"evaluation: image {index[i]} has the label {label[i]}, but the model has {classes} classes (0 to "
            f"{classes - 1}); {len(outside)} such images"
        )
    correct = prediction == label
    with np.errstate(invalid="ignore"):  # 0 / 0, a class without images, is NaN
        per_class = np.bincount(label[correct], minlength=classes) / np.bincount(label, minlength=classes)
    return Evaluation(
        count=len(label),
        top1=float(correct.mean()),
        top5=float(in_top5.mean()),
        loss=float(loss.mean(dtype=np.float64)),
        calibration_error=calibration_error(confidence, correct),
        per_class=per_class,
        classes=classes,
        index=index,
        label=label,
        prediction=prediction,
        confidence=confidence,
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """Returns the expected calibration error: how far, on average, confidence is from the truth.

    The predictions are put into `bins` bins of equal width by confidence, (0, 1/bins], (1/bins, 2/bins], ..., and
    ECE = sum over bins of (share of the images in the bin) × |accuracy in the bin - mean confidence in the bin|.

    Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, equation 3.

    Args:
      confidence: [n] probability of the predicted class, in [0, 1].
      correct: [n] whether it was right.
      bins: how many; 15 in the paper.

    Example:
      >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
      0.0
    """
    which = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(which, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def metric_function(name: str | Callable[..., float]) -> Callable[..., float]:
    """Returns your own metric that `name` stands for: a function of an `Evaluation` that returns a number.

    Args:
      name: a callable, or ``"package.module:function"``.

    Raises:
      UserError: no such module or function.
    """
    return resolve("metric", name, {})
