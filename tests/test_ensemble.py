"""Ensembles and test-time augmentation, against averages that are computed by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.optimize import minimize
from sklearn.metrics import log_loss
from support.images import class_folders
from support.quick import quick
from support.weight_files import build

import jaxvision
from jaxvision import cli, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, save_classifier
from jaxvision.ensemble import Ensemble, fit_weights
from jaxvision.errors import UserError
from jaxvision.eval import evaluate, fit_ensemble
from jaxvision.run.workdir import write_config

NAMES = ("cat", "dog", "owl")

forward = jax.jit(lambda model, images: model(images))


def classifier(
    architecture: str = "test_resnet", seed: int = 1, classes: tuple[str, ...] = NAMES, size: int = 32, **facts
) -> Classifier:
    options = {} if architecture != "test_vit" else {"image_size": size, "patch_size": 8}
    model = build(architecture, seed, num_classes=len(classes), **options)
    kind = facts.pop("probabilities", "softmax")
    return Classifier(model, classes, Preprocess(image_size=size, **facts), kind)


def probabilities(member: Classifier, *images: Image.Image) -> np.ndarray:
    """Returns the probabilities of a classifier without the code of ensembles: float [images, classes]."""
    return np.asarray(member.to_probabilities(forward(member.model, member.images(list(images)))))


def photo(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    """Returns an image of a few large blocks, which no flip and no crop leaves as it is."""
    blocks = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)


def predict(ensemble: Ensemble, *images: Image.Image) -> np.ndarray:
    return np.asarray(ensemble.predict(ensemble.images(list(images))))


@pytest.fixture(scope="module")
def three() -> list[Classifier]:
    """Classifiers of three families, image sizes and transforms."""
    return [
        classifier("test_resnet", size=32),
        classifier("test_vit", size=40, mean=(0.5,) * 3, std=(0.5,) * 3),
        classifier("test_efficientnet", size=48, crop_pct=1.0, interpolation="bilinear"),
    ]


def test_an_ensemble_of_one_is_the_model(three):
    for member in three:
        np.testing.assert_allclose(predict(Ensemble([member]), photo()), probabilities(member, photo()), rtol=1e-5)


@pytest.mark.parametrize("weights", [(), (2, 1, 1)])
def test_the_average_over_families_and_sizes(three, weights):
    images = photo(), photo(seed=1)
    each = [probabilities(member, *images) for member in three]
    expected = np.average(each, axis=0, weights=weights or None)
    assert np.ptp(each, axis=0).max() > 0.05  # else any weights would do
    np.testing.assert_allclose(predict(Ensemble(three, weights=weights), *images), expected, rtol=1e-5)


def test_classes_in_another_order_are_reordered():
    member, order = classifier(), [2, 0, 1]
    model = build("test_resnet", 1, num_classes=3)
    model.fc.kernel[...] = model.fc.kernel[...][:, jnp.array(order)]
    model.fc.bias[...] = model.fc.bias[...][jnp.array(order)]
    permuted = Classifier(model, tuple(NAMES[i] for i in order), member.preprocess)
    ensemble = Ensemble([member, permuted])
    assert ensemble.classes == NAMES
    np.testing.assert_allclose(predict(ensemble, photo()), probabilities(member, photo()), rtol=1e-5)
    np.testing.assert_allclose(
        predict(Ensemble([permuted, member]), photo()), probabilities(permuted, photo()), rtol=1e-5
    )


def test_flip_averages_the_image_and_its_mirror_image():
    member, image = classifier("test_vit", crop_pct=1.0), photo(32, 32)
    pair = probabilities(member, image, ImageOps.mirror(image))
    assert np.abs(pair[0] - pair[1]).max() > 1e-4
    np.testing.assert_allclose(predict(Ensemble([member], tta="flip"), image)[0], pair.mean(0), rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_crops_average_ten_views(kind):
    """The ten views of Krizhevsky et al.: corners and center of the square before the crop, and their mirror images."""
    image, member = photo(40, 40), classifier("test_vit", crop_pct=0.8, probabilities=kind)
    corners = [(0, 0), (8, 0), (0, 8), (8, 8), (4, 4)]
    crops = [image.crop((x, y, x + 32, y + 32)) for x, y in corners]
    assert np.ptp(probabilities(member, image, ImageOps.mirror(image)), axis=0).max() > 1e-4
    whole = replace(member, preprocess=replace(member.preprocess, crop_pct=1.0))
    each = probabilities(whole, *crops, *map(ImageOps.mirror, crops))
    np.testing.assert_allclose(each[4], probabilities(member, image)[0], rtol=1e-5)  # the ordinary crop
    np.testing.assert_allclose(predict(Ensemble([member], tta="crops"), image)[0], each.mean(0), rtol=1e-4)


def test_fitted_weights_are_the_most_likely_ones():
    rng = np.random.default_rng(0)
    observed = rng.beta([[2.0], [3.0], [1.0]], 2.0, (3, 500))
    found = fit_weights(observed)
    best = minimize(
        lambda w: -np.log(w @ observed).mean(),
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(found, best.x, atol=1e-4)
    np.testing.assert_allclose(fit_weights(np.array([[0.9, 0.8], [0.1, 0.2]])), [1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            {"classes": ("cat", "dog", "cow")},
            {},
            "got other classes in test_resnet than in the first model .*'cow', 'owl'",
        ),
        ({"probabilities": "sigmoid"}, {}, "got sigmoid probabilities in test_resnet and softmax .* do not mix"),
        ({}, {"weights": (1, 2, 3)}, "weights: got 1, 2, 3, expected 2 numbers"),
        ({}, {"weights": (1, -1)}, "weights: got 1, -1, expected"),
        ({}, {"weights": (0, 0)}, "not all 0"),
        ({}, {"tta": "rotate"}, "tta: got 'rotate', expected one of 'crops', 'flip'"),
        ({"crop_pct": 1.0}, {"tta": "crops"}, "whose transform crops nothing .* Use 'flip'"),
    ],
)
def test_what_does_not_combine(change, options, message):
    with pytest.raises(UserError, match=message):
        Ensemble([classifier(), classifier(**change)], **options)


def test_members_are_needed_and_have_heads():
    with pytest.raises(UserError, match="got no members"):
        Ensemble([])
    with pytest.raises(UserError, match="test_resnet: got weights without a head"):
        Ensemble([Classifier(build("test_resnet", num_classes=0), (), Preprocess(image_size=32))])


DIGITS = tuple("0123456789")


def digits(seed: int, kind: str = "softmax") -> Classifier:
    model = build("test_resnet", seed, num_classes=10, in_channels=1)
    return Classifier(model, DIGITS, Preprocess(image_size=32, crop_pct=1.0, mean=(0.5,), std=(0.25,)), kind)


@pytest.fixture(scope="module")
def test_digits() -> tuple[list[Image.Image], np.ndarray]:
    source = jaxvision.data.open_source("digits").test
    examples = [source[i] for i in range(len(source))]
    return [Image.fromarray(e["image"][..., 0]) for e in examples], np.array([e["label"] for e in examples])


@pytest.mark.parametrize("tta", [None, "flip"])
def test_the_evaluation_of_an_ensemble(tta, test_digits):
    images, labels = test_digits
    ensemble = Ensemble([digits(1), digits(2)], weights=(3, 1), tta=tta)
    found = evaluate(ensemble, "digits", batch_size=128, quiet=True)
    expected = predict(ensemble, *images).astype(np.float64)
    expected /= expected.sum(1, keepdims=True)  # scikit-learn wants all the digits
    assert found["count"] == len(labels)
    assert found["top1"] == pytest.approx((expected.argmax(1) == labels).mean())
    assert found["top5"] == pytest.approx(np.mean([y in np.argsort(-p)[:5] for p, y in zip(expected, labels)]))
    assert found["loss"] == pytest.approx(log_loss(labels, expected, labels=range(10)), rel=1e-4)
    if tta is None:
        for member, metrics in zip(ensemble.members, found["members"], strict=True):
            assert metrics == pytest.approx(evaluate(member, "digits", quiet=True), rel=1e-5)


def test_the_loss_of_sigmoids(test_digits):
    images, labels = test_digits
    ensemble = Ensemble([digits(1, "sigmoid"), digits(2, "sigmoid")])
    p = predict(ensemble, *images).astype(np.float64)
    expected = -np.where(np.eye(10, dtype=bool)[labels], np.log(p), np.log(1 - p)).mean()
    assert evaluate(ensemble, "digits", quiet=True)["loss"] == pytest.approx(expected, rel=1e-4)


def test_fitting_on_a_dataset_prefers_the_better_model():
    good = digits(1)
    bad = digits(1)
    bad.model.fc.kernel[...] = -good.model.fc.kernel[...]
    options = {"validation_fraction": 0.2, "quiet": True}
    fitted = fit_ensemble(Ensemble([good, bad]), "digits", **options)
    losses = [evaluate(member, "digits", split="validation", **options)["loss"] for member in (good, bad)]
    assert np.argmax(fitted.weights) == np.argmin(losses)
    ensemble = evaluate(fitted, "digits", split="validation", **options)
    assert ensemble["loss"] <= min(losses) + 1e-4  # because each member alone is among the mixtures


# The commands


def saved(folder: Path, member: Classifier) -> str:
    return str(save_classifier(folder, member))


def command(capsys: pytest.CaptureFixture, *arguments: object, status: int = 0) -> str:
    found = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert found == status, err
    return out if status == 0 else err


def test_predict_with_several_models(tmp_path, capsys, three):
    photo().save(tmp_path / "a.png")
    models = [part for i, member in enumerate(three) for part in ("-m", saved(tmp_path / str(i), member))]
    out = command(capsys, "predict", *models, "--weights", "2,1,1", "--tta", "flip", "--json", tmp_path / "a.png")
    found = {row["label"]: row["probability"] for row in json.loads(out)["predictions"]}
    expected = predict(Ensemble(three, weights=(2, 1, 1), tta="flip"), photo())[0]
    assert [found[name] for name in NAMES] == pytest.approx(expected.tolist(), rel=1e-5)


def test_evaluate_prints_each_model_and_the_ensemble(tmp_path, capsys):
    a, b = (saved(tmp_path / name, digits(seed)) for name, seed in (("a", 1), ("b", 2)))
    arguments = ["evaluate", "-m", a, "-m", b, "--data", "digits", "--option", "validation_fraction=0.2"]
    out = command(capsys, *arguments, "--fit-weights", "--report", tmp_path / "report")
    rows = [line.split() for line in out.splitlines() if "%" in line]
    assert [row[0] for row in rows if row[0] in (a, b, "ensemble")] == [a, b, "ensemble"]
    assert re.search(r"weights fitted on 287 images of the validation data: .*/a [01]\.\d+, .*/b [01]\.\d+", out)
    assert "explanations are those of its first model" in (tmp_path / "report" / "report.html").read_text()
    found = json.loads(command(capsys, *arguments, "--weights", "1,0", "--json"))
    first, second = found.pop("members")
    assert (first["model"], first["weight"], second["weight"]) == (a, 1.0, 0.0)
    assert found == pytest.approx({key: first[key] for key in found}, rel=1e-5)


def test_attention_shows_each_model(tmp_path, capsys, three):
    photo().save(tmp_path / "a.png")
    models = [part for i, member in enumerate(three) for part in ("-m", saved(tmp_path / str(i), member))]
    out = command(capsys, "attention", *models, tmp_path / "a.png", "-o", tmp_path / "map.png")
    best = predict(Ensemble(three), photo())[0]
    label = NAMES[best.argmax()]
    assert f"predicted {label!r} ({best.max():.1%}), Grad-CAM for {label!r}" in out
    assert "attention rollout" in out
    with Image.open(tmp_path / "map.png") as image:
        width, height = image.size
    assert width == 4 * height  # the image, and a map of each model


def test_errors_of_the_commands(tmp_path, capsys):
    photo().save(tmp_path / "a.png")
    a = saved(tmp_path / "a", classifier())
    pair = ["-m", a, "-m", a]
    for arguments, message in [
        (["--checkpoint", a], "--checkpoint: got 2 models, expected one. Convert"),
        (["--weights", "1,x"], "--weights: got '1,x', expected numbers such as 2,1,1"),
        (["--tta", "turn"], "tta: got 'turn', expected one of"),
    ]:
        assert message in command(capsys, "predict", *pair, *arguments, tmp_path / "a.png", status=2)
    for arguments, message in [
        (["--split", "validation"], "--fit-weights: got --split validation, expected other images to evaluate on"),
        (["--split", "val"], "--fit-weights: got --split val, expected other images"),
        (["--weights", "1,2"], "--fit-weights: got --weights, expected several models and no --weights"),
    ]:
        arguments = ["--data", "digits", "--fit-weights", *arguments]
        assert message in command(capsys, "evaluate", *pair, *arguments, status=2)


def test_weights_are_not_fitted_to_the_images_that_they_are_evaluated_on(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", NAMES, each=2)
    pair = [part for i in range(2) for part in ("-m", saved(tmp_path / str(i), classifier(seed=i)))]
    arguments = ["evaluate", *pair, "--fit-weights", "--data"]
    assert "photos, which has no folders val/ and test/" in command(capsys, *arguments, photos, status=2)
    for i, split in enumerate(("val", "test")):
        class_folders(tmp_path / "splits" / split, NAMES, each=2, seed=100 * i)
    assert "weights fitted on 6 images of the validation data" in command(capsys, *arguments, tmp_path / "splits")
    runs = []
    for i in range(2):  # without test data they are evaluated on their validation data
        source = {"name": "folder", "data_dir": str(photos), "test_fraction": 0.0, "validation_fraction": 0.5}
        saved(tmp_path / f"run{i}" / "export", classifier(seed=i))
        write_config(tmp_path / f"run{i}", run.complete(quick("resnet", source=source)))
        runs += ["-m", tmp_path / f"run{i}"]
    assert "--fit-weights: got no test data" in command(capsys, "evaluate", *runs, "--fit-weights", status=2)


def test_runs_with_other_splits_are_not_mixed(tmp_path, capsys):
    """The test data of one run could be training data of the other."""
    for name, seed in (("a", 0), ("b", 1)):
        saved(tmp_path / name / "export", digits(1))
        write_config(tmp_path / name, run.complete(quick("resnet", source={"name": "digits", "split_seed": seed})))
    models = ["-m", tmp_path / "a", "-m", tmp_path / "b"]
    message = f"{tmp_path / 'b'} has another source or split of it than {tmp_path / 'a'}"
    assert message in command(capsys, "evaluate", *models, status=2)
    assert "ensemble of 2" in command(capsys, "evaluate", *models, "--data", "digits")


def test_images_that_any_of_the_runs_was_trained_on(tmp_path, capsys):
    for name in NAMES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            photo(seed=i).save(tmp_path / "photos" / name / f"{i}.png")
    for run_name, fraction in (("a", 0.5), ("b", 0.2)):
        saved(tmp_path / run_name / "export", classifier())
        source = {"name": "folder", "data_dir": str(tmp_path / "photos"), "test_fraction": fraction}
        write_config(tmp_path / run_name, run.complete(quick("resnet", source=source)))
    models = ["-m", tmp_path / "a", "-m", tmp_path / "b"]
    out = " ".join(command(capsys, "evaluate", *models, "--data", tmp_path / "photos").split())
    trained_on = int(re.search(r"(\d+) of the 30 images .* were trained on", out)[1])
    assert trained_on >= 24  # those of b, and those of a that b has held out
