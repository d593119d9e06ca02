"""The linear probe: logistic regression on features, its cross-validation, and the head that it becomes.

Features are standardized: each one has mean 0 and variance 1 over the images of a fit, or a smaller variance if it
hardly varies there. Unlike scaling each vector to length 1, standardization is linear, so that it disappears in the
weight and the bias of an ordinary linear head.

scikit-learn fits, because its L-BFGS needs no compilation: a few hundred images take a second. A path of
regularizations, from strong to weak, starts each fit at the previous result.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.errors import UserError
from jaxvision.models.base import Model
from jaxvision.models.layers.deferred import place_parts

#: From strong to weak, half a decade apart. Weaker ones change nothing, because scikit-learn ends a fit when the
#: gradient is below 1e-4.
REGULARIZATIONS = tuple(10.0 ** (exponent / 2) for exponent in range(2, -9, -1))

#: Products of images, features and classes above which only one part is held out instead of each of the folds in turn.
#: CIFAR-10 with 1,280 features has 6.4e8, of which five folds would take several minutes on two cores.
LARGE = 1e8

#: The same product below which a fit takes one thread. With several, 248 images took 87 s instead of 1.3 s on a machine
#: whose cores were busy, because each of the many small steps waits for all threads.
_SMALL = 1e8

#: Largest product of images and classes of a fit. scikit-learn takes 8 bytes for each, the logits and their gradient:
#: 16 GB. ImageNet-1k has 1.3e9.
MOST = 2e9

#: Smallest standard deviation that a feature is divided by, as a share of the mean of all. Among a few images some
#: features are almost constant, so that their value for a new image would be thousands of deviations away.
_SMALLEST_SCALE = 0.1

_ABSENT = -30.0  # bias of a class without an image: its probability is 0 for all practical purposes
_LEAST = 1e-7  # probability, for the logarithm


class Point(NamedTuple):
    """One point of the curve over the regularization.

    Attributes:
      regularization: weight of half the squared norm of the weights, beside the mean loss.
      accuracy: of the predictions for images that were held out.
      loss: mean cross entropy of the same predictions.
    """

    regularization: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class Probe:
    """A linear classifier of features.

    Attributes:
      weight: float32 [d, classes], for features that are not standardized.
      bias: float32 [classes].
      regularization: as in `Point`; the one with the lowest loss on held-out images.
      accuracy: cross-validated accuracy, of `regularization`; NaN without cross-validation.
      standard_error: of `accuracy`: sqrt(p (1 - p) / n) of n held-out images, where p counts one more right image and
        one more wrong image, so that it is not 0 if all are right.
      held_out: int [m], positions of the images that were held out: all, a fifth, or none.
      cross_validated_probabilities: float32 [m, classes], of the images `held_out`. Each row is from a fit without this
        image.
      curve: the points that were tried, from strong to weak.
      folds: number of parts that were held out in turn. 1: a single part. 0: no cross-validation, because no class has
        two images.
    """

    weight: np.ndarray
    bias: np.ndarray
    regularization: float
    accuracy: float
    standard_error: float
    held_out: np.ndarray
    cross_validated_probabilities: np.ndarray
    curve: tuple[Point, ...]
    folds: int

    def probabilities(self, values: np.ndarray) -> np.ndarray:
        """Returns the probabilities of the classes: float32 [n, classes].

        Args:
          values: float [n, d], features.
        """
        return _softmax(values @ self.weight + self.bias)


def fit_probe(
    values: np.ndarray,
    label: np.ndarray,
    classes: int,
    *,
    regularizations: Sequence[float] = REGULARIZATIONS,
    folds: int = 5,
    seed: int = 0,
    log: Callable[[str], None] = lambda _: None,
) -> Probe:
    """Returns a multinomial logistic regression with the regularization that cross-validation chooses.

    Minimizes mean cross entropy + regularization / 2 · ‖W‖², where W is the weight of the standardized features. The
    bias is not regularized. For each regularization every image is predicted by a fit on the other folds. The lowest
    mean loss of these predictions decides; unlike the accuracy it has no ties, and it hardly favors chance among so few
    values. The path ends when the loss has not fallen twice in a row. The final fit takes all images.

    Args:
      values: float [n, d], features.
      label: int [n], class numbers.
      classes: number of classes.
      regularizations: to choose from, from strong to weak.
      folds: number of parts, stratified by class; fewer if the largest class has fewer images. Above `LARGE` only one
        of them is held out.
      seed: of the random parts.
      log: called with a line for each point.

    Raises:
      UserError: the images have fewer than two classes, features are not finite, an argument is out of range, or as for
        `check_size`.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> label = np.arange(60) % 3
      >>> probe = fit_probe(np.eye(3)[label] + 0.1 * rng.normal(size=(60, 3)), label, 3)
      >>> probe.accuracy, probe.folds, probe.weight.shape
      (1.0, 5, (3, 3))
    """
    n, d = values.shape
    label = np.asarray(label)
    if folds < 2:
        raise UserError(f"folds: got {folds}, expected 2 or more.")
    check_size(n, classes, where="probe", fix="Take fewer images.")
    if bad := n - int(np.isfinite(values).all(axis=1).sum()):
        raise UserError(
            f"probe: got features that are NaN or infinite for {bad:,} of {n:,} images, expected finite numbers. "
            "Choose other weights, or compute in float32 if the model computes in less."
        )
    counts = np.bincount(label, minlength=classes)
    if np.count_nonzero(counts) < 2:
        raise UserError("probe: got images of one class, expected at least two classes. Add images of another class.")
    fold = fold_of(label, min(folds, int(counts.max())), seed=seed)
    parts = 1 if n * d * classes > LARGE else int(fold.max()) + 1
    held = np.flatnonzero((fold < parts) & (counts.max() > 1))
    points: list[Point] = []
    best = np.zeros((0, classes), np.float32)
    chosen = regularizations[len(regularizations) // 2]
    fits = [_Regression(classes) for _ in range(parts)]
    with threadpool_limits(1 if n * d * classes < _SMALL else None):
        for regularization in regularizations if len(held) else ():
            probabilities = _predict_held_out(fits, values, label, fold, regularization)
            point = Point(regularization, *_score(probabilities, label[held]))
            points.append(point)
            log(f"regularization {point.regularization:.2g}: accuracy {point.accuracy:.2%}, loss {point.loss:.4f}")
            if point.loss < min((p.loss for p in points[:-1]), default=math.inf):  # of equal ones the strongest
                best, chosen = probabilities, regularization
            if len(points) > 2 and points[-1].loss >= points[-2].loss >= points[-3].loss:
                break
        weight, bias = _Regression(classes)(values, label, chosen)
    accuracy = _score(best, label[held])[0] if len(held) else float("nan")
    m = len(held)
    p = (m * accuracy + 1) / (m + 2)
    return Probe(
        weight=weight,
        bias=bias,
        regularization=chosen,
        accuracy=accuracy,
        standard_error=math.sqrt(p * (1 - p) / m) if m else math.nan,
        held_out=held,
        cross_validated_probabilities=best,
        curve=tuple(points),
        folds=parts if m else 0,
    )


def check_size(images: int, classes: int, *, where: str, fix: str) -> None:
    """Raises `UserError` if a fit to this many images takes more than 16 GB.

    Args:
      images, classes: their numbers.
      where: start of the message, such as the key of a config.
      fix: end of the message, as sentences.
    """
    if images * classes > MOST:
        raise UserError(
            f"{where}: got {images:,} images and {classes:,} classes, for which a fit takes about "
            f"{8 * images * classes / 1e9:,.1f} GB, expected at most {8 * MOST / 1e9:,.1f} GB. {fix}"
        )


def cross_validated_probabilities(
    values: np.ndarray, label: np.ndarray, classes: int, *, log: Callable[[str], None] = lambda _: None
) -> np.ndarray:
    """Returns the probabilities of each image by a probe that was not fitted to it: float32 [n, classes].

    Unlike `fit_probe`, it leaves out no image of a large dataset.

    Args:
      values, label: as for `fit_probe`. A class has two images or more.
      classes, log: as for `fit_probe`.
    """
    probe = fit_probe(values, label, classes, log=log)
    if probe.folds != 1:
        return probe.cross_validated_probabilities
    fold = fold_of(label, 5)
    fits = [_Regression(classes) for _ in range(5)]
    return _predict_held_out(fits, values, label, fold, probe.regularization)


def _predict_held_out(
    fits: Sequence[_Regression], values: np.ndarray, label: np.ndarray, fold: np.ndarray, regularization: float
) -> np.ndarray:
    """Returns the probabilities of the images in the first folds, one for each fit, by the fit to the other folds."""
    held = fold[fold < len(fits)]
    probabilities = np.zeros((len(held), fits[0].classes), np.float32)
    for part, fit in enumerate(fits):
        rows = fold == part
        weight, bias = fit(values[~rows], label[~rows], regularization)
        probabilities[held == part] = _softmax(values[rows] @ weight + bias)
    return probabilities


def fold_of(label: np.ndarray, folds: int, *, seed: int = 0) -> np.ndarray:
    """Returns the fold of each image, int [n]: random, with equal shares of each class.

    >>> fold_of(np.array([0, 0, 1, 1]), 2).reshape(2, 2).sum(axis=1)
    array([1, 1])
    """
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    fold = np.empty(len(label), np.int64)
    fold[order] = np.arange(len(label)) % folds
    return fold


class _Regression:
    """Logistic regressions on the same images, each of which starts at the result of the one before."""

    def __init__(self, classes: int):
        from sklearn.linear_model import LogisticRegression

        self.classes = classes
        self.model = LogisticRegression(warm_start=True, max_iter=1000)

    def __call__(self, values: np.ndarray, label: np.ndarray, regularization: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns weight [d, classes] and bias [classes] for features that are not standardized."""
        n, d = values.shape
        weight, bias = np.zeros((d, self.classes)), np.full(self.classes, _ABSENT)
        present = np.unique(label)
        if len(present) == 1:
            bias[present] = 0
            return weight.astype(np.float32), bias.astype(np.float32)
        mean, scale = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        scale = np.maximum(scale, max(_SMALLEST_SCALE * scale.mean(), 1e-12))
        standardized = ((values - mean.astype(np.float32)) / scale.astype(np.float32)).astype(np.float32)
        # For two classes scikit-learn fits one row w. As rows of a softmax, w/2 and -w/2 have half the squared norm.
        factor = 2 if len(present) == 2 else 1
        self.model.set_params(C=factor / (n * regularization))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's about convergence; the path need not be exact
            self.model.fit(standardized, label)
        rows, intercept = self.model.coef_.astype(np.float64), self.model.intercept_.astype(np.float64)
        if len(present) == 2:
            rows, intercept = np.concatenate([-rows, rows]) / 2, np.concatenate([-intercept, intercept]) / 2
        weight[:, present] = (rows / scale).T
        bias[present] = intercept - mean @ weight[:, present]
        return weight.astype(np.float32), bias.astype(np.float32)


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = logits - logits.max(axis=1, keepdims=True)
    np.exp(odds, out=odds)  # in place, because there may be billions
    odds /= odds.sum(axis=1, keepdims=True)
    return odds


