"""The blocks of EfficientNet and its relatives, and the factory of their layers. Attributes have timm's names."""

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
    """Creates the layers of all blocks of one network.

    Attributes:
      norm_kind: a key of `NORMS`.
      norm_group_size: channels per group of ``"group"`` and ``"evo"``.
      gate_kind: ``"se"`` or ``"gc"``.
      has_blur: whether to downsample with a blur instead of a strided convolution.
      padding: ``"torch"`` or ``"same"``, as for `Conv`.
      epsilon: added to the variance in norms.
      dtype: dtype of the computation; None for the promoted dtype of images and parameters.
      param_dtype: dtype of the parameters.
      rngs: streams ``params`` and ``dropout``.
    """

    norm_kind: str
    norm_group_size: int | None
    gate_kind: str
    has_blur: bool
    padding: str
    epsilon: float
    dtype: Any
    param_dtype: Any
    rngs: nnx.Rngs

    def _types(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}

    def conv(self, in_features: int, out_features: int, kernel_size: int | tuple[int, ...], **options: Any) -> Any:
        """Returns a convolution; the options are those of `Conv`.

        The kernel is initialized by the fan-out of one group, as in TensorFlow.
        """
        if isinstance(kernel_size, tuple):
            return MixConv(in_features, out_features, kernel_size, conv=self.conv, **options)
        fan_out = kernel_size**2 * out_features // options.get("groups", 1)
        # Only TensorFlow's rule defines the padding of kernels with even sides.
        common = {"padding": self.padding if kernel_size % 2 else "same", **self._types()}
        init = normal(math.sqrt(2 / fan_out))
        return Conv(in_features, out_features, kernel_size, kernel_init=init, **options, **common)

    def spatial(self, shape: Shape, in_features: int, out_features: int) -> Any:
        """Returns the k x k convolution of a block. Its stride is 1 if a blur downsamples."""
        stride = 1 if self.has_blur else shape.stride
        return self.conv(in_features, out_features, shape.kernel, stride=stride, groups=shape.groups)

    def blur(self, shape: Shape) -> Function:
        """Returns the function after the spatial convolution's activation: a blur with stride 2, or the identity."""
        return blurred if self.has_blur and shape.stride > 1 else unchanged

    def router(self, in_features: int, experts: int) -> nnx.Linear:
        """Returns the layer from pooled features [b, in_features] to the logits of the experts [b, experts]."""
        init = uniform((in_features + experts) ** -0.5)
        return nnx.Linear(in_features, experts, kernel_init=init, bias_init=zeros, **self._types())

    def expert_conv(self, shape: Shape, in_features: int, out_features: int, *, spatial: bool = False) -> CondConv:
        """Returns a 1x1 convolution with several experts, or the k x k one if `spatial`."""
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
        """Returns a norm. `activated`: whether an activation follows, which EvoNorm computes itself."""
        options: dict[str, Any] = {"epsilon": self.epsilon, **self._types()}
        if self.norm_kind in ("group", "evo"):
            options["group_size"] = self.norm_group_size
        if self.norm_kind == "evo":
            options["activation"] = activated
        return NORMS[self.norm_kind](features, **options)

    def activation(self, name: str) -> Function:
        """Returns the function that is applied after a norm: an activation, or the identity after EvoNorm."""
        return unchanged if self.norm_kind == "evo" else ACTIVATIONS[name]

    def gate(self, shape: Shape) -> Any:
        """Returns squeeze-and-excitation of the inner channels, or None."""
        if not shape.hidden:
            return None
        options: dict[str, Any] = {"activation": ACTIVATIONS[shape.activation], "conv": self.conv}
        if self.gate_kind == "gc":
            return GlobalContext(shape.inner, shape.hidden, **options, **self._types())
        return SqueezeExciteReduce(shape.inner, shape.hidden, **options)


def blurred(x: jax.Array) -> jax.Array:
    """Returns `x` [b, h, w, c], blurred and halved: [b, h / 2, w / 2, c]."""
    return blur_pool(x, border="zero")


