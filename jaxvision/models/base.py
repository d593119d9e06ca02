"""What every model is, whatever its family."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError


class Model(nnx.Module):
    """An image classifier: images [b, h, w, c] -> logits [b, num_classes].

    Attributes:
      architecture: timm's name, such as ``"resnet50"``.
      family: ``"resnet"``, ``"vit"`` or ``"efficientnet"``.
      num_classes: of the head; 0 is no head.
      in_channels: channels of the image.
      image_size: side of the image in pixels; a convnet takes any other, too.
      num_features: c of the pooled features that the head sees.
      classifier_names: attributes that are the head, such as ``("fc",)`` or ``("head", "head_dist")``.
      options: ((argument, value), ...) by which the shape of this model differs from its row in the family's table.
      first_conv: path of the convolution that sees the image, such as ``"conv1"`` or ``"patch_embed.proj"``.
    """

    architecture: str
    family: str
    num_classes: int
    in_channels: int
    image_size: int
    num_features: int
    classifier_names: tuple[str, ...]
    first_conv: str
    options: tuple[tuple[str, Any], ...]

    @abstractmethod
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits [b, num_classes] of normalised images [b, h, w, c]."""

    @abstractmethod
    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns timm's features: [b, h', w', c] of a convnet, tokens [b, n, d] of a ViT."""

    @abstractmethod
    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits of features, or with `pre_logits` what the classifier sees [b, num_features]."""

    @abstractmethod
    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Gives the model a fresh head, in place; nothing else is touched."""

    @abstractmethod
    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns a pattern for each group of layers, the first layer first; what none matches belongs to the head."""

    @abstractmethod
    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns the names of parameters that never decay, beyond those with fewer than two axes."""


def check_images(images: jax.Array, in_channels: int) -> None:
    """Raises unless `images` are what a model of `in_channels` takes, as far as shape and dtype tell.

    Raises:
      UserError: not [b, h, w, in_channels], or whole numbers: pixels that nobody has normalised yet.
    """
    if images.ndim != 4 or images.shape[-1] != in_channels:
        raise UserError(
            f"images of shape {list(images.shape)} do not fit: this model takes [b, h, w, {in_channels}], channels last"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise UserError(
            f"images are {images.dtype}: a model takes them as floats, normalised by its mean and std, such as "
            "jaxvision.load_classifier(...).images(files) gives"
        )
