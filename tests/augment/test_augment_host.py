"""jaxvision.augment.host and preprocess: against Pillow, torchvision and timm."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps
from support import reference
from support.images import encode, exif, scene

from jaxvision.augment import host, on_device
from jaxvision.augment.decoding import Box, decode
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import catalog

# --- evaluation


def pillow_eval(image, size, pct, filter=Image.Resampling.BICUBIC):
    """Resizes the shorter side and crops the middle, as the definition says."""
    to = math.floor(size / pct)
    w, h = image.size
    short = min(w, h)
    image = image.resize((int(w * to / short), int(h * to / short)), filter)
    w, h = image.size
    left, top = round((w - size) / 2), round((h - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("shape", [(120, 160), (160, 120), (64, 64), (33, 200)])
def test_eval_transform_against_pillow(shape):
    image = Image.fromarray(scene(*shape))
    got = host.eval_transform(image, Preprocess(image_size=56, crop_pct=0.875))
    np.testing.assert_array_equal(got, pillow_eval(image, 56, 0.875))
    np.testing.assert_array_equal(host.eval_transform(scene(*shape), Preprocess(image_size=56)), got)


def test_eval_transform_treats_each_of_other_channels_alone():
    many = scene(channels=5)
    preprocess = Preprocess(image_size=40, mean=(0.5,) * 5, std=(0.5,) * 5, crop_mode="border", crop_pct=1.0)
    got = host.eval_transform(many, preprocess)
    assert got.shape == (40, 40, 5)
    three = replace(preprocess, mean=(0.5,) * 3, std=(0.5,) * 3)
    np.testing.assert_array_equal(got[..., :3], host.eval_transform(many[..., :3].copy(), three))


MODES = ["center", "squash", "border"]


def timm_pixels(timm, image, preprocess):
    transform = timm.data.create_transform(
        input_size=(3, preprocess.image_size, preprocess.image_size),
        is_training=False,
        interpolation=preprocess.interpolation,
        mean=preprocess.mean,
        crop_pct=preprocess.crop_pct,
        crop_mode=preprocess.crop_mode,
        normalize=False,
    )
    return transform(image).permute(1, 2, 0).numpy()


@pytest.mark.timm
@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_eval_transform_equals_timm(crop_mode, interpolation):
    timm = reference.import_timm()
    for shape in [(120, 160), (161, 97), (32, 32), (20, 300), (12, 900), (900, 12)]:
        image = Image.fromarray(scene(*shape))
        for size, pct in [(64, 0.875), (65, 0.95), (48, 1.0), (96, 0.9), (64, 1.2)]:
            preprocess = Preprocess(image_size=size, crop_pct=pct, crop_mode=crop_mode, interpolation=interpolation)
            np.testing.assert_array_equal(
                host.eval_transform(image, preprocess),
                timm_pixels(timm, image, preprocess),
                f"{shape} {size} {pct}",
            )


@pytest.mark.shared
@pytest.mark.timm
@pytest.mark.parametrize("crop_mode", MODES)
def test_eval_transform_equals_timm_on_photographs(crop_mode, shared):
    timm = reference.import_timm()
    for i, path in enumerate(sorted((shared / "data" / "photos").iterdir())):
        image = decode(path.read_bytes())
        preprocess = Preprocess(
            image_size=(224, 288)[i % 2],
            crop_pct=(0.875, 0.9, 0.95, 1.0)[i % 4],
            crop_mode=crop_mode,
            interpolation=("bicubic", "bilinear")[i % 2],
        )
        expected = timm_pixels(timm, Image.open(path).convert("RGB"), preprocess)
        np.testing.assert_array_equal(host.eval_transform(image, preprocess), expected, path.name)


def catalog_transforms(timm):
    """Returns {our Preprocess: timm's data config} for each row of the catalog, at its training and its test size."""
    found = {}
    for architecture in registry.architectures():
        for entry in catalog.entries(architecture):
            cfg = timm.models.get_pretrained_cfg(entry.name).to_dict()
            for test, preprocess in [(False, entry.preprocess), (True, entry.test_preprocess)]:
                config = timm.data.resolve_data_config(pretrained_cfg=cfg, use_test_size=test)
                assert found.setdefault(preprocess, config) == config, entry.name
    return found


def shape_of(preprocess):
    return preprocess.image_size, preprocess.crop_pct, preprocess.crop_mode, preprocess.interpolation


def assert_same_pixels(image, preprocess, config, timm, *what):
    expected = timm.data.create_transform(**config, normalize=False)(image).permute(1, 2, 0).numpy()
    got = host.eval_transform(image, preprocess)
    np.testing.assert_array_equal(got, expected, f"{shape_of(preprocess)} {image.size} {what}")


def files_of_each_kind():
    """Returns files of odd sizes, {kind: bytes}: one of each kind that a folder of images may contain."""
    alpha = Image.fromarray(scene(83, 119, channels=1, seed=1)[..., 0])
    small = Image.fromarray(scene(83, 119))
    transparent = small.copy()
    transparent.putalpha(alpha)
    gray = Image.fromarray(scene(143, 77, channels=1)[..., 0])
    return {
        "wide": encode(scene(97, 301)),
        "tall JPEG": encode(scene(263, 121), "JPEG"),
        "smaller than any crop": encode(scene(31, 45)),
        "a few pixels": encode(scene(7, 20)),
        "gray": encode(gray),
        "gray JPEG": encode(gray, "JPEG"),
        "black and white": encode(gray.convert("1")),
        "gray, transparent": encode(transparent.convert("LA")),
        "transparent": encode(transparent),
        "palette": encode(small.quantize(32)),
        "palette, transparent": encode(small.quantize(16), transparency=bytes(range(0, 256, 16))),
        "CMYK": encode(small.convert("CMYK"), "JPEG"),
    }


@pytest.mark.timm
def test_every_transform_of_the_catalog_equals_timms():
    timm = reference.import_timm()
    transforms = catalog_transforms(timm)
    shapes = {shape_of(preprocess): (preprocess, config) for preprocess, config in transforms.items()}
    assert len(shapes) >= 79
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Palette images with Transparency")  # only our decoder avoids it
        files = {
            what: (data, Image.open(io.BytesIO(data)).convert("RGB")) for what, data in files_of_each_kind().items()
        }
    large = Image.fromarray(scene(900, 900))
    for preprocess, config in shapes.values():
        to, size = preprocess.resize_to, preprocess.image_size
        ours = {what: (decode(data), theirs) for what, (data, theirs) in files.items()}
        for w, h in [(to + 1, to), (to, to - 1), (size - 1, size + 1)]:
            ours[f"a pixel off, {w} x {h}"] = (large.crop((0, 0, w, h)),) * 2
        for what, (image, theirs) in ours.items():
            np.testing.assert_array_equal(np.asarray(image), np.asarray(theirs), what)
            assert_same_pixels(image, preprocess, config, timm, what)
    assert all((p.mean, p.std) == (tuple(c["mean"]), tuple(c["std"])) for p, c in transforms.items())
    image = Image.fromarray(scene(97, 131))
    for preprocess, config in {(p.mean, p.std): (p, c) for p, c in transforms.items()}.values():  # as the model sees it
        expected = timm.data.create_transform(**config)(image).permute(1, 2, 0).numpy()
        got = on_device.normalize(host.eval_transform(image, preprocess), preprocess.mean, preprocess.std)
        np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=1e-6)


