"""jaxvision.augment.on_device and rand_augment: against Pillow, torchvision, timm and scipy."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats
from support import reference
from support.images import scene

from jaxvision.augment import host, on_device
from jaxvision.augment import rand_augment as ra
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURE = scene(32, 40)
FILL = (124, 116, 104)


def batch_of(images, *, labels=None, index=None, mask=None):
    b = len(images)
    return {
        "image": jnp.asarray(images),
        "label": jnp.asarray(np.arange(b) % 10 if labels is None else labels, jnp.int32),
        "index": jnp.asarray(np.arange(b) * 7 + 3 if index is None else index, jnp.int32),
        "mask": jnp.asarray(np.ones(b, bool) if mask is None else mask),
    }


# --- RandAugment


def pillow_op(name, argument, picture):
    """The operation, in Pillow's words."""
    w, h = picture.size

    def affine(*matrix):
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL
        )

    return {
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
        "Invert": lambda: ImageOps.invert(picture),
        "Posterize": lambda: picture.point([i & ~(2 ** (8 - int(argument)) - 1) for i in range(256)] * 3),
        "Solarize": lambda: ImageOps.solarize(picture, argument),
        "SolarizeAdd": lambda: picture.point([min(i + argument, 255) if i < 128 else i for i in range(256)] * 3),
        "Contrast": lambda: ImageEnhance.Contrast(picture).enhance(argument),
        "Brightness": lambda: ImageEnhance.Brightness(picture).enhance(argument),
        "Color": lambda: ImageEnhance.Color(picture).enhance(argument),
        "Sharpness": lambda: ImageEnhance.Sharpness(picture).enhance(argument),
        "Rotate": lambda: picture.rotate(argument, Image.Resampling.BILINEAR, fillcolor=FILL),
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
    faint = (scene(32, 40, seed=3) // 3 + 40).astype(np.uint8)  # leaves room at both ends
    flat = np.full((32, 40, 3), 99, np.uint8)
    for pixels in (PICTURE, faint, flat):
        for argument in ARGUMENTS[name]:
            got = np.asarray(jitted_apply()(pixels.astype(np.float32), ra.OPS.index(name), float(argument)))
            expected = np.asarray(pillow_op(name, argument, Image.fromarray(pixels))).astype(np.float32)
            # A product next to a whole number can fall to its other side, with Pillow as with us: a level, rarely.
            # (Pillow's AutoContrast puts some products that are whole numbers a level too low.)
            different = np.abs(got - expected)
            assert different.max() <= 1, (name, argument)
            allowed = 0.02 if name == "AutoContrast" else 0.003
            assert (different > 0).mean() < allowed, (name, argument, (different > 0).mean())


def test_operations_on_one_channel():
    gray = PICTURE[..., :1]
    apply = jax.jit(lambda image, op, argument: ra.apply(image, op, argument, FILL[:1]))
    for name in ("Equalize", "AutoContrast", "Contrast", "Sharpness", "Color", "Rotate"):
        argument = ARGUMENTS[name][0]
        got = np.asarray(apply(gray.astype(np.float32), ra.OPS.index(name), argument))
        three = Image.fromarray(np.repeat(gray, 3, -1))
        expected = np.asarray(pillow_op(name, argument, three))[..., :1].astype(np.float32)
        if name == "Rotate":  # three channels are filled with another color
            got, expected = got[9:-9, 9:-9], expected[9:-9, 9:-9]
        assert np.abs(got - expected).max() <= 1, name


@pytest.mark.timm
@pytest.mark.parametrize("increasing", [False, True])
def test_levels_are_timms(increasing, monkeypatch):
    reference.import_timm()
    from timm.data import auto_augment

    names = auto_augment._RAND_INCREASING_TRANSFORMS if increasing else auto_augment._RAND_TRANSFORMS
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
    run = jax.jit(jax.vmap(lambda key: ra.rand_augment(PICTURE.astype(np.float32), key, policy, FILL)))
    results = np.asarray(run(jax.random.split(jax.random.key(0), 300)))
    candidates = {}
    for sign in (1.0, -1.0):
        arguments = np.asarray(ra.arguments(0.9, sign, increasing=False))
        for op, name in enumerate(ra.OPS):
            candidates[name, sign] = np.asarray(jitted_apply()(PICTURE.astype(np.float32), op, arguments[op]))
    found = [min(candidates, key=lambda c: np.abs(candidates[c] - result).mean()) for result in results]
    for result, which in zip(results, found, strict=True):
        assert np.abs(result - candidates[which]).max() <= 1
    counts = [sum(name == op for name, _ in found) for op in ra.OPS]
    assert stats.chisquare(counts).pvalue > 1e-4  # all fifteen equally often
    signs = [sign for name, sign in found if name in ra.AFFINES]
    assert 0.3 < np.mean(np.array(signs) > 0) < 0.7


def test_rand_augment_probability_and_number():
    image = PICTURE.astype(np.float32)
    off = ra.rand_augment(image, jax.random.key(0), ra.RandAugment(probability=0.0), FILL)
    np.testing.assert_array_equal(off, image)
    one = ra.RandAugment.parse("rand-m9-n2-p0.5-mstd0.5-inc1")
    run = jax.jit(jax.vmap(lambda key: ra.rand_augment(image, key, one, FILL)))
    results = np.asarray(run(jax.random.split(jax.random.key(1), 320)))
    untouched = (results == image).all(axis=(1, 2, 3)).mean()
    assert abs(untouched - 0.25) < 0.08  # two operations, each done half of the time


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
def test_notation_that_makes_no_sense(text):
    with pytest.raises(UserError, match="RandAugment"):
        ra.RandAugment.parse(text)


# --- geometry


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(32, 32), (28, 40)])
def test_prepare_eval_resizes_as_the_host_does(crop_mode, interpolation, shape):
    images = np.stack([scene(*shape, seed=s) for s in range(3)])
    for size, pct in [(48, 0.875), (24, 0.9), (32, 1.0), (40, 1.1)]:
        preprocess = Preprocess(image_size=size, crop_pct=pct, crop_mode=crop_mode, interpolation=interpolation)
        prepare = jax.jit(functools.partial(on_device.prepare_eval, preprocess=preprocess), static_argnames="resize")
        prepared = prepare(batch_of(images), resize=True)
        expected = np.stack([host.eval_transform(image, preprocess) for image in images])
        np.testing.assert_allclose(prepared, (expected / 255 - MEAN) / STD, atol=1e-6)
        np.testing.assert_allclose(prepare(batch_of(expected), resize=False), prepared, atol=1e-6)


