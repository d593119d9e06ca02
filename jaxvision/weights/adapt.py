"""Adapting weights to another number of input channels, another patch size or another grid of positions.

The arithmetic is timm's, so an adapted model starts from the same values.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from jaxvision.errors import UserError
from jaxvision.models.layers.patch import resize_grid


def input_channels(weight: np.ndarray, channels: int) -> np.ndarray:
    """Returns the first convolution's weight for images with another number of channels.

    A single channel gets the sum over the old channels, so that a gray image gives the same activations as three equal
    channels. Otherwise the old channels are repeated in order, truncated to the new number and scaled by old/new, so
    that the activations keep their scale.

    Args:
      weight: [out, old, h, w], PyTorch's layout, of any floating-point dtype. The arithmetic is float32.
      channels: new number of input channels.

    Returns:
      [out, channels, h, w] with the dtype of `weight`; `weight` itself if the number of channels is unchanged.

    Example:
      >>> weight = np.ones((8, 3, 7, 7), np.float32)
      >>> input_channels(weight, 1).shape, float(input_channels(weight, 1)[0, 0, 0, 0])
      ((8, 1, 7, 7), 3.0)
      >>> input_channels(weight, 6).shape, float(input_channels(weight, 6)[0, 5, 0, 0])
      ((8, 6, 7, 7), 0.5)
    """
    old = weight.shape[1]
    if channels == old:
        return weight
    full = weight.astype(np.float32)
    if channels == 1:
        return full.sum(axis=1, keepdims=True).astype(weight.dtype)
    repeated = full[:, np.arange(channels) % old] * np.float32(old / channels)
    return repeated.astype(weight.dtype)


def patch_kernel(weight: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic") -> np.ndarray:
    """Returns the patch projection's weight for patches of another size, as in FlexiViT.

    The new kernel is the old one times the pseudo-inverse of the resize. Projecting a resized patch with it gives
    the token of the original patch, as closely as any kernel can.

    Source: Beyer et al., "FlexiViT", https://arxiv.org/abs/2212.08013, section 3.4.

    Args:
      weight: [out, in, old h, old w], PyTorch's layout, of any floating-point dtype. The arithmetic is float32.
      size: new (h, w).
      interpolation: method of the resize, as in `resize_grid`.

    Returns:
      [out, in, *size] with the dtype of `weight`; `weight` itself if the size is unchanged.

    Example:
      >>> patch_kernel(np.ones((8, 3, 16, 16), np.float32), (8, 12)).shape
      (8, 3, 8, 12)
    """
    out, inner, *old = weight.shape
    if tuple(old) == tuple(size):
        return weight
    n = math.prod(old)
    # Column i is the resized image of pixel i alone: [new h * w, old h * w].
    matrix = np.asarray(resize_grid(jnp.eye(n)[None], (old[0], old[1]), size, interpolation)[0], np.float64)
    # PyTorch's cutoff of singular values for a float32 matrix.
    inverse = np.linalg.pinv(matrix, rcond=max(matrix.shape) * float(np.finfo(np.float32).eps))
    resized = weight.astype(np.float32).reshape(out, inner, n) @ inverse.astype(np.float32)
    return resized.reshape(out, inner, *size).astype(weight.dtype)


def position_grid(
    pos_embed: np.ndarray,
    tokens: int,
    *,
    prefix: int,
    old: tuple[int, int] | None = None,
    new: tuple[int, int] | None = None,
    interpolation: str = "bicubic",
) -> np.ndarray:
    """Returns position embeddings resampled to another grid. Those of the prefix tokens are unchanged.

    Args:
      pos_embed: [1, prefix + old rows * columns, d], the grid row by row.
      tokens: new length, prefix + new rows * columns.
      prefix: number of tokens before the patches (class token, distillation token, registers).
      old: rows and columns of `pos_embed`. Default: a square.
      new: new rows and columns. Default: a square.
      interpolation: as in `resize_grid`.

    Returns:
      [1, tokens, d] with the dtype of `pos_embed`; `pos_embed` itself if the grid is unchanged.

    Raises:
      UserError: `old` or `new` is not given, and the grid is not a square.

    Example:
      >>> position_grid(np.zeros((1, 1 + 14 * 14, 192), np.float32), 1 + 24 * 24, prefix=1).shape
      (1, 577, 192)
    """
    n = pos_embed.shape[1]
    if n == tokens and old == new:
        return pos_embed
    old, new = old or _side(n - prefix), new or _side(tokens - prefix)
    if old == new:
        return pos_embed
    grid = np.asarray(resize_grid(jnp.asarray(pos_embed[:, prefix:]), old, new, interpolation))
    return np.concatenate([pos_embed[:, :prefix], grid], axis=1)


def _side(patches: int) -> tuple[int, int]:
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise UserError(
            f"position embeddings: got {patches} patches, which are not a square grid, so they cannot be resampled. "
            "Pass the image_size that the weights were trained at."
        )
    return side, side
