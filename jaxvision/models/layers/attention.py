"""Self-attention, fused where nobody looks and explicit where somebody does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models.layers.mlp import linear_init


class Attention(nnx.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762. The columns of ``qkv`` are ordered
    queries, keys, values, and within each head by head, as in timm.

    Args:
      features: d of the input [b, n, d].
      num_heads: must divide `features`.
      dropout: rate after the output projection.
      attention_dropout: rate on the attention weights.
      dtype: of the computation; None takes the promotion of input and parameters. The softmax is float32 always.
      param_dtype: of the parameters.
      kernel_init: of both matrices.
      rngs: streams ``params`` and, for dropout, ``dropout``.

    Attributes:
      keep_weights: if True the weights [b, heads, n, n] are sown as ``weights``, an `nnx.Intermediate`. Ask for it by
        ``nnx.view(model, keep_weights=True)`` and read them by ``nnx.capture(view, nnx.Intermediate)``.

    Example:
      >>> attention = Attention(8, 2, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 5, 8))
      >>> attention(x).shape, attention.weights(x).shape
      ((1, 5, 8), (1, 2, 5, 5))
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = linear_init,
        rngs: nnx.Rngs,
    ):
        if features % num_heads:
            raise UserError(f"num_heads {num_heads} does not divide the width {features}")
        linear = {"dtype": dtype, "param_dtype": param_dtype, "kernel_init": kernel_init, "rngs": rngs}
        self.num_heads = num_heads
        self.qkv = nnx.Linear(features, 3 * features, **linear)
        self.attn_drop = nnx.Dropout(attention_dropout, deterministic=True, rngs=rngs if attention_dropout else None)
        self.proj = nnx.Linear(features, features, **linear)
        self.proj_drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.keep_weights = False
        self.deterministic = True

    def set_view(self, keep_weights: bool | None = None, deterministic: bool | None = None) -> None:
        """Joins the training or evaluation view, and the view that keeps the weights."""
        if keep_weights is not None:
            self.keep_weights = keep_weights
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the attended tokens [b, n, d]."""
        b, n, d = x.shape
        q, k, v = self._heads(x)
        # The fused form never shows its weights: whoever keeps them, or drops some of them, pays for the explicit one.
        if self.keep_weights or (self.attn_drop.rate > 0 and not self.deterministic):
            weights = _softmax_weights(q, k)
            if self.keep_weights:
                self.sow(nnx.Intermediate, "weights", weights)
            x = self.attn_drop(weights).astype(v.dtype) @ v
        else:
            # On CPU XLA has no fused kernel, and the heads-first products need no copies: 10 % of a ViT-B block.
            x = jax.lax.platform_dependent(q, k, v, cpu=_attend, default=_attend_fused)
        return self.proj_drop(self.proj(x.swapaxes(1, 2).reshape(b, n, d)))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] of `x`, float32, before dropout; each row sums to 1."""
        q, k, _ = self._heads(x)
        return _softmax_weights(q, k)

    def _heads(self, x: jax.Array) -> jax.Array:
        # [q k v, b, heads, n, head width]
        b, n, d = x.shape
        return self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads).transpose(2, 0, 3, 1, 4)


def _softmax_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    # Summed and normalised in float32 whatever the dtype, as jax.nn.dot_product_attention does.
    logits = jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * q.shape[-1] ** -0.5)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return _softmax_weights(q, k).astype(v.dtype) @ v


def _attend_fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v).swapaxes(1, 2)