def unchanged(x: jax.Array) -> jax.Array:
    """Returns `x`."""
    return x


class Block(nnx.Module):
    """The base class of all blocks: a branch, with a shortcut around it if the shape has one.

    Args:
      parts: creates the layers.
      shape: shape of the block.
    """

    def __init__(self, parts: Parts, shape: Shape):
        self.activation = parts.activation(shape.activation)
        self.blur = parts.blur(shape)
        self.has_shortcut = shape.shortcut
        self.drop_path = drop.DropPath(shape.drop_path, rngs=parts.rngs)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        raise NotImplementedError

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] for `x` [b, h, w, in_features]."""
        y = self.branch(x)
        return self.drop_path(y) + x if self.has_shortcut else y


class ConvBlock(Block):
    """One convolution (``cn``). All blocks have the arguments of `Block`."""

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.conv = parts.spatial(shape, shape.in_features, shape.features)
        self.bn1 = parts.norm(shape.features)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        return self.blur(self.activation(self.bn1(self.conv(x))))


class DepthwiseSeparable(Block):
    """A depthwise and a 1x1 convolution: an inverted residual without expansion (``ds``)."""

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.conv_dw = parts.spatial(shape, shape.inner, shape.inner)
        self.bn1 = parts.norm(shape.inner)
        self.se = parts.gate(shape)
        self.conv_pw = parts.conv(shape.inner, shape.features, 1)
        self.bn2 = parts.norm(shape.features, activated=False)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        y = self.blur(self.activation(self.bn1(self.conv_dw(x))))
        if self.se is not None:
            y = self.se(y)
        return self.bn2(self.conv_pw(y))


class ActivatedSeparable(DepthwiseSeparable):
    """A depthwise and a 1x1 convolution, each followed by an activation (``dsa``, MobileNet V1)."""

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        return self.activation(super().branch(x))


class SpaceToDepth(DepthwiseSeparable):
    """A learned space-to-depth, then a depthwise separable block with half the kernel size (EfficientNet-X)."""

    def __init__(self, parts: Parts, shape: Shape):
        assert isinstance(shape.kernel, int)
        super().__init__(parts, replace(shape, kernel=(shape.kernel + 1) // 2))
        self.conv_s2d = parts.conv(shape.in_features, shape.inner, 2, stride=2)
        self.bn_s2d = parts.norm(shape.inner)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        return super().branch(self.activation(self.bn_s2d(self.conv_s2d(x))))


class InvertedResidual(Block):
    """A 1x1 expansion, a depthwise convolution, a 1x1 projection (``ir``, "MBConv").

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
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        y = self.activation(self.bn1(self.conv_pw(x)))
        y = self.blur(self.activation(self.bn2(self.conv_dw(y))))
        if self.se is not None:
            y = self.se(y)
        return self.bn3(self.conv_pwl(y))


class CondConvResidual(Block):
    """An inverted residual whose kernels are mixed from several experts for each image (``cc``).

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
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
        routing = jax.nn.sigmoid(self.routing_fn(global_avg_pool(x)))
        y = self.activation(self.bn1(self.conv_pw(x, routing)))
        y = self.activation(self.bn2(self.conv_dw(y, routing)))
        if self.se is not None:
            y = self.se(y)
        return self.bn3(self.conv_pwl(y, routing))


class EdgeResidual(Block):
    """A dense convolution that expands, a 1x1 projection (``er``, "FusedMBConv")."""

    def __init__(self, parts: Parts, shape: Shape):
        super().__init__(parts, shape)
        self.conv_exp = parts.spatial(shape, shape.in_features, shape.inner)
        self.bn1 = parts.norm(shape.inner)
        self.se = parts.gate(shape)
        self.conv_pwl = parts.conv(shape.inner, shape.features, 1)
        self.bn2 = parts.norm(shape.features, activated=False)

    def branch(self, x: jax.Array) -> jax.Array:
        """Returns the output of the branch, [b, h / stride, w / stride, features]."""
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
