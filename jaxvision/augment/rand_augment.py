"""RandAugment inside jit: timm's operations and levels, Pillow's arithmetic.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space",
https://arxiv.org/abs/1909.13719

Images here are float32 [h, w, c] with whole numbers in 0 to 255, and each operation gives Pillow's values. Affine maps
interpolate bilinearly; timm by default draws bilinear or bicubic.

Under `jax.vmap` every image takes every branch, so fifteen branches would cost fifteen operations. The operations are
therefore grouped into three kinds, and an image passes once through each, with the identity for the other two:

- a table of 256 values for each channel: AutoContrast, Equalize, Invert, Posterize, Solarize, SolarizeAdd, Contrast,
  Brightness;
- a blend with a degenerate image: Color, Sharpness;
- an affine map: Rotate, ShearX, ShearY, TranslateX, TranslateY.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvision.errors import UserError

TABLES = ("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd", "Contrast", "Brightness")
BLENDS = ("Color", "Sharpness")
AFFINES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
OPS = TABLES + BLENDS + AFFINES


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """A policy of RandAugment.

    Args:
      num_ops: number of operations per image, drawn with replacement from the fifteen.
      magnitude: strength, 0 to 10 (and more, up to `max_magnitude`).
      probability: that a drawn operation is applied.
      magnitude_std: standard deviation of the magnitude, drawn for each operation; ``math.inf`` draws it
        uniformly from 0 to `magnitude`.
      max_magnitude: drawn magnitudes are clipped to 0 and this.
      increasing: each operation grows stronger with the magnitude ("inc1"). By default Posterize and Solarize grow
        weaker, and Color, Contrast, Brightness and Sharpness go from 0.1 (faint) through 1 (unchanged, at 5) to 1.9.

    Raises:
      UserError: a value is out of range.

    Example:
      >>> RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment(magnitude=9, magnitude_std=0.5, increasing=True)
      True
    """

    num_ops: int = 2
    magnitude: float = 10.0
    probability: float = 0.5
    magnitude_std: float = 0.0
    max_magnitude: float = 10.0
    increasing: bool = False

    def __post_init__(self) -> None:
        if self.num_ops < 1:
            raise UserError(f"RandAugment: got num_ops={self.num_ops}, expected 1 or more.")
        if min(self.magnitude, self.magnitude_std) < 0 or self.max_magnitude <= 0:
            raise UserError(f"RandAugment: got {self}, expected magnitudes of 0 or more.")
        if not 0 <= self.probability <= 1:
            raise UserError(f"RandAugment: got probability={self.probability}, expected a number in [0, 1].")

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Returns the policy of timm's notation: ``rand-m9-n2-mstd0.5-p0.5-mmax10-inc1``, in any order after ``rand``.

        Raises:
          UserError: the text is not in this notation.
        """
        head, *parts = text.split("-")
        if head != "rand":
            raise UserError(f"RandAugment: got {text!r}, expected a policy such as 'rand-m9-mstd0.5-inc1'.")
        names = {
            "m": "magnitude",
            "n": "num_ops",
            "mstd": "magnitude_std",
            "p": "probability",
            "mmax": "max_magnitude",
            "inc": "increasing",
        }
        options: dict[str, float] = {}
        for part in parts:
            found = re.fullmatch(r"([a-z]+)(\d+\.?\d*)", part)
            if not found or found[1] not in names:
                raise UserError(
                    f"RandAugment: got {part!r} in {text!r}, expected one of {', '.join(names)}, and a number."
                )
            options[names[found[1]]] = float(found[2])
        if options.get("magnitude_std", 0) > 100:  # timm's way to write infinity
            options["magnitude_std"] = math.inf
        return cls(num_ops=int(options.pop("num_ops", 2)), increasing=bool(options.pop("increasing", 0)), **options)


def rand_augment(image: jax.Array, key: jax.Array, policy: RandAugment, fill: Sequence[float]) -> jax.Array:
    """Returns `image` [h, w, c] after the policy's operations.

    Args:
      image: float32, whole numbers in 0 to 255; 1 or 3 channels.
      key: a JAX key; the same key draws the same operations.
      policy: which operations, and how strong.
      fill: color of the area outside the image, c numbers in 0 to 255.

    Example:
      >>> policy = RandAugment.parse("rand-m9")
      >>> augment = jax.jit(jax.vmap(lambda image, key: rand_augment(image, key, policy, fill=(124, 116, 104))))
      >>> augment(jnp.full((4, 8, 8, 3), 100.0), jax.random.split(jax.random.key(0), 4)).shape
      (4, 8, 8, 3)
    """

    def layer(image: jax.Array, u: jax.Array) -> tuple[jax.Array, None]:
        level = jnp.float32(policy.magnitude)
        if math.isinf(policy.magnitude_std):
            level = level * u[0]
        elif policy.magnitude_std:
            level = level + policy.magnitude_std * math.sqrt(2) * jax.lax.erf_inv(2 * u[0] - 1)
        level = jnp.clip(level, 0, policy.max_magnitude) / 10
        sign = jnp.where(u[1] < 0.5, 1.0, -1.0)
        op = jnp.floor(u[2] * len(OPS)).astype(jnp.int32)
        done = apply(image, op, arguments(level, sign, increasing=policy.increasing)[op], fill)
        return jnp.where(u[3] < policy.probability, done, image), None

    return jax.lax.scan(layer, image, jax.random.uniform(key, (policy.num_ops, 4)))[0]


