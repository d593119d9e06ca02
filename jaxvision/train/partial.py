"""Training a part of a model: freezing, and low-rank adapters (LoRA).

A frozen parameter is a `Frozen` instead of an `nnx.Param`, which works in any training loop:
``nnx.Optimizer(model, tx, wrt=nnx.Param)`` keeps no state for it, ``nnx.grad`` computes no gradient for it, and a
frozen BatchNorm keeps its statistics.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvision import tree
from jaxvision.errors import UserError, nearest
from jaxvision.models.layers import dtypes
from jaxvision.models.layers.frozen import Frozen, Replaced, convert, replace_layer
from jaxvision.models.layers.init import torch_default
from jaxvision.models.layers.norm import BatchNorm

M = TypeVar("M", bound=Any)  # with the attributes of jaxvision.models.base.Model

# --- freezing ---


def freeze(
    model: M, *, backbone: bool = False, layers: int = 0, batch_norm: bool = False, patterns: Sequence[str] = ()
) -> M:
    """Freezes parameters of `model` in place and returns it. Frozen parameters stay frozen.

    Views of `model` that were made before are frozen as well. Create the optimizer afterwards: an older one expects the
    parameters that are now frozen.

    Args:
      model: any model of jaxvision.
      backbone: freeze everything but the classifier.
      layers: freeze the first n groups of ``model.layer_groups(coarse=True)``. The first group is the stem (of a ViT:
        patch embedding, tokens and positions); each stage of a convnet and each block of a ViT is another.
      batch_norm: freeze every BatchNorm, with its statistics. A model without BatchNorm stays as it is.
      patterns: freeze the parameters whose names match one of these regular expressions, anchored at the start, such as
        ``r"blocks\\.[0-5]\\."`` or ``r".*\\.bias"``.

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
                f"model.freeze_layers: got {layers}, expected 1 to {len(groups)}, the groups of {model.architecture}: "
                f"{', '.join(groups[:2])}, ..., {groups[-1]}."
            )
        frozen |= _matching(names, groups[:layers])
    if batch_norm:
        frozen |= {name for name, module, _ in _parameters(model) if isinstance(module, BatchNorm)}
    if patterns:
        frozen |= _matching(names, patterns)
    _convert(model, frozen, Frozen)
    return model


def unfreeze(model: M, *, patterns: Sequence[str] = (".*",)) -> M:
    """Makes frozen parameters trainable again, in place, and returns the model.

    Args:
      model: any model of jaxvision.
      patterns: regular expressions as for `freeze`. Default: all parameters.

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
    """Yields (name, module, attribute) of every parameter, frozen or not, except LoRA's factors, which always train."""
    for path, module in nnx.iter_modules(model):
        for attribute, value in vars(module).items():
            if isinstance(value, nnx.Param | Frozen) and not isinstance(value, nnx.LoRAParam | Replaced):
                yield tree.join((*path, attribute)), module, attribute


def _matching(names: Sequence[str], patterns: Sequence[str]) -> set[str]:
    table = [(pattern, True) for pattern in patterns]
    return {name for name, matched in tree.match(names, table, default=False, what="freeze").items() if matched}


def _convert(model: nnx.Module, names: set[str], to: type[nnx.Variable]) -> None:
    for name, module, attribute in list(_parameters(model)):
        variable = getattr(module, attribute)
        if name in names and type(variable) is not to:
            # In place, because the views of the model share its Variables.
            convert(variable, to)


# --- LoRA ---