@pytest.mark.parametrize("box", [(3, 5, 20, 30), (0, 0, 32, 40), (10, 11, 7, 5)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resize_box_against_pillow(box, interpolation):
    top, left, h, w = box
    resize = jax.jit(functools.partial(on_device.resize_box, size=24, interpolation=interpolation))
    got = np.asarray(resize(PICTURE.astype(np.float32), jnp.array(box)))
    # as floating-point pictures, which Pillow does not round between the two axes
    planes = [Image.fromarray(PICTURE[..., c].astype(np.float32)) for c in range(3)]
    part, filter = (left, top, left + w, top + h), Image.Resampling[interpolation.upper()]
    expected = np.stack([np.asarray(plane.resize((24, 24), filter, part)) for plane in planes], -1)
    assert np.abs(got - np.clip(expected, 0, 255)).max() <= 0.5 + 2e-3


def test_random_box_has_the_hosts_distribution():
    keys = jax.random.split(jax.random.key(0), 6000)
    for (height, width), scale, ratio in [((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)), ((20, 60), (0.5, 1.0), (0.8, 1.2))]:
        draw = jax.jit(jax.vmap(lambda k: on_device.random_box(k, height, width, scale=scale, ratio=ratio)))  # noqa: B023
        rng = np.random.default_rng(0)
        theirs = np.array([host.random_box(height, width, rng, scale=scale, ratio=ratio) for _ in range(6000)])
        ours = np.asarray(draw(keys))
        assert (ours[:, :2] >= 0).all()
        assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
        for column in range(4):  # two samples of 6000 differ by more once in a thousand
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).statistic < 0.036


def test_random_crop_is_a_part_of_the_padded_picture():
    image = PICTURE[:8, :8].astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    parts = {(y, x): padded[y : y + 8, x : x + 8] for y in range(5) for x in range(5)}
    keys = jax.random.split(jax.random.key(0), 400)
    seen = set()
    for got in np.asarray(jax.vmap(lambda k: on_device.random_crop(image, k, padding=2))(keys)):
        seen.add(next(offset for offset, part in parts.items() if (got == part).all()))
    assert seen == set(parts)


@pytest.mark.parametrize("axis", [0, 1])
def test_random_flip(axis):
    image = PICTURE.astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 500)
    results = np.asarray(jax.vmap(lambda k: on_device.random_flip(image, k, probability=0.3, axis=axis))(keys))
    flipped = (results == np.flip(image, axis)).all(axis=(1, 2, 3))
    assert (flipped | (results == image).all(axis=(1, 2, 3))).all()
    assert abs(flipped.mean() - 0.3) < 0.07


