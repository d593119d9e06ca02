"""Records as TFDS writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxvision.data.prepare.records import write_split
from jaxvision.data.prepare.split import Split


def read_records(folder: Path, split: str) -> list[bytes]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    with ArrayRecordDataSource(sorted(str(path) for path in folder.glob(f"*-{split}.array_record-*"))) as records:
        return [records[i] for i in range(len(records))]


def test_a_large_split_has_several_files(tmp_path):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names="ab")}
    )
    split = Split("train", range(10), lambda i: {"image": bytes([i]) * 100, "label": i % 2, "unknown to tfds": 1})
    info = write_split(split, tmp_path, dataset="tiny", features=features, file_bytes=350)
    assert info.shard_lengths == [3, 3, 3, 1]
    records = read_records(tmp_path, "train")
    assert info.num_bytes == sum(map(len, records))
    assert {path.name for path in tmp_path.iterdir()} == {f"tiny-train.array_record-{i:05d}-of-00004" for i in range(4)}
    images = {
        features.deserialize_example_np(record, decoders={"image": tfds.decode.SkipDecoding()})["image"]
        for record in records
    }
    assert images == {bytes([i]) * 100 for i in range(10)}


@pytest.mark.shared
def test_a_record_is_that_of_tfds(tmp_path, shared):
    """CIFAR-10 in the shared folder was written by another program."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.proto import tf_example_pb2

    folder = shared / "data" / "tfds" / "cifar10" / "3.0.2"
    expected = tf_example_pb2.Example.FromString(read_records(folder, "test")[7])
    values = expected.features.feature
    example = {
        "image": values["image"].bytes_list.value[0],
        "label": values["label"].int64_list.value[0],
        "id": values["id"].bytes_list.value[0],
    }
    features = tfds.builder("cifar10", data_dir=shared / "data" / "tfds").info.features
    write_split(Split("test", [0], lambda i: example), tmp_path, dataset="cifar10", features=features)
    assert tf_example_pb2.Example.FromString(read_records(tmp_path, "test")[0]) == expected
