"""Stem and residual blocks of ResNetV2 and of the hybrid ViTs, and the factory that makes their layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers import drop
from jaxvision.models.layers.conv import Conv, StdConv
from jaxvision.models.layers.init import he_normal
from jaxvision.models.layers.norm import BatchNorm, EvoNormS0, FilterResponseNorm, GroupNorm
from jaxvision.models.layers.pool import avg_pool, max_pool
from jaxvision.models.layers.width import make_divisible


def _identity(x: jax.Array) -> jax.Array:
    return x


CONVS: dict[str, type[Conv]] = {"plain": Conv, "std": StdConv}
# A norm and the activation after it; the last two have their own.
NORMS: dict[str, tuple[Callable[..., Any], Callable[[jax.Array], jax.Array]]] = {
    "batch": (BatchNorm, jax.nn.relu),
    "group": (GroupNorm, jax.nn.relu),
    "evo": (EvoNormS0, _identity),
    "filter_response": (FilterResponseNorm, _identity),
}


@dataclass(frozen=True)
class Parts:
    """What all blocks of one network have in common: it makes their layers.

    Attributes:
      rngs: streams ``params`` and ``dropout``.
      conv_kind: a key of `CONVS`.
      padding: of every convolution, see `Conv`.
      norm_kind: a key of `NORMS`.
      avg_down: shortcut of another shape: average pool, then 1x1, instead of a strided 1x1.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters.
    """

    rngs: nnx.Rngs
    conv_kind: str = "std"
    padding: str = "torch"
    norm_kind: str = "group"
    avg_down: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def conv(self, in_features: int, out_features: int, kernel_size: int, *, stride: int = 1) -> Conv:
        """Returns a convolution."""
        options: dict[str, Any] = {"stride": stride, "padding": self.padding, "kernel_init": he_normal}
        return CONVS[self.conv_kind](in_features, out_features, kernel_size, **options, **self._common)

    def norm(self, features: int) -> Any:
        """Returns a norm, to be followed by `activation` where a block activates."""
        return NORMS[self.norm_kind][0](features, **self._common)

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        """What follows a norm."""
        return NORMS[self.norm_kind][1]

    @property
    def _common(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


class Shortcut(nnx.Module):
    """Gives a block's input the shape of its output: a 1x1 convolution, and a norm if the block has one at its end."""

    def __init__(self, parts: Parts, in_features: int, features: int, *, stride: int, normalize: bool):
        pools = parts.avg_down and stride == 2
        self.pool = avg_pool if pools else _identity
        self.conv = parts.conv(in_features, features, 1, stride=1 if pools else stride)
        self.norm = parts.norm(features) if normalize else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        x = self.conv(self.pool(x))
        return x if self.norm is None else self.norm(x)


class PreActBasic(nnx.Module):
    """Twice a norm, an activation and a 3x3 convolution, and a shortcut. For the arguments see `PreActBottleneck`."""

    def __init__(
        self, parts: Parts, in_features: int, features: int, *, stride: int, first: bool, drop_path: float = 0.0
    ):
        reshapes = first and (stride != 1 or in_features != features)
        self.activation = parts.activation
        self.downsample = Shortcut(parts, in_features, features, stride=stride, normalize=False) if reshapes else None
        self.norm1 = parts.norm(in_features)
        self.conv1 = parts.conv(in_features, features, 3, stride=stride)
        self.norm2 = parts.norm(features)
        self.conv2 = parts.conv(features, features, 3)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        return self.drop_path(y) + shortcut


