"""The residual blocks of ResNet and its relatives, and the factory of their layers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models.layers import drop
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.init import he_normal, zeros
from jaxvision.models.layers.norm import BatchNorm, GroupNorm
from jaxvision.models.layers.pool import avg_pool, blur_pool, max_pool, tile_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.squeeze_excite import EfficientChannelAttention, SqueezeExcite


def _even_tile_pool(x: jax.Array) -> jax.Array:
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise UserError(
            f"images: antialias='avg' needs feature maps with even sides, but one is {x.shape[1]} x {x.shape[2]}. "
            "Use images whose sides are multiples of 32."
        )
    return tile_pool(x)


NORMS: dict[str, Callable[..., nnx.Module]] = {"batch": BatchNorm, "group": GroupNorm}
GATES: dict[str, Callable[..., nnx.Module]] = {
    "se": functools.partial(SqueezeExcite, kernel_init=he_normal),
    "se4": functools.partial(SqueezeExcite, ratio=1 / 4, kernel_init=he_normal),  # ResNet-RS
    "eca": EfficientChannelAttention,
}
# Antialiased downsampling: the functions at the end of the stem, and the function after a block's 3x3 convolution.
ANTIALIASES: dict[str, tuple[Sequence[Callable[[jax.Array], jax.Array]], Callable[[jax.Array], jax.Array]]] = {
    "avg": ([tile_pool], _even_tile_pool),
    "blur": ([functools.partial(max_pool, stride=1), blur_pool], blur_pool),
}


@dataclass(frozen=True)
class Parts:
    """Creates the layers of all blocks of one network. `ResNet` documents the fields."""

    rngs: nnx.Rngs
    norm_kind: str = "batch"
    gate_kind: str | None = None
    antialias: str | None = None
    avg_down: bool = False
    groups: int = 1
    base_width: int = 64
    narrow_first: int = 1
    shortcut_kernel: int = 1
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def conv(self, in_features: int, out_features: int, kernel_size: int, **options: Any) -> Conv:
        """Returns a convolution; the options are those of `Conv`."""
        return Conv(in_features, out_features, kernel_size, kernel_init=he_normal, **options, **self._common)

    def norm(self, features: int, **options: Any) -> Any:
        """Returns a norm."""
        return NORMS[self.norm_kind](features, **options, **self._common)

    def last_norm(self, features: int) -> Any:
        """Returns the norm at the end of a residual branch."""
        # With a scale of zero each branch is initially zero, so a deep network starts as a shallow one.
        return self.norm(features, scale_init=zeros)

    def gate(self, features: int) -> Any:
        """Returns the layer that scales the channels of a branch, or None."""
        return None if self.gate_kind is None else GATES[self.gate_kind](features, **self._common)

    def downsampling(self, stride: int) -> Callable[[jax.Array], jax.Array] | None:
        """Returns the antialiased function that replaces a stride of 2, or None."""
        return ANTIALIASES[self.antialias][1] if self.antialias and stride == 2 else None

    def shortcut(self, in_features: int, out_features: int, stride: int) -> Any:
        """Returns the layers that give a block's input the shape of its output, or None."""
        if stride == 1 and in_features == out_features:
            return None
        norm = self.norm(out_features)
        if self.avg_down:
            pool = avg_pool if stride == 2 else _identity
            return Sequential([pool, self.conv(in_features, out_features, 1), norm])
        kernel = 1 if stride == 1 else self.shortcut_kernel
        return Sequential([self.conv(in_features, out_features, kernel, stride=stride), norm])

    @property
    def _common(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


def _identity(x: jax.Array) -> jax.Array:
    return x


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
      parts: creates the layers.
      in_features: channels of the input.
      width: channels of the output.
      stride: stride of the first convolution and of the shortcut.
      drop_path: stochastic depth rate.
    """

    expansion = 1

    def __init__(self, parts: Parts, in_features: int, width: int, *, stride: int = 1, drop_path: float = 0.0):
        first = width // parts.narrow_first
        self.halve = parts.downsampling(stride)
        self.conv1 = parts.conv(in_features, first, 3, stride=1 if self.halve else stride)
        self.bn1 = parts.norm(first)
        self.conv2 = parts.conv(first, width, 3)
        self.bn2 = parts.last_norm(width)
        self.se = parts.gate(width)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)
        self.downsample = parts.shortcut(in_features, width, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, width] for `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.halve is not None:
            x = self.halve(x)
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        return jax.nn.relu(self.drop_path(x) + shortcut)


class Bottleneck(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and a shortcut. The output has four times `width` channels.

    Args:
      parts: creates the layers.
      in_features: channels of the input.
      width: a quarter of the output's channels.
      stride: stride of the 3x3 convolution and of the shortcut.
      drop_path: stochastic depth rate.
      kept: channels after each of the three convolutions in a pruned network; they replace those derived from `width`.
    """

    expansion = 4

    def __init__(
        self,
        parts: Parts,
        in_features: int,
        width: int,
        *,
        stride: int = 1,
        drop_path: float = 0.0,
        kept: tuple[int, int, int] | None = None,
    ):
        inner = width * parts.base_width // 64 * parts.groups
        first, inner, out = kept or (inner // parts.narrow_first, inner, width * self.expansion)
        self.halve = parts.downsampling(stride)
        self.conv1 = parts.conv(in_features, first, 1)
        self.bn1 = parts.norm(first)
        self.conv2 = parts.conv(first, inner, 3, stride=1 if self.halve else stride, groups=parts.groups)
        self.bn2 = parts.norm(inner)
        self.conv3 = parts.conv(inner, out, 1)
        self.bn3 = parts.last_norm(out)
        self.se = parts.gate(width * self.expansion)  # gates are not pruned
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)
        self.downsample = parts.shortcut(in_features, out, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, 4 * width] for `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        if self.halve is not None:
            x = self.halve(x)
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        return jax.nn.relu(self.drop_path(x) + shortcut)


BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
