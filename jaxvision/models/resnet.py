"""ResNet and its relatives: ResNet-D, ResNeXt, SENet, ECA-Net, ResNet-RS, with antialiasing, wide, pruned.

He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, with the stride on the 3x3
convolution of a bottleneck ("v1.5"), as everybody trains it. Attributes carry timm's names.

The letter at the end of a name is that of a stem, from He et al., "Bag of Tricks for Image Classification with
Convolutional Neural Networks", https://arxiv.org/abs/1812.01187: ``c`` and ``s`` have three 3x3 convolutions for a 7x7
one, ``d`` and ``t`` pool in the shortcut, too, and the first convolution of ``t`` is narrower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.models.base import FeatureInfo, Model, check_images, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import he_normal, zeros
from jaxvision.models.layers.norm import BatchNorm, GroupNorm
from jaxvision.models.layers.pool import (
    GLOBAL_POOLS,
    avg_pool,
    blur_pool,
    check_global_pool,
    global_pool,
    max_pool,
    tile_pool,
)
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.squeeze_excite import EfficientChannelAttention, SqueezeExcite


def _halved(x: jax.Array) -> jax.Array:
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise UserError(
            f"antialiasing by means halves a map of even sides, but one of {x.shape[1]} x {x.shape[2]} came up; "
            "take images whose sides are multiples of 32"
        )
    return tile_pool(x)


NORMS: dict[str, Callable[..., nnx.Module]] = {"batch": BatchNorm, "group": GroupNorm}
GATES: dict[str, Callable[..., nnx.Module]] = {
    "se": functools.partial(SqueezeExcite, kernel_init=he_normal),
    "se4": functools.partial(SqueezeExcite, ratio=1 / 4, kernel_init=he_normal),  # ResNet-RS
    "eca": EfficientChannelAttention,
}
# What halves a map without aliasing: in the stem, and after the 3x3 convolution of a block.
ANTIALIASES: dict[str, tuple[Sequence[Callable[[jax.Array], jax.Array]], Callable[[jax.Array], jax.Array]]] = {
    "avg": ([tile_pool], _halved),
    "blur": ([functools.partial(max_pool, stride=1), blur_pool], blur_pool),
}


@dataclass(frozen=True)
class Parts:
    """What all blocks of one network have in common: it makes their layers. For the fields see `ResNet`."""

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
        """Returns a convolution; see `Conv`."""
        return Conv(in_features, out_features, kernel_size, kernel_init=he_normal, **options, **self._common)

    def norm(self, features: int, **options: Any) -> Any:
        """Returns a norm."""
        return NORMS[self.norm_kind](features, **options, **self._common)

    def last_norm(self, features: int) -> Any:
        """Returns the norm at the end of a branch."""
        # A scale of zero makes each branch start as nothing, so that a deep net starts as a shallow one.
        return self.norm(features, scale_init=zeros)

    def gate(self, features: int) -> Any:
        """Returns what weighs the channels of a branch, or nothing."""
        return None if self.gate_kind is None else GATES[self.gate_kind](features, **self._common)

    def halve(self, stride: int) -> Callable[[jax.Array], jax.Array] | None:
        """Returns what halves a map in the place of a stride, or nothing."""
        return ANTIALIASES[self.antialias][1] if self.antialias and stride == 2 else None

    def shortcut(self, in_features: int, out_features: int, stride: int) -> Any:
        """Returns what gives a block's input the shape of its output, or nothing."""
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
      parts: makes its layers.
      in_features: channels of the input.
      width: channels of the output.
      stride: of the first convolution and of the shortcut.
      drop_path: probability of dropping the branch in training.
    """

    expansion = 1

    def __init__(self, parts: Parts, in_features: int, width: int, *, stride: int = 1, drop_path: float = 0.0):
        first = width // parts.narrow_first
        self.halve = parts.halve(stride)
        self.conv1 = parts.conv(in_features, first, 3, stride=1 if self.halve else stride)
        self.bn1 = parts.norm(first)
        self.conv2 = parts.conv(first, width, 3)
        self.bn2 = parts.last_norm(width)
        self.se = parts.gate(width)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)
        self.downsample = parts.shortcut(in_features, width, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, width] of `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.halve is not None:
            x = self.halve(x)
        x = self.bn2(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        return jax.nn.relu(self.drop_path(x) + shortcut)


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution and a shortcut; the output is four times as wide as the block is named for.

    Args:
      parts: makes its layers.
      in_features: channels of the input.
      width: a quarter of the output's channels.
      stride: of the 3x3 convolution and of the shortcut.
      drop_path: probability of dropping the branch in training.
      kept: channels after each of the three convolutions, in the place of what follows from `width` (pruning).
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
        self.halve = parts.halve(stride)
        self.conv1 = parts.conv(in_features, first, 1)
        self.bn1 = parts.norm(first)
        self.conv2 = parts.conv(first, inner, 3, stride=1 if self.halve else stride, groups=parts.groups)
        self.bn2 = parts.norm(inner)
        self.conv3 = parts.conv(inner, out, 1)
        self.bn3 = parts.last_norm(out)
        self.se = parts.gate(width * self.expansion)  # pruning left the gates alone
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)
        self.downsample = parts.shortcut(in_features, out, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, 4 * width] of `x` [b, h, w, in_features]."""
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


