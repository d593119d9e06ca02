"""Datasets: batches, damaged images, workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from support.images import encode, scene
from support.paths import ROOT

from jaxvision.augment import host
from jaxvision.augment.decoding import decode
from jaxvision.augment.preprocess import Preprocess
from jaxvision.data import ArraySource, order
from jaxvision.data.dataset import StoredDataset, StreamedDataset, open_dataset
from jaxvision.data.pipeline import FromMemory, FromWorkers, batch_shapes
from jaxvision.data.prefetch import prefetch
from jaxvision.data.source import open_source
from jaxvision.errors import UserError

CROP = {"scale": (0.3, 1.0), "ratio": (0.8, 1.25), "interpolation": "bilinear"}


def stored_dataset(n=10, classes=3):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    names = [f"class {i}" for i in range(classes)]
    return open_dataset(ArraySource(images, np.arange(n) % classes, classes=names, name="numbers"))


def photo_folder(root, count=6, *, damaged=()):
    """Writes JPEG images of different shapes in two classes, some of them truncated."""
    for i in range(count):
        folder = root / ("ant", "bee")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        data = encode(scene(40 + 3 * i, 60 - 2 * i, seed=i), "JPEG", quality=90)
        (folder / f"{i:02}.jpg").write_bytes(data[: len(data) // 2] if i in damaged else data)
    return root


def open_photos(root, *, max_corrupt=10, messages=None, **options):
    source = open_source("folder", data_dir=str(root), **options)
    log = messages.append if messages is not None else lambda text: None
    return open_dataset(source.train, max_corrupt=max_corrupt, log=log)


# --- images in memory


def test_small_images_of_one_shape_are_stored_and_others_are_streamed(tmp_path):
    assert stored_dataset().images.shape == (10, 4, 4, 3)
    images = np.zeros((10, 4, 4, 3), np.uint8)
    source = ArraySource(images, np.zeros(10, int), classes=["a"], name="zeros")
    assert isinstance(open_dataset(source, memory_limit=0), StreamedDataset)
    assert isinstance(open_dataset(source, memory_limit=480 / 2**30), StoredDataset)
    assert isinstance(open_dataset(source, memory_limit=479 / 2**30), StreamedDataset)
    assert isinstance(open_photos(photo_folder(tmp_path)), StreamedDataset)


def test_train_batches_of_stored_images():
    dataset = stored_dataset()
    batches = list(dataset.train_batches(batch_size=4, image_size=8, seed=3, start_step=0, stop_step=5))
    assert len(batches) == 5
    for step, batch in enumerate(batches):
        index = order.batch_indices(10, 4, seed=3, step=step)[1]
        np.testing.assert_array_equal(batch["index"], index)
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], index)
        np.testing.assert_array_equal(batch["label"], index % 3)
        assert batch["mask"].all()
        assert {name: a.dtype.name for name, a in batch.items()} == {
            "image": "uint8", "label": "int32", "index": "int32", "mask": "bool"
        }  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 16])
def test_evaluation_counts_every_image_once(batch_size):
    batches = list(stored_dataset().eval_batches(batch_size=batch_size, preprocess=Preprocess()))
    assert len(batches) == order.eval_steps(10, batch_size)
    assert all(len(batch["mask"]) == batch_size for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    assert index[mask].tolist() == list(range(10))
    assert label[mask].tolist() == [i % 3 for i in range(10)]
    assert (index[~mask] == -1).all()


def test_processes_share_a_batch():
    dataset = stored_dataset()
    options = {"batch_size": 4, "image_size": 8, "seed": 3, "start_step": 2, "stop_step": 4}
    whole = list(dataset.train_batches(**options))
    halves = [list(dataset.train_batches(**options, process=(i, 2))) for i in (0, 1)]
    for step in range(2):
        for name in ("image", "label", "index", "mask"):
            joined = np.concatenate([half[step][name] for half in halves])
            np.testing.assert_array_equal(joined, whole[step][name])
    evaluated = [list(dataset.eval_batches(batch_size=4, preprocess=Preprocess(), process=(i, 2))) for i in (0, 1)]
    index = np.concatenate([batch["index"][batch["mask"]] for half in evaluated for batch in half])
    assert sorted(index.tolist()) == list(range(10))
    with pytest.raises(UserError, match="got 4, expected a multiple of the 3 processes"):
        next(dataset.train_batches(**options, process=(0, 3)))


# --- streamed images


def test_streamed_crops_depend_only_on_seed_epoch_and_index(tmp_path):
    dataset = open_photos(photo_folder(tmp_path))
    n = len(dataset)
    options = {"batch_size": 3, "image_size": 16, "seed": 5, "crop": CROP, "workers": 0}
    batches = list(dataset.train_batches(start_step=0, stop_step=4, **options))
    for step, batch in enumerate(batches):
        epochs, numbers = order.batch_indices(n, 3, seed=5, step=step)
        np.testing.assert_array_equal(batch["index"], numbers)
        np.testing.assert_array_equal(batch["label"], dataset.source.labels[numbers])
        assert batch["mask"].all()
        for row in range(3):
            key = [5, (int(epochs[row]) << 32) + int(numbers[row]) + 1]
            rng = np.random.Generator(np.random.Philox(key=key))
            expected = host.train_crop(dataset.source[int(numbers[row])]["image"], 16, rng, **CROP)
            np.testing.assert_array_equal(batch["image"][row], expected)
    later = list(dataset.train_batches(start_step=2, stop_step=4, **options))  # a resumed run
    for a, b in zip(batches[2:], later, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_without_crop_options_the_middle_is_cropped(tmp_path):
    dataset = open_photos(photo_folder(tmp_path))
    options = {"batch_size": 3, "image_size": 16, "seed": 5, "workers": 0, "start_step": 0, "stop_step": 1}
    (batch,) = dataset.train_batches(crop=None, **options)
    image = decode(dataset.source[int(batch["index"][1])]["image"])
    expected = host.eval_transform(image, Preprocess(image_size=16, crop_pct=1.0))
    np.testing.assert_array_equal(batch["image"][1], expected)


def test_an_empty_share_of_a_batch_has_the_full_shape():
    """The last evaluation batch may have no images for a process, which must still run the same program."""
    dataset = open_dataset(open_source("digits").test, memory_limit=0)
    for index, count in ((0, 7), (1, 0)):
        *_, last = dataset.eval_batches(
            batch_size=32, preprocess=Preprocess(image_size=16), workers=0, process=(index, 2)
        )
        assert last["image"].shape == (16, 16, 16, 1)
        assert last["mask"].sum() == count


def test_evaluation_of_streamed_images(tmp_path):
    dataset = open_photos(photo_folder(tmp_path, count=9))
    preprocess = Preprocess(image_size=16, crop_pct=0.9)
    n = len(dataset)
    batches = list(dataset.eval_batches(batch_size=3, preprocess=preprocess, workers=0))
    index = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    assert index[mask].tolist() == list(range(n))
    for i in range(n):
        expected = host.eval_transform(decode(dataset.source[i]["image"]), preprocess)
        np.testing.assert_array_equal(images[i], expected)


def test_getitems_is_used_if_the_source_has_it():
    class Many(ArraySource):
        calls = ()

        def __getitem__(self, index):
            raise AssertionError("read one by one")

        def __getitems__(self, indices):
            self.calls += (list(indices),)
            return [ArraySource.__getitem__(self, i) for i in indices]

    source = Many(np.zeros((5, 8, 8, 3), np.uint8), np.zeros(5, int), classes=["a"], name="many")
    dataset = StreamedDataset(source)
    batches = list(dataset.eval_batches(batch_size=4, preprocess=Preprocess(image_size=8), workers=0))
    assert [batch["mask"].sum() for batch in batches] == [4, 1]
    assert sorted(source.calls) == [[0, 1, 2, 3], [4]]


# --- damaged images


def test_a_damaged_image_is_counted_logged_and_masked(tmp_path):
    messages = []
    dataset = open_photos(photo_folder(tmp_path, count=10, damaged=(4,)), messages=messages, test_fraction=0.2)
    bad = next(i for i, file in enumerate(dataset.source.files) if file.endswith("04.jpg"))
    batches = list(
        dataset.train_batches(batch_size=4, image_size=16, seed=0, start_step=0, stop_step=6, crop=CROP, workers=0)
    )
    for batch in batches:
        np.testing.assert_array_equal(batch["mask"], batch["index"] != bad)
    assert sum((~batch["mask"]).sum() for batch in batches) == 3  # once in each of three epochs
    assert list(dataset.corrupt) == [bad]
    assert messages == [f"skipped the damaged image {dataset.source.files[bad]}: {dataset.corrupt[bad][1]}"]
    assert "damaged image" in messages[0]
    evaluated = list(dataset.eval_batches(batch_size=3, preprocess=Preprocess(image_size=16), workers=0))
    index = np.concatenate([batch["index"][batch["mask"]] for batch in evaluated])
    assert sorted([*index.tolist(), bad]) == list(range(8))
    assert len(messages) == 1  # logged only once


def test_too_many_damaged_images_are_an_error(tmp_path):
    dataset = open_photos(photo_folder(tmp_path, count=20, damaged=(2, 4, 9, 13)), max_corrupt=2)
    with pytest.raises(UserError, match=r"got 3 damaged images, expected at most data\.max_corrupt=2: .*\.jpg"):
        list(dataset.eval_batches(batch_size=4, preprocess=Preprocess(image_size=16), workers=0))


def test_damaged_images_in_a_stored_dataset(tmp_path):
    for i in range(12):
        folder = tmp_path / ("a", "b")[i % 2]
        folder.mkdir(exist_ok=True)
        data = encode(scene(16, 16, seed=i))
        (folder / f"{i:02}.png").write_bytes(data[:60] if i == 5 else data)
    messages = []
    dataset = open_photos(tmp_path, messages=messages, test_fraction=0.1)
    assert dataset.images.shape == (10, 16, 16, 3)
    if dataset.corrupt:  # unless it was held out
        (bad,) = dataset.corrupt
        assert "05.png" in messages[0]
        (batch,) = dataset.eval_batches(batch_size=10, preprocess=Preprocess())
        np.testing.assert_array_equal(batch["mask"], np.arange(10) != bad)
    with pytest.raises(UserError, match=r"got 1 damaged image, expected at most .*Repair or remove damaged images"):
        open_photos(tmp_path, max_corrupt=0, test_fraction=0.1)


def test_a_deleted_file_counts_as_a_damaged_image(tmp_path):
    dataset = open_photos(photo_folder(tmp_path, count=10))
    Path(dataset.source.files[3]).unlink()
    batches = list(dataset.eval_batches(batch_size=8, preprocess=Preprocess(image_size=16), workers=0))
    assert batches[0]["mask"].tolist() == [i != 3 for i in range(8)]
    assert "No such file" in dataset.corrupt[3][1]


def test_no_image_can_be_read(tmp_path):
    with pytest.raises(UserError, match="damaged images, expected at most"):
        open_photos(photo_folder(tmp_path, count=24, damaged=range(24)))


def test_ignored_files_are_logged(tmp_path):
    photo_folder(tmp_path)
    (tmp_path / "ant" / "notes.txt").write_text("")
    messages = []
    open_photos(tmp_path, messages=messages)
    assert len(messages) == 1
    assert messages[0].endswith("ignored .txt: 1 (ant/notes.txt)")


# --- labels


def test_a_label_outside_the_classes_is_named():
    class Unchecked(ArraySource):
        labels = None

    source = ArraySource(np.zeros((5, 4, 4, 3), np.uint8), np.array([0, 1, 7, 0, 1]), classes=["a", "b"], name="five")
    with pytest.raises(UserError, match=r"five\[2\]: got the label 7, expected 0 to 1 for 2 classes"):
        open_dataset(source)
    streamed = StreamedDataset(source)
    with pytest.raises(UserError, match=r"five\[2\]: got the label 7, expected 0 to 1"):
        list(streamed.eval_batches(batch_size=4, preprocess=Preprocess(image_size=4), workers=0))


def test_crop_options_are_checked_before_anything_is_read(tmp_path):
    dataset = open_photos(photo_folder(tmp_path))
    with pytest.raises(UserError, match="share of the area"):
        next(
            dataset.train_batches(
                batch_size=2, image_size=8, seed=0, start_step=0, stop_step=1, crop={**CROP, "scale": (2, 3)}
            )
        )


def test_either_the_workers_or_the_device_crop() -> None:
    options = {"crop": "resized", "crop_scale": (0.3, 1.0), "crop_ratio": (0.8, 1.25), "interpolation": "bilinear"}
    assert FromWorkers().host_crop({**options, "flip": 0.5}) == CROP
    assert FromWorkers().host_crop({**options, "crop": "none"}) is None
    assert FromMemory((8, 8, 3)).host_crop(options) is None
    fixed = {"num_classes": 2, "image_size": 8, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    for pipeline in (FromWorkers(), FromMemory((8, 8, 3))):
        batch = batch_shapes(pipeline, batch_size=2, image_size=8)
        with pytest.raises(UserError, match=r"augment\.crop: got 'resize', .* Did you mean 'resized'"):
            pipeline.augment(batch, seed=0, step=0, crop="resize", **fixed)


# --- workers


def test_workers_give_the_same_batches_and_close(tmp_path):
    """Two workers yield the same batches as none, a label error keeps its type, and all workers end."""
    dataset = open_photos(photo_folder(tmp_path, count=10, damaged=(4,)))
    options = {"batch_size": 4, "image_size": 16, "seed": 1, "start_step": 1, "stop_step": 6, "crop": CROP}
    alone = list(dataset.train_batches(**options, workers=0))
    stream = prefetch(dataset.train_batches(**options, workers=2), lambda batch: batch)
    for expected in alone[:3]:
        got = next(stream)
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])
    assert len(children()) >= 2
    stream.close()  # in the middle
    deadline = time.monotonic() + 30
    while children() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children()
    dataset.source.labels[:] = 9
    with pytest.raises(UserError, match="got the label 9, expected 0 to 1"):
        list(dataset.train_batches(**options, workers=1))


def children():
    import multiprocessing

    return multiprocessing.active_children()


SCRIPT = """
    import sys
    import jax
    from jaxvision.data.dataset import open_dataset
    from jaxvision.data.prefetch import prefetch
    from jaxvision.data.source import open_source

    if __name__ == "__main__":
        jax.numpy.zeros(3).block_until_ready()  # JAX's threads are running
        source = open_source("folder", data_dir=sys.argv[1]).train
        dataset = open_dataset(source)
        options = {"batch_size": 2, "image_size": 16, "seed": 0, "workers": int(sys.argv[3])}
        batches = dataset.train_batches(start_step=0, stop_step=10**6, **options)
        for number, batch in enumerate(prefetch(batches, jax.device_put)):
            print(number, flush=True)
            if number == int(sys.argv[2]):
                break
