"""Pictures of any shape and kind, on the host: decode, resize, crop.

Everything that needs no variable shape (flip, color, erasing, mixing, normalization) is `on_device`'s.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jaxvision.augment.preprocess import Preprocess, crop_offset
from jaxvision.errors import UserError, unknown_name_error

TRAIN_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "lanczos", "random")


class BadImage(UserError):
    """Bytes that are no picture, or a damaged one."""


def decode(data: bytes) -> Image.Image:
    """Returns the picture in an encoded file as RGB, the right way up.

    The EXIF rotation is applied. Grayscale is repeated over the channels; the color under a transparent pixel is kept
    and its transparency dropped, as ``convert("RGB")`` does it everywhere in the field; of 16 bits the upper 8 are
    kept; of an animation the first picture.

    Args:
      data: the bytes of a file, in any format that Pillow reads.

    Raises:
      BadImage: no picture, or one that ends early.

    Example:
      >>> buffer = io.BytesIO()
      >>> Image.new("L", (4, 3), 7).save(buffer, "PNG")
      >>> picture = decode(buffer.getvalue())
      >>> picture.mode, picture.size, picture.getpixel((0, 0))
      ('RGB', (4, 3), (7, 7, 7))
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return _to_rgb(ImageOps.exif_transpose(picture))
    except BadImage:
        raise
    except Image.DecompressionBombError as e:
        raise BadImage(str(e)) from e
    # Pillow's plugins raise all of these on damaged files, and more classes than they document.
    except (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, OverflowError, EOFError) as e:
        if isinstance(e, Image.UnidentifiedImageError):
            raise BadImage(f"not a picture that Pillow can read ({len(data)} bytes)") from e
        raise BadImage(f"damaged picture: {e}") from e


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":  # clipped at 0 and 255 by Pillow: what lies in [0, 1] would turn black
        raise BadImage("a picture of floating-point numbers of unknown range; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16") or picture.mode == "I":
        # Pillow's own conversion clips 16 bits at 255: nearly every pixel would turn white.
        high = np.asarray(picture.convert("I")).clip(0, 65535) >> 8
        picture = Image.fromarray(high.astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def eval_transform(image: Image.Image | np.ndarray | bytes, preprocess: Preprocess) -> np.ndarray:
    """Returns the picture as the model is to see it in evaluation, uint8 [image_size, image_size, c].

    Equal to the pixel to timm's evaluation transform before its normalization.

    Args:
      image: a decoded image, uint8 [h, w, c] with any number of channels, or the bytes of a file.
      preprocess: the model's own.

    Example:
      >>> eval_transform(np.zeros((60, 80, 3), np.uint8), Preprocess(image_size=32)).shape
      (32, 32, 3)
    """
    if isinstance(image, bytes):
        image = decode(image)
    if isinstance(image, np.ndarray):
        check_image(image)
        channels = image.shape[-1]
        # Pillow knows no pictures of 2 or of 13 channels, but each channel alone is a grayscale picture.
        planes = [image] if channels == 3 else [np.ascontiguousarray(image[..., c]) for c in range(channels)]
        pictures = [Image.fromarray(plane) for plane in planes]
    else:
        pictures = [image]
    w, h = pictures[0].size
    h, w = preprocess.resized_shape(h, w)
    if (w, h) != pictures[0].size:
        flag = Image.Resampling[preprocess.interpolation.upper()]
        pictures = [picture.resize((w, h), flag) for picture in pictures]
    pixels = np.concatenate([np.asarray(picture).reshape(h, w, -1) for picture in pictures], axis=-1)
    size = preprocess.image_size
    pixels = _pad(pixels, size, preprocess.fill(pixels.shape[-1]))
    top, left = crop_offset(pixels.shape[0], size), crop_offset(pixels.shape[1], size)
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _pad(pixels: np.ndarray, size: int, fill: Sequence[int]) -> np.ndarray:
    """Returns `pixels` [h, w, c] in the middle of at least [size, size, c]."""
    h, w, c = pixels.shape
    dh, dw = max(size - h, 0), max(size - w, 0)
    if not dh and not dw:
        return pixels
    canvas = np.empty((h + dh, w + dw, c), np.uint8)
    canvas[:] = np.asarray(fill, np.uint8)
    canvas[dh // 2 : dh // 2 + h, dw // 2 : dw // 2 + w] = pixels
    return canvas


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Returns a random part of a picture: the rectangle of RandomResizedCrop.

    Szegedy et al., "Going Deeper with Convolutions", https://arxiv.org/abs/1409.4842. Of ten tries the first that
    fits is taken; if none does, the largest centered rectangle of an allowed shape.

    Args:
      height: of the picture, in pixels.
      width: likewise.
      rng: where the numbers come from.
      scale: smallest and largest share of the picture's area.
      ratio: smallest and largest width / height; drawn evenly in the logarithm.

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
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
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
    """Returns a random part of the picture, resized to uint8 [size, size, 3]: RandomResizedCrop, decoding included.

    Of a JPEG no more is decoded than the crop needs: at 1/2, 1/4 or 1/8 of the size where the crop is that much larger
    than `size`, and no row below it. Grayscale, transparency, rotation and other formats are treated as in `decode`.

    The last step, always less than a halving, is OpenCV's and takes no average over the source pixels, so it is a
    little sharper than Pillow's.

    Args:
      image: the bytes of a file, or uint8 [h, w, c].
      size: side of the result, in pixels.
      rng: where the numbers come from; the same generator and picture give the same result.
      scale: smallest and largest share of the picture's area.
      ratio: smallest and largest width / height.
      interpolation: ``"bilinear"``, ``"bicubic"``, ``"nearest"``, ``"box"``, ``"lanczos"``, or ``"random"``: bilinear
        or bicubic, drawn for each picture.

    Raises:
      BadImage: no picture, or one that ends early.

    Example:
      >>> picture = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)
      >>> train_crop(picture, 16, np.random.default_rng(0)).shape
      (16, 16, 3)
    """
    check_crop(scale, ratio, interpolation)
    if isinstance(image, np.ndarray):
        pixels, box = image, random_box(image.shape[0], image.shape[1], rng, scale=scale, ratio=ratio)
    elif frame := _jpeg_frame(image):
        box = random_box(*frame.upright, rng, scale=scale, ratio=ratio)
        try:
            pixels, box = _decode_box(image, frame, box, size)
        except ValueError:  # a kind of JPEG that the fast decoder does not know, or a damaged one: Pillow decides
            pixels = np.asarray(decode(image))
    else:
        pixels = np.asarray(decode(image))
        box = random_box(pixels.shape[0], pixels.shape[1], rng, scale=scale, ratio=ratio)
    if interpolation == "random":
        interpolation = ("bilinear", "bicubic")[rng.integers(2)]
    return _resize_box(pixels, box, size, interpolation)


def check_crop(scale: Sequence[float], ratio: Sequence[float], interpolation: str) -> None:
    """Raises unless the options of `train_crop` make sense."""
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"crop scale is (smallest, largest) share of the area, within (0, 1], but is {tuple(scale)}")
    if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
        raise UserError(f"crop ratio is (smallest, largest) width / height, above 0, but is {tuple(ratio)}")
    if interpolation not in TRAIN_INTERPOLATIONS:
        raise unknown_name_error("interpolation", interpolation, TRAIN_INTERPOLATIONS)


def check_image(image: np.ndarray) -> None:
    """Raises unless `image` is uint8 [h, w, c]."""
    if image.dtype != np.uint8 or image.ndim != 3:
        raise UserError(f"a picture is uint8 [h, w, c], but this is {image.dtype} {list(image.shape)}")


class _Frame(NamedTuple):
    """What a JPEG says about itself before its pixels begin."""

    offset: int  # of the frame header in the file
    baseline: bool  # coded row by row, so that rows at the end can be left out
    height: int
    width: int
    orientation: int  # EXIF, 1 to 8; above 4 rows and columns change places

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the picture as it is to be seen."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


def _jpeg_frame(data: bytes) -> _Frame | None:
    """Returns the frame of a whole grayscale or color JPEG, or None for whatever else `data` may be."""
    # A file that ends without its end marker may be cut short, which the fast decoder would paint gray.
    if data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9", -64) < 0:
        return None
    orientation, at = 1, 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            orientation = _orientation(data)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9]
            # CMYK has four channels and is Pillow's; a height of 0 stands in files that tell it later.
            known = marker in (0xC0, 0xC1, 0xC2) and channels in (1, 3) and height and width
            return _Frame(at, marker != 0xC2, height, width, orientation) if known else None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            orientation = picture.getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def _decode_box(data: bytes, frame: _Frame, box: Box, size: int) -> tuple[np.ndarray, Box]:
    """Returns pixels that hold at least `box`, no smaller than `size` if it was not, and where in them `box` is."""
    import simplejpeg

    height, width = frame.height, frame.width
    below = box.top + box.height + 32  # the blocks and the color filter reach a little further than the box
    if frame.baseline and frame.orientation == 1 and below < height:
        # Told that the picture ends here, the decoder stops here.
        height = below
        data = b"".join((data[: frame.offset + 5], height.to_bytes(2, "big"), data[frame.offset + 7 :]))
    shrink = min(box.height, box.width) / size
    # 1/2, 1/4 and 1/8 save time, other fractions between 1 and 1/2 cost more than they save.
    least = (math.ceil(height / shrink), math.ceil(width / shrink), 2.0) if shrink >= 2 else (0, 0, 1.0)
    pixels = simplejpeg.decode_jpeg(
        data,
        min_height=least[0],
        min_width=least[1],
        min_factor=least[2],
        fastdct=True,
        fastupsample=True,
        strict=False,  # the rest of the rows would be reported as garbage
    )
    y, x = pixels.shape[0] / height, pixels.shape[1] / width
    if frame.orientation > 4:
        y, x = x, y
    pixels = _upright(pixels, frame.orientation)
    top, left = int(box.top * y), int(box.left * x)
    bottom, right = math.ceil((box.top + box.height) * y), math.ceil((box.left + box.width) * x)
    return pixels, Box(top, left, bottom - top, right - left)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns a view of `pixels` [h, w, c] turned by EXIF's number: 1 to 8, 1 is upright already."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


@functools.cache
def _cv2() -> Any:
    import cv2

    # Pictures are what runs in parallel, in processes; threads inside one only get in each other's way.
    cv2.setNumThreads(0)
    return cv2


def _resize_box(pixels: np.ndarray, box: Box, size: int, interpolation: str) -> np.ndarray:
    """Returns `box` of `pixels` [h, w, c], resized to [size, size, c]."""
    cv2 = _cv2()
    crop = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    crop = np.ascontiguousarray(crop) if min(pixels.strides) < 0 or pixels.strides[0] < pixels.strides[1] else crop
    h, w, c = crop.shape
    shrink = min(h, w) // size
    if shrink >= 2:  # averages first, as scaled decoding does for a JPEG
        crop = cv2.resize(crop, (w // shrink, h // shrink), interpolation=cv2.INTER_AREA)
    flag = {
        "nearest": cv2.INTER_NEAREST,
        "bilinear": cv2.INTER_LINEAR,
        "bicubic": cv2.INTER_CUBIC,
        "box": cv2.INTER_AREA,
        "lanczos": cv2.INTER_LANCZOS4,
    }[interpolation]
    return cv2.resize(crop, (size, size), interpolation=flag).reshape(size, size, c)
