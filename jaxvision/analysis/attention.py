"""What the attention of a Vision Transformer says about the picture."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.mode import eval_view


def class_attention(model: Any, images: jax.Array, layer_idx: int = -1) -> jax.Array:
    """Returns how much what the head reads attends to each patch in one block, averaged over heads.

    That is the class token where the head reads it, and the mean of the tokens that are pooled where there is none.
    A model with an attention pool (SigLIP) has one query for the whole picture: its weights are returned for the last
    block, whose tokens it reads, and the mean over tokens for any other.

    Args:
      model: a ViT.
      images: [b, h, w, c], normalized.
      layer_idx: which block, from 0; negative counts from the last.

    Returns:
      float32 [b, grid height, grid width]; what is missing to a sum of 1 goes to the tokens before the patches (class,
      distillation, registers).

    Raises:
      UserError: no such block.

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
    """Returns how much of each patch reaches what the head reads through all blocks.

    Abnar & Zuidema, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928: the heads' mean
    weights of each block, half and half with the identity for the residual connection, multiplied up. The head reads
    the class token, the mean of the pooled tokens, or what an attention pool makes of them, as for `class_attention`.

    Args:
      model: a ViT.
      images: [b, h, w, c], normalized.

    Returns:
      float32 [b, grid height, grid width]; what is missing to a sum of 1 stays with the prefix tokens.

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
    # Only one row of the product is wanted, so it is multiplied from the last block to the first.
    for i in reversed(range(len(model.blocks))):
        # A block has one attention layer, or several side by side, whose heads count alike.
        weights = jnp.concatenate(jax.tree.leaves(kept["blocks"][i]), axis=1).mean(1)
        row = 0.5 * row + 0.5 * jnp.einsum("bn,bnm->bm", row, weights)
    return _to_grid(model, images, row)


def _read(model: Any, features: jax.Array) -> jax.Array:
    """Returns how much of each of the tokens [b, n, d] the head reads, float32 [b, n]; the sum is 1."""
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
    """Returns what a row [b, n] over the tokens says of the patches, as the grid that they form."""
    return row[:, model.num_prefix_tokens :].reshape(-1, *model.grid_of(images))
