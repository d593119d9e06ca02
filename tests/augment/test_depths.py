"""jaxvision.augment.decoding: the brightness of every depth and mode, from files that are packed by hand."""

from __future__ import annotations

import struct

import numpy as np
import PIL
import pytest
from PIL import Image
from support.images import encode, scene
from support.raw_images import jpeg, png, tiff

from jaxvision.augment import host
from jaxvision.augment.decoding import BadImage, decode, to_rgb
from jaxvision.augment.preprocess import Preprocess

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = RAMP.astype(np.uint16) * 256 + 77
OPAQUE = np.full_like(RAMP, 255)


def rgb(gray):
    return np.repeat(gray[..., None], 3, -1)


def packed_12_bits(values):
    pairs = values.reshape(-1, 2).tolist()
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


def pnm(kind, values, largest):
    head = b"P%d\n%d %d\n%d\n" % (kind, *values.shape[1::-1], largest)
    if kind <= 3:
        return head + " ".join(map(str, values.ravel())).encode()
    return head + values.astype(">u2" if largest > 255 else np.uint8).tobytes()


def of_both_orders(name, pixels, **options):
    return {f"TIFF {name} {order}": tiff(pixels, order=order, **options) for order in "<>"}


ALPHA = {338: [2]}  # ExtraSamples: 1 is multiplied into the color, 2 is not
FILES = {
    **of_both_orders("8 bits", RAMP),
    **of_both_orders("8 bits, 0 is white", 255 - RAMP, photometric=0),
    **of_both_orders("16 bits", DEEP),
    **of_both_orders("16-bit RGB", rgb(DEEP), photometric=2, samples=3),
    **of_both_orders("planar RGB", None, planes=[RAMP] * 3, photometric=2, samples=3),
    **of_both_orders("gray and alpha", np.stack([RAMP, OPAQUE - RAMP], -1), samples=2, tags=ALPHA),
    **of_both_orders("multiplied alpha", np.stack([RAMP, OPAQUE], -1), samples=2, tags={338: [1]}),
    **of_both_orders("ignored sample", np.stack([RAMP, 255 - RAMP], -1), samples=2, tags={338: [0]}),
    **of_both_orders("CMYK", np.stack([255 - RAMP] * 3 + [0 * RAMP], -1), samples=4, photometric=5),
    **of_both_orders("palette", 255 - RAMP, photometric=3, tags={320: [257 * i for i in range(255, -1, -1)] * 3}),
    **of_both_orders("YCbCr", np.stack([RAMP, 0 * RAMP + 128, 0 * RAMP + 128], -1), photometric=6, samples=3),
    "TIFF 12 bits": tiff(packed_12_bits(RAMP.astype(int) * 16 + 7), bits=12),
    "TIFF 16 bits, 0 is white": tiff(65535 - DEEP, photometric=0),
    "PNG 16-bit gray": png(DEEP, 0),
    "PNG 16-bit gray and alpha": png(np.stack([DEEP, 65535 - DEEP], -1), 4),
    "PNG 16-bit RGB": png(rgb(DEEP), 2),
    "PNG 16-bit RGBA": png(np.concatenate([rgb(DEEP), 65535 - DEEP[..., None]], -1), 6),
    "PGM 65535": pnm(5, RAMP.astype(int) * 257, 65535),
    "plain PGM 65535": pnm(2, RAMP.astype(int) * 257, 65535),
    "PPM 65535": pnm(6, rgb(RAMP.astype(int) * 257), 65535),
    "plain PPM 1023": pnm(3, rgb(np.round(RAMP / 255 * 1023).astype(int)), 1023),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_ramp_keeps_its_brightness(kind):
    if PIL.__version__ < "13" and any(what in kind for what in ("multiplied", "ignored", "YCbCr")):
        pytest.skip("older versions of Pillow cannot read it, and it is refused")
    np.testing.assert_array_equal(np.asarray(decode(FILES[kind])), rgb(RAMP))


@pytest.mark.parametrize("largest", [1, 100, 1023])
@pytest.mark.parametrize("kind", [2, 5])
def test_a_pgm_spans_black_to_white_whatever_its_largest_value(largest, kind):
    values = np.arange(256).reshape(16, 16) * (largest + 1) // 256
    exact = values / largest * 255
    got = np.asarray(decode(pnm(kind, values, largest)))[..., 0]
    assert np.abs(got - exact).max() <= 1  # the upper 8 of 16 bits round down
    assert (got.min(), got.max()) == (0, 255)


@pytest.mark.parametrize("photometric", [0, 1])
def test_bits_are_black_and_white(photometric):
    bits = RAMP % 3 == 0
    packed = np.packbits(bits ^ (photometric == 0), axis=-1).tobytes()
    got = np.asarray(decode(tiff(packed, bits=1, photometric=photometric)))
    np.testing.assert_array_equal(got, rgb(bits.astype(np.uint8) * 255))


FITS = b"".join(
    f"{key:8}= {value:>20}".encode().ljust(80)
    for key, value in {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 16, "NAXIS2": 16}.items()
)
FITS = (FITS + b"END".ljust(80)).ljust(2880)
SIGNED, FLOAT = {"sample_format": 2}, {"sample_format": 3}
UNKNOWN = {
    "int8": ("signed integers", tiff((RAMP - 128).view(np.int8), **SIGNED)),
    "int16": ("signed integers", tiff((DEEP - 32768).view(np.int16), **SIGNED)),
    "int16, big-endian": ("signed integers", tiff((DEEP - 32768).view(np.int16), order=">", **SIGNED)),
    "int32": ("signed integers", tiff(RAMP.astype(np.int32), **SIGNED)),
    "int32, big-endian": ("signed integers", tiff(RAMP.astype(np.int32), order=">", **SIGNED)),
    "uint32": ("32-bit integers", tiff(RAMP.astype(np.uint32) << 24)),
    "uint32, big-endian": ("a TIFF of a kind that Pillow cannot read", tiff(RAMP.astype(np.uint32), order=">")),
    "float32": ("floating-point values", tiff((RAMP / 255).astype(np.float32), **FLOAT)),
    "float64": ("a TIFF of a kind that Pillow cannot read", tiff(RAMP / 255, **FLOAT)),
    "PFM": ("floating-point values", b"Pf\n16 16\n-1.0\n" + (RAMP / 255).astype("<f4").tobytes()),
    "12-bit JPEG": ("image", jpeg([128], precision=12)),
    "FITS": ("16-bit FITS values", FITS + DEEP.tobytes()),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_range_that_is_unknown_is_refused(kind):
    reason, data = UNKNOWN[kind]
    for read in (decode, lambda d: host.train_crop(d, 8, np.random.default_rng(0))):
        with pytest.raises(BadImage, match=reason):
            read(data)


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_16_bit_images_in_memory(dtype):
    image = Image.fromarray(DEEP.astype(dtype))
    assert image.mode.startswith("I;16")
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), rgb(RAMP))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_every_mode_in_memory(mode):
    gray = Image.fromarray(RAMP if mode != "1" else (RAMP > 127).astype(np.uint8) * 255)
    chain = {"La": ["LA", "La"], "RGBa": ["RGBA", "RGBa"], "PA": ["P", "PA"], "CMYK": ["RGB", "CMYK"]}
    image = gray
    for step in chain.get(mode, [mode]):
        image = image.convert(step)
    assert image.mode == mode
    got = to_rgb(image)
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got), rgb(np.asarray(gray)))


