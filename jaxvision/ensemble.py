"""Several classifiers as one: their probabilities are averaged, over models and over views of an image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL.Image import Image

from jaxvision.augment import on_device
from jaxvision.augment.preprocess import Preprocess, crop_offset
from jaxvision.classifier import Classifier, open_image
from jaxvision.errors import UserError, count, printable_line, unknown_name_error
from jaxvision.train.loss import PROBABILITIES

#: How test-time augmentation chooses the views of an image.
TTA = ("flip", "crops")


@dataclass(frozen=True, repr=False)
class Ensemble:
    """Classifiers of the same classes, whose probabilities are averaged.

    The members may be of different families, image sizes and transforms. A member whose classes have another order than
    those of the first is reordered.

    Attributes:
      members: the classifiers. A single one, with `tta`, averages over the views of an image only.
      weights: of the members in the average, in any scale; they are kept with a sum of 1. Default: equal weights.
      tta: test-time augmentation. ``"flip"``: the average over the image and its mirror image. ``"crops"``: over ten
        views, the four corners and the center of the square that is left before the crop, and their mirror images, as
        in Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012), section 4.1.
        None: the image as the transform of the member makes it.
      names: of the members, for tables. Default: those of their architectures.

    Raises:
      UserError: no member, a member without a head, other classes or another kind of probabilities than those of the
        first, wrong weights, or ``"crops"`` for a member whose transform crops nothing.

    Example:
      >>> import jaxvision
      >>> models = [jaxvision.create_model("test_vit", num_classes=2, image_size=32, patch_size=8, seed=i)
      ...           for i in range(2)]
      >>> members = [Classifier(model, ("cat", "dog"), Preprocess(image_size=32)) for model in models]
      >>> ensemble = Ensemble(members, weights=(3, 1), tta="flip")
      >>> ensemble
      Ensemble(test_vit (weight 0.75), test_vit (weight 0.25): 2 classes, flip)
      >>> import PIL.Image
      >>> ensemble.predict(ensemble.images([PIL.Image.new("RGB", (60, 40))])).shape
      (1, 2)
    """

    members: Sequence[Classifier]
    weights: Sequence[float] = ()
    tta: str | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        members = tuple(self.members)
        if not members:
            raise UserError("ensemble: got no members, expected one or more classifiers.")
        if self.tta is not None and self.tta not in TTA:
            raise unknown_name_error("tta", self.tta, TTA)
        names = tuple(self.names or (member.model.architecture for member in members))
        for name, member in zip(names, members, strict=True):
            _check_member(member, members[0], name, self.tta)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", normalized_weights(self.weights, len(members)))

    def __repr__(self) -> str:
        parts = [f"{name} (weight {weight:.3g})" for name, weight in zip(self.names, self.weights)]
        tta = f", {self.tta}" if self.tta else ""
        return printable_line(f"Ensemble({', '.join(parts)}: {count(len(self.classes), 'class', 'classes')}{tta})")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the first member."""
        return self.members[0].classes

    @property
    def probabilities(self) -> str:
        """How logits become probabilities, in all members."""
        return self.members[0].probabilities

    @property
    def title(self) -> str:
        """A short name, for tables."""
        what = self.names[0] if len(self.members) == 1 else f"ensemble of {len(self.members)}"
        return f"{what}, {self.tta}" if self.tta else what

    def images(self, sources: str | Path | Image | Sequence[str | Path | Image]) -> tuple[jax.Array, ...]:
        """Returns the input of each member: float [b, h, w, c], transformed and normalized.

        Args:
          sources: as for `Classifier.images`.

        Raises:
          UserError: as for `Classifier.images`.
        """
        if isinstance(sources, str | Path | Image):
            sources = [sources]
        if not len(sources):
            raise UserError("images: got an empty list, expected at least one image.")
        return self.normalize([np.stack(each) for each in zip(*map(self.pixels, sources), strict=True)])

    def pixels(self, source: str | Path | Image) -> tuple[np.ndarray, ...]:
        """Returns an image before normalization, after each of the members' different transforms: uint8 [h, w, c].

        Args:
          source: an image file or a Pillow image. A file is read once.

        Raises:
          UserError: as for `Classifier.pixels`.
        """
        image = open_image(source)
        first = {key: self.members[i] for i, key in reversed(list(enumerate(self._transforms)))}
        return tuple(replace(first[key], preprocess=key[0]).pixels(image) for key in dict.fromkeys(self._transforms))

    def normalize(self, pixels: Sequence[np.ndarray | jax.Array]) -> tuple[jax.Array, ...]:
        """Returns the input of each member, float [b, h, w, c].

        Args:
          pixels: for each of the members' different transforms uint8 [b, h, w, c], of images from `pixels`.
        """
        keys = dict.fromkeys(self._transforms)
        inputs = {
            key: on_device.normalize(each, key[0].mean, key[0].std) for key, each in zip(keys, pixels, strict=True)
        }
        return tuple(inputs[key] for key in self._transforms)

    @property
    def _transforms(self) -> list[tuple[Preprocess, int]]:
        """The transform and the channels of each member. Members with equal ones share their images."""
        return [(self.preprocess(i), member.model.in_channels) for i, member in enumerate(self.members)]

    def predict(self, images: Sequence[jax.Array]) -> jax.Array:
        """Returns the averaged probabilities of the classes: float32 [b, num_classes].

        Args:
          images: from `images`.
        """
        parts = (
            weight * _predict(self.forward(i), self.probabilities, member.model, x)
            for i, (weight, member, x) in enumerate(zip(self.weights, self.members, images, strict=True))
        )
        return functools.reduce(jnp.add, parts)

    def preprocess(self, i: int) -> Preprocess:
        """Returns the transform of the images of member `i`."""
        preprocess = self.members[i].preprocess
        if self.tta != "crops":
            return preprocess
        return replace(preprocess, image_size=preprocess.resize_to, crop_pct=1.0)

    def forward(self, i: int) -> Forward:
        """Returns the function (model, images) -> logits of member `i`, in the order of the ensemble's classes."""
        member = self.members[i]
        same = member.classes == self.classes
        order = None if same else tuple(member.classes.index(name) for name in self.classes)
        return Forward(member.probabilities, self.tta, member.preprocess.image_size, order)


