"""Optimizers: optax's pieces in timm's order, with timm's rules for what decays and which layer moves how fast."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxvision import tree
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.models.layers.frozen import Frozen


def create_optimizer(
    model: Any,
    *,
    name: str = "adamw",
    learning_rate: float | optax.Schedule,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    betas: tuple[float, float] | None = None,
    epsilon: float | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer for the parameters of `model` that are not frozen.

    Args:
      model: with arrays or abstract; only names and shapes are looked at, so it serves any later state of it, too.
      name: ``"sgd"``; ``"adamw"`` (https://arxiv.org/abs/1711.05101); ``"lamb"`` (https://arxiv.org/abs/1904.00962);
        ``"muon"`` (https://kellerjordan.github.io/posts/muon), which orthogonalizes the updates of hidden matrices
        and leaves the rest to AdamW.
      learning_rate: a number, or a function from step to number such as `jaxvision.train.schedule.make_schedule` makes.
        Muon's updates are scaled to the size of AdamW's (https://arxiv.org/abs/2502.16982): take AdamW's rate.
      weight_decay: of the parameters in `decay_mask`. Times the learning rate, as in PyTorch; SGD adds it to the
        gradient (L2), the others to the update (decoupled).
      layer_decay: factor from each layer to the one before it, such as 0.75; see `layer_scales`. None: all alike.
      clip_norm: longest allowed norm of the whole gradient. None: any.
      momentum: of ``sgd`` (default 0.9) and ``muon`` (0.95).
      nesterov: of ``sgd`` (default False) and ``muon`` (True).
      betas: decay of the two moments of ``adamw``, ``lamb`` and the rest of ``muon``. Default (0.9, 0.999).
      epsilon: added to their denominator. Default 1e-8; ``lamb`` 1e-6.

    Raises:
      UserError: an unknown `name`, an option that the optimizer has no use for, or a number out of range.

    Example:
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", rngs=nnx.Rngs(0))
      >>> tx = create_optimizer(model, learning_rate=1e-3, weight_decay=0.05, layer_decay=0.75, clip_norm=1.0)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    """
    if name not in _DIRECTIONS:
        raise unknown_name_error("optimizer", name, _DIRECTIONS)
    given = {"momentum": momentum, "nesterov": nesterov, "betas": betas, "epsilon": epsilon}
    options = {key: value for key, value in given.items() if value is not None}
    valid = inspect.signature(_DIRECTIONS[name]).parameters
    for key in options:
        if key not in valid:
            raise UserError(f"the optimizer {name!r} has no {key}; leave it out or set it to None")
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"clip_norm is a norm above 0, or None for no clipping; got {clip_norm}")

    decay = optax.identity()
    if weight_decay:
        decay = optax.add_decayed_weights(weight_decay, mask=_by_name(decay_mask(model)))
    pieces = [_DIRECTIONS[name](model, decay, **options)]
    if clip_norm is not None:
        pieces.insert(0, optax.clip_by_global_norm(clip_norm))
    if layer_decay is not None:
        pieces.append(_scale_by_layer(layer_scales(model, layer_decay)))
    return optax.chain(*pieces, optax.scale_by_learning_rate(learning_rate))


# --- which parameter gets what: tables from names ---


