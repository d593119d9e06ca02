"""ResNetV2: residual nets that normalize before they convolve, BiT among them, and the stem of the hybrid ViTs.

He et al., "Identity Mappings in Deep Residual Networks", https://arxiv.org/abs/1603.05027, with the stride on the 3x3
convolution; Kolesnikov et al., "Big Transfer (BiT)", https://arxiv.org/abs/1912.11370, with group normalization and
standardized kernels. Attributes carry timm's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.models.base import FeatureInfo, Model, check_images, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.conv import Conv, StdConv
from jaxvision.models.layers.init import he_normal, normal, torch_default, torch_default_bias, zeros
from jaxvision.models.layers.norm import BatchNorm, EvoNormS0, FilterResponseNorm, GroupNorm
from jaxvision.models.layers.pool import GLOBAL_POOLS, avg_pool, check_global_pool, global_pool, max_pool
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.layers.width import make_divisible


def _identity(x: jax.Array) -> jax.Array:
    return x


CONVS: dict[str, type[Conv]] = {"plain": Conv, "std": StdConv}
# A norm and the activation after it; the last two have their own.
NORMS: dict[str, tuple[Callable[..., Any], Callable[[jax.Array], jax.Array]]] = {
    "batch": (BatchNorm, jax.nn.relu),
    "group": (GroupNorm, jax.nn.relu),
    "evo": (EvoNormS0, _identity),
    "filter_response": (FilterResponseNorm, _identity),
}


@dataclass(frozen=True)
class Parts:
    """What all blocks of one network have in common: it makes their layers.

    Attributes:
      rngs: streams ``params`` and ``dropout``.
      conv_kind: a key of `CONVS`.
      padding: of every convolution, see `Conv`.
      norm_kind: a key of `NORMS`.
      avg_down: shortcut of another shape: average pool, then 1x1, instead of a strided 1x1.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters.
    """

    rngs: nnx.Rngs
    conv_kind: str = "std"
    padding: str = "torch"
    norm_kind: str = "group"
    avg_down: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    def conv(self, in_features: int, out_features: int, kernel_size: int, *, stride: int = 1) -> Conv:
        """Returns a convolution."""
        options: dict[str, Any] = {"stride": stride, "padding": self.padding, "kernel_init": he_normal}
        return CONVS[self.conv_kind](in_features, out_features, kernel_size, **options, **self._common)

    def norm(self, features: int) -> Any:
        """Returns a norm, to be followed by `activation` where a block activates."""
        return NORMS[self.norm_kind][0](features, **self._common)

    @property
    def activation(self) -> Callable[[jax.Array], jax.Array]:
        """What follows a norm."""
        return NORMS[self.norm_kind][1]

    @property
    def _common(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}


class Shortcut(nnx.Module):
    """Gives a block's input the shape of its output: a 1x1 convolution, and a norm if the block has one at its end."""

    def __init__(self, parts: Parts, in_features: int, features: int, *, stride: int, normalize: bool):
        pools = parts.avg_down and stride == 2
        self.pool = avg_pool if pools else _identity
        self.conv = parts.conv(in_features, features, 1, stride=1 if pools else stride)
        self.norm = parts.norm(features) if normalize else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        x = self.conv(self.pool(x))
        return x if self.norm is None else self.norm(x)


class PreActBasic(nnx.Module):
    """Twice a norm, an activation and a 3x3 convolution, and a shortcut. For the arguments see `PreActBottleneck`."""

    def __init__(
        self, parts: Parts, in_features: int, features: int, *, stride: int, first: bool, drop_path: float = 0.0
    ):
        reshapes = first and (stride != 1 or in_features != features)
        self.activation = parts.activation
        self.downsample = Shortcut(parts, in_features, features, stride=stride, normalize=False) if reshapes else None
        self.norm1 = parts.norm(in_features)
        self.conv1 = parts.conv(in_features, features, 3, stride=stride)
        self.norm2 = parts.norm(features)
        self.conv2 = parts.conv(features, features, 3)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        return self.drop_path(y) + shortcut