@pytest.mark.timm
@pytest.mark.parametrize("crop_mode", MODES)
def test_every_size_and_crop_of_the_catalog_in_each_mode_equals_timms(crop_mode):
    timm = reference.import_timm()
    images = [Image.fromarray(scene(*shape)) for shape in [(45, 31), (261, 347), (399, 125)]]
    gray = Image.fromarray(scene(149, 203, channels=1)[..., 0])
    shapes = {shape_of(p): (p, config) for p, config in catalog_transforms(timm).items()}
    for preprocess, config in shapes.values():
        preprocess, config = replace(preprocess, crop_mode=crop_mode), config | {"crop_mode": crop_mode}
        for image in images:
            assert_same_pixels(image, preprocess, config, timm)
        one = {"mean": preprocess.mean[:1], "std": preprocess.std[:1]}  # as for a model of one channel
        input_size = {"input_size": (1, *config["input_size"][1:])}
        assert_same_pixels(gray, replace(preprocess, **one), config | one | input_size, timm)


@pytest.mark.shared
@pytest.mark.timm
def test_every_transform_of_the_catalog_equals_timms_on_photographs(shared):
    timm = reference.import_timm()
    files = sorted((shared / "data" / "photos").iterdir())
    shapes = {shape_of(preprocess): (preprocess, config) for preprocess, config in catalog_transforms(timm).items()}
    for i, (preprocess, config) in enumerate(shapes.values()):
        path = files[i % len(files)]
        expected = timm.data.create_transform(**config, normalize=False)(Image.open(path).convert("RGB"))
        got = host.eval_transform(decode(path.read_bytes()), preprocess)
        np.testing.assert_array_equal(got, expected.permute(1, 2, 0).numpy(), f"{shape_of(preprocess)} {path.name}")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 0}, "image_size: got .*, expected a whole number of pixels"),
        ({"image_size": 22.5}, "image_size: got .*, expected a whole number of pixels"),
        ({"crop_pct": 0.0}, "crop_pct: got .*, expected a share"),
        ({"crop_pct": 87.5}, "crop_pct: got .*, expected a share"),
        (
            {"crop_mode": "centr"},
            "crop_mode: got 'centr', expected one of 'border', .* Did you mean 'center'",
        ),
        ({"interpolation": "cubic"}, "Did you mean 'bicubic'"),
        ({"mean": (0.5,)}, "got 1 and 3 numbers, expected one of each"),
        ({"std": (1.0, 0.0, 1.0)}, "std: got .*, expected numbers above 0"),
        ({"std": (0.5, math.nan, 0.5)}, "std: got .*, expected numbers above 0 and at most 1"),
        ({"std": (0.5, math.inf, 0.5)}, "std: got .*, expected numbers above 0 and at most 1"),
        ({"mean": (0.5, math.nan, 0.5)}, "mean: got .*, expected numbers from 0 to 1"),
        ({"mean": (123.675, 116.28, 103.53)}, "mean: got .*, expected .* Divide values for a scale of 0 to 255 by 255"),
        ({"image_size": math.inf}, "image_size: got inf, expected a whole number of pixels"),
        ({"image_size": math.nan}, "image_size: got nan, expected a whole number of pixels"),
    ],
)
def test_preprocess_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        Preprocess(**wrong)