def test_lab_is_converted_with_its_own_white():
    """CIE 15: L* = 116 f(Y) - 16 and neutral a* = b* = 0, then the transfer curve of sRGB."""
    lightness = np.arange(0, 256, 5)
    fy = (lightness / 255 * 100 + 16) / 116
    linear = np.where(fy > 6 / 29, fy**3, (fy - 4 / 29) * 3 * (6 / 29) ** 2)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    pixels = np.stack([lightness, 0 * lightness, 0 * lightness], -1).astype(np.uint8)[None]
    got = np.asarray(decode(tiff(pixels, photometric=8, samples=3)))
    assert np.abs(got[0] - expected[:, None]).max() <= 1.5


@pytest.mark.parametrize(
    ("color", "adobe", "expected"),
    [
        ([200], None, (200, 200, 200)),
        ([200, 128, 128], None, (200, 200, 200)),  # YCbCr
        ([200, 100, 50], 0, (200, 100, 50)),  # RGB
        ([200, 100, 50, 255], 0, (200, 100, 50)),  # CMYK of Adobe: 255 is no ink
        ([200, 100, 50, 255], None, (200, 100, 50)),  # Pillow and timm assume Adobe's convention
        ([200, 128, 128, 255], 2, (55, 55, 55)),  # YCCK of Adobe is the YCbCr of 255 - C, 255 - M, 255 - Y
    ],
)
def test_the_colors_of_a_jpeg(color, adobe, expected):
    data = jpeg(color, adobe_transform=adobe)
    assert np.abs(np.asarray(decode(data)).astype(int) - expected).max() <= 1
    assert np.abs(host.train_crop(data, 8, np.random.default_rng(0)).astype(int) - expected).max() <= 1


