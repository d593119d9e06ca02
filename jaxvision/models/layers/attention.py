"""Self-attention, fused where nobody looks and explicit where somebody does."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.errors import UserError
from jaxvision.models.layers.init import normal, truncated_normal
from jaxvision.models.layers.mlp import Mlp, linear, linear_init
from jaxvision.models.layers.norm import Norm, RMSNorm
from jaxvision.platform import by_platform


class Attend(nnx.Module):
    """Softmax attention of queries over keys and values, which all layers of this file share.

    Args:
      num_heads: of queries, keys and values.
      attention_dropout: rate on the attention weights.
      rngs: for dropout, the stream ``dropout``.

    Attributes:
      keep_weights: if True the weights [b, heads, n, n] are sown as ``weights``, an `nnx.Intermediate`. Ask for it by
        ``nnx.view(model, keep_weights=True)`` and read them by ``nnx.capture(view, nnx.Intermediate)``.
    """

    def __init__(self, num_heads: int, *, attention_dropout: float = 0.0, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.attn_drop = nnx.Dropout(attention_dropout, deterministic=True, rngs=rngs if attention_dropout else None)
        self.keep_weights = False
        self.deterministic = True

    def set_view(self, keep_weights: bool | None = None, deterministic: bool | None = None) -> None:
        """Joins the training or evaluation view, and the view that keeps the weights."""
        if keep_weights is not None:
            self.keep_weights = keep_weights
        if deterministic is not None:
            self.deterministic = deterministic

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns values [b, heads, n, c], mixed by the weights of `q` and `k`, one row of tokens for each query."""
        # The fused form never shows its weights: whoever keeps them, or drops some of them, pays for the explicit one.
        if not self.keep_weights and (self.attn_drop.rate == 0 or self.deterministic):
            return self.attend_fused(q, k, v)
        weights = softmax_weights(q, k)
        if self.keep_weights:
            self.sow(nnx.Intermediate, "weights", self.combined(weights))
        return self.combined(self.attn_drop(weights)).astype(v.dtype) @ v

    def attend_fused(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns what `attend` does, by the quickest way of the platform."""
        # On CPU XLA has no fused kernel, and the heads-first products need no copies: 10 % of a ViT-B block.
        return by_platform(q, k, v, cpu=_attend, default=_attend_fused)

    def combined(self, weights: jax.Array) -> jax.Array:
        """Returns the weights that mix the values, of the softmax's."""
        return weights


class Attention(Attend):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762. The columns of ``qkv`` are ordered
    queries, keys, values, and within each head by head, as in timm.

    Args:
      features: d of the input [b, n, d].
      num_heads: must divide `features`.
      index: of the block; not used, for `DifferentialAttention` is.
      qkv_bias: add a bias to queries, keys and values.
      proj_bias: add a bias to the output projection.
      qk_norm: of each head's queries and keys, as in ViT-22B; None builds none.
      out_norm: of what the output projection sees, BEiT-3's sub-LN; None builds none.
      dropout: rate after the output projection.
      attention_dropout: rate on the attention weights.
      dtype: of the computation; None takes the promotion of input and parameters. The softmax is float32 always.
      param_dtype: of the parameters.
      kernel_init: of both matrices.
      rngs: streams ``params`` and, for dropout, ``dropout``.

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
        index: int = 0,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        qk_norm: Norm | None = None,
        out_norm: Norm | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = linear_init,
        rngs: nnx.Rngs,
    ):
        check_heads(features, num_heads)
        super().__init__(num_heads, attention_dropout=attention_dropout, rngs=rngs)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = linear(features, 3 * features, use_bias=qkv_bias, kernel_init=kernel_init, **types)
        self.q_norm = nnx.data(None) if qk_norm is None else qk_norm(features // num_heads, **types)
        self.k_norm = nnx.data(None) if qk_norm is None else qk_norm(features // num_heads, **types)
        self.norm = nnx.data(None) if out_norm is None else out_norm(features, **types)
        self.proj = linear(features, features, use_bias=proj_bias, kernel_init=kernel_init, **types)
        self.proj_drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the attended tokens [b, n, d]."""
        x = merge_heads(self.attend(*self._heads(x)))
        return self.proj_drop(self.proj(x if self.norm is None else self.norm(x)))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] of `x`, float32, before dropout; each row sums to 1."""
        q, k, _ = self._heads(x)
        return self.combined(softmax_weights(q, k))

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # each [b, heads, n, head width]
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, d // self.num_heads).transpose(2, 0, 3, 1, 4)
        return (q if self.q_norm is None else self.q_norm(q)), (k if self.k_norm is None else self.k_norm(k)), v


class Differential(Attend):
    """The part that attention layers share which subtract one softmax from another.

    Ye et al., "Differential Transformer", https://arxiv.org/abs/2410.05258: each head has two sets of queries and
    keys, of half its width; its weights are ``softmax(q1 k1) - lambda softmax(q2 k2)``, where lambda is learned. What
    comes out of each head is normalized.
    """

    def add_lambdas(self, features: int, index: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Gives the layer what makes lambda in block number `index`, and the norm of a head."""
        if features // self.num_heads % 2:
            raise UserError(f"differential attention halves its heads, whose width {features // self.num_heads} is odd")
        half = features // self.num_heads // 2
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * index)
        # float32 always: they are exponents.
        self.lambda_q1 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.lambda_k1 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.lambda_q2 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.lambda_k2 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.sub_norm = RMSNorm(2 * half, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def combined(self, weights: jax.Array) -> jax.Array:
        """Returns the differences [b, heads, n, m] of [b, 2 heads, n, m]; rows of weights sum to 1 - lambda."""
        first = jnp.exp(jnp.sum(self.lambda_q1[...] * self.lambda_k1[...]))
        second = jnp.exp(jnp.sum(self.lambda_q2[...] * self.lambda_k2[...]))
        share = (first - second + self.lambda_init).astype(weights.dtype)
        return weights[:, 0::2] - share * weights[:, 1::2]

    def attend_fused(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns what `attend` does. Fused kernels take no values that are wider than the keys: none is used."""
        return self.combined(softmax_weights(q, k)).astype(v.dtype) @ v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the mixed values [b, heads, n, c] of `q` and `k` [b, 2 heads, n, c / 2] and `v` [b, heads, n, c]."""
        return self.sub_norm(super().attend(q, k, v)) * (1 - self.lambda_init)


class DifferentialAttention(Differential, Attention):
    """Multi-head self-attention by the difference of two softmaxes; see `Differential`.

    Args:
      features: d of the input [b, n, d].
      num_heads: must divide `features`, into an even width.
      index: of the block, from 0: lambda begins at 0.2 in the first and rises towards 0.8.
      **options: as of `Attention`, of which there is no `qk_norm` here.

    Example:
      >>> attention = DifferentialAttention(8, 2, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 5, 8))
      >>> attention(x).shape, attention.weights(x).shape
      ((1, 5, 8), (1, 2, 5, 5))
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        index: int = 0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        Attention.__init__(self, features, num_heads, **options, **types)
        self.add_lambdas(features, index, **types)

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the differences [b, heads, n, n] of two softmaxes of `x`, float32; rows sum to 1 - lambda."""
        return super().weights(x)

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return split_heads(q, 2 * self.num_heads), split_heads(k, 2 * self.num_heads), split_heads(v, self.num_heads)


class AttentionPool(Attend):
    """One learned query that attends to all tokens, then an MLP: pools [b, n, d] to [b, d].

    Zhai et al., "Scaling Vision Transformers", https://arxiv.org/abs/2106.04560 (there: MAP head).

    Args:
      features: d of the tokens.
      num_heads: must divide `features`.
      mlp_ratio: the MLP's hidden width as a multiple of `features`.
      norm: of what the MLP sees.
      activation: of the MLP.
      dtype: of the computation; None takes the promotion of input and parameters.
      param_dtype: of the parameters.
      rngs: stream ``params``.

    Example:
      >>> from jaxvision.models.layers.norm import LayerNorm
      >>> pool = AttentionPool(8, 2, norm=LayerNorm, rngs=nnx.Rngs(0))
      >>> pool(jnp.ones((1, 5, 8))).shape, pool.weights(jnp.ones((1, 5, 8))).shape
      ((1, 8), (1, 2, 1, 5))
    """

    def __init__(
        self,
        features: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm: Norm,
        activation: str = "gelu",
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_heads, rngs=rngs)
        types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.latent = nnx.Param(truncated_normal(features**-0.5)(rngs.params(), (1, 1, features), param_dtype))
        self.q = linear(features, features, **types)
        self.kv = linear(features, 2 * features, **types)
        self.proj = linear(features, features, **types)
        self.norm = norm(features, **types)
        self.mlp = Mlp(features, int(features * mlp_ratio), activation=activation, **types)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the pooled tokens [b, d] of `x` [b, n, d]."""
        x = self.proj(merge_heads(self.attend(*self._heads(x))))
        return (x + self.mlp(self.norm(x)))[:, 0]

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns how much the query attends to each token of `x`, float32 [b, heads, 1, n]; rows sum to 1."""
        q, k, _ = self._heads(x)
        return softmax_weights(q, k)

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        b, _, d = x.shape
        q = self.q(jnp.broadcast_to(self.latent[...].astype(x.dtype), (b, 1, d)))
        k, v = jnp.split(self.kv(x), 2, axis=-1)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)


def check_heads(features: int, num_heads: int) -> None:
    """Raises unless `num_heads` divides the width."""
    if features % num_heads:
        raise UserError(f"num_heads {num_heads} does not divide the width {features}")


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Returns [b, heads, n, d / heads] of `x` [b, n, d]."""
    b, n, d = x.shape
    return x.reshape(b, n, num_heads, d // num_heads).swapaxes(1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
    """Returns [b, n, heads * c] of `x` [b, heads, n, c]."""
    b, heads, n, c = x.shape
    return x.swapaxes(1, 2).reshape(b, n, heads * c)


def softmax_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """Returns the weights [b, heads, t, s], float32, of queries [b, heads, t, c] over keys [b, heads, s, c]."""
    # Summed and normalized in float32 whatever the dtype, as jax.nn.dot_product_attention does.
    logits = jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * q.shape[-1] ** -0.5)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return softmax_weights(q, k).astype(v.dtype) @ v


def _attend_fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v).swapaxes(1, 2)
