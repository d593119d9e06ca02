"""Augmentation and normalization of batches on the device, inside jit.

`augment_batch` prepares a training batch and `prepare_eval` an evaluation batch. Each operation is a function of one
image [h, w, c] and a key, and `jax.vmap` applies it to a batch. Under a sharded `jax.jit` each device therefore works
on its own images, and the result does not depend on the number of devices.

Every random choice is a function of (seed, step, index). The key of an image is
``fold_in(fold_in(key(seed), step), index)`` with its index in the dataset, and each kind of choice folds a different
number into that key. The augmentation of any image in any step can therefore be reproduced without the rest of its
batch. Mixup and cutmix, which combine two images of a batch, depend on the position in the batch instead.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvision.augment import rand_augment as ra
from jaxvision.augment.color import jitter_color, random_erase
from jaxvision.augment.geometry import (
    check_interpolation,
    random_crop,
    random_flip,
    random_resized_crop,
    resize_and_crop,
)
from jaxvision.augment.host import check_crop
from jaxvision.augment.mixing import mix
from jaxvision.augment.preprocess import Preprocess, check_mean_std
from jaxvision.errors import UserError, unknown_name_error
from jaxvision.extend import call, check_returned, resolve

# The number that each kind of choice folds into an image's key. Changing one changes the images of an old seed.
_CROP, _PAD, _FLIP, _FLIP_VERTICAL, _COLOR, _RAND_AUGMENT, _ERASE = range(7)
# The numbers for choices of the whole batch are above every int32, so no image index equals them.
_MIX, _OWN = 2**31, 2**31 + 1


def augment_batch(
    batch: Mapping[str, jax.Array],
    *,
    name: str | Callable[..., jax.Array] | None = None,
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
    flip: float | bool = 0.0,
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
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Returns the images and targets of one training step.

    The order is timm's: crop and resize, flip, color, your own function, normalize, erase, mix. Every option is off by
    default. Call it inside `jax.jit` with `step` as an array and all other options fixed.

    Args:
      batch: ``image`` uint8 [b, h, w, c], ``label`` int32 [b], ``index`` int32 [b] (of the image in its dataset) and
        ``mask`` bool [b], False for padding.
      name: your own augmentation, a callable or ``"package.module:function"``; see `augmentation_function`.
      seed: the run's seed.
      step: number of the training step.
      num_classes: length of the targets.
      image_size: side of the resulting images, in pixels.
      mean: mean of each channel of the images in [0, 1].
      std: standard deviation of each channel of the images in [0, 1].
      crop: ``"none"`` resizes the shorter side to `image_size` and crops the middle; ``"resized"`` is
        RandomResizedCrop.
      crop_scale: smallest and largest share of the image's area, for ``crop="resized"``.
      crop_ratio: smallest and largest width / height, for ``crop="resized"``.
      crop_padding: pads each side of the image by this many black pixels and keeps a random part of the original size.
      interpolation: ``"bicubic"`` or ``"bilinear"``, both antialiased.
      flip: probability of a left-right flip; True is 0.5.
      flip_vertical: probability of an upside-down flip.
      color_jitter: largest relative change of brightness, contrast and saturation, one number or three. Their order is
        random, as in torchvision.
      rand_augment: a policy, or timm's notation for it, such as ``"rand-m9-mstd0.5-inc1"``.
      erase: probability of random erasing (https://arxiv.org/abs/1708.04896).
      erase_area: smallest and largest share of the area that is erased.
      erase_ratio: smallest height / width of an erased rectangle; the largest is its inverse.
      erase_count: largest number of rectangles; their number is drawn from 1 to this.
      erase_fill: ``"const"`` (the mean color), ``"rand"`` (one random color) or ``"pixel"`` (noise).
      mixup: alpha of the Beta distribution of mixup (https://arxiv.org/abs/1710.09412); 0 is off.
      cutmix: alpha of the Beta distribution of cutmix (https://arxiv.org/abs/1905.04899); 0 is off.
      mix_probability: probability of mixing.
      mix_switch: probability of cutmix if both are on.
      mix_mode: draws once for the whole ``"batch"``, for each ``"pair"`` of mirrored images, or for each image
        (``"elem"``).
      label_smoothing: share of the target that is spread evenly over all classes.
      **options: keyword arguments of your own function.

    Returns:
      Normalized images, float32 [b, image_size, image_size, c], and targets, float32 [b, num_classes], one-hot unless
      smoothed or mixed.

    Raises:
      UserError: an option is out of range.

    Example:
      >>> batch = {
      ...     "image": jnp.zeros((4, 8, 8, 3), jnp.uint8),
      ...     "label": jnp.array([0, 1, 2, 3]),
      ...     "index": jnp.array([7, 3, 9, 1]),
      ...     "mask": jnp.ones(4, bool),
      ... }
      >>> fixed = dict(num_classes=10, image_size=16, mean=(0.5,) * 3, std=(0.25,) * 3, flip=0.5, mixup=0.2)
      >>> augment = jax.jit(lambda batch, step: augment_batch(batch, seed=0, step=step, **fixed))
      >>> images, targets = augment(batch, 5)
      >>> images.shape, targets.shape, float(images.max())
      ((4, 16, 16, 3), (4, 10), -2.0)
    """
    images = batch["image"]
    channels = images.shape[-1]
    _check_normalization(mean, std, channels)
    check_choices(crop=crop, erase_fill=erase_fill, mix_mode=mix_mode)
    check_interpolation(interpolation)
    check_crop(crop_scale, crop_ratio, interpolation)
    _check_probabilities(
        flip=flip,
        flip_vertical=flip_vertical,
        erase=erase,
        mix_probability=mix_probability,
        mix_switch=mix_switch,
        label_smoothing=label_smoothing,
    )
    _check_not_negative(mixup=mixup, cutmix=cutmix, crop_padding=crop_padding)
    _check_erasing(erase_area, erase_ratio, erase_count)
    crop_and_color = functools.partial(
        _crop_and_color,
        crop=crop,
        padding=crop_padding,
        scale=crop_scale,
        ratio=crop_ratio,
        resize=Preprocess(image_size=image_size, crop_pct=1.0, interpolation=interpolation),
        flip=0.5 if flip is True else flip,
        flip_vertical=flip_vertical,
        strengths=_strengths(color_jitter, channels),
        policy=_policy(rand_augment, channels),
        fill=[round(255 * m) for m in mean],
    )
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(lambda i: jax.random.fold_in(step_key, i))(batch["index"])
    images = jax.vmap(crop_and_color)(images, keys)
    images = _apply_own(images, step_key, name, options)
    images = normalize(images, mean, std)
    if erase:
        erased = functools.partial(
            random_erase, probability=erase, area=erase_area, ratio=erase_ratio, count=erase_count, fill=erase_fill
        )
        images = jax.vmap(lambda image, key: erased(image, jax.random.fold_in(key, _ERASE)))(images, keys)
    targets = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
    targets = targets * (1 - label_smoothing) + label_smoothing / num_classes
    if mixup or cutmix:
        images, targets = mix(
            images,
            targets,
            jax.random.fold_in(step_key, _MIX),
            mask=batch["mask"],
            mixup=mixup,
            cutmix=cutmix,
            probability=mix_probability,
            switch=mix_switch,
            mode=mix_mode,
        )
    return images, targets


