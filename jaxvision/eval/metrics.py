"""Metrics of an evaluation, from the prediction for each image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxvision.errors import UserError
from jaxvision.extend import check_call, resolve

#: The metrics that every evaluation has; `checkpoint.best` may name one of them, or a user's own.
METRICS = ("top1", "top5", "loss", "calibration_error")

#: Those of which a lower value is better.
LOWER_IS_BETTER = ("loss", "calibration_error")

#: Bins of the calibration error.
BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """The result of evaluating a model on a dataset of n images.

    Attributes:
      count: n.
      top1: fraction of images whose most likely class is the label.
      top5: fraction of images whose label is among the five most likely classes, or among all if there are fewer.
      loss: mean loss.
      calibration_error: see `calibration_error`.
      per_class: [classes] fraction of each class's images that were predicted correctly; NaN for a class without
        images.
      classes: number of classes.
      index: [n] index in the dataset of the image of each row below.
      label, prediction: [n] class numbers.
      confidence: [n] probability of the prediction.
      own: values of your own metrics by name, from `with_metric`.
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
    own: Mapping[str, float] = field(default_factory=dict)

    @property
    def confusion(self) -> np.ndarray:
        """Counts [classes, classes]: rows are labels, columns predictions."""
        # Computed on demand: for the 21,841 classes of ImageNet-21k it takes 4 GB.
        pairs = self.label.astype(np.int64) * self.classes + self.prediction
        return np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)

    def scalars(self) -> dict[str, float]:
        """Returns the metrics that are single numbers, and `count`."""
        return {name: getattr(self, name) for name in (*METRICS, "count")} | dict(self.own)

    def headline(self) -> dict[str, float]:
        """Returns the metrics that people read; see the function `headline`."""
        return headline(self.scalars(), self.classes)

    def mistakes(self, n: int = 16) -> np.ndarray:
        """Returns the rows [<= n] of the wrong predictions, the most confident first."""
        wrong = np.flatnonzero(self.prediction != self.label)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:n]


def headline(metrics: Mapping[str, float], classes: int) -> dict[str, float]:
    """Returns metrics without ``count``, and without ``top5`` if it is 1 because there are five classes or fewer.

    >>> headline({"top1": 0.9, "top5": 1.0, "count": 50}, classes=4)
    {'top1': 0.9}
    """
    omitted = {"count", "top5"} if classes <= 5 else {"count"}
    return {name: x for name, x in metrics.items() if name not in omitted}


def metric_function(name: str | Callable[..., float] | None) -> Callable[..., float] | None:
    """Returns the metric function that `name` refers to, or None if `name` is None.

    Args:
      name: a callable or ``"package.module:function"``, called with an `Evaluation` and the other keys of the config's
        section ``metric``; or None.

    Raises:
      UserError: no such module or function.

    Example:
      >>> metric_function(None) is None
      True
    """
    return None if name is None else resolve("metric.name", name, {}, expected="a metric")


def metric_key(function: Callable[..., float]) -> str:
    """Returns the name under which a user's metric is logged.

    >>> metric_key(max)
    'max'
    """
    return getattr(function, "__name__", type(function).__name__)


def is_lower_better(metric: str, own: str | Callable[..., float] | None = None) -> bool:
    """Returns whether a lower value of a metric is better.

    Args:
      metric: name of a built-in metric, or of the user's own.
      own: the user's own metric, as for `metric_function`. Its attribute ``lower_is_better`` states its direction;
        without the attribute a higher value is better.

    Raises:
      UserError: no such module or function.

    Example:
      >>> is_lower_better("top1"), is_lower_better("loss")
      (False, True)
      >>> def mistakes(evaluation):
      ...     return len(evaluation.mistakes(evaluation.count))
      >>> mistakes.lower_is_better = True
      >>> is_lower_better("mistakes", mistakes)
      True
    """
    function = metric_function(own)
    if function is not None and metric == metric_key(function):
        return bool(getattr(function, "lower_is_better", False))
    return metric in LOWER_IS_BETTER


