"""The blocks of Vision Transformers, from tokens [b, n, d] to tokens [b, n, d].

`VisionTransformer` builds every kind of block by the same call, ``block(parts, index=..., drop_path=...)``, where
`parts` creates the layers. ``block.weights(x)`` returns the attention weights of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from jaxvision.models.layers.layer_scale import LayerScale
from jaxvision.models.layers.mlp import Mlp, activate, linear
from jaxvision.models.layers.norm import Norm


@dataclass(frozen=True)
class Parts:
    """Creates the layers of all blocks of one model. `VisionTransformer` documents the fields."""

    embed_dim: int
    num_heads: int
    norm_layer: Norm
    rngs: nnx.Rngs
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def hidden(self) -> int:
        """The width of the MLP's hidden layer."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def types(self) -> dict[str, Any]:
        """The arguments that every layer takes."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": self.rngs}

    def norm(self) -> Any:
        """Returns a norm for a residual branch."""
        return self.norm_layer(self.embed_dim, **self.types)

    def attention(self, kind: Callable[..., Any], index: int) -> Any:
        """Returns the attention layer of block `index`, built by `kind`."""
        rates = {"dropout": self.dropout, "attention_dropout": self.attention_dropout}
        return kind(self.embed_dim, self.num_heads, index=index, **rates, **self.types)

    def mlp(self, kind: Callable[..., Any]) -> Any:
        """Returns an MLP, built by `kind`."""
        return kind(self.embed_dim, self.hidden, activation=self.activation, dropout=self.dropout, **self.types)

    def scale(self) -> Any:
        """Returns a LayerScale for the end of a branch, or None."""
        if self.layer_scale is None:
            return nnx.data(None)
        return LayerScale(self.embed_dim, self.layer_scale, param_dtype=self.param_dtype)

    def drop_path(self, rate: float) -> DropPath:
        """Returns the stochastic depth layer of a branch."""
        return DropPath(rate, rngs=self.rngs)

    def dropout_layer(self) -> nnx.Dropout:
        """Returns a dropout layer, for blocks that contain their linear layers directly."""
        return nnx.Dropout(self.dropout, deterministic=True, rngs=self.rngs if self.dropout else None)


class Block(nnx.Module):
    """Pre-norm transformer block: attention and MLP, each a residual branch.

    Args:
      parts: creates the layers.
      index: position of the block, from 0.
      drop_path: stochastic depth rate of each branch.
      attention: attention class, such as `Attention`, or a partial of one.
      mlp: MLP class, such as `Mlp`, or a partial of one.

    Example:
      >>> from jaxvision.models.layers.norm import LayerNorm
      >>> block = Block(Parts(8, 2, LayerNorm, nnx.Rngs(0)))
      >>> block(jnp.ones((1, 5, 8))).shape, block.weights(jnp.ones((1, 5, 8))).shape
      ((1, 5, 8), (1, 2, 5, 5))
    """

    def __init__(
        self,
        parts: Parts,
        *,
        index: int = 0,
        drop_path: float = 0.0,
        attention: Callable[..., Any] = Attention,
        mlp: Callable[..., Any] = Mlp,
    ):
        self.norm1 = parts.norm()
        self.attn = parts.attention(attention, index)
        self.ls1 = parts.scale()
        self.drop_path1 = parts.drop_path(drop_path)
        self.norm2 = parts.norm()
        self.mlp = parts.mlp(mlp)
        self.ls2 = parts.scale()
        self.drop_path2 = parts.drop_path(drop_path)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `x` [b, n, d] after the block."""
        y = self.attn(self.norm1(x))
        x = x + self.drop_path1(y if self.ls1 is None else self.ls1(y))
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.ls2 is None else self.ls2(y))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] for the block's input `x` [b, n, d]."""
        return self.attn.weights(self.norm1(x))


