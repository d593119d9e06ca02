"""ResNet and its relatives: ResNet-D, Wide ResNet, ResNeXt, SE-ResNet.

He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, with the stride on the 3x3
convolution of a bottleneck ("v1.5"), as everybody trains it. Attributes carry timm's names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models import registry
from jaxvision.models.base import Model, check_images
from jaxvision.models.layers import drop
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import he_normal
from jaxvision.models.layers.norm import BatchNorm
from jaxvision.models.layers.pool import avg_pool, global_avg_pool, max_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.squeeze_excite import SqueezeExcite


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut.

    Args:
      in_features: channels of the input.
      width: channels of both convolutions and of the output.
      stride: of the first convolution and of the shortcut.
      squeeze_excite: gate the branch's channels.
      avg_down: shortcut of another shape: average pool, then 1x1 (ResNet-D), instead of a strided 1x1.
      drop_path: probability of dropping the branch in training.
      **common: ``dtype``, ``param_dtype`` and ``rngs``.
    """

    expansion = 1

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        stride: int = 1,
        squeeze_excite: bool = False,
        avg_down: bool = False,
        drop_path: float = 0.0,
        **common: Any,
    ):
        self.conv1 = Conv(in_features, width, 3, stride=stride, kernel_init=he_normal, **common)
        self.bn1 = BatchNorm(width, **common)
        self.conv2 = Conv(width, width, 3, kernel_init=he_normal, **common)
        # A scale of zero makes each branch start as nothing, so that a deep net starts as a shallow one.
        self.bn2 = BatchNorm(width, scale_init=nnx.initializers.zeros, **common)
        self.se = SqueezeExcite(width, kernel_init=he_normal, **common) if squeeze_excite else None
        self.drop_path = drop.DropPath(drop_path, rngs=common["rngs"])
        self.downsample = _downsample(in_features, width, stride, avg_down, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, width] of `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        return jax.nn.relu(self.drop_path(x) + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; the output is four times as wide as the block is named for.

    Args:
      in_features: channels of the input.
      width: a quarter of the output's channels.
      stride: of the 3x3 convolution and of the shortcut.
      groups: of the 3x3 convolution (ResNeXt).
      base_width: channels of one group at a `width` of 64, 64 in a plain ResNet.
      squeeze_excite: gate the branch's channels.
      avg_down: shortcut of another shape: average pool, then 1x1 (ResNet-D), instead of a strided 1x1.
      drop_path: probability of dropping the branch in training.
      **common: ``dtype``, ``param_dtype`` and ``rngs``.
    """

    expansion = 4

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        stride: int = 1,
        groups: int = 1,
        base_width: int = 64,
        squeeze_excite: bool = False,
        avg_down: bool = False,
        drop_path: float = 0.0,
        **common: Any,
    ):
        inner, out_features = width * base_width // 64 * groups, width * self.expansion
        self.conv1 = Conv(in_features, inner, 1, kernel_init=he_normal, **common)
        self.bn1 = BatchNorm(inner, **common)
        self.conv2 = Conv(inner, inner, 3, stride=stride, groups=groups, kernel_init=he_normal, **common)
        self.bn2 = BatchNorm(inner, **common)
        self.conv3 = Conv(inner, out_features, 1, kernel_init=he_normal, **common)
        self.bn3 = BatchNorm(out_features, scale_init=nnx.initializers.zeros, **common)
        self.se = SqueezeExcite(out_features, kernel_init=he_normal, **common) if squeeze_excite else None
        self.drop_path = drop.DropPath(drop_path, rngs=common["rngs"])
        self.downsample = _downsample(in_features, out_features, stride, avg_down, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, 4 * width] of `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        x = jax.nn.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        if self.se is not None:
            x = self.se(x)
        return jax.nn.relu(self.drop_path(x) + shortcut)


def _downsample(in_features: int, out_features: int, stride: int, avg_down: bool, **common: Any) -> Sequential | None:
    if stride == 1 and in_features == out_features:
        return None
    stride, pools = (1, [avg_pool if stride == 2 else _identity]) if avg_down else (stride, [])
    conv = Conv(in_features, out_features, 1, stride=stride, kernel_init=he_normal, **common)
    return Sequential([*pools, conv, BatchNorm(out_features, **common)])


