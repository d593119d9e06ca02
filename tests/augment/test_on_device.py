"""jaxvision.augment.on_device: whole batches, with the options of a config."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.images import image_batch, scene

from jaxvision.augment import on_device
from jaxvision.augment.preprocess import Preprocess
from jaxvision.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def test_everything_is_off_by_default():
    batch = image_batch(IMAGES)
    images, targets = on_device.augment_batch(batch, seed=0, step=0, num_classes=10, image_size=16, mean=MEAN, std=STD)
    np.testing.assert_allclose(images, (IMAGES / 255 - np.array(MEAN)) / STD, atol=1e-6)
    np.testing.assert_array_equal(targets, np.eye(10)[batch["label"]])


def assert_same_images(got, expected):
    """Compares all but the few pixels between two levels, which each compiled program may round differently."""
    different = np.abs(np.asarray(got) - np.asarray(expected)) > 1e-4
    assert different.mean() < 1e-3


def test_any_sample_of_any_step_can_be_reproduced():
    batch = image_batch(IMAGES)
    images, targets = everything()(batch, step=5)
    for i in (0, 7):  # in a batch of copies of itself
        copies = {name: jnp.stack([value[i]] * 16) for name, value in batch.items()}
        again, target = everything()(copies, step=5)
        assert_same_images(again, np.stack([images[i]] * 16))
        np.testing.assert_allclose(target[3], targets[i])
    before = everything()._cache_size()
    other, _ = everything()(batch, step=6)
    assert everything()._cache_size() == before  # one program for all steps
    assert (np.abs(np.asarray(other) - images).max(axis=(1, 2, 3)) > 0.1).mean() > 0.9


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, or XLA_FLAGS for fake ones")
def test_the_result_does_not_depend_on_the_number_of_devices():
    batch = image_batch(IMAGES)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    only_mixed = {"num_classes": 10, "image_size": 16, "mean": MEAN, "std": STD, "mixup": 0.8, "cutmix": 1.0}
    mix = jax.jit(functools.partial(on_device.augment_batch, seed=11, mix_mode="elem", **only_mixed))
    for augment in (everything(), mix):
        expected, expected_targets = augment(batch, step=3)
        images, targets = augment(sharded, step=3)
        assert len(images.sharding.device_set) == 8
        assert_same_images(images, expected)
        np.testing.assert_allclose(targets, expected_targets, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop": "resize"}, "Did you mean 'resized'"),
        ({"interpolation": "lanczos"}, "interpolation: got 'lanczos', expected a filter of the device"),
        ({"crop_scale": (0.0, 1.0)}, "share of the area"),
        ({"crop_padding": -1}, "crop_padding: got -1, expected 0"),
        ({"flip": 1.5}, r"augment\.flip: got 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing: got -0.1"),
        ({"color_jitter": (0.1, 0.1)}, "color_jitter: got .* expected one number or three"),
        ({"rand_augment": "m9"}, "got 'm9', expected a policy such as"),
        ({"erase_fill": "noise"}, "augment.erase_fill"),
        ({"erase_area": (0.5, 0.1)}, r"erase_area: got \(0.5, 0.1\)"),
        ({"mixup": -1.0}, "mixup: got -1.0"),
        ({"mix_mode": "sample"}, "augment.mix_mode"),
        ({"mean": (0.5,), "std": (0.5,)}, "preprocess.mean: got 1 numbers, expected 3"),
        ({"std": (0.5, 0.5, 0.0)}, "std: got .*, expected numbers above 0"),
    ],
)
def test_invalid_options(wrong, message):
    options = {"num_classes": 10, "image_size": 16, "mean": MEAN, "std": STD} | wrong
    with pytest.raises(UserError, match=message):
        on_device.augment_batch(image_batch(IMAGES[:2]), seed=0, step=0, **options)


def test_color_needs_one_or_three_channels():
    many = image_batch(np.zeros((2, 8, 8, 5), np.uint8))
    options = {"num_classes": 10, "image_size": 8, "mean": (0.5,) * 5, "std": (0.5,) * 5}
    run = functools.partial(on_device.augment_batch, seed=0, flip=True, crop="resized", **options)
    assert jax.eval_shape(run, many, step=0)[0].shape == (2, 8, 8, 5)
    with pytest.raises(UserError, match="got images of 5 channels, expected 1 or 3"):
        on_device.augment_batch(many, seed=0, step=0, color_jitter=0.4, **options)


def test_preprocess_can_be_replaced():
    assert replace(Preprocess(), crop_pct=1.0).resized_shape(32, 32) == (224, 224)


def darken(images, *, key, by=0.5):
    """A user's augmentation: each image turns black with probability `by`."""
    b = images.shape[0]
    return images * (jax.random.uniform(key, (b, 1, 1, 1)) >= by)


def test_a_users_augmentation_runs_before_normalization_and_erasing():
    run = functools.partial(on_device.augment_batch, seed=0, num_classes=10, image_size=16, mean=MEAN, std=STD)
    batch = image_batch(IMAGES)
    plain = np.asarray(run(batch, step=1)[0])
    black = -np.array(MEAN) / STD
    own = jax.jit(functools.partial(run, name=darken, by=0.4))
    images = np.asarray(own(batch, step=1)[0])
    dark = np.abs(images - black).max(axis=(1, 2, 3)) < 1e-5
    np.testing.assert_allclose(images[~dark], plain[~dark], atol=1e-6)
    assert 0 < dark.sum() < 16
    assert not np.array_equal(images, own(batch, step=2)[0])  # each step draws again
    np.testing.assert_array_equal(images, own(batch, step=1)[0])
    all_dark, _ = run(batch, step=1, name=darken, by=1.0, erase=1.0)
    erased = np.abs(np.asarray(all_dark) - black).max(-1) > 1e-5
    assert (np.asarray(all_dark)[erased] == 0).all()  # erased after the function, to the mean color
    assert erased.any(axis=(1, 2)).all()


def test_a_users_augmentation_with_wrong_options_or_shapes():
    run = functools.partial(
        on_device.augment_batch, image_batch(IMAGES), seed=0, step=0, num_classes=10, image_size=16, mean=MEAN, std=STD
    )
    with pytest.raises(UserError, match=r"augment.name: .*'strength'"):
        run(name=darken, strength=1)
    with pytest.raises(UserError, match=r"augment\.by: unknown option. Set augment.name"):
        run(by=1)
    with pytest.raises(UserError, match=r"returned images of shape \(16, 8, 16, 3\), expected \(16, 16, 16, 3\)"):
        run(name=lambda images, *, key: images[:, ::2])
