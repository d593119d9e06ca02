"""Optimizers: optax transformations in timm's order, with timm's rules for weight decay and layer-wise rates."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxvision import tree
from jaxvision.errors import UserError
from jaxvision.extend import call, check_returned, resolve
from jaxvision.models.layers.frozen import Frozen

#: Arguments of an optimizer function that `create_optimizer` passes itself, so that they are not options.
PASSED = ("learning_rate", "weight_decay", "mask")


def create_optimizer(
    model: Any,
    *,
    name: str | Callable[..., optax.GradientTransformation] = "adamw",
    learning_rate: float | optax.Schedule,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    clip_norm: float | None = None,
    momentum: float | None = None,
    nesterov: bool | None = None,
    betas: tuple[float, float] | None = None,
    epsilon: float | None = None,
    mu_dtype: str | None = None,
    **options: Any,
) -> optax.GradientTransformation:
    """Returns the optimizer for the trainable parameters of `model`.

    Updates are computed in this order: clip the gradient, the optimizer's direction with weight decay, scale by layer,
    scale by the learning rate.

    An optimizer of your own, or of optax, is a function that returns an optax transformation, such as `optax.lion`. It
    is called with ``learning_rate`` and `options`, and clipping and layer-wise rates apply to it as to the built-in
    ones. If it takes ``weight_decay`` and ``mask``, it gets `weight_decay` and `decay_mask` and decays by itself.
    Otherwise it gets ``weight_decay=0`` if it takes that, and the decay ``-learning_rate * weight_decay * parameter``
    is added to its updates, as in AdamW.

    Args:
      model: with arrays or abstract. Only names and shapes are read, so the optimizer also serves later states.
      name: ``"sgd"``; ``"adamw"`` (https://arxiv.org/abs/1711.05101); ``"lamb"`` (https://arxiv.org/abs/1904.00962),
        whose trust ratio applies to the parameters that decay, as in timm; ``"muon"``
        (https://kellerjordan.github.io/posts/muon), which orthogonalizes the updates of hidden matrices and leaves the
        other parameters to AdamW, with its author's coefficients and Nesterov momentum (timm's ``muon`` has other
        coefficients and no Nesterov momentum). Or a function, as a callable, as ``"optax:lion"`` or as
        ``"package.module:function"``.
      learning_rate: a number, or a function from step to number such as `jaxvision.train.schedule.make_schedule`
        returns. Muon's updates are scaled to the size of AdamW's (https://arxiv.org/abs/2502.16982), so AdamW's rate
        fits both.
      weight_decay: decay of the parameters in `decay_mask`, multiplied by the learning rate as in PyTorch. SGD adds it
        to the gradient (L2), the other optimizers to the update (decoupled).
      layer_decay: factor on the learning rate from each layer to the one before it, such as 0.75; see `layer_scales`.
        None: all layers have the same rate.
      clip_norm: maximum norm of the whole gradient. None: no clipping, also for ``lamb``, for which timm clips
        at 1.0 by default.
      momentum: of ``sgd`` (default 0.9) and ``muon`` (0.95).
      nesterov: of ``sgd`` (default False as in PyTorch; timm's ``sgd`` sets True) and ``muon`` (True).
      betas: decay of the two moments of ``adamw``, ``lamb`` and of the parameters that ``muon`` leaves to AdamW.
        Default (0.9, 0.999).
      epsilon: added to the denominator of these. Default 1e-8; ``lamb`` 1e-6.
      mu_dtype: dtype of the first moment, such as ``"bfloat16"``, which saves two bytes per parameter. Of ``adamw``,
        ``lamb``, ``muon`` and functions that take it. None: the dtype of the parameter.
      **options: further keyword arguments of the function that `name` refers to.

    Raises:
      UserError: `name` is unknown, the optimizer does not take an option, or a number is out of range.

    Example:
      >>> from jaxvision.models import registry
      >>> model = registry.build("test_vit", rngs=nnx.Rngs(0))
      >>> tx = create_optimizer(model, learning_rate=1e-3, weight_decay=0.05, layer_decay=0.75, clip_norm=1.0)
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> lion = create_optimizer(model, name="optax:lion", learning_rate=1e-4, weight_decay=0.1, b2=0.98)
    """
    if clip_norm is not None and clip_norm <= 0:
        raise UserError(f"optimizer.clip_norm: got {clip_norm}, expected a number above 0, or None for no clipping.")
    own = optimizer_function(name)
    function = _DIRECTIONS[str(name)] if own is None else own
    common = {"momentum": momentum, "nesterov": nesterov, "betas": betas, "epsilon": epsilon, "mu_dtype": mu_dtype}
    options = _options(name, function, options | {key: value for key, value in common.items() if value is not None})
    if own is not None:
        scaled = _own_optimizer(own, model, learning_rate, weight_decay, options)
    else:
        scaled = function(model, weight_decay, **options)
    pieces = [scaled]
    if clip_norm is not None:
        pieces.insert(0, optax.clip_by_global_norm(clip_norm))
    if layer_decay is not None:
        pieces.append(_scale_by_layer(layer_scales(model, layer_decay)))
    if own is None:
        pieces.append(optax.scale_by_learning_rate(learning_rate))
    return optax.chain(*pieces)


def optimizer_function(
    name: str | Callable[..., optax.GradientTransformation],
) -> Callable[..., optax.GradientTransformation] | None:
    """Returns the function that `name` refers to, or None for a built-in optimizer.

    Args:
      name: as for `create_optimizer`.

    Raises:
      UserError: no such optimizer, module or function.

    Example:
      >>> optimizer_function("adamw") is None, optimizer_function("optax:lion").__name__
      (True, 'lion')
    """
    return None if name in _DIRECTIONS else resolve("optimizer.name", name, _DIRECTIONS, expected="an optimizer")


def _options(name: Any, function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns `given`, with a dtype for its name, after checking that the optimizer takes each option."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    valid = [key for key in parameters if key not in (*PASSED, "model")]
    for key in given:
        if key not in valid and not takes_any:
            raise UserError(
                f"optimizer.{key}: got {given[key]!r}, but the optimizer {getattr(name, '__name__', name)!r} takes "
                f"only {', '.join(valid)}. Remove optimizer.{key}, or set it to None."
            )
    if isinstance(given.get("mu_dtype"), str):
        try:
            given["mu_dtype"] = jnp.dtype(given["mu_dtype"])
        except TypeError as e:
            raise UserError(
                f"optimizer.mu_dtype: got {given['mu_dtype']!r}, expected a dtype such as 'bfloat16' or 'float32'."
            ) from e
    return given


def _own_optimizer(
    function: Callable[..., optax.GradientTransformation],
    model: Any,
    learning_rate: float | optax.Schedule,
    weight_decay: float,
    options: dict[str, Any],
) -> optax.GradientTransformation:
    """Returns the transformation of a function that is not built in, with decay and learning rate in its updates."""
    parameters = inspect.signature(function).parameters
    mask = _by_name(decay_mask(model))
    decays = "mask" in parameters and "weight_decay" in parameters
    if decays:
        options = options | {"weight_decay": weight_decay, "mask": mask}
    elif "weight_decay" in parameters:
        options = options | {"weight_decay": 0.0}
    transformation = call("optimizer.name", function, learning_rate=learning_rate, **options)
    valid = hasattr(transformation, "init") and hasattr(transformation, "update")
    check_returned("optimizer.name", transformation, valid=valid, expected="an optax.GradientTransformation")
    if decays or not weight_decay:
        return transformation
    decay = optax.chain(optax.add_decayed_weights(weight_decay, mask=mask), optax.scale_by_learning_rate(learning_rate))
    return _sum_of_updates(transformation, decay)


def _sum_of_updates(
    first: optax.GradientTransformation, decay: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Returns the transformation whose updates are those of `first` plus those of `decay` for a gradient of zero."""

    def init(params: Any) -> Any:
        return first.init(params), decay.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        decayed, decay_state = decay.update(jax.tree.map(jnp.zeros_like, updates), state[1], params)
        updates, first_state = first.update(updates, state[0], params)
        return jax.tree.map(jnp.add, updates, decayed), (first_state, decay_state)

    return optax.GradientTransformation(init, update)


# --- Tables by name: which parameters decay, and how the learning rate scales with the layer ---


def decay_mask(model: Any) -> dict[str, bool]:
    """Returns whether each trainable parameter decays, by name, following timm.

    Parameters with fewer than two axes (biases, norms, LayerScale) do not decay, nor those that
    ``model.no_weight_decay()`` names, such as the position embedding and the tokens of a ViT.

    Example:
      >>> from jaxvision.models import registry
      >>> mask = decay_mask(registry.build("test_vit", rngs=nnx.Rngs(0)))
      >>> mask["head.kernel"], mask["head.bias"], mask["pos_embed"]
      (True, False, False)
    """
    never = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    return {name: len(p.shape) > 1 and name not in never for name, p in _named(model, nnx.Param).items()}


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """Returns the factor on the learning rate of each trainable parameter, by name.

    Clark et al., "ELECTRA", https://arxiv.org/abs/2003.10555, with timm's groups of layers. The factor of the
    classifier is 1, of the layer before it `decay`, of the one before that ``decay ** 2``, and so on. Frozen layers
    count, so that freezing changes no factor.

    Args:
      model: as for `create_optimizer`.
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
        raise UserError(
            f"optimizer.layer_decay: got {decay}, expected a number in (0, 1], or None for one rate for all layers."
        )
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
    # A function of the tree instead of a tree, because optax calls it first on Variables and later on bare arrays.
    return lambda params: tree.map_named(lambda name, _: table[name], params)


def _scale_by_layer(scales: dict[str, float]) -> optax.GradientTransformation:
    return optax.stateless(lambda updates, _: tree.map_named(lambda name, u: u * scales[name], updates))


# --- Built-in directions: gradients -> updates before the learning rate, with the weight decay where it belongs ---


def _decay(model: Any, weight_decay: float) -> optax.GradientTransformation:
    if not weight_decay:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, mask=_by_name(decay_mask(model)))


def _sgd(
    model: Any, weight_decay: float, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    return optax.chain(_decay(model, weight_decay), optax.trace(momentum, nesterov) if momentum else optax.identity())


def _adamw(
    model: Any,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    return optax.chain(optax.scale_by_adam(*betas, eps=epsilon, mu_dtype=mu_dtype), _decay(model, weight_decay))


def _lamb(
    model: Any,
    weight_decay: float,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-6,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    adam = optax.scale_by_adam(*betas, eps=epsilon, mu_dtype=mu_dtype)
    if not weight_decay:
        return adam
    trust_ratio = optax.masked(optax.scale_by_trust_ratio(), _by_name(decay_mask(model)))
    return optax.chain(adam, _decay(model, weight_decay), trust_ratio)


def _muon(
    model: Any,
    weight_decay: float,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    hidden = {name: _is_hidden_matrix(model, name, p.shape) for name, p in _named(model, nnx.Param).items()}
    muon = optax.chain(
        optax.trace(momentum, nesterov, accumulator_dtype=mu_dtype),
        optax.stateless(lambda updates, _: _orthogonal(updates)),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_to_adam, updates)),
    )
    adam = optax.scale_by_adam(*betas, eps=epsilon, mu_dtype=mu_dtype)
    labels = _by_name({name: "muon" if is_hidden else "adam" for name, is_hidden in hidden.items()})
    return optax.chain(optax.partition({"muon": muon, "adam": adam}, labels), _decay(model, weight_decay))


def _orthogonal(updates: Any) -> Any:
    # Without optax's momentum, whose bias correction gives Nesterov's first steps other weights than Muon's reference.
    muon = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=_matrix_axes)
    return muon.update(updates, muon.init(updates))[0]


def _is_hidden_matrix(model: Any, name: str, shape: tuple[int, ...]) -> bool:
    """Returns whether a parameter maps features to features.

    The first convolution and the classifier do not, because they face pixels and classes. Neither do embeddings, nor
    depthwise kernels, which map no channel to another.
    """
    ends = (f"{model.first_conv}.", *(f"{attribute}." for attribute in model.classifier_names))
    is_matrix = name.split(".")[-1] in ("kernel", "lora_a", "lora_b") and len(shape) >= 2
    is_depthwise = len(shape) == 4 and shape[2] == 1
    return is_matrix and not is_depthwise and not name.startswith(ends)


def _matrix_axes(updates: Any) -> Any:
    # [d_in, d_out], or [k, k, c_in, c_out] read as a matrix from a window of k * k * c_in numbers to c_out.
    return jax.tree.map(lambda u: MuonDimensionNumbers(tuple(range(u.ndim - 1)), (u.ndim - 1,)), updates)


def _scale_to_adam(update: jax.Array) -> jax.Array:
    # The root mean square of an orthogonal m x n matrix is 1 / sqrt(max(m, n)), of AdamW's updates about 0.2.
    *inputs, d_out = update.shape
    return update * (0.2 * math.sqrt(max(math.prod(inputs), d_out)))


_DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": _sgd,
    "adamw": _adamw,
    "lamb": _lamb,
    "muon": _muon,
}
