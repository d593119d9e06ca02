"""jaxvision.augment.mixing: against timm and scipy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support import reference
from support.images import image_batch

from jaxvision.augment import mixing, on_device


def run_mix(images, targets, key, **options):
    mask = options.pop("mask", jnp.ones(len(images), bool))
    options = {"mixup": 0.0, "cutmix": 0.0} | options
    mixed, soft = jax.jit(functools.partial(mixing.mix, **options))(images, targets, key, mask=mask)
    return np.asarray(mixed), np.asarray(soft)


def numbered(b=8, h=12, w=16):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(b, h, w, 3)), jnp.float32), jax.nn.one_hot(np.arange(b), b)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_blends_with_the_mirrored_sample(mode):
    images, targets = numbered()
    mixed, soft = run_mix(images, targets, jax.random.key(0), mixup=0.8, mode=mode)
    share = np.diagonal(soft)  # the weight of each sample's own label
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
    shares = np.asarray(mixing.symmetric_beta(u, v, alpha))
    expected = stats.beta(alpha, alpha).rvs(4096, random_state=0)
    # Rounded, because float32 has no numbers between 1 - 6e-8 and 1.
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


def test_a_sample_without_a_partner_is_unchanged():
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
    """Passes our share and our rectangle to timm."""
    import torch

    reference.import_timm()
    from timm.data import mixup as theirs

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 12, 16, 3)).astype(np.uint8)
    options = {"num_classes": 10, "image_size": 12, "mean": (0.5,) * 3, "std": (0.5,) * 3, "label_smoothing": 0.1}
    batch = image_batch(images[:, :, 2:-2])
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