def test_16_bits_of_jpeg_2000():
    import cv2

    for values in (np.tile(DEEP, (8, 8)), np.tile(DEEP >> 4, (8, 8))):  # 12 bits in 16 stay as dark as they are stored
        data = cv2.imencode(".jp2", values, [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes()
        np.testing.assert_array_equal(np.asarray(decode(data))[..., 0], values >> 8)


def test_the_first_frame_of_an_animation():
    frames = [Image.fromarray(scene(24, 32, seed=s)) for s in range(3)]
    for kind, options in [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("GIF", {})]:
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        expected = np.asarray(frames[0])
        if kind == "GIF":
            expected = np.asarray(decode(encode(frames[0], "GIF")))
        np.testing.assert_array_equal(np.asarray(decode(data)), expected, kind)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF", "JPEG"])
@pytest.mark.parametrize("orientation", [2, 5, 6])
def test_every_format_is_turned_upright(kind, orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    image = scene(24, 32, smooth=True)
    upright = {2: image[:, ::-1], 5: image.transpose(1, 0, 2), 6: image.transpose(1, 0, 2)[:, ::-1]}[orientation]
    got = np.asarray(decode(encode(image, kind, exif=tags)))
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).mean() < 6


def test_the_orientation_in_xmp_counts_in_training_too():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(scene(40, 80, smooth=True), "JPEG", quality=95, xmp=xmp)
    whole = {"scale": (1.0, 1.0), "ratio": (0.5, 0.5)}
    got = host.train_crop(data, 20, np.random.default_rng(0), **whole).astype(int)
    upright = decode(data)
    assert upright.size == (40, 80)
    expected = np.asarray(upright.resize((20, 20), Image.Resampling.BOX)).astype(int)
    assert np.abs(got - expected).mean() < 3


def test_a_color_profile_is_ignored():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    np.testing.assert_array_equal(np.asarray(decode(encode(scene(), icc_profile=profile))), scene())


# --- large and damaged files


def test_an_image_that_is_too_large_names_the_way_out(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for pixels, refused in [((40, 50), True), ((30, 40), True), ((20, 50), False)]:  # Pillow warns above 1,000
        for kind in ("PNG", "JPEG"):
            data = encode(scene(*pixels), kind)
            if refused:
                with pytest.raises(BadImage, match=r"too large: Image size \(\d+ pixels\).*Resize it to fewer pixels"):
                    decode(data)
            else:
                assert decode(data).size == pixels[::-1]
    with pytest.raises(BadImage, match="too large"):  # training does not read what evaluation refuses
        host.train_crop(encode(scene(50, 60), "JPEG"), 8, np.random.default_rng(0))


def test_a_damaged_avif_is_one_line():
    data = bytearray(encode(scene(), "AVIF"))
    start = data.index(b"mdat") + 4
    data[start : start + 200] = b"\xff" * 200
    with pytest.raises(BadImage, match="damaged image: "):
        decode(bytes(data))


def test_a_damaged_dds_is_one_line():
    data = bytearray(encode(scene(16, 16), "DDS"))
    struct.pack_into("<I", data, 80, 0)  # the flags of the pixel format
    with pytest.raises(BadImage, match="damaged image: "):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_truncated_files_of_other_formats(kind):
    whole = encode(scene(), kind)
    for share in (0.1, 0.5, 0.98):
        with pytest.raises(BadImage, match="image"):
            decode(whole[: int(len(whole) * share)])


def test_junk_after_the_image_is_ignored():
    image = scene(smooth=True)
    for kind in ("PNG", "JPEG"):
        data = encode(image, kind)
        for junk in (b"\0", b"junk" * 100, b"junk" * 100 + b"\xff\xd9", encode(image[:20], kind)):
            np.testing.assert_array_equal(np.asarray(decode(data + junk)), np.asarray(decode(data)))
            a, b = (host.train_crop(d, 32, np.random.default_rng(0)).astype(int) for d in (data + junk, data))
            assert np.abs(a - b).mean() < 2


def test_images_of_one_pixel_and_of_none():
    preprocess = Preprocess(image_size=8)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encode(np.full((1, 1, 3), 77, np.uint8), kind)
        assert (host.eval_transform(data, preprocess) == 77).all()
        assert (host.train_crop(data, 8, np.random.default_rng(0)) == 77).all()
    for data in (png(RAMP[:0], 0), png(RAMP[:, :0], 0), b"P5\n0 0\n255\n"):
        with pytest.raises(BadImage, match="image"):
            decode(data)