def _score(probabilities: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Returns accuracy and mean loss."""
    of_label = probabilities[np.arange(len(label)), label].astype(np.float64)
    return float((probabilities.argmax(axis=1) == label).mean()), float(-np.log(np.maximum(of_label, _LEAST)).mean())


def with_head(classifier: Classifier, probe: Probe, classes: Sequence[str], preprocess: Preprocess) -> Classifier:
    """Returns a classifier with a probe as its head, whose logits are those of the probe.

    Args:
      classifier: the model whose features (those that its head takes) the probe was fitted on. It is not changed.
      probe: from `fit_probe`.
      classes: names of the classes.
      preprocess: the transform with which the features were computed.
    """
    from flax import nnx

    model: Model = nnx.clone(classifier.model)
    model.reset_classifier(len(classes), rngs=nnx.Rngs(0))
    set_head(model, probe.weight, probe.bias)
    return replace(classifier, model=model, classes=tuple(classes), preprocess=preprocess, probabilities="softmax")


def set_head(model: Model, weight: np.ndarray, bias: np.ndarray) -> None:
    """Sets the head of a model to a linear classifier, in place. Its arrays keep their dtypes and shardings.

    Args:
      model: with a linear head, or with several that it averages, all of which become the same one.
      weight: float [d, classes].
      bias: float [classes].
    """
    for path in model.classifier_names:
        head: Any = functools.reduce(getattr, path.split("."), model)
        for parameter, value in ((head.kernel, weight), (head.bias, bias)):
            array = parameter.get_value()
            values = np.asarray(value, array.dtype).reshape(array.shape)
            parameter.set_value(place_parts(values.__getitem__, array.shape, array.sharding))
