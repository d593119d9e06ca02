"""The stem and the residual blocks of ResNetV2 and of the hybrid ViTs, and the factory of their layers."""

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
# A norm and the activation after it. The last two norms contain an activation.
NORMS: dict[str, tuple[Callable[..., Any], Callable[[jax.Array], jax.Array]]] = {
    "batch": (BatchNorm, jax.nn.relu),
    "group": (GroupNorm, jax.nn.relu),
    "evo": (EvoNormS0, _identity),
    "filter_response": (FilterResponseNorm, _identity),
}


@dataclass(frozen=True)
class Parts:
    """Creates the layers of all blocks of one network.

    Attributes:
      rngs: streams ``params`` and ``dropout``.
      conv_kind: a key of `CONVS`.
      padding: padding of every convolution, as for `Conv`.
      norm_kind: a key of `NORMS`.
      avg_down: whether a shortcut that changes the shape is an average pool and a 1x1 convolution instead of a strided
        1x1 convolution.
      dtype: dtype of the computation; None for the promoted dtype of images and parameters.
      param_dtype: dtype of the parameters.
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
        """Returns a norm. A block that has an activation after the norm applies `activation` to its output."""
        return NORMS[self.norm_kind][0](features, **self._common)

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        """The activation after a norm."""
        return NORMS[self.norm_kind][1]

    @property
    def _common(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


class Shortcut(nnx.Module):
    """A 1x1 convolution that gives a block's input the shape of its output.

    Args:
      parts: creates the layers.
      in_features: channels of the input.
      features: channels of the output.
      stride: stride of the convolution, or of the average pool before it.
      normalize: whether a norm follows, for blocks that end in a norm.
    """

    def __init__(self, parts: Parts, in_features: int, features: int, *, stride: int, normalize: bool):
        pools = parts.avg_down and stride == 2
        self.pool = avg_pool if pools else _identity
        self.conv = parts.conv(in_features, features, 1, stride=1 if pools else stride)
        self.norm = parts.norm(features) if normalize else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] for `x` [b, h, w, in_features]."""
        x = self.conv(self.pool(x))
        return x if self.norm is None else self.norm(x)


class PreActBasic(nnx.Module):
    """Two 3x3 convolutions, each after a norm and an activation, and a shortcut.

    The arguments are those of `PreActBottleneck`.
    """

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
        """Returns [b, h / stride, w / stride, features] for `x` [b, h, w, in_features]."""
        y = self.activation(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        return self.drop_path(y) + shortcut


class PreActBottleneck(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, each after a norm and an activation, and a shortcut.

    Args:
      parts: creates the layers.
      in_features: channels of the input.
      features: channels of the output. The 3x3 convolution has a quarter of them.
      stride: stride of the 3x3 convolution and of the shortcut.
      first: whether the block is the first of its stage. If so, its shortcut has a convolution.
      drop_path: stochastic depth rate.
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
        """Returns [b, h / stride, w / stride, features] for `x` [b, h, w, in_features]."""
        y = self.activation(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        y = self.conv3(self.activation(self.norm3(y)))
        return self.drop_path(y) + shortcut


class Bottleneck(nnx.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, each followed by a norm, and a shortcut: the block of the hybrid ViTs.

    The arguments are those of `PreActBottleneck`.
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
        """Returns [b, h / stride, w / stride, features] for `x` [b, h, w, in_features]."""
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
      parts: creates the layers.
      in_channels: channels of the images.
      features: channels of the output.
      kind: ``"plain"`` for one 7x7 convolution, ``"deep"`` for three 3x3 convolutions, ``"tiered"`` for three of which
        the first is narrower.
      pool: padding of the max pool, as for `max_pool`.
      normalize: whether a norm and an activation precede the pool, for blocks that do not begin with them.

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
        """Returns [b, h / 2, w / 2, features] for `images` [b, h, w, in_channels]."""
        if self.deep:
            x = self.activation(self.norm1(self.conv1(images)))
            x = self.activation(self.norm2(self.conv2(x)))
            x, norm = self.conv3(x), self.norm3
        else:
            x, norm = self.conv(images), self.norm
        return x if norm is None else self.activation(norm(x))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [b, h / 4, w / 4, features] for `images` [b, h, w, in_channels]."""
        return max_pool(self.before_pool(images), padding=self.pool)
