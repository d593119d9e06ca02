"""A pyramid of features for dense heads (detection, segmentation, depth), from a model of any family."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models.base import Model, feature_indices


class FeatureExtractor(nnx.Module):
    """Makes maps of images: the chosen levels of a model, as timm's ``features_only=True``.

    Args:
      model: one of the registry. It is taken over and cut, in place: layers after the last level that is wanted go
        away, and so do the norm after all layers and the head.
      out_indices: which of the levels ``model.feature_info`` names: their positions (negative ones from the end), or a
        number for so many of the last. Default: all five of a convnet, the last three blocks of a ViT.

    Attributes:
      model: what is left of the model. It is what `jaxvision.freeze` and `jaxvision.add_lora` take.
      out_indices: positions of the levels, the first level first, none of them negative.
      feature_info: name, channels and stride of each map.

    Raises:
      UserError: a level that is not there.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxvision.models import registry
      >>> features = FeatureExtractor(registry.build("test_resnet", rngs=nnx.Rngs(0)), out_indices=(1, -1))
      >>> [x.shape for x in features(jnp.zeros((1, 64, 64, 3)))]
      [(1, 16, 16, 32), (1, 2, 2, 96)]
      >>> features.feature_info[1]
      FeatureInfo(name='layer4', channels=96, stride=32)
    """

    def __init__(self, model: Model, out_indices: int | Sequence[int] | None = None):
        levels = model.feature_info
        if out_indices is None and model.default_feature_levels is not None:
            out_indices = min(model.default_feature_levels, len(levels))
        try:
            self.out_indices = feature_indices(out_indices, len(levels))
        except UserError as e:
            named = [f"{i} {level.name} (stride {level.stride})" for i, level in enumerate(levels)]
            raise UserError(f"out_indices={out_indices!r}: {e}; {model.architecture} has {', '.join(named)}") from e
        if not self.out_indices:
            raise UserError("out_indices names no level of features; None stands for the usual ones")
        self.feature_info = tuple(levels[i] for i in self.out_indices)
        model.reset_classifier(0, rngs=nnx.Rngs(0))
        model.cut(self.out_indices[-1])
        self.model = model

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the maps [b, h / stride, w / stride, channels] of normalized `images` [b, h, w, c], finest first."""
        return tuple(self.model.forward_intermediates(images, self.out_indices, intermediates_only=True))
