"""Training a part of a model: freezing, and low-rank adapters (LoRA).

What is frozen stops being an `nnx.Param`, so nobody's loop has to be told: ``nnx.Optimizer(model, tx, wrt=nnx.Param)``
keeps no state for it, ``nnx.grad`` gives it no gradient, and BatchNorm layers that are frozen keep their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from jaxvision import tree
from jaxvision.errors import UserError, nearest
from jaxvision.models.layers.frozen import Frozen
from jaxvision.models.layers.init import torch_default
from jaxvision.models.layers.norm import BatchNorm

M = TypeVar("M", bound=Any)  # an nnx.Module with the attributes that docs/architecture.md gives every model

# --- freezing ---


def freeze(model: M, *, backbone: bool = False, layers: int = 0, patterns: Sequence[str] = ()) -> M:
    """Freezes parameters of `model`, in place, and returns it. What is frozen already stays frozen.

    Make the optimizer afterwards: one that was made before expects the parameters that are now frozen.

    Args:
      backbone: everything but the classifier.
      layers: the first n groups of ``model.layer_groups(coarse=True)``. The stem (of a ViT: patch embedding, tokens
        and positions) is one group, each stage of a convnet or block of a ViT another.
      patterns: regular expressions, anchored at the start of the parameter's name, such as ``r"blocks\\.[0-5]\\."`` or
        ``r".*\\.bias"``.

    Raises:
      UserError: the model has fewer groups than `layers`, or a pattern matches no parameter.

    Example:
      >>> from jaxvision.models import registry
      >>> model = freeze(registry.build("test_vit", num_classes=10, rngs=nnx.Rngs(0)), backbone=True)
      >>> tree.names(nnx.state(model, nnx.Param))
      ['head.bias', 'head.kernel']
    """
    names = [name for name, _, _ in _parameters(model)]
    frozen: set[str] = set()
    if backbone:
        head = tuple(f"{attribute}." for attribute in model.classifier_names)
        frozen |= {name for name in names if not name.startswith(head)}
    if layers:
        groups = model.layer_groups(coarse=True)
        if not 0 < layers <= len(groups):
            raise UserError(
                f"cannot freeze the first {layers} groups: {model.architecture} has {len(groups)} "
                f"({', '.join(groups[:2])}, ..., {groups[-1]})"
            )
        frozen |= _matching(names, groups[:layers])
    if patterns:
        frozen |= _matching(names, patterns)
    _convert(model, frozen, Frozen)
    return model


def unfreeze(model: M, *, patterns: Sequence[str] = (".*",)) -> M:
    """Makes frozen parameters trainable again, in place, and returns the model.

    Args:
      patterns: which ones, as for `freeze`. Default: all.

    Raises:
      UserError: a pattern matches no parameter.

    Example:
      >>> from jaxvision.models import registry
      >>> model = freeze(registry.build("test_vit", num_classes=10, rngs=nnx.Rngs(0)), backbone=True)
      >>> names = tree.names(nnx.state(unfreeze(model, patterns=["norm"]), nnx.Param))     # the last norm, and the head
      >>> names
      ['head.bias', 'head.kernel', 'norm.bias', 'norm.scale']
    """
    _convert(model, _matching([name for name, _, _ in _parameters(model)], patterns), nnx.Param)
    return model


def _parameters(model: nnx.Module) -> Iterator[tuple[str, nnx.Module, str]]:
    """Yields (name, module that holds it, attribute) of every parameter, frozen or not. LoRA's factors always train."""
    for path, module in nnx.iter_modules(model):
        for attribute, value in vars(module).items():
            if isinstance(value, nnx.Param | Frozen) and not isinstance(value, nnx.LoRAParam):
                yield tree.join((*path, attribute)), module, attribute


def _matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    table = [(pattern, True) for pattern in patterns]
    return {name for name, matched in tree.match(names, table, default=False, what="freeze").items() if matched}


def _convert(model: nnx.Module, names: set[str], to: type[nnx.Variable]) -> None:
    for name, module, attribute in list(_parameters(model)):
        variable = getattr(module, attribute)
        if name in names and type(variable) is not to:
            # Not a new Variable of the value: an abstract leaf and its sharding have to come through, too.
            setattr(module, attribute, to.from_metadata(variable.get_raw_value(), variable.get_metadata()))
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            all_frozen = isinstance(module.scale, Frozen) and isinstance(module.bias, Frozen)
            if all_frozen and to is Frozen:
                module.frozen = module.use_running_average = True
            elif not all_frozen and to is nnx.Param:
                module.frozen = False


# --- LoRA ---


