"""EfficientNet and EfficientNet-Lite, trained in PyTorch or ported from TensorFlow (``tf_``).

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
https://arxiv.org/abs/1905.11946. Attributes carry timm's names. A network is a table of stages, one for all sizes,
and two factors by which its widths and depths grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models import registry
from jaxvision.models.base import Model, check_images
from jaxvision.models.layers import drop
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import normal, uniform
from jaxvision.models.layers.norm import BatchNorm
from jaxvision.models.layers.pool import global_avg_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.squeeze_excite import SqueezeExciteReduce
from jaxvision.models.layers.width import make_divisible

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
}


@dataclass(frozen=True)
class Stage:
    """One row of a network's table: `repeats` blocks of one kind, of which the first may stride.

    Attributes:
      block: a key of `BLOCKS`.
      repeats: how many, before the network's depth factor.
      kernel: side of the spatial convolution.
      stride: of the first block.
      features: channels of the output, before the network's width factor.
      expand: how many times wider than its input a block is inside.
      squeeze_excite: hidden width of squeeze-and-excitation as a share of the block's input; 0 for none.
    """

    block: str
    repeats: int
    kernel: int
    stride: int
    features: int
    expand: float = 1.0
    squeeze_excite: float = 0.0


@dataclass(frozen=True)
class Parts:
    """What all layers of one network have in common: it makes the convolutions and the norms of the blocks."""

    activation: Callable[[jax.Array], jax.Array]
    padding: str
    epsilon: float
    dtype: Any
    param_dtype: Any
    rngs: nnx.Rngs

    def conv(self, in_features: int, out_features: int, kernel_size: int, **options: Any) -> Conv:
        """Returns a convolution; see `Conv`. The fan of a grouped one is counted within its group, as in TensorFlow."""
        fan_out = kernel_size**2 * out_features // options.get("groups", 1)
        common = {"padding": self.padding, "dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}
        init = normal(math.sqrt(2 / fan_out))
        return Conv(in_features, out_features, kernel_size, kernel_init=init, **options, **common)

    def norm(self, features: int) -> BatchNorm:
        """Returns a BatchNorm."""
        return BatchNorm(features, epsilon=self.epsilon, dtype=self.dtype, param_dtype=self.param_dtype, rngs=self.rngs)

    def gate(self, stage: Stage, in_features: int, features: int) -> SqueezeExciteReduce | None:
        """Returns the squeeze-and-excitation of `features` channels in a block of `in_features`, or None."""
        if not stage.squeeze_excite:
            return None
        # Of the block's input, not of the expanded channels; Python's round, which is to even, as in timm.
        hidden = round(features * (stage.squeeze_excite / stage.expand))
        return SqueezeExciteReduce(features, hidden, activation=self.activation, conv=self.conv)


class ConvBlock(nnx.Module):
    """One convolution, and a shortcut where shapes allow (``cn``). For the arguments see `InvertedResidual`."""

    def __init__(self, parts: Parts, stage: Stage, in_features: int, features: int, *, stride: int, drop_path: float):
        self.activation = parts.activation
        self.has_shortcut = stride == 1 and in_features == features
        self.conv = parts.conv(in_features, features, stage.kernel, stride=stride)
        self.bn1 = parts.norm(features)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.bn1(self.conv(x)))
        return self.drop_path(y) + x if self.has_shortcut else y


class DepthwiseSeparable(nnx.Module):
    """Depthwise and 1x1 convolution, an inverted residual without expansion (``ds``). See `InvertedResidual`."""

    def __init__(self, parts: Parts, stage: Stage, in_features: int, features: int, *, stride: int, drop_path: float):
        self.activation = parts.activation
        self.has_shortcut = stride == 1 and in_features == features
        self.conv_dw = parts.conv(in_features, in_features, stage.kernel, stride=stride, groups=in_features)
        self.bn1 = parts.norm(in_features)
        self.se = parts.gate(stage, in_features, in_features)
        self.conv_pw = parts.conv(in_features, features, 1)
        self.bn2 = parts.norm(features)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.bn1(self.conv_dw(x)))
        if self.se is not None:
            y = self.se(y)
        y = self.bn2(self.conv_pw(y))
        return self.drop_path(y) + x if self.has_shortcut else y


class InvertedResidual(nnx.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection (``ir``, "MBConv").

    Sandler et al., "MobileNetV2", https://arxiv.org/abs/1801.04381.

    Args:
      parts: makes its layers.
      stage: the row that it belongs to.
      in_features: channels of the input.
      features: channels of the output.
      stride: of the spatial convolution. With stride 1 and `features` equal to `in_features` there is a shortcut.
      drop_path: probability of dropping the branch beside a shortcut in training.
    """

    def __init__(self, parts: Parts, stage: Stage, in_features: int, features: int, *, stride: int, drop_path: float):
        inner = make_divisible(in_features * stage.expand)
        self.activation = parts.activation
        self.has_shortcut = stride == 1 and in_features == features
        self.conv_pw = parts.conv(in_features, inner, 1)
        self.bn1 = parts.norm(inner)
        self.conv_dw = parts.conv(inner, inner, stage.kernel, stride=stride, groups=inner)
        self.bn2 = parts.norm(inner)
        self.se = parts.gate(stage, in_features, inner)
        self.conv_pwl = parts.conv(inner, features, 1)
        self.bn3 = parts.norm(features)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.bn1(self.conv_pw(x)))
        y = self.activation(self.bn2(self.conv_dw(y)))
        if self.se is not None:
            y = self.se(y)
        y = self.bn3(self.conv_pwl(y))
        return self.drop_path(y) + x if self.has_shortcut else y


