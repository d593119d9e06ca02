"""From an image to a sequence of patches."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jaxvision.errors import UserError
from jaxvision.models.base import check_images
from jaxvision.models.layers import sizes
from jaxvision.models.layers.init import torch_default, torch_default_bias
from jaxvision.models.layers.norm import Norm

Size = int | tuple[int, int]  # a square's side, or (height, width)


class PatchEmbed(nnx.Module):
    """Cuts an image into patches and projects each to a token.

    Args:
      image_size: of the images, in pixels.
      patch_size: of a patch, in pixels; must divide `image_size`.
      in_channels: c of the images.
      features: d of the tokens.
      use_bias: of the projection.
      norm: of the tokens; None builds none.
      dynamic: accept images of any size that patches tile; `image_size` is then that of `grid_size` only.
      ignore_remainder: accept an `image_size` that patches do not tile: the pixels at the right and at the bottom
        that fill no patch are not looked at.
      dtype: of the computation; None takes the promotion of input and parameters.
      param_dtype: of the parameters.
      rngs: stream ``params``.

    Attributes:
      grid_size: patches per column and per row.
      num_patches: their product.
      stride: pixels from one patch to the next, the larger one if two differ.
      first_conv: path of the convolution that sees the image.

    Raises:
      UserError: the patches do not tile the image.

    Example:
      >>> embed = PatchEmbed(32, 16, 3, 8, rngs=nnx.Rngs(0))
      >>> embed(jnp.ones((1, 32, 32, 3))).shape, embed.grid_size
      ((1, 4, 8), (2, 2))
    """

    def __init__(
        self,
        image_size: Size,
        patch_size: Size,
        in_channels: int,
        features: int,
        *,
        use_bias: bool = True,
        norm: Norm | None = None,
        dynamic: bool = False,
        ignore_remainder: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not ignore_remainder:
            sizes.check_divisible(image_size, patch_size)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.image_size = sizes.pair("image_size", image_size)
        self.patch_size = sizes.pair("patch_size", patch_size)
        self.in_channels = in_channels
        self.dynamic = dynamic
        self.grid_size = self.grid(self.image_size)
        self.num_patches = math.prod(self.grid_size)
        self.stride = max(self.patch_size)
        self.first_conv = "proj"
        self.proj = PatchProjection(patch_size, in_channels, features, use_bias=use_bias, **types)
        self.norm = nnx.data(None) if norm is None else norm(features, **types)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the patches per column and per row of images of `size` (h, w)."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `images` [b, h, w, c], row by row.

        Raises:
          UserError: images of another size (or, if that is `dynamic`, of one that patches do not tile), or with
            another number of channels, than the model was built for, or whole numbers.
        """
        check_size(images, self.image_size, self.in_channels, self.dynamic)
        if self.dynamic:
            sizes.check_divisible(images.shape[1:3], self.patch_size)
        x = self.proj(images)
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d)
        return x if self.norm is None else self.norm(x)


class PatchProjection(nnx.Module):
    """A convolution whose stride is its kernel size, computed as the one matrix product that it is.

    ``kernel`` has a convolution's shape [p, p, c, d], so that weights and resampling treat it as one.
    """

    def __init__(
        self,
        patch_size: Size,
        in_channels: int,
        features: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        p, q = sizes.pair("patch_size", patch_size)
        c, d = in_channels, features
        # timm leaves PyTorch's default for convolutions in place here, kernel and bias.
        self.kernel = nnx.Param(torch_default(rngs.params(), (p, q, c, d), param_dtype))
        self.bias = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(torch_default_bias(p * q * c)(rngs.params(), (d,), param_dtype))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [b, h // p, w // p, d] of `images` [b, h, w, c]."""
        bias = None if self.bias is None else self.bias[...]
        images, kernel, bias = dtypes.promote_dtype((images, self.kernel[...], bias), dtype=self.dtype)
        p, q, c, d = kernel.shape
        b, h, w = images.shape[0], images.shape[1] // p, images.shape[2] // q
        patches = images[:, : h * p, : w * q].reshape(b, h, p, w, q, c).swapaxes(2, 3).reshape(b, h, w, p * q * c)
        x = patches @ kernel.reshape(p * q * c, d)
        return x if bias is None else x + bias.reshape(1, 1, 1, d)


def check_size(images: jax.Array, size: tuple[int, int], in_channels: int, any_size: bool = False) -> None:
    """Raises unless `images` are [b, *size, in_channels] floats; `any_size` takes them of any height and width."""
    check_images(images, in_channels)
    wanted = (*size, in_channels)
    if not any_size and images.shape[1:] != wanted:
        raise UserError(
            f"images of shape {list(images.shape)} do not fit: this model takes "
            f"[b, {', '.join(map(str, wanted))}]; resize them, or create the model with another image_size, or with "
            "dynamic_image_size=True"
        )


def resize_grid(
    grid: jax.Array, old: tuple[int, int], new: tuple[int, int], interpolation: str = "bicubic"
) -> jax.Array:
    """Returns embeddings of positions for another grid, [1, new rows * columns, d].

    In float32 with half-pixel centers, as timm does it.

    Args:
      grid: [1, old rows * columns, d], row by row.
      old: rows and columns of `grid`.
      new: those that are wanted.
      interpolation: ``"bicubic"``, with antialiasing, or FlexiViT's ``"bilinear"``, without.

    Example:
      >>> resize_grid(jnp.arange(4.0).reshape(1, 4, 1), (2, 2), (2, 3), "bilinear")[0, :, 0].tolist()
      [0.0, 0.5, 1.0, 2.0, 2.5, 3.0]
    """
    d = grid.shape[-1]
    method = {"bicubic": "cubic", "bilinear": "linear"}[interpolation]
    resized = jax.image.resize(
        grid.astype(jnp.float32).reshape(*old, d), (*new, d), method, antialias=interpolation == "bicubic"
    )
    return resized.reshape(1, math.prod(new), d).astype(grid.dtype)