class LoRALinear(nnx.Module):
    """A frozen linear layer plus the product of two trainable thin matrices: ``x W + b + (alpha / rank) x A B``.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685

    `nnx.LoRA` moves the wrapped layer to ``base_module``. Here ``kernel`` and ``bias`` keep their names, so that every
    table of names (sharding, layer-wise rates, timm's keys) works with and without adapters.

    Args:
      linear: the layer. Its Variables are shared, not copied.
      rank: r of A [d_in, r] and B [r, d_out].
      alpha: the product is scaled by ``alpha / rank``.
      rngs: stream ``params``.
    """

    def __init__(self, linear: nnx.Linear, *, rank: int, alpha: float, rngs: nnx.Rngs):
        d_in, d_out = linear.kernel.shape
        self.kernel, self.bias = linear.kernel, linear.bias
        # B is zero, so the output is unchanged at first.
        self.lora_a = nnx.LoRAParam(torch_default(rngs.params(), (d_in, rank), linear.param_dtype))
        self.lora_b = nnx.LoRAParam(jnp.zeros((rank, d_out), linear.param_dtype))
        self.scale = alpha / rank
        self.dtype, self.dot_general = linear.dtype, linear.dot_general

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the output [..., d_out] for `x` [..., d_in]."""
        bias = None if self.bias is None else self.bias[...]
        arrays = (x, self.kernel[...], bias, self.lora_a[...], self.lora_b[...])
        x, kernel, bias, a, b = dtypes.promote_dtype(arrays, dtype=self.dtype)
        y = x @ kernel + self.scale * ((x @ a) @ b)
        return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def merged(self) -> nnx.Linear:
        """Returns the plain linear layer that computes the same."""
        d_in, d_out = self.kernel.shape
        kernel = self.kernel[...]
        linear = nnx.Linear(
            d_in,
            d_out,
            use_bias=self.bias is not None,
            dtype=self.dtype,
            param_dtype=kernel.dtype,
            kernel_init=nnx.initializers.zeros_init(),
            dot_general=self.dot_general,
            rngs=nnx.Rngs(0),
        )
        # In full precision, even on a platform that multiplies float32 in lower precision.
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
    """Freezes everything but the classifier and adds low-rank adapters to linear layers, in place; returns the model.

    The outputs are unchanged at first. Weights may be loaded before or after. Make views afterwards: a view that holds
    layers without adapters raises when it is called.

    Args:
      model: a model with linear layers besides its head, such as a ViT.
      rank: rank of the adapters, 1 or more.
      alpha: the output of the adapters is scaled by ``alpha / rank``.
      targets: last segments of the names of the layers to adapt, such as ``["attn.qkv", "mlp.fc1"]``. Default: the
        linear layers that the model declares (`Model.lora_pattern`); of a ViT, those of attention and MLP.
      rngs: stream ``params``. Default: ``nnx.Rngs(0)``.

    Raises:
      UserError: `rank` is out of range, a target matches no linear layer, `targets` is None and the model declares no
        layers, or it already has adapters.

    Example:
      >>> from jaxvision.models import registry
      >>> model = add_lora(registry.build("test_vit", rngs=nnx.Rngs(0)), rank=4, targets=["attn.qkv"], rngs=nnx.Rngs(1))
      >>> names = tree.names(nnx.state(model, nnx.Param))
      >>> names[:2], names[-2:]
      (['blocks.0.attn.qkv.lora_a', 'blocks.0.attn.qkv.lora_b'], ['head.bias', 'head.kernel'])
    """
    if rank < 1:
        raise UserError(f"lora.rank: got {rank}, expected 1 or more.")
    if _children(model, LoRALinear):
        raise UserError("lora: the model already has adapters. Merge them first: model = jaxvision.merge_lora(model).")
    chosen = _lora_layers(model, targets)
    freeze(model, backbone=True)
    rngs = nnx.Rngs(0) if rngs is None else rngs
    for parent, attribute in chosen.values():
        linear = nnx.clone(getattr(parent, attribute))  # shares the arrays, but no Variables
        replace_layer(parent, attribute, LoRALinear(linear, rank=rank, alpha=alpha, rngs=rngs))
    return model


def _lora_layers(model: Any, targets: Sequence[str] | None) -> dict[str, tuple[nnx.Module, str]]:
    """Returns {name: (parent, attribute)} of the linear layers that `targets` name, or that the model declares."""
    linears = {name: at for name, at in _children(model, nnx.Linear).items() if name not in model.classifier_names}
    what = model.architecture or type(model).__name__
    if not linears:
        raise UserError(
            f"lora.rank: {what} has no linear layers besides its head, and LoRA adapts no others. Set lora.rank=0."
        )
    endings = sorted({".".join(name.split(".")[-2:]) for name in linears})
    chosen: dict[str, tuple[nnx.Module, str]] = {}
    if targets is None:
        if model.lora_pattern:
            chosen = {name: at for name, at in linears.items() if re.match(model.lora_pattern, name)}
        if not chosen:
            raise UserError(
                f"lora.targets: got None, but {what} declares no layers for LoRA. Set lora.targets, for example "
                f"{endings[:2]}."
            )
    for target in targets or ():
        found = {name: at for name, at in linears.items() if f".{name}".endswith(f".{target}")}
        if not found:
            close = nearest(target, endings) or endings[:3]
            raise UserError(
                f"lora.targets: no linear layer of {what} besides its head is called {target!r}. Did you mean "
                f"{' or '.join(map(repr, close))}?"
            )
        chosen |= found
    return chosen


def merge_lora(model: M) -> M:
    """Returns a copy of `model` with the adapters merged into the weights.

    The copy has the structure of a newly created model and no frozen parameters, so it can be saved in timm's format.
    `model` does not change.

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
    """Returns {name: (parent, attribute)} of the submodules of a type."""
    return {
        tree.join((*path, attribute)): (module, attribute)
        for path, module in nnx.iter_modules(model)
        for attribute, value in vars(module).items()
        if isinstance(value, kind)
    }


def parameter_counts(model_state: nnx.State) -> tuple[int, int]:
    """Returns the numbers of all and of trainable parameters.

    Args:
      model_state: state of a model, with arrays or shapes.
    """
    trainable = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.filter_state(model_state, nnx.Param)))
    frozen = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.filter_state(model_state, Frozen)))
    return trainable + frozen, trainable
