"""The linear probe: the optimum, its cross-validation, and the head that it becomes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_predict
from support.against_timm import assert_close, random_model

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.errors import UserError
from jaxvision.features import fit_probe, with_head
from jaxvision.features.probe import cross_validated_probabilities, fold_of

IRIS, LABEL = load_iris(return_X_y=True)
IRIS = IRIS.astype(np.float32) * [1, 10, 1, 2] + 5  # so that standardization matters


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("regularization", [1.0, 0.01])
def test_the_gradient_vanishes(classes: int, regularization: float) -> None:
    """Mean cross entropy + regularization / 2 · ‖W‖² has its minimum where the gradient in W and in the bias is 0."""
    rows = classes > LABEL
    x, y = IRIS[rows], LABEL[rows]
    probe = fit_probe(x, y, classes, regularizations=[regularization])
    residual = probe.probabilities(x) - np.eye(classes)[y]
    standardized, weight = (x - x.mean(0)) / x.std(0), probe.weight * x.std(0)[:, None]
    gradient = standardized.T @ residual / len(x) + regularization * weight
    assert np.abs(gradient).max() < 2e-4
    assert np.abs(residual.mean(axis=0)).max() < 2e-4
    assert np.abs(weight).max() > 0.05


def test_cross_validation_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = fit_probe(IRIS, LABEL, 3, regularizations=[0.01])
    fold = fold_of(LABEL, 5)
    # 30 images are in each fold, ten of each class.
    assert np.unique(fold, return_counts=True)[1].tolist() == [30] * 5
    assert all(np.bincount(LABEL[fold == part]).tolist() == [10, 10, 10] for part in range(5))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (120 * 0.01), tol=1e-8, max_iter=1000))
    wanted = cross_val_predict(reference, IRIS, LABEL, cv=PredefinedSplit(fold), method="predict_proba")
    np.testing.assert_allclose(probe.cross_validated_probabilities, wanted, atol=2e-3)
    assert probe.accuracy == pytest.approx((wanted.argmax(axis=1) == LABEL).mean())
    assert probe.standard_error == pytest.approx(np.sqrt(probe.accuracy * (1 - probe.accuracy) / 150), rel=0.2)


def test_the_lowest_loss_decides() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(80) % 2
    noisy = rng.normal(size=(80, 60)) + 0.4 * label[:, None] * (np.arange(60) < 8)
    probe = fit_probe(noisy, label, 2)
    losses = {point.regularization: point.loss for point in probe.curve}
    assert probe.regularization == min(losses, key=lambda each: losses[each])
    assert probe.regularization > 1e-3  # weaker ones overfit, and the path ends before the last of them
    assert len(probe.curve) < 11


def test_classes_with_few_images() -> None:
    values = np.eye(12, dtype=np.float32)[np.repeat(np.arange(12), 2)]
    probe = fit_probe(values, np.repeat(np.arange(12), 2), 12)  # more classes than folds, two images of each
    assert (probe.folds, probe.accuracy) == (2, 1.0)
    assert probe.standard_error == pytest.approx(np.sqrt(25 / 26 * 1 / 26 / 24))  # not 0
    one_each = fit_probe(np.eye(3, dtype=np.float32), np.arange(3), 3)
    assert one_each.folds == 0
    assert np.isnan(one_each.accuracy)
    assert one_each.probabilities(np.eye(3)).argmax(axis=1).tolist() == [0, 1, 2]
    # Class 1 has a single image, which a fit without it cannot know; class 3 has none.
    label = np.array([0, 0, 0, 1, 2, 2, 2])
    lonely = fit_probe(np.eye(4, dtype=np.float32)[label], label, 4)
    assert lonely.accuracy == pytest.approx(6 / 7)
    assert lonely.probabilities(np.eye(4))[:3].argmax(axis=1).tolist() == [0, 1, 2]
    assert lonely.probabilities(np.eye(4))[:, 3].max() < 1e-6


def test_constant_features_have_no_weight() -> None:
    values = np.concatenate([IRIS, np.full((150, 1), 7.0, np.float32)], axis=1)
    probe = fit_probe(values, LABEL, 3, regularizations=[0.01])
    assert probe.weight[4].tolist() == [0, 0, 0]
    assert np.isfinite(probe.bias).all()


def test_a_feature_that_is_almost_constant_decides_nothing() -> None:
    """Its standard deviation among a few images says nothing about new images."""
    rng = np.random.default_rng(0)
    label = np.arange(12) % 2
    values = np.stack([2.0 * label + rng.normal(size=12) / 4, 1e-4 * rng.random(12)], axis=1)
    probe = fit_probe(values, label, 2)
    new = np.array([[0.0, 1.0], [2.0, 1.0]])  # the second feature is 10,000 times what it was before
    assert probe.probabilities(new).argmax(axis=1).tolist() == [0, 1]


def test_the_path_ends_when_nothing_changes() -> None:
    probe = fit_probe(IRIS, LABEL, 3, regularizations=[0.1, 0.1, 0.1, 0.1])  # each fit starts at its own optimum
    assert len(probe.curve) == 3


def test_only_a_part_is_held_out_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxvision.features.probe.LARGE", 100)
    probe = fit_probe(IRIS, LABEL, 3)
    held = probe.held_out
    assert (probe.folds, len(np.unique(held))) == (1, 30)
    assert probe.cross_validated_probabilities.shape == (30, 3)
    predicted = probe.cross_validated_probabilities.argmax(axis=1)
    assert probe.accuracy == pytest.approx((predicted == LABEL[held]).mean())
    # A check of labels needs all of them. Those of the held-out fifth agree but for the start of the fit.
    probabilities = cross_validated_probabilities(IRIS, LABEL, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), np.ones(150), rtol=1e-5)
    np.testing.assert_allclose(probabilities[held], probe.cross_validated_probabilities, atol=0.02)


def test_a_fit_that_is_too_large_is_refused() -> None:
    label = np.arange(80_000) % 30_000
    fix = r"30,000 classes, for which a fit takes about 19\.2 GB, expected at most 16\.0 GB\. Take fewer images\."
    with pytest.raises(UserError, match=rf"probe: got 80,000 images and {fix}"):
        fit_probe(np.zeros((80_000, 1), np.float32), label, 30_000)


def test_refusals() -> None:
    with pytest.raises(UserError, match="got images of one class, expected at least two"):
        fit_probe(IRIS[:10], np.zeros(10, int), 3)
    with pytest.raises(UserError, match="folds: got 1, expected 2 or more"):
        fit_probe(IRIS, LABEL, 3, folds=1)
    broken = IRIS.copy()
    broken[3, 1], broken[7] = np.nan, np.inf
    with pytest.raises(UserError, match="got features that are NaN or infinite for 2 of 150 images, expected finite"):
        fit_probe(broken, LABEL, 3)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_vit",
        "test_efficientnet",
        pytest.param("deit_tiny_distilled_patch16_224", marks=pytest.mark.slow),  # the mean of two heads
        pytest.param("resnetv2_50x1_bit", marks=pytest.mark.slow),
    ],
)
def test_the_head_has_the_logits_of_the_probe(name: str) -> None:
    model = random_model(name, num_classes=7, image_size=32)
    x = np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype(np.float32)
    features = jax.jit(lambda model, x: model.forward_head(model.forward_features(x), pre_logits=True))(model, x)
    probe = fit_probe(np.asarray(features), np.arange(6) % 3, 3, regularizations=[0.1])
    before = Classifier(model, tuple("abcdefg"), Preprocess(image_size=32))
    after = with_head(before, probe, ["x", "y", "z"], Preprocess(image_size=64))
    probabilities = after.to_probabilities(jax.jit(lambda model, x: model(x))(after.model, x))
    assert_close(probabilities, probe.probabilities(np.asarray(features)), 1e-4)
    assert (after.classes, after.preprocess.image_size) == (("x", "y", "z"), 64)
    assert before.model.num_classes == 7  # the given model is unchanged
