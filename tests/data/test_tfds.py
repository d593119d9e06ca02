"""jaxvision.data.tfds: prepared datasets, read without TensorFlow."""

from __future__ import annotations

import importlib.util
import json
import pickle

import numpy as np
import pytest
from support.images import encode, scene

from jaxvision.augment.decoding import decode
from jaxvision.data.source import open_source
from jaxvision.errors import UserError


def sample_image(seed, size=12):
    return scene(size, size + 4, seed=seed)


def write_tfds(root, *, count=10, format="array_record", labels=None):
    """Writes a prepared dataset as `tfds build --file_format=array_record` does."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

    folder = root / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    splits = []
    for split, start, n in [("train", 0, count), ("test", count, 3)]:
        writer = ArrayRecordWriter(str(folder / f"tiny-{split}.{format}-00000-of-00001"), "group_size:1")
        for i in range(start, start + n):
            image = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[encode(sample_image(i))]))
            number = (labels or [0, 1, 2])[i % 3]
            label = tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[number]))
            features = tf_feature_pb2.Features(feature={"image": image, "label": label})
            writer.write(tf_example_pb2.Example(features=features).SerializeToString())
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"filepathTemplate": template, "name": split, "numBytes": "1", "shardLengths": [str(n)]})
    items = [{"featureKey": "image"}, {"featureKey": "label"}]
    info = {
        "fileFormat": format,
        "moduleName": "__main__",
        "name": "tiny",
        "splits": splits,
        "supervisedKeys": {"tuple": {"items": items}},
        "version": "1.0.0",
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    kind = "tensorflow_datasets.core.features."
    image = {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": ["-1", "-1", "3"]}}
    features = {
        "image": {"image": image, "pythonClassName": kind + "image_feature.Image"},
        "label": {"classLabel": {"numClasses": "3"}, "pythonClassName": kind + "class_label_feature.ClassLabel"},
    }
    (folder / "features.json").write_text(
        json.dumps({"featuresDict": {"features": features}, "pythonClassName": kind + "features_dict.FeaturesDict"})
    )
    (folder / "label.labels.txt").write_text("ant\nbee\ncat\n")
    return root


def test_tfds_reads_a_prepared_folder_without_tensorflow(tmp_path):
    import sys

    write_tfds(tmp_path)
    train, validation, test = open_source(
        "tfds", dataset="tiny", data_dir=str(tmp_path), train="train[:80%]", validation="train[80%:]"
    )
    assert "tensorflow" not in sys.modules
    assert [len(train), len(validation), len(test)] == [8, 2, 3]
    assert train.classes == ["ant", "bee", "cat"]
    assert train.labels is None
    copy = pickle.loads(pickle.dumps(train))
    for source in (train, copy):
        for i in (5, 0, 7):
            example = source[i]
            assert example["label"] == i % 3
            np.testing.assert_array_equal(np.asarray(decode(example["image"])), sample_image(i))
    many = train.__getitems__([3, 1])
    assert [example["label"] for example in many] == [0, 1]
    assert many[0]["image"] == train[3]["image"]
    np.testing.assert_array_equal(np.asarray(decode(validation[1]["image"])), sample_image(9))
    assert validation.where(1) == "tfds tiny train[80%:][1]"


def test_missing_tfds_datasets_and_splits(tmp_path, monkeypatch):
    write_tfds(tmp_path)
    here = {"data_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"got the split 'validation', expected one of train \(10\), test \(3\)"):
        open_source("tfds", dataset="tiny", validation="validation", **here)
    with pytest.raises(UserError, match=r"got 'tyni', expected a dataset of TFDS"):
        open_source("tfds", dataset="tyni", **here)
    with pytest.raises(UserError, match=r"got 'tiny:2\.0\.0', expected a dataset of TFDS"):
        open_source("tfds", dataset="tiny:2.0.0", **here)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"eurosat: not prepared in .*pip install '\.\[tfds\]'"):
        open_source("tfds", dataset="eurosat", **here)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("cifar10:3.0.1", "cannot be loaded at version 3.0.1, only: 3.0.2. Check the name"),
        ("cifar10/other", "BuilderConfig other not found with version 3.0.2. Did you mean 'cifar10'?"),
        ("cifar-10", "Did you mean 'cifar10'?"),
        ("imagenet", "expected a dataset of TFDS or one in HERE. Did you mean 'imagenet2012'?"),
        ("huggingface:beans", "set --config.source.name=huggingface and --config.source.path=beans."),
    ],
)
def test_names_that_are_nearly_right(dataset, words, tmp_path):
    with pytest.raises(UserError) as caught:
        open_source("tfds", dataset=dataset, data_dir=str(tmp_path))
    assert words.replace("HERE", str(tmp_path)) in str(caught.value)
    assert "builder_kwargs" not in str(caught.value)


def test_an_old_config_names_those_that_need_no_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"choose one that needs no TensorFlow: .*'imagenette/160px-v2', or prepare"):
        open_source("tfds", dataset="imagenette/160px", data_dir=str(tmp_path))


def test_what_is_not_a_folder_of_datasets(tmp_path):
    (tmp_path / "file").touch()
    for path, words in [
        (tmp_path / "file", "got the file "),
        (tmp_path / "file" / "folder", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ]:
        with pytest.raises(UserError, match=rf"source\.data_dir: .*{words}.* expected a folder"):
            open_source("tfds", dataset="cifar10", data_dir=str(path))
    (info,) = write_tfds(tmp_path).glob("tiny/*/dataset_info.json")
    info.write_text("{")
    with pytest.raises(UserError, match=r"cannot open 'tiny' in .*: Failed to load JSON"):
        open_source("tfds", dataset="tiny", data_dir=str(tmp_path))


def test_tfds_in_a_format_that_needs_tensorflow(tmp_path):
    write_tfds(tmp_path, format="tfrecord")
    with pytest.raises(
        UserError, match=r"got the format tfrecord in .*, expected array_record, .* convert it: tfds convert_format"
    ):
        open_source("tfds", dataset="tiny", data_dir=str(tmp_path))


@pytest.mark.shared
def test_cifar10(shared):
    train, validation, test = open_source(
        "tfds", dataset="cifar10", data_dir=str(shared / "data" / "tfds"), train="train[:98%]", validation="train[98%:]"
    )
    assert [len(train), len(validation), len(test)] == [49_000, 1_000, 10_000]
    assert train.classes[:3] == ["airplane", "automobile", "bird"]
    example = test[9_999]
    assert decode(example["image"]).size == (32, 32)
    assert 0 <= example["label"] < 10


def test_tfds_prepares_without_reserving_gpu_memory(tmp_path, monkeypatch):
    """TensorFlow would reserve all of the memory that the same process needs for training."""
    import sys
    from types import SimpleNamespace

    import tensorflow_datasets

    calls = []

    def set_visible_devices(devices, kind):
        calls.append((devices, kind))
        raise RuntimeError("TensorFlow has already started")  # is ignored

    def builder(dataset, data_dir, file_format=None):
        calls.append(file_format)
        return prepared if file_format else SimpleNamespace(is_prepared=lambda: False)

    prepared = tensorflow_datasets.builder("tiny", data_dir=str(write_tfds(tmp_path)))
    config = SimpleNamespace(set_visible_devices=set_visible_devices)
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config, __spec__=object()))
    monkeypatch.setattr(tensorflow_datasets, "builder", builder)
    monkeypatch.setattr(prepared, "download_and_prepare", lambda: calls.append("prepared"))
    assert len(open_source("tfds", dataset="tiny", data_dir=str(tmp_path)).train) == 10
    assert calls == [None, "array_record", ([], "GPU"), ([], "TPU"), "prepared"]


@pytest.mark.parametrize(
    "split", ["train[-5:]", "train[:-20%]", "train[:33.3%]", "train+test", "train[:10%]+test", "all"]
)
def test_slices_mean_what_they_mean_to_tfds(split, tmp_path):
    import tensorflow_datasets as tfds

    builder = tfds.builder("tiny", data_dir=str(write_tfds(tmp_path)))
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    numbers = {"train": range(10), "test": range(10, 13)}  # of the images
    expected = [i for part in parts for i in numbers[part.splitname][part.from_ : part.to]]
    source = open_source("tfds", dataset="tiny", data_dir=str(tmp_path), train=split).train
    got = [np.asarray(decode(source[i]["image"])) for i in range(len(source))]
    np.testing.assert_array_equal(got, [sample_image(i) for i in expected])


MALFORMED = [
    "nosuch", "TRAIN", "train[:10%", "train[abc:]", "train[3]", "train[::2]", "train[]", "train[:]", "train[:200%]",
    "train[-200%:]", "train[:50]", "train[50:]", "train[:0]", "train[5:5]", "train[5:3]", "train[20%:10%]",
    "train|test", "test+train[5:3]", "train[:10%][:5]", 5,
]  # fmt: skip


@pytest.mark.parametrize("split", MALFORMED)
def test_malformed_slices_are_one_line(split, tmp_path):
    write_tfds(tmp_path)
    for key in ("train", "validation"):
        with pytest.raises(UserError) as caught:
            open_source("tfds", dataset="tiny", data_dir=str(tmp_path), **{key: split})
        expected = f"tfds tiny: got the split {split!r}, expected one of train (10), test (3), or examples of one"
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)
