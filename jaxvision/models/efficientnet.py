"""EfficientNet and its kin: networks of depthwise and fused convolutions, as timm's `efficientnet.py` has them.

EfficientNet (https://arxiv.org/abs/1905.11946) with its Lite and EdgeTPU forms, EfficientNetV2
(https://arxiv.org/abs/2104.00298), -X and -H (https://arxiv.org/abs/2102.05610), CondConv
(https://arxiv.org/abs/1904.04971), MixNet (https://arxiv.org/abs/1907.09595), MnasNet
(https://arxiv.org/abs/1807.11626), MobileNet V1 and V2 (https://arxiv.org/abs/1704.04861,
https://arxiv.org/abs/1801.04381), MobileNet-EdgeTPU, FBNet (https://arxiv.org/abs/1812.03443), Single-Path NAS
(https://arxiv.org/abs/1904.02877) and TinyNet (https://arxiv.org/abs/2010.14819), trained in PyTorch or ported from
TensorFlow (``tf_``). Attributes carry timm's names.

A network is a table of stages, one for all sizes, and two factors by which its widths and depths grow. Its blocks are
in `efficientnet_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.models import registry
from jaxvision.models.base import FeatureInfo, Model, check_images, feature_indices, with_options
from jaxvision.models.efficientnet_blocks import BLOCKS, Parts, Pruned, Row, Shape, Stage, plan, repeated
from jaxvision.models.layers import sizes
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import uniform, zeros
from jaxvision.models.layers.pool import GLOBAL_POOLS, check_global_pool, global_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.width import make_divisible


class EfficientNet(Model):
    """A stem, stages of blocks, a 1x1 convolution, a linear head.

    Args:
      stages: the table of stages: a `Row` each, or several.
      width: factor of every row's `features`, of the stem and of the head's convolution.
      depth: factor of every stage's repeats, or one for each stage.
      round_depth: round a stage's repeats to the nearest number; they are rounded up otherwise.
      scale_stem: whether `width` is a factor of `stem_features`.
      scale_head: whether `width` is a factor of `head_features`.
      scale_ends: whether `depth` is a factor of the first and of the last stage.
      stem_features: channels of the stem.
      stem_kernel: side of the stem's kernel.
      head_features: channels of the head's convolution; 0 for none.
      divisor: of every width but a block's inner one; see `make_divisible`.
      round_limit: of the same widths; see `make_divisible`.
      group_size: channels of a group of the spatial convolutions; None leaves them depthwise, or dense in fused blocks.
      activation: a key of `ACTIVATIONS`.
      norm: a key of `NORMS`.
      norm_group_size: channels of a group of ``"group"`` and ``"evo"``.
      gate: ``"se"``, or ``"gc"`` for `GlobalContext` in the place of squeeze-and-excitation.
      blur: blur where an image is halved, after a convolution that does not stride.
      pruned: for each stage the channels of its output, and for each of its blocks the inner and the squeezed channels,
        in the place of those that follow from `stages`.
      padding: ``"torch"``, or ``"same"`` for weights that come from TensorFlow.
      epsilon: of the norms; 1e-3 for weights that come from TensorFlow.
      global_pool: ``"avg"``, ``"max"``, ``"avgmax"`` (their mean), ``"catavgmax"`` (both), or ``""`` for none, with
        `num_classes` of 0.
      num_classes: width of the logits; 0 for pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images that the weights are for; noted, any size will do.
      dropout: rate before the head.
      drop_path: stochastic depth: block i of n is dropped with probability ``drop_path * i / n``.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters. BatchNorm statistics are float32 always.
      rngs: streams ``params`` and ``dropout``.

    Example:
      >>> model = EfficientNet(stages=(Row("ds", 1, 3, 1, 16),), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 32, 32, 3))).shape, model.forward_features(jnp.zeros((2, 32, 32, 3))).shape
      ((2, 10), (2, 16, 16, 1280))
    """

    classifier_names = ("classifier",)
    first_conv = "conv_stem"
    block_pattern = r"blocks\.\d+\.\d+\."
    # Each device computes some of a block's expanded channels, squeeze-and-excitation included. The blocks of the first
    # stage do not expand.
    tensor_rules = (
        (r"blocks\.0\.", PartitionSpec()),
        (r"blocks\.\d+\.\d+\.conv_(pw|dw|exp)\.kernel", PartitionSpec(None, None, None, "tensor")),
        (r"blocks\.\d+\.\d+\.(bn1|bn2)\.", PartitionSpec("tensor")),
        (r"blocks\.\d+\.\d+\.(conv_pwl|se\.conv_reduce)\.kernel", PartitionSpec(None, None, "tensor")),
        (r"blocks\.\d+\.\d+\.se\.conv_expand\.kernel", PartitionSpec(None, None, None, "tensor")),
        (r"blocks\.\d+\.\d+\.se\.conv_expand\.bias", PartitionSpec("tensor")),
    )
    options_unknown_to_timm = ("depth",)  # timm's depth factor is not an argument of its constructors

    def __init__(
        self,
        *,
        stages: Sequence[Stage],
        width: float = 1.0,
        depth: float | Sequence[float] = 1.0,
        round_depth: bool = False,
        scale_stem: bool = True,
        scale_head: bool = True,
        scale_ends: bool = True,
        stem_features: int = 32,
        stem_kernel: int = 3,
        head_features: int = 1280,
        divisor: int = 8,
        round_limit: float = 0.9,
        group_size: int | None = None,
        activation: str = "silu",
        norm: str = "batch",
        norm_group_size: int | None = None,
        gate: str = "se",
        blur: bool = False,
        pruned: Pruned | None = None,
        padding: str = "torch",
        epsilon: float = 1e-5,
        global_pool: str = "avg",
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_global_pool(global_pool, num_classes)
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.global_pool, self.dtype, self.param_dtype = global_pool, dtype, param_dtype
        parts = Parts(norm, norm_group_size, gate, blur, padding, epsilon, dtype, param_dtype, rngs)
        self.activation = parts.activation(activation)

        def scaled(features: int) -> int:
            return make_divisible(features * width, divisor, round_limit=round_limit)

        features = scaled(stem_features) if scale_stem else stem_features
        self.conv_stem = parts.conv(in_channels, features, stem_kernel, stride=2)
        self.bn1 = parts.norm(features)

        depths = list(depth) if isinstance(depth, Sequence) else [depth] * len(stages)
        if not scale_ends:
            depths[0] = depths[-1] = 1.0
        shapes = plan(
            [repeated(stage, factor, nearest=round_depth) for stage, factor in zip(stages, depths, strict=True)],
            features,
            scaled=scaled,
            # timm rounds halves to even for the one and up for the other.
            hidden_width=round if gate == "se" else lambda wanted: make_divisible(wanted, 1, round_limit=0.0),
            activation=activation,
            group_size=group_size,
            drop_path=drop_path,
            pruned=pruned,
        )
        self.blocks = nnx.List(
            [Sequential([BLOCKS[shape.block](parts, shape) for shape in blocks]) for blocks in shapes]
        )
        self.levels, self.feature_info = _levels(features, shapes)

        features = shapes[-1][-1].features
        head = scaled(head_features) if scale_head and head_features else head_features
        self.conv_head = parts.conv(features, head, 1) if head else None
        self.bn2 = parts.norm(head) if head else None
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.classifier = self._fresh_head(
            rngs,
            kernel_init=uniform(max(num_classes, 1) ** -0.5),
            bias_init=zeros,
        )

    def _fresh_head(self, rngs: nnx.Rngs, **inits: Any) -> Any:
        features = self.feature_info[-1].channels if self.conv_head is None else self.conv_head.kernel.shape[-1]
        self.num_features = features * GLOBAL_POOLS[self.global_pool]
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        return linear_head(self.num_features, self.num_classes, **inits, **types, rngs=rngs)

    def forward_intermediates(
        self,
        images: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the features and, for each level of `feature_info`, the last map of its resolution.

        Args:
          images: [b, h, w, in_channels], normalized.
          indices: which levels: None for all, a number for so many of the last, or a sequence of them.
          norm: without effect: each map has passed a norm.
          intermediates_only: return the maps alone.

        Returns:
          ``(forward_features(images), maps)``, or ``maps``: a list of [b, h / stride, w / stride, channels].
        """
        check_images(images, self.in_channels)
        wanted = [self.levels[i] for i in feature_indices(indices, len(self.levels))]
        x = self.activation(self.bn1(self.conv_stem(images)))
        maps = [x] if 0 in wanted else []
        for n, stage in enumerate(self.blocks, 1):
            x = self.run_blocks(f"blocks.{n - 1}", stage, x)
            if n in wanted:
                maps.append(x)
        return maps if intermediates_only else (self._end(x), maps)

    def _end(self, x: jax.Array) -> jax.Array:
        if self.conv_head is None or self.bn2 is None:
            return x
        return self.activation(self.bn2(self.conv_head(x)))

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns what the head pools, [b, h / 32, w / 32, c], of `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images, 1)[0]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or what the head sees, [b, c], if `pre_logits`."""
        x = self.drop(global_pool(features, self.global_pool))
        return x if pre_logits or self.classifier is None else self.classifier(x)

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
        self.classifier = self._fresh_head(rngs)

    def cut(self, level: int) -> None:
        """Takes away, in place, what comes after a level of `feature_info`, but for the head."""
        self.blocks = nnx.List(list(self.blocks)[: self.levels[level]])
        self.levels, self.feature_info = self.levels[: level + 1], self.feature_info[: level + 1]
        self.conv_head = self.bn2 = nnx.data(None)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns the patterns of the stem and of each block, or of each stage if `coarse`, from the image on.

        The head's convolution goes with the last of them, as in timm.
        """
        if coarse:
            groups = [rf"blocks\.{i}\." for i in range(len(self.blocks))]
        else:
            groups = [rf"blocks\.{i}\.{j}\." for i, stage in enumerate(self.blocks) for j in range(len(stage))]
        if groups:  # there are none where the model was cut behind its stem
            groups[-1] = rf"({groups[-1]}|(conv_head|bn2)\.)"
        return (r"(conv_stem|bn1)\.", *groups)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns no names: norms and biases aside, everything in an EfficientNet decays."""
        return ()


def _levels(stem: int, shapes: list[list[Shape]]) -> tuple[tuple[int, ...], tuple[FeatureInfo, ...]]:
    """Returns the stages (from 1, the stem is 0) that are the last of their resolution, and what is known of each."""
    ends, infos, stride = [], [], 2
    if shapes[0][0].reduction > 1:
        ends.append(0)
        infos.append(FeatureInfo("bn1", stem, stride))
    for n, blocks in enumerate(shapes, 1):
        stride *= blocks[0].reduction
        if n == len(shapes) or shapes[n][0].reduction > 1:
            ends.append(n)
            infos.append(FeatureInfo(f"blocks.{n - 1}", blocks[-1].features, stride))
    return tuple(ends), tuple(infos)


# --- The tables -------------------------------------------------------------------------------------------------------

# block, repeats, kernel, stride, features, expand, squeeze_excite
B_STAGES = (
    Row("ds", 1, 3, 1, 16, 1, 0.25),
    Row("ir", 2, 3, 2, 24, 6, 0.25),
    Row("ir", 2, 5, 2, 40, 6, 0.25),
    Row("ir", 3, 3, 2, 80, 6, 0.25),
    Row("ir", 3, 5, 1, 112, 6, 0.25),
    Row("ir", 4, 5, 2, 192, 6, 0.25),
    Row("ir", 1, 3, 1, 320, 6, 0.25),
)
LITE_STAGES = tuple(replace(row, squeeze_excite=0.0) for row in B_STAGES)
EDGE_STAGES = (
    Row("er", 1, 3, 1, 24, 4, shortcut=False, expand_from=24),
    Row("er", 2, 3, 2, 32, 8),
    Row("er", 4, 3, 2, 48, 8),
    Row("ir", 5, 5, 2, 96, 8),
    Row("ir", 4, 5, 1, 144, 8),
    Row("ir", 2, 5, 2, 192, 8),
)
X_STAGES = (
    replace(B_STAGES[0], space_to_depth=True),
    Row("er", 2, 3, 2, 24, 6, 0.25, activation="relu"),
    Row("er", 2, 5, 2, 40, 6, 0.25, activation="relu"),
    *B_STAGES[3:],
)
H_STAGES = (X_STAGES[0], *(replace(row, expand=4) for row in X_STAGES[1:4]), *X_STAGES[4:])

V2_B_STAGES = (
    Row("cn", 1, 3, 1, 16),
    Row("er", 2, 3, 2, 32, 4),
    Row("er", 2, 3, 2, 48, 4),
    Row("ir", 3, 3, 2, 96, 4, 0.25),
    Row("ir", 5, 3, 1, 112, 6, 0.25),
    Row("ir", 8, 3, 2, 192, 6, 0.25),
)
V2_S_STAGES = (
    Row("cn", 2, 3, 1, 24),
    Row("er", 4, 3, 2, 48, 4),
    Row("er", 4, 3, 2, 64, 4),
    Row("ir", 6, 3, 2, 128, 4, 0.25),
    Row("ir", 9, 3, 1, 160, 6, 0.25),
    Row("ir", 15, 3, 2, 256, 6, 0.25),
)
V2_RW_STAGES = (  # timm's own, before the authors' code was out
    Row("er", 2, 3, 1, 24, 1),
    *V2_S_STAGES[1:5],
    Row("ir", 15, 3, 2, 272, 6, 0.25),
)
V2_M_STAGES = (
    Row("cn", 3, 3, 1, 24),
    Row("er", 5, 3, 2, 48, 4),
    Row("er", 5, 3, 2, 80, 4),
    Row("ir", 7, 3, 2, 160, 4, 0.25),
    Row("ir", 14, 3, 1, 176, 6, 0.25),
    Row("ir", 18, 3, 2, 304, 6, 0.25),
    Row("ir", 5, 3, 1, 512, 6, 0.25),
)
V2_L_STAGES = (
    Row("cn", 4, 3, 1, 32),
    Row("er", 7, 3, 2, 64, 4),
    Row("er", 7, 3, 2, 96, 4),
    Row("ir", 10, 3, 2, 192, 4, 0.25),
    Row("ir", 19, 3, 1, 224, 6, 0.25),
    Row("ir", 25, 3, 2, 384, 6, 0.25),
    Row("ir", 7, 3, 1, 640, 6, 0.25),
)
V2_XL_STAGES = (
    Row("cn", 4, 3, 1, 32),
    Row("er", 8, 3, 2, 64, 4),
    Row("er", 8, 3, 2, 96, 4),
    Row("ir", 16, 3, 2, 192, 4, 0.25),
    Row("ir", 24, 3, 1, 256, 6, 0.25),
    Row("ir", 32, 3, 2, 512, 6, 0.25),
    Row("ir", 8, 3, 1, 640, 6, 0.25),
)

MOBILENET_V1_STAGES = (
    Row("dsa", 1, 3, 1, 64, shortcut=False),
    Row("dsa", 2, 3, 2, 128, shortcut=False),
    Row("dsa", 2, 3, 2, 256, shortcut=False),
    Row("dsa", 6, 3, 2, 512, shortcut=False),
    Row("dsa", 2, 3, 2, 1024, shortcut=False),
)
MOBILENET_V2_STAGES = (
    Row("ds", 1, 3, 1, 16),
    Row("ir", 2, 3, 2, 24, 6),
    Row("ir", 3, 3, 2, 32, 6),
    Row("ir", 4, 3, 2, 64, 6),
    Row("ir", 3, 3, 1, 96, 6),
    Row("ir", 3, 3, 2, 160, 6),
    Row("ir", 1, 3, 1, 320, 6),
)
MNASNET_STAGES = (  # B1 of the paper
    Row("ds", 1, 3, 1, 16, shortcut=False),
    Row("ir", 3, 3, 2, 24, 3),
    Row("ir", 3, 5, 2, 40, 3),
    Row("ir", 3, 5, 2, 80, 6),
    Row("ir", 2, 3, 1, 96, 6),
    Row("ir", 4, 5, 2, 192, 6),
    Row("ir", 1, 3, 1, 320, 6, shortcut=False),
)
SEMNASNET_STAGES = (  # A1 of the paper
    Row("ds", 1, 3, 1, 16, shortcut=False),
    Row("ir", 2, 3, 2, 24, 6),
    Row("ir", 3, 5, 2, 40, 3, 0.25),
    Row("ir", 4, 3, 2, 80, 6),
    Row("ir", 2, 3, 1, 112, 6, 0.25),
    Row("ir", 3, 5, 2, 160, 6, 0.25),
    Row("ir", 1, 3, 1, 320, 6),
)
MNASNET_SMALL_STAGES = (
    Row("ds", 1, 3, 1, 8),
    Row("ir", 1, 3, 2, 16, 3),
    Row("ir", 2, 3, 2, 16, 6),
    Row("ir", 4, 5, 2, 32, 6, 0.25),
    Row("ir", 3, 3, 1, 32, 6, 0.25),
    Row("ir", 3, 5, 2, 88, 6, 0.25),
    Row("ir", 1, 3, 1, 144, 6),
)
FBNET_STAGES = (
    Row("ir", 1, 3, 1, 16),
    (Row("ir", 1, 3, 2, 24, 6), Row("ir", 2, 3, 1, 24)),
    (Row("ir", 1, 5, 2, 32, 6), Row("ir", 1, 5, 1, 32, 3), Row("ir", 1, 5, 1, 32, 6), Row("ir", 1, 3, 1, 32, 6)),
    (Row("ir", 1, 5, 2, 64, 6), Row("ir", 1, 5, 1, 64, 3), Row("ir", 2, 5, 1, 64, 6)),
    (Row("ir", 3, 5, 1, 112, 6), Row("ir", 1, 5, 1, 112, 3)),
    Row("ir", 4, 5, 2, 184, 6),
    Row("ir", 1, 3, 1, 352, 6),
)
SPNASNET_STAGES = (
    Row("ds", 1, 3, 1, 16, shortcut=False),
    Row("ir", 3, 3, 2, 24, 3),
    (Row("ir", 1, 5, 2, 40, 6), Row("ir", 3, 3, 1, 40, 3)),
    (Row("ir", 1, 5, 2, 80, 6), Row("ir", 3, 3, 1, 80, 3)),
    (Row("ir", 1, 5, 1, 96, 6), Row("ir", 3, 5, 1, 96, 3)),
    Row("ir", 4, 5, 2, 192, 6),
    Row("ir", 1, 3, 1, 320, 6, shortcut=False),
)


def _mix(repeats: int, kernel: int | tuple[int, ...], *numbers: Any, splits: tuple[int, int] = (1, 1)) -> Row:
    return replace(Row("ir", repeats, kernel, *numbers), activation="silu", splits=splits)


MIXNET_S_STAGES = (
    Row("ds", 1, 3, 1, 16),
    (Row("ir", 1, 3, 2, 24, 6, splits=(2, 2)), Row("ir", 1, 3, 1, 24, 3, splits=(2, 2))),
    (_mix(1, (3, 5, 7), 2, 40, 6, 0.5), _mix(3, (3, 5), 1, 40, 6, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7), 2, 80, 6, 0.25, splits=(1, 2)), _mix(2, (3, 5), 1, 80, 6, 0.25, splits=(1, 2))),
    (_mix(1, (3, 5, 7), 1, 120, 6, 0.5, splits=(2, 2)), _mix(2, (3, 5, 7, 9), 1, 120, 3, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7, 9, 11), 2, 200, 6, 0.5), _mix(2, (3, 5, 7, 9), 1, 200, 6, 0.5, splits=(1, 2))),
)
MIXNET_M_STAGES = (
    Row("ds", 1, 3, 1, 24),
    (Row("ir", 1, (3, 5, 7), 2, 32, 6, splits=(2, 2)), Row("ir", 1, 3, 1, 32, 3, splits=(2, 2))),
    (_mix(1, (3, 5, 7, 9), 2, 40, 6, 0.5), _mix(3, (3, 5), 1, 40, 6, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7), 2, 80, 6, 0.25), _mix(3, (3, 5, 7, 9), 1, 80, 6, 0.25, splits=(2, 2))),
    (_mix(1, 3, 1, 120, 6, 0.5), _mix(3, (3, 5, 7, 9), 1, 120, 3, 0.5, splits=(2, 2))),
    (_mix(1, (3, 5, 7, 9), 2, 200, 6, 0.5), _mix(3, (3, 5, 7, 9), 1, 200, 6, 0.5, splits=(1, 2))),
)
EDGETPU_V1_STAGES = (
    Row("cn", 1, 1, 1, 16, shortcut=False),
    (Row("er", 1, 3, 2, 32, 8), Row("er", 3, 3, 1, 32, 4)),
    (Row("er", 1, 3, 2, 48, 8), Row("er", 3, 3, 1, 48, 4)),
    (Row("ir", 1, 3, 2, 96, 8), Row("ir", 3, 3, 1, 96, 4)),
    (Row("ir", 1, 3, 1, 96, 8, shortcut=False), Row("ir", 3, 3, 1, 96, 4)),
    (Row("ir", 1, 5, 2, 160, 8), Row("ir", 3, 5, 1, 160, 4)),
    Row("ir", 1, 3, 1, 192, 8),
)
TEST_STAGES = (
    Row("cn", 1, 3, 1, 16),
    Row("er", 1, 3, 2, 24, 4),
    Row("er", 1, 3, 2, 32, 4),
    Row("ir", 1, 3, 2, 48, 4, 0.25),
    Row("ir", 1, 3, 2, 64, 4, 0.25),
)


def _cond_conv(experts: int) -> tuple[Row, ...]:
    return (*B_STAGES[:4], *(replace(row, block="cc", experts=experts) for row in B_STAGES[4:]))


def _edgetpu_v2(features: Sequence[int], group_size: int = 64) -> tuple[Stage, ...]:
    a, b, c, d, e, f, g = features
    return (
        Row("cn", 1, 1, 1, a, shortcut=False),
        (Row("er", 1, 3, 2, b, 8), Row("er", 1, 3, 1, b, 4, group_size=group_size)),
        (
            Row("er", 1, 3, 2, c, 8),
            Row("er", 1, 3, 1, c, 4, group_size=group_size),
            Row("er", 1, 3, 1, c, 4),
            Row("er", 1, 3, 1, c, 4, group_size=group_size),
        ),
        (Row("er", 1, 3, 2, d, 8), Row("ir", 3, 3, 1, d, 4)),
        (Row("ir", 1, 3, 1, e, 8), Row("ir", 3, 3, 1, e, 4)),
        (Row("ir", 1, 3, 2, f, 8), Row("ir", 3, 3, 1, f, 4)),
        Row("ir", 1, 3, 1, g, 8),
    )


# What pruning left of B1 to B3 (Aflalo et al., "Knapsack Pruning with Inner Distillation",
# https://arxiv.org/abs/2002.08258): for each stage the output's channels, then each block's inner and squeezed ones.
PRUNED_B1 = (
    (16, (32, 16), (8, 4)),
    (12, (48, 62, 48), (4, 6, 6)),
    (35, (70, 61, 51), (6, 10, 10)),
    (74, (175, 188, 137, 164), (10, 20, 20, 20)),
    (67, (399, 201, 160, 213), (20, 28, 28, 28)),
    (192, (637, 806, 798, 891, 990), (27, 48, 48, 48, 48)),
    (320, (1152, 1912), (48, 80)),
)
PRUNED_B2 = (
    (16, (32, 16), (8, 4)),
    (17, (54, 69, 61), (4, 6, 6)),
    (42, (86, 72, 98), (6, 12, 12)),
    (85, (245, 274, 254, 292), (12, 22, 22, 22)),
    (116, (502, 315, 354, 443), (22, 30, 30, 30)),
    (208, (719, 1148, 1160, 1182, 1228), (30, 52, 52, 52, 52)),
    (352, (1248, 2112), (52, 88)),
)
PRUNED_B3 = (
    (24, (40, 24), (10, 6)),
    (12, (27, 49, 48), (6, 8, 8)),
    (40, (83, 90, 85), (8, 12, 12)),
    (93, (215, 261, 219, 254, 236), (12, 24, 24, 24, 24)),
    (120, (480, 235, 217, 226, 340), (24, 34, 34, 33, 34)),
    (232, (802, 1030, 924, 1016, 1130, 1266), (34, 58, 58, 58, 58, 58)),
    (384, (1392, 2301), (58, 96)),
)

TF: dict[str, Any] = {"padding": "same", "epsilon": 1e-3}  # ported from TensorFlow: its padding, its norm
FIXED: dict[str, Any] = {"scale_stem": False, "scale_head": False, "scale_ends": False}
GROUP_NORM: dict[str, Any] = {"norm": "group", "norm_group_size": 8}

B: dict[str, Any] = {"stages": B_STAGES}
B1, B2, B3, B4, B5, B6, B7, B8, L2 = (
    {"width": width, "depth": depth}
    for width, depth in [
        (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2.0, 3.1), (2.2, 3.6), (4.3, 5.3)
    ]
)  # fmt: skip
LITE: dict[str, Any] = {"stages": LITE_STAGES, **FIXED, "activation": "relu6"}
EDGE: dict[str, Any] = {"stages": EDGE_STAGES, "activation": "relu"}
EDGE_EM, EDGE_EL = {"depth": 1.1}, {"width": 1.2, "depth": 1.4}
CC_4, CC_8 = {"stages": _cond_conv(4)}, {"stages": _cond_conv(8)}
V2_B: dict[str, Any] = {"stages": V2_B_STAGES, "round_limit": 0.0}
V2_S: dict[str, Any] = {"stages": V2_S_STAGES, "stem_features": 24}
V2_M: dict[str, Any] = {"stages": V2_M_STAGES, "stem_features": 24}
V2_L: dict[str, Any] = {"stages": V2_L_STAGES}
V2_XL: dict[str, Any] = {"stages": V2_XL_STAGES}
V2_RW: dict[str, Any] = {"stages": V2_RW_STAGES, "stem_features": 24, "head_features": 1792}
V2_T: dict[str, Any] = {**V2_S, "width": 0.8, "depth": 0.9}
MNASNET: dict[str, Any] = {"stages": MNASNET_STAGES, "scale_head": False, "activation": "relu"}
SEMNASNET: dict[str, Any] = {**MNASNET, "stages": SEMNASNET_STAGES}
MOBILENET_V1: dict[str, Any] = {"stages": MOBILENET_V1_STAGES, "head_features": 0, "activation": "relu6"}
MOBILENET_V2: dict[str, Any] = {"stages": MOBILENET_V2_STAGES, "scale_head": False, "activation": "relu6"}
MIXNET: dict[str, Any] = {"head_features": 1536, "scale_head": False, "activation": "relu"}
MIXNET_S: dict[str, Any] = {**MIXNET, "stages": MIXNET_S_STAGES, "stem_features": 16}
MIXNET_M: dict[str, Any] = {**MIXNET, "stages": MIXNET_M_STAGES, "stem_features": 24, "round_depth": True}
TINYNET: dict[str, Any] = {**B, "scale_stem": False, "scale_head": False, "round_depth": True}
EDGETPU: dict[str, Any] = {"activation": "relu"}
TEST: dict[str, Any] = {
    "stages": TEST_STAGES, "stem_features": 24, "head_features": 256, "round_limit": 0.0, "image_size": 160
}  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {**B},
    "efficientnet_b1": {**B, **B1, "image_size": 240},
    "efficientnet_b2": {**B, **B2, "image_size": 256},
    "efficientnet_b3": {**B, **B3, "image_size": 288},
    "efficientnet_b4": {**B, **B4, "image_size": 320},
    "efficientnet_b5": {**B, **B5, "image_size": 448},
    "efficientnet_b6": {**B, **B6, "image_size": 528},
    "efficientnet_b7": {**B, **B7, "image_size": 600},
    "efficientnet_b8": {**B, **B8, "image_size": 672},
    "efficientnet_l2": {**B, **L2, "image_size": 800},
    "tf_efficientnet_b0": {**B, **TF},
    "tf_efficientnet_b1": {**B, **B1, **TF, "image_size": 240},
    "tf_efficientnet_b2": {**B, **B2, **TF, "image_size": 260},
    "tf_efficientnet_b3": {**B, **B3, **TF, "image_size": 300},
    "tf_efficientnet_b4": {**B, **B4, **TF, "image_size": 380},
    "tf_efficientnet_b5": {**B, **B5, **TF, "image_size": 456},
    "tf_efficientnet_b6": {**B, **B6, **TF, "image_size": 528},
    "tf_efficientnet_b7": {**B, **B7, **TF, "image_size": 600},
    "tf_efficientnet_b8": {**B, **B8, **TF, "image_size": 672},
    "tf_efficientnet_l2": {**B, **L2, **TF, "image_size": 475},
    "efficientnet_b1_pruned": {**B, **B1, **TF, "pruned": PRUNED_B1, "image_size": 240},
    "efficientnet_b2_pruned": {**B, **B2, **TF, "pruned": PRUNED_B2, "image_size": 260},
    "efficientnet_b3_pruned": {**B, **B3, **TF, "pruned": PRUNED_B3, "image_size": 300},
    # Experiments with norms, groups and blurring.
    "efficientnet_b0_gn": {**B, **GROUP_NORM},
    "efficientnet_b0_g8_gn": {**B, **GROUP_NORM, "group_size": 8},
    "efficientnet_b0_g16_evos": {**B, "group_size": 16, "divisor": 16},  # a BatchNorm in spite of its name
    "efficientnet_b3_gn": {**B, **B3, **GROUP_NORM, "norm_group_size": 16, "divisor": 16, "image_size": 288},
    "efficientnet_b3_g8_gn": {
        **B,
        **B3,
        **GROUP_NORM,
        "norm_group_size": 16,
        "group_size": 8,
        "divisor": 16,
        "image_size": 288,
    },
    "efficientnet_blur_b0": {**B, "blur": True},
    # Lite
    "efficientnet_lite0": {**LITE},
    "efficientnet_lite1": {**LITE, **B1, "image_size": 240},
    "efficientnet_lite2": {**LITE, **B2, "image_size": 260},
    "efficientnet_lite3": {**LITE, **B3, "image_size": 300},
    "efficientnet_lite4": {**LITE, **B4, "image_size": 380},
    "tf_efficientnet_lite0": {**LITE, **TF},
    "tf_efficientnet_lite1": {**LITE, **B1, **TF, "image_size": 240},
    "tf_efficientnet_lite2": {**LITE, **B2, **TF, "image_size": 260},
    "tf_efficientnet_lite3": {**LITE, **B3, **TF, "image_size": 300},
    "tf_efficientnet_lite4": {**LITE, **B4, **TF, "image_size": 380},
    # EdgeTPU; the pruned ones have zeros among their weights, and the shapes of the others.
    "efficientnet_es": {**EDGE},
    "efficientnet_es_pruned": {**EDGE},
    "efficientnet_em": {**EDGE, **EDGE_EM, "image_size": 240},
    "efficientnet_el": {**EDGE, **EDGE_EL, "image_size": 300},
    "efficientnet_el_pruned": {**EDGE, **EDGE_EL, "image_size": 300},
    "tf_efficientnet_es": {**EDGE, **TF},
    "tf_efficientnet_em": {**EDGE, **EDGE_EM, **TF, "image_size": 240},
    "tf_efficientnet_el": {**EDGE, **EDGE_EL, **TF, "image_size": 300},
    # CondConv
    "efficientnet_cc_b0_4e": {**CC_4},
    "efficientnet_cc_b0_8e": {**CC_8},
    "efficientnet_cc_b1_8e": {**CC_8, **B1, "image_size": 240},
    "tf_efficientnet_cc_b0_4e": {**CC_4, **TF},
    "tf_efficientnet_cc_b0_8e": {**CC_8, **TF},
    "tf_efficientnet_cc_b1_8e": {**CC_8, **B1, **TF, "image_size": 240},
    # X and H
    "efficientnet_x_b3": {"stages": X_STAGES, **B3, "image_size": 288},
    "efficientnet_x_b5": {"stages": X_STAGES, **B5, "image_size": 448},
    "efficientnet_h_b5": {"stages": H_STAGES, "width": 1.92, "depth": 2.2, "image_size": 448},
    # V2
    "efficientnetv2_s": {**V2_S, "image_size": 288},
    "efficientnetv2_m": {**V2_M, "image_size": 320},
    "efficientnetv2_l": {**V2_L, "image_size": 384},
    "efficientnetv2_xl": {**V2_XL, "image_size": 384},
    "efficientnetv2_rw_t": {**V2_T},
    "gc_efficientnetv2_rw_t": {**V2_T, "gate": "gc"},
    "efficientnetv2_rw_s": {**V2_RW, "image_size": 288},
    "efficientnetv2_rw_m": {**V2_RW, "width": 1.2, "depth": (1.2, 1.2, 1.2, 1.2, 1.6, 1.6), "image_size": 320},
    "tf_efficientnetv2_s": {**V2_S, **TF, "image_size": 300},
    "tf_efficientnetv2_m": {**V2_M, **TF, "image_size": 384},
    "tf_efficientnetv2_l": {**V2_L, **TF, "image_size": 384},
    "tf_efficientnetv2_xl": {**V2_XL, **TF, "image_size": 384},
    "tf_efficientnetv2_b0": {**V2_B, **TF, "image_size": 192},
    "tf_efficientnetv2_b1": {**V2_B, **B1, **TF, "image_size": 192},
    "tf_efficientnetv2_b2": {**V2_B, **B2, **TF, "image_size": 208},
    "tf_efficientnetv2_b3": {**V2_B, **B3, **TF, "image_size": 240},
    # MobileNet
    "mobilenetv1_100": {**MOBILENET_V1},
    "mobilenetv1_100h": {**MOBILENET_V1, "head_features": 1024},
    "mobilenetv1_125": {**MOBILENET_V1, "width": 1.25},
    "mobilenetv2_035": {**MOBILENET_V2, "width": 0.35},
    "mobilenetv2_050": {**MOBILENET_V2, "width": 0.5},
    "mobilenetv2_075": {**MOBILENET_V2, "width": 0.75},
    "mobilenetv2_100": {**MOBILENET_V2},
    "mobilenetv2_140": {**MOBILENET_V2, "width": 1.4, "scale_head": True},
    "mobilenetv2_110d": {**MOBILENET_V2, **FIXED, "width": 1.1, "depth": 1.2},
    "mobilenetv2_120d": {**MOBILENET_V2, **FIXED, "width": 1.2, "depth": 1.4},
    "mobilenet_edgetpu_100": {**EDGETPU, "stages": EDGETPU_V1_STAGES},
    "mobilenet_edgetpu_v2_xs": {**EDGETPU, "stages": _edgetpu_v2((16, 32, 48, 96, 144, 160, 192))},
    "mobilenet_edgetpu_v2_s": {
        **EDGETPU,
        "stages": _edgetpu_v2((24, 48, 64, 128, 160, 192, 256)),
        "stem_features": 64,
        "stem_kernel": 5,
    },
    "mobilenet_edgetpu_v2_m": {
        **EDGETPU,
        "stages": _edgetpu_v2((32, 64, 80, 160, 192, 240, 320)),
        "stem_features": 64,
        "stem_kernel": 5,
        "head_features": 1344,
    },
    "mobilenet_edgetpu_v2_l": {
        **EDGETPU,
        "stages": _edgetpu_v2((32, 64, 96, 192, 240, 256, 384), 128),
        "stem_features": 64,
        "stem_kernel": 7,
        "head_features": 1408,
    },
    # Networks that were searched for
    "mnasnet_050": {**MNASNET, "width": 0.5},
    "mnasnet_075": {**MNASNET, "width": 0.75},
    "mnasnet_100": {**MNASNET},
    "mnasnet_140": {**MNASNET, "width": 1.4},
    "semnasnet_050": {**SEMNASNET, "width": 0.5},
    "semnasnet_075": {**SEMNASNET, "width": 0.75},
    "semnasnet_100": {**SEMNASNET},
    "semnasnet_140": {**SEMNASNET, "width": 1.4},
    "mnasnet_small": {**MNASNET, "stages": MNASNET_SMALL_STAGES, "stem_features": 8},
    # timm has this epsilon only when it is asked for the weights, which were trained with it.
    "fbnetc_100": {
        "stages": FBNET_STAGES,
        "stem_features": 16,
        "head_features": 1984,
        "activation": "relu",
        "epsilon": 1e-3,
    },
    "spnasnet_100": {**MNASNET, "stages": SPNASNET_STAGES},
    "mixnet_s": {**MIXNET_S},
    "mixnet_m": {**MIXNET_M},
    "mixnet_l": {**MIXNET_M, "width": 1.3},
    "mixnet_xl": {**MIXNET_M, "width": 1.6, "depth": 1.2},
    "mixnet_xxl": {**MIXNET_M, "width": 2.4, "depth": 1.3},
    "tf_mixnet_s": {**MIXNET_S, **TF},
    "tf_mixnet_m": {**MIXNET_M, **TF},
    "tf_mixnet_l": {**MIXNET_M, **TF, "width": 1.3},
    "tinynet_a": {**TINYNET, "width": 1.0, "depth": 1.2, "image_size": 192},
    "tinynet_b": {**TINYNET, "width": 0.75, "depth": 1.1, "image_size": 188},
    "tinynet_c": {**TINYNET, "width": 0.54, "depth": 0.85, "image_size": 184},
    "tinynet_d": {**TINYNET, "width": 0.54, "depth": 0.695, "image_size": 152},
    "tinynet_e": {**TINYNET, "width": 0.51, "depth": 0.6, "image_size": 106},
    # timm's own tiny models, with one of everything; for tests.
    "test_efficientnet": {**TEST},
    "test_efficientnet_gn": {**TEST, **GROUP_NORM},
    "test_efficientnet_ln": {**TEST, "norm": "layer"},
    "test_efficientnet_evos": {**TEST, "norm": "evo", "norm_group_size": 8},
}

registry.register("efficientnet", EfficientNet, VARIANTS)
