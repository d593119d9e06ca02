"""Mixup and cutmix of a batch [b, h, w, c], inside jit."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxvision.augment.geometry import below


def mix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    mask: jax.Array,
    mixup: float,
    cutmix: float,
    probability: float = 1.0,
    switch: float = 0.5,
    mode: str = "batch",
) -> tuple[jax.Array, jax.Array]:
    """Returns images and targets, mixed with those at the mirrored position: image i with image b - 1 - i.

    Args:
      images: [b, h, w, c].
      targets: [b, num_classes].
      key: a JAX key, one for the batch.
      mask: bool [b], False for padding. An image whose partner is padding is not changed.
      mixup: alpha of the Beta distribution of mixup (https://arxiv.org/abs/1710.09412); 0 is off.
      cutmix: alpha of the Beta distribution of cutmix (https://arxiv.org/abs/1905.04899); 0 is off. The weight of an
        image's own target is the share of its pixels that are kept.
      probability: of mixing.
      switch: probability of cutmix if both are on.
      mode: draws once for the ``"batch"``, for each ``"pair"`` of mirrored images, or for each image (``"elem"``).
    """
    b, h, w, _ = images.shape

    def draw(position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        u = jax.random.uniform(jax.random.fold_in(key, position), (8,))
        is_cutmix = u[0] < (switch if mixup and cutmix else bool(cutmix))
        alpha = jnp.where(is_cutmix, cutmix, mixup)
        share = jnp.where(u[1] < probability, symmetric_beta(u[4], u[5], alpha), 1.0)
        # The rectangle has the shape of the image and a random center, and is clipped to the image.
        side = jnp.sqrt(1 - share)
        cut_h, cut_w = (h * side).astype(jnp.int32), (w * side).astype(jnp.int32)
        middle_y, middle_x = below(u[2], h), below(u[3], w)
        top, bottom = jnp.clip(middle_y - cut_h // 2, 0, h), jnp.clip(middle_y + (cut_h + 1) // 2, 0, h)
        left, right = jnp.clip(middle_x - cut_w // 2, 0, w), jnp.clip(middle_x + (cut_w + 1) // 2, 0, w)
        kept = 1 - (bottom - top) * (right - left) / (h * w)
        return is_cutmix, jnp.where(is_cutmix, kept, share), jnp.stack([top, bottom, left, right])

    positions = jnp.arange(b)
    if mode == "batch":
        positions = jnp.zeros_like(positions)
    elif mode == "pair":
        positions = jnp.minimum(positions, b - 1 - positions)
    # Without the barrier the compiler recomputes an image's random numbers for each of its pixels.
    drawn = jax.lax.optimization_barrier(jax.vmap(draw, out_axes=(0, 0, 1))(positions))
    is_cutmix, share, (top, bottom, left, right) = drawn
    share = jnp.where(mask[::-1], share, 1.0)

    def per_image(x: jax.Array) -> jax.Array:
        return x[:, None, None, None]

    y, x = jnp.arange(h)[None, :, None, None], jnp.arange(w)[None, None, :, None]
    inside = (y >= per_image(top)) & (y < per_image(bottom)) & (x >= per_image(left)) & (x < per_image(right))
    partners = images[::-1]
    pasted = jnp.where(inside & per_image(mask[::-1]), partners, images)
    blended = images * per_image(share) + partners * per_image(1 - share)
    mixed = jnp.where(per_image(is_cutmix), pasted, blended)
    return mixed, targets * share[:, None] + targets[::-1] * (1 - share)[:, None]


def symmetric_beta(u: jax.Array, v: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Returns a draw of the Beta(alpha, alpha) distribution from `u` and `v`, uniform in [0, 1).

    Unlike a general Beta, the symmetric one has a closed form: if t has Student's t-distribution with 2 alpha degrees
    of freedom, ``1/2 + t / (2 sqrt(2 alpha + t^2))`` has this one, and a polar method draws t. Bailey, "Polar
    generation of random variates with the t-distribution", Mathematics of Computation 62, 1994.

    >>> f"{symmetric_beta(jnp.array(0.5), jnp.array(0.5), 1.0):.4f}"
    '0.1464'
    """
    c = jnp.cos(2 * math.pi * v)
    power = u ** (1 / alpha)
    return 0.5 + 0.5 * c / jnp.sqrt(power / (1 - power) + c * c)