class PreActBottleneck(nnx.Module):
    """Norm, activation and 1x1, 3x3 and 1x1 convolution in turn, and a shortcut.

    Args:
      parts: makes its layers.
      in_features: channels of the input.
      features: channels of the output; the 3x3 convolution has a quarter of them.
      stride: of the 3x3 convolution and of the shortcut.
      first: of its stage: the shortcut has a convolution.
      drop_path: probability of dropping the branch in training.
    """

    def __init__(
        self, parts: Parts, in_features: int, features: int, *, stride: int, first: bool, drop_path: float = 0.0
    ):
        inner = make_divisible(features / 4)
        self.activation = parts.activation
        self.downsample = Shortcut(parts, in_features, features, stride=stride, normalize=False) if first else None
        self.norm1 = parts.norm(in_features)
        self.conv1 = parts.conv(in_features, inner, 1)
        self.norm2 = parts.norm(inner)
        self.conv2 = parts.conv(inner, inner, 3, stride=stride)
        self.norm3 = parts.norm(inner)
        self.conv3 = parts.conv(inner, features, 1)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        y = self.activation(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)
        y = self.conv2(self.activation(self.norm2(y)))
        y = self.conv3(self.activation(self.norm3(y)))
        return self.drop_path(y) + shortcut


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution, each with its norm after it, and a shortcut: the block of the hybrid ViTs.

    For the arguments see `PreActBottleneck`.
    """

    def __init__(
        self, parts: Parts, in_features: int, features: int, *, stride: int, first: bool, drop_path: float = 0.0
    ):
        inner = make_divisible(features / 4)
        self.activation = parts.activation
        self.downsample = Shortcut(parts, in_features, features, stride=stride, normalize=True) if first else None
        self.conv1 = parts.conv(in_features, inner, 1)
        self.norm1 = parts.norm(inner)
        self.conv2 = parts.conv(inner, inner, 3, stride=stride)
        self.norm2 = parts.norm(inner)
        self.conv3 = parts.conv(inner, features, 1)
        self.norm3 = parts.norm(features)
        self.drop_path = drop.DropPath(drop_path, rngs=parts.rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / stride, w / stride, features] of `x` [b, h, w, in_features]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.activation(self.norm1(self.conv1(x)))
        y = self.activation(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return self.activation(self.drop_path(y) + shortcut)


BLOCKS: dict[str, Callable[..., nnx.Module]] = {
    "preact_basic": PreActBasic,
    "preact_bottleneck": PreActBottleneck,
    "bottleneck": Bottleneck,
}
STEMS = ("plain", "deep", "tiered")


class Stem(nnx.Module):
    """Convolutions that halve the image, and a max pool that halves it again.

    Args:
      parts: makes its layers.
      in_channels: channels of the images.
      features: channels of the output.
      kind: ``"plain"`` for one 7x7 convolution; ``"deep"`` for three 3x3 ones, ``"tiered"`` with a narrower first.
      pool: borders of the max pool, the `padding` of `max_pool`.
      normalize: end in a norm and an activation, before the pool: where the blocks do not begin with them.

    Example:
      >>> stem = Stem(Parts(nnx.Rngs(0), padding="same"), 3, 64, pool="same", normalize=True)
      >>> stem(jnp.zeros((1, 64, 64, 3))).shape, stem.conv.kernel.shape
      ((1, 16, 16, 64), (7, 7, 3, 64))
    """

    def __init__(
        self,
        parts: Parts,
        in_channels: int,
        features: int,
        *,
        kind: str = "plain",
        pool: str = "torch",
        normalize: bool = False,
    ):
        self.activation, self.pool, self.deep = parts.activation, pool, kind != "plain"
        norm = parts.norm(features) if normalize else None
        if self.deep:
            first, second = 3 * features // 8 if kind == "tiered" else features // 2, features // 2
            self.conv1 = parts.conv(in_channels, first, 3, stride=2)
            self.norm1 = parts.norm(first)
            self.conv2 = parts.conv(first, second, 3)
            self.norm2 = parts.norm(second)
            self.conv3 = parts.conv(second, features, 3)
            self.norm3 = norm
        else:
            self.conv = parts.conv(in_channels, features, 7, stride=2)
            self.norm = norm

    def before_pool(self, images: jax.Array) -> jax.Array:
        """Returns [b, h / 2, w / 2, features] of `images` [b, h, w, in_channels]."""
        if self.deep:
            x = self.activation(self.norm1(self.conv1(images)))
            x = self.activation(self.norm2(self.conv2(x)))
            x, norm = self.conv3(x), self.norm3
        else:
            x, norm = self.conv(images), self.norm
        return x if norm is None else self.activation(norm(x))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns [b, h / 4, w / 4, features] of `images` [b, h, w, in_channels]."""
        return max_pool(self.before_pool(images), padding=self.pool)