def check_metric(function: Callable[..., float], **options: Any) -> None:
    """Checks what can be checked of a user's metric without an evaluation.

    Raises:
      UserError: the function does not take an option, or has the name of a built-in metric.

    >>> check_metric(lambda evaluation, *, scale: scale, scale=2)
    """
    key = metric_key(function)
    if key in (*METRICS, "count"):
        raise UserError(f"metric.name: got {key!r}, which is the name of another metric. Rename the function.")
    check_call("metric.name", function, None, **options)


def with_metric(
    evaluation: Evaluation, *, name: str | Callable[..., float] | None = None, **options: Any
) -> Evaluation:
    """Returns an evaluation with one more metric, under the ``__name__`` of its function.

    Args:
      evaluation: from `evaluate_batches`.
      name: as for `metric_function`. None returns `evaluation` unchanged.
      **options: keyword arguments of the function.

    Raises:
      UserError: the function does not take an option, does not return a number, or has the name of a built-in metric.

    Example:
      >>> def wrong_answers(evaluation):
      ...     return len(evaluation.mistakes(evaluation.count))
      >>> result = summarize(label=np.array([0, 1, 1]), prediction=np.array([0, 1, 0]), in_top5=np.ones(3, bool),
      ...                    confidence=np.array([0.9, 0.8, 0.7]), loss=np.ones(3), index=np.arange(3), classes=2)
      >>> with_metric(result, name=wrong_answers).scalars()["wrong_answers"]
      1.0
    """
    function = metric_function(name)
    if function is None:
        return evaluation
    check_metric(function, **options)
    key, value = metric_key(function), function(evaluation, **options)
    try:
        number = float(value)
    except (TypeError, ValueError) as e:
        raise UserError(f"metric.name: {key} returned {value!r}, expected a number.") from e
    return replace(evaluation, own={**evaluation.own, key: number})


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

    Computes sums in float64 on the host, because float32 would lose digits in the mean over 50,000 images.

    Args:
      label: [n] class numbers.
      prediction: [n] most likely class.
      confidence: [n] probability of the prediction.
      in_top5: [n] whether the label is among the five most likely classes.
      loss: [n].
      index: [n] index of the image in the dataset.
      classes: number of classes.

    Raises:
      UserError: there are no images, or a label is outside [0, classes).

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
        raise UserError("evaluation: the dataset has no images.")
    outside = np.flatnonzero((label < 0) | (label >= classes))
    if len(outside):
        i = outside[0]
        raise UserError(
            f"evaluation: image {index[i]} has the label {label[i]}, expected 0 to {classes - 1}, the classes of the "
            f"model. Number of images with such a label: {len(outside)}."
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


def summarize_probabilities(
    probabilities: np.ndarray, label: np.ndarray, index: np.ndarray, loss: np.ndarray
) -> Evaluation:
    """Returns the evaluation of n images whose probabilities are known.

    Args:
      probabilities: [n, classes].
      label, index, loss: as for `summarize`.

    Raises:
      UserError: as for `summarize`.

    Example:
      >>> probabilities, label = np.array([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1])
      >>> result = summarize_probabilities(probabilities, label, index=np.arange(2), loss=np.ones(2))
      >>> result.top1, result.confidence.tolist()
      (0.5, [0.8, 0.6])
    """
    n, classes = probabilities.shape
    rows, prediction = np.arange(n), probabilities.argmax(axis=1)
    # Among equal probabilities the lowest class comes first, as in `make_eval_step`.
    own = probabilities[rows, np.clip(label, 0, classes - 1)][:, None]
    is_before = (probabilities > own) | ((probabilities == own) & (np.arange(classes) < label[:, None]))
    return summarize(
        label=label,
        prediction=prediction,
        confidence=probabilities[rows, prediction],
        in_top5=is_before.sum(axis=1) < 5,
        loss=loss,
        index=index,
        classes=classes,
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, bins: int = BINS) -> float:
    """Returns the expected calibration error: the mean distance between confidence and accuracy.

    The predictions are sorted by confidence into `bins` bins of equal width, (0, 1/bins], (1/bins, 2/bins], ..., and
    ECE = sum over bins of (share of the images in the bin) × |accuracy in the bin - mean confidence in the bin|.

    Guo et al., "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, equation 3.

    Args:
      confidence: [n] probability of the predicted class, in [0, 1].
      correct: [n] whether the prediction is the label.
      bins: number of bins; 15 in the paper.

    Example:
      >>> calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
      0.0
    """
    which = np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(which, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))
