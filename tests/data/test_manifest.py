"""The manifest of a large folder: walked once, mapped afterwards, and never out of date."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from support.images import encode, scene

from jaxvision.data import manifest, open_dataset, open_source
from jaxvision.data.manifest import read_folder
from jaxvision.data.walk import walk_images


def let_settle() -> None:
    """Waits until the folders that were written before are trusted; see the fixture `cache`."""
    time.sleep(0.06)


def paths_of(found: manifest.Manifest) -> list[str]:
    return [found.path(i) for i in range(len(found))]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "SMALLEST", 100)
    monkeypatch.setattr(manifest, "SETTLED", 5 * 10**7)  # the real two seconds would only take longer
    return tmp_path / "cache" / "jaxvision" / "manifests"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """204 empty files in two classes, one of them with subfolders and with names that are not UTF-8."""
    root = tmp_path_factory.mktemp("large")
    for folder, count in {"ant": 100, "bee": 4, "bee/a": 50, "bee/b": 50}.items():
        (root / folder).mkdir()
        for i in range(count):
            name = os.fsdecode(b"%05d \xe4\n.jpg" % i) if folder == "bee" else f"{i:05}.jpg"
            (root / folder / name).touch()
    (root / "ant" / "notes.txt").touch()
    return root


@pytest.fixture
def settled(large: Path) -> Path:
    let_settle()
    return large


def refuse_to_walk(root: object) -> None:
    raise AssertionError(f"walked through {root}")


def test_a_large_folder_is_walked_once(settled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, warning = read_folder(settled)
    assert warning is None
    expected = [os.path.relpath(file, settled) for file in settled.rglob("*.jpg")]
    assert sorted(paths_of(first)) == sorted(expected)
    assert len(first) == 204
    assert [file.suffix for file in sorted(cache.iterdir())] == [".arrow", ".lock"]
    with monkeypatch.context() as patched:
        patched.setattr(manifest, "walk_images", refuse_to_walk)
        again, _ = read_folder(settled)
        (settled / "ant" / "00007.jpg").write_bytes(b"other contents")  # which do not change the list
        os.utime(settled / "ant" / "00007.jpg")
        read_folder(settled)
    assert paths_of(again) == paths_of(first)
    assert again.ignored == first.ignored
    assert again.ignored[".txt"].count == 1
    assert again.checksum(np.arange(204)) == first.checksum(np.arange(204))


def test_every_change_of_the_list_is_noticed(settled: Path, cache: Path, tmp_path: Path) -> None:
    """Added, removed, renamed, moved, a new folder: the next reading has the list of a walk."""
    root = tmp_path / "copy"
    shutil.copytree(settled, root)
    let_settle()
    before, _ = read_folder(root)
    kept = pickle.dumps(before)  # what a worker of a running job receives
    changes = [
        lambda: (root / "ant" / "new.jpg").touch(),
        lambda: (root / "ant" / "00001.jpg").unlink(),
        lambda: (root / "bee" / "a" / "00001.jpg").rename(root / "bee" / "a" / "1.jpg"),
        lambda: (root / "bee" / "a" / "00002.jpg").rename(root / "ant" / "moved.jpg"),
        lambda: (root / "cat").mkdir(),
        lambda: (root / "cat" / "1.jpg").touch(),
        lambda: shutil.rmtree(root / "bee" / "b"),
        lambda: os.symlink(settled / "bee" / "b", root / "bee" / "b"),
        lambda: (root / "ant").rename(root / "gnat"),
    ]
    seen = [paths_of(before)]
    for change in changes:
        change()
        found, _ = read_folder(root)
        walked = [os.path.join(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names]
        assert sorted(paths_of(found)) == sorted(os.path.relpath(x, root) for x in walked if x.endswith(".jpg"))
        seen.append(paths_of(found))
    assert all(seen[i] != seen[i + 1] for i in range(4))
    assert paths_of(pickle.loads(kept)) == seen[0]  # the file of an earlier state is still there


def test_a_folder_that_changes_now_is_not_trusted(settled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modification time might not show the next change, which happens in the same instant."""
    monkeypatch.setattr(manifest, "SETTLED", 3600 * 10**9)  # longer than any pause of this machine
    for times in (None, (1_600_000_000, 1_600_000_000)):  # set back, it still has changed now
        os.utime(settled / "ant", times)
        found, warning = read_folder(settled)
        assert (len(found), warning) == (204, None)
        assert not list(cache.glob("*.arrow"))
        assert paths_of(pickle.loads(pickle.dumps(found))) == paths_of(found)