def arguments(level: jax.Array, sign: jax.Array, *, increasing: bool) -> jax.Array:
    """Returns the argument of each of `OPS` for `apply`, float32 [15], in the unit of the operation.

    Args:
      level: magnitude / 10.
      sign: 1 or -1, for the operations that have a direction.
      increasing: as in `RandAugment`.

    Example:
      >>> dict(zip(OPS, arguments(0.9, -1.0, increasing=True).round(2).tolist()))["Rotate"]
      -27.0
    """
    bits, threshold = jnp.floor(level * 4), jnp.minimum(jnp.floor(level * 256), 256)
    if increasing:
        bits, threshold = 4 - bits, 256 - threshold
        enhance = jnp.maximum(1 + sign * level * 0.9, 0.1)
    else:
        enhance = level * 1.8 + 0.1
    shear, shift = sign * level * 0.3, sign * level * 0.45
    by_name = {
        "AutoContrast": 0.0,
        "Equalize": 0.0,
        "Invert": 0.0,
        "Posterize": bits,  # number of bits that are kept
        "Solarize": threshold,  # values from here on are inverted
        "SolarizeAdd": jnp.minimum(jnp.floor(level * 110), 128),  # added to values below 128
        "Contrast": enhance,  # factor, 1 changes nothing
        "Brightness": enhance,
        "Color": enhance,
        "Sharpness": enhance,
        "Rotate": sign * level * 30,  # degrees, counterclockwise
        "ShearX": shear,
        "ShearY": shear,
        "TranslateX": shift,  # share of the width
        "TranslateY": shift,
    }
    return jnp.stack([jnp.asarray(by_name[name], jnp.float32) for name in OPS])


def apply(image: jax.Array, op: jax.Array | int, argument: jax.Array | float, fill: Sequence[float]) -> jax.Array:
    """Returns `image` [h, w, c] after the operation ``OPS[op]``.

    Example:
      >>> invert = jax.jit(lambda image: apply(image, OPS.index("Invert"), 0.0, fill=(0, 0, 0)))
      >>> invert(jnp.full((2, 2, 3), 100.0))[0, 0].tolist()
      [155.0, 155.0, 155.0]
    """
    h, w, _ = image.shape
    # Without the barrier the compiler recomputes an entry of the table for each pixel that looks it up.
    image = _look_up(image, jax.lax.optimization_barrier(_table(image, op, argument)))
    degenerate = jnp.where(op == OPS.index("Color"), gray(image), smooth(image))
    blends = (op == OPS.index("Color")) | (op == OPS.index("Sharpness"))
    image = blend(degenerate, image, jnp.where(blends, argument, 1.0))
    moves = op >= OPS.index(AFFINES[0])
    return jnp.where(moves, affine(image, _matrix(h, w, op, argument), fill), image)


def floor(x: jax.Array) -> jax.Array:
    """Returns the whole number below `x`, or above it if that is less than a thousandth away.

    Many products here are whole numbers up to the last bit, which differs between compiled programs.
    """
    return jnp.floor(x + 2**-10)


def blend(degenerate: jax.Array | float, image: jax.Array, factor: jax.Array | float) -> jax.Array:
    """Returns ``degenerate + factor * (image - degenerate)`` as Pillow rounds it: down, within 0 and 255."""
    return floor(jnp.clip(degenerate + factor * (image - degenerate), 0, 255))


def gray(image: jax.Array) -> jax.Array:
    """Returns the luminance of `image` [h, w, c], repeated over its channels: Pillow's, exact in float32."""
    if image.shape[-1] == 1:
        return image
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    luminance = jnp.floor((r * 19595 + g * 38470 + b * 7471 + 32768) / 65536)
    return jnp.broadcast_to(luminance[..., None], image.shape)


def mean_gray(image: jax.Array) -> jax.Array:
    """Returns the mean luminance of `image` [h, w, c], a whole number."""
    return jnp.floor(gray(image)[..., 0].mean() + 0.5)


