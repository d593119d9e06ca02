"""Averages of weights, against averages that are computed by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from support.images import class_folders
from support.quick import quick
from support.weight_files import arrays, assert_same, build

from jaxvision import cli, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.data import ArraySource, Splits
from jaxvision.errors import UserError
from jaxvision.eval import measure_statistics
from jaxvision.run.origin import load_origin
from jaxvision.run.soup import SoupData, average_runs, average_with_origin
from jaxvision.run.workdir import write_config
from jaxvision.soup import greedy_soup, soup, with_head_of
from jaxvision.weights import hub, imagenet

DIGITS = tuple("0123456789")


def digits(seed: int, architecture: str = "test_resnet", **options) -> Classifier:
    model = build(architecture, seed, num_classes=10, in_channels=1, **options)
    return Classifier(model, DIGITS, Preprocess(image_size=32, crop_pct=1.0, mean=(0.5,), std=(0.25,)))


@pytest.mark.parametrize(("weights", "share"), [((), 0.5), ((1, 3), 0.25)])
def test_the_average_of_all_weights(weights, share):
    a, b = digits(1), digits(2)
    before = arrays(a.model)
    found = arrays(soup([a, b], weights).model)
    for name, x in arrays(a.model).items():
        expected = share * x.astype(np.float64) + (1 - share) * arrays(b.model)[name]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6, atol=1e-7, err_msg=name)
    assert_same(arrays(a.model), before)  # the members are as they were
    assert any(name.endswith(".var") for name in found)


def test_the_soup_of_equal_models_is_the_model():
    member = digits(1)
    assert_same(arrays(soup([member, digits(1), digits(1)]).model), arrays(member.model))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (digits(1, "test_vit", image_size=32, patch_size=8), "got test_vit with the options .* and test_resnet"),
        (replace(digits(1), classes=DIGITS[::-1]), "got models with other classes"),
        (replace(digits(1), probabilities="sigmoid"), r"\(10 classes, sigmoid, and 10 classes, softmax\)"),
    ],
)
def test_what_does_not_average(other, message):
    with pytest.raises(UserError, match=message):
        soup([digits(1), other])


def test_another_transform_is_logged(caplog):
    other = digits(2)
    soup([digits(1), replace(other, preprocess=replace(other.preprocess, crop_pct=0.9))])
    assert "it has that of the first" in caplog.text


def bias(classifier: Classifier) -> float:
    return float(classifier.model.fc.bias[0])


def test_the_greedy_recipe():
    """Recipe 1 of Wortsman et al. 2022, with an accuracy that only the bias of the head decides."""
    members = [digits(1) for _ in range(4)]
    for member, value in zip(members, (3.0, 1.0, 8.0, 0.0), strict=True):
        member.model.fc.bias[...] = np.full(10, value, np.float32)
    tried = []

    def score(classifier: Classifier) -> float:
        tried.append(bias(classifier))
        return -abs(bias(classifier) - 2)

    result, chosen = greedy_soup(members, score)
    # 3 and 1 are equally good, so the first is taken. (3 + 1) / 2 is better and kept; with 0, then with 8, it is worse.
    assert tried == pytest.approx([3, 1, 8, 0, 2, 4 / 3, 4])
    assert chosen == [0, 1]
    assert bias(result) == 2.0


def images(n: int = 64) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 1), dtype=np.uint8)
    return ArraySource(pixels, np.arange(n) % 10, classes=DIGITS, name="noise")


def test_statistics_are_those_of_the_layers_input():
    """The first BatchNorm of an EfficientNet normalizes the output of its first convolution."""
    member, data = digits(1, "test_efficientnet"), images()
    found = measure_statistics(member, data, batch_size=64, quiet=True)
    x = (np.stack([data[i]["image"] for i in range(64)]) / 255 - 0.5) / 0.25
    seen = np.asarray(member.model.conv_stem(x.astype(np.float32))).reshape(-1, member.model.bn1.mean[...].shape[0])
    np.testing.assert_allclose(found.model.bn1.mean[...], seen.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.model.bn1.var[...], seen.var(0, ddof=1), rtol=1e-3)
    changed = {name for name, x in arrays(found.model).items() if not np.array_equal(x, arrays(member.model)[name])}
    assert changed
    assert all(name.endswith((".mean", ".var")) for name in changed)
    # Two batches give the mean of their statistics, so that of the means is the same.
    two = measure_statistics(member, data, batch_size=32, quiet=True)
    np.testing.assert_allclose(two.model.bn1.mean[...], seen.mean(0), rtol=1e-4, atol=1e-4)


class HalfDamaged(ArraySource):
    """Images of which every second one cannot be read."""

    def __getitem__(self, index):
        if index % 2:
            raise OSError("damaged")
        return super().__getitem__(index)


def test_damaged_images_do_not_count():
    member, data = digits(1), images(128)
    damaged = HalfDamaged(data.images, data.labels, classes=DIGITS, name="noise")
    with pytest.raises(UserError, match="got 11 damaged images"):
        measure_statistics(member, damaged, quiet=True)
    found = measure_statistics(member, damaged, batch_size=128, max_corrupt=64, quiet=True)
    intact = ArraySource(data.images[::2].repeat(2, 0), data.labels, classes=DIGITS, name="intact")
    expected = arrays(measure_statistics(member, intact, batch_size=128, quiet=True).model)
    for name, x in arrays(found.model).items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_soup_skips_as_many_damaged_images_as_its_run():
    data = images(128)
    damaged = HalfDamaged(data.images, data.labels, classes=DIGITS, name="noise")
    of_run = SoupData(Splits(train=damaged), {"max_corrupt": 64})
    notes: list[str] = []
    average_runs(["a", "b"], [digits(1), digits(2)], of_run, greedy=False, log=notes.append)
    assert notes == ["BatchNorm statistics: measured again on training images"]


def test_a_model_without_batch_norm_has_no_statistics():
    member = digits(1, "test_vit", image_size=32, patch_size=8)
    assert measure_statistics(member, images(), quiet=True) is member


# The command


def saved(workdir: Path, member: Classifier, **sections: dict) -> Path:
    """Returns a workdir with a result and a config, without training."""
    save_classifier(workdir / "export", member)
    config = quick("resnet", **{"source": {"validation_fraction": 0.2}, **sections})
    config.model.name = member.model.architecture
    write_config(workdir, run.complete(config))
    return workdir


def command(capsys: pytest.CaptureFixture, *arguments: object, status: int = 0) -> str:
    found = cli.main(["soup", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert found == status, err
    return out if status == 0 else err


def test_the_command_averages_and_compares(tmp_path, capsys):
    a, b = saved(tmp_path / "a", digits(1)), saved(tmp_path / "b", digits(2))
    out = command(capsys, a, b, "-o", tmp_path / "soup")
    assert "BatchNorm statistics: measured again on training images" in out
    rows = [line.split("  ")[1].strip() for line in out.splitlines() if line.count("%") >= 2]
    assert rows == [str(a), str(b), "ensemble of 2", "soup of 2"]
    found = arrays(load_classifier(tmp_path / "soup").model)
    for name, x in arrays(soup([digits(1), digits(2)]).model).items():
        if not name.endswith((".mean", ".var")):
            np.testing.assert_array_equal(found[name], x, err_msg=name)
    message = "1 more of its outputs exist already. Choose another output, or add --overwrite"
    assert message in command(capsys, a, b, "-o", tmp_path / "soup", status=2)


def of_photos(workdir: Path, seed: int, photos: Path, **source: object) -> Path:
    model = build("test_vit", seed, num_classes=2, image_size=32, patch_size=8)
    own = {"name": "folder", "data_dir": str(photos), "validation_fraction": None, **source}
    return saved(workdir, Classifier(model, ("cat", "dog"), Preprocess(image_size=32)), source=own)


def test_the_folder_of_the_runs_is_split_as_theirs(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", ["cat", "dog"], each=10)
    runs = [of_photos(tmp_path / name, i, photos, test_fraction=0.5, split_seed=3) for i, name in enumerate("ab")]
    (tmp_path / "link").symlink_to(photos)
    expected = command(capsys, *runs, "-o", tmp_path / "soup")
    found = command(capsys, *runs, "-o", tmp_path / "soup", "--overwrite", "--data", tmp_path / "link")
    assert found == expected
    assert "trained on" not in expected
    other = of_photos(tmp_path / "other", 5, photos, test_fraction=0.5, split_seed=4)
    out = command(capsys, runs[0], other, "-o", tmp_path / "soup", "--overwrite", "--data", photos)
    assert re.search(r"test data: \d of the 10 images \(\d0%\) were trained on", " ".join(out.split()))


def test_without_the_images_of_the_runs_there_is_no_comparison(tmp_path, capsys):
    photos = class_folders(tmp_path / "photos", ["cat", "dog"])
    a, b = (of_photos(tmp_path / name, i, photos) for i, name in enumerate("ab"))
    photos.rename(tmp_path / "moved")
    for arguments, flag in [((a, b, "--greedy"), "--greedy"), ((a, "--wise", "sweep"), "--wise sweep")]:
        message = command(capsys, *arguments, "-o", tmp_path / "soup", status=2)
        assert f"{flag}: cannot open the data of the runs (source.data_dir: got " in message
    assert not (tmp_path / "soup").exists()
    out = " ".join(command(capsys, a, b, "-o", tmp_path / "soup").split())
    assert "the soup is not compared with the runs: cannot open the data" in out
    assert load_classifier(tmp_path / "soup").classes == ("cat", "dog")
    moved = f"data_dir={tmp_path / 'moved'}"
    assert "soup of 2" in command(capsys, a, b, "-o", tmp_path / "soup", "--overwrite", "--option", moved)


def test_greedy_keeps_what_does_no_harm(tmp_path, capsys):
    a, b = saved(tmp_path / "a", digits(1)), saved(tmp_path / "b", digits(1))
    out = command(capsys, a, b, "-o", tmp_path / "soup", "--greedy")
    assert "on the validation data" in out
    assert f"greedy soup of {a}, {b}" in out  # equal models: the second does not lower the accuracy
    assert_same(
        {
            k: x
            for k, x in arrays(load_classifier(tmp_path / "soup").model).items()
            if not k.endswith((".mean", ".var"))
        },
        {k: x for k, x in arrays(digits(1).model).items() if not k.endswith((".mean", ".var"))},
    )


def test_runs_with_a_frozen_backbone_keep_its_statistics(tmp_path, capsys):
    first, other = digits(1), digits(2)
    second = replace(first, model=with_head_of(first.model, other.model))
    a, b = saved(tmp_path / "a", first), saved(tmp_path / "b", second)
    out = command(capsys, a, b, "-o", tmp_path / "soup")
    assert "BatchNorm statistics: kept, because all models have the same" in out
    found = arrays(load_classifier(tmp_path / "soup").model)
    for name, x in arrays(first.model).items():
        if name.startswith("fc."):
            np.testing.assert_allclose(found[name], (x + arrays(other.model)[name]) / 2, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_wise_ft_keeps_the_head_and_moves_the_rest(tmp_path, capsys):
    """The origin has another head, so only the other layers are averaged with it."""
    start, end = build("test_resnet", 3, num_classes=10, in_channels=1), digits(1)
    save_classifier(tmp_path / "start", Classifier(start, tuple("abcdefghij"), end.preprocess))
    workdir = saved(tmp_path / "run", end, model={"checkpoint_path": str(tmp_path / "start")})
    command(capsys, workdir, "-o", tmp_path / "wise", "--wise", "0.25", "--data", "digits")
    found = arrays(load_classifier(tmp_path / "wise").model)
    for name, x in arrays(end.model).items():
        if name.startswith("fc."):
            np.testing.assert_array_equal(found[name], x, err_msg=name)
        elif not name.endswith((".mean", ".var")):
            expected = 0.25 * x + 0.75 * arrays(start)[name]
            np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_sweep_takes_the_run_itself_if_nothing_is_better(tmp_path, capsys):
    member = digits(1, "test_vit", image_size=32, patch_size=8)
    save_classifier(tmp_path / "start", member)
    model = {"name": "test_vit", "patch_size": 8, "checkpoint_path": str(tmp_path / "start")}
    workdir = saved(tmp_path / "run", member, model=model)
    out = command(capsys, workdir, "-o", tmp_path / "wise", "--wise", "sweep", "--batch-size", 256)
    assert [f"alpha {i / 10:.1f} on the validation data" in out for i in range(11)] == [True] * 11
    assert out.splitlines()[-1].endswith("alpha 1, in timm's format")
    assert_same(arrays(load_classifier(tmp_path / "wise").model), arrays(member.model))


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_of_wise_ft_are_the_models_themselves(alpha, tmp_path):
    start, end = digits(3), digits(1)
    save_classifier(tmp_path / "start", start)
    workdir = saved(tmp_path / "run", end, model={"checkpoint_path": str(tmp_path / "start")})
    data = SoupData(Splits(train=images()), {})
    name, result = average_with_origin(str(workdir), end, alpha, data, log=print)
    assert name == f"alpha {alpha}"
    assert_same(arrays(result.model), arrays((end if alpha else start).model))  # with its statistics


def test_an_origin_with_the_same_classes_has_its_own_head(tmp_path):
    start, end = digits(3), digits(1)
    save_classifier(tmp_path / "start", start)
    workdir = saved(tmp_path / "run", end, model={"checkpoint_path": str(tmp_path / "start")})
    assert_same(arrays(load_origin(workdir, end).model), arrays(start.model))


@pytest.mark.parametrize(
    ("start", "classes", "head_init", "is_kept"),
    [
        ("local-dir", DIGITS, "probe", True),
        ("local-dir", DIGITS[::-1], None, False),
        ("file", DIGITS, None, True),  # which names no classes, but training started with its head
        ("file", DIGITS, "probe", False),
        ("file", DIGITS[:9], None, False),
        ("catalog", imagenet.synsets(), "probe", True),
        ("catalog", imagenet.class_names(), "probe", True),
        ("catalog", imagenet.synsets()[::-1], None, False),
        ("catalog", tuple(map(str, range(1000))), None, False),
    ],
)
def test_an_origin_keeps_a_head_for_the_classes_of_the_run(start, classes, head_init, is_kept, tmp_path, monkeypatch):
    weights = digits(3)
    if start == "catalog":
        weights = replace(weights, model=build("test_resnet", 3, in_channels=1), classes=imagenet.class_names())
    folder = save_classifier(tmp_path / "start", weights)
    name = "test_resnet.r160_in1k"
    if start == "local-dir":
        model = {"name": f"local-dir:{folder}", "pretrained": True}
    elif start == "file":
        (folder / "config.json").unlink()
        model = {"name": name, "checkpoint_path": str(folder / "model.safetensors")}
    else:
        monkeypatch.setattr(hub, "fetch", lambda entry, revision=None: folder / "model.safetensors")
        model = {"name": name, "pretrained": True}
    end = replace(digits(1), model=build("test_resnet", 1, num_classes=len(classes), in_channels=1), classes=classes)
    config = quick("resnet", train={"head_init": head_init})
    config.model = ConfigDict(model)
    write_config(tmp_path / "run", run.complete(config))
    found, own, other = (arrays(each.model)["fc.kernel"] for each in (load_origin(tmp_path / "run", end), weights, end))
    np.testing.assert_array_equal(found, own if is_kept else other)


def test_errors_of_the_command(tmp_path, capsys):
    a = saved(tmp_path / "a", digits(1))
    b = save_classifier(tmp_path / "b", digits(2))
    for arguments, message in [
        ([a], "RUN: got one run, expected two or more, or --wise with one"),
        ([a, b, "--wise", "0.5"], "--wise: got --greedy or several runs"),
        ([a, "--wise", "2"], "--wise: got '2', expected a number from 0 to 1, or sweep"),
        ([a, "--wise", "0.5"], "started from random weights, expected a run that was fine-tuned"),
        ([b, "--wise", "0.5"], "expected the workdir of a run, whose config names what it started from"),
        ([b, b, "--greedy"], "--greedy: got no data, expected validation data to choose by. Add --data."),
        ([b, b, "--greedy", "--data", "digits"], "got data without a validation split"),
    ]:
        assert message in command(capsys, *arguments, "-o", tmp_path / "soup", status=2)
    assert not (tmp_path / "soup").exists()
    c = save_classifier(tmp_path / "c", digits(3))
    out = command(capsys, b, c, "-o", tmp_path / "soup")  # without data the average needs no evaluation
    assert "averaged, because there are no training images" in out