class ResPostBlock(nnx.Module):
    """Post-norm block: each branch ends in a norm, whose scale replaces a LayerScale.

    The arguments are those of `Block`. The model's `layer_scale` is the initial value of the norms' scales.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        index: int = 0,
        drop_path: float = 0.0,
        attention: Callable[..., Any] = Attention,
        mlp: Callable[..., Any] = Mlp,
    ):
        self.attn = parts.attention(attention, index)
        self.norm1 = parts.norm()
        self.drop_path1 = parts.drop_path(drop_path)
        self.mlp = parts.mlp(mlp)
        self.norm2 = parts.norm()
        self.drop_path2 = parts.drop_path(drop_path)
        if parts.layer_scale is not None:
            for norm in (self.norm1, self.norm2):
                norm.scale = nnx.Param(constant(parts.layer_scale)(None, (parts.embed_dim,), parts.param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `x` [b, n, d] after the block."""
        x = x + self.drop_path1(self.norm1(self.attn(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] for the block's input `x` [b, n, d]."""
        return self.attn.weights(x)


class ParallelScalingBlock(Attend):
    """Block with attention and MLP in parallel, after one norm and one projection.

    Dehghani et al., "Scaling Vision Transformers to 22 Billion Parameters", https://arxiv.org/abs/2302.05442

    Args:
      parts: creates the layers.
      index: position of the block, from 0.
      drop_path: stochastic depth rate.
      qkv_bias: whether the input projection has a bias. If not, only its MLP part has one.
      qk_norm: norm of each head's queries and keys; None for no norm.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        index: int = 0,
        drop_path: float = 0.0,
        qkv_bias: bool = True,
        qk_norm: Norm | None = None,
    ):
        d, num_heads, hidden, types = parts.embed_dim, parts.num_heads, parts.hidden, parts.types
        check_heads(d, num_heads)
        super().__init__(num_heads, attention_dropout=parts.attention_dropout, rngs=parts.rngs)
        self.activation = parts.activation
        self.in_norm = parts.norm()
        self.in_proj = linear(d, hidden + 3 * d, use_bias=qkv_bias, **types)
        self.mlp_bias = nnx.data(None) if qkv_bias else nnx.Param(zeros(None, (hidden,), parts.param_dtype))
        self.q_norm = nnx.data(None) if qk_norm is None else qk_norm(d // num_heads, **types)
        self.k_norm = nnx.data(None) if qk_norm is None else qk_norm(d // num_heads, **types)
        self.mlp_drop = parts.dropout_layer()
        self.add_projections(parts, index)
        self.ls = parts.scale()
        self.drop_path = parts.drop_path(drop_path)

    def add_projections(self, parts: Parts, index: int) -> None:
        """Adds the layers that `project` uses."""
        self.attn_out_proj = linear(parts.embed_dim, parts.embed_dim, **parts.types)
        self.mlp_out_proj = linear(parts.hidden, parts.embed_dim, **parts.types)

    def project(self, attended: jax.Array, hidden: jax.Array) -> jax.Array:
        """Returns [b, n, d] from the attended tokens [b, n, d] and the MLP's hidden layer [b, n, hidden]."""
        return self.attn_out_proj(attended) + self.mlp_out_proj(hidden)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `x` [b, n, d] after the block."""
        hidden, q, k, v = self._branches(x)
        attended = merge_heads(self.attend(q, k, v))
        y = self.project(attended, self.mlp_drop(activate(hidden, self.activation)))
        return x + self.drop_path(y if self.ls is None else self.ls(y))

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, heads, n, n] for the block's input `x` [b, n, d]."""
        _, q, k, _ = self._branches(x)
        return self.combine(softmax_weights(q, k))

    def _branches(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Returns the MLP's hidden layer [b, n, hidden], and queries, keys and values [b, heads, n, c]."""
        d = x.shape[-1]
        y = self.in_proj(self.in_norm(x))
        hidden, q, k, v = jnp.split(y, [y.shape[-1] - n * d for n in (3, 2, 1)], axis=-1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias[...].astype(hidden.dtype).reshape(1, 1, -1)
        q, k = (split_heads(part, self.num_query_heads) for part in (q, k))
        q, k = (q if self.q_norm is None else self.q_norm(q)), (k if self.k_norm is None else self.k_norm(k))
        return hidden, q, k, split_heads(v, self.num_heads)

    @property
    def num_query_heads(self) -> int:
        """The number of heads of queries and keys."""
        return self.num_heads


class DiffParallelScalingBlock(Differential, ParallelScalingBlock):
    """A `ParallelScalingBlock` with `Differential` attention and one output projection for both branches."""

    def add_projections(self, parts: Parts, index: int) -> None:
        """Adds the layers that `project` uses and the parameters of differential attention."""
        self.add_lambdas(parts.embed_dim, index, **parts.types)
        self.out_proj = linear(parts.embed_dim + parts.hidden, parts.embed_dim, **parts.types)

    def project(self, attended: jax.Array, hidden: jax.Array) -> jax.Array:
        """Returns [b, n, d] from the attended tokens [b, n, d] and the MLP's hidden layer [b, n, hidden]."""
        return self.out_proj(jnp.concatenate([attended, hidden], axis=-1))

    @property
    def num_query_heads(self) -> int:
        """The number of heads of queries and keys: two for each head of values."""
        return 2 * self.num_heads


class ParallelThingsBlock(nnx.Module):
    """Block with two attention layers in parallel, then two MLPs in parallel.

    Touvron et al., "Three things everyone should know about Vision Transformers", https://arxiv.org/abs/2203.09795

    The arguments are those of `Block`.
    """

    def __init__(self, parts: Parts, *, index: int = 0, drop_path: float = 0.0):
        def branch(name: str, layer: nnx.Module) -> Branch:
            return Branch(name, layer, parts.norm(), parts.scale(), parts.drop_path(drop_path))

        self.attns = nnx.List(branch("attn", parts.attention(Attention, index)) for _ in range(2))
        self.ffns = nnx.List(branch("mlp", parts.mlp(Mlp)) for _ in range(2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the tokens [b, n, d] of `x` [b, n, d] after the block."""
        x = x + sum(branch(x) for branch in self.attns)
        return x + sum(branch(x) for branch in self.ffns)

    def weights(self, x: jax.Array) -> jax.Array:
        """Returns the attention weights [b, 2 heads, n, n] of both layers for the block's input `x` [b, n, d]."""
        return jnp.concatenate([branch.attn.weights(branch.norm(x)) for branch in self.attns], axis=1)


class Branch(nnx.Module):
    """A residual branch: norm, layer, LayerScale, stochastic depth.

    Args:
      name: attribute that holds the layer, ``"attn"`` or ``"mlp"`` as in timm.
      layer: the layer.
      norm: norm before the layer.
      scale: LayerScale after the layer, or None.
      drop_path: stochastic depth at the end.
    """

    attn: Any
    mlp: Any

    def __init__(self, name: str, layer: nnx.Module, norm: nnx.Module, scale: Any, drop_path: DropPath):
        self.name = name
        self.norm: Any = norm
        setattr(self, name, layer)
        self.ls = scale
        self.drop_path = drop_path

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the branch's output [b, n, d], which is added to the tokens `x` [b, n, d]."""
        y = getattr(self, self.name)(self.norm(x))
        return self.drop_path(y if self.ls is None else self.ls(y))