def smooth(image: jax.Array) -> jax.Array:
    """Returns `image` [h, w, c] under the 3 x 3 filter 1 1 1, 1 5 1, 1 1 1 over 13; the outermost pixels are kept."""
    h, w, _ = image.shape
    if h < 3 or w < 3:
        return image
    rows = image[:-2] + image[1:-1] + image[2:]
    nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = floor((nine + 4 * image[1:-1, 1:-1]) / 13 + 0.5)
    return image.at[1:-1, 1:-1].set(inner)


def _table(image: jax.Array, op: jax.Array | int, argument: jax.Array | float) -> jax.Array:
    """Returns the new value for each old one, [c, 256]."""
    values = jnp.arange(256.0)[None]
    low, high = image.min(axis=(0, 1))[:, None], image.max(axis=(0, 1))[:, None]  # [c, 1]
    step = jnp.exp2(8 - jnp.asarray(argument, jnp.float32))
    tables = {
        "AutoContrast": jnp.where(high > low, floor((values - low) * 255 / jnp.maximum(high - low, 1)), values),
        "Equalize": _equalize_table(image),
        "Invert": 255 - values,
        "Posterize": floor(values / step) * step,
        "Solarize": jnp.where(values < argument, values, 255 - values),
        "SolarizeAdd": jnp.where(values < 128, jnp.minimum(values + argument, 255), values),
        "Contrast": blend(mean_gray(image), values, argument),
        "Brightness": blend(0.0, values, argument),
    }
    shape = (image.shape[-1], 256)
    stacked = jnp.stack(
        [jnp.broadcast_to(jnp.clip(tables[name], 0, 255), shape) for name in TABLES] + [jnp.broadcast_to(values, shape)]
    )
    return stacked[jnp.minimum(op, len(TABLES))]


def _equalize_table(image: jax.Array) -> jax.Array:
    """Returns the table [c, 256] that spreads each channel's values evenly."""
    h, w, _ = image.shape
    counts = histogram(image)  # [c, 256]
    before = jnp.cumsum(counts, axis=1) - counts
    # The brightest value in use is not counted, so that it maps to 255.
    last = jnp.take_along_axis(counts, image.max(axis=(0, 1)).astype(jnp.int32)[:, None], axis=1)
    step = (h * w - last) // 255  # [c, 1]
    spread = jnp.minimum((before + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, spread, jnp.arange(256)[None]).astype(jnp.float32)


def histogram(image: jax.Array) -> jax.Array:
    """Returns how often each value occurs in each channel of `image` [h, w, c], int32 [c, 256]."""
    c = image.shape[-1]
    flat = image.astype(jnp.int32) + 256 * jnp.arange(c)[None, None]
    return jnp.zeros(256 * c, jnp.int32).at[flat.reshape(-1)].add(1).reshape(c, 256)


def _look_up(image: jax.Array, table: jax.Array) -> jax.Array:
    """Returns ``table[c, image[h, w, c]]``."""
    c = image.shape[-1]
    return table[jnp.arange(c)[None, None], image.astype(jnp.int32)]


def _matrix(height: int, width: int, op: jax.Array | int, argument: jax.Array | float) -> jax.Array:
    """Returns (a, b, c, d, e, f) [6]: the pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    radians = -jnp.asarray(argument, jnp.float32) * (math.pi / 180)
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    x, y = width / 2, height / 2
    matrices = {
        "Rotate": (cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y),
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateX": (1, 0, argument * width, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, argument * height),
    }
    stacked = jnp.stack([jnp.stack([jnp.asarray(m, jnp.float32) for m in matrices[name]]) for name in AFFINES])
    return stacked[jnp.clip(op - OPS.index(AFFINES[0]), 0, len(AFFINES) - 1)]


def affine(image: jax.Array, matrix: jax.Array, fill: Sequence[float]) -> jax.Array:
    """Returns `image` [h, w, c] moved by `matrix` (as in `_matrix`), bilinear; `fill` is the color outside."""
    h, w, _ = image.shape
    a, b, c, d, e, f = matrix
    y, x = jnp.arange(h)[:, None] + 0.5, jnp.arange(w)[None, :] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # [h, w]
    inside = (from_x >= 0) & (from_x < w) & (from_y >= 0) & (from_y < h)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    dx, dy = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - top)[..., None]
    x0, x1 = (jnp.clip(left + i, 0, w - 1).astype(jnp.int32) for i in (0, 1))
    y0, y1 = (jnp.clip(top + i, 0, h - 1).astype(jnp.int32) for i in (0, 1))
    above = image[y0, x0] + (image[y0, x1] - image[y0, x0]) * dx
    below = image[y1, x0] + (image[y1, x1] - image[y1, x0]) * dx
    moved = floor(above + (below - above) * dy)
    return jnp.where(inside[..., None], moved, jnp.asarray(fill, jnp.float32)[None, None])
