"""EfficientNet and its relatives: the networks of timm's `efficientnet.py`.

EfficientNet (https://arxiv.org/abs/1905.11946) with its Lite and EdgeTPU forms, EfficientNetV2
(https://arxiv.org/abs/2104.00298), -X and -H (https://arxiv.org/abs/2102.05610), CondConv
(https://arxiv.org/abs/1904.04971), MixNet (https://arxiv.org/abs/1907.09595), MnasNet
(https://arxiv.org/abs/1807.11626), MobileNet V1 and V2 (https://arxiv.org/abs/1704.04861,
https://arxiv.org/abs/1801.04381), MobileNet-EdgeTPU, FBNet (https://arxiv.org/abs/1812.03443), Single-Path NAS
(https://arxiv.org/abs/1904.02877) and TinyNet (https://arxiv.org/abs/2010.14819), trained in PyTorch or ported from
TensorFlow (``tf_``). Attributes have timm's names.

A network is defined by a table of stages, which all sizes of a family share, and by factors of its width and depth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.models.base import FeatureInfo, Model, feature_indices, with_options
from jaxvision.models.efficientnet_blocks import BLOCKS, Parts
from jaxvision.models.efficientnet_plan import Pruned, Shape, Stage, plan_blocks, repeat_rows
from jaxvision.models.layers import sizes
from jaxvision.models.layers.frozen import replace_layer
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import uniform, zeros
from jaxvision.models.layers.pool import GLOBAL_POOLS, check_global_pool, global_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.width import make_divisible


class EfficientNet(Model):
    """EfficientNet: a stem, stages of blocks, a 1x1 convolution and a linear head.

    Args:
      stages: table of stages, each a `Row` or a tuple of several rows.
      width: factor of the channels of all rows, of the stem and of the head's convolution.
      depth: factor of the number of blocks of all stages, or a sequence with one factor for each stage.
      round_depth: round the number of blocks to the nearest integer instead of up.
      scale_stem: whether `width` applies to `stem_features`.
      scale_head: whether `width` applies to `head_features`.
      scale_ends: whether `depth` applies to the first and the last stage.
      stem_features: channels of the stem.
      stem_kernel: side of the stem's kernel.
      head_features: channels of the head's convolution; 0 for none.
      divisor: all channel counts except those inside a block are multiples of it; see `make_divisible`.
      round_limit: limit for rounding the same channel counts down; see `make_divisible`.
      group_size: channels per group of the spatial convolutions. None: depthwise, or dense in fused blocks.
      activation: ``"silu"``, ``"relu"`` or ``"relu6"``.
      norm: ``"batch"``, ``"group"``, ``"layer"`` or ``"evo"``.
      norm_group_size: channels per group of ``"group"`` and ``"evo"``.
      gate: ``"se"`` for squeeze-and-excitation, ``"gc"`` for `GlobalContext`.
      blur: whether to downsample with a blur after the convolution instead of a strided convolution.
      pruned: channel counts of a pruned network, which replace those derived from `stages`. For each stage: the
        channels of its output, then the inner and squeezed channels of each of its blocks.
      padding: ``"torch"``, or ``"same"`` for weights ported from TensorFlow.
      epsilon: added to the variance in norms; 1e-3 for weights ported from TensorFlow.
      global_pool: ``"avg"``, ``"max"``, ``"avgmax"`` (their mean), ``"catavgmax"`` (both), or ``""`` for none, which
        needs `num_classes` of 0.
      num_classes: width of the logits; 0 to return pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images for which the weights were trained. Informative only: the model accepts any size.
      dropout: dropout rate before the head.
      drop_path: stochastic depth rate. That of block i of n, counted from 0, is ``drop_path * i / n``.
      dtype: dtype of the computation; None for the promoted dtype of images and parameters.
      param_dtype: dtype of the parameters. BatchNorm statistics are always float32.
      rngs: streams ``params`` and ``dropout``.

    Example:
      >>> from jaxvision.models.efficientnet_plan import Row
      >>> model = EfficientNet(stages=(Row("ds", 1, 3, 1, 16),), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 32, 32, 3))).shape, model.forward_features(jnp.zeros((2, 32, 32, 3))).shape
      ((2, 10), (2, 16, 16, 1280))
    """

    classifier_names = ("classifier",)
    first_conv = "conv_stem"
    block_pattern = r"blocks\.\d+\.\d+\."
    # Each device computes some of a block's expanded channels, including their squeeze-and-excitation. The blocks of
    # the first stage do not expand.
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
        shapes = plan_blocks(
            [repeat_rows(stage, factor, nearest=round_depth) for stage, factor in zip(stages, depths, strict=True)],
            features,
            scaled=scaled,
            # timm rounds halves to even for "se" and up for "gc".
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
        self.classifier = self._new_head(
            rngs,
            kernel_init=uniform(max(num_classes, 1) ** -0.5),
            bias_init=zeros,
        )

    def _new_head(self, rngs: nnx.Rngs, **inits: Any) -> Any:
        """Sets `num_features` and returns a new classifier."""
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
        """Returns the features and, for each level of `feature_info`, the last map at its resolution.

        Args:
          images: float [b, h, w, in_channels], normalized.
          indices: None for all levels, a number n for the last n, or positions in `feature_info`.
          norm: no effect, because every map is the output of a norm.
          intermediates_only: return the list of maps only.

        Returns:
          ``(forward_features(images), maps)``, or ``maps``: a list of [b, h / stride, w / stride, channels].

        Raises:
          UserError: a level does not exist, or the images do not fit the model.
        """
        sizes.check_images(images, self.in_channels)
        wanted = [self.levels[i] for i in feature_indices(indices, len(self.levels))]
        x = self.activation(self.bn1(self.conv_stem(images)))
        maps = [x] if 0 in wanted else []
        for n, stage in enumerate(self.blocks, 1):
            x = self.run_blocks(f"blocks.{n - 1}", stage, x)
            if n in wanted:
                maps.append(x)
        return maps if intermediates_only else (self._apply_head_conv(x), maps)

    def _apply_head_conv(self, x: jax.Array) -> jax.Array:
        if self.conv_head is None or self.bn2 is None:
            return x
        return self.activation(self.bn2(self.conv_head(x)))

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the last feature map [b, h / 32, w / 32, c] of normalized `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images, 1)[0]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or the pooled features [b, c] if `pre_logits`."""
        x = self.drop(global_pool(features, self.global_pool))
        return x if pre_logits or self.classifier is None else self.classifier(x)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Replaces the head by a newly initialized one; see `Model.reset_classifier`."""
        sizes.require_int("num_classes", num_classes, 0)
        pool = self.global_pool if global_pool is None else global_pool
        check_global_pool(pool, num_classes)
        if global_pool is not None:
            self.global_pool, self.options = pool, with_options(self, global_pool=pool)
        self.num_classes = num_classes
        replace_layer(self, "classifier", self._new_head(rngs))

    def cut(self, level: int) -> None:
        """Removes, in place, the layers after a level of `feature_info`, except the head."""
        self.blocks = nnx.List(list(self.blocks)[: self.levels[level]])
        self.levels, self.feature_info = self.levels[: level + 1], self.feature_info[: level + 1]
        self.conv_head = self.bn2 = nnx.data(None)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns patterns of parameter names in forward order: the stem, then each block (each stage if `coarse`).

        As in timm, the head's convolution belongs to the last group.
        """
        if coarse:
            groups = [rf"blocks\.{i}\." for i in range(len(self.blocks))]
        else:
            groups = [rf"blocks\.{i}\.{j}\." for i, stage in enumerate(self.blocks) for j in range(len(stage))]
        if groups:  # a model that was cut after its stem has none
            groups[-1] = rf"({groups[-1]}|(conv_head|bn2)\.)"
        return (r"(conv_stem|bn1)\.", *groups)


def _levels(stem: int, shapes: list[list[Shape]]) -> tuple[tuple[int, ...], tuple[FeatureInfo, ...]]:
    """Returns the last stage at each resolution (the stem is stage 0), and the `FeatureInfo` of each."""
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
