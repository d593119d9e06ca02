"""From an image to a sequence of patches."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import check_images
from jaxvision.models.layers.init import torch_default


class PatchEmbed(nnx.Module):
    """Cuts an image into square patches and projects each to a token.

    Args:
      image_size: height and width of the images, in pixels.
      patch_size: height and width p of a patch, in pixels; must divide `image_size`.
      in_channels: c of the images.
      features: d of the tokens.
      dtype: of the computation; None takes the promotion of input and parameters.
      param_dtype: of the parameters.
      rngs: stream ``params``.

    Attributes:
      grid_size: patches per column and per row.
      num_patches: their product.

    Raises:
      UserError: the patches do not tile the image.

    Example:
      >>> embed = PatchEmbed(32, 16, 3, 8, rngs=nnx.Rngs(0))
      >>> embed(jnp.ones((1, 32, 32, 3))).shape, embed.grid_size
      ((1, 4, 8), (2, 2))
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        in_channels: int,
        features: int,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        registry.check_divisible(image_size, patch_size)
        self.image_size = image_size
        self.in_channels = in_channels
        self.grid_size = (image_size // patch_size, image_size // patch_size)
        self.num_patches = math.prod(self.grid_size)
        self.proj = PatchProjection(patch_size, in_channels, features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `images` [b, h, w, c], row by row.

        Raises:
          UserError: images of another size, or with another number of channels, than the model was built for, or
            whole numbers.
        """
        check_images(images, self.in_channels)
        wanted = (self.image_size, self.image_size, self.in_channels)
        if images.shape[1:] != wanted:
            raise UserError(
                f"images of shape {list(images.shape)} do not fit: this model takes "
                f"[b, {', '.join(map(str, wanted))}]; resize them, or create the model with another image_size"
            )
        x = self.proj(images)
        b, h, w, d = x.shape
        return x.reshape(b, h * w, d)


class PatchProjection(nnx.Module):
    """A convolution whose stride is its kernel size, computed as the one matrix product that it is.

    ``kernel`` has a convolution's shape [p, p, c, d], so that weights and resampling treat it as one.
    """

    def __init__(
        self,
        patch_size: int,
        in_channels: int,
        features: int,
        *,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        p, c, d = patch_size, in_channels, features
        # timm leaves PyTorch's default for convolutions in place here, kernel and bias.
        bound = (p * p * c) ** -0.5
        self.kernel = nnx.Param(torch_default(rngs.params(), (p, p, c, d), param_dtype))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (d,), param_dtype, -bound, bound))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [b, h // p, w // p, d] of `images` [b, h, w, c]."""
        images, kernel, bias = dtypes.promote_dtype((images, self.kernel[...], self.bias[...]), dtype=self.dtype)
        b, h, w, c = images.shape
        p, _, _, d = kernel.shape
        patches = images.reshape(b, h // p, p, w // p, p, c).swapaxes(2, 3).reshape(b, h // p, w // p, p * p * c)
        return patches @ kernel.reshape(p * p * c, d) + bias.reshape(1, 1, 1, d)
