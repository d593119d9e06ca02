"""jaxvision.data.huggingface: parquet files."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.images import encode, scene

from jaxvision.augment.decoding import decode
from jaxvision.data.dataset import open_dataset
from jaxvision.data.source import empty_classes_text, open_source
from jaxvision.errors import UserError


def sample_image(seed, size=12):
    return scene(size, size + 4, seed=seed)


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
        (
            [0, None, 1],
            None,
            r"row 1 has no 'label', expected a label in every row. Remove the rows without one \(1\)\.",
        ),
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


# --- labels


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("names", [None, ["x", "y", "z"]])
def test_labels_of_every_width(tmp_path, kind, names):
    write_parquet(tmp_path / "set" / "train.parquet", [0, 2, 1], label_type=kind, names=names)
    train = open_parquet(tmp_path, test=None).train
    assert train.labels.tolist() == [0, 2, 1]
    assert train.classes == (names or ["0", "1", "2"])


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        ([True, False, True], "bool_", ["false", "true"]),
        (["b", "a", "b"], "string", ["a", "b"]),
        (["b", "a", "b"], "large_string", ["a", "b"]),
        (["b", "a", "b"], "string_view", ["a", "b"]),
        (["b", "a", "b"], pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        ([1, 0, 1], pa.dictionary(pa.int8(), pa.int64()), ["0", "1"]),
    ],
)
def test_labels_of_other_types(tmp_path, values, kind, classes):
    kind = getattr(pa, kind)() if isinstance(kind, str) else kind
    write_parquet(tmp_path / "set" / "train.parquet", values, label_type=kind)
    train = open_parquet(tmp_path, test=None).train
    assert train.labels.tolist() == [1, 0, 1]
    assert train.classes == classes


@pytest.mark.parametrize("wrong", [2**32 + 1, 2**63 + 5, 10**9])
def test_a_label_that_is_not_the_number_of_a_class(tmp_path, wrong):
    """2**32 + 1 would be 1 as an int32."""
    write_parquet(tmp_path / "set" / "train.parquet", [0, 1, wrong], label_type=pa.uint64(), names=["x", "y"])
    with pytest.raises(UserError, match=rf"row 2 has the label {wrong}, expected numbers of classes from 0"):
        open_parquet(tmp_path, test=None)
    if wrong < 2**63:
        write_parquet(tmp_path / "set" / "train.parquet", [0, 1, 1 - wrong], label_type=pa.int64(), names=["x", "y"])
        with pytest.raises(UserError, match=r"train\[2\]: got the label -1, expected 0 to 1"):
            open_parquet(tmp_path, test=None)


@pytest.mark.parametrize(
    ("labels", "n", "said"),
    [
        ([1, 2, 3], 4, "1 of 4 classes has no image: '0'"),
        ([0, 7, 0], 8, "6 of 8 classes have no image: '1'"),
        ([0, 1, 1], 2, ""),
    ],
)
def test_classes_without_images_are_counted(tmp_path, labels, n, said):
    write_parquet(tmp_path / "set" / "train.parquet", labels)
    train = open_parquet(tmp_path, test=None).train
    assert train.labels.tolist() == labels
    assert train.classes == [str(i) for i in range(n)]
    assert empty_classes_text(train).startswith(said)
    assert bool(empty_classes_text(train)) == bool(said)


def test_files_that_disagree_about_the_classes(tmp_path):
    write_parquet(tmp_path / "set" / "train-0.parquet", [0, 1], names=["x", "y"])
    write_parquet(tmp_path / "set" / "train-1.parquet", [0, 1], names=["y", "x"])
    with pytest.raises(UserError, match=r"train-1.parquet: got the classes y, x, expected those of .*train-0.*: x, y"):
        open_parquet(tmp_path, test=None)
    write_parquet(tmp_path / "set" / "train-1.parquet", ["x", "y"])
    with pytest.raises(UserError, match=r"train-1.parquet: got names as labels, expected numbers as in .*train-0"):
        open_parquet(tmp_path, test=None)


# --- splits


@pytest.mark.parametrize(
    "name", ["train.parquet", "train-00000-of-00002.parquet", "data/train-0.parquet", "default/train/0000.parquet"]
)
def test_the_names_that_the_hub_gives_to_a_split(tmp_path, name):
    write_parquet(tmp_path / "set" / name, [0, 1])
    for other in ("training_data-0", "train2-0", "train_sft-0", "latest-0", "validation", "trainer/0000", "pretrain/0"):
        write_parquet(tmp_path / "set" / f"{other}.parquet", [0, 1, 0])
    write_parquet(tmp_path / "set" / ".cache" / "train-0.parquet", [0, 1, 0])
    assert len(open_parquet(tmp_path, test=None).train) == 2


def test_a_folder_named_after_a_split_may_hold_others(tmp_path):
    write_parquet(tmp_path / "set" / "train" / "train-0.parquet", [0, 1])
    write_parquet(tmp_path / "set" / "train" / "test-0.parquet", [0])
    train, _, test = open_parquet(tmp_path)
    assert (len(train), len(test)) == (2, 1)
    write_parquet(tmp_path / "set" / "more" / "train" / "0000.parquet", [0, 1])
    with pytest.raises(UserError, match="'train' in several folders: more/train, train"):
        open_parquet(tmp_path)


# --- images


@pytest.mark.parametrize("kind", ["bytes", "binary_view", "path", "struct of paths", "struct of either", "absolute"])
def test_images_as_bytes_or_as_paths(tmp_path, kind):
    folder = tmp_path / "set" / "data"
    (folder / "images").mkdir(parents=True)
    contents, paths = [encode(sample_image(i)) for i in range(3)], [f"images/{i}.png" for i in range(3)]
    for path, content in zip(paths, contents, strict=True):
        (folder / path).write_bytes(content)
    column = {
        "bytes": pa.array(contents),
        "binary_view": pa.array(contents, pa.binary_view()),
        "path": pa.array(paths),
        "struct of paths": pa.array([{"path": path} for path in paths]),
        "struct of either": pa.array([{"bytes": c if i else None, "path": paths[i]} for i, c in enumerate(contents)]),
        "absolute": pa.array([str(folder / path) for path in paths]),
    }[kind]
    pq.write_table(pa.table({"image": column, "label": [0, 1, 0]}), folder / "train.parquet")
    train = pickle.loads(pickle.dumps(open_parquet(tmp_path, test=None).train))
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(decode(train[i]["image"])), sample_image(i))


def test_rows_without_an_image_count_as_damaged(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"bytes": encode(sample_image(0)), "path": None}, None, {"bytes": None, "path": "no.png"}, {"bytes": b""}]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind), "label": [0, 1, 0, 1]}), folder / "train.parquet")
    dataset = open_dataset(open_parquet(tmp_path, test=None).train, log=lambda message: None)
    assert sorted(dataset.corrupt) == [1, 2, 3]
    assert "No such file" in dataset.corrupt[2][1]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1, 2]), "got int64 in the column 'image', expected the bytes or the paths of images"),
        (pa.array([[1, 2], [3]]), "got list<.*> in the column 'image'.* Set source.image"),
        (pa.array([{"pixels": 1}, {"pixels": 2}]), "got struct<pixels: int64> in the column 'image'"),
        (pa.array(["https://host/a.png", "b.png"]), "got the address 'https:/host/a.png'.* Download the images first"),
    ],
)
def test_columns_that_hold_no_images(tmp_path, column, message):
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "set" / "train.parquet")
    with pytest.raises(UserError, match=message):
        open_parquet(tmp_path, test=None)


def test_the_key_that_chooses_between_several_columns(tmp_path):
    (tmp_path / "set").mkdir()
    table = {"img": [encode(sample_image(i)) for i in range(2)], "fine_label": [3, 1], "coarse_label": [0, 1]}
    pq.write_table(pa.table(table), tmp_path / "set" / "train.parquet")
    with pytest.raises(UserError, match=r"got 'image', expected a column.*Set source.image to the column of"):
        open_parquet(tmp_path, test=None)
    with pytest.raises(UserError, match=r"'label', .*Did you mean 'fine_label'.*Set source.label to the column"):
        open_parquet(tmp_path, test=None, image="img")
    assert open_parquet(tmp_path, test=None, image="img", label="fine_label").train.labels.tolist() == [3, 1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_parquet_files(tmp_path, share):
    file = tmp_path / "set" / "train.parquet"
    write_parquet(file, [0, 1])
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match=r"train.parquet: cannot be read as parquet .* Repair or remove the file"):
        open_parquet(tmp_path, test=None)


def test_a_part_without_rows(tmp_path):
    write_parquet(tmp_path / "set" / "train-0.parquet", [])
    with pytest.raises(UserError, match="got no images in the split 'train'"):
        open_parquet(tmp_path, test=None)
    write_parquet(tmp_path / "set" / "train-1.parquet", ["b", "a"])
    assert open_parquet(tmp_path, test=None).train.classes == ["a", "b"]
