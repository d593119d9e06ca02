"""ResNet and its relatives: ResNet-D, ResNeXt, SENet, ECA-Net, ResNet-RS, with antialiasing, wide, pruned.

He et al., "Deep Residual Learning for Image Recognition", https://arxiv.org/abs/1512.03385, with the stride on the 3x3
convolution of a bottleneck ("v1.5"), as everybody trains it. Attributes carry timm's names.

The letter at the end of a name is that of a stem, from He et al., "Bag of Tricks for Image Classification with
Convolutional Neural Networks", https://arxiv.org/abs/1812.01187: ``c`` and ``s`` have three 3x3 convolutions for a 7x7
one, ``d`` and ``t`` pool in the shortcut, too, and the first convolution of ``t`` is narrower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import FeatureInfo, Model, check_images, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.pool import GLOBAL_POOLS, check_global_pool, global_pool, max_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.resnet_blocks import ANTIALIASES, BLOCKS, GATES, NORMS, Parts


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
