"""A model that a user's module defines: built, saved, loaded in a new process, trained and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file
from support.paths import ROOT
from support.quick import quick

import jaxvision
from jaxvision import run
from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier, load_classifier, save_classifier
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.models import registry
from jaxvision.weights import catalog, timm

#: The module that a user writes.
MODULE = """
import jax
from flax import nnx

import jaxvision
from jaxvision.models import Model


@jaxvision.register_model
class PlainNet(Model):
    classifier_names = ("out",)

    def __init__(self, *, num_classes=1000, in_channels=3, image_size=16, width: int = 8, rngs):
        self.num_classes, self.in_channels, self.image_size = num_classes, in_channels, image_size
        self.num_features = width
        self.conv = nnx.Conv(in_channels, width, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Linear(width, num_classes, rngs=rngs) if num_classes else None

    def forward_features(self, images):
        return jax.nn.relu(self.conv(images))

    def forward_head(self, features, pre_logits=False):
        x = features.mean(axis=(1, 2))
        return x if pre_logits or self.out is None else self.out(x)


def narrow(*, num_classes=1000, in_channels=3, image_size=16, scale: int = 1, rngs):
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    return PlainNet(**sizes, width=4 * scale, rngs=rngs)


def without_rngs(*, num_classes=1000):
    return None
"""
# The names of the same builders, and an option of each.
SPELLINGS = [("PlainNet", "width"), ("own_models:PlainNet", "width"), ("own_models:narrow", "scale")]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module above, imported from a folder that is on the Python path."""
    (tmp_path / "own_models.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield import_module("own_models")
    forget()


def forget() -> None:
    """Undoes the import of the module, as if the process were a new one."""
    sys.modules.pop("own_models", None)
    for name in registry.architectures():
        if registry.variant(name).module == "own_models":
            registry.unregister_model(name)


def images(channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 16, 16, channels)).astype(np.float32)


def trained(name: str, **options: int) -> Classifier:
    """Returns a classifier whose weights no seed gives, as after a training."""
    model = create_model(name, num_classes=3, **options)
    for i, leaf in enumerate(timm.weights(model).values()):
        leaf.set_value(jax.random.normal(jax.random.key(i + 100), leaf.shape))
    return Classifier(model, ("a", "b", "c"), Preprocess(image_size=16))


@pytest.mark.parametrize(("name", "option"), SPELLINGS)
def test_options_reach_the_builder(name: str, option: str, module: ModuleType) -> None:
    model = create_model(name, num_classes=3, in_channels=1, **{option: 2})
    assert model(jnp.asarray(images(1))).shape == (2, 3)
    assert model.options == ((option, 2),)
    with pytest.raises(UserError, match=f"Did you mean '{option}'"):
        create_model(name, **{f"{option}s": 2})
    with pytest.raises(UserError, match=r"got 'dtype', expected an argument of"):
        create_model(name, dtype="bfloat16")


def test_a_class_and_a_function_are_names_as_well(module: ModuleType) -> None:
    assert create_model(module.PlainNet, num_classes=3).architecture == "PlainNet"  # the name that it is registered by
    assert create_model(module.narrow, num_classes=3).architecture == "own_models:narrow"
    with pytest.raises(UserError, match="expected a function at the top level of a module"):
        create_model(lambda **options: None)
    with pytest.raises(UserError, match="does not take in_channels, image_size, rngs"):
        create_model(module.without_rngs)


def test_the_catalog_and_the_list_have_it(module: ModuleType) -> None:
    entry = catalog.lookup("PlainNet")
    assert (entry.name, entry.hub_id, entry.license_note) == ("PlainNet", None, None)
    assert (entry.num_classes, entry.preprocess.image_size) == (1000, 16)  # the builder's defaults
    assert "PlainNet" in jaxvision.list_models()
    assert jaxvision.list_models("Plain*", pretrained=True) == []
    with pytest.raises(UserError, match="no published weights for 'PlainNet'"):
        create_model("PlainNet", pretrained=True)


@pytest.mark.parametrize(("name", "option"), SPELLINGS)
def test_the_trained_head_is_loaded(name: str, option: str, module: ModuleType, tmp_path: Path) -> None:
    """The head's name, which no catalog has, is that of the class."""
    classifier = trained(name, **{option: 2})
    timm.save_timm(classifier.model, tmp_path / "model.safetensors")
    model = create_model(name, checkpoint_path=tmp_path / "model.safetensors", **{option: 2})
    assert model.num_classes == 3
    np.testing.assert_array_equal(model(images()), classifier.model(images()))
    other = create_model(name, checkpoint_path=tmp_path / "model.safetensors", num_classes=5, **{option: 2})
    np.testing.assert_array_equal(other.conv.kernel[...], classifier.model.conv.kernel[...])
    assert other.out.kernel.shape[1] == 5
    with pytest.raises(UserError, match="has a head of 3 classes"):
        load_classifier(name, checkpoint_path=tmp_path / "model.safetensors", num_classes=5, **{option: 2})


@pytest.mark.parametrize(("name", "option"), SPELLINGS)
def test_an_export_is_loaded_after_the_module_is_forgotten(
    name: str, option: str, module: ModuleType, tmp_path: Path
) -> None:
    classifier = trained(name, **{option: 2})
    folder = save_classifier(tmp_path / "export", classifier)
    expected = classifier.model(images())
    forget()
    again = load_classifier(folder)
    assert (again.classes, again.model.architecture) == (("a", "b", "c"), name)
    assert again.model.options == ((option, 2),)
    np.testing.assert_array_equal(again.model(images()), expected)


def test_an_export_is_loaded_in_a_new_process(module: ModuleType, tmp_path: Path) -> None:
    classifier = trained("PlainNet", width=12)
    folder = save_classifier(tmp_path / "export", classifier)
    np.save(tmp_path / "images.npy", images())
    code = (
        "import numpy as np, jaxvision; model = jaxvision.load_classifier('export').model;"
        "np.save('logits.npy', model(np.load('images.npy')))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the module itself is in the current directory
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), classifier.model(images()))
    assert json.loads((folder / "config.json").read_text())["jaxvision_builder"] == "own_models:PlainNet"


