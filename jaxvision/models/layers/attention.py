"""Attention layers. They use a fused kernel unless attention weights are requested or dropped out."""

from __future__ import annotations

import functools
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
    """Softmax attention of queries over keys and values: the base class of all layers in this module.

    Args:
      num_heads: number of heads.
      attention_dropout: dropout rate on the attention weights.
      rngs: stream ``dropout``, if there is dropout.

    Attributes:
      keep_weights: if True, the layer sows its weights [b, heads, n, n] as ``weights``, an `nnx.Intermediate`. Set it
        with ``nnx.view(model, keep_weights=True)`` and read the weights with ``nnx.capture(view, nnx.Intermediate)``.
    """

    def __init__(self, num_heads: int, *, attention_dropout: float = 0.0, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.attn_drop = nnx.Dropout(attention_dropout, deterministic=True, rngs=rngs if attention_dropout else None)
        self.keep_weights = False

    def set_view(self, keep_weights: bool | None = None) -> None:
        """Sets the mode in a view made by `nnx.view`."""
        if keep_weights is not None:
            self.keep_weights = keep_weights

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the weighted sums of values for each query.

        Args:
          q: queries [b, heads, t, c].
          k: keys [b, heads, s, c].
          v: values [b, heads, s, c].

        Returns:
          [b, heads, t, c].
        """
        # A fused kernel does not return its weights, so keeping them or applying dropout needs the explicit form.
        if not self.keep_weights and (self.attn_drop.rate == 0 or self.attn_drop.deterministic):
            return self.attend_fused(q, k, v)
        weights = softmax_weights(q, k)
        if self.keep_weights:
            self.sow(nnx.Intermediate, "weights", self.combine(weights))
        return self.combine(self.attn_drop(weights)).astype(v.dtype) @ v

    def attend_fused(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the result of `attend`, computed in the way that is fastest on the platform."""
        # XLA has no fused kernel on CPU. There, matrix products of [b, heads, n, c] need no copies, which saves 10 % of
        # a ViT-B block.
        gpu = _attend_cudnn if _cudnn_supports(q, k, v) else None
        return by_platform(q, k, v, cpu=_attend, gpu=gpu, default=_attend_fused)

    def combine(self, weights: jax.Array) -> jax.Array:
        """Returns the attention weights that apply to the values, given the softmax weights: here unchanged."""
        return weights


class Attention(Attend):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Vaswani et al., "Attention Is All You Need", https://arxiv.org/abs/1706.03762. As in timm, the columns of ``qkv``
    are ordered by queries, keys and values, then by head.

    Args:
      features: width d of the input [b, n, d].
      num_heads: number of heads. It must divide `features`.
      index: position of the block; ignored here, used by `DifferentialAttention`.
      qkv_bias: whether queries, keys and values have a bias.
      proj_bias: whether the output projection has a bias.
      qk_norm: norm of each head's queries and keys, as in ViT-22B; None for no norm.
      out_norm: norm before the output projection, BEiT-3's sub-LN; None for no norm.
      dropout: dropout rate after the output projection.
      attention_dropout: dropout rate on the attention weights.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters. The softmax uses float32.
      param_dtype: dtype of the parameters.
      kernel_init: initializer of both kernels.
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
        """Returns the tokens [b, n, d] of `x` [b, n, d] after attention."""
        x = merge_heads(self.attend(*self._heads(x)))
        return self.proj_drop(self.proj(x if self.norm is None else self.norm(x)))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights of `x` [b, n, d]: float32 [b, heads, n, n], before dropout; rows sum to 1."""
        q, k, _ = self._heads(x)
        return self.combine(softmax_weights(q, k))

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values, each [b, heads, n, d / heads]."""
        at_once = functools.partial(_split_at_once, num_heads=self.num_heads)
        # A TPU would copy an array [b, n, 3, heads, c], which takes an eighth of a ViT-B's step. Elsewhere the only
        # difference is that a mesh with an axis ``tensor`` communicates more.
        in_two_steps = functools.partial(_split_in_two_steps, num_heads=self.num_heads)
        q, k, v = by_platform(self.qkv(x), cpu=at_once, gpu=at_once, default=in_two_steps)
        return (q if self.q_norm is None else self.q_norm(q)), (k if self.k_norm is None else self.k_norm(k)), v


class Differential(Attend):
    """Differential attention, which subtracts one softmax from another: the base class of layers that use it.

    Ye et al., "Differential Transformer", https://arxiv.org/abs/2410.05258. Each head has two sets of queries and keys,
    of half the head's width. Its weights are ``softmax(q1 k1) - lambda softmax(q2 k2)``, where lambda is learned. The
    output of each head is normalized.
    """

    def add_lambdas(self, features: int, index: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> None:
        """Adds the parameters of lambda and the norm of a head to the layer of block `index`."""
        if features // self.num_heads % 2:
            raise UserError(
                f"num_heads: got {self.num_heads} for a width of {features}, but differential attention needs heads of "
                "an even width. Choose another num_heads or embed_dim."
            )
        half = features // self.num_heads // 2
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * index)
        # Always float32, because they are exponents.
        self.lambda_q1 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.lambda_k1 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.lambda_q2 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.lambda_k2 = nnx.Param(normal(0.1)(rngs.params(), (half,), jnp.float32))
        self.sub_norm = RMSNorm(2 * half, epsilon=1e-5, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def combine(self, weights: jax.Array) -> jax.Array:
        """Returns the differences [b, heads, t, s] of weights [b, 2 heads, t, s]; their rows sum to 1 - lambda."""
        first = jnp.exp(jnp.sum(self.lambda_q1[...] * self.lambda_k1[...]))
        second = jnp.exp(jnp.sum(self.lambda_q2[...] * self.lambda_k2[...]))
        share = (first - second + self.lambda_init).astype(weights.dtype)
        return weights[:, 0::2] - share * weights[:, 1::2]

    def attend_fused(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the result of `attend`. It uses no fused kernel, because values are wider than keys."""
        return self.combine(softmax_weights(q, k)).astype(v.dtype) @ v

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the weighted sums of values, normalized per head.

        Args:
          q: queries [b, 2 heads, n, c / 2].
          k: keys [b, 2 heads, n, c / 2].
          v: values [b, heads, n, c].

        Returns:
          [b, heads, n, c].
        """
        return self.sub_norm(super().attend(q, k, v)) * (1 - self.lambda_init)


class DifferentialAttention(Differential, Attention):
    """Multi-head self-attention with the difference of two softmaxes; see `Differential`.

    Args:
      features: width d of the input [b, n, d].
      num_heads: number of heads. It must divide `features` into an even width.
      index: position of the block, from 0. Lambda starts at 0.2 in the first block and approaches 0.8 in later ones.
      **options: other arguments of `Attention`, except `qk_norm`.

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
        """Returns the differences of two softmaxes: float32 [b, heads, n, n]; rows sum to 1 - lambda."""
        return super().weights(x)

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        q, k, v = jnp.split(self.qkv(x), 3, axis=-1)
        return split_heads(q, 2 * self.num_heads), split_heads(k, 2 * self.num_heads), split_heads(v, self.num_heads)


class AttentionPool(Attend):
    """Pools tokens [b, n, d] to [b, d]: a learned query attends to all tokens, followed by an MLP.

    Zhai et al., "Scaling Vision Transformers", https://arxiv.org/abs/2106.04560, where it is called the MAP head.

    Args:
      features: width d of the tokens.
      num_heads: number of heads. It must divide `features`.
      mlp_ratio: hidden width of the MLP as a multiple of `features`.
      norm: norm before the MLP.
      activation: activation of the MLP, as for `activate`.
      dtype: dtype of the computation; None for the promoted dtype of input and parameters.
      param_dtype: dtype of the parameters.
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
        """Returns the query's attention to each token of `x` [b, n, d]: float32 [b, heads, 1, n]; rows sum to 1."""
        q, k, _ = self._heads(x)
        return softmax_weights(q, k)

    def _heads(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        b, _, d = x.shape
        q = self.q(jnp.broadcast_to(self.latent[...].astype(x.dtype), (b, 1, d)))
        k, v = jnp.split(self.kv(x), 2, axis=-1)
        return split_heads(q, self.num_heads), split_heads(k, self.num_heads), split_heads(v, self.num_heads)


def check_heads(features: int, num_heads: int) -> None:
    """Raises an error unless `num_heads` divides `features`."""
    if features % num_heads:
        raise UserError(f"num_heads: got {num_heads}, expected a divisor of the width {features}.")


def split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Returns [b, heads, n, d / heads] of `x` [b, n, d]."""
    b, n, d = x.shape
    return x.reshape(b, n, num_heads, d // num_heads).swapaxes(1, 2)


def _split_at_once(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, ...]:
    b, n, d = qkv.shape
    q, k, v = qkv.reshape(b, n, 3, num_heads, d // (3 * num_heads)).transpose(2, 0, 3, 1, 4)
    return q, k, v


def _split_in_two_steps(qkv: jax.Array, num_heads: int) -> tuple[jax.Array, ...]:
    return tuple(split_heads(part, num_heads) for part in jnp.split(qkv, 3, axis=-1))


def merge_heads(x: jax.Array) -> jax.Array:
    """Returns [b, n, heads * c] of `x` [b, heads, n, c]."""
    b, heads, n, c = x.shape
    return x.swapaxes(1, 2).reshape(b, n, heads * c)


def softmax_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """Returns the weights, float32 [b, heads, t, s], of queries [b, heads, t, c] over keys [b, heads, s, c]."""
    # Sums and softmax are float32 for every dtype. As in timm the queries are scaled, which is cheaper than scaling the
    # logits.
    q = q * q.shape[-1] ** -0.5
    return jax.nn.softmax(jnp.einsum("bkth,bksh->bkts", q, k, preferred_element_type=jnp.float32))


def _attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return softmax_weights(q, k).astype(v.dtype) @ v


def _attend_fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v).swapaxes(1, 2)


def _cudnn_supports(q: jax.Array, k: jax.Array, v: jax.Array) -> bool:
    """Returns whether cuDNN's flash attention takes arrays of these types and shapes."""
    half = all(x.dtype in (jnp.bfloat16, jnp.float16) for x in (q, k, v))
    return half and q.shape == k.shape == v.shape and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0


def _attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Returns the result of `_attend_fused`, without an array of the weights [b, heads, n, n] in memory."""
    b, _, n, _ = q.shape
    odd = n % 2  # cuDNN's backward pass takes even numbers of tokens
    padded = (jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full((b,), n, jnp.int32) if odd else None
    try:
        y = jax.nn.dot_product_attention(
            *padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    except RuntimeError:  # JAX finds no cuDNN
        return _attend_fused(q, k, v)
    return y[:, :n].swapaxes(1, 2)
