"""The files of an original: mirrors, interrupted and damaged downloads, full disks, and no network at all."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.originals import Server, at, serve, write_original

from jaxvision.data.prepare import ORIGINALS
from jaxvision.data.prepare.downloads import download
from jaxvision.data.source import open_source
from jaxvision.errors import UserError


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The folder of a tiny CIFAR-10, the row of its file, and the address of its server."""
    write_original("cifar10", tmp_path / "served")
    with serve(tmp_path / "served") as address:
        monkeypatch.setitem(ORIGINALS, "cifar10", at("cifar10", tmp_path / "served", address))
        yield tmp_path, ORIGINALS["cifar10"].files[0], address


def test_a_connection_that_is_closed_is_continued(published, capfd):
    folder, file, _ = published
    Server.breaks = 2
    path = download(file, folder / "new")
    assert path.read_bytes() == (folder / "served" / file.name).read_bytes()
    half, rest = file.size // 2, file.size - file.size // 2
    assert [wanted for _, wanted in Server.requests] == [None, f"bytes={half}-", f"bytes={half + rest // 2}-"]
    assert [path.name for path in (folder / "new").iterdir()] == [file.name]
    assert f"download {file.name}" in capfd.readouterr().err
    assert download(file, folder / "new") == path  # and no further request
    assert len(Server.requests) == 3


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_download_of_an_earlier_process_is_continued(share, published):
    folder, file, _ = published
    data = (folder / "served" / file.name).read_bytes()
    (folder / f"{file.name}.part").write_bytes(data[: int(share * file.size)])
    assert download(file, folder).read_bytes() == data
    assert [wanted for _, wanted in Server.requests] == ([] if share == 1 else [f"bytes={int(share * file.size)}-"])


def test_a_mirror_that_fails_or_has_another_file_is_skipped(published):
    folder, file, address = published
    (folder / "served" / "other").mkdir()
    (folder / "served" / "other" / file.name).write_bytes(b"x" * file.size)
    mirrors = f"{address}missing/{file.name}", f"{address}other/{file.name}", f"{address}{file.name}"
    download(file._replace(urls=mirrors), folder / "new")
    assert Server.requests[-1][0] == f"/{file.name}"

    with pytest.raises(OSError, match=rf"{mirrors[1]}: got the sha256 \w+, expected {file.digest}"):
        download(file._replace(urls=mirrors[1:2]), folder / "another")
    assert list((folder / "another").iterdir()) == []


def test_a_damaged_file_is_not_used(published):
    folder, file, _ = published
    path = folder / "downloads" / "cifar10" / file.name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{path}: got the sha256 \w+, expected {file.digest}\. Remove it"):
        open_source("tfds", dataset="cifar10", data_dir=str(folder))


@contextmanager
def files_of_at_most(size: int):
    """Lets this process write no larger files, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_one_line(published):
    folder, file, _ = published
    options = {"dataset": "cifar10", "data_dir": str(folder)}
    with files_of_at_most(1000), pytest.raises(UserError, match=rf"{file.name}\.part: File too large\. .* again"):
        open_source("tfds", **options)
    with files_of_at_most(file.size), pytest.raises(UserError, match="File too large"):  # the archive unpacked
        open_source("tfds", **options)
    assert not [path for path in (folder / "cifar10").iterdir() if path.is_dir()]
    assert len(open_source("tfds", **options).train) == 15


def test_a_disk_with_too_little_room_is_refused_first(published, monkeypatch):
    folder, file, _ = published
    monkeypatch.setitem(ORIGINALS, "cifar10", ORIGINALS["cifar10"]._replace(files=(file._replace(size=10**18),)))
    with pytest.raises(UserError, match=r"free space, expected 3000000000\.0\. Make room, or set --config\.source"):
        open_source("tfds", dataset="cifar10", data_dir=str(folder))
    assert Server.requests == []


@pytest.mark.parametrize("ending", ["", ".part"])
def test_a_download_of_an_earlier_process_needs_no_second_room(ending, published, monkeypatch):
    folder, file, _ = published
    downloads = folder / "downloads" / "cifar10"
    downloads.mkdir(parents=True)
    (downloads / f"{file.name}{ending}").write_bytes((folder / "served" / file.name).read_bytes())
    for free, is_enough in [(2 * file.size - 1, False), (2 * file.size, True)]:
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        if is_enough:
            assert len(open_source("tfds", dataset="cifar10", data_dir=str(folder)).train) == 15
        else:
            with pytest.raises(UserError, match="of free space, expected"):
                open_source("tfds", dataset="cifar10", data_dir=str(folder))
    assert Server.requests == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(published):
    folder, _, _ = published
    folder.chmod(0o500)
    try:
        with pytest.raises(UserError, match="Permission denied"):
            open_source("tfds", dataset="cifar10", data_dir=str(folder / "data"))
    finally:
        folder.chmod(0o700)


def test_without_a_network_one_line_says_what_to_put_where(tmp_path, monkeypatch):
    """Here no server has a name. Of MNIST one file is there already."""
    write_original("mnist", tmp_path / "served")
    row = at("mnist", tmp_path / "served", "https://no-such-host.invalid/")
    monkeypatch.setitem(ORIGINALS, "mnist", row)
    downloads = tmp_path / "downloads" / "mnist"
    downloads.mkdir(parents=True)

    def look_up(*args, **options):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        open_source("tfds", dataset="mnist", data_dir=str(tmp_path))
    assert time.monotonic() - start < 3
    message = str(caught.value)
    assert "\n" not in message
    for file in row.files:
        assert f"{file.name} ({file.urls[0]})" in message
    assert f"into {downloads}," in message
    for file in row.files:
        (tmp_path / "served" / file.name).rename(Path(downloads, file.name))
    assert len(open_source("tfds", dataset="mnist", data_dir=str(tmp_path)).test) == 4