"""


def run_script(tmp_path, *, stop_at, workers):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), str(photo_folder(tmp_path / "data")), str(stop_at), str(workers)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_script_that_stops_early_exits_silently(tmp_path):
    process = run_script(tmp_path, stop_at=3, workers=1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split() == ["0", "1", "2", "3"]
    assert "Traceback" not in err
    assert "Warning" not in err


def test_an_interrupt_stops_the_workers(tmp_path):
    process = run_script(tmp_path, stop_at=-1, workers=2)
    assert process.stdout.readline() == "0\n"
    os.killpg(process.pid, signal.SIGINT)  # to every process of the group, as a terminal does
    _, err = process.communicate(timeout=60)  # returns when the last worker has closed the pipe
    assert process.returncode not in (0, None)
    assert err.count("Traceback") <= 1, err  # the main process's own KeyboardInterrupt
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_workers_end_when_the_main_process_is_killed(tmp_path):
    process = run_script(tmp_path, stop_at=-1, workers=2)
    assert process.stdout.readline() == "0\n"
    process.kill()
    process.communicate(timeout=30)  # returns only when the workers have closed the pipe as well


# --- to the devices


def test_prefetch_places_ahead_and_keeps_the_order():
    placed = []

    def place(x):
        placed.append(x)
        return 10 * x

    stream = prefetch(range(6), place, ahead=2)
    assert next(stream) == 0
    assert placed == [0, 1, 2]
    assert list(stream) == [10, 20, 30, 40, 50]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, or XLA_FLAGS for fake ones")
def test_batches_land_on_their_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    dataset = stored_dataset(16)
    batches = dataset.eval_batches(batch_size=8, preprocess=Preprocess())
    for number, batch in enumerate(prefetch(batches, lambda batch: jax.device_put(batch, sharding))):
        assert batch["image"].sharding == sharding
        assert np.asarray(batch["index"]).tolist() == list(range(8 * number, 8 * number + 8))