def decay_mask(model: Any) -> dict[str, bool]:
    """Returns for the name of each trainable parameter whether it decays, by timm's rule.

    Biases, norms and LayerScale (everything with fewer than two axes) do not, nor what ``model.no_weight_decay()``
    names: a ViT's position embedding and tokens.

    Example:
      >>> from jaxvision.models import registry
      >>> mask = decay_mask(registry.build("test_vit", rngs=nnx.Rngs(0)))
      >>> mask["head.kernel"], mask["head.bias"], mask["pos_embed"]
      (True, False, False)
    """
    never = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    return {name: len(p.shape) > 1 and name not in never for name, p in _named(model, nnx.Param).items()}


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """Returns for the name of each trainable parameter the factor on its learning rate.

    Clark et al., "ELECTRA", https://arxiv.org/abs/2003.10555; the groups are timm's. The classifier has 1, the layer
    before it `decay`, the one before that ``decay ** 2``, ... Frozen layers count, so that freezing changes no factor.

    Args:
      decay: in (0, 1].

    Raises:
      UserError: `decay` is out of range.

    Example:
      >>> from jaxvision.models import registry
      >>> scales = layer_scales(registry.build("test_vit", rngs=nnx.Rngs(0)), 0.5)
      >>> scales["head.kernel"], scales["norm.scale"], scales["blocks.5.attn.qkv.kernel"], scales["pos_embed"]
      (1.0, 0.5, 0.5, 0.0078125)
    """
    if not 0 < decay <= 1:
        raise UserError(f"layer_decay is a factor in (0, 1], or None for none; got {decay}")
    groups = model.layer_groups()
    names = list(_named(model, nnx.Any(nnx.Param, Frozen)))
    group = tree.match(
        names, [(pattern, i) for i, pattern in enumerate(groups)], default=len(groups), what="layer_decay"
    )
    last = max(group.values())  # a model without a classifier ends with its last layer
    return {name: decay ** (last - group[name]) for name in _named(model, nnx.Param)}


def _named(model: nnx.Module, kind: Any) -> dict[str, nnx.Variable]:
    return {tree.join(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, kind))}


def _by_name(table: dict[str, Any]) -> Callable[[Any], Any]:
    # A function of the tree, not a tree: optax calls it on Variables at first and on bare arrays later.
    return lambda params: tree.map_named(lambda name, _: table[name], params)


def _scale_by_layer(scales: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: tree.map_named(lambda name, u: u * scales[name], updates))


# --- which way: each returns gradients -> updates before the learning rate, with the decay in its place ---


def _sgd(model: Any, decay: Any, *, momentum: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    return optax.chain(decay, optax.trace(momentum, nesterov) if momentum else optax.identity())


def _adamw(
    model: Any, decay: Any, *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8
) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(*betas, eps=epsilon), decay)


def _lamb(
    model: Any, decay: Any, *, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-6
) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(*betas, eps=epsilon), decay, optax.scale_by_trust_ratio())


def _muon(
    model: Any,
    decay: Any,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    hidden = {name: _is_hidden_matrix(model, name, p.shape) for name, p in _named(model, nnx.Param).items()}
    muon = optax.chain(
        scale_by_muon(beta=momentum, nesterov=nesterov, weight_dimension_numbers=_matrix_axes),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_to_adam, updates)),
    )
    adam = optax.scale_by_adam(*betas, eps=epsilon)
    labels = _by_name({name: "muon" if is_hidden else "adam" for name, is_hidden in hidden.items()})
    return optax.chain(optax.partition({"muon": muon, "adam": adam}, labels), decay)


def _is_hidden_matrix(model: Any, name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a parameter maps features to features.

    The first convolution and the classifier do not (they face pixels and classes), nor do embeddings; a depthwise
    kernel maps no channel to another.
    """
    ends = (f"{model.first_conv}.", *(f"{attribute}." for attribute in model.classifier_names))
    is_matrix = name.split(".")[-1] in ("kernel", "lora_a", "lora_b") and len(shape) >= 2
    is_depthwise = len(shape) == 4 and shape[2] == 1
    return is_matrix and not is_depthwise and not name.startswith(ends)


def _matrix_axes(updates: Any) -> Any:
    # [d_in, d_out], or [k, k, c_in, c_out] read as a matrix from a window of k * k * c_in numbers to c_out.
    return jax.tree.map(lambda u: MuonDimensionNumbers(tuple(range(u.ndim - 1)), (u.ndim - 1,)), updates)


def _scale_to_adam(update: jax.Array) -> jax.Array:
    # An orthogonal m x n matrix has a root mean square of 1 / sqrt(max(m, n)); AdamW's updates have one of about 0.2.
    *inputs, d_out = update.shape
    return update * (0.2 * math.sqrt(max(math.prod(inputs), d_out)))


_DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": _muon,
}