def _identity(x: jax.Array) -> jax.Array:
    return x


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(Model):
    """A stem, four stages of residual blocks, a linear head.

    Args:
      depths: blocks in each stage.
      block: ``"basic"`` or ``"bottleneck"``; or a sequence of them, one for each stage.
      widths: width of each stage's blocks; a bottleneck's output is four times as wide.
      stem_width: None for one 7x7 convolution of 64 channels; a number n for three 3x3 ones of n, n and 2 n (ResNet-D).
      num_classes: width of the logits; 0 for pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images that the weights are for; noted, any size will do.
      dropout: rate before the head.
      drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters. BatchNorm statistics are float32 always.
      groups, base_width, squeeze_excite, avg_down: see `Bottleneck`.
      rngs: streams ``params`` and ``dropout``.

    Example:
      >>> model = ResNet(depths=(1, 1, 1, 1), block="basic", num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 64, 64, 3))).shape, model.forward_features(jnp.zeros((2, 64, 64, 3))).shape
      ((2, 10), (2, 2, 2, 512))
    """

    classifier_names = ("fc",)

    layer1: Sequential
    layer2: Sequential
    layer3: Sequential
    layer4: Sequential

    def __init__(
        self,
        *,
        depths: Sequence[int],
        block: str | Sequence[str] = "bottleneck",
        widths: Sequence[int] = (64, 128, 256, 512),
        stem_width: int | None = None,
        groups: int = 1,
        base_width: int = 64,
        squeeze_excite: bool = False,
        avg_down: bool = False,
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
        self.dtype, self.param_dtype = dtype, param_dtype
        common: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        self.conv1: nnx.Module
        if stem_width is None:
            self.first_conv, features = "conv1", 64
            self.conv1 = Conv(in_channels, features, 7, stride=2, kernel_init=he_normal, **common)
        else:
            self.first_conv, features = "conv1.0", 2 * stem_width
            self.conv1 = Sequential(
                [
                    Conv(in_channels, stem_width, 3, stride=2, kernel_init=he_normal, **common),
                    BatchNorm(stem_width, **common),
                    jax.nn.relu,
                    Conv(stem_width, stem_width, 3, kernel_init=he_normal, **common),
                    BatchNorm(stem_width, **common),
                    jax.nn.relu,
                    Conv(stem_width, features, 3, kernel_init=he_normal, **common),
                ]
            )
        self.bn1 = BatchNorm(features, **common)

        blocks: list[Any] = [BLOCKS[name] for name in ([block] * len(depths) if isinstance(block, str) else block)]
        shared: dict[str, Any] = {"squeeze_excite": squeeze_excite, "avg_down": avg_down, **common}
        options = {BasicBlock: shared, Bottleneck: {"groups": groups, "base_width": base_width, **shared}}
        rates = iter(drop.rates(drop_path, sum(depths)))
        for i, (cls, depth, width) in enumerate(zip(blocks, depths, widths, strict=True)):
            stage = Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(cls(features, width, stride=stride, drop_path=next(rates), **options[cls]))
                features = width * cls.expansion
            setattr(self, f"layer{i + 1}", stage)  # timm's names, for timm's tensors

        self.num_features = features
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.fc = linear_head(features, num_classes, **common)

    def forward_intermediates(self, images: jax.Array) -> list[jax.Array]:
        """Returns the feature maps of the stem and the four stages, at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image."""
        check_images(images, self.in_channels)
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = max_pool(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the last feature map, [b, h / 32, w / 32, c], of `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images)[-1]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or what the head sees, [b, c], if `pre_logits`."""
        x = self.drop(global_avg_pool(features))
        return x if pre_logits or self.fc is None else self.fc(x)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalised `images` [b, h, w, in_channels]."""
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Gives the model a fresh head for `num_classes` (none for 0); nothing else is touched."""
        self.num_classes = num_classes
        self.fc = linear_head(self.num_features, num_classes, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns the patterns of the stem and of each block, or of each stage if `coarse`, from the image on."""
        stages = enumerate((self.layer1, self.layer2, self.layer3, self.layer4), start=1)
        if coarse:
            return (r"(conv1|bn1)\.", *(rf"layer{i}\." for i, _ in stages))
        return (r"(conv1|bn1)\.", *(rf"layer{i}\.{j}\." for i, stage in stages for j in range(len(stage))))

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns no names: norms and biases aside, everything in a ResNet decays."""
        return ()


VARIANTS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "depths": (2, 2, 2, 2)},
    "resnet34": {"block": "basic", "depths": (3, 4, 6, 3)},
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnet152": {"depths": (3, 8, 36, 3)},
    "resnet50d": {"depths": (3, 4, 6, 3), "stem_width": 32, "avg_down": True},
    "wide_resnet50_2": {"depths": (3, 4, 6, 3), "base_width": 128},
    "resnext50_32x4d": {"depths": (3, 4, 6, 3), "groups": 32, "base_width": 4},
    "seresnet50": {"depths": (3, 4, 6, 3), "squeeze_excite": True},
    # timm's own tiny model, with one of everything; for tests.
    "test_resnet": {
        "block": ("basic", "basic", "bottleneck", "basic"),
        "depths": (1, 1, 1, 1),
        "widths": (32, 48, 48, 96),
        "stem_width": 16,
        "avg_down": True,
        "image_size": 160,
    },
}

registry.register("resnet", ResNet, VARIANTS)