def test_preprocess_compares_and_hashes_by_value():
    assert Preprocess(mean=[0.5, 0.5, 0.5]) == Preprocess(mean=(0.5, 0.5, 0.5))
    assert hash(Preprocess()) == hash(replace(Preprocess(image_size=1), image_size=224))


# --- training


def test_random_box_respects_scale_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([host.random_box(400, 600, rng) for _ in range(4000)])
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= 400).all()
    assert (left + w <= 600).all()
    share, aspect = h * w / (400 * 600), w / h
    assert 0.079 < share.min() < 0.09
    assert share.max() <= 1
    assert abs(aspect.min() - 3 / 4) < 0.01
    assert abs(aspect.max() - 4 / 3) < 0.01


@pytest.mark.timm
def test_random_box_has_torchvisions_distribution():
    import torch

    torchvision = reference.import_torchvision()
    torch.manual_seed(0)
    blank = torch.zeros(1, 300, 500)
    theirs = np.array(
        [torchvision.transforms.RandomResizedCrop.get_params(blank, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(8000)]
    )
    rng = np.random.default_rng(0)
    ours = np.array([host.random_box(300, 500, rng) for _ in range(8000)])
    # Kolmogorov-Smirnov: two samples of 8000 from one distribution differ by more than 0.031 once in a thousand times.
    from scipy.stats import ks_2samp

    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).statistic < 0.031