def _crop_and_color(
    image: jax.Array,
    key: jax.Array,
    *,
    crop: str,
    padding: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    resize: Preprocess,
    flip: float,
    flip_vertical: float,
    strengths: tuple[float, ...],
    policy: ra.RandAugment | None,
    fill: Sequence[float],
) -> jax.Array:
    """Returns one image, uint8 [h, w, c], before normalization: float32 [image_size, image_size, c] in 0 to 255."""
    image = image.astype(jnp.float32)
    if padding:
        image = random_crop(image, jax.random.fold_in(key, _PAD), padding=padding)
    if crop == "resized":
        image = random_resized_crop(
            image,
            jax.random.fold_in(key, _CROP),
            size=resize.image_size,
            scale=scale,
            ratio=ratio,
            interpolation=resize.interpolation,
        )
    else:
        image = resize_and_crop(image, resize)
    if flip:
        image = random_flip(image, jax.random.fold_in(key, _FLIP), probability=flip)
    if flip_vertical:
        image = random_flip(image, jax.random.fold_in(key, _FLIP_VERTICAL), probability=flip_vertical, axis=0)
    if policy is not None:
        image = ra.rand_augment(image, jax.random.fold_in(key, _RAND_AUGMENT), policy, fill)
    if any(strengths):
        image = jitter_color(image, jax.random.fold_in(key, _COLOR), strengths)
    return image


def augmentation_function(name: str | Callable[..., jax.Array] | None) -> Callable[..., jax.Array] | None:
    """Returns the augmentation function that `name` refers to, or None if `name` is None.

    It is called as ``fn(images, key=key, **options)`` inside the train step, after the built-in augmentation and before
    normalization. ``images`` is float32 [b, h, w, c] in 0 to 255 and ``key`` is a JAX key of the step. Its other
    keyword arguments become keys of the config's section ``augment``. It returns images of the same shape.

    Args:
      name: a callable or ``"package.module:function"``; or None.

    Raises:
      UserError: no such module or function.

    Example:
      >>> augmentation_function(None) is None
      True
    """
    return None if name is None else resolve("augment.name", name, {}, expected="an augmentation")


