"""What the attention of a Vision Transformer says about the picture."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.mode import eval_view


def class_attention(model: Any, images: jax.Array, layer_idx: int = -1) -> jax.Array:
    """Returns how much the class token of one block attends to each patch, averaged over heads.

    Args:
      model: a ViT.
      images: [b, h, w, c], normalised.
      layer_idx: which block, from 0; negative counts from the last.

    Returns:
      float32 [b, grid height, grid width]; what is missing to a sum of 1 goes to the class token itself (and to a
      distillation token).

    Raises:
      UserError: no such block.

    Example:
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", image_size=32, rngs=nnx.Rngs(0))
      >>> class_attention(model, jnp.zeros((1, 32, 32, 3))).shape
      (1, 2, 2)
    """
    maps = model.get_attention_maps(images, layer_idx)
    return _to_grid(model, maps[:, :, 0].mean(1))


def attention_rollout(model: Any, images: jax.Array) -> jax.Array:
    """Returns how much of each patch reaches the class token through all blocks.

    Abnar & Zuidema, "Quantifying Attention Flow in Transformers", https://arxiv.org/abs/2005.00928: the heads' mean
    weights of each block, half and half with the identity for the residual connection, multiplied up.

    Args:
      model: a ViT.
      images: [b, h, w, c], normalised.

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
    _, kept = nnx.capture(model.forward_features, nnx.Intermediate)(images)
    weights = [kept["blocks"][i]["attn"]["weights"].get_value()[0].mean(1) for i in range(len(model.blocks))]
    b, n, _ = weights[0].shape
    # Only the class token's row of the product is wanted, so it is multiplied from the last block to the first.
    row = jnp.zeros((b, n)).at[:, 0].set(1)
    for w in reversed(weights):
        row = 0.5 * row + 0.5 * jnp.einsum("bn,bnm->bm", row, w)
    return _to_grid(model, row)


def _to_grid(model: Any, row: jax.Array) -> jax.Array:
    """Returns what a row [b, n] over the tokens says of the patches, as the grid that they form."""
    return row[:, model.num_prefix_tokens :].reshape(-1, *model.grid_size)
