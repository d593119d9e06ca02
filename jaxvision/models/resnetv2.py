"""ResNetV2: residual networks with the norm before the convolution, including BiT and the backbones of hybrid ViTs.

He et al., "Identity Mappings in Deep Residual Networks", https://arxiv.org/abs/1603.05027, with the stride on the 3x3
convolution. Kolesnikov et al., "Big Transfer (BiT)", https://arxiv.org/abs/1912.11370, with group normalization and
weight standardization. Attributes have timm's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import FeatureInfo, Model, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.conv import Conv
from jaxvision.models.layers.frozen import replace_layer
from jaxvision.models.layers.init import normal, torch_default, torch_default_bias, zeros
from jaxvision.models.layers.pool import GLOBAL_POOLS, check_global_pool, global_pool, max_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.width import make_divisible
from jaxvision.models.resnetv2_blocks import BLOCKS, CONVS, NORMS, STEMS, Parts, Stem


class Stage(nnx.Module):
    """Consecutive blocks. The module exists because timm's parameter names contain ``blocks``."""

    def __init__(self, blocks: Sequence[nnx.Module]):
        self.blocks = Sequential(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` passed through each block in order."""
        return self.blocks(x)


class Head(nnx.Module):
    """Pooling, dropout and a 1x1 convolution as the classifier, as in BiT.

    Args:
      features: channels that the convolution takes.
      num_classes: width of the logits; 0 for no convolution.
      pool: a key of `GLOBAL_POOLS`.
      dropout: dropout rate before the convolution.
      **options: ``dtype``, ``param_dtype`` and ``rngs``, as for `Conv`.
    """

    def __init__(self, features: int, num_classes: int, *, pool: str, dropout: float, **options: Any):
        self.pool = pool
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=options["rngs"] if dropout else None)
        self.fc: Conv | None = nnx.data(None)
        self.reset(features, num_classes, kernel_init=normal(0.01), bias_init=zeros, **options)

    def reset(self, features: int, num_classes: int, **options: Any) -> None:
        """Replaces the convolution by a newly initialized one, or by None for 0 classes."""
        conv = Conv(features, num_classes, 1, use_bias=True, **options) if num_classes else nnx.data(None)
        replace_layer(self, "fc", conv)

    def __call__(self, x: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a map [b, h, w, c], or the pooled features [b, c] if `pre_logits`."""
        x = self.drop(global_pool(x, self.pool))
        if pre_logits or self.fc is None:
            return x
        return self.fc(x) if not self.pool else self.fc(x[:, None, None])[:, 0, 0]


class ResNetV2(Model):
    """ResNetV2: a stem, stages of residual blocks, a norm and a head.

    Args:
      depths: number of blocks in each stage. There may be fewer than four stages.
      widths: channels of each stage's output.
      width_factor: factor of all widths, including the stem's (BiT).
      block: ``"preact_bottleneck"``, ``"preact_basic"``, or ``"bottleneck"``, which ends in an activation.
      stem: ``"plain"``, ``"deep"`` or ``"tiered"``, as for `Stem`.
      stem_pool: padding of the stem's max pool: ``"torch"``, ``"zero"`` (BiT) or ``"same"`` (hybrid ViTs).
      conv: ``"plain"``, or ``"std"`` for weight standardization.
      padding: padding of the convolutions: ``"torch"``, or ``"same"`` for TensorFlow's.
      norm: ``"batch"``, ``"group"``, ``"evo"`` or ``"filter_response"``.
      avg_down: whether a shortcut that changes the shape is an average pool and a 1x1 convolution (ResNet-D) instead of
        a strided 1x1 convolution.
      num_classes: width of the logits; 0 to return pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images for which the weights were trained. Informative only: the model accepts any size.
      global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for a map of logits.
      dropout: dropout rate before the head.
      drop_path: stochastic depth rate of the last block. It increases linearly from 0 at the first block.
      dtype: dtype of the computation; None for the promoted dtype of images and parameters.
      param_dtype: dtype of the parameters. BatchNorm statistics are always float32.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: an argument has an unknown value.

    Example:
      >>> model = ResNetV2(depths=(1, 1), widths=(128, 256), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 64, 64, 3))).shape, model.num_features
      ((2, 10), 256)
    """

    classifier_names = ("head.fc",)
    block_pattern = r"stages\.\d+\.blocks\.\d+\."

    def __init__(
        self,
        *,
        depths: Sequence[int],
        widths: Sequence[int] = (256, 512, 1024, 2048),
        width_factor: int = 1,
        block: str = "preact_bottleneck",
        stem: str = "plain",
        stem_pool: str = "torch",
        conv: str = "std",
        padding: str = "torch",
        norm: str = "group",
        avg_down: bool = False,
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
        _check_choices(block=block, stem=stem, stem_pool=stem_pool, conv=conv, padding=padding, norm=norm)
        check_global_pool(global_pool, 0)  # without pooling the head, a convolution, returns a map of logits
        if len(depths) > len(widths):
            raise UserError(f"depths: got {len(depths)} depths and {len(widths)} widths, expected one for each stage.")

        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.dtype, self.param_dtype = dtype, param_dtype
        parts = Parts(
            rngs=rngs,
            conv_kind=conv,
            padding=padding,
            norm_kind=norm,
            avg_down=avg_down,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        preact = block != "bottleneck"
        features = make_divisible(64 * width_factor)
        self.stem = Stem(parts, in_channels, features, kind=stem, pool=stem_pool, normalize=not preact)
        self.first_conv = "stem.conv" if stem == "plain" else "stem.conv1"
        last = ("conv" if preact else "norm") + ("" if stem == "plain" else "3")
        out_widths = [make_divisible(width * width_factor) for width in widths]
        self.stages = _stages(parts, BLOCKS[block], features, depths, out_widths, drop_path)
        self.feature_info = (
            FeatureInfo(f"stem.{last}", features, 2),
            *(FeatureInfo(f"stages.{i}", out_widths[i], 4 * 2**i) for i in range(len(depths))),
        )
        features = self.feature_info[-1].channels
        self.activation = parts.activation
        self.norm = parts.norm(features) if preact else None
        self.num_features = features * GLOBAL_POOLS[global_pool]
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = Head(self.num_features, num_classes, pool=global_pool, dropout=dropout, **types)

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
          norm: apply the last norm and activation to the last stage's map.
          intermediates_only: return the list of maps only.

        Returns:
          ``(forward_features(images), maps)``, or ``maps``: a list of [b, h / stride, w / stride, channels].

        Raises:
          UserError: a level does not exist, or the images do not fit the model.
        """
        sizes.check_images(images, self.in_channels)
        x = self.stem.before_pool(images)
        maps = [x]
        x = max_pool(x, padding=self.stem.pool)
        for i, stage in enumerate(self.stages):
            x = self.run_blocks(f"stages.{i}.blocks", stage.blocks, x)
            maps.append(x)
        features = x if self.norm is None else self.activation(self.norm(x))
        if norm:
            maps[-1] = features
        maps = [maps[i] for i in feature_indices(indices, len(maps))]
        return maps if intermediates_only else (features, maps)

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the normalized last map [b, h / 32, w / 32, c] of normalized `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images, ())[0]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or the pooled features [b, c] if `pre_logits`."""
        return self.head(features, pre_logits)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Replaces the head by a newly initialized one; see `Model.reset_classifier`."""
        sizes.require_int("num_classes", num_classes, 0)
        if global_pool is not None:
            check_global_pool(global_pool, 0)
            self.head.pool, self.options = global_pool, with_options(self, global_pool=global_pool)
            self.num_features = self.feature_info[-1].channels * GLOBAL_POOLS[global_pool]
        self.num_classes = num_classes
        inits = {"kernel_init": torch_default, "bias_init": torch_default_bias(self.num_features)}
        types = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        self.head.reset(self.num_features, num_classes, **inits, **types)

    def cut(self, level: int) -> None:
        """Removes, in place, the layers after a level of `feature_info`, except the head."""
        self.stages = nnx.List(list(self.stages)[:level])
        self.feature_info = self.feature_info[: level + 1]
        self.norm = nnx.data(None)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns patterns of parameter names in forward order: the stem, then each block (each stage if `coarse`).

        As in timm, the last norm belongs to the last block, or to the head if `coarse`.
        """
        if coarse:
            return (r"stem\.", *(rf"stages\.{i}\." for i in range(len(self.stages))))
        blocks = [
            rf"stages\.{i}\.blocks\.{j}\." for i, stage in enumerate(self.stages) for j in range(len(stage.blocks))
        ]
        if blocks:  # a model that was cut after its stem has none
            blocks[-1] = rf"({blocks[-1]}|norm\.)"
        return (r"stem\.", *blocks)


def _stages(
    parts: Parts,
    block: Callable[..., nnx.Module],
    features: int,
    depths: Sequence[int],
    widths: Sequence[int],
    drop_path: float,
) -> nnx.List[Stage]:
    """Returns the stages, whose first block takes `features` channels."""
    rates = iter(drop.rates(drop_path, sum(depths)))
    stages: nnx.List[Stage] = nnx.List()
    for i, (depth, width) in enumerate(zip(depths, widths, strict=False)):
        blocks = []
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            blocks.append(block(parts, features, width, stride=stride, first=j == 0, drop_path=next(rates)))
            features = width
        stages.append(Stage(blocks))
    return stages


def _check_choices(**chosen: str) -> None:
    choices: dict[str, Sequence[str]] = {
        "block": list(BLOCKS),
        "stem": STEMS,
        "stem_pool": ("torch", "zero", "same"),
        "conv": list(CONVS),
        "padding": ("torch", "same"),
        "norm": list(NORMS),
    }
    for what, choice in chosen.items():
        if choice not in choices[what]:
            raise unknown_name_error(what, choice, choices[what])
