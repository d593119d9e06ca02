"""Datasets: order, batches, damaged images, workers."""

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
from jaxvision.data import order
from jaxvision.data.dataset import StoredDataset, StreamedDataset, open_dataset
from jaxvision.data.digits import ArraySource
from jaxvision.data.prefetch import prefetch
from jaxvision.data.source import open_source
from jaxvision.errors import UserError

CROP = {"scale": (0.3, 1.0), "ratio": (0.8, 1.25), "interpolation": "bilinear"}


def stored_pictures(n=10, classes=3):
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    names = [f"class {i}" for i in range(classes)]
    return open_dataset(ArraySource(images, np.arange(n) % classes, classes=names, name="numbers"))


def photo_folder(root, count=6, *, damaged=()):
    """JPEG pictures of different shapes in two classes."""
    for i in range(count):
        folder = root / ("ant", "bee")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        data = encode(scene(40 + 3 * i, 60 - 2 * i, seed=i), "JPEG", quality=90)
        (folder / f"{i:02}.jpg").write_bytes(data[: len(data) // 2] if i in damaged else data)
    return root


def photos(root, *, max_corrupt=10, said=None, **options):
    source = open_source("folder", data_dir=str(root), **options)
    log = said.append if said is not None else lambda text: None
    return open_dataset(source.train, max_corrupt=max_corrupt, log=log)


# --- order


def test_an_epoch_is_every_example_once_in_an_order_of_its_own():
    orders = [order.epoch_order(1000, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0)]]
    for one in orders:
        assert sorted(one.tolist()) == list(range(1000))
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert (orders[a] == orders[b]).mean() < 0.02
        assert abs(np.corrcoef(orders[a], orders[b])[0, 1]) < 0.15
    np.testing.assert_array_equal(orders[0], order.epoch_order(1000, seed=0, epoch=0))


def test_the_order_is_the_same_on_every_machine_and_version():
    # Philox4x64-10 of key (7, 3 << 32), sorted: a change of these numbers breaks every run that goes on
    assert order.epoch_order(12, seed=7, epoch=3).tolist() == EXPECTED_ORDER


EXPECTED_ORDER = [7, 0, 8, 6, 11, 3, 4, 10, 2, 1, 9, 5]


def test_batches_go_through_epochs_without_a_gap():
    seen = np.concatenate([order.batch_indices(10, 4, seed=3, step=s)[1] for s in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    expected = np.concatenate([order.epoch_order(10, seed=3, epoch=e) for e in range(2)])
    np.testing.assert_array_equal(seen, expected)


def test_a_batch_larger_than_the_set_holds_several_epochs():
    epochs, numbers = order.batch_indices(3, 8, seed=0, step=0)
    assert epochs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sorted(numbers[:3].tolist()) == [0, 1, 2]


# --- pictures in memory


def test_small_equal_pictures_are_stored_and_others_are_not(tmp_path):
    assert stored_pictures().images.shape == (10, 4, 4, 3)
    images = np.zeros((10, 4, 4, 3), np.uint8)
    source = ArraySource(images, np.zeros(10, int), classes=["a"], name="zeros")
    assert isinstance(open_dataset(source, memory_limit=0), StreamedDataset)
    assert isinstance(open_dataset(source, memory_limit=480 / 2**30), StoredDataset)
    assert isinstance(open_dataset(source, memory_limit=479 / 2**30), StreamedDataset)
    assert isinstance(photos(photo_folder(tmp_path)), StreamedDataset)


def test_train_batches_of_stored_pictures():
    pictures = stored_pictures()
    batches = list(pictures.train_batches(batch_size=4, image_size=8, seed=3, start_step=0, stop_step=5))
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
def test_evaluation_counts_every_picture_once(batch_size):
    batches = list(stored_pictures().eval_batches(batch_size=batch_size, preprocess=Preprocess()))
    assert len(batches) == order.eval_steps(10, batch_size)
    assert all(len(batch["mask"]) == batch_size for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    label = np.concatenate([batch["label"] for batch in batches])
    assert index[mask].tolist() == list(range(10))
    assert label[mask].tolist() == [i % 3 for i in range(10)]
    assert (index[~mask] == -1).all()


def test_processes_share_a_batch():
    pictures = stored_pictures()
    options = {"batch_size": 4, "image_size": 8, "seed": 3, "start_step": 2, "stop_step": 4}
    whole = list(pictures.train_batches(**options))
    halves = [list(pictures.train_batches(**options, process=(i, 2))) for i in (0, 1)]
    for step in range(2):
        for name in ("image", "label", "index", "mask"):
            joined = np.concatenate([half[step][name] for half in halves])
            np.testing.assert_array_equal(joined, whole[step][name])
    evaluated = [list(pictures.eval_batches(batch_size=4, preprocess=Preprocess(), process=(i, 2))) for i in (0, 1)]
    index = np.concatenate([batch["index"][batch["mask"]] for half in evaluated for batch in half])
    assert sorted(index.tolist()) == list(range(10))
    with pytest.raises(UserError, match="got 4, expected a multiple of the 3 processes"):
        next(pictures.train_batches(**options, process=(0, 3)))


# --- pictures that are streamed


def test_streamed_crops_are_those_of_their_keys(tmp_path):
    pictures = photos(photo_folder(tmp_path))
    n = len(pictures)
    options = {"batch_size": 3, "image_size": 16, "seed": 5, "crop": CROP, "workers": 0}
    batches = list(pictures.train_batches(start_step=0, stop_step=4, **options))
    for step, batch in enumerate(batches):
        epochs, numbers = order.batch_indices(n, 3, seed=5, step=step)
        np.testing.assert_array_equal(batch["index"], numbers)
        np.testing.assert_array_equal(batch["label"], pictures.source.labels[numbers])
        assert batch["mask"].all()
        for row in range(3):
            key = [5, (int(epochs[row]) << 32) + int(numbers[row]) + 1]
            rng = np.random.Generator(np.random.Philox(key=key))
            expected = host.train_crop(pictures.source[int(numbers[row])]["image"], 16, rng, **CROP)
            np.testing.assert_array_equal(batch["image"][row], expected)
    later = list(pictures.train_batches(start_step=2, stop_step=4, **options))  # a resumed run
    for a, b in zip(batches[2:], later, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_without_a_crop_the_middle_is_taken(tmp_path):
    pictures = photos(photo_folder(tmp_path))
    options = {"batch_size": 3, "image_size": 16, "seed": 5, "workers": 0, "start_step": 0, "stop_step": 1}
    (batch,) = pictures.train_batches(crop=None, **options)
    picture = decode(pictures.source[int(batch["index"][1])]["image"])
    expected = host.eval_transform(picture, Preprocess(image_size=16, crop_pct=1.0))
    np.testing.assert_array_equal(batch["image"][1], expected)


def test_a_share_of_nothing_has_the_shape_of_the_others():
    """The last batch of an evaluation may leave a process nothing to read; all must run the same program."""
    pictures = open_dataset(open_source("digits").test, memory_limit=0)
    for index, wanted in ((0, 7), (1, 0)):
        *_, last = pictures.eval_batches(
            batch_size=32, preprocess=Preprocess(image_size=16), workers=0, process=(index, 2)
        )
        assert last["image"].shape == (16, 16, 16, 1)
        assert last["mask"].sum() == wanted


def test_evaluation_of_streamed_pictures(tmp_path):
    pictures = photos(photo_folder(tmp_path, count=9))
    preprocess = Preprocess(image_size=16, crop_pct=0.9)
    n = len(pictures)
    batches = list(pictures.eval_batches(batch_size=3, preprocess=preprocess, workers=0))
    index = np.concatenate([batch["index"] for batch in batches])
    mask = np.concatenate([batch["mask"] for batch in batches])
    images = np.concatenate([batch["image"] for batch in batches])
    assert index[mask].tolist() == list(range(n))
    for i in range(n):
        expected = host.eval_transform(decode(pictures.source[i]["image"]), preprocess)
        np.testing.assert_array_equal(images[i], expected)


def test_many_examples_are_read_at_once_where_a_source_can():
    class Many(ArraySource):
        asked = ()

        def __getitem__(self, index):
            raise AssertionError("one by one")

        def __getitems__(self, indices):
            self.asked += (list(indices),)
            return [ArraySource.__getitem__(self, i) for i in indices]

    source = Many(np.zeros((5, 8, 8, 3), np.uint8), np.zeros(5, int), classes=["a"], name="many")
    pictures = StreamedDataset(source)
    batches = list(pictures.eval_batches(batch_size=4, preprocess=Preprocess(image_size=8), workers=0))
    assert [batch["mask"].sum() for batch in batches] == [4, 1]
    assert sorted(source.asked) == [[0, 1, 2, 3], [4]]


# --- damaged images


def test_a_damaged_picture_is_counted_named_and_left_out(tmp_path):
    said = []
    pictures = photos(photo_folder(tmp_path, count=10, damaged=(4,)), said=said, test_fraction=0.2)
    bad = next(i for i, file in enumerate(pictures.source.files) if file.endswith("04.jpg"))
    batches = list(
        pictures.train_batches(batch_size=4, image_size=16, seed=0, start_step=0, stop_step=6, crop=CROP, workers=0)
    )
    for batch in batches:
        np.testing.assert_array_equal(batch["mask"], batch["index"] != bad)
    assert sum((~batch["mask"]).sum() for batch in batches) == 3  # once in each of three epochs
    assert list(pictures.corrupt) == [bad]
    assert said == [f"skipped the damaged image {pictures.source.files[bad]}: {pictures.corrupt[bad][1]}"]
    assert "damaged image" in said[0]
    evaluated = list(pictures.eval_batches(batch_size=3, preprocess=Preprocess(image_size=16), workers=0))
    index = np.concatenate([batch["index"][batch["mask"]] for batch in evaluated])
    assert sorted([*index.tolist(), bad]) == list(range(8))
    assert len(said) == 1  # known already


def test_too_many_damaged_pictures_are_an_error(tmp_path):
    pictures = photos(photo_folder(tmp_path, count=20, damaged=(2, 4, 9, 13)), max_corrupt=2)
    with pytest.raises(UserError, match=r"got 3 damaged images, expected at most data\.max_corrupt=2: .*\.jpg"):
        list(pictures.eval_batches(batch_size=4, preprocess=Preprocess(image_size=16), workers=0))


def test_damaged_pictures_among_stored_ones(tmp_path):
    for i in range(12):
        folder = tmp_path / ("a", "b")[i % 2]
        folder.mkdir(exist_ok=True)
        data = encode(scene(16, 16, seed=i))
        (folder / f"{i:02}.png").write_bytes(data[:60] if i == 5 else data)
    said = []
    pictures = photos(tmp_path, said=said, test_fraction=0.1)
    assert pictures.images.shape == (10, 16, 16, 3)
    if pictures.corrupt:  # unless it was held out
        (bad,) = pictures.corrupt
        assert "05.png" in said[0]
        (batch,) = pictures.eval_batches(batch_size=10, preprocess=Preprocess())
        np.testing.assert_array_equal(batch["mask"], np.arange(10) != bad)
    with pytest.raises(UserError, match="damaged images, expected at most"):
        photos(tmp_path, max_corrupt=0, test_fraction=0.1)


def test_a_file_that_went_away_is_a_damaged_picture(tmp_path):
    pictures = photos(photo_folder(tmp_path, count=10))
    Path(pictures.source.files[3]).unlink()
    batches = list(pictures.eval_batches(batch_size=8, preprocess=Preprocess(image_size=16), workers=0))
    assert batches[0]["mask"].tolist() == [i != 3 for i in range(8)]
    assert "No such file" in pictures.corrupt[3][1]


def test_nothing_that_can_be_read(tmp_path):
    with pytest.raises(UserError, match="damaged images, expected at most"):
        photos(photo_folder(tmp_path, count=24, damaged=range(24)))


def test_files_that_are_no_pictures_are_told(tmp_path):
    photo_folder(tmp_path)
    (tmp_path / "ant" / "notes.txt").write_text("")
    said = []
    photos(tmp_path, said=said)
    assert len(said) == 1
    assert "ignored 1 file that is not an image" in said[0]


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
    pictures = photos(photo_folder(tmp_path))
    with pytest.raises(UserError, match="share of the area"):
        next(
            pictures.train_batches(
                batch_size=2, image_size=8, seed=0, start_step=0, stop_step=1, crop={**CROP, "scale": (2, 3)}
            )
        )


# --- workers


def test_workers_give_the_same_batches_and_close(tmp_path):
    """Two worker processes: same batches as without, a label error keeps its kind, and nothing is left behind."""
    pictures = photos(photo_folder(tmp_path, count=10, damaged=(4,)))
    options = {"batch_size": 4, "image_size": 16, "seed": 1, "start_step": 1, "stop_step": 6, "crop": CROP}
    alone = list(pictures.train_batches(**options, workers=0))
    stream = prefetch(pictures.train_batches(**options, workers=2), lambda batch: batch)
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
    pictures.source.labels[:] = 9
    with pytest.raises(UserError, match="got the label 9, expected 0 to 1"):
        list(pictures.train_batches(**options, workers=1))


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
        pictures = open_dataset(source)
        options = {"batch_size": 2, "image_size": 16, "seed": 0, "workers": int(sys.argv[3])}
        batches = pictures.train_batches(start_step=0, stop_step=10**6, **options)
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


def test_a_script_that_stops_in_the_middle_ends_without_a_word(tmp_path):
    process = run_script(tmp_path, stop_at=3, workers=1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.split() == ["0", "1", "2", "3"]
    assert "Traceback" not in err
    assert "Warning" not in err


def test_an_interrupt_ends_the_workers(tmp_path):
    process = run_script(tmp_path, stop_at=-1, workers=2)
    assert process.stdout.readline() == "0\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: every process of the group
    _, err = process.communicate(timeout=60)  # returns when the last worker has closed the pipe
    assert process.returncode not in (0, None)
    assert err.count("Traceback") <= 1, err  # the main process's own KeyboardInterrupt
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_workers_end_with_a_process_that_is_killed(tmp_path):
    process = run_script(tmp_path, stop_at=-1, workers=2)
    assert process.stdout.readline() == "0\n"
    process.kill()
    process.communicate(timeout=30)  # they have the pipe, too


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
    pictures = stored_pictures(16)
    batches = pictures.eval_batches(batch_size=8, preprocess=Preprocess())
    for number, batch in enumerate(prefetch(batches, lambda batch: jax.device_put(batch, sharding))):
        assert batch["image"].sharding == sharding
        assert np.asarray(batch["index"]).tolist() == list(range(8 * number, 8 * number + 8))
