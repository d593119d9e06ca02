"""Losses per image, and their mean over the images of a batch that are not padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvision.errors import UserError, unknown_name_error
from jaxvision.extend import call, check_returned, resolve

#: (logits [b, classes], targets [b] or [b, classes]) -> loss of each image [b], float32.
Loss = Callable[[jax.Array, jax.Array], jax.Array]

#: How logits [..., classes] become probabilities. Those of a sigmoid do not sum to 1.
PROBABILITIES: dict[str, Callable[[jax.Array], jax.Array]] = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}

KINDS = tuple(PROBABILITIES)


def make_loss(
    *,
    kind: str | Callable[..., Loss] = "softmax",
    label_smoothing: float = 0.0,
    target_threshold: float | None = None,
    **options: Any,
) -> Loss:
    """Returns the function from logits and targets to the loss of each image.

    Args:
      kind: ``"softmax"``: cross entropy of the softmax. ``"sigmoid"``: binary cross entropy of each class, averaged
        over the classes, as in "ResNet strikes back" (https://arxiv.org/abs/2110.00476). Or your own function, as a
        callable or as ``"package.module:function"``: it is called with `options`, and with `label_smoothing` and
        `target_threshold` if it takes them, and returns a function like the one returned here.
      label_smoothing: s in [0, 1). Targets t become t (1 - s) + s / classes. It also applies to the mixed targets of
        mixup and cutmix.
      target_threshold: ``"sigmoid"`` only: after smoothing, a target above it becomes 1 and any other 0. None keeps the
        targets.
      **options: keyword arguments of your own function.

    Returns:
      A function of logits [b, classes] and targets, which are labels [b] (integers) or probabilities [b, classes]
      (floats). Its result [b] is float32 for logits of any dtype. A label outside [0, classes) makes the loss of its
      image NaN, so that training stops instead of learning from it.

    Raises:
      UserError: `kind` is unknown, or an option is out of range.

    Example:
      >>> loss = make_loss(label_smoothing=0.1)
      >>> loss(jnp.zeros((2, 10)), jnp.array([3, 7])).round(4)     # log(10): all classes are equally likely
      Array([2.3026, 2.3026], dtype=float32)
    """
    if not 0 <= label_smoothing < 1:
        raise UserError(f"loss.label_smoothing: got {label_smoothing}, expected a number in [0, 1).")
    own = loss_function(kind)
    if own is not None:
        return _own_loss(own, label_smoothing, target_threshold, options)
    if options:
        builtin = [key for key in inspect.signature(make_loss).parameters if key != "options"]
        raise unknown_name_error("make_loss", min(options), builtin, expected="an argument")
    if target_threshold is not None and kind != "sigmoid":
        raise UserError(
            f"loss.target_threshold: got {target_threshold} with loss.kind={kind!r}, whose targets sum to 1. Set "
            "loss.kind=sigmoid, or loss.target_threshold=None."
        )

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        probabilities = optax.smooth_labels(to_probabilities(targets, logits.shape[-1]), label_smoothing)
        if kind == "softmax":
            return optax.softmax_cross_entropy(logits, probabilities)
        if target_threshold is not None:
            above = (probabilities > target_threshold).astype(jnp.float32)
            # The comparison turns the NaN of a label out of range into 0.
            probabilities = jnp.where(jnp.isnan(probabilities), probabilities, above)
        return optax.sigmoid_binary_cross_entropy(logits, probabilities).mean(axis=-1)

    return loss


def loss_function(kind: str | Callable[..., Loss]) -> Callable[..., Loss] | None:
    """Returns the user's function that `kind` refers to, or None for a built-in loss.

    Args:
      kind: as for `make_loss`.

    Raises:
      UserError: no such loss, module or function.

    Example:
      >>> loss_function("softmax") is None
      True
    """
    if kind in KINDS:
        return None
    return resolve("loss.kind", kind, dict.fromkeys(KINDS), expected="a loss")


def probabilities_of(kind: str | Callable[..., Loss]) -> str:
    """Returns how the logits of a model that was trained with a loss become probabilities: a key of `PROBABILITIES`.

    Args:
      kind: as for `make_loss`. A loss of your own counts as one of the softmax.

    >>> probabilities_of("sigmoid")
    'sigmoid'
    """
    return "sigmoid" if kind == "sigmoid" else "softmax"


def _own_loss(
    own: Callable[..., Loss], label_smoothing: float, target_threshold: float | None, options: dict[str, Any]
) -> Loss:
    given = {"label_smoothing": label_smoothing, "target_threshold": target_threshold}
    off = {"label_smoothing": 0.0, "target_threshold": None}
    taken = inspect.signature(own).parameters
    for key, value in given.items():
        if value != off[key] and key not in taken:
            raise UserError(
                f"loss.{key}: got {value}, but the function of loss.kind takes no {key}. Set loss.{key}={off[key]}."
            )
    compute = call("loss.kind", own, **{key: value for key, value in given.items() if key in taken}, **options)
    check_returned("loss.kind", compute, valid=callable(compute), expected="a function of (logits, targets)")

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        values = compute(logits.astype(jnp.float32), targets)
        check_returned("loss.kind", values, valid=hasattr(values, "shape"), expected="an array: one loss per image")
        if values.shape != logits.shape[:1]:
            raise UserError(
                f"loss.kind: got a loss of shape {values.shape}, expected {logits.shape[:1]}: one per image."
            )
        return values.astype(jnp.float32)

    return loss


def are_labels(targets: jax.Array) -> bool:
    """Returns whether targets are labels [b] (integers), not probabilities [b, classes]."""
    return jnp.issubdtype(targets.dtype, jnp.integer)


def to_probabilities(targets: jax.Array, classes: int) -> jax.Array:
    """Returns targets as probabilities [b, classes], float32; the row of a label outside [0, classes) is NaN.

    >>> to_probabilities(jnp.array([1, 0]), 2)
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    if not are_labels(targets):
        return targets.astype(jnp.float32)
    exists = (targets >= 0) & (targets < classes)
    return jnp.where(exists[:, None], jax.nn.one_hot(targets, classes, dtype=jnp.float32), jnp.nan)


def zero_padding(targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns targets [b] or [b, classes] with 0 in the rows of padding, where `mask` [b] is False.

    A padding label may be anything, such as -1. A weight of 0 for its loss is not enough, because the gradient
    0 × NaN is NaN.
    """
    return jnp.where(mask.reshape(-1, *(1,) * (targets.ndim - 1)), targets, jnp.zeros_like(targets))


def mean_weights(mask: jax.Array) -> jax.Array:
    """Returns weights [b] whose weighted sum is the mean over the images where `mask` [b] is True; all 0 for none.

    >>> mean_weights(jnp.array([True, True, False, True, True]))
    Array([0.25, 0.25, 0.  , 0.25, 0.25], dtype=float32)
    """
    kept = mask.astype(jnp.float32)
    return kept / jnp.maximum(kept.sum(), 1.0)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the sum of values [b] × weights [b]; a value whose weight is 0 may be NaN.

    >>> weighted_sum(jnp.array([1.0, 3.0, jnp.nan]), mean_weights(jnp.array([True, True, False])))
    Array(2., dtype=float32)
    """
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights)
