"""Vision Transformers: ViT and its many descendants, and DeiT with its distillation token.

Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929;
Touvron et al., "Training data-efficient image transformers", https://arxiv.org/abs/2012.12877.
The papers of the other variants stand beside their rows in the table at the end. The blocks are in `vit_blocks`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models import registry
from jaxvision.models.base import FeatureInfo, Model, feature_indices, with_options
from jaxvision.models.layers import drop, sizes
from jaxvision.models.layers.attention import Attention, AttentionPool, DifferentialAttention
from jaxvision.models.layers.head import linear_head
from jaxvision.models.layers.init import normal, zeros
from jaxvision.models.layers.mlp import ACTIVATIONS, GluMlp, Mlp, SwiGlu, linear_init
from jaxvision.models.layers.norm import LayerNorm, Norm, RMSNorm
from jaxvision.models.layers.patch import PatchEmbed, Size, resize_grid
from jaxvision.models.layers.pool import global_pool
from jaxvision.models.vit_blocks import (
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    Parts,
    ResPostBlock,
)

POOLS = ("token", "avg", "avgmax", "max", "map", "")


class VisionTransformer(Model):
    """Vision Transformer.

    Args:
      image_size: of the images, in pixels: a square's side, or (height, width).
      patch_size: of a patch, in pixels: a square's side, or (height, width); must divide `image_size`.
      in_channels: channels of the images.
      num_classes: width of the logits; 0 builds no head, and the model returns the pooled features.
      global_pool: what the head sees of the tokens: ``"token"`` the class token; ``"avg"``, ``"max"`` or ``"avgmax"``
        (their mean) of the patches; ``"map"`` what a learned query reads from them (`AttentionPool`); ``""`` all of
        them, one by one.
      embed_dim: width d of the tokens.
      depth: number of blocks.
      num_heads: attention heads per block; must divide `embed_dim`.
      mlp_ratio: the MLP's hidden width as a multiple of `embed_dim`.
      layer_scale: first value of a LayerScale on each residual branch; None builds none.
      class_token: put a class token before the patches.
      distilled: add DeiT's distillation token and its head.
      reg_tokens: number of register tokens between class token and patches (https://arxiv.org/abs/2309.16588).
      no_embed_class: give position embeddings to the patches only, not to the tokens before them.
      pre_norm: normalize the tokens that enter the first block, as CLIP does; the patches then have no bias.
      final_norm: normalize the tokens after the last block, or what is pooled from them.
      fc_norm: normalize after pooling instead of before. None: for the pools ``"avg"``, ``"max"`` and ``"avgmax"``.
      pool_include_prefix: pool over the tokens before the patches, too.
      dynamic_image_size: accept images of any size that patches tile; position embeddings are resampled to it.
      ignore_remainder: accept an `image_size` that patches do not tile; the last pixels are then not looked at.
      interpolation: how weights for another patch size or grid are resampled when they are loaded: ``"bicubic"``, or
        ``"bilinear"`` without antialiasing, which suits FlexiViT.
      embed: from images to tokens, such as `PatchEmbed`.
      block: such as `vit_blocks.Block`, or one with some of its options given.
      norm: everywhere, such as `LayerNorm`.
      activation: of the MLPs: ``"gelu"``, ``"gelu_tanh"``, ``"quick_gelu"`` or ``"silu"``.
      dropout: rate after the position embedding and after every linear layer but ``qkv`` and the head, as in the paper.
      head_dropout: rate before the head.
      attention_dropout: rate on the attention weights.
      drop_path: stochastic depth of the last block; it rises linearly from 0 at the first.
      dtype: of the computation, such as ``jnp.bfloat16``; None takes the promotion of images and parameters.
      param_dtype: of the parameters.
      rngs: streams ``params`` and ``dropout``.

    Raises:
      UserError: `image_size` is not divisible by `patch_size`, or `embed_dim` by `num_heads`; a pool that there is not,
        or that reads a token that there is not.

    Example:
      >>> model = VisionTransformer(image_size=32, embed_dim=64, depth=2, num_heads=2, rngs=nnx.Rngs(0))
      >>> model(jnp.zeros((1, 32, 32, 3))).shape
      (1, 1000)
      >>> model.forward_features(jnp.zeros((1, 32, 32, 3))).shape    # the class token and 2 x 2 patches
      (1, 5, 64)
    """

    table_only = ("embed", "block", "norm")
    block_pattern = r"blocks\.\d+\."
    # Each device computes some of the MLP's hidden channels, and its share of the projection after attention.
    tensor_rules = (
        (r".*\bmlp\.(fc1|fc1_g|fc1_x)\.kernel", PartitionSpec(None, "tensor")),
        (r".*\bmlp\.(fc1|fc1_g|fc1_x)\.bias", PartitionSpec("tensor")),
        (r".*\b(mlp\.fc2|attn\.proj)\.kernel", PartitionSpec("tensor")),
    )
    explanation = "attention rollout"
    has_fixed_image_size = True
    default_feature_levels = 3

    def __init__(
        self,
        *,
        image_size: Size = 224,
        patch_size: Size = 16,
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
        d = embed_dim
        types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        for name, count in (("embed_dim", embed_dim), ("depth", depth), ("num_heads", num_heads)):
            sizes.require_int(name, count, 1)
        sizes.require_int("reg_tokens", reg_tokens, 0)
        _check_pool(global_pool, class_token=class_token, distilled=distilled, reg_tokens=reg_tokens)
        _check_name("activation", activation, ACTIVATIONS)
        _check_name("interpolation", interpolation, ("bicubic", "bilinear"))
        if fc_norm is None:
            fc_norm = global_pool in ("avg", "avgmax", "max")
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
        self.num_prefix_tokens = class_token + distilled + reg_tokens

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
        n = self.patch_embed.num_patches + (0 if no_embed_class else self.num_prefix_tokens)
        none = nnx.data(None)
        self.cls_token = nnx.Param(normal(1e-6)(rngs.params(), (1, 1, d), param_dtype)) if class_token else none
        self.dist_token = nnx.Param(linear_init(rngs.params(), (1, 1, d), param_dtype)) if distilled else none
        self.reg_token = nnx.Param(normal(1e-6)(rngs.params(), (1, reg_tokens, d), param_dtype)) if reg_tokens else none
        self.pos_embed = nnx.Param(linear_init(rngs.params(), (1, n, d), param_dtype))
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
        self.norm = norm(d, **types) if final_norm and not fc_norm else none
        self.attn_pool: Any = none
        if global_pool == "map":
            self.attn_pool = AttentionPool(d, num_heads, mlp_ratio=mlp_ratio, norm=norm, activation=activation, **types)
        self.fc_norm = norm(d, **types) if final_norm and fc_norm else none
        self.head_drop = nnx.Dropout(head_dropout, deterministic=True, rngs=rngs) if head_dropout else none
        self.head = self._fresh_head(rngs)
        self.head_dist = self._fresh_head(rngs) if distilled else none

    def _fresh_head(self, rngs: nnx.Rngs) -> Any:
        return linear_head(
            self.embed_dim,
            self.num_classes,
            kernel_init=linear_init,
            bias_init=zeros,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits [b, num_classes] of normalized `images` [b, h, w, c]."""
        return self.forward_head(self.forward_features(images))

    def embed(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] that enter the first block: prefix tokens, then patches row by row."""
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
        own = 0 if self.no_embed_class else self.num_prefix_tokens
        return jnp.concatenate([positions[:, :own], resize_grid(positions[:, own:], self.grid_size, grid)], axis=1)

    def grid_of(self, images: jax.Array) -> tuple[int, int]:
        """Returns the patches per column and per row of `images` [b, h, w, c]; `grid_size` unless sizes are dynamic."""
        return self.patch_embed.grid(images.shape[1:3])

    def forward_features(self, images: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the last block, prefix tokens included.

        They are normalized, unless the norm comes after pooling (``fc_norm``) or there is none.
        """
        x = self.run_blocks("blocks", self.blocks, self.embed(images))
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
        """Returns the features and what comes out of some blocks, as maps.

        Args:
          images: [b, h, w, c], normalized.
          indices: which blocks: the last n, those of a sequence (negative ones count from the last), or all.
          return_prefix_tokens: give (map, prefix tokens [b, prefix, d]) instead of each map, if there are such tokens.
          norm: apply the final norm to each, if it comes before pooling.
          intermediates_only: return the maps alone; blocks after the last that is asked for are not run.

        Returns:
          (tokens [b, n, d] as of `forward_features`, [maps [b, grid height, grid width, d]]), or the maps.

        Raises:
          UserError: no such block.

        Example:
          >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
          >>> features, maps = model.forward_intermediates(jnp.zeros((1, 32, 32, 3)), 2)
          >>> features.shape, [x.shape for x in maps]
          ((1, 5, 64), [(1, 2, 2, 64), (1, 2, 2, 64)])
        """

        def final(x: jax.Array) -> jax.Array:
            return x if self.norm is None else self.norm(x)

        wanted = feature_indices(indices, len(self.blocks))
        last = max(wanted, default=-1) if intermediates_only else len(self.blocks) - 1
        x = self.embed(images)
        kept: dict[int, jax.Array] = {}
        for i in range(last + 1):
            x = self.blocks[i](x)
            if i in wanted:
                kept[i] = final(x) if norm else x
        b, p = x.shape[0], self.num_prefix_tokens
        maps: list[Any] = [y[:, p:].reshape(b, *self.grid_of(images), -1) for _, y in sorted(kept.items())]
        if return_prefix_tokens and p:
            maps = [(image, y[:, :p]) for image, (_, y) in zip(maps, sorted(kept.items()), strict=True)]
        return maps if intermediates_only else (final(x), maps)

    def pool(self, features: jax.Array) -> jax.Array:
        """Returns what `global_pool` makes of `features` [b, n, d]: [b, d], or the features themselves for ``""``."""
        x = features if self.pool_include_prefix else features[:, self.num_prefix_tokens :]
        match self.global_pool:
            case "token":
                return features[:, 0]
            case "map":
                return self.attn_pool(x)
            case "":
                return features
        return global_pool(x[:, None], self.global_pool)  # the tokens as an image of one row

    def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
        """Returns the logits [b, num_classes] of `features` [b, n, d], or with `pre_logits` what the head sees [b, d].

        A distilled model returns the mean of its two heads (with `pre_logits`, of its two tokens) in either view. For
        a distillation loss apply ``model.head`` to ``features[:, 0]`` and ``model.head_dist`` to ``features[:, 1]``.
        """
        pooled = [features[:, 0], features[:, 1]] if self.dist_token is not None else [self.pool(features)]
        pooled = [x if self.fc_norm is None else self.fc_norm(x) for x in pooled]
        pooled = [x if self.head_drop is None else self.head_drop(x) for x in pooled]
        if not pre_logits and self.num_classes:
            pooled = [getattr(self, name)(x) for name, x in zip(self.classifier_names, pooled, strict=True)]
        return sum(pooled[1:], pooled[0]) / len(pooled)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs, global_pool: str | None = None) -> None:
        """Replaces the head(s) by fresh ones of `num_classes` outputs (0: none); nothing else is touched.

        Args:
          num_classes: width of the logits; 0 for no head.
          rngs: stream ``params``.
          global_pool: another pooling. The norm stays where it is, before pooling or after, as in timm: what is built
            with ``global_pool="avg"`` normalizes after. Attention pooling is left away with its weights, and cannot be
            had where it was not built. None keeps the pooling there is.

        Raises:
          UserError: a pooling that there is not, or that this model cannot be given. Nothing is changed then.
        """
        sizes.require_int("num_classes", num_classes, 0)
        if global_pool is not None:
            tokens = {"class_token": self.cls_token is not None, "distilled": self.dist_token is not None}
            _check_pool(global_pool, **tokens, reg_tokens=self.reg_token is not None)
            if global_pool == "map" and self.attn_pool is None:
                raise UserError("attention pooling has weights: build the model with global_pool='map' to have them")
            if global_pool != "map":
                self.attn_pool = nnx.data(None)
            self.global_pool = global_pool
            # Where the norm is follows from the pooling only when a model is built.
            self.options = with_options(self, global_pool=global_pool, fc_norm=self.fc_norm is not None)
        self.num_classes = num_classes
        for name in self.classifier_names:
            setattr(self, name, self._fresh_head(rngs))

    def cut(self, level: int) -> None:
        """Takes away, in place, what comes after a level of `feature_info`, but for the head."""
        self.blocks = nnx.List(list(self.blocks)[: level + 1])
        self.feature_info = self.feature_info[: level + 1]
        self.norm = self.fc_norm = self.attn_pool = nnx.data(None)

    def layer_groups(self, coarse: bool = False) -> tuple[str, ...]:
        """Returns patterns of parameter names, first layer first: the embedding, then each block.

        The final norm goes with the last block, as in timm. What matches no pattern is the head's group. A block is
        the unit of coarse and of fine grouping, so `coarse` changes nothing here.
        """
        last = len(self.blocks) - 1
        blocks = [rf"blocks\.{i}\." + (r"|norm\." if i == last else "") for i in range(last + 1)]
        return (r"cls_token|dist_token|reg_token|pos_embed|patch_embed\.|norm_pre\.", *blocks)

    def no_weight_decay(self) -> tuple[str, ...]:
        """Returns the names that are never decayed, beyond those with ndim <= 1."""
        names = ("cls_token", "dist_token", "reg_token", "pos_embed")
        return tuple(name for name in names if getattr(self, name) is not None)

    def get_attention_maps(self, images: jax.Array, layer_idx: int = -1, drop_prefix: bool = False) -> jax.Array:
        """Returns how much each token of one block attends to each other.

        The weights are those before attention dropout. Blocks after `layer_idx` are not run. Works inside `jax.jit`.

        Args:
          images: [b, h, w, c], normalized.
          layer_idx: which block, from 0; negative counts from the last.
          drop_prefix: leave out the tokens before the patches (class, distillation, registers), as query and as key.
            The rows are not scaled up again: each then sums to the share of its attention that goes to patches, less
            than 1.

        Returns:
          float32 [b, heads, n, n], each row (last axis) summing to 1; n counts the prefix tokens, then patches row by
          row. With `drop_prefix` [b, heads, patches, patches]. Differential attention (``vit_dwee``, ``vit_dlittle``,
          ``vit_dpwee``) mixes by the difference of two softmaxes, and that is what is returned: weights may be
          negative, and rows sum to 1 - lambda. A block of two attention layers side by side (``18x2``) gives the heads
          of both, [b, 2 heads, n, n].

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
        maps = self.blocks[layer_idx].weights(x)
        skip = self.num_prefix_tokens if drop_prefix else 0
        return maps[:, :, skip:, skip:]


def _check_name(what: str, name: str, valid: Sequence[str]) -> None:
    if name not in valid:
        raise unknown_name_error(what, name, valid)


def _check_pool(global_pool: str, *, class_token: bool, distilled: bool, reg_tokens: int) -> None:
    _check_name("global_pool", global_pool, POOLS)
    if global_pool == "token" and not class_token:
        raise UserError("global_pool 'token' reads the class token, and class_token=False builds none")
    if distilled and (global_pool != "token" or reg_tokens or not class_token):
        raise UserError(
            "a distilled model reads its class token and its distillation token: it has the global_pool 'token', a "
            "class token and no registers"
        )


# --- the table: sizes, what sets one kind of model apart from another, one row for each entrypoint of timm ---


def _size(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0) -> dict[str, Any]:
    return {"embed_dim": embed_dim, "depth": depth, "num_heads": num_heads, "mlp_ratio": mlp_ratio}


def _row(size: dict[str, Any], patch_size: int, image_size: int, *kinds: dict[str, Any], **more: Any) -> dict[str, Any]:
    row = {**size, "patch_size": patch_size, "image_size": image_size}
    for kind in kinds:
        row |= kind
    return row | more


_TINY = _size(192, 12, 3)
_SMALL = _size(384, 12, 6)
_MEDIUM = _size(512, 12, 8)
_MEDIUMD = _size(512, 20, 8)
_BETWIXT = _size(640, 12, 10)
_BASE = _size(768, 12, 12)
_PLUS = _size(896, 12, 14)
_LARGE = _size(1024, 24, 16)
_HUGE = _size(1280, 32, 16)
_GIANT = _size(1408, 40, 16, 48 / 11)
_GIANTOPT = _size(1536, 40, 16)
_GIGANTIC = _size(1664, 48, 16, 64 / 13)
_WEE = _size(256, 14, 4, 5.0)
_PWEE = _size(256, 16, 4, 5.0)
_LITTLE = _size(320, 14, 5, 5.6)
_SO150M = _size(896, 18, 14, 2.572)
_SO150M2 = _size(832, 21, 13, 34 / 13)
_SO400M = _size(1152, 27, 16, 3.7362)
_DINO_GIANT = _size(1536, 40, 24, 5.33334) | {"activation": "silu", "block": functools.partial(Block, mlp=GluMlp)}
_AIM_LARGE = _size(1024, 24, 8, 2.75)
_AIM_HUGE = _size(1536, 24, 12, 2.6667)
_AIM_1B = _size(2048, 24, 16, 2.75)
_AIM_3B = _size(3072, 24, 24, 2.6667)

_LAYER_NORM_5 = functools.partial(LayerNorm, epsilon=1e-5)
_RMS_NORM_5 = functools.partial(RMSNorm, epsilon=1e-5)
_NO_QKV_BIAS = functools.partial(Attention, qkv_bias=False)

_MIIL = {"block": functools.partial(Block, attention=_NO_QKV_BIAS)}
_GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_GAP_NO_BIAS = _GAP | _MIIL | {"layer_scale": 1e-6}
_MAP = {"class_token": False, "global_pool": "map"}
_CLIP = {"pre_norm": True, "norm": _LAYER_NORM_5}
_QUICK = {"activation": "quick_gelu"}
_TANH = {"activation": "gelu_tanh"}
_DEIT3 = {"no_embed_class": True, "layer_scale": 1e-6}
_FLEXI = {"no_embed_class": True, "interpolation": "bilinear"}
_SO150_REG = {"class_token": False, "reg_tokens": 1, "global_pool": "avg", "layer_scale": 1e-5} | _MIIL
_DIFF = {"block": functools.partial(Block, attention=DifferentialAttention)}
_PARALLEL = {"block": ParallelScalingBlock}
_DIFF_PARALLEL = {"block": DiffParallelScalingBlock}
_THINGS = {"block": ParallelThingsBlock, "layer_scale": 1e-5}
_POST = {
    "class_token": False,
    "global_pool": "avg",
    "layer_scale": 1e-5,
    "block": functools.partial(ResPostBlock, attention=_NO_QKV_BIAS),
}
_XP = {
    "pre_norm": True,
    "no_embed_class": True,
    "norm": RMSNorm,
    "block": functools.partial(ParallelScalingBlock, qkv_bias=False, qk_norm=RMSNorm),
}
_AIM = _GAP | {
    "activation": "silu",
    "norm": _RMS_NORM_5,
    "embed": functools.partial(PatchEmbed, norm=_RMS_NORM_5),
    "block": functools.partial(
        Block,
        attention=functools.partial(Attention, qkv_bias=False, proj_bias=False),
        mlp=functools.partial(SwiGlu, use_bias=False),
    ),
}
_BEIT3 = {
    "global_pool": "avg",
    "norm": _LAYER_NORM_5,
    "block": functools.partial(
        Block,
        attention=functools.partial(Attention, out_norm=_LAYER_NORM_5),
        mlp=functools.partial(Mlp, norm=_LAYER_NORM_5),
    ),
}


def _tokens(reg_tokens: int) -> dict[str, Any]:
    return {"reg_tokens": reg_tokens, "no_embed_class": True}


def _regs(reg_tokens: int) -> dict[str, Any]:
    return _tokens(reg_tokens) | {"class_token": False, "global_pool": "avg", "layer_scale": 1e-5}


VARIANTS: dict[str, dict[str, Any]] = {
    # augreg, the original weights, DINO, MAE, SAM, MIIL: one class token, learned positions
    "vit_tiny_patch16_224": _row(_TINY, 16, 224),
    "vit_tiny_patch16_384": _row(_TINY, 16, 384),
    "vit_small_patch16_224": _row(_SMALL, 16, 224),
    "vit_small_patch16_384": _row(_SMALL, 16, 384),
    "vit_small_patch32_224": _row(_SMALL, 32, 224),
    "vit_small_patch32_384": _row(_SMALL, 32, 384),
    "vit_small_patch8_224": _row(_SMALL, 8, 224),
    "vit_base_patch16_224": _row(_BASE, 16, 224),
    "vit_base_patch16_224_miil": _row(_BASE, 16, 224, _MIIL),
    "vit_base_patch16_384": _row(_BASE, 16, 384),
    "vit_base_patch32_224": _row(_BASE, 32, 224),
    "vit_base_patch32_384": _row(_BASE, 32, 384),
    "vit_base_patch8_224": _row(_BASE, 8, 224),
    "vit_large_patch14_224": _row(_LARGE, 14, 224),
    "vit_large_patch16_224": _row(_LARGE, 16, 224),
    "vit_large_patch16_384": _row(_LARGE, 16, 384),
    "vit_large_patch32_224": _row(_LARGE, 32, 224),
    "vit_large_patch32_384": _row(_LARGE, 32, 384),
    "vit_huge_patch14_224": _row(_HUGE, 14, 224),
    "vit_giant_patch14_224": _row(_GIANT, 14, 224),
    "vit_gigantic_patch14_224": _row(_GIGANTIC, 14, 224),
    # no class token: the mean of the patches
    "vit_medium_patch16_gap_240": _row(_MEDIUM, 16, 240, _GAP_NO_BIAS),
    "vit_medium_patch16_gap_256": _row(_MEDIUM, 16, 256, _GAP_NO_BIAS),
    "vit_medium_patch16_gap_384": _row(_MEDIUM, 16, 384, _GAP_NO_BIAS),
    "vit_betwixt_patch16_gap_256": _row(_BETWIXT, 16, 256, _GAP_NO_BIAS),
    "vit_base_patch16_gap_224": _row(_size(768, 12, 16), 16, 224, _GAP),
    "vit_huge_patch14_gap_224": _row(_HUGE, 14, 224, _GAP),
    "vit_huge_patch16_gap_448": _row(_HUGE, 16, 448, _GAP),
    "vit_giant_patch16_gap_224": _row(_GIANT, 16, 224, _GAP),
    # means of the patches behind a class token: EVA (https://arxiv.org/abs/2211.07636)
    "eva_large_patch14_196": _row(_LARGE, 14, 196, global_pool="avg"),
    "eva_large_patch14_336": _row(_LARGE, 14, 336, global_pool="avg"),
    # CLIP (https://arxiv.org/abs/2103.00020) and its followers
    "vit_xsmall_patch16_clip_224": _row(_size(256, 10, 4), 16, 224, _CLIP),
    "vit_medium_patch16_clip_224": _row(_MEDIUM, 16, 224, _CLIP),
    "vit_medium_patch32_clip_224": _row(_MEDIUM, 32, 224, _CLIP),
    "vit_betwixt_patch32_clip_224": _row(_BETWIXT, 32, 224, _CLIP),
    "vit_base_patch16_clip_224": _row(_BASE, 16, 224, _CLIP),
    "vit_base_patch16_clip_384": _row(_BASE, 16, 384, _CLIP),
    "vit_base_patch32_clip_224": _row(_BASE, 32, 224, _CLIP),
    "vit_base_patch32_clip_256": _row(_BASE, 32, 256, _CLIP),
    "vit_base_patch32_clip_384": _row(_BASE, 32, 384, _CLIP),
    "vit_base_patch32_clip_448": _row(_BASE, 32, 448, _CLIP),
    "vit_base_patch16_plus_clip_240": _row(_PLUS, 16, 240, _CLIP),
    "vit_large_patch14_clip_224": _row(_LARGE, 14, 224, _CLIP),
    "vit_large_patch14_clip_336": _row(_LARGE, 14, 336, _CLIP),
    "vit_huge_patch14_clip_224": _row(_HUGE, 14, 224, _CLIP),
    "vit_huge_patch14_clip_336": _row(_HUGE, 14, 336, _CLIP),
    "vit_huge_patch14_clip_378": _row(_HUGE, 14, 378, _CLIP),
    "vit_giant_patch14_clip_224": _row(_GIANT, 14, 224, _CLIP),
    "vit_gigantic_patch14_clip_224": _row(_GIGANTIC, 14, 224, _CLIP),
    "vit_gigantic_patch14_clip_378": _row(_GIGANTIC, 14, 378, _CLIP),
    # CLIP as OpenAI, DFN and MetaCLIP trained it
    "vit_base_patch16_clip_quickgelu_224": _row(_BASE, 16, 224, _CLIP, _QUICK),
    "vit_base_patch32_clip_quickgelu_224": _row(_BASE, 32, 224, _CLIP, _QUICK),
    "vit_large_patch14_clip_quickgelu_224": _row(_LARGE, 14, 224, _CLIP, _QUICK),
    "vit_large_patch14_clip_quickgelu_336": _row(_LARGE, 14, 336, _CLIP, _QUICK),
    "vit_huge_patch14_clip_quickgelu_224": _row(_HUGE, 14, 224, _CLIP, _QUICK),
    "vit_huge_patch14_clip_quickgelu_378": _row(_HUGE, 14, 378, _CLIP, _QUICK),
    "vit_gigantic_patch14_clip_quickgelu_224": _row(_GIGANTIC, 14, 224, _CLIP, _QUICK),
    # SigLIP (https://arxiv.org/abs/2303.15343): a learned query reads the patches
    "vit_base_patch16_siglip_224": _row(_BASE, 16, 224, _MAP),
    "vit_base_patch16_siglip_256": _row(_BASE, 16, 256, _MAP),
    "vit_base_patch16_siglip_384": _row(_BASE, 16, 384, _MAP),
    "vit_base_patch16_siglip_512": _row(_BASE, 16, 512, _MAP),
    "vit_base_patch32_siglip_256": _row(_BASE, 32, 256, _MAP, _TANH),
    "vit_large_patch16_siglip_256": _row(_LARGE, 16, 256, _MAP),
    "vit_large_patch16_siglip_384": _row(_LARGE, 16, 384, _MAP),
    "vit_large_patch16_siglip_512": _row(_LARGE, 16, 512, _MAP, _TANH),
    "vit_so400m_patch14_siglip_224": _row(_SO400M, 14, 224, _MAP),
    "vit_so400m_patch14_siglip_378": _row(_SO400M, 14, 378, _MAP),
    "vit_so400m_patch14_siglip_384": _row(_SO400M, 14, 384, _MAP, ignore_remainder=True),
    "vit_so400m_patch16_siglip_256": _row(_SO400M, 16, 256, _MAP, _TANH),
    "vit_so400m_patch16_siglip_384": _row(_SO400M, 16, 384, _MAP, _TANH),
    "vit_so400m_patch16_siglip_512": _row(_SO400M, 16, 512, _MAP, _TANH),
    "vit_giantopt_patch16_siglip_256": _row(_GIANTOPT, 16, 256, _MAP, _TANH),
    "vit_giantopt_patch16_siglip_384": _row(_GIANTOPT, 16, 384, _MAP, _TANH),
    # SigLIP without the learned query, and PaliGemma (https://arxiv.org/abs/2407.07726)
    "vit_base_patch16_siglip_gap_224": _row(_BASE, 16, 224, _GAP),
    "vit_base_patch16_siglip_gap_256": _row(_BASE, 16, 256, _GAP),
    "vit_base_patch16_siglip_gap_384": _row(_BASE, 16, 384, _GAP),
    "vit_base_patch16_siglip_gap_512": _row(_BASE, 16, 512, _GAP),
    "vit_base_patch32_siglip_gap_256": _row(_BASE, 32, 256, _GAP, _TANH),
    "vit_large_patch16_siglip_gap_256": _row(_LARGE, 16, 256, _GAP),
    "vit_large_patch16_siglip_gap_384": _row(_LARGE, 16, 384, _GAP),
    "vit_large_patch16_siglip_gap_512": _row(_LARGE, 16, 512, _GAP, _TANH),
    "vit_so400m_patch14_siglip_gap_224": _row(_SO400M, 14, 224, _GAP),
    "vit_so400m_patch14_siglip_gap_378": _row(_SO400M, 14, 378, _GAP),
    "vit_so400m_patch14_siglip_gap_384": _row(_SO400M, 14, 384, _GAP, ignore_remainder=True),
    "vit_so400m_patch14_siglip_gap_448": _row(_SO400M, 14, 448, _GAP),
    "vit_so400m_patch14_siglip_gap_896": _row(_SO400M, 14, 896, _GAP),
    "vit_so400m_patch16_siglip_gap_256": _row(_SO400M, 16, 256, _GAP, _TANH),
    "vit_so400m_patch16_siglip_gap_384": _row(_SO400M, 16, 384, _GAP, _TANH),
    "vit_so400m_patch16_siglip_gap_512": _row(_SO400M, 16, 512, _GAP, _TANH),
    "vit_giantopt_patch16_siglip_gap_256": _row(_GIANTOPT, 16, 256, _GAP, _TANH),
    "vit_giantopt_patch16_siglip_gap_384": _row(_GIANTOPT, 16, 384, _GAP, _TANH),
    # DINOv2 (https://arxiv.org/abs/2304.07193), TIPSv2 (https://arxiv.org/abs/2604.12012)
    "vit_small_patch14_dinov2": _row(_SMALL, 14, 518, layer_scale=1e-5),
    "vit_small_patch14_reg4_dinov2": _row(_SMALL, 14, 518, _tokens(4), layer_scale=1e-5),
    "vit_base_patch14_dinov2": _row(_BASE, 14, 518, layer_scale=1e-5),
    "vit_base_patch14_reg1_tipsv2": _row(_BASE, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_base_patch14_reg4_dinov2": _row(_BASE, 14, 518, _tokens(4), layer_scale=1e-5),
    "vit_large_patch14_dinov2": _row(_LARGE, 14, 518, layer_scale=1e-5),
    "vit_large_patch14_reg1_tipsv2": _row(_LARGE, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_large_patch14_reg4_dinov2": _row(_LARGE, 14, 518, _tokens(4), layer_scale=1e-5),
    "vit_so400m_patch14_reg1_tipsv2": _row(_SO400M, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_giant_patch14_dinov2": _row(_DINO_GIANT, 14, 518, layer_scale=1e-5),
    "vit_giant_patch14_reg1_tipsv2": _row(_DINO_GIANT, 14, 448, _tokens(1), layer_scale=1.0),
    "vit_giant_patch14_reg4_dinov2": _row(_DINO_GIANT, 14, 518, _tokens(4), layer_scale=1e-5),
    # registers in the place of the class token; sizes between Ti and B by Ross Wightman
    "vit_dwee_patch16_reg1_gap_256": _row(_WEE, 16, 256, _regs(1), _DIFF),
    "vit_wee_patch16_reg1_gap_256": _row(_WEE, 16, 256, _regs(1)),
    "vit_dpwee_patch16_reg1_gap_256": _row(_PWEE, 16, 256, _regs(1), _DIFF_PARALLEL),
    "vit_pwee_patch16_reg1_gap_256": _row(_PWEE, 16, 256, _regs(1), _PARALLEL),
    "vit_dlittle_patch16_reg1_gap_256": _row(_LITTLE, 16, 256, _regs(1), _DIFF),
    "vit_little_patch16_reg1_gap_256": _row(_LITTLE, 16, 256, _regs(1)),
    "vit_little_patch16_reg4_gap_256": _row(_LITTLE, 16, 256, _regs(4)),
    "vit_medium_patch16_reg1_gap_256": _row(_MEDIUM, 16, 256, _regs(1)),
    "vit_medium_patch16_reg4_gap_256": _row(_MEDIUM, 16, 256, _regs(4)),
    "vit_mediumd_patch16_reg4_gap_256": _row(_MEDIUMD, 16, 256, _regs(4)),
    "vit_mediumd_patch16_reg4_gap_384": _row(_MEDIUMD, 16, 384, _regs(4)),
    "vit_betwixt_patch16_reg1_gap_256": _row(_BETWIXT, 16, 256, _regs(1)),
    "vit_betwixt_patch16_reg4_gap_256": _row(_BETWIXT, 16, 256, _regs(4)),
    "vit_betwixt_patch16_reg4_gap_384": _row(_BETWIXT, 16, 384, _regs(4)),
    "vit_base_patch16_reg4_gap_256": _row(_BASE, 16, 256, _tokens(4), class_token=False, global_pool="avg"),
    # shape-optimized, https://arxiv.org/abs/2305.13035: registers with positions of their own
    "vit_so150m2_patch16_reg1_gap_256": _row(_SO150M2, 16, 256, _SO150_REG),
    "vit_so150m2_patch16_reg1_gap_384": _row(_SO150M2, 16, 384, _SO150_REG),
    "vit_so150m2_patch16_reg1_gap_448": _row(_SO150M2, 16, 448, _SO150_REG),
    "vit_so150m_patch16_reg4_gap_256": _row(_SO150M, 16, 256, _GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_gap_384": _row(_SO150M, 16, 384, _GAP, reg_tokens=4),
    "vit_so150m_patch16_reg4_map_256": _row(_SO150M, 16, 256, _MAP, reg_tokens=4),
    # other blocks: https://arxiv.org/abs/2302.05442, https://arxiv.org/abs/2203.09795
    "vit_small_patch16_18x2_224": _row(_size(384, 18, 6), 16, 224, _THINGS),
    "vit_small_patch16_36x1_224": _row(_size(384, 36, 6), 16, 224, layer_scale=1e-5),
    "vit_base_patch16_rpn_224": _row(_BASE, 16, 224, _POST),
    "vit_base_patch16_xp_224": _row(_BASE, 16, 224, _XP),
    "vit_base_patch16_18x2_224": _row(_size(768, 18, 12), 16, 224, _THINGS),
    "vit_base_patch16_plus_240": _row(_PLUS, 16, 240, layer_scale=1e-5),
    "vit_base_patch32_plus_256": _row(_PLUS, 32, 256, layer_scale=1e-5),
    "vit_large_patch14_xp_224": _row(_LARGE, 14, 224, _XP),
    "vit_huge_patch14_xp_224": _row(_HUGE, 14, 224, _XP),
    # AIMv2, https://arxiv.org/abs/2411.14402
    "aimv2_large_patch14_224": _row(_AIM_LARGE, 14, 224, _AIM),
    "aimv2_large_patch14_336": _row(_AIM_LARGE, 14, 336, _AIM),
    "aimv2_large_patch14_448": _row(_AIM_LARGE, 14, 448, _AIM),
    "aimv2_huge_patch14_224": _row(_AIM_HUGE, 14, 224, _AIM),
    "aimv2_huge_patch14_336": _row(_AIM_HUGE, 14, 336, _AIM),
    "aimv2_huge_patch14_448": _row(_AIM_HUGE, 14, 448, _AIM),
    "aimv2_1b_patch14_224": _row(_AIM_1B, 14, 224, _AIM),
    "aimv2_1b_patch14_336": _row(_AIM_1B, 14, 336, _AIM),
    "aimv2_1b_patch14_448": _row(_AIM_1B, 14, 448, _AIM),
    "aimv2_3b_patch14_224": _row(_AIM_3B, 14, 224, _AIM),
    "aimv2_3b_patch14_336": _row(_AIM_3B, 14, 336, _AIM),
    "aimv2_3b_patch14_448": _row(_AIM_3B, 14, 448, _AIM),
    # BEiT-3, https://arxiv.org/abs/2208.10442
    "beit3_base_patch16_224": _row(_BASE, 16, 224, _BEIT3),
    "beit3_large_patch16_224": _row(_LARGE, 16, 224, _BEIT3),
    "beit3_giant_patch14_224": _row(_GIANT, 14, 224, _BEIT3),
    "beit3_giant_patch14_336": _row(_GIANT, 14, 336, _BEIT3),
    # FlexiViT, https://arxiv.org/abs/2212.08013
    "flexivit_small": _row(_SMALL, 16, 240, _FLEXI),
    "flexivit_base": _row(_BASE, 16, 240, _FLEXI),
    "flexivit_large": _row(_LARGE, 16, 240, _FLEXI),
    # InternViT, https://arxiv.org/abs/2410.16261
    "vit_intern300m_patch14_448": _row(_LARGE, 14, 448, layer_scale=0.1, final_norm=False, dynamic_image_size=True),
    # DeiT, https://arxiv.org/abs/2012.12877
    "deit_tiny_distilled_patch16_224": _row(_TINY, 16, 224, distilled=True),
    "deit_tiny_patch16_224": _row(_TINY, 16, 224),
    "deit_small_distilled_patch16_224": _row(_SMALL, 16, 224, distilled=True),
    "deit_small_patch16_224": _row(_SMALL, 16, 224),
    "deit_base_distilled_patch16_224": _row(_BASE, 16, 224, distilled=True),
    "deit_base_distilled_patch16_384": _row(_BASE, 16, 384, distilled=True),
    "deit_base_patch16_224": _row(_BASE, 16, 224),
    "deit_base_patch16_384": _row(_BASE, 16, 384),
    # DeiT III, https://arxiv.org/abs/2204.07118
    "deit3_small_patch16_224": _row(_SMALL, 16, 224, _DEIT3),
    "deit3_small_patch16_384": _row(_SMALL, 16, 384, _DEIT3),
    "deit3_medium_patch16_224": _row(_MEDIUM, 16, 224, _DEIT3),
    "deit3_base_patch16_224": _row(_BASE, 16, 224, _DEIT3),
    "deit3_base_patch16_384": _row(_BASE, 16, 384, _DEIT3),
    "deit3_large_patch16_224": _row(_LARGE, 16, 224, _DEIT3),
    "deit3_large_patch16_384": _row(_LARGE, 16, 384, _DEIT3),
    "deit3_huge_patch14_224": _row(_HUGE, 14, 224, _DEIT3),
    # timm's own models for tests: a few milliseconds, yet every part
    "test_vit": _row(_size(64, 6, 2, 3), 16, 160, dynamic_image_size=True),
    "test_vit2": _row(
        _size(64, 8, 2, 3),
        16,
        160,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        layer_scale=1e-5,
        dynamic_image_size=True,
    ),
    "test_vit3": _row(_size(96, 9, 3, 2), 16, 160, _MAP, reg_tokens=1, pool_include_prefix=True, layer_scale=1e-5),
    "test_vit4": _row(
        _size(96, 9, 3, 3),
        16,
        160,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        layer_scale=1e-5,
        dynamic_image_size=True,
        norm=RMSNorm,
    ),
}

registry.register("vit", VisionTransformer, VARIANTS)
