"""jaxvision.augment.resampling, through the transforms of the host and of the device: against Pillow's resize."""

from __future__ import annotations

import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from support.images import encode, image_batch

from jaxvision.augment import host, on_device
from jaxvision.augment.preprocess import INTERPOLATIONS, Preprocess


def noise(h, w, c=3):
    return np.random.default_rng(h * w).integers(0, 256, (h, w, c)).astype(np.uint8)


def resized_whole(pixels, preprocess):
    """Returns the crop of an image that Pillow has resized as a whole."""
    h, w = preprocess.resized_shape(*pixels.shape[:2])
    size = preprocess.image_size
    image = Image.fromarray(pixels).resize((w, h), Image.Resampling[preprocess.interpolation.upper()])
    left, top = round((w - size) / 2), round((h - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("shape", [(1, 400), (3, 700), (700, 2), (33, 1300), (1300, 33), (97, 4003), (31, 999)])
def test_a_narrow_image_equals_the_whole_resized(shape, interpolation):
    pixels = noise(*shape)
    for size, pct in [(32, 0.875), (31, 1.0), (20, 0.95), (24, 0.1)]:
        preprocess = Preprocess(image_size=size, crop_pct=pct, interpolation=interpolation)
        h, w = preprocess.resized_shape(*shape)
        assert h * w > 25 * size**2
        np.testing.assert_array_equal(
            host.eval_transform(pixels, preprocess), resized_whole(pixels, preprocess), f"{size} {pct}"
        )


def test_a_narrow_image_of_other_channels_and_with_padding():
    preprocess = Preprocess(image_size=24, mean=(0.5,) * 5, std=(0.5,) * 5)
    pixels = noise(2, 900, 5)
    got = host.eval_transform(pixels, preprocess)
    for c in range(5):
        np.testing.assert_array_equal(got[..., c], resized_whole(pixels[..., c], preprocess))
    padded = host.eval_transform(noise(2, 900), Preprocess(image_size=24, crop_pct=1.5))
    assert padded.shape == (24, 24, 3)
    assert not padded[:4].any()  # 16 of 24 rows
    assert not padded[-4:].any()
    assert padded[4:-4].any()


# Pillow 13 resizes the height first if it shrinks by more than twice as many pixels as the width.
@pytest.mark.parametrize("shape", [(90, 30), (30, 90), (400, 41), (600, 3), (3, 600), (700, 2)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_the_device_resizes_narrow_images_as_pillow_does(shape, interpolation):
    preprocess = Preprocess(image_size=16, interpolation=interpolation)
    prepare = jax.jit(functools.partial(on_device.prepare_eval, preprocess=preprocess, resize=True))
    got = np.asarray(prepare(image_batch(noise(*shape)[None])))[0] * preprocess.std + preprocess.mean
    np.testing.assert_allclose(got * 255, resized_whole(noise(*shape), preprocess), atol=1e-3)


MEASURE = """
import io, resource, sys, time
import numpy as np
from PIL import Image
from jaxvision.augment import host
from jaxvision.augment.preprocess import Preprocess

def encode(h, w, kind):
    buffer = io.BytesIO()
    Image.fromarray(np.full((h, w, 3), 90, np.uint8)).save(buffer, kind)
    return buffer.getvalue()

files = [encode(1, 4000, "PNG"), encode(4000, 1, "JPEG"), encode(60_000, 2, "PNG"), encode(2, 60_000, "JPEG")]
host.train_crop(files[0], 224, np.random.default_rng(0))  # imports OpenCV
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
for data in files:
    assert (abs(host.eval_transform(data, Preprocess()).astype(int) - 90) < 2).all()
    assert (abs(host.eval_transform(data, Preprocess(image_size=640, crop_pct=1.0)).astype(int) - 90) < 2).all()
    for seed in range(3):
        assert (abs(host.train_crop(data, 224, np.random.default_rng(seed)).astype(int) - 90) < 2).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
"""


def test_the_memory_and_time_of_an_extremely_narrow_image():
    """1 x 4000 pixels are 256 x 1,024,000 after the resize, which takes 2.5 GB."""
    output = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True).stdout
    kilobytes, seconds = map(float, output.split())
    assert kilobytes < 100_000
    assert seconds < 10


def test_a_training_crop_of_an_allowed_shape_is_never_empty():
    for shape in [(1, 500), (500, 1)]:
        for ratio in [(3.0, 4.0), (0.1, 0.2)]:
            crop = host.train_crop(encode(noise(*shape)), 16, np.random.default_rng(0), ratio=ratio)
            assert crop.shape == (16, 16, 3)
