"""Decoding of image files on the host: to upright RGB, or only the part of a JPEG that a crop needs."""

from __future__ import annotations

import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from jaxvision.errors import UserError


class BadImage(UserError):
    """Bytes that are not an image, or a damaged image."""


def decode(data: bytes) -> Image.Image:
    """Decodes an image file to RGB, upright.

    Applies the EXIF rotation, takes the first frame of an animation, and converts the pixels as `to_rgb` does.

    Args:
      data: the bytes of a file, in any format that Pillow reads.

    Raises:
      BadImage: `data` is not an image, or is a damaged one, or its range of brightness is unknown.
      MemoryError: the machine has not enough memory, which says nothing about the image.

    Example:
      >>> buffer = io.BytesIO()
      >>> Image.new("L", (4, 3), 7).save(buffer, "PNG")
      >>> image = decode(buffer.getvalue())
      >>> image.mode, image.size, image.getpixel((0, 0))
      ('RGB', (4, 3), (7, 7, 7))
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except (BadImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:  # the latter under python -W error
        raise BadImage(f"image too large: {e} Resize it to fewer pixels.") from e
    except Image.UnidentifiedImageError as e:
        what = "a TIFF" if data[:4] in (b"II*\0", b"MM\0*") else "not an image, or one"
        raise BadImage(f"{what} of a kind that Pillow cannot read ({len(data)} bytes)") from e
    except Exception as e:  # Pillow's plugins raise nearly every class for damaged files
        raise BadImage(f"damaged image: {str(e) or type(e).__name__}") from e


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a Pillow image of any mode as RGB, 8 bits per channel.

    Repeats grayscale over the channels, drops transparency and keeps the color below it (as Pillow's
    ``convert("RGB")``), and keeps the upper 8 of 12 or 16 bits. Embedded color profiles are ignored, as by timm.

    Raises:
      BadImage: the range of the values is unknown, as in images of floating-point numbers or 32-bit integers.
    """
    if unknown := _unknown_range(image):
        raise BadImage(f"{unknown} of unknown range; save the image with 8 or 16 unsigned bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _upper_8_bits(image)
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    elif image.mode in ("La", "RGBa"):  # color multiplied by alpha
        image = image.convert(image.mode.upper())
    return image if image.mode == "RGB" else image.convert("RGB")


def to_three_channels(pixels: np.ndarray) -> np.ndarray:
    """Returns pixels [h, w, c] as [h, w, 3], for display: the first three channels, or the first one three times.

    >>> to_three_channels(np.zeros((8, 6, 4), np.uint8)).shape, to_three_channels(np.zeros((8, 6, 2), np.uint8)).shape
    ((8, 6, 3), (8, 6, 3))
    """
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)


def _unknown_range(image: Image.Image) -> str | None:
    """Returns what the pixels are if nothing says which values are black and white, else None."""
    if image.mode == "F":
        return "floating-point values"
    if 2 in _tiff_tag(image, TiffImagePlugin.SAMPLEFORMAT):
        return "signed integers"
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # there "I" holds 16 bits
        return "32-bit integers"
    if image.mode.startswith("I;16") and image.format not in ("PNG", "TIFF", "JPEG2000", None):
        return f"16-bit {image.format} values"  # FITS and McIDAS store measurements
    return None


def _upper_8_bits(image: Image.Image) -> Image.Image:
    """Returns a grayscale image of 12 or 16 bits with 8. Pillow's conversion clips at 255, turning most white."""
    bits = next(iter(_tiff_tag(image, TiffImagePlugin.BITSPERSAMPLE)), 16)
    values = np.asarray(image).astype(np.uint16)
    if 0 in _tiff_tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION):  # 0 is white, which Pillow ignores
        values = 2**bits - 1 - values
    return Image.fromarray((values >> (bits - 8)).astype(np.uint8))


def _tiff_tag(image: Image.Image, tag: int) -> tuple[int, ...]:
    value = image.tag_v2.get(tag, ()) if isinstance(image, TiffImagePlugin.TiffImageFile) else ()
    return value if isinstance(value, tuple) else (value,)


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int


class JpegFrame(NamedTuple):
    """The frame header of a JPEG."""

    offset: int  # of the frame header in the file
    baseline: bool  # coded row by row, so the last rows can be skipped
    height: int
    width: int
    orientation: int  # EXIF, 1 to 8; above 4, rows and columns are swapped

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the upright image."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Returns the frame of a complete grayscale or color JPEG, or None for any other data."""
    # A file without an end marker may be truncated, and the fast decoder would fill the missing part with gray.
    if data[:2] != b"\xff\xd8" or data.rfind(b"\xff\xd9", -64) < 0:
        return None
    may_be_rotated, i = False, 2
    while i + 10 <= len(data) and data[i] == 0xFF:
        marker = data[i + 1]
        length = data[i + 2] << 8 | data[i + 3]
        if marker == 0xE1:  # Pillow reads the orientation of either
            may_be_rotated |= data[i + 4 : i + 8] == b"Exif" or data.find(b"tiff:Orientation", i, i + length) > 0
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width, channels = data[i + 5] << 8 | data[i + 6], data[i + 7] << 8 | data[i + 8], data[i + 9]
            # Pillow decodes CMYK (four channels) and files that store their height after the pixels (0 here), and
            # refuses images that are too large.
            is_supported = marker in (0xC0, 0xC1, 0xC2) and channels in (1, 3) and height and width
            if not is_supported or height * width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):
                return None
            orientation = _orientation(data) if may_be_rotated else 1
            return JpegFrame(i, marker != 0xC2, height, width, orientation)
        i += 2 + length
    return None


def _orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data)) as image:
            orientation = image.getexif().get(0x0112, 1)
    except MemoryError:
        raise
    except Exception:  # damaged metadata; the plugins raise nearly every class
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode_jpeg_box(data: bytes, frame: JpegFrame, box: Box, size: int) -> tuple[np.ndarray, Box]:
    """Returns pixels that contain `box`, scaled down to no less than `size`, and the position of `box` in them."""
    import simplejpeg

    height, width = frame.height, frame.width
    last_row = box.top + box.height + 32  # blocks and the color filter extend beyond the box
    if frame.baseline and frame.orientation == 1 and last_row < height:
        # A smaller height in the header makes the decoder stop early.
        height = last_row
        data = b"".join((data[: frame.offset + 5], height.to_bytes(2, "big"), data[frame.offset + 7 :]))
    shrink = min(box.height, box.width) / size
    # Decoding at 1/2, 1/4 or 1/8 saves time. Fractions between 1/2 and 1 cost more than they save.
    if shrink >= 2:
        min_height, min_width, min_factor = math.ceil(height / shrink), math.ceil(width / shrink), 2.0
    else:
        min_height, min_width, min_factor = 0, 0, 1.0
    pixels = simplejpeg.decode_jpeg(
        data,
        min_height=min_height,
        min_width=min_width,
        min_factor=min_factor,
        fastdct=True,
        fastupsample=True,
        strict=False,  # strict decoding raises an error for the rows that are left
    )
    y, x = pixels.shape[0] / height, pixels.shape[1] / width
    if frame.orientation > 4:
        y, x = x, y
    pixels = to_upright(pixels, frame.orientation)
    top, left = int(box.top * y), int(box.left * x)
    bottom, right = math.ceil((box.top + box.height) * y), math.ceil((box.left + box.width) * x)
    return pixels, Box(top, left, bottom - top, right - left)


def to_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Returns an upright view of `pixels` [h, w, c] with the EXIF orientation 1 to 8."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