def _apply_own(images: jax.Array, step_key: jax.Array, name: Any, options: Mapping[str, Any]) -> jax.Array:
    own = augmentation_function(name)
    if own is None:
        if options:
            raise UserError(
                f"augment.{min(options)}: unknown option. Set augment.name to your own augmentation to pass it options."
            )
        return images
    augmented = call("augment.name", own, images, key=jax.random.fold_in(step_key, _OWN), **options)
    check_returned("augment.name", augmented, valid=hasattr(augmented, "shape"), expected="images")
    if augmented.shape != images.shape:
        raise UserError(
            f"augment.name: {name!r} returned images of shape {augmented.shape}, expected {images.shape}. Return "
            "images of the shape that the function receives."
        )
    return augmented


def prepare_eval(batch: Mapping[str, jax.Array], *, preprocess: Preprocess, resize: bool) -> jax.Array:
    """Returns the images of an evaluation batch, ready for the model: float32 [b, image_size, image_size, c].

    Args:
      batch: ``image`` uint8 [b, h, w, c].
      preprocess: the evaluation transform.
      resize: True resizes, crops and normalizes images of the dataset. False only normalizes images that were resized
        by `host.eval_transform`.

    Raises:
      UserError: mean and std do not fit the channels.

    Example:
      >>> preprocess = Preprocess(image_size=16, mean=(0.5,), std=(0.5,))
      >>> prepare_eval({"image": jnp.zeros((2, 8, 8, 1), jnp.uint8)}, preprocess=preprocess, resize=True).shape
      (2, 16, 16, 1)
    """
    images = batch["image"]
    _check_normalization(preprocess.mean, preprocess.std, images.shape[-1])
    if resize:
        images = jax.vmap(lambda image: resize_and_crop(image.astype(jnp.float32), preprocess))(images)
    return normalize(images, preprocess.mean, preprocess.std)


def normalize(images: jax.Array | np.ndarray, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns ``(images / 255 - mean) / std`` as float32.

    Args:
      images: [..., c], in 0 to 255.
      mean: c numbers.
      std: c numbers.

    >>> normalize(jnp.full((1, 1, 1, 2), 255, jnp.uint8), (0.5, 0.0), (0.5, 0.1)).ravel().tolist()
    [1.0, 10.0]
    """
    ones = (1,) * (images.ndim - 1)
    mean_, std_ = (jnp.asarray(x, jnp.float32).reshape(*ones, -1) for x in (mean, std))
    return (jnp.asarray(images, jnp.float32) / 255 - mean_) / std_


def _check_normalization(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    check_mean_std(mean, std)
    if len(mean) != channels:
        raise UserError(
            f"preprocess.mean: got {len(mean)} numbers, expected {channels}, one for each channel of the images. Set "
            "preprocess.mean and preprocess.std."
        )


def check_choices(**choices: str) -> None:
    """Raises `UserError` unless each argument of `augment_batch` is one of its choices."""
    valid = {
        "crop": ("none", "resized"),
        "erase_fill": ("const", "rand", "pixel"),
        "mix_mode": ("batch", "pair", "elem"),
    }
    for key, value in choices.items():
        if value not in valid[key]:
            raise unknown_name_error(f"augment.{key}", value, valid[key])


def _check_probabilities(**probabilities: float) -> None:
    for key, value in probabilities.items():
        if not 0 <= value <= 1:
            raise UserError(f"augment.{key}: got {value}, expected a number in [0, 1].")


def _check_not_negative(**values: float) -> None:
    for key, value in values.items():
        if value < 0:
            raise UserError(f"augment.{key}: got {value}, expected 0 (off) or more.")


def _check_erasing(area: Sequence[float], ratio: float, count: int) -> None:
    if not 0 < area[0] <= area[1] <= 1:
        raise UserError(
            f"augment.erase_area: got {tuple(area)}, expected (smallest, largest) share of the area within (0, 1]."
        )
    if not 0 < ratio <= 1:
        raise UserError(f"augment.erase_ratio: got {ratio}, expected a number in (0, 1].")
    if count < 1:
        raise UserError(f"augment.erase_count: got {count}, expected 1 or more.")


def _strengths(color_jitter: float | Sequence[float], channels: int) -> tuple[float, ...]:
    """Returns the strengths of brightness, contrast and saturation."""
    given: Any = color_jitter
    strengths = tuple(given) if isinstance(given, Sequence) else (given,) * 3
    if len(strengths) != 3 or min(strengths) < 0:
        raise UserError(
            f"augment.color_jitter: got {given!r}, expected one number or three (brightness, contrast, saturation), 0 "
            "or more."
        )
    if any(strengths):
        _check_color_channels("color_jitter", channels)
    return strengths


def _policy(rand_augment: str | ra.RandAugment | None, channels: int) -> ra.RandAugment | None:
    if rand_augment is not None:
        _check_color_channels("rand_augment", channels)
    return ra.RandAugment.parse(rand_augment) if isinstance(rand_augment, str) else rand_augment


def _check_color_channels(key: str, channels: int) -> None:
    if channels not in (1, 3):
        raise UserError(f"augment.{key}: got images of {channels} channels, expected 1 or 3. Turn off augment.{key}.")
