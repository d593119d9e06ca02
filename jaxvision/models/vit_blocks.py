"""The blocks of Vision Transformers: tokens [b, n, d] in, tokens [b, n, d] out.

Every block is built by the same call, which `VisionTransformer` makes; what it does not need it does not use. Beyond
calling it one may ask for the weights of its attention, ``block.weights(x)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision.models.layers.attention import (
    Attend,
    Attention,
    Differential,
    check_heads,
    merge_heads,
    softmax_weights,
    split_heads,
)
from jaxvision.models.layers.drop import DropPath
from jaxvision.models.layers.init import constant, zeros
from jaxvision.models.layers.mlp import Mlp, activate, linear
from jaxvision.models.layers.norm import LayerScale, Norm


class Types(TypedDict):
    """Arguments that every layer takes."""

    dtype: Any
    param_dtype: Any
    rngs: nnx.Rngs


class Block(nnx.Module):
    """Pre-norm transformer block: tokens plus attention, plus MLP.

    Args:
      embed_dim: d of the tokens.
      num_heads: must divide `embed_dim`.
      index: of the block, from 0.
      mlp_ratio: the MLP's hidden width as a multiple of `embed_dim`.
      layer_scale: first value of a LayerScale on each residual branch; None builds none.
      norm: before attention and before the MLP.
      activation: of the MLP.
      attention: such as `Attention`, or one with some of its options given.
      mlp: such as `Mlp`, or one with some of its options given.
      dropout: rate after every linear layer but ``qkv``.
      attention_dropout: rate on the attention weights.
      drop_path: rate of stochastic depth, of either branch.
      dtype: of the computation.
      param_dtype: of the parameters.
      rngs: streams ``params`` and ``dropout``.

    Example:
      >>> from jaxvision.models.layers.norm import LayerNorm
      >>> block = Block(8, 2, norm=LayerNorm, rngs=nnx.Rngs(0))
      >>> block(jnp.ones((1, 5, 8))).shape, block.weights(jnp.ones((1, 5, 8))).shape
      ((1, 5, 8), (1, 2, 5, 5))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        index: int = 0,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        norm: Norm,
        activation: str = "gelu",
        attention: Callable[..., Any] = Attention,
        mlp: Callable[..., Any] = Mlp,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d = embed_dim
        types: Types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = norm(d, **types)
        self.attn = attention(d, num_heads, index=index, dropout=dropout, attention_dropout=attention_dropout, **types)
        self.ls1 = _scale(d, layer_scale, param_dtype)
        self.drop_path1 = DropPath(drop_path, rngs=rngs)
        self.norm2 = norm(d, **types)
        self.mlp = mlp(d, int(d * mlp_ratio), activation=activation, dropout=dropout, **types)
        self.ls2 = _scale(d, layer_scale, param_dtype)
        self.drop_path2 = DropPath(drop_path, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the block."""
        y = self.attn(self.norm1(x))
        x = x + self.drop_path1(y if self.ls1 is None else self.ls1(y))
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.ls2 is None else self.ls2(y))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] of the tokens that enter the block."""
        return self.attn.weights(self.norm1(x))


class ResPostBlock(nnx.Module):
    """Post-norm block: each branch is normalised at its end, and the norm's scale is its LayerScale.

    Args: as of `Block`; `layer_scale` is the first value of the norms' scales.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        index: int = 0,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        norm: Norm,
        activation: str = "gelu",
        attention: Callable[..., Any] = Attention,
        mlp: Callable[..., Any] = Mlp,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d = embed_dim
        types: Types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.attn = attention(d, num_heads, index=index, dropout=dropout, attention_dropout=attention_dropout, **types)
        self.norm1 = norm(d, **types)
        self.drop_path1 = DropPath(drop_path, rngs=rngs)
        self.mlp = mlp(d, int(d * mlp_ratio), activation=activation, dropout=dropout, **types)
        self.norm2 = norm(d, **types)
        self.drop_path2 = DropPath(drop_path, rngs=rngs)
        if layer_scale is not None:
            norms: list[Any] = [self.norm1, self.norm2]
            for scaled in norms:
                scaled.scale = nnx.Param(constant(layer_scale)(None, (d,), param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the block."""
        x = x + self.drop_path1(self.norm1(self.attn(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] of the tokens that enter the block."""
        return self.attn.weights(x)


class ParallelScalingBlock(Attend):
    """Attention and MLP side by side, behind one norm and one projection.

    Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", https://arxiv.org/abs/2302.05442

    Args: as of `Block`, and

      qkv_bias: add a bias to queries, keys and values. Without it the MLP's hidden layer has one of its own.
      qk_norm: of each head's queries and keys; None builds none.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        index: int = 0,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        norm: Norm,
        activation: str = "gelu",
        qkv_bias: bool = True,
        qk_norm: Norm | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_heads(embed_dim, num_heads)
        super().__init__(num_heads, attention_dropout=attention_dropout, rngs=rngs)
        d, hidden = embed_dim, int(embed_dim * mlp_ratio)
        types: Types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.activation = activation
        self.in_norm = norm(d, **types)
        self.in_proj = linear(d, hidden + 3 * d, use_bias=qkv_bias, **types)
        self.mlp_bias = nnx.data(None) if qkv_bias else nnx.Param(zeros(None, (hidden,), param_dtype))
        self.q_norm = nnx.data(None) if qk_norm is None else qk_norm(d // num_heads, **types)
        self.k_norm = nnx.data(None) if qk_norm is None else qk_norm(d // num_heads, **types)
        self.mlp_drop = nnx.Dropout(dropout, deterministic=True, rngs=rngs if dropout else None)
        self.add_projections(d, hidden, index, types)
        self.ls = _scale(d, layer_scale, param_dtype)
        self.drop_path = DropPath(drop_path, rngs=rngs)

    def add_projections(self, d: int, hidden: int, index: int, types: Types) -> None:
        """Gives the block what `project` needs."""
        self.attn_out_proj = linear(d, d, **types)
        self.mlp_out_proj = linear(hidden, d, **types)

    def project(self, attended: jax.Array, hidden: jax.Array) -> jax.Array:
        """Returns [b, n, d] of what the two branches end with."""
        return self.attn_out_proj(attended) + self.mlp_out_proj(hidden)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the block."""
        hidden, q, k, v = self._branches(x)
        attended = merge_heads(self.attend(q, k, v))
        y = self.project(attended, self.mlp_drop(activate(hidden, self.activation)))
        return x + self.drop_path(y if self.ls is None else self.ls(y))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] of the tokens that enter the block."""
        _, q, k, _ = self._branches(x)
        return self.combined(softmax_weights(q, k))

    def _branches(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        d = x.shape[-1]
        y = self.in_proj(self.in_norm(x))
        hidden, q, k, v = jnp.split(y, [y.shape[-1] - n * d for n in (3, 2, 1)], axis=-1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias[...].astype(hidden.dtype).reshape(1, 1, -1)
        q, k = (split_heads(part, self.queries()) for part in (q, k))
        q, k = (q if self.q_norm is None else self.q_norm(q)), (k if self.k_norm is None else self.k_norm(k))
        return hidden, q, k, split_heads(v, self.num_heads)

    def queries(self) -> int:
        """Returns how many sets of queries and keys there are."""
        return self.num_heads


class DiffParallelScalingBlock(Differential, ParallelScalingBlock):
    """A `ParallelScalingBlock` with the attention of `Differential`, and one projection for both branches.

    Args: as of `Block`, and `qkv_bias` of `ParallelScalingBlock`.
    """

    def add_projections(self, d: int, hidden: int, index: int, types: Types) -> None:
        """Gives the block what `project` and the differences need."""
        self.add_lambdas(d, index, **types)
        self.out_proj = linear(d + hidden, d, **types)

    def project(self, attended: jax.Array, hidden: jax.Array) -> jax.Array:
        """Returns [b, n, d] of what the two branches end with."""
        return self.out_proj(jnp.concatenate([attended, hidden], axis=-1))

    def queries(self) -> int:
        """Returns how many sets of queries and keys there are: two for each head."""
        return 2 * self.num_heads


class ParallelThingsBlock(nnx.Module):
    """Two attention layers side by side, then two MLPs side by side.

    Touvron et al., "Three things everyone should know about Vision Transformers", https://arxiv.org/abs/2203.09795

    Args: as of `Block`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        index: int = 0,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        norm: Norm,
        activation: str = "gelu",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        d = embed_dim
        types: Types = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def branch(name: str, layer: nnx.Module) -> Branch:
            scale = _scale(d, layer_scale, param_dtype)
            return Branch(name, layer, norm(d, **types), scale, DropPath(drop_path, rngs=rngs))

        self.attns = nnx.List(
            branch("attn", Attention(d, num_heads, dropout=dropout, attention_dropout=attention_dropout, **types))
            for _ in range(2)
        )
        self.ffns = nnx.List(
            branch("mlp", Mlp(d, int(d * mlp_ratio), activation=activation, dropout=dropout, **types)) for _ in range(2)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] after the block."""
        x = x + sum(branch(x) for branch in self.attns)
        return x + sum(branch(x) for branch in self.ffns)

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, 2 heads, n, n] of the tokens that enter the block."""
        return jnp.concatenate([branch.attn.weights(branch.norm(x)) for branch in self.attns], axis=1)


class Branch(nnx.Module):
    """Norm, layer, LayerScale, stochastic depth: one of several residual branches of the same tokens."""

    attn: Any
    mlp: Any

    def __init__(self, name: str, layer: nnx.Module, norm: nnx.Module, scale: Any, drop_path: DropPath):
        self.name = name  # of the attribute that holds the layer, as in timm
        self.norm: Any = norm
        setattr(self, name, layer)
        self.ls = scale
        self.drop_path = drop_path

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns what the branch adds to the tokens, [b, n, d]."""
        y = getattr(self, self.name)(self.norm(x))
        return self.drop_path(y if self.ls is None else self.ls(y))


def _scale(features: int, init: float | None, param_dtype: Any) -> Any:
    return nnx.data(None) if init is None else LayerScale(features, init, param_dtype=param_dtype)
