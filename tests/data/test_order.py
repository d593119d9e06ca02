"""The order of the images: permutations without a table, the same everywhere, and as even as random ones."""

from __future__ import annotations

import math
import time
import tracemalloc

import numpy as np
import pytest

from jaxvision.data import order


def epoch_order(n: int, *, seed: int, epoch: int) -> np.ndarray:
    return order.shuffle(np.arange(n), n, seed=seed, epoch=epoch)


@pytest.mark.parametrize("sizes", [range(1, 200), (1023, 1024, 1025), (65_535, 65_536, 65_537, 99_991, 100_000)])
def test_each_epoch_is_a_permutation_of_all_images(sizes):
    for n in sizes:
        for epoch in (0, 1):
            counts = np.bincount(epoch_order(n, seed=n, epoch=epoch), minlength=n)
            assert (counts == 1).all(), n
            assert len(counts) == n


def test_each_epoch_and_seed_has_another_order():
    orders = [epoch_order(1000, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert (orders[a] == orders[b]).mean() < 0.02
        assert abs(np.corrcoef(orders[a], orders[b])[0, 1]) < 0.15
        gaps = (orders[a] - orders[b]) % 1000  # a shifted copy of an order would have one gap
        assert np.bincount(gaps).max() < 10
    np.testing.assert_array_equal(orders[0], epoch_order(1000, seed=0, epoch=0))


def splitmix(x):
    """Returns the output function of SplitMix64, with Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_the_order_is_the_same_on_every_machine_and_version():
    """Compares with the definition in Python's integers. Another order would break every run that resumes."""
    # The first outputs of the generator for the seed 1234567, as published on Rosetta Code.
    outputs = [splitmix((1234567 + i * 0x9E3779B97F4A7C15) % 2**64) for i in (1, 2)]
    assert outputs == [6457827717110365317, 3203168211198807973]
    for n, seed, epoch in [(1, 0, 0), (2, 3, 1), (12, 7, 3), (1000, 2**40, 2**20), (10**9 + 7, 1, 0)]:
        keys = [int(key) for key in np.random.Philox(key=[seed, epoch << 32]).random_raw(12)]
        a = math.isqrt(n - 1) + 1
        b = math.ceil(n / a)
        for position in range(0, n, max(n // 20, 1)):
            x = position
            while True:
                right, left = x // a, x % a
                for left_key, right_key in zip(keys[::2], keys[1::2], strict=True):
                    left = (left + splitmix(right ^ left_key)) % a
                    right = (right + splitmix(left ^ right_key)) % b
                x = left + a * right
                if x < n:
                    break
            assert order.shuffle(np.array([position]), n, seed=seed, epoch=epoch).tolist() == [x]


@pytest.mark.parametrize("n", [2, 5, 31])
def test_every_image_is_equally_frequent_at_every_position(n):
    """Chi-squared of (position, index) over 1,000 epochs, within five standard deviations."""
    counts, epochs = np.zeros((n, n)), 1000
    for epoch in range(epochs):
        counts[np.arange(n), epoch_order(n, seed=11, epoch=epoch)] += 1
    expected, freedom = epochs / n, (n - 1) ** 2
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi2 - freedom) < 5 * math.sqrt(2 * freedom)


def test_batches_mix_classes_as_a_random_order_does():
    """Images are listed by class. The number of one class in a batch has the variance of a draw without replacement."""
    n, classes, batch = 50_000, 10, 100
    labels = np.arange(n) * classes // n
    drawn = labels[epoch_order(n, seed=5, epoch=1)].reshape(-1, batch)
    counts = np.stack([(drawn == c).sum(1) for c in range(classes)], 1)
    share = 1 / classes
    variance = batch * share * (1 - share) * (n - batch) / (n - 1)
    # 500 batches of ten classes: the estimate has a standard deviation of about 3 %.
    assert counts.mean() == batch * share
    assert counts.var() == pytest.approx(variance, rel=0.12)
    # Neighbors in the order are independent: no runs of images that lie next to each other in the folder.
    order_ = epoch_order(n, seed=5, epoch=1)
    assert (np.abs(np.diff(order_)) == 1).sum() < 15  # 2 expected
    assert abs(np.corrcoef(order_[1:], order_[:-1])[0, 1]) < 0.02


def test_batches_cross_epochs_without_a_gap():
    seen = np.concatenate([order.batch_indices(10, 4, seed=3, step=s)[1] for s in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    expected = np.concatenate([epoch_order(10, seed=3, epoch=e) for e in range(2)])
    np.testing.assert_array_equal(seen, expected)


def test_rows_of_a_batch_are_those_of_the_whole_batch():
    epochs, indices = order.batch_indices(10, 8, seed=3, step=1)
    for rows in (slice(0, 8), slice(2, 5), slice(7, 8), slice(3, 3)):
        some = order.batch_indices(10, 8, seed=3, step=1, rows=rows)
        assert [x.tolist() for x in some] == [epochs[rows].tolist(), indices[rows].tolist()]


def test_a_batch_larger_than_the_dataset_spans_several_epochs():
    epochs, numbers = order.batch_indices(3, 8, seed=0, step=0)
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(numbers[:3].tolist()) == [0, 1, 2]


def test_a_billion_images_take_no_table():
    """The last batch of an epoch is as near as the first."""
    tracemalloc.start()
    started = time.perf_counter()
    _, indices = order.batch_indices(10**9, 1000, seed=0, step=10**6 - 1)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(indices.tolist())) == 1000
    assert indices.max() < 10**9
    assert peak < 2**20
    assert seconds < 1
