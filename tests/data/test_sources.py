"""jaxvision.data: the sources."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.images import encode, scene

from jaxvision.augment.decoding import decode
from jaxvision.data.source import SOURCES, open_source, stratified_split
from jaxvision.errors import UserError


def sample_image(seed, size=12):
    return scene(size, size + 4, seed=seed)


# --- by name


def test_an_unknown_source_or_option_names_the_nearest():
    with pytest.raises(UserError, match=r"source\.name: got 'folders', expected a source\. Did you mean 'folder'"):
        open_source("folders")
    with pytest.raises(UserError, match=r"got 'data_dri', expected an option of .*'folder'\. Did you mean 'data_dir'"):
        open_source("folder", data_dri="x")
    assert set(SOURCES) == {"digits", "folder", "tfds", "huggingface"}


def test_a_missing_part():
    with pytest.raises(UserError, match=r"split: got 'validation', expected a split .* Valid names: 'test', 'train'\."):
        open_source("digits").split("validation")


def test_stratified_split_holds_out_the_share_of_each_class():
    labels = np.repeat(np.arange(4), [50, 20, 3, 1])
    kept, held = stratified_split(labels, 0.2, seed=0)
    assert sorted([*kept, *held]) == list(range(74))
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 4, 1, 0]
    again = stratified_split(labels, 0.2, seed=0)
    np.testing.assert_array_equal(held, again[1])
    assert (held != stratified_split(labels, 0.2, seed=1)[1]).any()
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match="between 0 and 1"):
            stratified_split(labels, fraction, seed=0)


# --- digits


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, validation, test = open_source("digits")
    assert validation is None
    assert train.classes == [str(i) for i in range(10)]
    assert len(train) + len(test) == 1797
    assert abs(len(test) - 359) <= 5
    expected = {image.tobytes(): label for image, label in zip(load_digits().images, load_digits().target, strict=True)}
    seen = set()
    for source in (train, test):
        for i in range(len(source)):
            example = source[i]
            assert example["image"].shape == (8, 8, 1)
            levels = np.round(example["image"][..., 0] * (16 / 255.0))
            assert expected[levels.tobytes()] == example["label"] == source.labels[i]
            seen.add((levels.tobytes(), source is test))
    assert len(seen) >= 1790  # no image is in both splits (a few of the 1797 may be equal)
    share = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
    assert np.abs(share - 0.2).max() < 0.01


def test_the_digits_split_is_fixed_by_its_seed():
    a, b = open_source("digits").test, open_source("digits", split_seed=0).test
    np.testing.assert_array_equal(a.images, b.images)
    assert (a.images != open_source("digits", split_seed=1).test.images).any()


# --- Hugging Face


def write_parquet(path, labels, *, names=None, struct=True, group=3, start=0, label_type=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [encode(sample_image(start + i)) for i in range(len(labels))]
    column = [{"bytes": b, "path": None} for b in images] if struct else images
    table = pa.table({"image": column, "label": pa.array(labels, label_type)})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)


def open_parquet(tmp_path, **options):
    return open_source("huggingface", path=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), **options)


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_rows_in_any_order(tmp_path, struct):
    data = tmp_path / "set" / "data"
    write_parquet(data / "train-00000-of-00002.parquet", [0, 1, 2, 1, 0], names=["x", "y", "z"], struct=struct)
    write_parquet(data / "train-00001-of-00002.parquet", [2, 2], names=["x", "y", "z"], struct=struct, start=5)
    write_parquet(data / "test-00000-of-00001.parquet", [1], names=["x", "y", "z"], struct=struct, start=7)
    train, validation, test = open_parquet(tmp_path)
    assert validation is None
    assert train.classes == test.classes == ["x", "y", "z"]
    assert train.labels.tolist() == [0, 1, 2, 1, 0, 2, 2]
    assert train.where(3).endswith("train[3]")
    copy = pickle.loads(pickle.dumps(train))  # as a worker receives it
    for i in (6, 0, 5, 3):
        for source in (train, copy):
            example = source[i]
            np.testing.assert_array_equal(np.asarray(decode(example["image"])), sample_image(i))
            assert example["label"] == train.labels[i]
    assert len(test) == 1
    before = sorted(p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir())
    open_parquet(tmp_path)
    assert sorted(p.stat().st_mtime_ns for p in (tmp_path / "cache").iterdir()) == before  # copied once


def test_parquet_classes_without_names_and_by_name(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", [0, 3, 1])
    write_parquet(tmp_path / "set" / "test.parquet", [2])
    assert open_parquet(tmp_path).test.classes == ["0", "1", "2", "3"]
    write_parquet(tmp_path / "set" / "train.parquet", ["emu", "ant", "emu", "cat"])
    write_parquet(tmp_path / "set" / "test.parquet", ["cat"])
    train, _, test = open_parquet(tmp_path)
    assert train.classes == ["ant", "cat", "emu"]
    assert train.labels.tolist() == [2, 0, 2, 1]
    assert test.labels.tolist() == [1]


def test_parquet_parts_are_selected_by_name(tmp_path):
    for split in ("train", "dev"):
        write_parquet(tmp_path / "set" / split / "0000.parquet", [0, 1])
    with pytest.raises(UserError, match="got no parquet files of the split 'test'"):
        open_parquet(tmp_path)
    train, validation, test = open_parquet(tmp_path, validation="dev", test=None)
    assert (len(train), len(validation), test) == (2, 2, None)
    write_parquet(tmp_path / "set" / "large" / "train" / "0000.parquet", [0, 1])
    with pytest.raises(UserError, match=r"'train' in several folders: .*source\.folder"):
        open_parquet(tmp_path, test=None)
    assert len(open_parquet(tmp_path, folder="large", test=None).train) == 2


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            [0, 1, 2],
            ["x", "y"],
            r"train\[2\]: got the label 2, expected 0 to 1 for 2 classes\. Number of such labels in .*: 1\.",
        ),
        ([0, -1, -1], None, r"train\[1\]: got the label -1, expected 0 to 0"),
        ([0, None, 1], None, "row 1 has no 'label'"),
        ([0.5, 1.0], None, "got double in the column 'label', expected the numbers or names of classes"),
    ],
)
def test_invalid_parquet_labels(tmp_path, labels, names, message):
    write_parquet(tmp_path / "set" / "train.parquet", labels, names=names)
    with pytest.raises(UserError, match=message):
        open_parquet(tmp_path, test=None)


def test_invalid_parquet_files(tmp_path):
    with pytest.raises(UserError, match="expected a folder that exists, or the name of a dataset"):
        open_source("huggingface", path=str(tmp_path / "nothing"))
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="got no parquet files, expected at least one"):
        open_parquet(tmp_path)
    (tmp_path / "set" / "train.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(UserError, match="cannot be read as parquet"):
        open_parquet(tmp_path, test=None)
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1])
    with pytest.raises(UserError, match=r"got 'img', expected a column. Did you mean 'image'"):
        open_parquet(tmp_path, image="img", test=None)


def test_a_parquet_cache_that_cannot_be_written(tmp_path):
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1])
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot copy the images to"):
        open_parquet(tmp_path, test=None)


def test_download_from_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    with pytest.raises(UserError, match=r"cannot download the dataset .*Without a network, set --config\.source\.path"):
        open_source("huggingface", path="someone/something", cache_dir=str(tmp_path / "cache"))  # HF_HUB_OFFLINE is set
    write_parquet(tmp_path / "snapshot" / "data" / "train-0.parquet", [0, 1])
    received = {}

    def snapshot(name, **options):
        received.update(options, name=name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    splits = open_source(
        "huggingface", path="someone/something", test=None, revision="v2", cache_dir=str(tmp_path / "cache")
    )
    assert len(splits.train) == 2
    assert (received["name"], received["repo_type"], received["revision"]) == ("someone/something", "dataset", "v2")


#: As written by the package `datasets` 2.14.
REAL_METADATA = (
    '{"info": {"features": {"img": {"_type": "Image"}, "label": {"names": ["airplane", "automobile"], '
    '"_type": "ClassLabel"}}}}'
)


@pytest.mark.parametrize(
    ("metadata", "classes"), [(REAL_METADATA, ["airplane", "automobile"]), ("{}", ["0", "1"]), ("no JSON", ["0", "1"])]
)
def test_class_names_are_read_from_real_metadata(metadata, classes, tmp_path):
    file = tmp_path / "set" / "train.parquet"
    write_parquet(file, [0, 1])
    pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": metadata}), file)
    assert open_parquet(tmp_path, test=None).train.classes == classes


# --- TensorFlow Datasets


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
    import importlib.util

    write_tfds(tmp_path)
    here = {"data_dir": str(tmp_path)}
    with pytest.raises(UserError, match=r"got the split 'validation', expected one of train \(10\), test \(3\)"):
        open_source("tfds", dataset="tiny", validation="validation", **here)
    with pytest.raises(UserError, match=r"got 'tyni', expected a dataset of TFDS"):
        open_source("tfds", dataset="tyni", **here)
    with pytest.raises(UserError, match=r"got 'tiny:2\.0\.0', expected a dataset of TFDS"):
        open_source("tfds", dataset="tiny:2.0.0", **here)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"cifar10: not prepared in .*pip install '\.\[tfds\]'"):
        open_source("tfds", dataset="cifar10", **here)


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
