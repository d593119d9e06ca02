"""jaxvision.augment.rand_augment: against Pillow and timm."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from support import reference
from support.images import scene

from jaxvision.augment import rand_augment as ra
from jaxvision.errors import UserError

SCENE = scene(32, 40)
FILL = (124, 116, 104)


def pillow_op(name, argument, image):
    """Applies the operation with Pillow."""
    w, h = image.size

    def affine(*matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)

    return {
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
        "Invert": lambda: ImageOps.invert(image),
        "Posterize": lambda: image.point([i & ~(2 ** (8 - int(argument)) - 1) for i in range(256)] * 3),
        "Solarize": lambda: ImageOps.solarize(image, argument),
        "SolarizeAdd": lambda: image.point([min(i + argument, 255) if i < 128 else i for i in range(256)] * 3),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(argument),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(argument),
        "Color": lambda: ImageEnhance.Color(image).enhance(argument),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(argument),
        "Rotate": lambda: image.rotate(argument, Image.Resampling.BILINEAR, fillcolor=FILL),
        "ShearX": lambda: affine(1, argument, 0, 0, 1, 0),
        "ShearY": lambda: affine(1, 0, 0, argument, 1, 0),
        "TranslateX": lambda: affine(1, 0, argument * w, 0, 1, 0),
        "TranslateY": lambda: affine(1, 0, 0, 0, 1, argument * h),
    }[name]()


ARGUMENTS = {
    "AutoContrast": [0.0],
    "Equalize": [0.0],
    "Invert": [0.0],
    "Posterize": [0, 1, 2, 3, 4],
    "Solarize": [0, 26, 128, 230, 256],
    "SolarizeAdd": [0, 33, 99, 110],
    "Contrast": [0.1, 0.73, 1.0, 1.9],
    "Brightness": [0.1, 0.73, 1.0, 1.9],
    "Color": [0.1, 0.73, 1.0, 1.9],
    "Sharpness": [0.1, 0.73, 1.0, 1.9],
    "Rotate": [-27.0, 3.0, 30.0],
    "ShearX": [-0.27, 0.1, 0.3],
    "ShearY": [-0.27, 0.1, 0.3],
    "TranslateX": [-0.4071, 0.0937, 0.4511],
    "TranslateY": [-0.4071, 0.0937, 0.4511],
}


@functools.cache
def jitted_apply():
    return jax.jit(lambda image, op, argument: ra.apply(image, op, argument, FILL))


@pytest.mark.parametrize("name", ra.OPS)
def test_each_operation_gives_pillows_pixels(name):
    faint = (scene(32, 40, seed=3) // 3 + 40).astype(np.uint8)  # uses neither the lowest nor the highest values
    flat = np.full((32, 40, 3), 99, np.uint8)
    for pixels in (SCENE, faint, flat):
        for argument in ARGUMENTS[name]:
            got = np.asarray(jitted_apply()(pixels.astype(np.float32), ra.OPS.index(name), float(argument)))
            expected = np.asarray(pillow_op(name, argument, Image.fromarray(pixels))).astype(np.float32)
            # Rarely, a product close to a whole number is rounded to a different level than in Pillow. Pillow's
            # AutoContrast rounds some whole products one level too low.
            different = np.abs(got - expected)
            assert different.max() <= 1, (name, argument)
            allowed = 0.02 if name == "AutoContrast" else 0.003
            assert (different > 0).mean() < allowed, (name, argument, (different > 0).mean())


def test_operations_on_one_channel():
    gray = SCENE[..., :1]
    apply = jax.jit(lambda image, op, argument: ra.apply(image, op, argument, FILL[:1]))
    for name in ("Equalize", "AutoContrast", "Contrast", "Sharpness", "Color", "Rotate"):
        argument = ARGUMENTS[name][0]
        got = np.asarray(apply(gray.astype(np.float32), ra.OPS.index(name), argument))
        three = Image.fromarray(np.repeat(gray, 3, -1))
        expected = np.asarray(pillow_op(name, argument, three))[..., :1].astype(np.float32)
        if name == "Rotate":  # the fill color of three channels differs
            got, expected = got[9:-9, 9:-9], expected[9:-9, 9:-9]
        assert np.abs(got - expected).max() <= 1, name


@pytest.mark.timm
@pytest.mark.parametrize("increasing", [False, True])
def test_levels_are_timms(increasing, monkeypatch):
    reference.import_timm()
    from timm.data import auto_augment

    names = [op.name for op in auto_augment.rand_augment_transform(f"rand-inc{int(increasing)}", {}).ops]
    assert len(names) == len(ra.OPS)
    arguments = jax.jit(functools.partial(ra.arguments, increasing=increasing))
    for sign in (1, -1):
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda v, sign=sign: sign * v)
        for level in (0, 1, 3.7, 5, 9, 10):
            ours = dict(zip(ra.OPS, arguments(level / 10, float(sign)).tolist(), strict=True))
            for name in names:
                convert = auto_augment.LEVEL_TO_ARG[name]
                if convert is not None:
                    theirs = convert(level, {})
                    mine = ours[name.removesuffix("Increasing").removesuffix("Rel")]
                    assert mine == pytest.approx(theirs[0], abs=1e-5), (name, level)


def test_rand_augment_draws_operations_magnitudes_and_signs():
    policy = ra.RandAugment.parse("rand-m9-n1-p1.0")
    run = jax.jit(jax.vmap(lambda key: ra.rand_augment(SCENE.astype(np.float32), key, policy, FILL)))
    results = np.asarray(run(jax.random.split(jax.random.key(0), 300)))
    candidates = {}
    for sign in (1.0, -1.0):
        arguments = np.asarray(ra.arguments(0.9, sign, increasing=False))
        for op, name in enumerate(ra.OPS):
            candidates[name, sign] = np.asarray(jitted_apply()(SCENE.astype(np.float32), op, arguments[op]))
    found = [min(candidates, key=lambda c: np.abs(candidates[c] - result).mean()) for result in results]
    for result, which in zip(results, found, strict=True):
        assert np.abs(result - candidates[which]).max() <= 1
    counts = [sum(name == op for name, _ in found) for op in ra.OPS]
    assert stats.chisquare(counts).pvalue > 1e-4  # all fifteen equally often
    signs = [sign for name, sign in found if name in ra.AFFINES]
    assert 0.3 < np.mean(np.array(signs) > 0) < 0.7


def test_rand_augment_probability_and_number():
    image = SCENE.astype(np.float32)
    off = ra.rand_augment(image, jax.random.key(0), ra.RandAugment(probability=0.0), FILL)
    np.testing.assert_array_equal(off, image)
    one = ra.RandAugment.parse("rand-m9-n2-p0.5-mstd0.5-inc1")
    run = jax.jit(jax.vmap(lambda key: ra.rand_augment(image, key, one, FILL)))
    results = np.asarray(run(jax.random.split(jax.random.key(1), 320)))
    untouched = (results == image).all(axis=(1, 2, 3)).mean()
    assert abs(untouched - 0.25) < 0.08  # two operations, each applied with probability 1/2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", ra.RandAugment()),
        ("rand-m9-mstd0.5-inc1", ra.RandAugment(magnitude=9, magnitude_std=0.5, increasing=True)),
        ("rand-n3-m7-p0.7", ra.RandAugment(num_ops=3, magnitude=7, probability=0.7)),
        ("rand-m15-mmax20-mstd101", ra.RandAugment(magnitude=15, max_magnitude=20, magnitude_std=math.inf)),
    ],
)
def test_timms_notation(text, expected):
    assert ra.RandAugment.parse(text) == expected


@pytest.mark.parametrize("text", ["augmix-m3", "rand-m", "rand-x3", "rand-tweights", "rand-n0", "rand-p2.0"])
def test_invalid_notation(text):
    with pytest.raises(UserError, match="RandAugment"):
        ra.RandAugment.parse(text)
