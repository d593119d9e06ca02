"""Patch embedding: from an image to a sequence of tokens."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers import dtypes, sizes
from jaxvision.models.layers.init import torch_default, torch_default_bias
from jaxvision.models.layers.norm import Norm


class PatchEmbed(nnx.Module):
    """Divides an image into patches and projects each patch to a token.

    Args:
      image_size: size of the images in pixels: an integer, or (height, width).
      patch_size: size of a patch in pixels: an integer, or (height, width). It must divide `image_size`.
      in_channels: channels c of the images.
      features: width d of the tokens.
      use_bias: whether the projection has a bias.
      norm: norm of the tokens; None for no norm.
      dynamic: accept images of any size that `patch_size` divides. `image_size` then only determines `grid_size`.
      ignore_remainder: accept an `image_size` that `patch_size` does not divide. Pixels at the right and bottom that do
        not fill a patch are ignored.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
      rngs: stream ``params``.

    Attributes:
      grid_size: number of rows and columns of patches.
      num_patches: number of patches.
      stride: pixels from one patch to the next; the larger one if height and width differ.
      first_conv: path of the layer that takes the images.

    Raises:
      UserError: `patch_size` does not divide `image_size`.

    Example:
      >>> embed = PatchEmbed(32, 16, 3, 8, rngs=nnx.Rngs(0))
      >>> embed(jnp.ones((1, 32, 32, 3))).shape, embed.grid_size
      ((1, 4, 8), (2, 2))
    """

    def __init__(
        self,
        image_size: sizes.Size,
        patch_size: sizes.Size,
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
        """Returns the rows and columns of patches of images of `size` (h, w)."""
        return size[0] // self.patch_size[0], size[1] // self.patch_size[1]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `images` [b, h, w, c], row by row.

        Raises:
          UserError: the images have another size or number of channels than the layer was built for, or integer pixels.
            With `dynamic`, `patch_size` must divide the size of the images.
        """
        sizes.check_images(images, self.in_channels, None if self.dynamic else self.image_size)
        if self.dynamic:
            sizes.check_divisible(images.shape[1:3], self.patch_size)
        x = self.proj(images)
        b, h, w, d = x.shape
        x = x.reshape(b, h * w, d)
        return x if self.norm is None else self.norm(x)


class PatchProjection(nnx.Module):
    """A convolution whose stride is its kernel size, computed as one matrix product.

    ``kernel`` has the shape of a convolution's kernel, [p, q, c, d], so that loading and resampling treat it as one.

    Args:
      patch_size: kernel size and stride: an integer, or (height, width).
      in_channels: channels c of the images.
      features: width d of the output.
      use_bias: whether to add a bias.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
      rngs: stream ``params``.
    """

    def __init__(
        self,
        patch_size: sizes.Size,
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
        # As in timm, kernel and bias have PyTorch's default initial values for convolutions.
        self.kernel = nnx.Param(torch_default(rngs.params(), (p, q, c, d), param_dtype))
        self.bias = nnx.data(None)
        if use_bias:
            self.bias = nnx.Param(torch_default_bias(p * q * c)(rngs.params(), (d,), param_dtype))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [b, h // p, w // q, d] for `images` [b, h, w, c]."""
        bias = None if self.bias is None else self.bias[...]
        images, kernel, bias = dtypes.promote_dtype((images, self.kernel[...], bias), dtype=self.dtype)
        p, q, c, d = kernel.shape
        b, h, w = images.shape[0], images.shape[1] // p, images.shape[2] // q
        patches = images[:, : h * p, : w * q].reshape(b, h, p, w, q, c).swapaxes(2, 3).reshape(b, h, w, p * q * c)
        x = patches @ kernel.reshape(p * q * c, d)
        return x if bias is None else x + bias.reshape(1, 1, 1, d)


def resize_grid(
    grid: jax.Array, old: tuple[int, int], new: tuple[int, int], interpolation: str = "bicubic"
) -> jax.Array:
    """Returns position embeddings resampled to another grid, in float32 with half-pixel centers, as in timm.

    Args:
      grid: [1, old rows * columns, d], row by row.
      old: rows and columns of `grid`.
      new: rows and columns of the result.
      interpolation: ``"bicubic"``, with antialiasing; or ``"bilinear"`` without, as in FlexiViT.

    Returns:
      [1, new rows * columns, d].

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