class ResNet(Model):
    """A stem, stages of residual blocks, a linear head.

    Args:
      depths: blocks in each stage.
      block: ``"basic"`` or ``"bottleneck"``; or a sequence of them, one for each stage.
      widths: width of each stage's blocks; a bottleneck's output is four times as wide.
      stem_width: None for one 7x7 convolution of 64 channels; a number n for three 3x3 ones of n, n and 2 n (ResNet-D).
      tiered_stem: the first of the three has 3/4 n channels only.
      stem_pool: what halves the stem's output: ``"max"``, or ``"conv"`` for a strided 3x3 convolution (ResNet-RS).
      groups: of a bottleneck's 3x3 convolution (ResNeXt).
      base_width: channels of one of these groups at a width of 64, 64 in a plain ResNet.
      gate: what weighs the channels of each branch: ``"se"``, ``"se4"`` with a wider hidden layer, ``"eca"`` or None.
      avg_down: shortcut of another shape: average pool, then 1x1 (ResNet-D), instead of a strided 1x1.
      antialias: what takes the place of strides: ``"avg"``, ``"blur"`` or None.
      norm: ``"batch"`` or ``"group"``.
      narrow_first: how many times narrower than the others the first convolution of a block is (SENet-154: 2).
      shortcut_kernel: side of the strided convolution in a shortcut (SENet-154: 3).
      kept: for a pruned net: for each stage the channels of its output, and for each of its blocks those after the
        first and the second convolution.
      num_classes: width of the logits; 0 for pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images that the weights are for; noted, any size will do.
      global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none; see `layers.pool`.
      dropout: rate before the head.
      drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters. BatchNorm statistics are float32 always.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: an unknown choice, or choices that do not go together.

    Example:
      >>> model = ResNet(depths=(1, 1, 1, 1), block="basic", num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 64, 64, 3))).shape, model.forward_features(jnp.zeros((2, 64, 64, 3))).shape
      ((2, 10), (2, 2, 2, 512))
    """

    classifier_names = ("fc",)
    block_pattern = r"layer\d+\.\d+\."
    # Each device computes some of the channels between a block's first convolution and its second.
    tensor_rules = (
        (r"layer\d+\.\d+\.conv1\.kernel", PartitionSpec(None, None, None, "tensor")),
        (r"layer\d+\.\d+\.bn1\.", PartitionSpec("tensor")),
        (r"layer\d+\.\d+\.conv2\.kernel", PartitionSpec(None, None, "tensor")),
    )

    def __init__(
        self,
        *,
        depths: Sequence[int],
        block: str | Sequence[str] = "bottleneck",
        widths: Sequence[int] = (64, 128, 256, 512),
        stem_width: int | None = None,
        tiered_stem: bool = False,
        stem_pool: str = "max",
        groups: int = 1,
        base_width: int = 64,
        gate: str | None = None,
        avg_down: bool = False,
        antialias: str | None = None,
        norm: str = "batch",
        narrow_first: int = 1,
        shortcut_kernel: int = 1,
        kept: Sequence[tuple[int, Sequence[tuple[int, int]]]] | None = None,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        global_pool: str = "avg",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for depth in depths:
            sizes.require_int("each of depths", depth, 1)
        if stem_width is not None:
            sizes.require_int("stem_width", stem_width, 1)
        names = [block] * len(depths) if isinstance(block, str) else list(block)
        _check("block", names, BLOCKS)
        _check("norm", [norm], NORMS)
        _check("gate", [gate], [None, *GATES])
        _check("antialias", [antialias], [None, *ANTIALIASES])
        _check("stem_pool", [stem_pool], ["max", "conv"])
        check_global_pool(global_pool, num_classes)
        if not len(names) == len(depths) <= len(widths):
            raise UserError(f"{len(depths)} depths, {len(names)} blocks and {len(widths)} widths: one for each stage")
        if "basic" in names and (groups, base_width) != (1, 64):
            raise UserError("a basic block has neither groups nor a base_width: take block='bottleneck'")
        if kept is not None and [len(blocks) for _, blocks in kept] != list(depths):
            raise UserError("a pruned net has the depths that were left of it; they cannot be changed")

        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.global_pool, self.dtype, self.param_dtype = global_pool, dtype, param_dtype
        parts = Parts(
            rngs=rngs,
            norm_kind=norm,
            gate_kind=gate,
            antialias=antialias,
            avg_down=avg_down,
            groups=groups,
            base_width=base_width,
            narrow_first=narrow_first,
            shortcut_kernel=shortcut_kernel,
            dtype=dtype,
            param_dtype=param_dtype,
        )

        self.conv1: nnx.Module
        if stem_width is None:
            self.first_conv, features = "conv1", 64
            self.conv1 = parts.conv(in_channels, features, 7, stride=2)
        else:
            self.first_conv, features = "conv1.0", 2 * stem_width
            first = 3 * (stem_width // 4) if tiered_stem else stem_width
            self.conv1 = Sequential(
                [
                    parts.conv(in_channels, first, 3, stride=2),
                    parts.norm(first),
                    jax.nn.relu,
                    parts.conv(first, stem_width, 3),
                    parts.norm(stem_width),
                    jax.nn.relu,
                    parts.conv(stem_width, features, 3),
                ]
            )
        self.bn1 = parts.norm(features)
        if stem_pool == "conv":
            halve = [] if antialias is None else [ANTIALIASES[antialias][1]]
            conv = parts.conv(features, features, 3, stride=1 if halve else 2)
            self.maxpool = Sequential([conv, *halve, parts.norm(features), jax.nn.relu])
        else:
            self.maxpool = Sequential([max_pool] if antialias is None else ANTIALIASES[antialias][0])
        levels = [FeatureInfo("act1", features, 2)]

        rates = iter(drop.rates(drop_path, sum(depths)))
        for i, (name, depth, width) in enumerate(zip(names, depths, widths, strict=False)):
            stage, cls = Sequential(), BLOCKS[name]
            for j in range(depth):
                options: dict[str, Any] = {"stride": 2 if i > 0 and j == 0 else 1, "drop_path": next(rates)}
                if kept is None:
                    out = width * cls.expansion
                else:
                    out = kept[i][0]
                    options["kept"] = (*kept[i][1][j], out)
                stage.append(cls(parts, features, width, **options))
                features = out
            setattr(self, f"layer{i + 1}", stage)  # timm's names, for timm's tensors
            levels.append(FeatureInfo(f"layer{i + 1}", features, 4 * 2**i))

        self.feature_info = tuple(levels)
        self.num_features = features * GLOBAL_POOLS[global_pool]
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.fc = linear_head(self.num_features, num_classes, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    @property
    def stages(self) -> tuple[Sequential, ...]:
        """The stages: ``layer1``, ``layer2`` and so on."""
        return tuple(getattr(self, level.name) for level in self.feature_info[1:])

    def forward_intermediates(
        self,
        images: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Returns ``(features, maps)``, or the maps alone: the stem's at 1/2 of the image, the stages' at 1/4 to 1/32.

        Args:
          images: [b, h, w, in_channels], normalized.
          indices: which maps: None for all, a number for so many of the last, or their positions in `feature_info`.
          norm: has no effect, for a ResNet has no last norm.
          intermediates_only: leave the features away.

        Raises:
          UserError: a level that is not there, or images of another shape.

        Example:
          >>> model = registry.build("test_resnet", rngs=nnx.Rngs(0))
          >>> features, maps = model.forward_intermediates(jnp.zeros((1, 64, 64, 3)), indices=(1, -1))
          >>> [x.shape for x in maps], [model.feature_info[i].stride for i in (1, -1)]
          ([(1, 16, 16, 32), (1, 2, 2, 96)], [4, 32])
        """
        check_images(images, self.in_channels)
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        for level, stage in zip(self.feature_info[1:], self.stages, strict=True):
            x = self.run_blocks(level.name, stage, x)
            maps.append(x)
        maps = [maps[i] for i in feature_indices(indices, len(maps))]
        return maps if intermediates_only else (x, maps)

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the last feature map, [b, h / 32, w / 32, c], of `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images, ())[0]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or what the head sees, [b, c], if `pre_logits`."""
        x = self.drop(global_pool(features, self.global_pool))
        return x if pre_logits or self.fc is None else self.fc(x)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalized `images` [b, h, w, in_channels]."""
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Gives the model a fresh head for `num_classes` (none for 0), and another `global_pool` if one is said."""
        sizes.require_int("num_classes", num_classes, 0)
        pool = self.global_pool if global_pool is None else global_pool
        check_global_pool(pool, num_classes)
        if global_pool is not None:
            self.global_pool, self.options = pool, with_options(self, global_pool=pool)
        self.num_classes = num_classes
        self.num_features = self.feature_info[-1].channels * GLOBAL_POOLS[pool]
        self.fc = linear_head(self.num_features, num_classes, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs)

    def cut(self, level: int) -> None:
        """Takes away, in place, what comes after a level of `feature_info`, but for the head."""
        for later in self.feature_info[level + 1 :]:
            delattr(self, later.name)
        self.feature_info = self.feature_info[: level + 1]
        if level == 0:
            self.maxpool = Sequential()

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns the patterns of the stem and of each block, or of each stage if `coarse`, from the image on."""
        stem, stages = r"(conv1|bn1|maxpool)\.", enumerate(self.stages, start=1)
        if coarse:
            return (stem, *(rf"layer{i}\." for i, _ in stages))
        return (stem, *(rf"layer{i}\.{j}\." for i, stage in stages for j in range(len(stage))))

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns no names: norms and biases aside, everything in a ResNet decays."""
        return ()


def _check(what: str, chosen: Sequence[Any], choices: Sequence[Any] | dict[str, Any]) -> None:
    for choice in chosen:
        if choice not in choices:
            raise unknown_name_error(what, choice, [str(x) for x in choices])


# Widths that pruning left: of each stage's output, and of its blocks after the first and the second convolution.
# Aflalo et al., "Knapsack Pruning with Inner Distillation", https://arxiv.org/abs/2002.08258
# fmt: off
KEPT_50: tuple[Any, ...] = (
    (19, (
        (47, 18), (52, 22), (64, 35),
    )),
    (171, (
        (85, 37), (107, 80), (120, 85), (125, 87),
    )),
    (818, (
        (198, 126), (255, 232), (256, 233), (253, 235), (256, 225), (256, 239),
    )),
    (2022, (
        (492, 237), (512, 500), (512, 490),
    )),
)
KEPT_101: tuple[Any, ...] = (
    (26, (
        (45, 25), (53, 20), (60, 27),
    )),
    (142, (
        (81, 24), (93, 49), (102, 54), (122, 78),
    )),
    (278, (
        (101, 25), (239, 160), (234, 156), (250, 176), (253, 191), (251, 175), (230, 128), (244, 154), (244, 159),
        (238, 97), (244, 149), (253, 181), (245, 119), (255, 216), (256, 201), (253, 149), (254, 141), (256, 190),
        (256, 217), (255, 156), (256, 155), (256, 232), (256, 214),
    )),
    (2042, (
        (499, 289), (512, 512), (512, 502),
    )),
)
# fmt: on


# Blocks and depths.
R18: dict[str, Any] = {"block": "basic", "depths": (2, 2, 2, 2)}
R26: dict[str, Any] = {"depths": (2, 2, 2, 2)}
R34: dict[str, Any] = {"block": "basic", "depths": (3, 4, 6, 3)}
R50: dict[str, Any] = {"depths": (3, 4, 6, 3)}
R101: dict[str, Any] = {"depths": (3, 4, 23, 3)}
R152: dict[str, Any] = {"depths": (3, 8, 36, 3)}
R200: dict[str, Any] = {"depths": (3, 24, 36, 3)}
R269: dict[str, Any] = {"depths": (3, 30, 48, 8)}
# Stems, the shortcut that goes with them, and what else a name says.
C: dict[str, Any] = {"stem_width": 32}
D: dict[str, Any] = {"stem_width": 32, "avg_down": True}
S: dict[str, Any] = {"stem_width": 64}
T: dict[str, Any] = {"stem_width": 32, "tiered_stem": True, "avg_down": True}
RS: dict[str, Any] = {**D, "gate": "se4", "stem_pool": "conv"}
X32X4, X32X8, X32X16, X32X32, X64X4 = (
    {"groups": groups, "base_width": width} for groups, width in ((32, 4), (32, 8), (32, 16), (32, 32), (64, 4))
)
SE: dict[str, Any] = {"gate": "se"}
ECA: dict[str, Any] = {"gate": "eca"}
AA: dict[str, Any] = {"antialias": "avg"}
BLUR: dict[str, Any] = {"antialias": "blur"}

VARIANTS: dict[str, dict[str, Any]] = {
    "resnet10t": {"block": "basic", "depths": (1, 1, 1, 1), **T, "image_size": 176},
    "resnet14t": {"depths": (1, 1, 1, 1), **T, "image_size": 176},
    "resnet18": {**R18},
    "resnet18d": {**R18, **D},
    "resnet26": {**R26},
    "resnet26d": {**R26, **D},
    "resnet26t": {**R26, **T, "image_size": 256},
    "resnet34": {**R34},
    "resnet34d": {**R34, **D},
    "resnet50": {**R50},
    "resnet50c": {**R50, **C},
    "resnet50d": {**R50, **D},
    "resnet50s": {**R50, **S},
    "resnet50t": {**R50, **T},
    "resnet101": {**R101},
    "resnet101c": {**R101, **C},
    "resnet101d": {**R101, **D, "image_size": 256},
    "resnet101s": {**R101, **S},
    "resnet152": {**R152},
    "resnet152c": {**R152, **C},
    "resnet152d": {**R152, **D, "image_size": 256},
    "resnet152s": {**R152, **S},
    "resnet200": {**R200},
    "resnet200d": {**R200, **D, "image_size": 256},
    "resnet50_gn": {**R50, "norm": "group"},
    # Wide ResNet, https://arxiv.org/abs/1605.07146
    "wide_resnet50_2": {**R50, "base_width": 128},
    "wide_resnet101_2": {**R101, "base_width": 128},
    # ResNeXt, https://arxiv.org/abs/1611.05431
    "resnext50_32x4d": {**R50, **X32X4},
    "resnext50d_32x4d": {**R50, **X32X4, **D},
    "resnext101_32x4d": {**R101, **X32X4},
    "resnext101_32x8d": {**R101, **X32X8},
    "resnext101_32x16d": {**R101, **X32X16},
    "resnext101_32x32d": {**R101, **X32X32},
    "resnext101_64x4d": {**R101, **X64X4},
    # Squeeze-and-excitation, https://arxiv.org/abs/1709.01507
    "seresnet18": {**R18, **SE},
    "seresnet34": {**R34, **SE},
    "seresnet50": {**R50, **SE},
    "seresnet50t": {**R50, **T, **SE},
    "seresnet101": {**R101, **SE},
    "seresnet152": {**R152, **SE},
    "seresnet152d": {**R152, **D, **SE, "image_size": 256},
    "seresnet200d": {**R200, **D, **SE, "image_size": 256},
    "seresnet269d": {**R269, **D, **SE, "image_size": 256},
    "seresnext26d_32x4d": {**R26, **X32X4, **D, **SE},
    "seresnext26t_32x4d": {**R26, **X32X4, **T, **SE},
    "seresnext50_32x4d": {**R50, **X32X4, **SE},
    "seresnext101_32x4d": {**R101, **X32X4, **SE},
    "seresnext101_32x8d": {**R101, **X32X8, **SE},
    "seresnext101d_32x8d": {**R101, **X32X8, **D, **SE},
    "seresnext101_64x4d": {**R101, **X64X4, **SE},
    "senet154": {**R152, **X64X4, **S, **SE, "narrow_first": 2, "shortcut_kernel": 3},
    # Efficient channel attention, https://arxiv.org/abs/1910.03151
    "ecaresnet26t": {**R26, **T, **ECA, "image_size": 256},
    "ecaresnet50d": {**R50, **D, **ECA},
    "ecaresnet50d_pruned": {**R50, **D, **ECA, "kept": KEPT_50},
    "ecaresnet50t": {**R50, **T, **ECA, "image_size": 256},
    "ecaresnet101d": {**R101, **D, **ECA},
    "ecaresnet101d_pruned": {**R101, **D, **ECA, "kept": KEPT_101},
    "ecaresnet200d": {**R200, **D, **ECA, "image_size": 256},
    "ecaresnet269d": {**R269, **D, **ECA, "image_size": 320},
    "ecaresnetlight": {"depths": (1, 1, 11, 3), "avg_down": True, **ECA},
    "ecaresnext26t_32x4d": {**R26, **X32X4, **T, **ECA},
    "ecaresnext50t_32x4d": {**R50, **X32X4, **T, **ECA},
    # Antialiasing, https://arxiv.org/abs/1904.11486
    "resnetaa34d": {**R34, **D, **AA},
    "resnetaa50": {**R50, **AA},
    "resnetaa50d": {**R50, **D, **AA},
    "resnetaa101d": {**R101, **D, **AA},
    "seresnetaa50d": {**R50, **D, **SE, **AA},
    "seresnextaa101d_32x8d": {**R101, **X32X8, **D, **SE, **AA, "image_size": 288},
    "seresnextaa201d_32x8d": {"depths": (3, 24, 36, 4), **X32X8, **S, "avg_down": True, **SE, **AA, "image_size": 384},
    "resnetblur18": {**R18, **BLUR},
    "resnetblur50": {**R50, **BLUR},
    "resnetblur50d": {**R50, **D, **BLUR},
    "resnetblur101d": {**R101, **D, **BLUR},
    # ResNet-RS, https://arxiv.org/abs/2103.07579
    "resnetrs50": {**R50, **RS, "image_size": 160},
    "resnetrs101": {**R101, **RS, "image_size": 192},
    "resnetrs152": {**R152, **RS, "image_size": 256},
    "resnetrs200": {**R200, **RS, "image_size": 256},
    "resnetrs270": {"depths": (4, 29, 53, 4), **RS, "image_size": 256},
    "resnetrs350": {"depths": (4, 36, 72, 4), **RS, "image_size": 288},
    "resnetrs420": {"depths": (4, 44, 87, 4), **RS, "image_size": 320},
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
