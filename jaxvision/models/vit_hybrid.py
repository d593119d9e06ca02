"""Hybrid Vision Transformers, whose tokens are patches of a convnet's feature map.

- Models with a ResNetV2 with weight standardization: Dosovitskiy et al., "An Image is Worth 16x16 Words",
  https://arxiv.org/abs/2010.11929. Their weights: Steiner et al., "How to train your ViT?",
  https://arxiv.org/abs/2106.10270.
- The image encoder of MobileCLIP: Vasu et al., "MobileCLIP", https://arxiv.org/abs/2311.17049.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models import registry
from jaxvision.models.layers import sizes
from jaxvision.models.layers.init import torch_default, zeros
from jaxvision.models.layers.mlp import activate
from jaxvision.models.layers.norm import BatchNorm
from jaxvision.models.layers.patch import PatchProjection
from jaxvision.models.layers.sequential import Sequential
from jaxvision.models.resnet import ResNet
from jaxvision.models.resnetv2 import ResNetV2
from jaxvision.models.resnetv2_blocks import Parts, Stem
from jaxvision.models.vit import VisionTransformer

# A network from images [b, h, w, c] to feature maps, its stride, its output channels, its first convolution's path.
Backbone = tuple[nnx.Module, int, int, str]


class HybridEmbed(nnx.Module):
    """Projects each patch of a convnet's feature map to a token, with the interface of `PatchEmbed`.

    Args:
      image_size: size of the images in pixels: an integer, or (height, width).
      patch_size: size of a patch in pixels of the feature map: an integer, or (height, width).
      in_channels: channels c of the images.
      features: width d of the tokens.
      backbone: function ``(in_channels, dtype=..., param_dtype=..., rngs=...)`` that returns a `Backbone`.
      project: whether to project the patches. If not, each pixel of the map is a token.
      use_bias: whether the projection has a bias.
      dynamic: accept images of any size that the patches divide evenly.
      ignore_remainder: accept an `image_size` that the patches do not divide evenly.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
      rngs: stream ``params``.

    Raises:
      UserError: the patches do not divide the image evenly.

    Example:
      >>> embed = HybridEmbed(64, 8, 3, 16, backbone=stem, rngs=nnx.Rngs(0))
      >>> embed(jnp.ones((1, 64, 64, 3))).shape, embed.grid_size, embed.stride
      ((1, 4, 16), (2, 2), 32)
    """

    def __init__(
        self,
        image_size: sizes.Size,
        patch_size: sizes.Size,
        in_channels: int,
        features: int,
        *,
        backbone: Callable[..., Backbone],
        project: bool = True,
        use_bias: bool = True,
        dynamic: bool = False,
        ignore_remainder: bool = False,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        module, stride, channels, first_conv = backbone(in_channels, **types)
        p, q = sizes.pair("patch_size", patch_size)
        self.pixels = (stride * p, stride * q)  # height and width of a token in image pixels
        if not ignore_remainder:
            sizes.check_divisible(image_size, self.pixels)
        self.backbone: Any = module
        self.image_size = sizes.pair("image_size", image_size)
        self.in_channels = in_channels
        self.dynamic = dynamic
        self.grid_size = self.grid(self.image_size)
        self.num_patches = math.prod(self.grid_size)
        self.stride = max(self.pixels)
        self.first_conv = f"backbone.{first_conv}"
        self.proj = PatchProjection((p, q), channels, features, use_bias=use_bias, **types) if project else None

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the rows and columns of tokens of images of `size` (h, w)."""
        return size[0] // self.pixels[0], size[1] // self.pixels[1]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `images` [b, h, w, c], row by row.

        Raises:
          UserError: the images do not fit, as for `PatchEmbed`.
        """
        sizes.check_images(images, self.in_channels, None if self.dynamic else self.image_size)
        if self.dynamic:
            sizes.check_divisible(images.shape[1:3], self.pixels)
        x = self.backbone(images) if self.proj is None else self.proj(self.backbone(images))
        b, h, w, d = x.shape
        return x.reshape(b, h * w, d)


# --- Backbones ---


def resnetv2(in_channels: int, *, depths: Sequence[int], **types: Any) -> Backbone:
    """Returns a ResNetV2 with norms after the convolutions, weight standardization and TensorFlow's padding."""
    net = ResNetV2(
        depths=depths,
        block="bottleneck",
        padding="same",
        stem_pool="same",
        in_channels=in_channels,
        num_classes=0,
        global_pool="",
        **types,
    )
    for stage in net.stages:
        for block in stage.blocks:  # as in timm's hybrid ViTs, each branch is initially zero
            width = block.norm3.scale.shape
            block.norm3.scale = nnx.Param(zeros(None, width, types["param_dtype"]))
    _, channels, stride = net.feature_info[-1]
    return net, stride, channels, net.first_conv