@pytest.mark.parametrize(
    ("shape", "expected"), [((100, 10), (43, 0, 13, 10)), ((10, 100), (0, 43, 10, 13)), ((20, 20), (0, 0, 20, 20))]
)
def test_random_box_falls_back_to_the_center(shape, expected):
    class TooLarge:  # draws an area that never fits
        def uniform(self, low, high):
            return 1.5 if high == 1.0 else 0.0

    assert host.random_box(*shape, TooLarge()) == expected


def fix_random_box(monkeypatch, box):
    """Makes train_crop choose one box: (top, left, height, width) in pixels of the upright image."""
    monkeypatch.setattr(host, "random_box", lambda *_, **__: Box(*box))


# Pillow's decoding and resizing of the same box differ in rounding, chroma upsampling and filter.
BOXES = [(0, 0, 480, 640), (10, 300, 100, 150), (0, 0, 240, 240), (200, 17, 280, 400), (100, 100, 48, 64)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_train_crop_against_pillow(monkeypatch, box, subsampling, progressive):
    data = encode(scene(480, 640, smooth=True), "JPEG", quality=92, subsampling=subsampling, progressive=progressive)
    fix_random_box(monkeypatch, box)
    got = host.train_crop(data, 64, np.random.default_rng(0)).astype(int)
    top, left, h, w = box
    crop = decode(data).crop((left, top, left + w, top + h))
    expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(got - expected).mean() < 1.5


@pytest.mark.parametrize("box", BOXES)
def test_train_crop_does_not_shift(monkeypatch, box):
    data = encode(scene(480, 640), "JPEG", quality=92, subsampling=0)
    fix_random_box(monkeypatch, box)
    got = host.train_crop(data, 64, np.random.default_rng(0)).astype(int)
    top, left, h, w = box
    crop = decode(data).crop((left, top, left + w, top + h))
    expected = np.asarray(crop.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    for shift in [(0, 1), (1, 0), (0, -1), (-1, 0)]:  # a shift by one pixel fits far worse
        moved = np.abs(np.roll(got, shift, (0, 1)) - expected)[2:-2, 2:-2].mean()
        assert moved > 2 * np.abs(got - expected)[2:-2, 2:-2].mean()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_train_crop_applies_the_exif_orientation(monkeypatch, orientation):
    data = encode(scene(480, 640, smooth=True), "JPEG", quality=92, exif=exif(orientation))
    fix_random_box(monkeypatch, (40, 100, 300, 250))
    got = host.train_crop(data, 64, np.random.default_rng(0)).astype(int)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).crop((100, 40, 350, 340))
    expected = np.asarray(upright.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(got - expected).mean() < 1.5


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "I;16"])
def test_train_crop_of_other_modes(mode):
    image = Image.fromarray(scene(200, 300, smooth=True))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
    else:
        image = image.convert(mode)
    data = encode(image, "JPEG" if mode in ("L", "CMYK") else "PNG")
    whole = {"scale": (1.0, 1.0), "ratio": (1.5, 1.5)}
    got = host.train_crop(data, 64, np.random.default_rng(0), **whole)
    expected = np.asarray(decode(data).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert got.dtype == np.uint8
    assert got.shape == (64, 64, 3)
    assert np.abs(got - expected).mean() < 1.5


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_train_crop_of_an_array(channels):
    got = host.train_crop(scene(200, 300, channels), 64, np.random.default_rng(0))
    assert got.dtype == np.uint8
    assert got.shape == (64, 64, channels)


def test_train_crop_is_a_function_of_its_generator():
    data = encode(scene(), "JPEG")
    a, b, c = (host.train_crop(data, 32, np.random.default_rng(s), interpolation="random") for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": (0.0, 1.0)}, "share of the area"),
        ({"scale": (0.5, 0.2)}, "share of the area"),
        ({"ratio": (2.0, 1.0)}, "width / height"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
    ],
)
def test_train_crop_errors(wrong, message):
    with pytest.raises(UserError, match=message):
        host.train_crop(encode(scene()), 32, np.random.default_rng(0), **wrong)