class LoRALinear(nnx.Module):
    """A frozen linear layer plus a trained product of two thin matrices: ``x W + b + (alpha / rank) x A B``.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685

    `nnx.LoRA` moves the layer that it wraps to ``base_module``. Here ``kernel`` and ``bias`` stay where they were, so
    that every table of names (sharding, layer-wise rates, timm's keys) holds with and without adapters.

    Args:
      linear: the layer; its Variables are shared, not copied.
      rank: r of A [d_in, r] and B [r, d_out].
      alpha: the product is scaled by ``alpha / rank``.
      rngs: stream ``params``.
    """

    def __init__(self, linear: nnx.Linear, *, rank: int, alpha: float, rngs: nnx.Rngs):
        d_in, d_out = linear.kernel.shape
        self.kernel, self.bias = linear.kernel, linear.bias
        # B is zero, so the model starts as it was.
        self.lora_a = nnx.LoRAParam(torch_default(rngs.params(), (d_in, rank), linear.param_dtype))
        self.lora_b = nnx.LoRAParam(jnp.zeros((rank, d_out), linear.param_dtype))
        self.scale = alpha / rank
        self.dtype = linear.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns [..., d_out] of `x` [..., d_in]."""
        bias = None if self.bias is None else self.bias[...]
        arrays = (x, self.kernel[...], bias, self.lora_a[...], self.lora_b[...])
        x, kernel, bias, a, b = dtypes.promote_dtype(arrays, dtype=self.dtype)
        y = x @ kernel + self.scale * ((x @ a) @ b)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def merged(self) -> nnx.Linear:
        """Returns the plain layer that computes the same."""
        d_in, d_out = self.kernel.shape
        kernel = self.kernel[...]
        linear = nnx.Linear(
            d_in,
            d_out,
            use_bias=self.bias is not None,
            dtype=self.dtype,
            param_dtype=kernel.dtype,
            kernel_init=nnx.initializers.zeros_init(),
            rngs=nnx.Rngs(0),
        )
        # Once, for good: in full precision also where the platform multiplies float32 in less.
        product = jnp.matmul(self.lora_a[...], self.lora_b[...], precision="highest")
        linear.kernel = nnx.Param(kernel + self.scale * product)
        linear.bias = self.bias
        return linear


def add_lora(
    model: M,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] | None = None,
    rngs: nnx.Rngs | None = None,
) -> M:
    """Freezes everything but the classifier and gives linear layers low-rank adapters, in place; returns the model.

    The outputs are unchanged at first. Weights may be loaded before or after.

    Args:
      rank: of the adapters.
      alpha: the adapters' output is scaled by ``alpha / rank``.
      targets: the layers: the last segments of their names, such as ``["attn.qkv", "mlp.fc1"]``. Default: all linear
        layers of the blocks' attention and MLP, of whatever kind the blocks are.
      rngs: stream ``params``; ``nnx.Rngs(0)`` if None.

    Raises:
      UserError: a target matches no linear layer, the model has no blocks with such layers, or it has adapters already.

    Example:
      >>> from jaxvision.models import registry
      >>> model = add_lora(registry.build("test_vit", rngs=nnx.Rngs(0)), rank=4, targets=["attn.qkv"], rngs=nnx.Rngs(1))
      >>> names = tree.names(nnx.state(model, nnx.Param))
      >>> names[:2], names[-2:]
      (['blocks.0.attn.qkv.lora_a', 'blocks.0.attn.qkv.lora_b'], ['head.bias', 'head.kernel'])
    """
    if rank < 1:
        raise UserError(f"the rank of LoRA is 1 or more, got {rank}")
    if _children(model, LoRALinear):
        raise UserError("the model has LoRA adapters already; merge_lora merges them")
    linears = _children(model, nnx.Linear)
    chosen: dict[str, tuple[nnx.Module, str]] = {}
    if targets is None:
        if not hasattr(model, "get_attention_maps"):
            raise UserError("LoRA is for ViTs: this model has no attention; name the linear layers that shall get it")
        chosen = {name: at for name, at in linears.items() if name.startswith("blocks.")}
    for target in targets or ():
        found = {name: at for name, at in linears.items() if f".{name}".endswith(f".{target}")}
        if not found:
            endings = {".".join(name.split(".")[-2:]) for name in linears}
            close = nearest(target, endings)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; LoRA is for ViTs"
            raise UserError(f"LoRA: no linear layer of the model is called {target!r}{hint}")
        chosen |= found
    freeze(model, backbone=True)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    for parent, attribute in chosen.values():
        setattr(parent, attribute, LoRALinear(getattr(parent, attribute), rank=rank, alpha=alpha, rngs=rngs))
    return model


def merge_lora(model: M) -> M:
    """Returns a plain copy of `model` with the adapters added into the weights; `model` itself stays as it is.

    The copy has the structure of a freshly created model, nothing frozen: it can be saved as timm's file.

    Example:
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", rngs=nnx.Rngs(0))
      >>> structure = nnx.graphdef(model)
      >>> nnx.graphdef(merge_lora(add_lora(model, rngs=nnx.Rngs(1)))) == structure
      True
    """
    model = nnx.clone(model)
    for parent, attribute in _children(model, LoRALinear).values():
        setattr(parent, attribute, getattr(parent, attribute).merged())
    return unfreeze(model)


def _children(model: nnx.Module, kind: type[Any]) -> dict[str, tuple[nnx.Module, str]]:
    """Returns {name: (parent, attribute)} of the submodules of a kind."""
    return {
        tree.join((*path, attribute)): (module, attribute)
        for path, module in nnx.iter_modules(model)
        for attribute, value in vars(module).items()
        if isinstance(value, kind)
    }


def parameter_counts(model_state: nnx.State) -> tuple[int, int]:
    """Returns (all, trainable) parameters, from arrays or shapes."""
    trainable = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.filter_state(model_state, nnx.Param)))
    frozen = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.filter_state(model_state, Frozen)))
    return trainable + frozen, trainable