class Stage(nnx.Module):
    """Blocks in a row; a level of names that timm has."""

    def __init__(self, blocks: Sequence[nnx.Module]):
        self.blocks = Sequential(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `x` passed through each block in turn."""
        return self.blocks(x)


class Head(nnx.Module):
    """Pooling, dropout and a 1x1 convolution for a linear layer, as in BiT."""

    def __init__(self, features: int, num_classes: int, *, pool: str, dropout: float, **options: Any):
        self.pool = pool
        self.drop = nnx.Dropout(dropout, deterministic=True, rngs=options["rngs"] if dropout else None)
        self.reset(features, num_classes, kernel_init=normal(0.01), bias_init=zeros, **options)

    def reset(self, features: int, num_classes: int, **options: Any) -> None:
        """Makes the convolution anew; none for 0 classes."""
        self.fc = Conv(features, num_classes, 1, use_bias=True, **options) if num_classes else nnx.data(None)

    def __call__(self, x: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits of a feature map, or what the convolution sees."""
        x = self.drop(global_pool(x, self.pool))
        if pre_logits or self.fc is None:
            return x
        return self.fc(x) if not self.pool else self.fc(x[:, None, None])[:, 0, 0]


class ResNetV2(Model):
    """A stem, stages of residual blocks, a norm, a head.

    Args:
      depths: blocks in each stage; there may be fewer than four.
      widths: channels of each stage's output.
      width_factor: of all widths, the stem's, too (BiT).
      block: ``"preact_bottleneck"``, ``"preact_basic"``, or ``"bottleneck"``, which activates at its end.
      stem: ``"plain"``, ``"deep"`` or ``"tiered"``, see `Stem`.
      stem_pool: borders of the stem's max pool, ``"torch"``, ``"zero"`` (BiT) or ``"same"`` (hybrid ViTs).
      conv: ``"plain"``, or ``"std"`` for standardized kernels.
      padding: of the convolutions: ``"torch"``, or ``"same"`` for TensorFlow's.
      norm: ``"batch"``, ``"group"``, ``"evo"`` or ``"filter_response"``.
      avg_down: shortcut of another shape: average pool, then 1x1 (ResNet-D), instead of a strided 1x1.
      num_classes: width of the logits; 0 for pooled features instead.
      in_channels: channels of the images.
      image_size: side of the images that the weights are for; noted, any size will do.
      global_pool: ``"avg"``, ``"max"``, ``"avgmax"``, ``"catavgmax"``, or ``""`` for logits of each place of the map.
      dropout: rate before the head.
      drop_path: stochastic depth of the last block, rising linearly from 0 at the first.
      dtype: of the computation; None takes the promoted type of images and parameters.
      param_dtype: of the parameters. BatchNorm statistics are float32 always.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: an unknown choice.

    Example:
      >>> model = ResNetV2(depths=(1, 1), widths=(128, 256), num_classes=10, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((2, 64, 64, 3))).shape, model.forward_features(jnp.zeros((2, 64, 64, 3))).shape
      ((2, 10), (2, 8, 8, 256))
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
        choices: dict[str, tuple[str, Sequence[str]]] = {
            "block": (block, list(BLOCKS)),
            "stem": (stem, STEMS),
            "stem_pool": (stem_pool, ("torch", "zero", "same")),
            "conv": (conv, list(CONVS)),
            "padding": (padding, ("torch", "same")),
            "norm": (norm, list(NORMS)),
        }
        for what, (choice, valid) in choices.items():
            if choice not in valid:
                raise unknown_name_error(what, choice, valid)
        check_global_pool(global_pool, 0)  # the head is a convolution, and takes a map
        if len(depths) > len(widths):
            raise UserError(f"{len(depths)} depths and {len(widths)} widths: one for each stage")

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
        levels = [FeatureInfo(f"stem.{last}", features, 2)]

        rates = iter(drop.rates(drop_path, sum(depths)))
        self.stages: nnx.List[Stage] = nnx.List()
        for i, (depth, width) in enumerate(zip(depths, widths, strict=False)):
            blocks = []
            for j in range(depth):
                out = make_divisible(width * width_factor)
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(BLOCKS[block](parts, features, out, stride=stride, first=j == 0, drop_path=next(rates)))
                features = out
            self.stages.append(Stage(blocks))
            levels.append(FeatureInfo(f"stages.{i}", features, 4 * 2**i))

        self.feature_info = tuple(levels)
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
        """Returns ``(features, maps)``, or the maps alone: the stem's at 1/2 of the image, the stages' at 1/4 to 1/32.

        Args:
          images: [b, h, w, in_channels], normalized.
          indices: which maps: None for all, a number for so many of the last, or their positions in `feature_info`.
          norm: the last stage's map as the head sees it, normalized and activated.
          intermediates_only: leave the features away.

        Raises:
          UserError: a level that is not there, or images of another shape.
        """
        check_images(images, self.in_channels)
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
        """Returns the last map, normalized, [b, h / 32, w / 32, c], of `images` [b, h, w, in_channels]."""
        return self.forward_intermediates(images, ())[0]

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of a feature map, or what the head sees, [b, c], if `pre_logits`."""
        return self.head(features, pre_logits)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalized `images` [b, h, w, in_channels]."""
        return self.forward_head(self.forward_features(images))

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Gives the model a fresh head for `num_classes` (none for 0), and another `global_pool` if one is said."""
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
        """Takes away, in place, what comes after a level of `feature_info`, but for the head."""
        self.stages = nnx.List(list(self.stages)[:level])
        self.feature_info = self.feature_info[: level + 1]
        self.norm = nnx.data(None)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns the patterns of the stem and of each block, or of each stage if `coarse`, from the image on.

        The last norm goes with the last block, and with the head if `coarse`, as in timm.
        """
        if coarse:
            return (r"stem\.", *(rf"stages\.{i}\." for i in range(len(self.stages))))
        blocks = [
            rf"stages\.{i}\.blocks\.{j}\." for i, stage in enumerate(self.stages) for j in range(len(stage.blocks))
        ]
        if blocks:  # there are none where the model was cut behind its stem
            blocks[-1] = rf"({blocks[-1]}|norm\.)"
        return (r"stem\.", *blocks)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns no names: norms and biases aside, everything in a ResNetV2 decays."""
        return ()


R18: dict[str, Any] = {"depths": (2, 2, 2, 2), "widths": (64, 128, 256, 512), "block": "preact_basic"}
R34: dict[str, Any] = {"depths": (3, 4, 6, 3), "widths": (64, 128, 256, 512), "block": "preact_basic"}
R50: dict[str, Any] = {"depths": (3, 4, 6, 3)}
R101: dict[str, Any] = {"depths": (3, 4, 23, 3)}
R152: dict[str, Any] = {"depths": (3, 8, 36, 3)}
BATCH: dict[str, Any] = {"conv": "plain", "norm": "batch"}
D: dict[str, Any] = {"stem": "deep", "avg_down": True}
T: dict[str, Any] = {"stem": "tiered", "avg_down": True}
BIT: dict[str, Any] = {"stem_pool": "zero"}

VARIANTS: dict[str, dict[str, Any]] = {
    "resnetv2_18": {**R18, **BATCH},
    "resnetv2_18d": {**R18, **BATCH, **D},
    "resnetv2_34": {**R34, **BATCH},
    "resnetv2_34d": {**R34, **BATCH, **D},
    "resnetv2_50": {**R50, **BATCH},
    "resnetv2_50d": {**R50, **BATCH, **D},
    "resnetv2_50t": {**R50, **BATCH, **T},
    "resnetv2_101": {**R101, **BATCH},
    "resnetv2_101d": {**R101, **BATCH, **D},
    "resnetv2_152": {**R152, **BATCH},
    "resnetv2_152d": {**R152, **BATCH, **D},
    "resnetv2_50d_gn": {**R50, "conv": "plain", **D},
    "resnetv2_50d_evos": {**R50, "conv": "plain", "norm": "evo", **D},
    "resnetv2_50d_frn": {**R50, "conv": "plain", "norm": "filter_response", **D},
    "resnetv2_50x1_bit": {**R50, **BIT},
    "resnetv2_50x3_bit": {**R50, **BIT, "width_factor": 3, "image_size": 448},
    "resnetv2_101x1_bit": {**R101, **BIT, "image_size": 448},
    "resnetv2_101x3_bit": {**R101, **BIT, "width_factor": 3, "image_size": 448},
    "resnetv2_152x2_bit": {**R152, **BIT, "width_factor": 2},
    "resnetv2_152x4_bit": {**R152, **BIT, "width_factor": 4, "image_size": 480},
}

registry.register("resnetv2", ResNetV2, VARIANTS)
