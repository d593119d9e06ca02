"""Classifiers: saving, loading, transforming images, and the errors of each."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from support.reference import import_timm

from jaxvision import cli, run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.data.pipeline import FromWorkers
from jaxvision.errors import UserError
from jaxvision.run import program
from jaxvision.weights.folder import find_export
from jaxvision.weights.timm import load_timm, save_timm


def test_a_vit_for_oblong_images_is_saved_and_loaded(tmp_path):
    model = create_model("test_vit", num_classes=2, image_size=(96, 160), seed=1)
    save_classifier(tmp_path, Classifier(model, ("a", "b"), Preprocess(image_size=160)))
    again = load_classifier(tmp_path).model
    assert again.image_size == (96, 160)
    np.testing.assert_array_equal(again.pos_embed[...], model.pos_embed[...])
    with pytest.raises(UserError, match=r"expected a whole number of pixels, the side of a square"):
        load_classifier(tmp_path, image_size=(96, 160))


def test_a_classifier_never_has_an_untrained_head(tmp_path, capsys):
    file, headless = tmp_path / "ten.safetensors", tmp_path / "none.safetensors"
    save_timm(create_model("test_resnet", num_classes=10), file)
    save_timm(create_model("test_resnet", num_classes=0), headless)
    assert len(load_classifier("test_resnet", checkpoint_path=file, num_classes=10).classes) == 10
    with pytest.raises(UserError, match=r"num_classes: got 7, but .* has a head of 10 classes"):
        load_classifier("test_resnet", checkpoint_path=file, num_classes=7)
    with pytest.raises(UserError, match=r"num_classes: got 7, but .* has no head"):
        load_classifier("test_resnet", checkpoint_path=headless, num_classes=7)
    folder = save_classifier(
        tmp_path / "two", Classifier(create_model("test_resnet", num_classes=2), "ab", Preprocess())
    )
    with pytest.raises(UserError, match=r"num_classes: got 2, but .* has a head of 10 classes"):
        load_classifier(folder, checkpoint_path=file)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    command = ["predict", "-m", "test_resnet", "--checkpoint", str(headless), str(tmp_path / "a.png")]
    assert cli.main(command) == 2
    assert "test_resnet: got weights without a head, expected those of a classifier" in capsys.readouterr().err


def test_the_number_of_names_must_be_the_number_of_classes():
    with pytest.raises(UserError, match=r"classes: got 2 names, expected the model's 5"):
        Classifier(create_model("test_resnet", num_classes=5), ("a", "b"), Preprocess())
    with pytest.raises(UserError, match=r"probabilities: got 'relu', expected one of 'sigmoid', 'softmax'"):
        Classifier(create_model("test_resnet", num_classes=2), ("a", "b"), Preprocess(), "relu")


@pytest.mark.parametrize("name", ["x" * 300, "runs/" + "x" * 300, "a\0b", "local-dir:" + "x" * 300, "x/" * 3000])
def test_a_name_that_no_file_can_have(name, tmp_path):
    with pytest.raises(
        UserError, match=r"is not a folder with config|expected (an existing folder|a name such|a model)"
    ):
        load_classifier(name)
    with pytest.raises(UserError, match=r"no such weight file|expected a folder with config"):
        create_model("test_resnet" if ":" not in name else name, checkpoint_path=name)
    with pytest.raises(UserError, match=r"no such weight file|got local-dir:x"):
        load_classifier("test_resnet" if ":" not in name else name, checkpoint_path=name)
    with pytest.raises(UserError, match=r"no such weight file"):
        load_classifier("test_resnet", checkpoint_path=name)


def test_the_text_of_a_classifier_is_one_line():
    model = create_model("test_resnet", num_classes=4, in_channels=1)
    text = str(Classifier(model, ("a", "b", "c", "d"), Preprocess(image_size=160, mean=(0.5,), std=(0.5,))))
    facts = "160 x 160 pixels, 1 channel, 4 classes: a, b, c, and 1 more"
    assert re.fullmatch(rf"Classifier\(test_resnet: [\d,]+ parameters, {facts}\)", text)
    headless = create_model("test_resnet", num_classes=0)
    assert str(Classifier(headless, (), Preprocess(image_size=64))).endswith(" 64 x 64 pixels, 3 channels, no head)")


def test_options_that_timm_lacks_are_logged(tmp_path, caplog):
    model = create_model("test_resnet", num_classes=2, antialias="blur")
    with caplog.at_level(logging.WARNING):
        save_classifier(tmp_path, Classifier(model, ("a", "b"), Preprocess(image_size=64)))
    assert "timm has no argument for antialias='blur'" in caplog.text
    assert load_classifier(tmp_path).model.options == model.options


def test_a_model_for_gray_images_converts_images_to_gray(tmp_path):
    save_timm(create_model("test_resnet", num_classes=10), tmp_path / "m.safetensors")
    classifier = load_classifier("test_resnet", checkpoint_path=tmp_path / "m.safetensors", in_channels=1)
    images = classifier.images([Image.new("RGB", (70, 50))])
    assert images.shape[-1] == 1
    again = load_classifier(save_classifier(tmp_path / "gray", classifier))
    np.testing.assert_array_equal(again.model(again.images([Image.new("L", (70, 50))])), classifier.model(images))
    four = load_classifier("test_resnet", checkpoint_path=tmp_path / "m.safetensors", in_channels=4)
    assert (four.preprocess.mean, four.preprocess.std) == ((0.5,) * 4, (0.25,) * 4)
    with pytest.raises(UserError, match=r"this model takes 4 channels, but image files have 3 or 1"):
        four.images([Image.new("RGB", (70, 50))])


def test_an_export_may_only_state_options_of_the_model(tmp_path):
    folder = save_classifier(tmp_path, Classifier(create_model("test_resnet", num_classes=2), "ab", Preprocess()))
    config = json.loads((folder / "config.json").read_text())
    config["jaxvision_options"] = {"pretrained": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: got 'pretrained', expected an option of"):
        load_classifier(folder)


@pytest.mark.parametrize("dtype", [jnp.int32, np.uint8, bool, np.complex64, jnp.float8_e4m3fn, 3, "int8"])
def test_the_dtype_of_parameters_must_be_floating_point(dtype):
    with pytest.raises(UserError, match=r"dtype: got"):
        create_model("test_resnet", param_dtype=dtype)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (None, {}, "expected a name such as 'resnet50.a1_in1k'"),
        ("x" * 500, {}, "expected a model name"),
        ("", {}, "expected a model name"),
        ("test_resnet", {"in_channels": 0}, "in_channels: got 0, expected an integer, 1 or more"),
        ("test_resnet", {"seed": "a"}, "seed: got 'a', expected an integer"),
        ("test_resnet", {"freeze": 5}, "freeze: got 5, expected a list of regular expressions"),
        ("test_resnet", {"checkpoint_path": 3}, "checkpoint_path: got 3, expected the path of a file"),
        ("test_resnet", {"pretrained": True, "revision": 3}, "revision: got 3, expected the name of a branch"),
        ("test_resnet", {"depths": (0, 1, 1, 1)}, "each of depths: got 0, expected an integer, 1 or more"),
        ("test_resnet", {"stem_width": 0}, "stem_width: got 0, expected an integer, 1 or more"),
        ("test_vit", {"depth": 0}, "depth: got 0, expected an integer, 1 or more"),
        ("test_vit", {"num_heads": 0}, "num_heads: got 0, expected an integer, 1 or more"),
        ("test_vit", {"reg_tokens": -1}, "reg_tokens: got -1, expected an integer, 0 or more"),
        (
            "test_resnet",
            {"features_only": True, "out_indices": 1.5},
            "out_indices: got 1.5, expected a number from 1 to 5",
        ),
    ],
)
def test_impossible_arguments(name, options, message):
    with pytest.raises(UserError) as error:
        create_model(name, **options)
    assert message in str(error.value)


def test_numbers_of_numpy_are_accepted():
    assert create_model("test_resnet", dropout=np.float32(0.1)).num_classes == 1000
    assert create_model("test_resnet", features_only=True, out_indices=np.int64(2)).out_indices == (3, 4)


@pytest.mark.parametrize("name", ["test_resnet", "resnetv2_18", "test_vit", "test_efficientnet"])
def test_a_failed_reset_of_the_head_changes_nothing(name):
    model = create_model(name)
    before = (model.num_classes, model.options)
    with pytest.raises(UserError, match="num_classes: got -1, expected an integer, 0 or more"):
        model.reset_classifier(-1, rngs=nnx.Rngs(0), global_pool="avg")
    assert (model.num_classes, model.options) == before


def test_weight_files_need_a_model(tmp_path):
    features = create_model("test_resnet", features_only=True)
    for broken in (
        lambda: save_timm(features, tmp_path / "x.safetensors"),
        lambda: load_timm(features, tmp_path / "x"),
    ):
        with pytest.raises(UserError, match=r"got a FeatureExtractor, expected a model. Pass its attribute `model`"):
            broken()


def test_equal_models_make_equal_files(tmp_path):
    model = create_model("test_vit", num_classes=2, image_size=(64, 96))
    for i in range(8):  # safetensors itself writes the metadata in arbitrary order
        save_timm(model, tmp_path / f"{i}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("given", ["export/model.safetensors", "export"])
def test_a_weight_file_of_an_export_has_its_classes_and_transform(given, tmp_path):
    own = Preprocess(image_size=64, crop_pct=1.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), interpolation="bilinear")
    model = create_model("test_resnet", num_classes=2, image_size=64)
    save_classifier(tmp_path / "export", Classifier(model, ("cat", "dog"), own))
    weights = tmp_path / given
    for options in ({}, {"num_classes": 2}):
        found = load_classifier("test_resnet", checkpoint_path=weights, **options)
        assert (found.classes, found.preprocess) == (("cat", "dog"), own)
    sections = {"source": {"name": "digits"}, "model": {"name": "test_resnet", "checkpoint_path": str(weights)}}
    config = run.complete(sections | {"optimizer": {"learning_rate": 0.1}})
    assert program.preprocess_of(config, FromWorkers(channels=3)) == own
    config.model.image_size = 96
    assert program.preprocess_of(config, FromWorkers(channels=3)) == replace(own, image_size=96)
    gray, four = (program.preprocess_of(config, FromWorkers(channels=n)) for n in (1, 4))
    np.testing.assert_allclose((*gray.mean, *gray.std), (0.2, 0.6))
    assert (four.mean, four.std) == ((0.5,) * 4, (0.25,) * 4)
    # config.json describes neither another architecture nor a file with another name.
    assert find_export(weights, "resnet18") is None
    renamed = (tmp_path / "export" / "model.safetensors").rename(tmp_path / "export" / "other.safetensors")
    assert find_export(renamed, "test_resnet") is None


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\nb", r"a\nb"), ("a\u2028b\u2029", r"a\u2028b\u2029"), ("\u202egpj\u2066x\u2069", r"\u202egpj\u2066x\u2069")],
)
def test_the_text_of_a_classifier_and_of_an_error_is_one_line(name, shown):
    model = create_model("test_resnet", num_classes=2, image_size=32)
    assert repr(Classifier(model, ("ä", name), Preprocess(image_size=32))).endswith(f"2 classes: ä, {shown})")
    assert str(UserError(f"classes: got {name}.")) == f"classes: got {shown}."


def test_images_that_are_no_images(tmp_path):
    model = create_model("test_resnet", num_classes=2, image_size=32)
    classifier = Classifier(model, ("a", "b"), Preprocess(image_size=32))
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    assert classifier.images(str(tmp_path / "a.png")).shape == (1, 32, 32, 3)
    with pytest.raises(UserError, match="images: got an empty list"):
        classifier.images([])
    with pytest.raises(
        UserError,
        match=r"got ndarray, expected a file name .* an array with PIL.Image.fromarray\(array\)",
    ):
        classifier.images([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(UserError, match="floating-point values of unknown range"):
        classifier.images([Image.new("F", (40, 30), 0.5)])


def test_too_little_memory_for_an_image_is_not_a_damaged_image(tmp_path, monkeypatch):
    classifier = Classifier(create_model("test_resnet", num_classes=2, image_size=32), ("a", "b"), Preprocess())
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(UserError, match=r"cannot read .*a\.png: not enough memory$"):
        classifier.images([tmp_path / "a.png"])


def test_a_pillow_image_of_16_bits_is_read_as_its_file_is(tmp_path):
    classifier = Classifier(create_model("test_resnet", num_classes=2, image_size=32), ("a", "b"), Preprocess())
    deep = Image.fromarray(np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50)
    deep.save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as opened:
        from_file, from_memory, from_opened = classifier.images([str(tmp_path / "deep.png"), deep, opened])
    np.testing.assert_array_equal(from_memory, from_file)
    np.testing.assert_array_equal(from_opened, from_file)


def test_only_safetensors_files_are_written(tmp_path, capsys):
    with pytest.raises(UserError, match=r"got the file .*model.pth, expected the suffix .safetensors"):
        save_timm(create_model("test_resnet", num_classes=2), tmp_path / "model.pth")
    assert cli.main(["convert", "test_resnet", str(tmp_path / "out.pth")]) == 2
    assert "expected a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_is_an_error(tmp_path):
    """The weights of one export with the classes of another would give wrong predictions."""
    for name, classes in (("old", ("a", "b")), ("new", ("x", "y"))):
        save_classifier(tmp_path / name, Classifier(create_model("test_resnet", num_classes=2), classes, Preprocess()))
    (tmp_path / "new" / "model.safetensors").replace(tmp_path / "old" / "model.safetensors")
    with pytest.raises(UserError, match=r"config.json and model.safetensors belong to different exports"):
        load_classifier(tmp_path / "old")
    save_timm(
        create_model("test_resnet", num_classes=2), tmp_path / "old" / "model.safetensors"
    )  # written by hand, without an identifier
    assert load_classifier(tmp_path / "old").classes == ("a", "b")


def test_a_failed_export_leaves_the_earlier_one(tmp_path):
    folder = save_classifier(
        tmp_path, Classifier(create_model("test_resnet", num_classes=2, seed=1), "ab", Preprocess())
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"classes: the name 'K\\udce4se' is not valid UTF-8"):
        save_classifier(
            folder, Classifier(create_model("test_resnet", num_classes=2), ("K\udce4se", "b"), Preprocess())
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_weights_for_other_channels_are_logged(tmp_path, caplog):
    save_timm(create_model("test_resnet", num_classes=2, in_channels=4), tmp_path / "four.safetensors")
    with caplog.at_level(logging.WARNING):
        create_model("test_resnet", checkpoint_path=tmp_path / "four.safetensors", num_classes=2)
    assert "adapting conv1.0.weight from [16, 4, 3, 3] to [16, 3, 3, 3]" in caplog.text


def test_files_are_not_transformed_for_oblong_models(tmp_path):
    classifier = Classifier(create_model("test_vit", num_classes=2, image_size=(32, 64)), "ab", Preprocess())
    with pytest.raises(UserError, match="this model takes 32 x 64 pixels, but the transform makes square images"):
        classifier.images(Image.new("RGB", (40, 30)))
    config = json.loads((save_classifier(tmp_path, classifier) / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 64]


@pytest.mark.timm
def test_a_vit_of_timms_for_oblong_images_keeps_its_positions(tmp_path, caplog):
    """Its grid has as many positions as the architecture's own square, and the file does not state its shape."""
    from safetensors.torch import save_file

    theirs = import_timm().create_model("test_vit", img_size=(80, 320))
    save_file(theirs.state_dict(), tmp_path / "own.safetensors")
    with caplog.at_level(logging.WARNING):
        ours = create_model("test_vit", image_size=(80, 320), checkpoint_path=tmp_path / "own.safetensors")
    np.testing.assert_array_equal(ours.pos_embed[...], theirs.pos_embed.detach().numpy())
    assert "assuming that of the model, 5 x 20" in caplog.text
