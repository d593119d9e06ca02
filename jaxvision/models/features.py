"""Feature maps of several resolutions from any model, for detection, segmentation or depth heads."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models.base import Model, feature_indices


class FeatureExtractor(nnx.Module):
    """Returns feature maps of several levels of a model, like timm's ``features_only=True``.

    Args:
      model: a model whose `feature_info` has at least one level. It is modified in place: its head, its last norm and
        all layers after the last selected level are removed.
      out_indices: positions in ``model.feature_info`` (negative positions count from the end), or a number n for the
        last n levels. Default: all levels of a convnet, usually five; the last three blocks of a ViT.

    Attributes:
      model: the modified model; `jaxvision.freeze` and `jaxvision.add_lora` accept it.
      out_indices: positions of the selected levels, ascending and not negative.
      feature_info: name, channels and stride of each returned map.

    Raises:
      UserError: the model does not have one of the levels.

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
        if not levels:
            raise UserError(f"{type(model).__name__}: the model has no levels of features. Define its feature_info.")
        if out_indices is None and model.default_feature_levels is not None:
            out_indices = min(model.default_feature_levels, len(levels))
        try:
            self.out_indices = feature_indices(out_indices, len(levels), what="out_indices")
        except UserError as e:
            named = [f"{i} {level.name} (stride {level.stride})" for i, level in enumerate(levels)]
            raise UserError(f"{e} The levels of {model.architecture} are {', '.join(named)}.") from e
        if not self.out_indices:
            raise UserError(f"out_indices: got {out_indices!r}, expected at least one level. Use None for the default.")
        self.feature_info = tuple(levels[i] for i in self.out_indices)
        model.reset_classifier(0, rngs=nnx.Rngs(0))
        model.cut(self.out_indices[-1])
        self.model = model

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Returns one map for each selected level, finest first.

        Args:
          images: float [b, h, w, c], normalized.

        Returns:
          A tuple of arrays [b, h / stride, w / stride, channels].
        """
        return tuple(self.model.forward_intermediates(images, self.out_indices, intermediates_only=True))
