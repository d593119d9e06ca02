"""jaxvision.augment.decoding: against Pillow and simplejpeg."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.images import encode, exif, scene

from jaxvision.augment import decoding, host


def test_decode_of_an_rgb_png_is_lossless():
    np.testing.assert_array_equal(np.asarray(decoding.decode(encode(scene()))), scene())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_decode_reads_the_usual_formats(kind):
    image = decoding.decode(encode(scene(), kind))
    assert (image.mode, image.size) == ("RGB", (160, 120))
    assert np.abs(np.asarray(image).astype(int) - scene()).mean() < 12


def test_decode_repeats_grayscale():
    gray = scene(channels=1)[..., 0]
    np.testing.assert_array_equal(np.asarray(decoding.decode(encode(gray))), np.repeat(gray[..., None], 3, -1))


def test_decode_keeps_the_upper_8_of_16_bits():
    deep = (scene(channels=1)[..., 0].astype(np.uint16) << 8) + 77
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, -1)
    np.testing.assert_array_equal(np.asarray(decoding.decode(encode(deep))), expected)
    np.testing.assert_array_equal(np.asarray(decoding.decode(encode(deep, "TIFF"))), expected)


def test_decode_rejects_floats_of_unknown_range():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 5), 0.5, np.float32)).save(buffer, "TIFF")
    with pytest.raises(decoding.BadImage, match="unknown range"):
        decoding.decode(buffer.getvalue())


def test_decode_of_black_and_white():
    bits = Image.fromarray(scene(channels=1)[..., 0]).convert("1")
    assert set(np.unique(np.asarray(decoding.decode(encode(bits))))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_decode_drops_transparency_and_keeps_the_color_below(mode):
    alpha = Image.fromarray(scene(channels=1, seed=1)[..., 0])
    image = Image.fromarray(scene())
    if mode == "RGBA":
        expected = scene()
        image.putalpha(alpha)
    elif mode == "LA":
        gray = image.convert("L")
        expected = np.repeat(np.asarray(gray)[..., None], 3, -1)
        image = Image.merge("LA", (gray, alpha))
    else:  # a palette with a transparent entry
        image = image.quantize(16)
        expected = np.asarray(image.convert("RGB"))
        image.info["transparency"] = bytes(range(16))
    np.testing.assert_array_equal(np.asarray(decoding.decode(encode(image))), expected)


def test_decode_of_cmyk():
    cmyk = Image.fromarray(scene()).convert("CMYK")
    image = np.asarray(decoding.decode(encode(cmyk, "TIFF")))
    np.testing.assert_array_equal(image, scene())  # Pillow's CMYK of RGB has no black, so it is lossless
    jpeg = np.asarray(decoding.decode(encode(cmyk, "JPEG", quality=95)))
    assert np.abs(jpeg.astype(int) - scene()).mean() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_applies_the_exif_orientation(orientation):
    upright = np.asarray(decoding.decode(encode(scene(), "PNG", exif=exif(orientation))))
    # EXIF 2.32, tag 0x0112: the sides on which row 0 and column 0 of the stored image are displayed
    stored = scene()
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(upright, expected)
    np.testing.assert_array_equal(decoding.to_upright(stored, orientation), expected)


@pytest.mark.parametrize("data", [b"", b"<html>404 not found</html>", b"\xff\xd8\xff\xd9", b"\x89PNG\r\n\x1a\n"])
def test_bytes_that_are_not_an_image(data):
    for read in (decoding.decode, lambda d: host.train_crop(d, 32, np.random.default_rng(0))):
        with pytest.raises(decoding.BadImage, match="image"):
            read(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_truncated_image(kind, share):
    whole = encode(scene(), kind)
    data = whole[: int(len(whole) * share)]
    for read in (decoding.decode, lambda d: host.train_crop(d, 32, np.random.default_rng(0))):
        with pytest.raises(decoding.BadImage, match="image"):
            read(data)


def test_shortening_a_jpeg_keeps_the_rows_above():
    import simplejpeg

    data = encode(scene(480, 640), "JPEG", quality=92, subsampling=2)
    frame = decoding.jpeg_frame(data)
    assert frame[1:] == (True, 480, 640, 1)
    box = decoding.Box(30, 50, 200, 160)
    pixels, where = decoding.decode_jpeg_box(data, frame, box, 150)
    assert where == box
    assert pixels.shape[0] == 262
    whole = simplejpeg.decode_jpeg(data, fastdct=True, fastupsample=True)
    np.testing.assert_array_equal(pixels[:230], whole[:230])


def test_scaled_decoding_reads_no_more_pixels_than_the_crop_needs():
    data = encode(scene(960, 1280), "JPEG")
    frame = decoding.jpeg_frame(data)
    for side, shrink in [(900, 8), (450, 4), (230, 2), (150, 1)]:
        pixels, box = decoding.decode_jpeg_box(data, frame, decoding.Box(0, 0, side, side), 112)
        assert pixels.shape[1] == 1280 // shrink
        assert box.height >= 112
        assert box.width >= 112
