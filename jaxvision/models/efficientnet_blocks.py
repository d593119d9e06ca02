"""The blocks of an EfficientNet, and how their shapes follow from a table of stages.

A table has a `Row` for each stage, or several. `repeated` makes a row for each block of them, `plan` works out the
shape of each block, and each kind of block is a class that is built from such a shape. Attributes carry timm's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
from flax import nnx

from jaxvision.models.efficientnet_plan import Shape
from jaxvision.models.layers import drop
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.init import normal, uniform, zeros
from jaxvision.models.layers.mixed import CondConv, MixConv
from jaxvision.models.layers.norm import BatchNorm, EvoNormS0, GroupNorm, LayerNorm
from jaxvision.models.layers.pool import blur_pool, global_avg_pool
from jaxvision.models.layers.squeeze_excite import GlobalContext, SqueezeExciteReduce

Function = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Function] = {"silu": jax.nn.silu, "relu": jax.nn.relu, "relu6": jax.nn.relu6}
NORMS: dict[str, Callable[..., nnx.Module]] = {
    "batch": BatchNorm,
    "group": GroupNorm,
    "layer": LayerNorm,
    "evo": EvoNormS0,
}


@dataclass(frozen=True)
class Parts:
    """What all layers of one network have in common: it makes the convolutions and the norms of the blocks."""

    norm_kind: str
    norm_group_size: int | None
    gate_kind: str
    blurs: bool
    padding: str
    epsilon: float
    dtype: Any
    param_dtype: Any
    rngs: nnx.Rngs

    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}

    def conv(self, in_features: int, out_features: int, kernel_size: int | tuple[int, ...], **options: Any) -> Any:
        """Returns a convolution; see `Conv`. The fan of a grouped one is counted within its group, as in TensorFlow."""
        if isinstance(kernel_size, tuple):
            return MixConv(in_features, out_features, kernel_size, conv=self.conv, **options)
        fan_out = kernel_size**2 * out_features // options.get("groups", 1)
        # Only TensorFlow's rule pads for a kernel without a middle.
        common = {"padding": self.padding if kernel_size % 2 else "same", **self._types()}
        init = normal(math.sqrt(2 / fan_out))
        return Conv(in_features, out_features, kernel_size, kernel_init=init, **options, **common)

    def spatial(self, shape: Shape, in_features: int, out_features: int) -> Any:
        """Returns the convolution of a block that looks at neighbors; where blurring does, it does not stride."""
        stride = 1 if self.blurs else shape.stride
        return self.conv(in_features, out_features, shape.kernel, stride=stride, groups=shape.groups)

    def blur(self, shape: Shape) -> Function:
        """Returns what follows the spatial convolution and its activation: a blur that strides, or nothing."""
        return blurred if self.blurs and shape.stride > 1 else unchanged

    def router(self, in_features: int, experts: int) -> nnx.Linear:
        """Returns the layer from pooled features to a logit for each expert."""
        init = uniform((in_features + experts) ** -0.5)
        return nnx.Linear(in_features, experts, kernel_init=init, bias_init=zeros, **self._types())

    def expert_conv(self, shape: Shape, in_features: int, out_features: int, *, spatial: bool = False) -> CondConv:
        """Returns a 1x1 convolution, or the `spatial` one, that is mixed from experts."""
        k, stride, groups = (shape.kernel, shape.stride, shape.groups) if spatial else (1, 1, 1)
        assert isinstance(k, int)
        return CondConv(
            in_features,
            out_features,
            k,
            experts=shape.experts,
            stride=stride,
            padding=self.padding,
            groups=groups,
            weight_init=normal(math.sqrt(2 / (k**2 * out_features // groups))),
            **self._types(),
        )

    def norm(self, features: int, *, activated: bool = True) -> Any:
        """Returns a norm, and whether an activation follows it is for EvoNorm to know, which is one itself."""
        options: dict[str, Any] = {"epsilon": self.epsilon, **self._types()}
        if self.norm_kind in ("group", "evo"):
            options["group_size"] = self.norm_group_size
        if self.norm_kind == "evo":
            options["activation"] = activated
        return NORMS[self.norm_kind](features, **options)

    def activation(self, name: str) -> Function:
        """Returns the function that follows a norm."""
        return unchanged if self.norm_kind == "evo" else ACTIVATIONS[name]

    def gate(self, shape: Shape) -> Any:
        """Returns the squeeze-and-excitation of the inner channels, or None."""
        if not shape.hidden:
            return None
        options: dict[str, Any] = {"activation": ACTIVATIONS[shape.activation], "conv": self.conv}
        if self.gate_kind == "gc":
            return GlobalContext(shape.inner, shape.hidden, **options, **self._types())
        return SqueezeExciteReduce(shape.inner, shape.hidden, **options)


def blurred(x: jax.Array) -> jax.Array:
    """Returns `x` [b, h, w, c] blurred and halved, [b, h / 2, w / 2, c]."""
    return blur_pool(x, border="zero")


def unchanged(x: jax.Array) -> jax.Array:
    """Returns `x`."""
    return x


class Block(nnx.Module):
    """A branch, and a shortcut around it where the shape has one.

    Args:
      parts: makes its layers.
      shape: all of its numbers.
    """

    def __init__(self, parts: Parts, shape: Shape):
        self.activation = parts.activation(shape.activation)
        self.blur = parts.blur(shape)
        self.has_shortcut = shape.shortcut
        self.drop_path = drop.DropPath(shape.drop_path, rngs=parts.rngs)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.branch(x)
        return self.drop_path(y) + x if self.has_shortcut else y


class ConvBlock(Block):
    """One convolution (``cn``). For the arguments of all kinds of blocks see `Block`."""

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.conv = parts.spatial(shape, shape.in_features, shape.features)
        self.bn1 = parts.norm(shape.features)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        return self.blur(self.activation(self.bn1(self.conv(x))))


class DepthwiseSeparable(Block):
    """Depthwise and 1x1 convolution, an inverted residual without expansion (``ds``)."""

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.conv_dw = parts.spatial(shape, shape.inner, shape.inner)
        self.bn1 = parts.norm(shape.inner)
        self.se = parts.gate(shape)
        self.conv_pw = parts.conv(shape.inner, shape.features, 1)
        self.bn2 = parts.norm(shape.features, activated=False)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        y = self.blur(self.activation(self.bn1(self.conv_dw(x))))
        if self.se is not None:
            y = self.se(y)
        return self.bn2(self.conv_pw(y))


class ActivatedSeparable(DepthwiseSeparable):
    """Depthwise and 1x1 convolution, with an activation after either (``dsa``, MobileNet V1)."""

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        return self.activation(super().branch(x))


class SpaceToDepth(DepthwiseSeparable):
    """A learned space-to-depth, and a depthwise separable block for a kernel half as wide (EfficientNet-X)."""

    def __init__(self, parts: Parts, shape: Shape):
        assert isinstance(shape.kernel, int)
        super().__init__(parts, replace(shape, kernel=(shape.kernel + 1) // 2))
        self.conv_s2d = parts.conv(shape.in_features, shape.inner, 2, stride=2)
        self.bn_s2d = parts.norm(shape.inner)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        return super().branch(self.activation(self.bn_s2d(self.conv_s2d(x))))


class InvertedResidual(Block):
    """1x1 expansion, depthwise convolution, 1x1 projection (``ir``, "MBConv").

    Sandler et al., "MobileNetV2", https://arxiv.org/abs/1801.04381.
    """

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        expand, project = ((1,) * n if n > 1 else 1 for n in shape.splits)
        self.conv_pw = parts.conv(shape.in_features, shape.inner, expand)
        self.bn1 = parts.norm(shape.inner)
        self.conv_dw = parts.spatial(shape, shape.inner, shape.inner)
        self.bn2 = parts.norm(shape.inner)
        self.se = parts.gate(shape)
        self.conv_pwl = parts.conv(shape.inner, shape.features, project)
        self.bn3 = parts.norm(shape.features, activated=False)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        y = self.activation(self.bn1(self.conv_pw(x)))
        y = self.blur(self.activation(self.bn2(self.conv_dw(y))))
        if self.se is not None:
            y = self.se(y)
        return self.bn3(self.conv_pwl(y))


class CondConvResidual(Block):
    """An inverted residual whose convolutions are mixed for each image from those of experts (``cc``).

    Yang et al., "CondConv: Conditionally Parameterized Convolutions for Efficient Inference",
    https://arxiv.org/abs/1904.04971.
    """

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.routing_fn = parts.router(shape.in_features, shape.experts)
        self.conv_pw = parts.expert_conv(shape, shape.in_features, shape.inner)
        self.bn1 = parts.norm(shape.inner)
        self.conv_dw = parts.expert_conv(shape, shape.inner, shape.inner, spatial=True)
        self.bn2 = parts.norm(shape.inner)
        self.se = parts.gate(shape)
        self.conv_pwl = parts.expert_conv(shape, shape.inner, shape.features)
        self.bn3 = parts.norm(shape.features, activated=False)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        shares = jax.nn.sigmoid(self.routing_fn(global_avg_pool(x)))
        y = self.activation(self.bn1(self.conv_pw(x, shares)))
        y = self.activation(self.bn2(self.conv_dw(y, shares)))
        if self.se is not None:
            y = self.se(y)
        return self.bn3(self.conv_pwl(y, shares))


class EdgeResidual(Block):
    """Full convolution that expands, 1x1 projection (``er``, "FusedMBConv")."""

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.conv_exp = parts.spatial(shape, shape.in_features, shape.inner)
        self.bn1 = parts.norm(shape.inner)
        self.se = parts.gate(shape)
        self.conv_pwl = parts.conv(shape.inner, shape.features, 1)
        self.bn2 = parts.norm(shape.features, activated=False)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns what the layers make of `x`."""
        y = self.blur(self.activation(self.bn1(self.conv_exp(x))))
        if self.se is not None:
            y = self.se(y)
        return self.bn2(self.conv_pwl(y))


BLOCKS: dict[str, type[Block]] = {
    "cn": ConvBlock,
    "ds": DepthwiseSeparable,
    "dsa": ActivatedSeparable,
    "s2d": SpaceToDepth,
    "ir": InvertedResidual,
    "cc": CondConvResidual,
    "er": EdgeResidual,
}
