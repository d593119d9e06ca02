"""Losses per image, and their mean over the images that count."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvision.errors import UserError, unknown_name_error

#: (logits [b, classes], targets [b] or [b, classes]) -> loss of each image [b], float32.
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def make_loss(*, kind: str = "softmax", label_smoothing: float = 0.0, target_threshold: float | None = None) -> Loss:
    """Returns the function (logits, targets) -> loss of each image.

    Args:
      kind: ``"softmax"``: cross entropy of the softmax. ``"sigmoid"``: binary cross entropy of each class, averaged
        over the classes, as in "ResNet strikes back" (https://arxiv.org/abs/2110.00476).
      label_smoothing: s in [0, 1): targets t become t (1 - s) + s / classes. Mixed targets of mixup and cutmix are
        smoothed here as well, so what mixes does not smooth.
      target_threshold: sigmoid only: after smoothing, a target above it becomes 1 and any other 0.

    Returns:
      A function of logits [b, classes] and targets, which are class numbers [b] (integers) or probabilities
      [b, classes] (floats); its result [b] is float32 whatever the dtype of the logits. A class number
      outside [0, classes) makes the loss of its image NaN, which stops training, rather than a number that means
      nothing.

    Raises:
      UserError: unknown kind, or an option out of range.

    Example:
      >>> loss = make_loss(label_smoothing=0.1)
      >>> loss(jnp.zeros((2, 10)), jnp.array([3, 7])).round(4)     # log(10): nothing is known
      Array([2.3026, 2.3026], dtype=float32)
    """
    if kind not in ("softmax", "sigmoid"):
        raise unknown_name_error("kind of loss", kind, ("softmax", "sigmoid"))
    if not 0 <= label_smoothing < 1:
        raise UserError(f"loss: label_smoothing is in [0, 1), got {label_smoothing}")
    if target_threshold is not None and kind != "sigmoid":
        raise UserError("loss: target_threshold is for kind='sigmoid'; a softmax needs targets that sum to 1")

    def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32)
        wanted = optax.smooth_labels(dense(targets, logits.shape[-1]), label_smoothing)
        if kind == "softmax":
            return optax.softmax_cross_entropy(logits, wanted)
        if target_threshold is not None:
            # NaN marks a label that does not exist; a comparison would wash it out.
            wanted = jnp.where(jnp.isnan(wanted), wanted, (wanted > target_threshold).astype(jnp.float32))
        return optax.sigmoid_binary_cross_entropy(logits, wanted).mean(axis=-1)

    return loss


def is_hard(targets: jax.Array) -> bool:
    """Returns whether targets are class numbers [b] and not probabilities [b, classes]."""
    return jnp.issubdtype(targets.dtype, jnp.integer)


def dense(targets: jax.Array, classes: int) -> jax.Array:
    """Returns targets as probabilities [b, classes], float32; a row of NaN for a class number that does not exist.

    >>> dense(jnp.array([1, 0]), 2)
    Array([[0., 1.],
           [1., 0.]], dtype=float32)
    """
    if not is_hard(targets):
        return targets.astype(jnp.float32)
    exists = (targets >= 0) & (targets < classes)
    return jnp.where(exists[:, None], jax.nn.one_hot(targets, classes, dtype=jnp.float32), jnp.nan)


def without_padding(targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns targets [b] or [b, classes] with 0 in the rows that `mask` [b] leaves out.

    A padding label may be anything, -1 for one. That its loss is not counted is not enough: 0 × NaN is NaN in the
    gradient.
    """
    return jnp.where(mask.reshape(-1, *(1,) * (targets.ndim - 1)), targets, jnp.zeros_like(targets))


def mean_weights(mask: jax.Array) -> jax.Array:
    """Returns weights [b] with which a sum is the mean over the images that `mask` [b] keeps; all 0 for none.

    >>> mean_weights(jnp.array([True, True, False, True, True]))
    Array([0.25, 0.25, 0.  , 0.25, 0.25], dtype=float32)
    """
    kept = mask.astype(jnp.float32)
    return kept / jnp.maximum(kept.sum(), 1.0)


def weighted_sum(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the sum of values [b] × weights [b]; what has no weight may be NaN, as padding may be.

    >>> weighted_sum(jnp.array([1.0, 3.0, jnp.nan]), mean_weights(jnp.array([True, True, False])))
    Array(2., dtype=float32)
    """
    return jnp.sum(jnp.where(weights > 0, values, 0.0) * weights)