def test_a_modification_time_in_the_future_is_trusted(settled: Path, cache: Path, tmp_path: Path) -> None:
    """Only the system's own time of a change counts."""
    root = tmp_path / "copy"
    shutil.copytree(settled, root)
    os.utime(root / "ant", (4_000_000_000, 4_000_000_000))
    let_settle()
    assert read_folder(root)[0].file is not None


def test_a_list_that_may_change_unnoticed_is_not_saved(
    settled: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target of a broken link may appear. Every process says so, and they walk at the same time."""
    root = tmp_path / "copy"
    shutil.copytree(settled, root)
    (root / "ant" / "lost.jpg").symlink_to(tmp_path / "unmounted" / "lost.jpg")
    let_settle()
    walking, at_once = set[int](), []

    def slow_walk(folder):
        walk = walk_images(folder)
        walk.files = slowly(walk.files)
        return walk

    def slowly(files):
        for i, file in enumerate(files):
            if i == 150:
                walking.add(threading.get_ident())
                time.sleep(0.5)
                at_once.append(len(walking))
                walking.remove(threading.get_ident())
            yield file

    monkeypatch.setattr(manifest, "walk_images", slow_walk)
    with ThreadPoolExecutor(4) as threads:
        found = [*threads.map(lambda _: read_folder(root), range(4))]
    assert max(at_once) == 3  # of those that have waited for the first one
    for result, warning in found:
        assert (len(result), result.file) == (204, None)
        assert warning.startswith(f"{root}: the list of its 204 images is not saved, because of ")
        assert "broken link: 1 (ant/lost.jpg)" in warning
    assert not list(cache.glob("*.arrow"))


def test_a_change_is_noticed_although_the_modification_time_is_set_back(
    settled: Path, cache: Path, tmp_path: Path
) -> None:
    """As by ``rsync -a``, ``cp -a``, ``tar`` and ``touch -r``."""
    root = tmp_path / "copy"
    shutil.copytree(settled, root)
    let_settle()
    assert read_folder(root)[0].file is not None
    for number in range(3):
        before = (root / "ant").stat().st_mtime_ns
        (root / "ant" / f"new{number}.jpg").touch()
        os.utime(root / "ant", ns=(before, before))
        assert (root / "ant").stat().st_mtime_ns == before
        let_settle()
        found, _ = read_folder(root)
        assert len(found) == 205 + number
        assert found.file is not None


def test_small_folders_write_nothing(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "images" / "ant").mkdir(parents=True)
    (tmp_path / "images" / "ant" / "1.jpg").touch()
    let_settle()
    assert paths_of(read_folder(tmp_path / "images")[0]) == ["ant/1.jpg"]
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_to_is_a_warning(settled: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    train = open_source("folder", data_dir=str(settled)).train
    (line,) = [line for line in train.warnings if "ignored" not in line]
    assert f"{settled}: cannot save the list of its 204 images in {cache} (" in line
    assert "Set XDG_CACHE_HOME to a folder that can be written to." in line
    assert len(train) == 163


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 999])
def test_a_damaged_manifest_is_written_again(settled: Path, cache: Path, damage) -> None:
    expected = paths_of(read_folder(settled)[0])
    (file,) = cache.glob("*.arrow")
    file.write_bytes(damage(file.read_bytes()))
    assert paths_of(read_folder(settled)[0]) == expected
    (file,) = cache.glob("*.arrow")
    assert file.stat().st_size > 3000


def test_no_flipped_byte_of_a_manifest_changes_a_path(settled: Path, cache: Path) -> None:
    expected = paths_of(read_folder(settled)[0])
    (file,) = cache.glob("*.arrow")
    intact = file.read_bytes()
    for position in [intact.index(b"00042.jpg"), *range(0, len(intact), len(intact) // 40)]:
        damaged = bytearray(intact)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        assert paths_of(read_folder(settled)[0]) == expected
        assert file.read_bytes() == intact  # written again


def test_one_of_several_processes_writes(settled: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait, and map what it wrote."""
    saves = []
    save = manifest.Manifest.save

    def slow_save(self, *where):
        time.sleep(0.3)
        saves.append(where)
        return save(self, *where)

    monkeypatch.setattr(manifest.Manifest, "save", slow_save)
    with ThreadPoolExecutor(4) as threads:  # each locks a file of its own opening, as processes do
        found = [result for result, _ in threads.map(lambda _: read_folder(settled), range(4))]
    assert len(saves) == 1
    assert len({result.file for result in found}) == 1
    assert all(paths_of(result) == paths_of(found[0]) for result in found)


def test_the_fingerprint_tells_names_and_order_but_not_the_place(settled: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(settled, tmp_path / "moved")
    let_settle()
    options = [{}, {"data_dir": str(tmp_path / "moved")}, {"split_seed": 1}, {"test_fraction": 0.3}]
    here, moved, other_seed, other_share = (
        open_source("folder", **{"data_dir": str(settled), **option}).train.names_checksum() for option in options
    )
    assert here == moved
    assert len({here, other_seed, other_share}) == 3
    (tmp_path / "moved" / "bee" / "b" / "00000.jpg").rename(tmp_path / "moved" / "bee" / "b" / "0.jpg")
    assert open_source("folder", data_dir=str(tmp_path / "moved")).train.names_checksum() != here


def test_the_fingerprint_covers_the_images_of_the_split_and_nothing_else(tmp_path: Path) -> None:
    """Two subfolders that change their names have the same file names in the same order, but other images."""
    for name in ("ant/a/1.jpg", "ant/b/1.jpg", "bee/1.jpg", "bee/2.jpg"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).touch()

    def fingerprint() -> int:
        return open_source("folder", data_dir=str(tmp_path)).train.names_checksum()

    before = fingerprint()
    for ignored in ("notes.jpg", "val/ant/2.jpg", "train/ant/a/0.txt", "train/ant/.0.jpg"):
        (tmp_path / ignored).touch()
        assert fingerprint() == before
    (tmp_path / "train" / "ant" / "empty").mkdir()
    assert fingerprint() == before
    (tmp_path / "train" / "ant" / "a").rename(tmp_path / "train" / "ant" / "c")
    assert fingerprint() != before


def test_the_fingerprint_of_held_out_images_does_not_depend_on_stray_ones(settled: Path, cache: Path) -> None:
    """Nor on whether the folder was walked, or its list was mapped."""
    checksums = []
    for stray in ("notes.jpg", None):
        splits = open_source("folder", data_dir=str(settled))
        checksums.append((splits.train.names_checksum(), splits.test.names_checksum()))
        if stray:
            (settled / stray).touch()
    (settled / "notes.jpg").unlink()
    assert checksums[0] == checksums[1]


def test_workers_receive_no_list(settled: Path, cache: Path) -> None:
    """Each worker maps the file; arrays travel apart from the pickle, in shared memory."""
    train = open_source("folder", data_dir=str(settled)).train
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(train, protocol=5, buffer_callback=arrays.append)
    assert len(pickled) < 2000
    copy = pickle.loads(pickled, buffers=arrays)
    assert list(copy.files) == list(train.files)
    np.testing.assert_array_equal(copy.labels, train.labels)
    assert len(pickle.dumps(list(train.files))) > 5000


def private_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


@pytest.mark.slow
def test_memory_of_a_worker_does_not_grow_with_the_dataset(tmp_path: Path, cache: Path) -> None:
    """A worker of 400,000 images has at most 8 MiB more of its own than one of 1,000; a list of paths takes 50."""
    used = {}
    for count in (1_000, 400_000):
        root = tmp_path / str(count)
        for label in range(10):
            folder = root / f"class{label}"
            folder.mkdir(parents=True)
            (tmp_path / f"{label}.png").write_bytes(encode(scene(40 + label, 40)))
            for i in range(count // 10):
                os.link(tmp_path / f"{label}.png", folder / f"an image with a name of some length {i:08}.png")
        let_settle()
        train = open_dataset(open_source("folder", data_dir=str(root)).train)
        options = {"batch_size": 32, "image_size": 32, "seed": 0, "start_step": 0, "stop_step": 10**6, "workers": 1}
        batches = train.train_batches(**options)
        for _ in range(20):
            next(batches)
        (worker,) = multiprocessing.active_children()
        used[count] = private_mib(worker.pid)
        batches.close()
    assert used[400_000] - used[1_000] < 8, used
