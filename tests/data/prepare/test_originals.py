"""Every dataset that jaxvision prepares by itself, from a tiny copy in its authors' layout."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.originals import at, serve, write_original

from jaxvision.data.prepare import ORIGINALS
from jaxvision.data.source import open_source
from jaxvision.errors import UserError


def prepared(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns the reader of TFDS for a tiny dataset that jaxvision has prepared, and what it should contain."""
    import tensorflow_datasets as tfds

    manual = name == "imagenet2012"
    files = folder / "data" / "downloads" / "manual" if manual else folder / "served"
    expected = write_original(name, files)
    options = {"dataset": name, "data_dir": str(folder / "data"), "train": "train", "test": list(expected)[1]}
    with serve(files) as address, monkeypatch.context() as context:
        mirrors = [] if manual else [address]
        context.setitem(ORIGINALS, name, at(name, files, *mirrors, expected=expected))
        open_source("tfds", **options)
    return tfds.builder(name, data_dir=str(folder / "data")), expected


@pytest.mark.parametrize("name", list(ORIGINALS))
def test_tfds_reads_every_prepared_dataset(name, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.shuffle import Shuffler

    builder, expected = prepared(name, tmp_path, monkeypatch)
    assert builder.is_prepared()
    assert set(builder.info.splits) == set(expected)
    for split, examples in expected.items():
        shuffler = Shuffler(dirpath=tmp_path, hash_salt=split)  # the order of TFDS
        for i, (key, *_) in enumerate(examples):
            shuffler.add(key, str(i).encode())
        order = [int(data) for _, data in shuffler]
        skip = {"image": tfds.decode.SkipDecoding()}
        got = list(builder.as_data_source(split=split, decoders=skip))
        assert len(got) == len(examples)
        for example, (_, image, label) in zip(got, (examples[i] for i in order), strict=True):
            if isinstance(image, bytes):
                assert example["image"] == image
            else:
                with Image.open(io.BytesIO(example["image"])) as decoded:
                    assert decoded.format == "PNG"
                    np.testing.assert_array_equal(np.asarray(decoded).reshape(image.shape), image)
            assert builder.info.features["label"].int2str(example["label"]) == label
    assert "tensorflow" not in sys.modules
    left = {path.name for path in Path(builder.data_path).parent.iterdir()}
    assert left == {str(builder.version), f".{builder.version}.lock"}


def test_further_features_are_those_of_tfds(tmp_path, monkeypatch):
    builder, _ = prepared("oxford_iiit_pet", tmp_path / "pets", monkeypatch)
    pets = {example["file_name"]: example for example in builder.as_data_source(split="train")}
    beagle = pets[b"beagle_12.jpg"]
    assert builder.info.features["species"].int2str(beagle["species"]) == "Dog"
    np.testing.assert_allclose(beagle["head_bbox"], [5 / 20, 3 / 30, 10 / 20, 15 / 30])  # ymin, xmin, ymax, xmax
    assert beagle["segmentation_mask"].shape == (8, 8, 1)
    assert not builder.as_data_source(split="test")[0]["head_bbox"].any()

    builder, expected = prepared("cifar100", tmp_path / "cifar100", monkeypatch)
    for example in builder.as_data_source(split="test"):
        number = int(example["id"].decode().removeprefix("test_"))
        assert builder.info.features["label"].int2str(example["label"]) == expected["test"][number][2]
        assert example["coarse_label"] == example["label"] % 20
    assert builder.info.features["coarse_label"].int2str(3) == "coarse3"

    builder, _ = prepared("svhn_cropped", tmp_path / "svhn", monkeypatch)
    assert {example["id"] for example in builder.as_data_source(split="extra")} == {
        f"extra_{i:06d}".encode() for i in range(4)
    }


def test_the_default_config_of_imagewoof(tmp_path, monkeypatch):
    name = "imagewoof/full-size-v2"
    prepared(name, tmp_path, monkeypatch)
    splits = open_source("tfds", dataset="imagewoof", data_dir=str(tmp_path / "data"), test="validation")
    assert [len(splits.train), len(splits.test)] == [6, 4]
    assert splits.train.classes[0] == "n02086240"  # Shih-Tzu
    with pytest.raises(UserError, match="cannot open 'imagewoof/999px'"):
        open_source("tfds", dataset="imagewoof/999px", data_dir=str(tmp_path / "data"))


@pytest.mark.parametrize("name", list(ORIGINALS))
def test_the_files_are_those_that_tfds_downloads(name):
    """The digests and sizes are also in TFDS's package, in files whose place is not documented."""
    import tensorflow_datasets as tfds

    if name.startswith("imagewoof"):
        pytest.skip("TFDS does not have it")
    package = tfds.core.tfds_path()
    lists = [*package.glob("url_checksums/*.txt"), *package.glob("datasets/*/checksums.tsv")]
    if not lists:
        pytest.skip("this release of TFDS keeps its checksums elsewhere")
    known = {}
    for line in "\n".join(path.read_text() for path in lists).splitlines():
        if len(fields := line.split("\t")) >= 3:
            known[fields[0]] = int(fields[1]), fields[2]
    for file in ORIGINALS[name].files if name != "imagenet2012" else ():
        assert [known[url] for url in file.urls if url in known] == [(file.size, file.digest)]


def test_labels_of_the_validation_images_of_imagenet():
    """Read by `read_imagenet` from TFDS's package; without the file, ImageNet cannot be prepared."""
    import tensorflow_datasets as tfds

    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    assert len(labels) == 50_000
    assert np.unique(labels, return_counts=True)[1].tolist() == [50] * 1000


def test_imagenet_needs_the_archives_of_the_user(tmp_path):
    write_original("imagenet2012", tmp_path / "downloads" / "manual")
    train = tmp_path / "downloads" / "manual" / "ILSVRC2012_img_train.tar"
    whole = train.read_bytes()
    train.unlink()
    with pytest.raises(UserError, match=r"Download ILSVRC2012_img_train\.tar from https://image-net.* to .*/manual,"):
        open_source("tfds", dataset="imagenet2012", data_dir=str(tmp_path))
    train.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot read .*ILSVRC2012_img_train\.tar"):
        open_source("tfds", dataset="imagenet2012", data_dir=str(tmp_path))
    assert not [path for path in (tmp_path / "imagenet2012").iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("files", "split"), [(["train"], "train"), (["val"], "validation"), (["train", "val"], "validation")]
)
def test_an_archive_of_imagenet_that_lacks_its_last_file(files, split, tmp_path, monkeypatch):
    """It was cut between two files, so that each of the others can be read. The smaller archive is checked first."""
    folder = tmp_path / "downloads" / "manual"
    expected = write_original("imagenet2012", folder)
    monkeypatch.setitem(ORIGINALS, "imagenet2012", at("imagenet2012", folder, expected=expected))
    for file in files:
        path = folder / f"ILSVRC2012_img_{file}.tar"
        with tarfile.open(path) as archive:
            last = archive.getmembers()[-1]
        path.write_bytes(path.read_bytes()[: last.offset])
    n = len(expected[split])
    lost = 1 if split == "validation" else 2  # a class of two images
    with pytest.raises(
        UserError, match=rf"ILSVRC.*: found {n - lost} of {n} images of the split {split}\. Replace the"
    ):
        open_source("tfds", dataset="imagenet2012", data_dir=str(tmp_path))
    assert not [path for path in (tmp_path / "imagenet2012").iterdir() if path.is_dir()]


def test_the_number_of_images_of_imagenet():
    """Of Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575, table 2."""
    assert ORIGINALS["imagenet2012"].images == {"train": 1_281_167, "validation": 50_000}
