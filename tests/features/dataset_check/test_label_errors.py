"""Confident learning, by hand and as cleanlab does it."""

from __future__ import annotations

import tracemalloc

import numpy as np

from jaxvision.features.dataset_check.label_errors import confident_examples, find_label_errors


def joint(example_of: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Row i and column j: the number of images with the label i that are confident examples of class j."""
    table = np.zeros((label.max() + 1,) * 2, int)
    np.add.at(table, (label[example_of >= 0], example_of[example_of >= 0]), 1)
    return table


def test_a_joint_by_hand() -> None:
    # The thresholds are the mean probabilities of the own class: (0.9 + 0.7 + 0.9 + 0.9 + 0.1) / 5 = 0.7 for class 0,
    # and (0.9 + 0.8 + 0.9 + 0.9 + 0.5) / 5 = 0.8 for class 1.
    of_class_0 = np.array([0.9, 0.7, 0.9, 0.9, 0.1, 0.1, 0.2, 0.1, 0.1, 0.5])
    probabilities, label = np.stack([of_class_0, 1 - of_class_0], axis=1), np.repeat([0, 1], 5)
    example_of = confident_examples(probabilities, label)
    # Row 4 is labeled 0 and a confident example of class 1; the last row is a confident example of neither.
    assert example_of.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1, -1]
    assert joint(example_of, label).tolist() == [[4, 1], [0, 4]]
    errors = find_label_errors(probabilities, label)
    assert (errors.row.tolist(), errors.suggested.tolist()) == ([4], [1])
    np.testing.assert_allclose(errors.margin, [0.8])
    assert errors.estimated == 1  # (1 / 5 of the 5 images of class 0) + (0 of class 1)


def test_cleanlab_finds_the_same() -> None:
    """The numbers are those of cleanlab 2.9.0 for these probabilities.

    ``find_label_issues(label, p, filter_by="confident_learning", return_indices_ranked_by="normalized_margin")``,
    ``compute_confident_joint(label, p, calibrate=False)`` and
    ``num_label_issues(label, p, estimation_method="off_diagonal_calibrated")``.
    """
    rng = np.random.default_rng(0)
    true = np.arange(120) % 3
    label, wrong = true.copy(), rng.choice(120, 12, replace=False)
    label[wrong] = (label[wrong] + 1) % 3
    logits = rng.normal(size=(120, 3))
    logits[np.arange(120), true] += 1.5
    p = np.exp(logits)
    p /= p.sum(axis=1, keepdims=True)
    errors = find_label_errors(p, label)
    assert errors.row.tolist() == [8, 70, 20, 56, 95, 86, 78, 42, 113, 4, 61, 16, 30, 55, 1, 21, 66]
    assert joint(confident_examples(p, label), label).tolist() == [[24, 3, 5], [3, 21, 1], [2, 3, 22]]
    assert abs(errors.estimated - 24) <= 1  # cleanlab rounds each cell of the joint


def test_nothing_is_found_among_certain_labels() -> None:
    label = np.arange(30) % 3
    errors = find_label_errors(np.eye(3)[label] * 0.9 + 0.1 / 3, label)
    assert (len(errors.row), errors.estimated) == (0, 0)


def test_classes_with_few_images_are_not_judged() -> None:
    label = np.array([0] * 6 + [1] * 6 + [2] * 4)
    probabilities = np.eye(3)[np.array([0] * 6 + [1] * 6 + [0] * 4)] * 0.9 + 0.1 / 3
    assert len(find_label_errors(probabilities, label).row) == 0


def test_the_memory_does_not_grow_with_the_square_of_the_classes() -> None:
    """One image shows another class than its label says; of all other classes but two there are no images."""
    label, classes = np.repeat([0, 199_999], 6), 200_000
    probabilities = np.zeros((12, classes), np.float32)
    probabilities[np.arange(12), [*label[:11], 0]] = 1
    tracemalloc.start()
    errors = find_label_errors(probabilities, label)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (errors.row.tolist(), errors.suggested.tolist(), errors.estimated) == ([11], [0], 1)
    assert peak < 2**28