# --- color and erasing


def test_jitter_color_against_pillow():
    image = PICTURE.astype(np.float32)
    jitter = jax.jit(jax.vmap(lambda k: on_device.jitter_color(image, k, (0.4, 0.3, 0.2))))
    keys = jax.random.split(jax.random.key(0), 40)
    enhancers = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    orders, different = set(), []
    for key, got in zip(keys, np.asarray(jitter(keys)), strict=True):
        u = np.asarray(jax.random.uniform(key, (4,)))
        factors = np.array([0.6, 0.7, 0.8], np.float32) + u[:3] * np.array([0.8, 0.6, 0.4], np.float32)
        order = list(itertools.permutations(range(3)))[int(u[3] * 6)]
        orders.add(order)
        picture = Image.fromarray(PICTURE)
        for which in order:
            picture = enhancers[which](picture).enhance(float(factors[which]))
        different.append(np.abs(got - np.asarray(picture).astype(int)))
        assert different[-1].max() <= 2
    assert np.mean(np.stack(different) > 0) < 5e-3
    assert len(orders) == 6


@pytest.mark.parametrize("fill", ["const", "rand", "pixel"])
def test_random_erase_fills(fill):
    image = jnp.full((24, 30, 3), 9.0)
    erase = jax.jit(jax.vmap(lambda k: on_device.random_erase(image, k, probability=0.6, fill=fill)))
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
    ours = jax.jit(jax.vmap(lambda k: on_device.random_erase(jnp.ones((32, 32, 1)), k, probability=1.0, count=count)))(
        jax.random.split(jax.random.key(0), 3000)
    )
    got = (np.asarray(ours) == 0).mean(axis=(1, 2, 3))
    assert stats.ks_2samp(got, expected).statistic < 0.05  # more once in a thousand


# --- mixing


def run_mix(images, targets, key, **options):
    mask = options.pop("mask", jnp.ones(len(images), bool))
    options = {"mixup": 0.0, "cutmix": 0.0} | options
    mixed, soft = jax.jit(functools.partial(on_device.mix, **options))(images, targets, key, mask=mask)
    return np.asarray(mixed), np.asarray(soft)


