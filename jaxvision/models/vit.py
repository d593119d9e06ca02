"""Vision Transformers: ViT, its descendants, and DeiT with a distillation token.

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929;
Touvron et al., "Training data-efficient image transformers", https://arxiv.org/abs/2012.12877.
`vit_table` lists the papers of the other variants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.base import FeatureInfo, FineTuning, Model, PatchWeights, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.attention import AttentionPool
from jaxvision.models.layers.frozen import replace_layer
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import normal, zeros
from jaxvision.models.layers.mlp import ACTIVATIONS, linear_init
from jaxvision.models.layers.norm import LayerNorm, Norm
from jaxvision.models.layers.patch import PatchEmbed, resize_grid
from jaxvision.models.layers.pool import global_pool
from jaxvision.models.vit_blocks import Block, Parts
from jaxvision.platform import by_platform

POOLS = ("token", "avg", "avgmax", "max", "map", "")


def _row_major(x: jax.Array) -> jax.Array:
    """Returns tokens [b, n, d], laid out in this order.

    The gradient of the position embeddings is a sum over the images. For it XLA's GPU backend would store the tokens of
    all blocks with the images innermost, which costs a ViT-B a seventh of the memory traffic of a step.
    """
    return with_layout_constraint(x, Layout((0, 1, 2)))


class VisionTransformer(Model):
    """Vision Transformer.

    Args:
      image_size: size of the images in pixels: an integer for a square, or (height, width).
      patch_size: size of a patch in pixels: an integer, or (height, width). It must divide `image_size`.
      in_channels: channels of the images.
      num_classes: width of the logits; 0 to return pooled features instead.
      global_pool: how tokens are pooled for the head: ``"token"`` takes the class token; ``"avg"``, ``"max"`` and
        ``"avgmax"`` (their mean) pool the patches; ``"map"`` is attention pooling (`AttentionPool`); ``""`` applies the
        head to every token.
      embed_dim: width d of the tokens.
      depth: number of blocks.
      num_heads: attention heads per block. It must divide `embed_dim`.
      mlp_ratio: hidden width of the MLPs as a multiple of `embed_dim`.
      layer_scale: initial value of a LayerScale on each residual branch; None for no LayerScale.
      class_token: whether to put a class token before the patches.
      distilled: whether to add DeiT's distillation token and its head.
      reg_tokens: number of register tokens between class token and patches (https://arxiv.org/abs/2309.16588).
      no_embed_class: add position embeddings to the patches only, not to the tokens before them.
      pre_norm: normalize the tokens before the first block, as in CLIP. The patch embedding then has no bias.
      final_norm: normalize the tokens after the last block, or the pooled features.
      fc_norm: apply the final norm after pooling instead of before. None: if `global_pool` is ``"avg"``, ``"max"`` or
        ``"avgmax"``.
      pool_include_prefix: include the tokens before the patches in the pooling.
      dynamic_image_size: accept images of any size that `patch_size` divides. Position embeddings are resampled.
      ignore_remainder: accept an `image_size` that `patch_size` does not divide. The remaining pixels are ignored.
      interpolation: how weights for another patch size or grid are resampled when they are loaded: ``"bicubic"``, or
        ``"bilinear"`` without antialiasing, as in FlexiViT.
      embed: class that converts images to tokens, such as `PatchEmbed`.
      block: class of the blocks, such as `vit_blocks.Block`, or a partial of one.
      norm: class of all norms, such as `LayerNorm`.
      activation: activation of the MLPs: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"`` or ``"silu"``.
      dropout: dropout rate after the position embedding and after every linear layer except ``qkv`` and the head.
      head_dropout: dropout rate before the head.
      attention_dropout: dropout rate on the attention weights.
      drop_path: stochastic depth rate of the last block. It increases linearly from 0 at the first block.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; None for the promoted dtype of images and parameters.
      param_dtype: dtype of the parameters.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: `patch_size` does not divide `image_size`, `num_heads` does not divide `embed_dim`, or an argument has
        an unknown value or contradicts another one.

    Example:
      >>> model = VisionTransformer(image_size=32, embed_dim=64, depth=2, num_heads=2, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((1, 32, 32, 3))).shape
      (1, 1000)
      >>> model.forward_features(jnp.zeros((1, 32, 32, 3))).shape    # the class token and 2 x 2 patches
      (1, 5, 64)
    """

    table_only = ("embed", "block", "norm")
    block_pattern = r"blocks\.\d+\."
    # Each device computes some of the MLP's hidden channels, and the projection of some of the attention heads.
    tensor_rules = (
        (r".*\bmlp\.(fc1|fc1_g|fc1_x)\.kernel", PartitionSpec(None, "tensor")),
        (r".*\bmlp\.(fc1|fc1_g|fc1_x)\.bias", PartitionSpec("tensor")),
        (r".*\b(mlp\.fc2|attn\.proj)\.kernel", PartitionSpec("tensor")),
    )
    lora_pattern = block_pattern
    # The layer decay of MAE: https://arxiv.org/abs/2111.06377, table 9.
    fine_tuning = FineTuning(learning_rate=1e-4, layer_decay=0.75)
    explanation = "attention rollout"
    has_fixed_image_size = True
    default_feature_levels = 3
    missing_weight_hints = (
        (r"fc_norm\.", "These weights normalize before pooling. Build the model with fc_norm=False."),
    )

    def __init__(
        self,
        *,
        image_size: sizes.Size = 224,
        patch_size: sizes.Size = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        class_token: bool = True,
        distilled: bool = False,
        reg_tokens: int = 0,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        final_norm: bool = True,
        fc_norm: bool | None = None,
        pool_include_prefix: bool = False,
        dynamic_image_size: bool = False,
        ignore_remainder: bool = False,
        interpolation: str = "bicubic",
        embed: Callable[..., Any] = PatchEmbed,
        block: Callable[..., Any] = Block,
        norm: Norm = LayerNorm,
        activation: str = "gelu",
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        for name, count in (("embed_dim", embed_dim), ("depth", depth), ("num_heads", num_heads)):
            sizes.require_int(name, count, 1)
        sizes.require_int("reg_tokens", reg_tokens, 0)
        _check_pool(global_pool, class_token=class_token, distilled=distilled, reg_tokens=reg_tokens)
        _check_name("activation", activation, ACTIVATIONS)
        _check_name("interpolation", interpolation, ("bicubic", "bilinear"))
        self.image_size = sizes.side(sizes.pair("image_size", image_size))
        self.patch_size = sizes.side(sizes.pair("patch_size", patch_size))
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.embed_dim = self.num_features = embed_dim
        self.no_embed_class = no_embed_class
        self.pool_include_prefix = pool_include_prefix
        self.dynamic_image_size = dynamic_image_size
        self.interpolation = interpolation
        self.dtype, self.param_dtype = dtype, param_dtype
        self.classifier_names = ("head", "head_dist") if distilled else ("head",)

        d, none = embed_dim, nnx.data(None)
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_embed = embed(
            image_size,
            patch_size,
            in_channels,
            d,
            use_bias=not pre_norm,
            dynamic=dynamic_image_size,
            ignore_remainder=ignore_remainder,
            **types,
        )
        self.first_conv = f"patch_embed.{self.patch_embed.first_conv}"
        self.grid_size = self.patch_embed.grid_size
        self._add_tokens(class_token=class_token, distilled=distilled, reg_tokens=reg_tokens, rngs=rngs)
        self.pos_drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.norm_pre = norm(d, **types) if pre_norm else none
        parts = Parts(
            d,
            num_heads,
            norm,
            mlp_ratio=mlp_ratio,
            layer_scale=layer_scale,
            activation=activation,
            dropout=dropout,
            attention_dropout=attention_dropout,
            **types,
        )
        self.blocks = nnx.List(
            block(parts, index=i, drop_path=rate) for i, rate in enumerate(drop.rates(drop_path, depth))
        )
        self.feature_info = tuple(FeatureInfo(f"blocks.{i}", d, self.patch_embed.stride) for i in range(depth))
        if fc_norm is None:
            fc_norm = global_pool in ("avg", "avgmax", "max")
        self.norm = norm(d, **types) if final_norm and not fc_norm else none
        self.attn_pool: Any = none
        if global_pool == "map":
            self.attn_pool = AttentionPool(d, num_heads, mlp_ratio=mlp_ratio, norm=norm, activation=activation, **types)
        self.fc_norm = norm(d, **types) if final_norm and fc_norm else none
        self.head_drop = nnx.Dropout(head_dropout, deterministic=True, rngs=rngs) if head_dropout else none
        self.head = self._new_head(rngs)
        self.head_dist = self._new_head(rngs) if distilled else none

    def _add_tokens(self, *, class_token: bool, distilled: bool, reg_tokens: int, rngs: nnx.Rngs) -> None:
        """Adds the prefix tokens (class, distillation, registers) and the position embeddings."""
        d, dtype, none = self.embed_dim, self.param_dtype, nnx.data(None)
        self.num_prefix_tokens = class_token + distilled + reg_tokens
        n = self._prefix_positions() + self.patch_embed.num_patches
        self.cls_token = nnx.Param(normal(1e-6)(rngs.params(), (1, 1, d), dtype)) if class_token else none
        self.dist_token = nnx.Param(linear_init(rngs.params(), (1, 1, d), dtype)) if distilled else none
        self.reg_token = nnx.Param(normal(1e-6)(rngs.params(), (1, reg_tokens, d), dtype)) if reg_tokens else none
        self.pos_embed = nnx.Param(linear_init(rngs.params(), (1, n, d), dtype))

    def _new_head(self, rngs: nnx.Rngs) -> Any:
        return linear_head(
            self.embed_dim,
            self.num_classes,
            kernel_init=linear_init,
            bias_init=zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def embed(self, images: jax.Array) -> jax.Array:
        """Returns the input [b, n, d] of the first block: prefix tokens, then patches row by row."""
        x = self.patch_embed(images)
        b, _, d = x.shape
        tokens = [t[...].astype(x.dtype) for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        prefix = [jnp.broadcast_to(t, (b, t.shape[1], d)) for t in tokens]
        positions = self._positions(images).astype(x.dtype)
        if self.no_embed_class:
            x = jnp.concatenate([*prefix, x + positions], axis=1)
        else:
            x = jnp.concatenate([*prefix, x], axis=1) + positions
        x = self.pos_drop(x)
        return x if self.norm_pre is None else self.norm_pre(x)

    def _positions(self, images: jax.Array) -> jax.Array:
        positions, grid = self.pos_embed[...], self.grid_of(images)
        if grid == self.grid_size:
            return positions
        prefix = self._prefix_positions()
        patches = resize_grid(positions[:, prefix:], self.grid_size, grid)
        return jnp.concatenate([positions[:, :prefix], patches], axis=1)

    def _prefix_positions(self) -> int:
        return 0 if self.no_embed_class else self.num_prefix_tokens

    def grid_of(self, images: jax.Array) -> tuple[int, int]:
        """Returns the rows and columns of patches of `images` [b, h, w, c]; `grid_size` unless sizes are dynamic."""
        return self.patch_embed.grid(images.shape[1:3])

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the last block, including prefix tokens.

        The tokens are normalized, unless the norm follows the pooling (`fc_norm`) or there is no norm.

        Args:
          images: float [b, h, w, c], normalized.
        """
        x = by_platform(self.embed(images), gpu=_row_major, default=lambda x: x)
        x = self.run_blocks("blocks", self.blocks, x)
        return x if self.norm is None else self.norm(x)

    def forward_intermediates(
        self,
        images: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        intermediates_only: bool = False,
    ) -> Any:
        """Returns the features and the outputs of selected blocks as feature maps.

        Args:
          images: float [b, h, w, c], normalized.
          indices: None for all blocks, a number n for the last n, or positions (negative ones count from the end).
          return_prefix_tokens: return pairs (map, prefix tokens [b, prefix, d]) instead of maps, if there are
            prefix tokens.
          norm: apply the final norm to each map, if it precedes the pooling.
          intermediates_only: return the list of maps only. Later blocks are then not computed.

        Returns:
          ``(forward_features(images), maps)``, or ``maps``: a list of [b, grid rows, grid columns, d].

        Raises:
          UserError: a block does not exist, or the images do not fit the model.

        Example:
          >>> from jaxvision.models import registry
          >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
          >>> features, maps = model.forward_intermediates(jnp.zeros((1, 32, 32, 3)), 2)
          >>> features.shape, [x.shape for x in maps]
          ((1, 5, 64), [(1, 2, 2, 64), (1, 2, 2, 64)])
        """

        def final_norm(x: jax.Array) -> jax.Array:
            return x if self.norm is None else self.norm(x)

        wanted = feature_indices(indices, len(self.blocks))
        last = max(wanted, default=-1) if intermediates_only else len(self.blocks) - 1
        x = self.embed(images)
        outputs: dict[int, jax.Array] = {}
        for i in range(last + 1):
            x = self.blocks[i](x)
            if i in wanted:
                outputs[i] = final_norm(x) if norm else x
        b, p = x.shape[0], self.num_prefix_tokens
        maps: list[Any] = [y[:, p:].reshape(b, *self.grid_of(images), -1) for _, y in sorted(outputs.items())]
        if return_prefix_tokens and p:
            maps = [(x, y[:, :p]) for x, (_, y) in zip(maps, sorted(outputs.items()), strict=True)]
        return maps if intermediates_only else (final_norm(x), maps)

    def pool(self, features: jax.Array) -> jax.Array:
        """Returns `features` [b, n, d] pooled by `global_pool`: [b, d], or the features themselves for ``""``."""
        x = features if self.pool_include_prefix else features[:, self.num_prefix_tokens :]
        match self.global_pool:
            case "token":
                return features[:, 0]
            case "map":
                return self.attn_pool(x)
            case "":
                return features
        return global_pool(x[:, None], self.global_pool)  # tokens as an image with one row

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of `features` [b, n, d], or the pooled features [b, d] if `pre_logits`.

        A distilled model returns the mean of its two heads, or of its two tokens if `pre_logits`, in training as well.
        A distillation loss needs `forward_heads`.
        """
        outputs = self._pool_for_heads(features) if pre_logits else self.forward_heads(features)
        return sum(outputs[1:], outputs[0]) / len(outputs)

    def forward_heads(self, features: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the logits of the head, and those of the distillation head if there is one."""
        pooled = self._pool_for_heads(features)
        if not self.num_classes:
            return pooled
        return tuple(getattr(self, name)(x) for name, x in zip(self.classifier_names, pooled, strict=True))

    def _pool_for_heads(self, features: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the input [b, d] of each head."""
        pooled = [features[:, 0], features[:, 1]] if self.dist_token is not None else [self.pool(features)]
        pooled = [x if self.fc_norm is None else self.fc_norm(x) for x in pooled]
        return tuple(x if self.head_drop is None else self.head_drop(x) for x in pooled)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Replaces the head, or both heads of a distilled model, by newly initialized ones.

        Args:
          num_classes: width of the logits; 0 removes the head.
          rngs: stream ``params``.
          global_pool: new pooling; None keeps the current one. As in timm, the norm keeps its place before or after the
            pooling. Changing from ``"map"`` removes the attention pooling and its weights. Changing to ``"map"`` is
            not possible.

        Raises:
          UserError: the model does not support this pooling. The model is then unchanged.
        """
        sizes.require_int("num_classes", num_classes, 0)
        if global_pool is not None:
            tokens = {"class_token": self.cls_token is not None, "distilled": self.dist_token is not None}
            _check_pool(global_pool, **tokens, reg_tokens=self.reg_token is not None)
            if global_pool == "map" and self.attn_pool is None:
                raise UserError(
                    "global_pool: got 'map', but the model has no weights for it. Create it with global_pool='map'."
                )
            if global_pool != "map":
                self.attn_pool = nnx.data(None)
            self.global_pool = global_pool
            # The default of fc_norm depends on the pooling at construction, so an export has to store its value.
            self.options = with_options(self, global_pool=global_pool, fc_norm=self.fc_norm is not None)
        self.num_classes = num_classes
        for name in self.classifier_names:
            replace_layer(self, name, self._new_head(rngs))

    def cut(self, level: int) -> None:
        """Removes, in place, the layers after a level of `feature_info`, except the head."""
        self.blocks = nnx.List(list(self.blocks)[: level + 1])
        self.feature_info = self.feature_info[: level + 1]
        self.norm = self.fc_norm = self.attn_pool = nnx.data(None)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns patterns of parameter names in forward order: the embedding, then each block.

        As in timm, the final norm belongs to the last block. `coarse` has no effect, because a ViT has no stages.
        """
        last = len(self.blocks) - 1
        blocks = [rf"blocks\.{i}\." + (r"|norm\." if i == last else "") for i in range(last + 1)]
        return (r"cls_token|dist_token|reg_token|pos_embed|patch_embed\.|norm_pre\.", *blocks)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns the names of prefix tokens and position embeddings; see `Model.no_weight_decay`."""
        names = ("cls_token", "dist_token", "reg_token", "pos_embed")
        return tuple(name for name in names if getattr(self, name) is not None)

    def patch_weights(self) -> PatchWeights:
        """Returns the names of patch kernel and position embeddings; see `Model.patch_weights`."""
        prefix = self._prefix_positions()
        return PatchWeights("patch_embed.proj.kernel", "pos_embed", prefix, self.grid_size, self.interpolation)

    def ignored_weights(self) -> tuple[str, ...]:
        """Returns the name of the attention pooling if the model has none, as in timm; see `Model.ignored_weights`."""
        return ("attn_pool.",) if self.attn_pool is None else ()

    def get_attention_maps(self, images: jax.Array, layer_idx: int = -1, drop_prefix: bool = False) -> jax.Array:
        """Returns the attention weights of one block.

        Attention dropout is not applied to them. Later blocks are not computed. The method works inside `jax.jit`.

        Args:
          images: float [b, h, w, c], normalized.
          layer_idx: index of the block, from 0; negative indices count from the end.
          drop_prefix: leave out the tokens before the patches (class, distillation, registers), as queries and as keys.
            Rows are not rescaled, so each sums to the share of attention that patches receive, less than 1.

        Returns:
          float32 [b, heads, n, n]; each row (last axis) sums to 1. Tokens are in order: prefix tokens, then patches row
          by row. With `drop_prefix`: [b, heads, patches, patches]. Differential attention (``vit_dwee``,
          ``vit_dlittle``, ``vit_dpwee``) returns the difference of two softmaxes: weights may be negative, and rows sum
          to 1 - lambda. A block with two parallel attention layers (``18x2``) returns the heads of both:
          [b, 2 heads, n, n].

        Raises:
          UserError: a block does not exist, or the images do not fit the model.

        Example:
          >>> from jaxvision.models import registry
          >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
          >>> maps = model.get_attention_maps(jnp.zeros((1, 32, 32, 3)))
          >>> maps.shape
          (1, 2, 5, 5)
          >>> rows = maps[0, :, 0, 1:].reshape(2, *model.grid_size)       # from the class token to the patches
        """
        depth = len(self.blocks)
        if not -depth <= layer_idx < depth:
            raise UserError(
                f"layer_idx: got {layer_idx}, expected a block from 0 to {depth - 1}, or from -{depth} to -1."
            )
        layer_idx %= depth
        x = self.embed(images)
        for i in range(layer_idx):
            x = self.blocks[i](x)
        maps = self.blocks[layer_idx].weights(x)
        skip = self.num_prefix_tokens if drop_prefix else 0
        return maps[:, :, skip:, skip:]


def _check_name(what: str, name: str, valid: Sequence[str]) -> None:
    if name not in valid:
        raise unknown_name_error(what, name, valid)


def _check_pool(global_pool: str, *, class_token: bool, distilled: bool, reg_tokens: int) -> None:
    _check_name("global_pool", global_pool, POOLS)
    if global_pool == "token" and not class_token:
        raise UserError("global_pool: got 'token' with class_token=False. Choose another pooling, such as 'avg'.")
    if distilled and (global_pool != "token" or reg_tokens or not class_token):
        raise UserError(
            f"distilled: got global_pool={global_pool!r}, class_token={class_token}, reg_tokens={int(reg_tokens)}. "
            "A distilled model needs global_pool='token', class_token=True and reg_tokens=0."
        )
