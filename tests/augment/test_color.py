"""jaxvision.augment.color: against Pillow, timm and scipy."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats
from support import reference
from support.images import scene

from jaxvision.augment import color

SCENE = scene(32, 40)


def test_jitter_color_against_pillow():
    image = SCENE.astype(np.float32)
    jitter = jax.jit(jax.vmap(lambda k: color.jitter_color(image, k, (0.4, 0.3, 0.2))))
    keys = jax.random.split(jax.random.key(0), 40)
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    orders, different = set(), []
    for key, got in zip(keys, np.asarray(jitter(keys)), strict=True):
        u = np.asarray(jax.random.uniform(key, (4,)))
        factors = np.array([0.6, 0.7, 0.8], np.float32) + u[:3] * np.array([0.8, 0.6, 0.4], np.float32)
        order = list(itertools.permutations(range(3)))[int(u[3] * 6)]
        orders.add(order)
        expected = Image.fromarray(SCENE)
        for which in order:
            expected = enhancers[which](expected).enhance(float(factors[which]))
        different.append(np.abs(got - np.asarray(expected).astype(int)))
        assert different[-1].max() <= 2
    assert np.mean(np.stack(different) > 0) < 5e-3
    assert len(orders) == 6


@pytest.mark.parametrize("fill", ["const", "rand", "pixel"])
def test_random_erase_fills(fill):
    image = jnp.full((24, 30, 3), 9.0)
    erase = jax.jit(jax.vmap(lambda k: color.random_erase(image, k, probability=0.6, fill=fill)))
    results = np.asarray(erase(jax.random.split(jax.random.key(0), 500)))
    erased = (results != 9.0).all(-1)
    assert abs(erased.any(axis=(1, 2)).mean() - 0.6) < 0.07
    values = []
    for result, where in zip(results, erased, strict=True):
        if where.any():
            rows, columns = where.any(1), where.any(0)
            assert (where == rows[:, None] & columns[None]).all()  # a rectangle, without holes
            assert 0.005 < where.mean() < 0.45
            values.append(result[where])
    values = np.concatenate([v[:1] if fill == "rand" else v for v in values])
    if fill == "const":
        assert (values == 0).all()
    else:
        assert stats.kstest(values.ravel(), "norm").pvalue > 1e-4


@pytest.mark.timm
@pytest.mark.parametrize("count", [1, 3])
def test_random_erase_has_timms_distribution(count):
    import torch

    timm = reference.import_timm()
    import random

    random.seed(0)
    theirs = timm.data.random_erasing.RandomErasing(1.0, min_count=1, max_count=count, device="cpu")
    expected = [(theirs(torch.ones(1, 32, 32)) == 0).float().mean().item() for _ in range(3000)]
    ours = jax.jit(jax.vmap(lambda k: color.random_erase(jnp.ones((32, 32, 1)), k, probability=1.0, count=count)))(
        jax.random.split(jax.random.key(0), 3000)
    )
    got = (np.asarray(ours) == 0).mean(axis=(1, 2, 3))
    assert stats.ks_2samp(got, expected).statistic < 0.05  # exceeded once in a thousand times
