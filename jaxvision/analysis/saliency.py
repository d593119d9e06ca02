"""Where a model looks: a heat map for each image, and its overlay on the image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.analysis.attention import attention_rollout
from jaxvision.errors import UserError
from jaxvision.models.layers.mode import eval_view


def explain(model: Any, images: jax.Array, *, classes: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Returns where `model` looks in each image, by the method that its attribute `explanation` names.

    A ViT is explained by attention rollout, a convnet by Grad-CAM.

    Args:
      model: any model of jaxvision.
      images: float [b, h, w, c], normalized.
      classes: int [b], the class that Grad-CAM explains in each image. Default: the predicted class. Attention rollout
        does not depend on a class.

    Returns:
      float32 [b, grid height, grid width] in [0, 1]. The largest value of a map is 1, unless the map is 0 everywhere.
      The smallest value of a rollout is 0.

    Example:
      >>> from flax import nnx
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
      >>> explain(model, jnp.zeros((1, 32, 32, 3))).shape
      (1, 2, 2)
    """
    if model.explanation == "Grad-CAM":
        return grad_cam(model, images, classes)
    maps = attention_rollout(model, images)
    return _scaled(maps - maps.min((1, 2), keepdims=True))


def grad_cam(model: Any, images: jax.Array, classes: jax.Array | np.ndarray | None = None) -> jax.Array:
    """Returns the evidence for a class at each position of the last feature map.

    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
    https://arxiv.org/abs/1610.02391. The features are those of ``model.forward_features``. Each channel is weighted by
    the mean gradient of the class's logit.

    Args:
      model: a convnet with a classifier.
      images: float [b, h, w, c], normalized.
      classes: int [b], the class to explain in each image. Default: the predicted class.

    Returns:
      float32 [b, h', w'] in [0, 1] at the resolution of the features. Each map is divided by its largest value. A map
      without evidence for the class is 0 everywhere.

    Raises:
      UserError: the model has no feature map or no classifier, or a class is out of range.

    Example:
      >>> from flax import nnx
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_resnet", num_classes=10, rngs=nnx.Rngs(0))
      >>> grad_cam(model, jnp.ones((2, 64, 64, 3)), jnp.array([3, 7])).shape
      (2, 2, 2)
    """
    if model.explanation != "Grad-CAM":
        raise UserError(
            f"grad_cam: got {model.architecture}, expected a convnet, because Grad-CAM needs a feature map. Use "
            "jaxvision.analysis.attention_rollout."
        )
    if model.num_classes == 0:
        raise UserError("grad_cam: got a model without a classifier (num_classes=0), expected one that returns logits.")
    if classes is not None and not isinstance(classes, jax.core.Tracer):
        numbers = np.asarray(classes)
        if numbers.shape != images.shape[:1] or ((numbers < 0) | (numbers >= model.num_classes)).any():
            raise UserError(
                f"grad_cam: got the classes {numbers.tolist()}, expected {len(images)} numbers in "
                f"[0, {model.num_classes}), one for each image."
            )
    return _grad_cam(eval_view(model), images, None if classes is None else jnp.asarray(classes))


@jax.jit
def _grad_cam(model: Any, images: jax.Array, classes: jax.Array | None) -> jax.Array:
    features = model.forward_features(images).astype(jnp.float32)

    def score(features: jax.Array) -> jax.Array:
        logits = model.forward_head(features)
        chosen = logits.argmax(-1) if classes is None else classes
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum()  # images do not mix: one gradient for all

    weights = jax.grad(score)(features).mean((1, 2), keepdims=True)
    return _scaled(jax.nn.relu((weights * features).sum(-1)))


def _scaled(maps: jax.Array) -> jax.Array:
    top = maps.max((1, 2), keepdims=True)
    return jnp.where(top > 0, maps / jnp.where(top > 0, top, 1), 0)


def overlay(image: np.ndarray, heat: Any, *, opacity: float = 0.6, colors: str = "inferno") -> np.ndarray:
    """Returns the image in gray with a heat map over it.

    Args:
      image: uint8 [h, w, 3].
      heat: float [grid height, grid width] in [0, 1], such as one map of `explain`. It is enlarged to the image.
      opacity: opacity of the overlay where the heat map is 1, in [0, 1]. Where the map is 0, the image is darkened.
      colors: name of a matplotlib color map. The default is perceptually uniform and also readable in gray.

    Returns:
      uint8 [h, w, 3].

    Raises:
      UserError: `image` is not uint8 [h, w, 3], but for example the normalized floats that a model takes.

    Example:
      >>> overlay(np.full((32, 48, 3), 255, np.uint8), np.eye(4)).shape
      (32, 48, 3)
    """
    import matplotlib

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise UserError(f"overlay: got an image {image.dtype} {list(image.shape)}, expected uint8 [h, w, 3].")
    h, w, _ = image.shape
    heat = np.asarray(jax.image.resize(jnp.asarray(heat, jnp.float32), (h, w), "cubic"))
    heat = heat.clip(0, 1)[..., None]
    color = matplotlib.colormaps[colors](heat[..., 0])[..., :3]
    gray = image / 255 @ np.array([0.299, 0.587, 0.114])
    # The image is gray, because its own colors could be mistaken for heat.
    strength = opacity * (0.35 + 0.65 * heat)
    blended = (1 - strength) * gray[..., None] + strength * color
    return (blended.clip(0, 1) * 255).round().astype(np.uint8)
