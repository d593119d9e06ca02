"""Tensors that fit almost: another number of input channels, another grid of positions.

Pure functions from array to array, with timm's arithmetic, so that an adapted model starts from the same numbers here
and there.
"""

from __future__ import annotations

import math

import jax
import numpy as np

from jaxvision.errors import UserError


def input_channels(weight: np.ndarray, channels: int) -> np.ndarray:
    """Returns the first convolution's weight for images of another number of channels.

    One channel gets the sum over the old ones, so that a grey picture given as one channel answers as the same picture
    given as three equal ones. Otherwise the old channels are repeated in turn, cut to the new number and scaled by
    old/new, so that the activations keep their size.

    Args:
      weight: [out, old, h, w], PyTorch's layout. The arithmetic is float32, whatever its dtype.
      channels: new number of input channels.

    Returns:
      [out, channels, h, w] of the dtype of `weight`; `weight` itself when nothing changes.

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


def position_grid(pos_embed: np.ndarray, tokens: int, *, prefix: int) -> np.ndarray:
    """Returns position embeddings resampled to another square grid; the prefix tokens' slots stay as they are.

    Bicubic with antialiasing and half-pixel centres, in float32, as timm does it.

    Args:
      pos_embed: [1, prefix + old * old, d], the grid row by row.
      tokens: wanted length, prefix + new * new.
      prefix: slots in front that belong to no patch (class token, distillation token, registers).

    Returns:
      [1, tokens, d] of the dtype of `pos_embed`; `pos_embed` itself when nothing changes.

    Raises:
      UserError: either grid is not a square.

    Example:
      >>> position_grid(np.zeros((1, 1 + 14 * 14, 192), np.float32), 1 + 24 * 24, prefix=1).shape
      (1, 577, 192)
    """
    _, n, d = pos_embed.shape
    if n == tokens:
        return pos_embed
    old, new = _side(n - prefix), _side(tokens - prefix)
    grid = pos_embed[:, prefix:].astype(np.float32).reshape(old, old, d)
    grid = np.asarray(jax.image.resize(grid, (new, new, d), "cubic", antialias=True))
    grid = grid.reshape(1, new * new, d).astype(pos_embed.dtype)
    return np.concatenate([pos_embed[:, :prefix], grid], axis=1)


def _side(patches: int) -> int:
    side = math.isqrt(max(patches, 0))
    if side < 1 or side * side != patches:
        raise UserError(f"position embeddings of {patches} patches are not a square grid, and cannot be resampled")
    return side
