"""ResNet and its relatives: Wide ResNet, ResNeXt, SENet, ECA-Net, ResNet-D, ResNet-RS; antialiased and pruned variants.

He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, with the stride on the 3x3
convolution of a bottleneck ("v1.5"). Attributes have timm's names.

The letter at the end of a name stands for a stem of He et al., "Bag of Tricks for Image Classification with
Convolutional Neural Networks", https://arxiv.org/abs/1812.01187. ``c``, ``s``, ``d`` and ``t`` replace the 7x7
convolution with three 3x3 convolutions. ``d`` and ``t`` also pool in the shortcut, and the first convolution of ``t``
is narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import FeatureInfo, Model, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.frozen import replace_layer
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.pool import GLOBAL_POOLS, check_global_pool, global_pool, max_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.resnet_blocks import ANTIALIASES, BLOCKS, GATES, NORMS, Parts

Kept = Sequence[tuple[int, Sequence[tuple[int, int]]]]


class ResNet(Model):
    """ResNet: a stem, stages of residual blocks and a linear head.

    Args:
      depths: number of blocks in each stage.
      block: ``"basic"`` or ``"bottleneck"``, or a sequence with one of them for each stage.
      widths: width of each stage's blocks. The output of a bottleneck is four times as wide.
      stem_width: None for one 7x7 convolution with 64 channels; n for three 3x3 convolutions with n, n and 2 n channels
        (ResNet-D).
      tiered_stem: whether the first of these three convolutions has only 3/4 n channels.
      stem_pool: layer that halves the stem's output: ``"max"`` for a max pool, ``"conv"`` for a strided 3x3 convolution
        (ResNet-RS).
      groups: number of groups of a bottleneck's 3x3 convolution (ResNeXt).
      base_width: channels per group where `widths` is 64; 64 in a plain ResNet.
      gate: layer that scales the channels of each branch: ``"se"``, ``"se4"`` with a wider hidden layer, ``"eca"``, or
        None.
      avg_down: whether a shortcut that changes the shape is an average pool and a 1x1 convolution (ResNet-D) instead of
        a strided 1x1 convolution.
      antialias: downsampling that replaces strides: ``"avg"``, ``"blur"``, or None.
      norm: ``"batch"`` or ``"group"``.
      narrow_first: divisor of the width of a block's first convolution (SENet-154: 2).
      shortcut_kernel: side of the kernel of a strided convolution in a shortcut (SENet-154: 3).
      kept: channel counts of a pruned network. For each stage: the channels of its output, then for each of its blocks
        the channels after the first and the second convolution.
      num_classes: width of the logits; 0 to return pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images for which the weights were trained. Informative only: the model accepts any size.
      global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for none; see `layers.pool`.
      dropout: dropout rate before the head.
      drop_path: stochastic depth rate of the last block. It increases linearly from 0 at the first block.
      dtype: dtype of the computation; None for the promoted dtype of images and parameters.
      param_dtype: dtype of the parameters. BatchNorm statistics are always float32.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: an argument has an unknown value or contradicts another one.

    Example:
      >>> model = ResNet(depths=(1, 1, 1, 1), block="basic", num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 64, 64, 3))).shape, model.num_features
      ((2, 10), 512)
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
        kept: Kept | None = None,
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
        blocks = [block] * len(depths) if isinstance(block, str) else list(block)
        _check_stages(depths, blocks, widths, kept)
        if stem_width is not None:
            sizes.require_int("stem_width", stem_width, 1)
        _check_choice("norm", norm, NORMS)
        _check_choice("gate", gate, [None, *GATES])
        _check_choice("antialias", antialias, [None, *ANTIALIASES])
        _check_choice("stem_pool", stem_pool, ["max", "conv"])
        check_global_pool(global_pool, num_classes)
        if "basic" in blocks and (groups, base_width) != (1, 64):
            raise UserError("groups, base_width: a basic block does not have them. Set block='bottleneck'.")

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
        stem_features = self._add_stem(parts, stem_width, tiered=tiered_stem, pool=stem_pool)
        self.feature_info = (
            FeatureInfo("act1", stem_features, 2),
            *self._add_stages(parts, stem_features, depths, blocks, widths, kept, drop_path),
        )
        features = self.feature_info[-1].channels
        self.num_features = features * GLOBAL_POOLS[global_pool]
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.fc = linear_head(self.num_features, num_classes, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def _add_stem(self, parts: Parts, width: int | None, *, tiered: bool, pool: str) -> int:
        """Adds the layers before the first stage. Returns their number of output channels."""
        self.conv1: nnx.Module
        if width is None:
            self.first_conv, features = "conv1", 64
            self.conv1 = parts.conv(self.in_channels, features, 7, stride=2)
        else:
            self.first_conv, features = "conv1.0", 2 * width
            first = 3 * (width // 4) if tiered else width
            self.conv1 = Sequential(
                [
                    parts.conv(self.in_channels, first, 3, stride=2),
                    parts.norm(first),
                    jax.nn.relu,
                    parts.conv(first, width, 3),
                    parts.norm(width),
                    jax.nn.relu,
                    parts.conv(width, features, 3),
                ]
            )
        self.bn1 = parts.norm(features)
        if pool == "conv":
            halve = [] if parts.antialias is None else [ANTIALIASES[parts.antialias][1]]
            conv = parts.conv(features, features, 3, stride=1 if halve else 2)
            self.maxpool = Sequential([conv, *halve, parts.norm(features), jax.nn.relu])
        else:
            self.maxpool = Sequential([max_pool] if parts.antialias is None else ANTIALIASES[parts.antialias][0])
        return features

    def _add_stages(
        self,
        parts: Parts,
        features: int,
        depths: Sequence[int],
        blocks: Sequence[str],
        widths: Sequence[int],
        kept: Kept | None,
        drop_path: float,
    ) -> list[FeatureInfo]:
        """Adds ``layer1``, ``layer2`` and so on, timm's names of the stages. Returns their levels of features."""
        levels = []
        rates = iter(drop.rates(drop_path, sum(depths)))
        for i, (name, depth, width) in enumerate(zip(blocks, depths, widths, strict=False)):
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
            setattr(self, f"layer{i + 1}", stage)
            levels.append(FeatureInfo(f"layer{i + 1}", features, 4 * 2**i))
        return levels

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
        """Returns the features, and the maps of the stem (stride 2) and of the stages (strides 4 to 32).

        Args:
          images: float [b, h, w, in_channels], normalized.
          indices: None for all levels, a number n for the last n, or positions in `feature_info`.
          norm: no effect, because a ResNet has no last norm.
          intermediates_only: return the list of maps only.

        Returns:
          ``(forward_features(images), maps)``, or ``maps``: a list of [b, h / stride, w / stride, channels].

        Raises:
          UserError: a level does not exist, or the images do not fit the model.

        Example:
          >>> from jaxvision.models import registry
          >>> model = registry.build("test_resnet", rngs=nnx.Rngs(0))
          >>> features, maps = model.forward_intermediates(jnp.zeros((1, 64, 64, 3)), indices=(1, -1))
          >>> [x.shape for x in maps], [model.feature_info[i].stride for i in (1, -1)]
          ([(1, 16, 16, 32), (1, 2, 2, 96)], [4, 32])
        """
        sizes.check_images(images, self.in_channels)
        x = jax.nn.relu(self.bn1(self.conv1(images)))
        maps = [x]
        x = self.maxpool(x)
        for level, stage in zip(self.feature_info[1:], self.stages, strict=True):
            x = self.run_blocks(level.name, stage, x)
            maps.append(x)
        maps = [maps[i] for i in feature_indices(indices, len(maps))]
        return maps if intermediates_only else (x, maps)

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the last feature map [b, h / 32, w / 32, c] of normalized `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images, ())[0]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or the pooled features [b, c] if `pre_logits`."""
        x = self.drop(global_pool(features, self.global_pool))
        return x if pre_logits or self.fc is None else self.fc(x)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Replaces the head by a newly initialized one; see `Model.reset_classifier`."""
        sizes.require_int("num_classes", num_classes, 0)
        pool = self.global_pool if global_pool is None else global_pool
        check_global_pool(pool, num_classes)
        if global_pool is not None:
            self.global_pool, self.options = pool, with_options(self, global_pool=pool)
        self.num_classes = num_classes
        self.num_features = self.feature_info[-1].channels * GLOBAL_POOLS[pool]
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        replace_layer(self, "fc", linear_head(self.num_features, num_classes, **types, rngs=rngs))

    def cut(self, level: int) -> None:
        """Removes, in place, the layers after a level of `feature_info`, except the head."""
        for later in self.feature_info[level + 1 :]:
            delattr(self, later.name)
        self.feature_info = self.feature_info[: level + 1]
        if level == 0:
            self.maxpool = Sequential()

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns patterns of parameter names in forward order: the stem, then each block (each stage if `coarse`)."""
        stem, stages = r"(conv1|bn1|maxpool)\.", enumerate(self.stages, start=1)
        if coarse:
            return (stem, *(rf"layer{i}\." for i, _ in stages))
        return (stem, *(rf"layer{i}\.{j}\." for i, stage in stages for j in range(len(stage))))


def _check_stages(depths: Sequence[int], blocks: Sequence[str], widths: Sequence[int], kept: Kept | None) -> None:
    for depth in depths:
        sizes.require_int("each of depths", depth, 1)
    for name in blocks:
        _check_choice("block", name, BLOCKS)
    if not len(blocks) == len(depths) <= len(widths):
        raise UserError(
            f"depths: got {len(depths)} depths, {len(blocks)} blocks and {len(widths)} widths, expected one for each "
            "stage."
        )
    if kept is not None and [len(stage) for _, stage in kept] != list(depths):
        raise UserError(f"depths: got {list(depths)}, but a pruned network has fixed depths. Do not set depths.")


def _check_choice(what: str, choice: Any, choices: Sequence[Any] | dict[str, Any]) -> None:
    if choice not in choices:
        raise unknown_name_error(what, choice, [str(x) for x in choices])
