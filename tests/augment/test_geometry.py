"""jaxvision.augment.geometry: against Pillow and the host."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats
from support.images import image_batch, scene

from jaxvision.augment import geometry, host, on_device
from jaxvision.augment.preprocess import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCENE = scene(32, 40)


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(32, 32), (28, 40)])
def test_prepare_eval_resizes_as_the_host_does(crop_mode, interpolation, shape):
    images = np.stack([scene(*shape, seed=s) for s in range(3)])
    for size, pct in [(48, 0.875), (24, 0.9), (32, 1.0), (40, 1.1)]:
        preprocess = Preprocess(image_size=size, crop_pct=pct, crop_mode=crop_mode, interpolation=interpolation)
        prepare = jax.jit(functools.partial(on_device.prepare_eval, preprocess=preprocess), static_argnames="resize")
        prepared = prepare(image_batch(images), resize=True)
        expected = np.stack([host.eval_transform(image, preprocess) for image in images])
        np.testing.assert_allclose(prepared, (expected / 255 - MEAN) / STD, atol=1e-6)
        np.testing.assert_allclose(prepare(image_batch(expected), resize=False), prepared, atol=1e-6)


@pytest.mark.parametrize("box", [(3, 5, 20, 30), (0, 0, 32, 40), (10, 11, 7, 5)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_box_against_pillow(box, interpolation):
    top, left, h, w = box
    resize = jax.jit(functools.partial(geometry.resize_box, size=24, interpolation=interpolation))
    got = np.asarray(resize(SCENE.astype(np.float32), jnp.array(box)))
    # As floating-point images, because Pillow does not round those between the two axes.
    planes = [Image.fromarray(SCENE[..., c].astype(np.float32)) for c in range(3)]
    part, filter = (left, top, left + w, top + h), Image.Resampling[interpolation.upper()]
    expected = np.stack([np.asarray(plane.resize((24, 24), filter, part)) for plane in planes], -1)
    assert np.abs(got - np.clip(expected, 0, 255)).max() <= 0.5 + 2e-3


def test_random_box_has_the_hosts_distribution():
    keys = jax.random.split(jax.random.key(0), 6000)
    for (height, width), scale, ratio in [((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)), ((20, 60), (0.5, 1.0), (0.8, 1.2))]:
        draw = jax.jit(jax.vmap(lambda k: geometry.random_box(k, height, width, scale=scale, ratio=ratio)))  # noqa: B023
        rng = np.random.default_rng(0)
        theirs = np.array([host.random_box(height, width, rng, scale=scale, ratio=ratio) for _ in range(6000)])
        ours = np.asarray(draw(keys))
        assert (ours[:, :2] >= 0).all()
        assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
        for column in range(4):  # two samples of 6000 differ by more than 0.036 once in a thousand times
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).statistic < 0.036


def test_random_crop_is_a_part_of_the_padded_image():
    image = SCENE[:8, :8].astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    parts = {(y, x): padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
    keys = jax.random.split(jax.random.key(0), 400)
    seen = set()
    for got in np.asarray(jax.vmap(lambda k: geometry.random_crop(image, k, padding=2))(keys)):
        seen.add(next(offset for offset, part in parts.items() if (got == part).all()))
    assert seen == set(parts)


@pytest.mark.parametrize("axis", [0, 1])
def test_random_flip(axis):
    image = SCENE.astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 500)
    results = np.asarray(jax.vmap(lambda k: geometry.random_flip(image, k, probability=0.3, axis=axis))(keys))
    flipped = (results == np.flip(image, axis)).all(axis=(1, 2, 3))
    assert (flipped | (results == image).all(axis=(1, 2, 3))).all()
    assert abs(flipped.mean() - 0.3) < 0.07
