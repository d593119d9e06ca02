"""Files of features, and the cache by model and image."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.against_timm import random_model
from support.damage import cut
from support.images import class_folders, encode, scene

from jaxvision.augment.preprocess import Preprocess
from jaxvision.classifier import Classifier
from jaxvision.create import create_model
from jaxvision.data import open_dataset
from jaxvision.data.dataset import Dataset
from jaxvision.errors import UserError
from jaxvision.features import Features, cached_extract, extract, load_features, open_images, save_features, store
from jaxvision.models.base import Model
from jaxvision.report import Console


def classifier(seed: int = 0, **options: object) -> Classifier:
    model = random_model("test_resnet", num_classes=0, image_size=32, seed=seed)
    return Classifier(model, (), Preprocess(image_size=32, **options))


def dataset(photos: Path) -> Dataset:
    return open_dataset(open_images(str(photos))["all"], log=lambda _: None)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return class_folders(tmp_path / "photos", ["cat", "dog"], each=4)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that were computed, one for each call."""
    counts = []
    real = store.extract_parts

    def counting(classifier: Classifier, images: Dataset, **options: object) -> Iterator:
        counts.append(len(images))
        return real(classifier, images, **options)

    monkeypatch.setattr(store, "extract_parts", counting)
    return counts


def assert_equal(a: Features, b: Features) -> None:
    np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(a.label, b.label)
    np.testing.assert_array_equal(a.index, b.index)
    assert (a.path, a.split, a.classes) == (b.path, b.split, b.classes)


@pytest.mark.parametrize("name", ["x.npz", "x.parquet"])
def test_a_file_holds_all(name: str, photos: Path, tmp_path: Path) -> None:
    features = extract(classifier(), dataset(photos))
    save_features(tmp_path / name, features, model="mine")
    assert_equal(load_features(tmp_path / name), features)
    cut(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read as features"):
        load_features(tmp_path / name)
    with pytest.raises(UserError, match=r"got the ending '.csv', expected .npz or .parquet"):
        save_features(tmp_path / "x.csv", features)


def test_only_new_images_are_computed(photos: Path, tmp_path: Path, computed: list[int]) -> None:
    own, cache = classifier(), tmp_path / "cache"
    first = cached_extract(own, dataset(photos), cache=cache)
    assert_equal(first, extract(own, dataset(photos)))
    (photos / "cat" / "00.png").write_bytes(encode(scene(44, 52, seed=9)))
    (photos / "dog" / "1.png").rename(photos / "cat" / "moved.png")
    again = cached_extract(own, dataset(photos), cache=cache)
    assert_equal(again, extract(own, dataset(photos)))
    assert computed == [8, 1]


def test_another_model_or_transform_is_computed(photos: Path, tmp_path: Path, computed: list[int]) -> None:
    cache = tmp_path / "cache"
    own = classifier()
    others = [own, classifier(1), classifier(crop_pct=1.0), own]
    for each in others:
        assert_equal(cached_extract(each, dataset(photos), cache=cache), extract(each, dataset(photos)))
    cached_extract(own, dataset(photos), cache=cache, level="layer3")
    assert computed == [8] * 4  # not the second time for the same model


def test_the_same_weights_in_another_precision_are_computed(photos: Path, tmp_path: Path, computed: list[int]) -> None:
    own = classifier()
    half = create_model("test_resnet", num_classes=0, image_size=32, dtype="bfloat16")
    nnx.update(half, nnx.state(own.model))
    for each in (replace(own, model=half), own):
        assert_equal(cached_extract(each, dataset(photos), cache=tmp_path / "cache"), extract(each, dataset(photos)))
    assert computed == [8, 8]


def test_features_of_a_model_of_your_own_are_not_kept(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Its code may change, while its name and its weights stay."""

    def features(factor: float) -> np.ndarray:
        class Mean(Model):
            def __init__(self) -> None:
                self.num_classes, self.in_channels, self.image_size, self.classifier_names = 0, 3, 32, ()
                self.scale = nnx.Param(jnp.ones(()))

            def forward_features(self, images: jax.Array) -> jax.Array:
                return factor * images * self.scale[...]

            def forward_head(self, features: jax.Array, pre_logits: bool = False) -> jax.Array:
                return features.mean(axis=(1, 2))

        own = Classifier(Mean(), (), Preprocess(image_size=32))
        with Console() as console:
            return cached_extract(own, dataset(photos), cache=tmp_path / "cache", console=console).values

    np.testing.assert_allclose(features(2.0), 2 * features(1.0), rtol=1e-6)
    assert "are not cached, because its code may change" in " ".join(capsys.readouterr().out.split())


def test_an_interruption_keeps_what_was_computed(
    photos: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = store.extract_parts

    def interrupted(*arguments: object, **options: object) -> Iterator:
        parts = counting(*arguments, **options)  # type: ignore[arg-type]
        yield next(parts)
        parts.close()
        raise KeyboardInterrupt

    own, options = classifier(), {"cache": tmp_path / "cache", "batch_size": 8}
    (photos / "dog" / "more.png").write_bytes(encode(scene(44, 52, seed=9)))
    monkeypatch.setattr(store, "extract_parts", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted\. The same command continues with what is in"):
        cached_extract(own, dataset(photos), **options)
    monkeypatch.setattr(store, "extract_parts", counting)
    assert_equal(cached_extract(own, dataset(photos), **options), extract(own, dataset(photos)))
    assert computed == [9, 1]


def test_damage(photos: Path, tmp_path: Path, computed: list[int]) -> None:
    own, cache = classifier(), tmp_path / "cache"
    (photos / "cat" / "1.png").write_bytes(b"not an image")
    for _ in range(2):  # a damaged image is reported each time
        images = dataset(photos)
        features = cached_extract(own, images, cache=cache)
        assert features.index.tolist() == [0, 2, 3, 4, 5, 6, 7]
        assert {i: Path(where).name for i, (where, _) in images.corrupt.items()} == {1: "1.png"}
    (file,) = cache.glob("*/*.npz")
    other = bytearray(file.read_bytes())
    other[other.rindex(b"PK\x01\x02") + 6] = 200  # a version of the format that does not exist
    file.with_name("other.npz").write_bytes(other)
    cut(file)
    file.with_name("empty.npz").touch()  # np.load raises EOFError
    assert len(cached_extract(own, dataset(photos), cache=cache)) == 7
    assert computed == [8, 1, 8]
    shutil.rmtree(cache)
    cache.write_text("a file")
    with pytest.raises(UserError, match="cannot write the cache of features"):
        cached_extract(own, dataset(photos), cache=cache)


def test_small_images_in_memory(tmp_path: Path) -> None:
    model = random_model("test_resnet", num_classes=0, image_size=32, in_channels=1)
    own = Classifier(model, (), Preprocess(image_size=32, mean=(0.5,), std=(0.25,)))
    images = open_dataset(open_images("digits")["test"])
    cached = cached_extract(own, images, cache=tmp_path, batch_size=64)
    assert_equal(cached_extract(own, images, cache=tmp_path, batch_size=64), cached)
    assert_equal(cached, extract(own, images, batch_size=64))
