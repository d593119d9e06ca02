"""Augmentation inside jit: everything that needs no variable shape.

`augment_batch` is the whole of it, `prepare_eval` its counterpart. The parts are functions of one picture
[h, w, c] and a key; the batch is a `jax.vmap` over them, so under a sharded `jax.jit` each device works on its own
pictures and the result does not depend on how many there are.

Every random choice is a function of (seed, step, index): a sample's key is
``fold_in(fold_in(key(seed), step), index)`` with the example's index in its data set, and each kind of choice folds its
own number into that. So any sample of any step can be drawn again, alone. Only mixup and cutmix, which join a sample
with the one at the mirrored position of the batch, are drawn by position instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.augment import rand_augment as ra
from jaxvision.augment.host import check_crop
from jaxvision.augment.preprocess import Preprocess, check_mean_std, crop_offset
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.extend import resolve

# What a sample's key is folded with for each kind of choice. Numbers that are in use stay as they are: a change would
# give other pictures for an old seed.
_CROP, _PAD, _FLIP, _FLIP_VERTICAL, _COLOR, _RAND_AUGMENT, _ERASE = range(7)


def augment_batch(
    batch: Mapping[str, jax.Array],
    *,
    seed: int,
    step: jax.Array | int,
    num_classes: int,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    crop: str = "none",
    crop_scale: tuple[float, float] = (0.08, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    crop_padding: int = 0,
    interpolation: str = "bicubic",
    flip: float = 0.0,
    flip_vertical: float = 0.0,
    color_jitter: float | Sequence[float] = 0.0,
    rand_augment: str | ra.RandAugment | None = None,
    erase: float = 0.0,
    erase_area: tuple[float, float] = (0.02, 1 / 3),
    erase_ratio: float = 0.3,
    erase_count: int = 1,
    erase_fill: str = "const",
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
    mix_switch: float = 0.5,
    mix_mode: str = "batch",
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns what one training step sees: (images float32 [b, image_size, image_size, c], targets [b, num_classes]).

    The order is timm's: crop and resize, flip, color, normalize, erase, mix. Every option is off by default. Made to
    be called inside `jax.jit`, with `step` an array and everything else fixed.

    Args:
      batch: ``image`` uint8 [b, h, w, c], ``label`` int32 [b], ``index`` int32 [b] of the example in its data set, and
        ``mask`` bool [b], False where there is no example (such a sample is not mixed into another).
      seed: of the run.
      step: number of the training step.
      num_classes: length of the targets.
      image_size: side of the pictures that the model sees, in pixels. Others are resized to it.
      mean: subtracted from the pictures in [0, 1], one number for each channel.
      std: what the difference is divided by.
      crop: ``"none"`` resizes the shorter side to `image_size` and takes the middle; ``"resized"`` is
        RandomResizedCrop.
      crop_scale: smallest and largest share of the picture's area, for ``crop="resized"``.
      crop_ratio: smallest and largest width / height.
      crop_padding: pixels of black around the picture as it comes, of which a random part of the old size is kept.
      interpolation: ``"bicubic"`` or ``"bilinear"``; both average where they shrink.
      flip: probability of a left-right flip; True is 0.5.
      flip_vertical: probability of an upside-down flip.
      color_jitter: largest relative change of brightness, contrast and saturation, one number or three; the order is
        random, as in torchvision.
      rand_augment: a policy, or timm's notation for it, such as ``"rand-m9-mstd0.5-inc1"``.
      erase: probability of random erasing (Zhong et al., https://arxiv.org/abs/1708.04896).
      erase_area: smallest and largest share of the area that is erased.
      erase_ratio: smallest height / width of an erased rectangle; the largest is its inverse.
      erase_count: most rectangles for a picture; their number is drawn from 1 to this.
      erase_fill: ``"const"`` (the mean color), ``"rand"`` (one random color) or ``"pixel"`` (noise).
      mixup: alpha of the Beta distribution of mixup (Zhang et al., https://arxiv.org/abs/1710.09412); 0 is off.
      cutmix: likewise of cutmix (Yun et al., https://arxiv.org/abs/1905.04899).
      mix_probability: of mixing at all.
      mix_switch: probability of cutmix where both are on.
      mix_mode: one draw for the whole ``"batch"``, for each ``"pair"`` of mirrored samples, or for each ``"elem"``.
      label_smoothing: share of the target spread evenly over all classes.

    Returns:
      Normalized images, and targets that are one-hot unless smoothed or mixed.

    Raises:
      UserError: an option outside what is said above.

    Example:
      >>> batch = {
      ...     "image": jnp.zeros((4, 8, 8, 3), jnp.uint8),
      ...     "label": jnp.array([0, 1, 2, 3]),
      ...     "index": jnp.array([7, 3, 9, 1]),
      ...     "mask": jnp.ones(4, bool),
      ... }
      >>> options = dict(num_classes=10, image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3, flip=0.5, mixup=0.2)
      >>> augment = jax.jit(lambda batch, step: augment_batch(batch, seed=0, step=step, **options))
      >>> images, targets = augment(batch, 5)
      >>> images.shape, targets.shape, float(images.max())
      ((4, 16, 16, 3), (4, 10), -2.0)
    """
    images = batch["image"]
    channels = images.shape[-1]
    check_normalization(mean, std, channels)
    check_options(
        crop=crop,
        crop_scale=crop_scale,
        crop_ratio=crop_ratio,
        crop_padding=crop_padding,
        interpolation=interpolation,
        erase_area=erase_area,
        erase_ratio=erase_ratio,
        erase_count=erase_count,
        erase_fill=erase_fill,
        mixup=mixup,
        cutmix=cutmix,
        mix_mode=mix_mode,
        probabilities={
            "flip": flip,
            "flip_vertical": flip_vertical,
            "erase": erase,
            "mix_probability": mix_probability,
            "mix_switch": mix_switch,
            "label_smoothing": label_smoothing,
        },
    )
    flip = 0.5 if flip is True else flip
    strengths = _strengths(color_jitter)
    policy = ra.RandAugment.parse(rand_augment) if isinstance(rand_augment, str) else rand_augment
    if channels not in (1, 3) and (policy is not None or any(strengths)):
        raise UserError(f"color_jitter and rand_augment know pictures of 1 and 3 channels, but these have {channels}")
    whole = Preprocess(image_size=image_size, crop_pct=1.0, interpolation=interpolation)
    fill = [round(255 * m) for m in mean]

    def one(image: jax.Array, key: jax.Array) -> jax.Array:
        image = image.astype(jnp.float32)
        if crop_padding:
            image = random_crop(image, jax.random.fold_in(key, _PAD), padding=crop_padding)
        if crop == "resized":
            crop_key = jax.random.fold_in(key, _CROP)
            image = random_resized_crop(
                image, crop_key, size=image_size, scale=crop_scale, ratio=crop_ratio, interpolation=interpolation
            )
        else:
            image = resize_and_crop(image, whole)
        if flip:
            image = random_flip(image, jax.random.fold_in(key, _FLIP), probability=flip)
        if flip_vertical:
            image = random_flip(image, jax.random.fold_in(key, _FLIP_VERTICAL), probability=flip_vertical, axis=0)
        if policy is not None:
            image = ra.rand_augment(image, jax.random.fold_in(key, _RAND_AUGMENT), policy, fill)
        if any(strengths):
            image = jitter_color(image, jax.random.fold_in(key, _COLOR), strengths)
        image = normalize(image, mean, std)
        if erase:
            image = random_erase(
                image,
                jax.random.fold_in(key, _ERASE),
                probability=erase,
                area=erase_area,
                ratio=erase_ratio,
                count=erase_count,
                fill=erase_fill,
            )
        return image

    step_key = jax.random.fold_in(jax.random.key(seed), step)
    images = jax.vmap(one)(images, jax.vmap(lambda i: jax.random.fold_in(step_key, i))(batch["index"]))
    targets = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
    targets = targets * (1 - label_smoothing) + label_smoothing / num_classes
    if mixup or cutmix:
        images, targets = mix(
            images,
            targets,
            jax.random.fold_in(step_key, 2**31),  # above every int32, so no example has this index
            mask=batch["mask"],
            mixup=mixup,
            cutmix=cutmix,
            probability=mix_probability,
            switch=mix_switch,
            mode=mix_mode,
        )
    return images, targets


