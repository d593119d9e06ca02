"""Attention of a Vision Transformer as maps over the image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.mode import eval_view


def class_attention(model: Any, images: jax.Array, layer_idx: int = -1) -> jax.Array:
    """Returns the attention to each patch in one block, averaged over heads.

    The queries are the tokens that the head reads: the class token, or the mean over the tokens that are pooled. A
    model with an attention pool (SigLIP) has one query for the whole image; its weights are returned for the last
    block, and the mean over tokens for any other block.

    Args:
      model: a ViT.
      images: float [b, h, w, c], normalized.
      layer_idx: index of the block, from 0; negative indices count from the last block.

    Returns:
      float32 [b, grid height, grid width]. The sum of a map is at most 1: the rest is the attention to the tokens
      before the patches (class, distillation, registers).

    Raises:
      UserError: `layer_idx` is out of range.

    Example:
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
      >>> class_attention(model, jnp.zeros((1, 32, 32, 3))).shape
      (1, 2, 2)
    """
    if model.attn_pool is not None and layer_idx in (-1, len(model.blocks) - 1):
        return _to_grid(model, images, _read(model, model.forward_features(images)))
    maps = model.get_attention_maps(images, layer_idx).mean(1)
    if model.global_pool == "token":
        return _to_grid(model, images, maps[:, 0])
    return _to_grid(model, images, maps[:, _pooled_from(model) :].mean(1))


def attention_rollout(model: Any, images: jax.Array) -> jax.Array:
    """Returns how much each patch contributes, through all blocks, to the tokens that the head reads.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928. The rollout is
    the product over all blocks of the attention weights, averaged over heads and then with the identity, which stands
    for the residual connection. The tokens that the head reads are those of `class_attention`.

    Args:
      model: a ViT.
      images: float [b, h, w, c], normalized.

    Returns:
      float32 [b, grid height, grid width]. The sum of a map is at most 1: the rest belongs to the tokens before the
      patches.

    Example:
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
      >>> attention_rollout(model, jnp.zeros((1, 32, 32, 3))).shape
      (1, 2, 2)
    """
    return _rollout(nnx.view(eval_view(model), keep_weights=True), images)


@jax.jit
def _rollout(model: Any, images: jax.Array) -> jax.Array:
    features, kept = nnx.capture(model.forward_features, nnx.Intermediate)(images)
    row = _read(model, features)
    # One row of the product is enough, so it is multiplied from the last block to the first.
    for i in reversed(range(len(model.blocks))):
        # A block has one attention layer, or several in parallel, whose heads are averaged together.
        weights = jnp.concatenate(jax.tree.leaves(kept["blocks"][i]), axis=1).mean(1)
        row = 0.5 * row + 0.5 * jnp.einsum("bn,bnm->bm", row, weights)
    return _to_grid(model, images, row)


def _read(model: Any, features: jax.Array) -> jax.Array:
    """Returns the weight of each token of `features` [b, n, d] in what the head reads, float32 [b, n], sum 1."""
    b, n, _ = features.shape
    if model.global_pool == "token":
        return jnp.zeros((b, n)).at[:, 0].set(1)
    first = _pooled_from(model)
    if model.attn_pool is None:
        return jnp.zeros((b, n)).at[:, first:].set(1 / (n - first))
    return jnp.zeros((b, n)).at[:, first:].set(model.attn_pool.weights(features[:, first:])[:, :, 0].mean(1))


def _pooled_from(model: Any) -> int:
    return 0 if model.pool_include_prefix else model.num_prefix_tokens


def _to_grid(model: Any, images: jax.Array, row: jax.Array) -> jax.Array:
    """Returns the values of the patches, from a row [b, n] over all tokens, as [b, grid height, grid width]."""
    return row[:, model.num_prefix_tokens :].reshape(-1, *model.grid_of(images))