def stem(in_channels: int, **types: Any) -> Backbone:
    """Returns the stem of `resnetv2` without its stages."""
    module = Stem(Parts(padding="same", **types), in_channels, 64, pool="same", normalize=True)
    shape = module.conv.kernel.shape
    module.conv.kernel = nnx.Param(torch_default(types["rngs"].params(), shape, types["param_dtype"]))
    return module, 4, 64, "conv"


def resnet(in_channels: int, *, depths: Sequence[int], **types: Any) -> Backbone:
    """Returns a ResNet-D, which has three 3x3 convolutions in the stem and average pools in the shortcuts."""
    net = ResNet(
        depths=depths, stem_width=32, avg_down=True, in_channels=in_channels, num_classes=0, global_pool="", **types
    )
    _, channels, stride = net.feature_info[-1]
    return net, stride, channels, net.first_conv


def conv_stem(in_channels: int, **types: Any) -> Backbone:
    """Returns MobileCLIP's stem: three convolutions with non-overlapping windows."""
    first = ConvNormAct(in_channels, 192, 4, **types)
    return Sequential([first, ConvNormAct(192, 192, 2, **types), PatchConv(192, 768, 2, **types)]), 16, 768, "0.conv"


class PatchConv(nnx.Module):
    """A convolution whose stride equals its kernel size."""

    def __init__(self, in_features: int, features: int, kernel_size: int, *, use_bias: bool = True, **types: Any):
        self.conv = PatchProjection(kernel_size, in_features, features, use_bias=use_bias, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / k, w / k, features] for `x` [b, h, w, in_features]."""
        return self.conv(x)


class ConvNormAct(PatchConv):
    """A convolution whose stride equals its kernel size, then BatchNorm and GELU."""

    def __init__(self, in_features: int, features: int, kernel_size: int, **types: Any):
        super().__init__(in_features, features, kernel_size, use_bias=False, **types)
        self.bn = BatchNorm(features, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [b, h / k, w / k, features] for `x` [b, h, w, in_features]."""
        return activate(self.bn(self.conv(x)), "gelu")


# --- Table of variants ---


def _row(
    size: dict[str, Any], image_size: int, backbone: Callable[..., Backbone], patch_size: int = 1
) -> dict[str, Any]:
    embed = functools.partial(HybridEmbed, backbone=backbone)
    return {**size, "image_size": image_size, "patch_size": patch_size, "embed": embed}


_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_SHALLOW = {"embed_dim": 768, "depth": 8, "num_heads": 8, "mlp_ratio": 3.0}

_R26_S32 = functools.partial(resnetv2, depths=(2, 2, 2, 2))
_R50_S16 = functools.partial(resnetv2, depths=(3, 4, 9))
_R50_S32 = functools.partial(resnetv2, depths=(3, 4, 6, 3))
_RESNET26D = functools.partial(resnet, depths=(2, 2, 2, 2))
_RESNET50D = functools.partial(resnet, depths=(3, 4, 6, 3))
_RESNET50D_S16 = functools.partial(resnet, depths=(3, 4, 6))

VARIANTS: dict[str, dict[str, Any]] = {
    "vit_tiny_r_s16_p8_224": _row(_TINY, 224, stem, 8),
    "vit_tiny_r_s16_p8_384": _row(_TINY, 384, stem, 8),
    "vit_small_r26_s32_224": _row(_SMALL, 224, _R26_S32),
    "vit_small_r26_s32_384": _row(_SMALL, 384, _R26_S32),
    "vit_base_r26_s32_224": _row(_BASE, 224, _R26_S32),
    "vit_base_r50_s16_224": _row(_BASE, 224, _R50_S16),
    "vit_base_r50_s16_384": _row(_BASE, 384, _R50_S16),
    "vit_large_r50_s32_224": _row(_LARGE, 224, _R50_S32),
    "vit_large_r50_s32_384": _row(_LARGE, 384, _R50_S32),
    "vit_small_resnet26d_224": _row(_SHALLOW, 224, _RESNET26D),
    "vit_small_resnet50d_s16_224": _row(_SHALLOW, 224, _RESNET50D_S16),
    "vit_base_resnet26d_224": _row(_BASE, 224, _RESNET26D),
    "vit_base_resnet50d_224": _row(_BASE, 224, _RESNET50D),
    "vit_base_mci_224": {
        **_BASE,
        "image_size": 224,
        "patch_size": 1,
        "no_embed_class": True,
        "embed": functools.partial(HybridEmbed, backbone=conv_stem, project=False),
    },
}

registry.register("vit", VisionTransformer, VARIANTS)
