"""Model soups: one model whose weights are the average of those of several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvision.classifier import Classifier
from jaxvision.ensemble import normalized_weights
from jaxvision.errors import UserError, count
from jaxvision.models.base import Model
from jaxvision.weights import timm

logger = logging.getLogger(__name__)


def soup(members: Sequence[Classifier], weights: Sequence[float] = ()) -> Classifier:
    """Returns the classifier whose weights are the average of those of several.

    It predicts in the time of a single model. Averaging makes sense for models that were fine-tuned from the same
    weights (Wortsman et al. 2022, "Model soups", https://arxiv.org/abs/2203.05482). With a model and the weights that
    it was fine-tuned from, it is WiSE-FT (Wortsman et al. 2021, https://arxiv.org/abs/2109.01903).

    The statistics of BatchNorm are averaged, too. They are not those of the averaged weights; measure them again with
    `jaxvision.eval.measure_statistics`.

    Args:
      members: classifiers of one architecture, with the same options and classes. The result has the transform of the
        first.
      weights: of the members, in any scale. Default: equal weights.

    Raises:
      UserError: no members, wrong weights, or members that differ in more than the values of their weights.

    Example:
      >>> import jaxvision
      >>> from jaxvision.augment.preprocess import Preprocess
      >>> models = [jaxvision.create_model("test_vit", num_classes=2, image_size=32, patch_size=8, seed=i)
      ...           for i in range(2)]
      >>> members = [Classifier(model, ("cat", "dog"), Preprocess(image_size=32)) for model in models]
      >>> a, b, mean = (each.head.kernel[...] for each in (*models, soup(members).model))
      >>> bool(jnp.allclose(mean, (a + b) / 2))
      True
    """
    if not members:
        raise UserError("soup: got no models, expected one or more.")
    for member in members[1:]:
        _check_same(member, members[0])
    shares = normalized_weights(weights, len(members))
    model = nnx.clone(members[0].model)
    tensors = [timm.weights(member.model) for member in members]
    for name, target in timm.weights(model).items():
        value: Any = 0
        for share, own in zip(shares, tensors, strict=True):
            value = value + share * np.asarray(own[name].get_value(), np.float64)
        target.set_value(jnp.asarray(value, target.get_value().dtype))
    return replace(members[0], model=model)


def greedy_soup(
    members: Sequence[Classifier],
    score: Callable[[Classifier], float],
    *,
    finish: Callable[[Classifier], Classifier] = lambda classifier: classifier,
) -> tuple[Classifier, list[int]]:
    """Returns the soup that adds one member after the other if that does not lower its score, and its members.

    Members are tried in the order of their own scores, the best first; recipe 1 of Wortsman et al. 2022.

    Args:
      members: as for `soup`.
      score: accuracy of a classifier on the validation data, or another number that is better if it is higher.
      finish: applied to each soup before it is scored, such as a new measurement of its BatchNorm statistics.

    Returns:
      The soup, and the numbers of its members in the order in which they were added.

    Raises:
      UserError: as for `soup`.
    """
    scores = [score(member) for member in members]
    order = np.argsort(-np.asarray(scores), kind="stable").tolist()
    chosen, best = order[:1], scores[order[0]]
    result = members[chosen[0]]
    for i in order[1:]:
        candidate = finish(soup([members[j] for j in [*chosen, i]]))
        if (value := score(candidate)) >= best:
            chosen, best, result = [*chosen, i], value, candidate
    return result, chosen


def with_head_of(model: Model, other: Model) -> Model:
    """Returns a copy of a model with the values of the head of another one of the same shapes."""
    model = nnx.clone(model)
    values = timm.weights(other)
    for name, target in timm.weights(model).items():
        if timm.is_in_head(model, name):
            target.set_value(values[name].get_value())
    return model


def _check_same(member: Classifier, first: Classifier) -> None:
    a, b = member.model.architecture, first.model.architecture
    if a != b or member.model.options != first.model.options:
        raise UserError(
            f"soup: got {a} with the options {member.model.options} and {b} with {first.model.options}, expected the "
            "same model. Average the probabilities of different models: -m A -m B."
        )
    if member.classes != first.classes or member.probabilities != first.probabilities:
        raise UserError(
            f"soup: got models with other classes ({count(len(member.classes), 'class', 'classes')}, "
            f"{member.probabilities}, and {count(len(first.classes), 'class', 'classes')}, {first.probabilities}), "
            "expected the same classes in the same order. Train all models on the same classes."
        )
    own, expected = (
        {name: leaf.get_value().shape for name, leaf in timm.weights(c.model).items()} for c in (member, first)
    )
    if own != expected:
        name = next(name for name in [*own, *expected] if own.get(name) != expected.get(name))
        raise UserError(
            f"soup: got {own.get(name)} and {expected.get(name)} for the shape of {name}, expected equal shapes. "
            "Average the probabilities of different models: -m A -m B."
        )
    if member.preprocess != first.preprocess:
        logger.warning("the models of the soup have different transforms; it has that of the first")