@dataclass(frozen=True)
class Forward:
    """The logits of a model, averaged over views of its images; equal objects share a compiled program.

    Attributes:
      probabilities: how logits become probabilities.
      tta: as for `Ensemble`.
      image_size: side of a view, in pixels.
      order: numbers of the model's classes in the order of the result; None for the model's own order.
    """

    probabilities: str
    tta: str | None
    image_size: int
    order: tuple[int, ...] | None

    def __call__(self, model: Any, images: jax.Array) -> jax.Array:
        """Returns logits float32 [b, classes].

        With views, they are those of the averaged probabilities, so that a loss can be computed from them.
        """
        if self.tta is None:
            logits = model(images).astype(jnp.float32)
        else:
            to_probabilities = PROBABILITIES[self.probabilities]
            seen = jnp.stack(views(images, self.tta, self.image_size))
            # One view after another, so that the memory is that of a single one.
            each = jax.lax.map(lambda view: to_probabilities(model(view).astype(jnp.float32)), seen)
            logits = to_logits(each.mean(0), self.probabilities)
        return logits if self.order is None else logits[:, np.array(self.order)]


def views(images: jax.Array, tta: str, image_size: int) -> list[jax.Array]:
    """Returns the views of images that test-time augmentation averages over, each [b, image_size, image_size, c].

    Args:
      images: [b, h, w, c], at least as large as a view.
      tta: as for `Ensemble`.
      image_size: side of a view, in pixels.

    Example:
      >>> x = jnp.arange(9.0).reshape(1, 3, 3, 1)
      >>> [view.ravel().tolist() for view in views(x, "crops", 2)][:2]
      [[0.0, 1.0, 3.0, 4.0], [1.0, 2.0, 4.0, 5.0]]
    """
    _, h, w, _ = images.shape
    if tta == "crops":
        bottom, right = h - image_size, w - image_size
        center = crop_offset(h, image_size), crop_offset(w, image_size)
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), center]
        crops = [images[:, y : y + image_size, x : x + image_size] for y, x in corners]
    else:
        crops = [images]
    return [*crops, *(crop[:, :, ::-1] for crop in crops)]