def prepare_eval(batch: Mapping[str, jax.Array], *, preprocess: Preprocess, resize: bool) -> jax.Array:
    """Returns the pictures of `batch` as the model sees them in evaluation, float32 [b, image_size, image_size, c].

    Args:
      batch: ``image`` uint8 [b, h, w, c].
      preprocess: the model's own.
      resize: False if `host.eval_transform` has been over the pictures; True if they come as they are in their data
        set, all of one shape, to be resized and cropped here.

    Raises:
      UserError: mean and std do not fit the channels.

    Example:
      >>> preprocess = Preprocess(image_size=16, mean=(0.5,), std=(0.5,))
      >>> prepare_eval({"image": jnp.zeros((2, 8, 8, 1), jnp.uint8)}, preprocess=preprocess, resize=True).shape
      (2, 16, 16, 1)
    """
    images = batch["image"]
    check_normalization(preprocess.mean, preprocess.std, images.shape[-1])
    if resize:
        images = jax.vmap(lambda image: resize_and_crop(image.astype(jnp.float32), preprocess))(images)
    return normalize(images, preprocess.mean, preprocess.std)


def normalize(images: jax.Array | np.ndarray, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns ``(images / 255 - mean) / std`` as float32; `images` [..., c] in 0 to 255.

    >>> normalize(jnp.full((1, 1, 1, 2), 255, jnp.uint8), (0.5, 0.0), (0.5, 0.1)).ravel().tolist()
    [1.0, 10.0]
    """
    ones = (1,) * (images.ndim - 1)
    mean_, std_ = (jnp.asarray(x, jnp.float32).reshape(*ones, -1) for x in (mean, std))
    return (jnp.asarray(images, jnp.float32) / 255 - mean_) / std_


def resize_and_crop(image: jax.Array, preprocess: Preprocess) -> jax.Array:
    """Returns `image` [h, w, c], whole numbers, equal to the pixel to what `host.eval_transform` gives.

    Shapes are known while tracing, so a picture that has its size already costs nothing.

    >>> resize_and_crop(jnp.ones((10, 20, 3)), Preprocess(image_size=8)).shape
    (8, 8, 3)
    """
    h, w, c = image.shape
    size = preprocess.image_size
    image = resize(image, *preprocess.resized_shape(h, w), interpolation=preprocess.interpolation)
    h, w, _ = image.shape
    if h < size or w < size:
        dh, dw = max(size - h, 0), max(size - w, 0)
        canvas = jnp.broadcast_to(jnp.asarray(preprocess.fill(c), jnp.float32)[None, None], (h + dh, w + dw, c))
        image = canvas.at[dh // 2 : dh // 2 + h, dw // 2 : dw // 2 + w].set(image)
        h, w, _ = image.shape
    top, left = crop_offset(h, size), crop_offset(w, size)
    return image[top : top + size, left : left + size]


def resize(image: jax.Array, height: int, width: int, *, interpolation: str) -> jax.Array:
    """Returns `image` [h, w, c], whole numbers, as Pillow resizes it: equal to the pixel."""
    h, w, _ = image.shape
    # One axis at a time, rounded in between, with weights of 22 binary digits: products and sums fit in an int32.
    if width != w:
        image = _round_22(jnp.einsum("ow,hwc->hoc", _weights(w, width, interpolation), image.astype(jnp.int32)))
    if height != h:
        image = _round_22(jnp.einsum("oh,hwc->owc", _weights(h, height, interpolation), image.astype(jnp.int32)))
    return image


def _round_22(sums: jax.Array) -> jax.Array:
    return jnp.clip((sums + (1 << 21)) >> 22, 0, 255).astype(jnp.float32)


def _weights(size: int, new_size: int, interpolation: str) -> np.ndarray:
    """Returns each source pixel's weight in each new pixel, int32 [new_size, size], in units of 2**-22."""
    check_interpolation(interpolation)
    zoom = size / new_size
    stretch = max(zoom, 1.0)  # where the picture shrinks the filter grows, so that every pixel counts
    reach = {"bilinear": 1, "bicubic": 2}[interpolation] * stretch
    weights = np.zeros((new_size, size), np.int32)
    for i in range(new_size):
        middle = (i + 0.5) * zoom
        first, last = max(int(middle - reach + 0.5), 0), min(int(middle + reach + 0.5), size)
        x = np.abs((np.arange(first, last) - middle + 0.5) / stretch)
        if interpolation == "bilinear":
            w = np.maximum(1 - x, 0)
        else:  # Keys' cubic convolution with a = -1/2
            w = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
        w = w / w.sum() * 2**22
        weights[i, first:last] = np.trunc(w + np.copysign(0.5, w))
    return weights


def check_interpolation(interpolation: str) -> None:
    """Raises unless the device knows it."""
    if interpolation not in ("bilinear", "bicubic"):
        raise unknown_name_error("interpolation on the device", interpolation, ("bilinear", "bicubic"))


def random_crop(image: jax.Array, key: jax.Array, *, padding: int) -> jax.Array:
    """Returns a random [h, w, c] of `image` [h, w, c] with `padding` black pixels around it."""
    h, w, c = image.shape
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    u = jax.random.uniform(key, (2,))
    return jax.lax.dynamic_slice(padded, (*below(u, 2 * padding + 1), 0), (h, w, c))


def random_box(
    key: jax.Array, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """Returns (top, left, height, width) int32 [4] of a random part of a picture, as `host.random_box` draws it."""
    h, w, top, left = _rectangle(jax.random.uniform(key, (32,)), height, width, area=scale, ratio=ratio)
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    first = jnp.argmax(fits)
    # If none of the ten fits: the largest centered rectangle of an allowed shape.
    central_w = min(width, round(height * ratio[1]))
    central_h = min(height, round(width / ratio[0]))
    central = (height - central_h) // 2, (width - central_w) // 2, central_h, central_w
    return jnp.where(fits[first], jnp.stack([top, left, h, w])[:, first], jnp.array(central, jnp.int32))


def _rectangle(
    u: jax.Array, height: int, width: int, *, area: Sequence[Any], ratio: tuple[float, float]
) -> tuple[jax.Array, ...]:
    """Returns (h, w, top, left), each int32 [10], of ten random rectangles, some of which may be too large.

    Args:
      u: numbers in [0, 1), [32].
      height: of the picture.
      width: likewise.
      area: smallest and largest share of its area.
      ratio: smallest and largest w / h, drawn evenly in the logarithm.
    """
    pixels = height * width * (area[0] + u[0:10] * (area[1] - area[0]))
    log_ratio = math.log(ratio[0]) + u[10:20] * (math.log(ratio[1]) - math.log(ratio[0]))
    h = jnp.round(jnp.sqrt(pixels * jnp.exp(-log_ratio))).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(pixels * jnp.exp(log_ratio))).astype(jnp.int32)
    return h, w, below(u[20], jnp.maximum(height - h, 0) + 1), below(u[21], jnp.maximum(width - w, 0) + 1)


def below(u: jax.Array, n: jax.Array | int) -> jax.Array:
    """Returns a whole number from 0 to n - 1 for each `u` in [0, 1)."""
    return jnp.floor(u * n).astype(jnp.int32)


def random_resized_crop(
    image: jax.Array,
    key: jax.Array,
    *,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    interpolation: str,
) -> jax.Array:
    """Returns a random part of `image` [h, w, c], resized to [size, size, c]; averaging where it shrinks."""
    height, width, _ = image.shape
    return resize_box(
        image, random_box(key, height, width, scale=scale, ratio=ratio), size=size, interpolation=interpolation
    )


def resize_box(image: jax.Array, box: jax.Array, *, size: int, interpolation: str) -> jax.Array:
    """Returns the part (top, left, height, width) of `image` [h, w, c] as [size, size, c], in whole numbers."""
    c = image.shape[-1]
    corner, sides = box[:2].astype(jnp.float32), box[2:].astype(jnp.float32)
    zoom = size / sides
    resized = jax.image.scale_and_translate(image, (size, size, c), (0, 1), zoom, -corner * zoom, interpolation)
    return ra.floor(jnp.clip(resized, 0, 255) + 0.5)


def random_flip(image: jax.Array, key: jax.Array, *, probability: float, axis: int = 1) -> jax.Array:
    """Returns `image` [h, w, c], with this probability mirrored along `axis` (1 left-right, 0 upside down)."""
    return jnp.where(jax.random.uniform(key) < probability, jnp.flip(image, axis), image)


def jitter_color(image: jax.Array, key: jax.Array, strengths: Sequence[float]) -> jax.Array:
    """Returns `image` [h, w, c] with brightness, contrast and saturation changed by random factors in random order.

    Args:
      image: float32, whole numbers in 0 to 255; 1 or 3 channels.
      key: a JAX key.
      strengths: each factor is drawn from ``max(0, 1 - s)`` to ``1 + s``.
    """
    u = jax.random.uniform(key, (4,))
    low = np.array([max(0.0, 1 - s) for s in strengths], np.float32)
    high = np.array([1 + s for s in strengths], np.float32)
    factors = low + u[:3] * (high - low)
    order = jnp.array(list(itertools.permutations(range(3))))[below(u[3], 6)]
    for i in range(3):
        which = order[i]
        # All three are blends: with black, with the mean gray, with the gray picture.
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
    """Returns `image` [h, w, c], already normalized, with random rectangles erased; options as in `augment_batch`."""
    h, w, c = image.shape
    happens_key, *keys = jax.random.split(key, 1 + count)
    u = jax.random.uniform(happens_key, (2,))
    number = jnp.where(u[0] < probability, 1 + below(u[1], count), 0)
    y, x = jnp.arange(h)[:, None, None], jnp.arange(w)[None, :, None]
    for i, box_key in enumerate(keys):
        u_key, fill_key = jax.random.split(box_key)
        shares = [a / jnp.maximum(number, 1) for a in area]
        heights, widths, tops, lefts = _rectangle(
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
    """Returns images and targets, each mixed with those at the mirrored position: sample i with sample b - 1 - i.

    Args:
      images: [b, h, w, c].
      targets: [b, num_classes].
      key: a JAX key, of the step.
      mask: bool [b]; a sample whose partner is not there stays as it is.
      mixup: alpha of the Beta distribution; 0 is off.
      cutmix: likewise. A sample's share in its target is the share of its pixels that are left.
      probability: of mixing at all.
      switch: probability of cutmix where both are on.
      mode: ``"batch"``, ``"pair"`` or ``"elem"``: what has a draw of its own.
    """
    b, h, w, _ = images.shape

    def draw(position: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        u = jax.random.uniform(jax.random.fold_in(key, position), (8,))
        is_cutmix = u[0] < (switch if mixup and cutmix else bool(cutmix))
        alpha = jnp.where(is_cutmix, cutmix, mixup)
        share = jnp.where(u[1] < probability, symmetric_beta(u[4], u[5], alpha), 1.0)
        # The rectangle has the picture's shape, a random center, and is cut off at the border.
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
    # The barrier keeps the compiler from drawing each sample's numbers anew for each of its pixels.
    drawn = jax.lax.optimization_barrier(jax.vmap(draw, out_axes=(0, 0, 1))(positions))
    is_cutmix, share, (top, bottom, left, right) = drawn
    share = jnp.where(mask[::-1], share, 1.0)

    def per_sample(x: jax.Array) -> jax.Array:
        return x[:, None, None, None]

    y, x = jnp.arange(h)[None, :, None, None], jnp.arange(w)[None, None, :, None]
    inside = (y >= per_sample(top)) & (y < per_sample(bottom)) & (x >= per_sample(left)) & (x < per_sample(right))
    partners = images[::-1]
    pasted = jnp.where(inside & per_sample(mask[::-1]), partners, images)
    blended = images * per_sample(share) + partners * per_sample(1 - share)
    mixed = jnp.where(per_sample(is_cutmix), pasted, blended)
    return mixed, targets * share[:, None] + targets[::-1] * (1 - share)[:, None]


def symmetric_beta(u: jax.Array, v: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """Returns a number that is Beta(alpha, alpha) distributed if `u` and `v` are uniform in [0, 1).

    In closed form, where a general Beta needs loops of rejection: a polar method gives Student's t, whose
    ``1/2 + t / (2 sqrt(2 alpha + t^2))`` with 2 alpha degrees of freedom is symmetric Beta. Bailey, "Polar generation
    of random variates with the t-distribution", Mathematics of Computation 62, 1994.

    >>> f"{symmetric_beta(jnp.array(0.5), jnp.array(0.5), 1.0):.4f}"
    '0.1464'
    """
    c = jnp.cos(2 * math.pi * v)
    power = u ** (1 / alpha)
    return 0.5 + 0.5 * c / jnp.sqrt(power / (1 - power) + c * c)


def augmentation_function(name: str | Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns your own augmentation that `name` stands for: ``fn(images, *, key, **options)`` -> images.

    Args:
      name: a callable, or ``"package.module:function"``.

    Raises:
      UserError: no such module or function.
    """
    return resolve("augmentation", name, {})


def check_normalization(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raises unless `mean` and `std` fit pictures of so many channels."""
    check_mean_std(mean, std)
    if len(mean) != channels:
        raise UserError(f"mean and std have {len(mean)} numbers, but the pictures have {channels} channels")


def check_options(
    *,
    crop: str,
    crop_scale: Sequence[float],
    crop_ratio: Sequence[float],
    crop_padding: int,
    interpolation: str,
    erase_area: Sequence[float],
    erase_ratio: float,
    erase_count: int,
    erase_fill: str,
    mixup: float,
    cutmix: float,
    mix_mode: str,
    probabilities: Mapping[str, float],
) -> None:
    """Raises for the first option of `augment_batch` that makes no sense."""
    for what, got, valid in [
        ("crop", crop, ("none", "resized")),
        ("erase_fill", erase_fill, ("const", "rand", "pixel")),
        ("mix_mode", mix_mode, ("batch", "pair", "elem")),
    ]:
        if got not in valid:
            raise unknown_name_error(what, got, valid)
    check_interpolation(interpolation)
    check_crop(crop_scale, crop_ratio, interpolation)
    for name, value in probabilities.items():
        if not 0 <= value <= 1:
            raise UserError(f"{name} is a probability or share, within [0, 1], but is {value}")
    for name, value in {"mixup": mixup, "cutmix": cutmix, "crop_padding": crop_padding}.items():
        if value < 0:
            raise UserError(f"{name} is 0 (off) or more, but is {value}")
    if not 0 < erase_area[0] <= erase_area[1] <= 1 or not 0 < erase_ratio <= 1 or erase_count < 1:
        raise UserError(
            "random erasing needs 0 < smallest <= largest area <= 1, a ratio within (0, 1] and a count of 1 or more, "
            f"but has erase_area={tuple(erase_area)}, erase_ratio={erase_ratio}, erase_count={erase_count}"
        )


def _strengths(color_jitter: float | Sequence[float]) -> tuple[float, ...]:
    """Returns the strengths of brightness, contrast and saturation."""
    given: Any = color_jitter
    strengths = tuple(given) if isinstance(given, Sequence) else (given,) * 3
    if len(strengths) != 3 or min(strengths) < 0:
        raise UserError(
            f"color_jitter is one strength or three (brightness, contrast, saturation), 0 or more, but is {given!r}"
        )
    return strengths