def test_a_builder_that_cannot_be_found(module: ModuleType, tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "export", trained("PlainNet"))
    forget()
    (tmp_path / "own_models.py").unlink()
    with pytest.raises(UserError, match=r"cannot find the model 'PlainNet', .* 'own_models:PlainNet' .* PYTHONPATH"):
        load_classifier(folder)
    # A config.json cannot call any function that happens to be installed.
    config = json.loads((folder / "config.json").read_text())
    for builder in ("os:system", "subprocess:run", "shutil:rmtree"):
        config |= {"jaxvision_builder": builder, "jaxvision_options": {"args": ["touch", str(tmp_path / "ran")]}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="cannot find the model 'PlainNet'"):
            load_classifier(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["PlainNet", "own_models:PlainNet"])
def test_training_export_and_resume(name: str, module: ModuleType, tmp_path: Path, monkeypatch) -> None:
    def config(steps: int) -> object:
        config = quick("resnet")
        config.model = {"name": name, "width": 12, "image_size": 16}
        config.train.steps = steps
        return config

    monkeypatch.chdir(ROOT)
    result = run.train(config(6), tmp_path / "run")
    assert run.train(config(6), tmp_path / "run") == result
    monkeypatch.chdir(tmp_path)
    forget()
    classifier = load_classifier(tmp_path / "run")
    assert classifier.model.architecture == name
    assert classifier.model.num_classes == 10
    stored = load_file(tmp_path / "run" / "export" / "model.safetensors")
    np.testing.assert_array_equal(classifier.model.out.kernel[...].T, stored["out.weight"])
    fresh = create_model(name, num_classes=10, width=12, in_channels=classifier.model.in_channels, seed=config(6).seed)
    assert np.abs(classifier.model.out.kernel[...] - fresh.out.kernel[...]).max() > 0


def test_an_option_that_json_cannot_hold(module: ModuleType, tmp_path: Path) -> None:
    classifier = trained("own_models:narrow")
    classifier.model.options = (("scale", nnx.relu),)
    with pytest.raises(UserError, match="cannot save the options of own_models:narrow"):
        save_classifier(tmp_path, classifier)


#: What follows the model in a script of the user.
SCRIPT = """
import numpy as np
from jaxvision import run
from jaxvision.augment.preprocess import Preprocess

if __name__ == "__main__":
    model = jaxvision.create_model("PlainNet", num_classes=2)
    preprocess = Preprocess(image_size=16)
    jaxvision.save_classifier("export", jaxvision.Classifier(model, ("a", "b"), preprocess))
    config = {"source": {"name": "digits"}, "model": {"name": "PlainNet"}, "optimizer": {"learning_rate": 0.1}}
    print(run.complete(config).model.name)
"""


@pytest.mark.parametrize("arguments", [["-m", "own_models"], ["own_models.py"]])
def test_a_model_of_the_program_itself(arguments: list[str], module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "own_models.py").write_text(MODULE + SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    builder = json.loads((tmp_path / "export" / "config.json").read_text())["jaxvision_builder"]
    if arguments[0] == "-m":
        assert done.stdout == "PlainNet\n", done.stderr
        assert builder == "own_models:PlainNet"
        forget()
        assert load_classifier(tmp_path / "export").classes == ("a", "b")
    else:  # importing a script may run it
        assert "only a program that registers it first can load the export" in done.stderr
        message = "got 'PlainNet', which is defined in the script, expected a model in a module"
        assert message in done.stderr
        assert "config.model.name='mine:PlainNet'" in done.stderr