class EdgeResidual(nnx.Module):
    """Full convolution that expands, 1x1 projection (``er``, "FusedMBConv"). See `InvertedResidual`."""

    def __init__(self, parts: Parts, stage: Stage, in_features: int, features: int, *, stride: int, drop_path: float):
        inner = make_divisible(in_features * stage.expand)
        self.activation = parts.activation
        self.has_shortcut = stride == 1 and in_features == features
        self.conv_exp = parts.conv(in_features, inner, stage.kernel, stride=stride)
        self.bn1 = parts.norm(inner)
        self.se = parts.gate(stage, in_features, inner)
        self.conv_pwl = parts.conv(inner, features, 1)
        self.bn2 = parts.norm(features)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.bn1(self.conv_exp(x)))
        if self.se is not None:
            y = self.se(y)
        y = self.bn2(self.conv_pwl(y))
        return self.drop_path(y) + x if self.has_shortcut else y


BLOCKS: dict[str, Callable[..., nnx.Module]] = {
    "cn": ConvBlock,
    "ds": DepthwiseSeparable,
    "ir": InvertedResidual,
    "er": EdgeResidual,
}


class EfficientNet(Model):
    """A 3x3 stem, stages of blocks, a 1x1 convolution, a linear head.

    Args:
      stages: the table of stages.
      width: factor of every stage's `features`, of the stem and of the head's convolution.
      depth: factor of every stage's `repeats`, rounded up.
      scale_ends: False leaves the stem, the head's convolution and the depth of the first and last stage as they are
        (Lite).
      stem_features: channels of the stem.
      head_features: channels of the head's convolution.
      round_limit: see `make_divisible`, of every width but a block's inner one.
      activation: ``"silu"``, ``"relu"`` or ``"relu6"``.
      padding: ``"torch"``, or ``"same"`` for weights that come from TensorFlow.
      epsilon: of BatchNorm; 1e-3 for weights that come from TensorFlow.
      num_classes: width of the logits; 0 for pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images that the weights are for; noted, any size will do.
      dropout: rate before the head.
      drop_path: stochastic depth: block i of n is dropped with probability ``drop_path * i / n``.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters. BatchNorm statistics are float32 always.
      rngs: streams ``params`` and ``dropout``.

    Example:
      >>> model = EfficientNet(stages=(Stage("ds", 1, 3, 1, 16),), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 32, 32, 3))).shape, model.forward_features(jnp.zeros((2, 32, 32, 3))).shape
      ((2, 10), (2, 16, 16, 1280))
    """

    classifier_names = ("classifier",)
    first_conv = "conv_stem"

    def __init__(
        self,
        *,
        stages: Sequence[Stage],
        width: float = 1.0,
        depth: float = 1.0,
        scale_ends: bool = True,
        stem_features: int = 32,
        head_features: int = 1280,
        round_limit: float = 0.9,
        activation: str = "silu",
        padding: str = "torch",
        epsilon: float = 1e-5,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        parts = Parts(ACTIVATIONS[activation], padding, epsilon, dtype, param_dtype, rngs)
        self.activation, self.dtype, self.param_dtype = parts.activation, dtype, param_dtype

        def scaled(features: int) -> int:
            return make_divisible(features * width, round_limit=round_limit)

        features = scaled(stem_features) if scale_ends else stem_features
        self.conv_stem = parts.conv(in_channels, features, 3, stride=2)
        self.bn1 = parts.norm(features)

        last = len(stages) - 1
        repeats = [
            stage.repeats if i in (0, last) and not scale_ends else math.ceil(stage.repeats * depth)
            for i, stage in enumerate(stages)
        ]
        rates = iter(drop.rates(drop_path, sum(repeats), last_gets_all=False))
        self.strides = tuple(stage.stride for stage in stages)
        self.blocks: nnx.List[Sequential] = nnx.List()
        for stage, n in zip(stages, repeats, strict=True):
            blocks = Sequential()
            for i in range(n):
                out_features, stride = scaled(stage.features), stage.stride if i == 0 else 1
                block = BLOCKS[stage.block]
                blocks.append(block(parts, stage, features, out_features, stride=stride, drop_path=next(rates)))
                features = out_features
            self.blocks.append(blocks)

        self.num_features = scaled(head_features) if scale_ends else head_features
        self.conv_head = parts.conv(features, self.num_features, 1)
        self.bn2 = parts.norm(self.num_features)
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.classifier = self._fresh_head(
            rngs,
            kernel_init=uniform(max(num_classes, 1) ** -0.5),
            bias_init=nnx.initializers.zeros,
        )

    def _fresh_head(self, rngs: nnx.Rngs, **inits: Any) -> Any:
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return linear_head(self.num_features, self.num_classes, **inits, **types, rngs=rngs)

    def forward_intermediates(self, images: jax.Array) -> list[jax.Array]:
        """Returns the last feature map of each resolution: 1/2, 1/4, 1/8, 1/16 and 1/32 of the image."""
        check_images(images, self.in_channels)
        maps = []
        x = self.activation(self.bn1(self.conv_stem(images)))
        for stage, stride in zip(self.blocks, self.strides, strict=True):
            if stride > 1:
                maps.append(x)
            x = stage(x)
        return [*maps, x]

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns what the head pools, [b, h / 32, w / 32, c], of `images` [b, h, w, in_channels]."""
        x = self.forward_intermediates(images)[-1]
        return self.activation(self.bn2(self.conv_head(x)))

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or what the head sees, [b, c], if `pre_logits`."""
        x = self.drop(global_avg_pool(features))
        return x if pre_logits or self.classifier is None else self.classifier(x)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalised `images` [b, h, w, in_channels]."""
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Gives the model a fresh head for `num_classes` (none for 0); nothing else is touched."""
        self.num_classes = num_classes
        self.classifier = self._fresh_head(rngs)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns the patterns of the stem and of each block, or of each stage if `coarse`, from the image on.

        The head's convolution goes with the last of them, as in timm.
        """
        if coarse:
            groups = [rf"blocks\.{i}\." for i in range(len(self.blocks))]
        else:
            groups = [rf"blocks\.{i}\.{j}\." for i, stage in enumerate(self.blocks) for j in range(len(stage))]
        return (r"(conv_stem|bn1)\.", *groups[:-1], rf"({groups[-1]}|(conv_head|bn2)\.)")

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns no names: norms and biases aside, everything in an EfficientNet decays."""
        return ()


# block, repeats, kernel, stride, features, expand, squeeze_excite
B_STAGES = (
    Stage("ds", 1, 3, 1, 16, 1, 0.25),
    Stage("ir", 2, 3, 2, 24, 6, 0.25),
    Stage("ir", 2, 5, 2, 40, 6, 0.25),
    Stage("ir", 3, 3, 2, 80, 6, 0.25),
    Stage("ir", 3, 5, 1, 112, 6, 0.25),
    Stage("ir", 4, 5, 2, 192, 6, 0.25),
    Stage("ir", 1, 3, 1, 320, 6, 0.25),
)
LITE_STAGES = tuple(replace(stage, squeeze_excite=0.0) for stage in B_STAGES)
TEST_STAGES = (
    Stage("cn", 1, 3, 1, 16),
    Stage("er", 1, 3, 2, 24, 4),
    Stage("er", 1, 3, 2, 32, 4),
    Stage("ir", 1, 3, 2, 48, 4, 0.25),
    Stage("ir", 1, 3, 2, 64, 4, 0.25),
)

B: dict[str, Any] = {"stages": B_STAGES}
LITE: dict[str, Any] = {"stages": LITE_STAGES, "scale_ends": False, "activation": "relu6"}
TF: dict[str, Any] = {"padding": "same", "epsilon": 1e-3}  # ported from TensorFlow: its padding, its BatchNorm

VARIANTS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {**B},
    "efficientnet_b1": {**B, "width": 1.0, "depth": 1.1, "image_size": 240},
    "efficientnet_b2": {**B, "width": 1.1, "depth": 1.2, "image_size": 256},
    "efficientnet_b3": {**B, "width": 1.2, "depth": 1.4, "image_size": 288},
    "efficientnet_b4": {**B, "width": 1.4, "depth": 1.8, "image_size": 320},
    "tf_efficientnet_b0": {**B, **TF},
    "tf_efficientnet_b1": {**B, **TF, "width": 1.0, "depth": 1.1, "image_size": 240},
    "tf_efficientnet_b2": {**B, **TF, "width": 1.1, "depth": 1.2, "image_size": 260},
    "tf_efficientnet_b3": {**B, **TF, "width": 1.2, "depth": 1.4, "image_size": 300},
    "tf_efficientnet_b4": {**B, **TF, "width": 1.4, "depth": 1.8, "image_size": 380},
    "tf_efficientnet_lite0": {**LITE, **TF},
    "tf_efficientnet_lite1": {**LITE, **TF, "width": 1.0, "depth": 1.1, "image_size": 240},
    "tf_efficientnet_lite2": {**LITE, **TF, "width": 1.1, "depth": 1.2, "image_size": 260},
    "tf_efficientnet_lite3": {**LITE, **TF, "width": 1.2, "depth": 1.4, "image_size": 300},
    "tf_efficientnet_lite4": {**LITE, **TF, "width": 1.4, "depth": 1.8, "image_size": 380},
    # timm's own tiny model, with one of everything; for tests.
    "test_efficientnet": {
        "stages": TEST_STAGES,
        "stem_features": 24,
        "head_features": 256,
        "round_limit": 0.0,
        "image_size": 160,
    },
}

registry.register("efficientnet", EfficientNet, VARIANTS)
