"""Vision Transformers: ViT, and DeiT with its distillation token.

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929;
Touvron et al., "Training data-efficient image transformers", https://arxiv.org/abs/2012.12877
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.models.base import Model
from jaxvision.models.layers import drop
from jaxvision.models.layers.attention import Attention
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import normal
from jaxvision.models.layers.mlp import Mlp, linear_init
from jaxvision.models.layers.norm import LayerScale
from jaxvision.models.layers.patch import PatchEmbed


def _layer_norm(features: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 costs digits that a comparison with timm needs.
    return nnx.LayerNorm(
        features, epsilon=1e-6, use_fast_variance=False, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )


class Block(nnx.Module):
    """Pre-norm transformer block: tokens plus attention, plus MLP."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        layer_scale: float | None,
        dropout: float,
        attention_dropout: float,
        drop_path: float,
        dtype: Any,
        param_dtype: Any,
        rngs: nnx.Rngs,
    ):
        d = embed_dim
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def scale() -> Any:
            return nnx.data(None) if layer_scale is None else LayerScale(d, layer_scale, param_dtype=param_dtype)

        self.norm1 = _layer_norm(d, **types)
        self.attn = Attention(d, num_heads, dropout=dropout, attention_dropout=attention_dropout, **types)
        self.ls1 = scale()
        self.drop_path1 = drop.DropPath(drop_path, rngs=rngs)
        self.norm2 = _layer_norm(d, **types)
        self.mlp = Mlp(d, int(d * mlp_ratio), dropout=dropout, **types)
        self.ls2 = scale()
        self.drop_path2 = drop.DropPath(drop_path, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the block."""
        y = self.attn(self.norm1(x))
        x = x + self.drop_path1(y if self.ls1 is None else self.ls1(y))
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.ls2 is None else self.ls2(y))


class VisionTransformer(Model):
    """Vision Transformer with a class token.

    Args:
      image_size: height and width of the images, in pixels.
      patch_size: height and width of a patch, in pixels; must divide `image_size`.
      in_channels: channels of the images.
      num_classes: width of the logits; 0 builds no head, and the model returns the pooled features.
      embed_dim: width d of the tokens.
      depth: number of blocks.
      num_heads: attention heads per block; must divide `embed_dim`.
      mlp_ratio: the MLP's hidden width as a multiple of `embed_dim`.
      layer_scale: first value of a LayerScale on each residual branch; None builds none.
      distilled: add DeiT's distillation token and its head.
      dropout: rate after the position embedding and after every linear layer but ``qkv`` and the head, as in the paper.
      attention_dropout: rate on the attention weights.
      drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
      dtype: of the computation, such as ``jnp.bfloat16``; None takes the promotion of images and parameters.
      param_dtype: of the parameters.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: `image_size` is not divisible by `patch_size`, or `embed_dim` by `num_heads`.

    Example:
      >>> model = VisionTransformer(image_size=32, embed_dim=64, depth=2, num_heads=2, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((1, 32, 32, 3))).shape
      (1, 1000)
      >>> model.forward_features(jnp.zeros((1, 32, 32, 3))).shape    # the class token and 2 x 2 patches
      (1, 5, 64)
    """

    first_conv = "patch_embed.proj"

    def __init__(
        self,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        distilled: bool = False,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d = embed_dim
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.image_size = image_size
        self.patch_size = patch_size
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.embed_dim = self.num_features = embed_dim
        self.dtype, self.param_dtype = dtype, param_dtype
        self.classifier_names = ("head", "head_dist") if distilled else ("head",)
        self.num_prefix_tokens = 2 if distilled else 1

        self.patch_embed = PatchEmbed(image_size, patch_size, in_channels, d, **types)
        self.grid_size = self.patch_embed.grid_size
        n = self.num_prefix_tokens + self.patch_embed.num_patches
        self.cls_token = nnx.Param(normal(1e-6)(rngs.params(), (1, 1, d), param_dtype))
        self.dist_token = nnx.Param(linear_init(rngs.params(), (1, 1, d), param_dtype)) if distilled else nnx.data(None)
        self.pos_embed = nnx.Param(linear_init(rngs.params(), (1, n, d), param_dtype))
        self.pos_drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.blocks = nnx.List(
            Block(
                d,
                num_heads,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                dropout=dropout,
                attention_dropout=attention_dropout,
                drop_path=rate,
                **types,
            )
            for rate in drop.rates(drop_path, depth)
        )
        self.norm = _layer_norm(d, **types)
        self.head = self._fresh_head(rngs)
        self.head_dist = self._fresh_head(rngs) if distilled else nnx.data(None)

    def _fresh_head(self, rngs: nnx.Rngs) -> Any:
        return linear_head(
            self.embed_dim,
            self.num_classes,
            kernel_init=linear_init,
            bias_init=nnx.initializers.zeros_init(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalised `images` [b, h, w, c]."""
        return self.forward_head(self.forward_features(images))

    def embed(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] that enter the first block: prefix tokens, then patches row by row."""
        x = self.patch_embed(images)
        b, _, d = x.shape
        prefix = [t[...] for t in (self.cls_token, self.dist_token) if t is not None]
        x = jnp.concatenate([jnp.broadcast_to(t.astype(x.dtype), (b, 1, d)) for t in prefix] + [x], axis=1)
        return self.pos_drop(x + self.pos_embed[...].astype(x.dtype))

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the normalised tokens [b, n, d] after the last block, prefix tokens included."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of `features` [b, n, d], or with `pre_logits` what the head sees [b, d].

        A distilled model returns the mean of its two heads (with `pre_logits`, of its two tokens) in either view. For
        a distillation loss apply ``model.head`` to ``features[:, 0]`` and ``model.head_dist`` to ``features[:, 1]``.
        """
        tokens = [features[:, i] for i in range(self.num_prefix_tokens)]
        if not pre_logits and self.num_classes:
            tokens = [getattr(self, name)(x) for name, x in zip(self.classifier_names, tokens, strict=True)]
        return sum(tokens[1:], tokens[0]) / len(tokens)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the head(s) by fresh ones of `num_classes` outputs (0: none); nothing else is touched."""
        self.num_classes = num_classes
        for name in self.classifier_names:
            setattr(self, name, self._fresh_head(rngs))

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns patterns of parameter names, first layer first: the embedding, then each block.

        The final norm goes with the last block, as in timm. What matches no pattern is the head's group. A block is
        the unit of coarse and of fine grouping, so `coarse` changes nothing here.
        """
        last = len(self.blocks) - 1
        blocks = [rf"blocks\.{i}\." + (r"|norm\." if i == last else "") for i in range(last + 1)]
        return (r"cls_token|dist_token|pos_embed|patch_embed\.", *blocks)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns the names that are never decayed, beyond those with ndim <= 1."""
        return ("cls_token", "pos_embed") if self.dist_token is None else ("cls_token", "dist_token", "pos_embed")

    def get_attention_maps(self, images: jax.Array, layer_idx: int = -1, drop_prefix: bool = False) -> jax.Array:
        """Returns how much each token of one block attends to each other.

        The weights are those before attention dropout. Blocks after `layer_idx` are not run. Works inside `jax.jit`.

        Args:
          images: [b, h, w, c], normalised.
          layer_idx: which block, from 0; negative counts from the last.
          drop_prefix: leave out the class (and distillation) token, as query and as key. The rows are not scaled up
            again: each then sums to the share of its attention that goes to patches, less than 1.

        Returns:
          float32 [b, heads, n, n], each row (last axis) summing to 1; n counts the prefix tokens, then patches row by
          row. With `drop_prefix` [b, heads, patches, patches].

        Raises:
          UserError: no such block.

        Example:
          >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
          >>> maps = model.get_attention_maps(jnp.zeros((1, 32, 32, 3)))
          >>> maps.shape
          (1, 2, 5, 5)
          >>> rows = maps[0, :, 0, 1:].reshape(2, *model.grid_size)       # from the class token to the patches
        """
        depth = len(self.blocks)
        if not -depth <= layer_idx < depth:
            raise UserError(f"layer_idx {layer_idx} is out of range: this model has {depth} blocks, 0 to {depth - 1}")
        layer_idx %= depth
        x = self.embed(images)
        for i in range(layer_idx):
            x = self.blocks[i](x)
        block = self.blocks[layer_idx]
        maps = block.attn.weights(block.norm1(x))
        skip = self.num_prefix_tokens if drop_prefix else 0
        return maps[:, :, skip:, skip:]


# --- sizes ---

_TINY = {"embed_dim": 192, "depth": 12, "num_heads": 3}
_SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
_BASE = {"embed_dim": 768, "depth": 12, "num_heads": 12}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}

VARIANTS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**_TINY, "patch_size": 16, "image_size": 224},
    "vit_tiny_patch16_384": {**_TINY, "patch_size": 16, "image_size": 384},
    "vit_small_patch16_224": {**_SMALL, "patch_size": 16, "image_size": 224},
    "vit_small_patch16_384": {**_SMALL, "patch_size": 16, "image_size": 384},
    "vit_small_patch32_224": {**_SMALL, "patch_size": 32, "image_size": 224},
    "vit_small_patch32_384": {**_SMALL, "patch_size": 32, "image_size": 384},
    "vit_base_patch16_224": {**_BASE, "patch_size": 16, "image_size": 224},
    "vit_base_patch16_384": {**_BASE, "patch_size": 16, "image_size": 384},
    "vit_base_patch32_224": {**_BASE, "patch_size": 32, "image_size": 224},
    "vit_base_patch32_384": {**_BASE, "patch_size": 32, "image_size": 384},
    "vit_large_patch16_224": {**_LARGE, "patch_size": 16, "image_size": 224},
    "vit_large_patch16_384": {**_LARGE, "patch_size": 16, "image_size": 384},
    "vit_large_patch32_224": {**_LARGE, "patch_size": 32, "image_size": 224},
    "vit_large_patch32_384": {**_LARGE, "patch_size": 32, "image_size": 384},
    "deit_tiny_patch16_224": {**_TINY, "patch_size": 16, "image_size": 224},
    "deit_small_patch16_224": {**_SMALL, "patch_size": 16, "image_size": 224},
    "deit_base_patch16_224": {**_BASE, "patch_size": 16, "image_size": 224},
    "deit_base_patch16_384": {**_BASE, "patch_size": 16, "image_size": 384},
    "deit_tiny_distilled_patch16_224": {**_TINY, "patch_size": 16, "image_size": 224, "distilled": True},
    "deit_small_distilled_patch16_224": {**_SMALL, "patch_size": 16, "image_size": 224, "distilled": True},
    "deit_base_distilled_patch16_224": {**_BASE, "patch_size": 16, "image_size": 224, "distilled": True},
    "deit_base_distilled_patch16_384": {**_BASE, "patch_size": 16, "image_size": 384, "distilled": True},
    # timm's own model for tests: a few milliseconds, yet every part
    "test_vit": {
        "embed_dim": 64,
        "depth": 6,
        "num_heads": 2,
        "mlp_ratio": 3.0,
        "patch_size": 16,
        "image_size": 160,
    },
}

registry.register("vit", VisionTransformer, VARIANTS)
