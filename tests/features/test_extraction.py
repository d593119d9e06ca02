"""Features: those of the model, row by row, on one device and on eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from support.against_timm import assert_close, pair, random_model
from support.images import class_folders

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.data import open_dataset, open_source
from jaxvision.errors import UserError
from jaxvision.features import extract, open_images
from jaxvision.parallel.mesh import make_mesh

PREPROCESS = Preprocess(image_size=32)


def classifier(name: str = "test_resnet", **options: object) -> Classifier:
    model = random_model(name, num_classes=0, image_size=32, **options)
    return Classifier(model, (), PREPROCESS.for_channels(model.in_channels))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("photos"), ["cat", "dog"], each=5)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_the_input_of_the_head(name: str, photos: Path) -> None:
    images = open_dataset(open_images(str(photos))["all"])
    own = classifier(name)
    features = extract(own, images, batch_size=8)  # 10 images: the last batch is padded
    x = own.images(features.path)
    wanted = jax.jit(lambda model, x: model.forward_head(model.forward_features(x), pre_logits=True))(own.model, x)
    assert_close(features.values, wanted, 1e-5)
    assert features.values.dtype == np.float32
    assert features.label.tolist() == [0] * 5 + [1] * 5
    assert features.classes == ("cat", "dog")
    assert [Path(path).parent.name for path in features.path] == ["cat"] * 5 + ["dog"] * 5


@pytest.mark.parametrize(("level", "number"), [("layer2", 2), (-1, 4), ("3", 3)])
def test_a_level(level: int | str, number: int, photos: Path) -> None:
    own = classifier()
    features = extract(own, open_dataset(open_images(str(photos))["all"]), level=level, batch_size=16)
    maps = own.model.forward_intermediates(own.images(features.path), intermediates_only=True)
    assert_close(features.values, np.asarray(maps[number]).mean(axis=(1, 2)), 1e-5)


def test_eight_devices_give_what_one_gives(photos: Path) -> None:
    own, images = classifier(), open_dataset(open_images(str(photos))["all"])
    one = extract(own, images, mesh=make_mesh(devices=jax.devices()[:1]), batch_size=4)
    eight = extract(own, images, mesh=make_mesh({"data": -1, "fsdp": 2}), batch_size=16)
    np.testing.assert_array_equal(one.index, eight.index)
    assert_close(one.values, eight.values, 1e-5)


def test_a_batch_is_not_mostly_padding(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_dataset(open_images(str(photos))["all"])
    sizes: list[int] = []
    real = images.eval_batches

    def recorded(*, batch_size: int, **options: Any) -> Any:
        sizes.append(batch_size)
        return real(batch_size=batch_size, **options)

    monkeypatch.setattr(images, "eval_batches", recorded)
    mesh = make_mesh(devices=jax.devices()[:1])
    assert len(extract(classifier(), images, mesh=mesh, batch_size=10_000)) == 10
    assert sizes == [32]


def test_images_in_memory() -> None:
    own = classifier(in_channels=1)
    source = open_source("digits").test
    features = extract(own, open_dataset(source), batch_size=64)
    np.testing.assert_array_equal(features.label, source.labels)
    streamed = extract(own, open_dataset(source, memory_limit=0), batch_size=64)
    assert features.values.shape == streamed.values.shape == (359, 96)


@pytest.mark.parametrize("level", ["layer9", 5, -6])
def test_no_such_level(level: int | str, photos: Path) -> None:
    with pytest.raises(UserError, match="a level of test_resnet"):
        extract(classifier(), open_dataset(open_images(str(photos))["all"]), level=level)


def test_features_that_are_not_pooled(photos: Path) -> None:
    own = classifier("test_vit", global_pool="")
    with pytest.raises(UserError, match=r"test_vit: got features of shape \[.*, expected \[b, d\]"):
        extract(own, open_dataset(open_images(str(photos))["all"]))


def test_damaged_images_have_no_row(tmp_path: Path) -> None:
    photos = class_folders(tmp_path, ["cat", "dog"])
    (photos / "cat" / "1.png").write_bytes(b"not an image")
    images = open_dataset(open_images(str(photos))["all"], log=lambda _: None)
    features = extract(classifier(), images)
    assert features.index.tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert list(images.corrupt) == [1]


@pytest.mark.timm
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_as_in_timm(name: str, photos: Path) -> None:
    import torch

    theirs, ours = pair(name, num_classes=0, **({"img_size": 32} if name == "test_vit" else {}))
    own = Classifier(ours, (), PREPROCESS)
    features = extract(own, open_dataset(open_images(str(photos))["all"]), batch_size=8)
    x = torch.tensor(np.asarray(own.images(features.path)).transpose(0, 3, 1, 2))
    with torch.no_grad():
        wanted = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert_close(features.values, wanted.numpy(), 1e-5)