def numbered(b=8, h=12, w=16):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(b, h, w, 3)), jnp.float32), jax.nn.one_hot(np.arange(b), b)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_blends_with_the_mirrored_sample(mode):
    images, targets = numbered()
    mixed, soft = run_mix(images, targets, jax.random.key(0), mixup=0.8, mode=mode)
    share = np.diagonal(soft)  # what of its own label a sample keeps
    np.testing.assert_allclose(soft, share[:, None] * targets + (1 - share)[:, None] * targets[::-1], atol=1e-6)
    s = share[:, None, None, None]
    np.testing.assert_allclose(mixed, s * images + (1 - s) * images[::-1], atol=1e-5)
    kinds = {"batch": 1, "pair": 4, "elem": 8}[mode]
    assert len(set(share.round(6).tolist())) == kinds
    if mode == "pair":
        np.testing.assert_allclose(share, share[::-1])


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images, targets = numbered(b=64)
    mixed, soft = run_mix(images, targets, jax.random.key(3), cutmix=1.0, mode="elem")
    for i in range(64):
        pasted = (mixed[i] == images[63 - i]).all(-1)
        kept = (mixed[i] == images[i]).all(-1)
        assert (pasted ^ kept).all()
        rows, columns = pasted.any(1), pasted.any(0)
        assert (pasted == rows[:, None] & columns[None]).all()
        assert soft[i, i] == pytest.approx(float(kept.mean()), abs=1e-6)
        assert soft[i, 63 - i] == pytest.approx(float(pasted.mean()), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_shares_are_beta_distributed(alpha):
    u, v = jax.random.uniform(jax.random.key(0), (2, 4096))
    shares = np.asarray(on_device.symmetric_beta(u, v, alpha))
    expected = stats.beta(alpha, alpha).rvs(4096, random_state=0)
    # float32 ends where scipy still has numbers between 1 and 1 - 1e-7
    assert stats.ks_2samp(shares.round(4), expected.round(4)).pvalue > 1e-3


def test_switch_and_probability():
    images, targets = numbered(b=600, h=8, w=8)
    mixed, soft = run_mix(
        images, targets, jax.random.key(0), mixup=1.0, cutmix=1.0, probability=0.7, switch=0.25, mode="elem"
    )
    same = (mixed == images).all(axis=(1, 2, 3))
    pasted = ((mixed == images) | (mixed == images[::-1])).all(axis=(1, 2, 3)) & ~same
    # a cutmix rectangle is sometimes empty, so a little more than 30 % stay as they are
    assert 0.25 < same.mean() < 0.38
    assert abs(pasted.mean() - 0.7 * 0.25) < 0.05
    assert (np.diagonal(soft)[same] == 1).all()


def test_a_sample_without_a_partner_stays_as_it_is():
    images, targets = numbered(b=4)
    mask = jnp.array([True, True, True, False])
    for options in ({"mixup": 1.0, "cutmix": 1.0, "switch": 0.0}, {"mixup": 1.0, "cutmix": 1.0, "switch": 1.0}):
        mixed, soft = run_mix(images, targets, jax.random.key(1), mask=mask, **options)
        np.testing.assert_array_equal(mixed[0], images[0])
        np.testing.assert_array_equal(soft[0], targets[0])
        assert (mixed[1] != images[1]).any()


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_equals_timms(kind, monkeypatch):
    """The share and the rectangle that we drew, given to timm."""
    import torch

    reference.import_timm()
    from timm.data import mixup as theirs

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 12, 16, 3)).astype(np.uint8)
    options = {"num_classes": 10, "image_size": 12, "mean": (0.5,) * 3, "std": (0.5,) * 3, "label_smoothing": 0.1}
    batch = batch_of(images[:, :, 2:-2])
    run = functools.partial(on_device.augment_batch, seed=1, **options)
    plain, _ = jax.jit(run)(batch, step=2)
    mixed, targets = jax.jit(functools.partial(run, **{kind: 1.0}))(batch, step=2)
    soft = (np.asarray(targets)[0] - 0.01) / 0.9
    share = float(soft[0])
    changed = (np.asarray(mixed) != np.asarray(plain)).any(axis=(0, 3))
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    box = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    timm_mixup = theirs.Mixup(mixup_alpha=1.0, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    monkeypatch.setattr(timm_mixup, "_params_per_batch", lambda: (share, kind == "cutmix"))
    monkeypatch.setattr(theirs, "rand_bbox", lambda *_, **__: box)
    expected, expected_targets = timm_mixup(
        torch.tensor(np.asarray(plain)).permute(0, 3, 1, 2).contiguous(), torch.arange(6)
    )
    np.testing.assert_allclose(mixed, expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    np.testing.assert_allclose(targets, expected_targets.numpy(), atol=1e-5)


# --- the whole

EVERYTHING = {
    "num_classes": 10,
    "image_size": 20,
    "mean": MEAN,
    "std": STD,
    "crop": "resized",
    "crop_padding": 2,
    "flip": 0.5,
    "flip_vertical": 0.2,
    "color_jitter": 0.4,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erase": 0.5,
    "erase_count": 2,
    "erase_fill": "pixel",
    "label_smoothing": 0.1,
}
IMAGES = np.stack([scene(16, 16, seed=s) for s in range(16)])


@functools.cache
def everything():
    return jax.jit(functools.partial(on_device.augment_batch, seed=11, **EVERYTHING))


def test_all_is_off_by_default():
    batch = batch_of(IMAGES)
    images, targets = on_device.augment_batch(batch, seed=0, step=0, num_classes=10, image_size=16, mean=MEAN, std=STD)
    np.testing.assert_allclose(images, (IMAGES / 255 - np.array(MEAN)) / STD, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(10)[batch["label"]])


def assert_same_pictures(got, expected):
    """Equal but for pixels that stood on the edge between two levels, where a compiler's rounding decides."""
    different = np.abs(np.asarray(got) - np.asarray(expected)) > 1e-4
    assert different.mean() < 1e-3


def test_any_sample_of_any_step_can_be_drawn_again():
    batch = batch_of(IMAGES)
    images, targets = everything()(batch, step=5)
    for i in (0, 7):  # in a batch of copies of itself
        copies = {name: jnp.stack([value[i]] * 16) for name, value in batch.items()}
        again, target = everything()(copies, step=5)
        assert_same_pictures(again, np.stack([images[i]] * 16))
        np.testing.assert_allclose(target[3], targets[i])
    before = everything()._cache_size()
    other, _ = everything()(batch, step=6)
    assert everything()._cache_size() == before  # one program for all steps
    assert (np.abs(np.asarray(other) - images).max(axis=(1, 2, 3)) > 0.1).mean() > 0.9


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, or XLA_FLAGS for fake ones")
def test_the_result_does_not_depend_on_the_number_of_devices():
    batch = batch_of(IMAGES)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    only_mixed = {"num_classes": 10, "image_size": 16, "mean": MEAN, "std": STD, "mixup": 0.8, "cutmix": 1.0}
    mix = jax.jit(functools.partial(on_device.augment_batch, seed=11, mix_mode="elem", **only_mixed))
    for augment in (everything(), mix):
        expected, expected_targets = augment(batch, step=3)
        images, targets = augment(sharded, step=3)
        assert len(images.sharding.device_set) == 8
        assert_same_pictures(images, expected)
        np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": "resize"}, "did you mean 'resized'"),
        ({"interpolation": "lanczos"}, "unknown interpolation on the device 'lanczos'"),
        ({"crop_scale": (0.0, 1.0)}, "share of the area"),
        ({"crop_padding": -1}, "crop_padding is 0"),
        ({"flip": 1.5}, "flip is a probability"),
        ({"label_smoothing": -0.1}, "label_smoothing is a probability"),
        ({"color_jitter": (0.1, 0.1)}, "color_jitter is one strength or three"),
        ({"rand_augment": "m9"}, "written like 'rand-m9"),
        ({"erase_fill": "noise"}, "unknown erase_fill"),
        ({"erase_area": (0.5, 0.1)}, "random erasing needs"),
        ({"mixup": -1.0}, "mixup is 0"),
        ({"mix_mode": "sample"}, "unknown mix_mode"),
        ({"mean": (0.5,), "std": (0.5,)}, "mean and std have 1 numbers, but the pictures have 3 channels"),
        ({"std": (0.5, 0.5, 0.0)}, "std divides"),
    ],
)
def test_options_that_make_no_sense(wrong, message):
    options = {"num_classes": 10, "image_size": 16, "mean": MEAN, "std": STD} | wrong
    with pytest.raises(UserError, match=message):
        on_device.augment_batch(batch_of(IMAGES[:2]), seed=0, step=0, **options)


def test_color_needs_one_or_three_channels():
    many = batch_of(np.zeros((2, 8, 8, 5), np.uint8))
    options = {"num_classes": 10, "image_size": 8, "mean": (0.5,) * 5, "std": (0.5,) * 5}
    run = functools.partial(on_device.augment_batch, seed=0, flip=True, crop="resized", **options)
    assert jax.eval_shape(run, many, step=0)[0].shape == (2, 8, 8, 5)
    with pytest.raises(UserError, match="know pictures of 1 and 3 channels, but these have 5"):
        on_device.augment_batch(many, seed=0, step=0, color_jitter=0.4, **options)


def test_preprocess_is_data():
    assert replace(Preprocess(), crop_pct=1.0).resized_shape(32, 32) == (224, 224)
