"""Transforms of images of any shape, on the host: the evaluation transform and the random crop of training.

Transforms that keep the shape (flip, color, erasing, mixing, normalization) are in `on_device`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxvision.augment.decoding import Box, decode, decode_jpeg_box, jpeg_frame
from jaxvision.augment.preprocess import Preprocess, crop_offset
from jaxvision.augment.resampling import resize_and_crop
from jaxvision.errors import UserError, unknown_name_error

_NARROW = 32  # an image this many times as large as its crop is not resized whole

TRAIN_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "lanczos", "random")


def eval_transform(image: Image.Image | np.ndarray | bytes, preprocess: Preprocess) -> np.ndarray:
    """Returns an image resized and cropped for evaluation, uint8 [image_size, image_size, c].

    The pixels are those of timm's evaluation transform before its normalization.

    Args:
      image: a decoded image, uint8 [h, w, c] with any number of channels, or the bytes of a file.
      preprocess: the evaluation transform of the model.

    Example:
      >>> eval_transform(np.zeros((60, 80, 3), np.uint8), Preprocess(image_size=32)).shape
      (32, 32, 3)
    """
    if isinstance(image, bytes):
        image = decode(image)
    if isinstance(image, np.ndarray):
        check_image(image)
        channels = image.shape[-1]
        # Pillow has no images of 2 or 13 channels, so each channel is resized as a grayscale image.
        planes = [image] if channels == 3 else [np.ascontiguousarray(image[..., c]) for c in range(channels)]
        layers = [Image.fromarray(plane) for plane in planes]
    else:
        layers = [image]
    size = preprocess.image_size
    pixels = np.concatenate([_resized(layer, preprocess) for layer in layers], axis=-1)
    pixels = _pad(pixels, size, preprocess.fill(pixels.shape[-1]))
    top, left = crop_offset(pixels.shape[0], size), crop_offset(pixels.shape[1], size)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _resized(layer: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """Returns an image after the resize, [h, w, c]. A narrow one is already cropped."""
    h, w = preprocess.resized_shape(layer.height, layer.width)
    size = preprocess.image_size
    if h * w > _NARROW * size**2:
        pixels = np.asarray(layer).reshape(layer.height, layer.width, -1)
        return resize_and_crop(pixels, (h, w), size, preprocess.interpolation)
    if (w, h) != layer.size:
        layer = layer.resize((w, h), Image.Resampling[preprocess.interpolation.upper()])
    return np.asarray(layer).reshape(h, w, -1)


def _pad(pixels: np.ndarray, size: int, fill: Sequence[int]) -> np.ndarray:
    """Returns `pixels` [h, w, c] centered in a canvas of at least [size, size, c] of the color `fill`."""
    h, w, c = pixels.shape
    dh, dw = max(size - h, 0), max(size - w, 0)
    if not dh and not dw:
        return pixels
    canvas = np.empty((h + dh, w + dw, c), np.uint8)
    canvas[:] = np.asarray(fill, np.uint8)
    canvas[dh // 2 : dh // 2 + h, dw // 2 : dw // 2 + w] = pixels
    return canvas


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Returns the random rectangle that RandomResizedCrop cuts out of an image.

    Szegedy et al., "Going Deeper with Convolutions", https://arxiv.org/abs/1409.4842. Returns the first of ten random
    rectangles that fits, else the largest centered rectangle of an allowed shape.

    Args:
      height: height of the image in pixels.
      width: width of the image in pixels.
      rng: the random generator.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width / height. Its logarithm is drawn uniformly.

    Example:
      >>> random_box(40, 40, np.random.default_rng(0), scale=(0.25, 0.25), ratio=(1.0, 1.0))
      Box(top=6, left=0, height=20, width=20)
    """
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    w, h = width, height
    if width / height < ratio[0]:
        h = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        w = max(round(height * ratio[1]), 1)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def train_crop(
    image: bytes | np.ndarray,
    size: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Decodes an image and returns a random part of it, resized to uint8 [size, size, c]: RandomResizedCrop.

    Decodes only what the crop needs of a JPEG: no rows below the crop, and at 1/2, 1/4 or 1/8 of its size if the crop
    is that much larger than `size`. Treats grayscale, transparency, rotation and other formats as `decode` does.

    OpenCV does the last step of the resize, by a factor below 2, without antialiasing. The result is slightly sharper
    than Pillow's.

    Args:
      image: the bytes of a file, or uint8 [h, w, c].
      size: side of the result, in pixels.
      rng: the random generator; generators in the same state give the same result.
      scale: smallest and largest share of the image's area.
      ratio: smallest and largest width / height.
      interpolation: ``"bilinear"``, ``"bicubic"``, ``"nearest"``, ``"box"``, ``"lanczos"``, or ``"random"``: bilinear
        or bicubic, drawn for each image.

    Raises:
      BadImage: `image` is not an image, or is a damaged one.

    Example:
      >>> image = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
      >>> train_crop(image, 16, np.random.default_rng(0)).shape
      (16, 16, 3)
    """
    check_crop(scale, ratio, interpolation)
    if isinstance(image, np.ndarray):
        check_image(image)
        pixels, box = image, random_box(image.shape[0], image.shape[1], rng, scale=scale, ratio=ratio)
    elif frame := jpeg_frame(image):
        box = random_box(*frame.upright, rng, scale=scale, ratio=ratio)
        try:
            pixels, box = decode_jpeg_box(image, frame, box, size)
        except ValueError:  # damaged, or a variant of JPEG that only Pillow decodes
            pixels = np.asarray(decode(image))
    else:
        pixels = np.asarray(decode(image))
        box = random_box(pixels.shape[0], pixels.shape[1], rng, scale=scale, ratio=ratio)
    if interpolation == "random":
        interpolation = ("bilinear", "bicubic")[rng.integers(2)]
    return _resize_box(pixels, box, size, interpolation)


def check_crop(scale: Sequence[float], ratio: Sequence[float], interpolation: str) -> None:
    """Raises `UserError` unless the options of `train_crop` are in range."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(
            f"crop_scale: got {tuple(scale)}, expected (smallest, largest) share of the area within (0, 1]."
        )
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"crop_ratio: got {tuple(ratio)}, expected (smallest, largest) width / height, above 0.")
    if interpolation not in TRAIN_INTERPOLATIONS:
        raise unknown_name_error("interpolation", interpolation, TRAIN_INTERPOLATIONS)


def check_image(image: np.ndarray) -> None:
    """Raises `UserError` unless `image` is uint8 [h, w, c] and not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or not image.size:
        raise UserError(f"image: got {image.dtype} {list(image.shape)}, expected uint8 [h, w, c].")


@functools.cache
def _cv2() -> Any:
    import cv2

    # Worker processes already decode in parallel, so threads within each would only compete for cores.
    cv2.setNumThreads(0)
    return cv2


def _resize_box(pixels: np.ndarray, box: Box, size: int, interpolation: str) -> np.ndarray:
    """Returns `box` of `pixels` [h, w, c], resized to [size, size, c]."""
    cv2 = _cv2()
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    crop = np.ascontiguousarray(crop) if min(pixels.strides) < 0 or pixels.strides[0] < pixels.strides[1] else crop
    h, w, c = crop.shape
    shrink = min(h, w) // size
    if shrink >= 2:  # averages blocks of pixels first, as scaled JPEG decoding does
        crop = cv2.resize(crop, (w // shrink, h // shrink), interpolation=cv2.INTER_AREA)
    flag = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "box": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }[interpolation]
    return cv2.resize(crop, (size, size), interpolation=flag).reshape(size, size, c)