class PreActBottleneck(nnx.Module):
    """Norm, activation and 1x1, 3x3 and 1x1 convolution in turn, and a shortcut.

    Args:
      parts: makes its layers.
      in_features: channels of the input.
      features: channels of the output; the 3x3 convolution has a quarter of them.
      stride: of the 3x3 convolution and of the shortcut.
      first: of its stage: the shortcut has a convolution.
      drop_path: probability of dropping the branch in training.
    """

    def __init__(
        self, parts: Parts, in_features: int, features: int, *, stride: int, first: bool, drop_path: float = 0.0
    ):
        inner = make_divisible(features / 4)
        self.activation = parts.activation
        self.downsample = Shortcut(parts, in_features, features, stride=stride, normalize=False) if first else None
        self.norm1 = parts.norm(in_features)
        self.conv1 = parts.conv(in_features, inner, 1)
        self.norm2 = parts.norm(inner)
        self.conv2 = parts.conv(inner, inner, 3, stride=stride)
        self.norm3 = parts.norm(inner)
        self.conv3 = parts.conv(inner, features, 1)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        y = self.conv3(self.activation(self.norm3(y)))
        return self.drop_path(y) + shortcut


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with its norm after it, and a shortcut: the block of the hybrid ViTs.

    For the arguments see `PreActBottleneck`.
    """

    def __init__(
        self, parts: Parts, in_features: int, features: int, *, stride: int, first: bool, drop_path: float = 0.0
    ):
        inner = make_divisible(features / 4)
        self.activation = parts.activation
        self.downsample = Shortcut(parts, in_features, features, stride=stride, normalize=True) if first else None
        self.conv1 = parts.conv(in_features, inner, 1)
        self.norm1 = parts.norm(inner)
        self.conv2 = parts.conv(inner, inner, 3, stride=stride)
        self.norm2 = parts.norm(inner)
        self.conv3 = parts.conv(inner, features, 1)
        self.norm3 = parts.norm(features)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.activation(self.drop_path(y) + shortcut)


BLOCKS: dict[str, Callable[..., nnx.Module]] = {
    "preact_basic": PreActBasic,
    "preact_bottleneck": PreActBottleneck,
    "bottleneck": Bottleneck,
}
STEMS = ("plain", "deep", "tiered")


class Stem(nnx.Module):
    """Convolutions that halve the image, and a max pool that halves it again.

    Args:
      parts: makes its layers.
      in_channels: channels of the images.
      features: channels of the output.
      kind: ``"plain"`` for one 7x7 convolution; ``"deep"`` for three 3x3 ones, ``"tiered"`` with a narrower first.
      pool: borders of the max pool, the `padding` of `max_pool`.
      normalize: end in a norm and an activation, before the pool: where the blocks do not begin with them.

    Example:
      >>> stem = Stem(Parts(nnx.Rngs(0), padding="same"), 3, 64, pool="same", normalize=True)
      >>> stem(jnp.zeros((1, 64, 64, 3))).shape, stem.conv.kernel.shape
      ((1, 16, 16, 64), (7, 7, 3, 64))
    """

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        features: int,
        *,
        kind: str = "plain",
        pool: str = "torch",
        normalize: bool = False,
    ):
        self.activation, self.pool, self.deep = parts.activation, pool, kind != "plain"
        norm = parts.norm(features) if normalize else None
        if self.deep:
            first, second = 3 * features // 8 if kind == "tiered" else features // 2, features // 2
            self.conv1 = parts.conv(in_channels, first, 3, stride=2)
            self.norm1 = parts.norm(first)
            self.conv2 = parts.conv(first, second, 3)
            self.norm2 = parts.norm(second)
            self.conv3 = parts.conv(second, features, 3)
            self.norm3 = norm
        else:
            self.conv = parts.conv(in_channels, features, 7, stride=2)
            self.norm = norm

    def before_pool(self, images: jax.Array) -> jax.Array:
        """Returns [b, h / 2, w / 2, features] of `images` [b, h, w, in_channels]."""
        if self.deep:
            x = self.activation(self.norm1(self.conv1(images)))
            x = self.activation(self.norm2(self.conv2(x)))
            x, norm = self.conv3(x), self.norm3
        else:
            x, norm = self.conv(images), self.norm
        return x if norm is None else self.activation(norm(x))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [b, h / 4, w / 4, features] of `images` [b, h, w, in_channels]."""
        return max_pool(self.before_pool(images), padding=self.pool)
