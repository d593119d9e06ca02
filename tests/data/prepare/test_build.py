"""A dataset that is prepared by several processes, or by one that is killed."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.originals import Server, at, serve, write_original
from support.paths import TESTS

from jaxvision.data.prepare import ORIGINALS, find_original
from jaxvision.data.source import open_source
from jaxvision.errors import UserError

KILLED = """
import sys
import tarfile
from pathlib import Path
from support.originals import at
from jaxvision.data.prepare import ORIGINALS
from jaxvision.data.source import open_source

served, address, data_dir = sys.argv[1:]
row = at("cifar10", Path(served), address)
def read(*args):
    for split in row.read(*args):
        yield split
        print("written", flush=True)
        sys.stdin.read()
ORIGINALS["cifar10"] = row._replace(read=read)
open_source("tfds", dataset="cifar10", data_dir=data_dir)
"""


def test_a_killed_preparation_is_done_again(tmp_path, monkeypatch):
    write_original("cifar10", tmp_path / "served")
    path = os.pathsep.join([*filter(None, sys.path), str(TESTS)])
    with serve(tmp_path / "served") as address:
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, tmp_path / "served", address, tmp_path / "data"],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "written\n"
            process.kill()
        (left,) = [path for path in (tmp_path / "data" / "cifar10").iterdir() if path.is_dir()]
        assert left.name.startswith(".3.0.2.")
        monkeypatch.setitem(ORIGINALS, "cifar10", at("cifar10", tmp_path / "served", address))
        Server.requests.clear()
        assert len(open_source("tfds", dataset="cifar10", data_dir=str(tmp_path / "data")).train) == 15
        assert Server.requests == []  # the download was complete
    assert not left.exists()


def test_one_prepares_and_the_others_wait(tmp_path, monkeypatch, caplog):
    """Here two threads, whose locks exclude each other as those of two processes do."""
    write_original("cifar10", tmp_path / "served")
    started, resume = threading.Event(), threading.Event()

    def emit(record):
        if "waiting for another process that prepares cifar10" in record.getMessage():
            resume.set()

    monkeypatch.setattr(caplog.handler, "emit", emit)
    with serve(tmp_path / "served") as address, ThreadPoolExecutor() as pool:
        row = at("cifar10", tmp_path / "served", address)

        def read(*args):
            started.set()
            assert resume.wait(30)
            yield from row.read(*args)

        monkeypatch.setitem(ORIGINALS, "cifar10", row._replace(read=read))
        options = {"dataset": "cifar10", "data_dir": str(tmp_path)}
        first = pool.submit(open_source, "tfds", **options)
        assert started.wait(30)
        second = pool.submit(open_source, "tfds", **options)
        assert [len(future.result(60).train) for future in (first, second)] == [15, 15]
    assert len(Server.requests) == 1


def test_an_error_and_an_interruption_leave_nothing(tmp_path, monkeypatch):
    write_original("cifar10", tmp_path / "served")
    with serve(tmp_path / "served") as address:
        row = at("cifar10", tmp_path / "served", address)

        def interrupted(*args):
            yield next(iter(row.read(*args)))
            raise KeyboardInterrupt

        monkeypatch.setitem(ORIGINALS, "cifar10", row._replace(read=interrupted))
        with pytest.raises(KeyboardInterrupt):
            open_source("tfds", dataset="cifar10", data_dir=str(tmp_path))
        assert [path.name for path in (tmp_path / "cifar10").iterdir()] == [".3.0.2.lock"]


def test_a_folder_that_nobody_finished_is_not_replaced(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "mine.txt").touch()
    with pytest.raises(UserError, match=r"3\.0\.2: got a folder without dataset_info\.json, .* Remove it"):
        open_source("tfds", dataset="cifar10", data_dir=str(tmp_path))
    assert (tmp_path / "cifar10" / "3.0.2" / "mine.txt").exists()


def test_the_folder_may_be_relative_to_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_original("cifar10", tmp_path / "served")
    with serve(tmp_path / "served") as address:
        monkeypatch.setitem(ORIGINALS, "cifar10", at("cifar10", tmp_path / "served", address))
        assert len(open_source("tfds", dataset="cifar10", data_dir="~/data").train) == 15
    assert (tmp_path / "data" / "cifar10" / "3.0.2" / "dataset_info.json").exists()


def test_the_default_folder_is_that_of_tfds():
    import tensorflow_datasets as tfds

    for name in ("cifar10", "imagenette/320px-v2"):
        target = find_original(name, None)
        assert target is not None
        assert str(target.folder) == str(tfds.builder(name).data_path)
        assert target.root == target.folder.parents[name.count("/") + 1]


def change_archive(path, changes):
    """Adds and replaces files of a compressed archive, and removes those that are None."""
    with tarfile.open(path) as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (files | changes).items():
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "file", "change", "words"),
    [
        ("mnist", "train-images-idx3-ubyte.gz", b"x", "Not a gzipped file"),
        ("svhn_cropped", "train_32x32.mat", b"", "truncated"),
        ("imagenet2012", "ILSVRC2012_img_val.tar", b"\0" * 10_240, "0 of 3 images of the split validation"),
        ("oxford_iiit_pet", "annotations.tar.gz", {"annotations/xmls/beagle_12.xml": b"<x"}, "unclosed token"),
        ("cifar10", "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/test_batch.bin": None}, "lacks 'test_batch.bin'"),
        ("imagenette/160px-v2", "imagenette2-160.tgz", {"a/train/n00000000/x.JPEG": b""}, "'n00000000'"),
    ],
)
def test_a_damaged_original_is_one_line(name, file, change, words, tmp_path, monkeypatch):
    folder = tmp_path / "downloads" / ("manual" if name == "imagenet2012" else name)
    expected = write_original(name, folder)
    if isinstance(change, bytes):
        (folder / file).write_bytes(change)
    else:
        change_archive(folder / file, change)
    mirrors = [] if name == "imagenet2012" else ["http://127.0.0.1:9/"]
    monkeypatch.setitem(ORIGINALS, name, at(name, folder, *mirrors, expected=expected))
    with pytest.raises(UserError, match=rf"{name}: cannot read {folder}.*: .*{words}.*\. Replace the damaged file"):
        open_source("tfds", dataset=name, data_dir=str(tmp_path))
    assert not list(tmp_path.glob(f"{name}/.*.tmp"))