def to_logits(probabilities: jax.Array, kind: str) -> jax.Array:
    """Returns logits that have these probabilities, float32 of the same shape.

    Args:
      probabilities: float32 [..., classes].
      kind: how logits become probabilities, ``"softmax"`` or ``"sigmoid"``.

    Example:
      >>> p = jnp.array([0.25, 0.75])
      >>> jax.nn.softmax(to_logits(p, "softmax")).round(4), jax.nn.sigmoid(to_logits(p, "sigmoid")).round(4)
      (Array([0.25, 0.75], dtype=float32), Array([0.25, 0.75], dtype=float32))
    """
    smallest = jnp.finfo(jnp.float32).tiny  # a probability of 0 would make the loss infinite
    log = jnp.log(jnp.maximum(probabilities, smallest))
    return log if kind == "softmax" else log - jnp.log(jnp.maximum(1 - probabilities, smallest))


def fit_weights(observed: np.ndarray, *, most_steps: int = 10_000, tolerance: float = 1e-9) -> np.ndarray:
    """Returns the weights of the members that make what was observed most likely: float64 [members], their sum is 1.

    The mean log-likelihood of a mixture is concave in its weights. The EM algorithm increases it in each step:
    the new weight of a member is its mean share in the probability of what was observed.

    Args:
      observed: [members, n], the probability that each member gives to what was observed: to the label of each image,
        or, for sigmoids, to the presence or absence of each class in each image.
      most_steps: after which the search ends.
      tolerance: the search ends when no weight changes by more.

    Example:
      >>> fit_weights(np.array([[0.9, 0.9, 0.1], [0.5, 0.5, 0.5]])).round(3)
      array([0.417, 0.583])
    """
    observed = np.maximum(np.asarray(observed, np.float64), np.finfo(np.float32).tiny)
    weights = np.full(len(observed), 1 / len(observed))
    for _ in range(most_steps):
        shares = weights[:, None] * observed
        new = (shares / shares.sum(0)).mean(1)
        change, weights = np.abs(new - weights).max(), new
        if change < tolerance:
            break
    return weights


@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(forward: Forward, kind: str, model: Any, images: jax.Array) -> jax.Array:
    return PROBABILITIES[kind](forward(model, images))


def _check_member(member: Classifier, first: Classifier, name: str, tta: str | None) -> None:
    if not member.classes:
        raise UserError(
            f"{name}: got weights without a head, expected those of a classifier. For features run `jaxvision embed`; "
            "for a head that is fitted to your images, run `jaxvision probe`."
        )
    if member.classes != first.classes and sorted(member.classes) != sorted(first.classes):
        differing = sorted({*member.classes} ^ {*first.classes})[:3]
        raise UserError(
            f"ensemble: got other classes in {name} than in the first model (one of them lacks "
            f"{', '.join(map(repr, differing))}), expected the same names. Train all models on the same classes."
        )
    if member.probabilities != first.probabilities:
        raise UserError(
            f"ensemble: got {member.probabilities} probabilities in {name} and {first.probabilities} in the first "
            "model, which do not mix. Combine models that were trained with the same loss."
        )
    if tta == "crops" and member.preprocess.resize_to <= member.preprocess.image_size:
        raise UserError(
            f"tta: got 'crops' for {name}, whose transform crops nothing (crop_pct {member.preprocess.crop_pct:g}), "
            "expected a crop_pct below 1. Use 'flip'."
        )


def normalized_weights(weights: Sequence[float], n: int) -> tuple[float, ...]:
    """Returns the weights of `n` members with a sum of 1; equal weights if none are given.

    Raises:
      UserError: there are not `n`, one is negative or not finite, or all are 0.

    >>> normalized_weights((3, 1), 2), normalized_weights((), 2)
    ((0.75, 0.25), (0.5, 0.5))
    """
    if not len(weights):
        return (1 / n,) * n
    values = np.asarray(weights, np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or not values.sum():
        raise UserError(
            f"weights: got {', '.join(map(str, weights))}, expected {count(n, 'number')}, one for each model, 0 or "
            "more and not all 0."
        )
    return tuple((values / values.sum()).tolist())
