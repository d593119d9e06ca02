"""Random color changes and random erasing of one image [h, w, c], inside jit."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.augment import rand_augment as ra
from jaxvision.augment.geometry import below, random_rectangles


def jitter_color(image: jax.Array, key: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """Returns an image with brightness, contrast and saturation changed by random factors, in random order.

    Args:
      image: float32 [h, w, c], whole numbers in 0 to 255; 1 or 3 channels.
      key: a JAX key.
      strengths: three numbers s; each factor is drawn from ``max(0, 1 - s)`` to ``1 + s``.
    """
    u = jax.random.uniform(key, (4,))
    low = np.array([max(0.0, 1 - s) for s in strengths], np.float32)
    high = np.array([1 + s for s in strengths], np.float32)
    factors = low + u[:3] * (high - low)
    order = jnp.array(list(itertools.permutations(range(3))))[below(u[3], 6)]
    for i in range(3):
        which = order[i]
        # Brightness blends with black, contrast with the mean gray, saturation with the gray image.
        gray = ra.gray(image)
        degenerate = jnp.where(which == 0, 0.0, jnp.where(which == 1, ra.mean_gray(image), gray))
        image = ra.blend(degenerate, image, factors[which])
    return image


def random_erase(
    image: jax.Array,
    key: jax.Array,
    *,
    probability: float,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: float = 0.3,
    count: int = 1,
    fill: str = "const",
) -> jax.Array:
    """Returns an image with random rectangles erased.

    Zhong et al., "Random Erasing Data Augmentation", https://arxiv.org/abs/1708.04896

    Args:
      image: float32 [h, w, c], normalized.
      key: a JAX key.
      probability: of erasing anything.
      area: smallest and largest share of the image's area; several rectangles share it.
      ratio: smallest height / width of a rectangle; the largest is its inverse.
      count: largest number of rectangles; their number is drawn from 1 to this.
      fill: ``"const"`` (0, the mean color), ``"rand"`` (one random color) or ``"pixel"`` (noise).
    """
    h, w, c = image.shape
    happens_key, *keys = jax.random.split(key, 1 + count)
    u = jax.random.uniform(happens_key, (2,))
    number = jnp.where(u[0] < probability, 1 + below(u[1], count), 0)
    y, x = jnp.arange(h)[:, None, None], jnp.arange(w)[None, :, None]
    for i, box_key in enumerate(keys):
        u_key, fill_key = jax.random.split(box_key)
        shares = [a / jnp.maximum(number, 1) for a in area]
        heights, widths, tops, lefts = random_rectangles(
            jax.random.uniform(u_key, (32,)), h, w, area=shares, ratio=(ratio, 1 / ratio)
        )
        fits = (heights < h) & (widths < w)
        first = jnp.argmax(fits)
        top, left, bottom, right = tops[first], lefts[first], (tops + heights)[first], (lefts + widths)[first]
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        shape = {"const": (), "rand": (1, 1, c), "pixel": (h, w, c)}[fill]
        color = jax.random.normal(fill_key, shape) if shape else 0.0
        image = jnp.where(inside & fits[first] & (i < number), color, image)
    return image
