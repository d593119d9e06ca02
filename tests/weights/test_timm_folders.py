"""Folders in timm's format, as people have them: older and newer config.json, and timm's prefixes of names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reference import import_timm
from support.weight_files import write

from jaxvision.analysis.cost import model_info
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.weights import catalog, imagenet

CFG = {
    "tag": "mine",
    "input_size": [3, 64, 64],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.2, 0.2, 0.2],
}
OWN = Preprocess(image_size=64, crop_pct=0.9, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)


def put(folder: Path, config: dict[str, Any], *, name: str = "model.safetensors", classes: int = 3, **options) -> Path:
    folder.mkdir(exist_ok=True)
    write(folder / name, num_classes=classes, **options)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def config(**more: Any) -> dict[str, Any]:
    return {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": CFG, **more}


@pytest.mark.parametrize(
    ("more", "classes"),
    [
        ({"label_names": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"label_names": {"0": "a", "2": "c"}}, ("a", "class 1", "c")),
        ({"label_names": ["a", "b", "c"], "label_descriptions": {"a": "An a", "b": "B", "c": "C"}}, ("a", "b", "c")),
        ({"pretrained_cfg": {**CFG, "label_names": ["a", "b", "c"]}}, ("a", "b", "c")),
        ({}, ("class 0", "class 1", "class 2")),
        ({"label_names": None}, ("class 0", "class 1", "class 2")),
    ],
)
@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_the_names_of_the_classes(prefix, more, classes, tmp_path):
    classifier = load_classifier(f"{prefix}{put(tmp_path / 'mine', config(**more))}")
    assert (classifier.classes, classifier.preprocess) == (classes, OWN)


def test_thousand_classes_without_names_are_those_of_imagenet(tmp_path):
    folder = put(tmp_path / "mine", config(num_classes=1000), classes=1000)
    assert load_classifier(folder).classes == imagenet.class_names()


def test_the_older_form_of_the_config(tmp_path):
    """All keys are at the top; names of classes are called labels."""
    folder = put(tmp_path / "mine", {**CFG, "architecture": "test_resnet", "num_classes": 3, "labels": ["a", "b", "c"]})
    classifier = load_classifier(folder)
    assert (classifier.classes, classifier.preprocess) == (("a", "b", "c"), OWN)


def test_a_config_without_a_transform_has_timms_defaults(tmp_path):
    folder = put(tmp_path / "mine", {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {}})
    assert load_classifier(folder).preprocess == Preprocess(image_size=224, crop_pct=0.875, interpolation="bicubic")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.safetensors"])
def test_other_names_of_the_weight_file(name, tmp_path):
    folder = put(tmp_path / "mine", config(), name=name)
    assert len(load_classifier(folder).classes) == 3
    assert create_model(f"local-dir:{folder}", pretrained=True).num_classes == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"architectures": ["ResNetForImageClassification"], "model_type": "resnet"}', "got a model of transformers"),
        ('{"architecture": "resnet_50"}', "config.json: architecture: got 'resnet_50', expected a model name"),
        ('{"num_classes": 3}', r"config.json: architecture: got none, expected the name of a model\. Fix the file, or"),
        ("[1]", r"config.json: got \[1\], expected an object"),
        ("[" * 100_000, r"config.json: got invalid JSON .*, expected a config.json of save_classifier or timm"),
        ("{", r"config.json: got invalid JSON .*, expected a config.json of save_classifier or timm"),
        (
            json.dumps(config(label_names={"7": "a"})),
            "label_names: got a name for the class 7, expected numbers below 3",
        ),
        (json.dumps(config(label_names={"a": 0})), r'label_names: got {"a": 0}, expected a list of the names'),
        (json.dumps(config(label_names=["a", "b"])), "config.json: label_names: got 2 names, expected 3"),
        (json.dumps(config(num_classes=4)), "num_classes: got 4, but .* has a head of 3 classes"),
        (json.dumps(config(pretrained_cfg={**CFG, "crop_mode": "x"})), "config.json: crop_mode: got 'x'"),
    ],
)
def test_configs_that_are_not_timms(text, words, tmp_path):
    folder = put(tmp_path / "mine", {})
    (folder / "config.json").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load_classifier(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"label_names": "abc"}, 'label_names: got "abc", expected a list of the names of all classes, or an object'),
        ({"label_names": ["a", None, "c"]}, 'label_names: got ["a", null, "c"], expected a list of the names'),
        ({"architecture": None}, "architecture: got none, expected the name of a model"),
        ({"architecture": ["resnet50"]}, 'architecture: got ["resnet50"], expected a string'),
        ({"num_classes": -1}, "num_classes: got -1, expected a non-negative integer"),
        ({"num_classes": "3"}, 'num_classes: got "3", expected a non-negative integer'),
        ({"num_classes": True}, "num_classes: got true, expected a non-negative integer"),
        ({"num_classes": float("inf")}, "num_classes: got Infinity, expected a non-negative integer"),
        ({"pretrained_cfg": [CFG]}, "expected an object"),
        ({"model_args": ["patch_size"]}, 'model_args: got ["patch_size"], expected an object'),
        ({"jaxvision_options": 3}, "jaxvision_options: got 3, expected an object"),
        ({"jaxvision_probabilities": "relu"}, "jaxvision_probabilities: got \"relu\", expected 'softmax' or 'sigmoid'"),
        ({"jaxvision_builder": 7}, "jaxvision_builder: got 7, expected a string"),
        ({"input_size": [64]}, "input_size: got [64], expected [channels, height, width]"),
        ({"input_size": 64}, "input_size: got 64, expected [channels, height, width]"),
        ({"input_size": [3, 64, 0]}, "input_size: got [3, 64, 0], expected [channels, height, width]"),
        ({"crop_pct": "0.9"}, 'crop_pct: got "0.9", expected a number'),
        ({"crop_pct": 0}, "crop_pct: got 0, expected a share of the side"),
        ({"mean": 0.5}, "mean: got 0.5, expected a list of numbers"),
        ({"std": ["a"]}, 'std: got ["a"], expected a list of numbers'),
        ({"mean": [float("nan")] * 3}, "mean: got [NaN, NaN, NaN], expected a list of numbers"),
        ({"label_names": {"0": None, "1": ["z"]}}, 'label_names: got {"0": null, "1": ["z"]}, expected a list'),
        ({"label_names": [True, False, True]}, "label_names: got [true, false, true], expected a list"),
        ({"crop_mode": "centre"}, "Did you mean 'center'? Fix the file"),
        ({"tag": 1}, "tag: got 1, expected a string"),
        ({"std": [float("inf")] * 3}, "std: got [Infinity, Infinity, Infinity], expected a list of numbers"),
        ({"mean": [10**400] * 3}, "mean: got [1000"),
        ({"crop_pct": 10**400}, "crop_pct: got 1000"),
        ({"mean": [127.5] * 3}, "mean: got (127.5, 127.5, 127.5), expected numbers from 0 to 1, because images are"),
        ({"mean": [-0.5] * 3}, "mean: got (-0.5, -0.5, -0.5), expected numbers from 0 to 1"),
        ({"std": [58.4, 57.1, 57.4]}, "std: got (58.4, 57.1, 57.4), expected numbers above 0 and at most 1"),
        ({"mean": [0.5] * 2, "std": [0.2] * 2}, "mean and std: got 2 numbers each, expected 3, the channels of input"),
        ({"input_size": [4, 64, 64]}, "mean and std: got 3 numbers each, expected 4, the channels of input_size"),
        ({"input_size": [3, 64, 32]}, "input_size: got [3, 64, 32], expected equal height and width, because the"),
        ({"input_size": [3, 10**400, 10**400]}, "input_size: got [3, 1000"),
        ({"num_classes": 10**400}, "expected a non-negative integer of at most 10,000,000"),
        ({"label_names": {"1" * 5000: "a"}}, 'label_names: got {"1111'),
        ({"label_names": {"0": "x", "00": "y"}}, "label_names: got several names for a class, expected one"),
    ],
)
def test_values_that_the_config_cannot_have(values, words, tmp_path):
    transform = {key: value for key, value in values.items() if key in (*CFG, "tag")}
    folder = put(tmp_path / "mine", config(pretrained_cfg=CFG | transform) | values)
    with pytest.raises(UserError) as error:
        load_classifier(folder)
    message = str(error.value)
    assert message.startswith(f"{folder}/config.json: ")
    assert words in message
    assert message.endswith("Fix the file, or export the model again.")


@pytest.mark.parametrize(
    ("values", "more", "mean"),
    [
        ({"input_size": [1, 64, 64]}, {"model_args": {"in_chans": 1}}, (0.5,)),
        ({"mean": [0.4], "std": [0.3]}, {}, (0.4,) * 3),
        ({"mean": [0.4] * 4, "std": [0.3] * 4}, {"model_args": {"in_chans": 4}}, (0.4,) * 4),  # input_size is timm's
    ],
)
def test_statistics_that_the_channels_share(values, more, mean, tmp_path):
    folder = put(tmp_path / "mine", config(pretrained_cfg=CFG | values, **more))
    np.testing.assert_allclose(load_classifier(folder).preprocess.mean, mean)


@pytest.mark.parametrize("given", ["export", "export/model.safetensors"])
def test_a_damaged_config_beside_the_checkpoint_is_an_error(given, tmp_path):
    """It holds the classes, the transform and the sigmoid, which would be lost without a word."""
    model = create_model("test_resnet", num_classes=2, image_size=32)
    folder = save_classifier(
        tmp_path / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=32), "sigmoid")
    )
    text = (folder / "config.json").read_text()
    cases = [
        (text[: len(text) // 2], "got invalid JSON"),
        ("", "got invalid JSON"),
        (text.replace('"sigmoid"', '"sigmoidal"'), 'jaxvision_probabilities: got "sigmoidal"'),
        (text.replace('"tag"', '"tog"').replace('"test_resnet"', "7"), "architecture: got 7, expected a string"),
    ]
    for damaged, words in cases:
        (folder / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=re.escape(words)) as error:
            load_classifier("test_resnet", checkpoint_path=tmp_path / given)
        assert str(error.value).startswith(f"{folder / 'config.json'}: ")
    for other in ('{"architectures": ["ResNet"]}', "[1]", '{"pretrained_cfg": 3}'):  # another program's
        (folder / "config.json").write_text(other)
        assert load_classifier("test_resnet", checkpoint_path=tmp_path / given).probabilities == "softmax"
    (folder / "config.json").write_text(text)
    assert load_classifier("test_resnet", checkpoint_path=tmp_path / given).probabilities == "sigmoid"


def test_a_local_dir_is_a_name_everywhere(tmp_path):
    model = create_model("test_vit", num_classes=2, image_size=(48, 96), in_channels=1, seed=3)
    folder = save_classifier(tmp_path / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=96)))
    name = f"local-dir:{folder}"
    again = create_model(name, pretrained=True)
    assert (again.image_size, again.in_channels, again.num_classes) == ((48, 96), 1, 2)
    np.testing.assert_array_equal(again.pos_embed[...], model.pos_embed[...])
    assert create_model(name).num_classes == 2  # its shape, without its weights
    assert create_model(name, pretrained=True, num_classes=5, in_channels=3).num_classes == 5
    assert create_model(name, pretrained=True, features_only=True) is not None
    assert load_classifier(name).classes == ("cat", "dog")
    assert load_classifier(f"local-dir:{tmp_path}").classes == ("cat", "dog")  # a workdir with the folder export
    assert catalog.lookup(name).preprocess == Preprocess(image_size=96).for_channels(1)


def test_an_export_states_the_statistics_of_its_own_channels(tmp_path):
    model = create_model("test_resnet", num_classes=2, in_channels=4)
    folder = save_classifier(tmp_path, Classifier(model, ("cat", "dog"), Preprocess(image_size=32)))
    assert json.loads((folder / "config.json").read_text())["pretrained_cfg"]["mean"] == [0.5] * 4
    assert load_classifier(folder).preprocess.std == (0.25,) * 4


def test_the_cost_of_a_local_dir_is_that_of_its_options(tmp_path):
    model = create_model("test_vit", num_classes=2, image_size=48, patch_size=8, depth=2)
    folder = save_classifier(tmp_path / "export", Classifier(model, ("cat", "dog"), Preprocess(image_size=48)))
    assert model_info(f"local-dir:{folder}") == model_info(model)


def test_a_local_dir_that_does_not_exist(tmp_path):
    for load in (create_model, load_classifier, catalog.lookup):
        with pytest.raises(UserError, match=f"got local-dir:{tmp_path}/none, expected"):
            load(f"local-dir:{tmp_path}/none")
    with pytest.raises(UserError, match=r"revision: the weights are in .*, which has no revisions"):
        create_model(f"local-dir:{put(tmp_path / 'mine', config())}", pretrained=True, revision="v1")


def test_arguments_of_timms_that_are_not_used_are_announced(tmp_path, caplog):
    args = {"drop_rate": 0.1, "drop_path_rate": 0.2, "num_classes": 3, "norm_layer": "groupnorm1"}
    load_classifier(put(tmp_path / "mine", config(model_args=args)))
    assert caplog.messages == [f"{tmp_path / 'mine' / 'config.json'}: model_args that are not used: norm_layer"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_repository(cache: Path, repository: str, revision: str, **more: Any) -> None:
    folder = cache / f"models--{repository.replace('/', '--')}"
    commit = (revision.encode().hex() * 40)[:40]
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    (folder / "snapshots").mkdir(exist_ok=True)
    put(folder / "snapshots" / commit, config(**more))


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_repository_of_the_hub_is_a_name(prefix, cache):
    put_repository(cache, "some/one", "main", label_names=["a", "b", "c"])
    put_repository(cache, "some/one", "v2", label_names=["x", "y", "z"])
    for suffix, classes in (("", ("a", "b", "c")), ("@v2", ("x", "y", "z"))):
        classifier = load_classifier(f"{prefix}some/one{suffix}")
        assert (classifier.classes, classifier.preprocess) == (classes, OWN)
    assert create_model(f"{prefix}some/one", pretrained=True).num_classes == 3
    assert create_model(f"{prefix}some/one", pretrained=True, num_classes=7).num_classes == 7


def test_a_repository_that_is_not_there(cache):
    with pytest.raises(UserError, match=r"cannot download some/other/config.json"):
        create_model("hf-hub:some/other", pretrained=True)


@pytest.mark.timm
@pytest.mark.parametrize("safe", [True, False, "both"])
@pytest.mark.parametrize(
    "labels", [{}, {"label_names": ["cat", "dog"], "label_descriptions": {"cat": "C", "dog": "D"}}]
)
@pytest.mark.parametrize(("name", "options"), [("test_resnet", {}), ("test_vit", {"img_size": 96, "in_chans": 1})])
def test_a_folder_that_timm_writes(name, options, labels, safe, tmp_path):
    import torch

    timm = import_timm()
    from timm.models import save_for_hf

    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=2, **options).eval()
    save_for_hf(theirs, str(tmp_path), model_config=dict(labels), safe_serialization=safe)
    classifier = load_classifier(tmp_path)
    assert classifier.classes == (("cat", "dog") if labels else ("class 0", "class 1"))
    channels, size = options.get("in_chans", 3), options.get("img_size", 160)
    images = np.random.default_rng(0).random((2, size, size, channels), np.float32)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        expected = again(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    for model in (classifier.model, create_model(f"local-dir:{tmp_path}", pretrained=True)):
        np.testing.assert_allclose(model(images), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["hf-hub:someone/mine", "local-dir"])
def test_the_architecture_of_a_config_imports_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "side_effect.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = put(tmp_path / "mine", config(architecture="side_effect:build"))
    monkeypatch.setattr(catalog.download, "from_hub", lambda *_: folder / "config.json")
    with pytest.raises(UserError, match="architecture: got 'side_effect:build', expected the name of a model"):
        create_model(name if "hub" in name else f"local-dir:{folder}")
