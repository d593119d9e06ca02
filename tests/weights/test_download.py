"""Downloads from a server: interrupted, damaged, and by several processes at once."""

from __future__ import annotations

import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from jaxvision.errors import UserError
from jaxvision.weights import catalog, download, hub

COMMIT = "a" * 40


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `content` at any path with the headers of the hub, also in ranges.

    The first `breaks` responses end after half of it, and each response takes `delay` seconds.
    """

    content, breaks, delay = b"", 0, 0.0
    requests: ClassVar[list[tuple[str, str, str | None]]] = []

    def do_HEAD(self):
        self._answer(self.content, 200)

    def do_GET(self):
        if self.path.startswith("/api/"):  # each process asks the hub which programs call it
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(self.content) > 0:
            self._answer(b"", 416)
            return
        body = self.content[start:]
        self._answer(body, 206 if wanted else 200)
        if Server.breaks:
            Server.breaks -= 1
            body = body[: len(body) // 2]
        time.sleep(self.delay)
        self.wfile.write(body)

    def _answer(self, body, status):
        Server.requests.append((self.command, self.path, self.headers.get("Range")))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(self.stated).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a running server, with the network switched on."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Server.content = Server.stated = b"weights" * 1000
    Server.breaks, Server.delay, Server.requests = 0, 0.0, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def run_processes(code: str, n: int, **variables: str) -> list[str]:
    """Returns what `n` Python processes print that run at the same time."""
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"} | variables
    started = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(n)
    ]
    printed = [process.communicate(timeout=60)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * n
    return printed


FROM_HUB = "from jaxvision.weights import download; print(download.from_hub('some/one', ['model.safetensors'], None))"


def test_one_process_downloads_from_the_hub_and_the_others_wait(address, tmp_path):
    run_processes(FROM_HUB, 1, HF_ENDPOINT=address, HF_HOME=str(tmp_path / "alone"))
    alone, Server.requests = Server.requests, []
    Server.delay = 0.5
    paths = set(run_processes(FROM_HUB, 3, HF_ENDPOINT=address, HF_HOME=str(tmp_path)))
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == Server.content
    assert Server.requests == alone
    assert ("GET", "/some/one/resolve/main/model.safetensors") in {request[:2] for request in alone}


def test_a_file_that_arrives_damaged_is_an_error(address, tmp_path):
    Server.stated = Server.content[:-1] + b"x"
    code = f"""
from jaxvision.errors import UserError
try:
    {FROM_HUB}
except UserError as e:
    print(e)
"""
    (message,) = run_processes(code, 1, HF_ENDPOINT=address, HF_HOME=str(tmp_path))
    assert f"got the sha256 {hashlib.sha256(Server.content).hexdigest()}, expected" in message


def test_one_process_downloads_from_an_address_and_the_others_wait(address, tmp_path):
    Server.delay = 1
    path = tmp_path / "folder" / "weights.pth"
    call = f"download.from_url({address + '/weights.pth'!r}, pathlib.Path({str(path)!r}))"
    run_processes(f"import pathlib; from jaxvision.weights import download; {call}", 3)
    assert path.read_bytes() == Server.content
    assert Server.requests == [("GET", "/weights.pth", None)]


@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_part_that_cannot_be_continued_is_downloaded_again(extra, address, tmp_path):
    """An earlier process was killed before it renamed the complete file, or two processes wrote it."""
    (tmp_path / "a.pth.incomplete").write_bytes(Server.content + extra)
    assert download.from_url(f"{address}/a.pth", tmp_path / "a.pth").read_bytes() == Server.content
    assert not (tmp_path / "a.pth.incomplete").exists()


def test_an_interrupted_download_is_continued(address, tmp_path, monkeypatch, caplog):
    from huggingface_hub import constants

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    Server.breaks = 1
    url = f"{address}/x/IN1K.pth.tar"
    entry = catalog.Entry(architecture="mine", tag="ijepa", url=url, filename="IN1K.pth.tar", license="cc-by-nc-4.0")
    with monkeypatch.context() as context:
        context.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UserError, match=f"cannot download {url} .*HF_HUB_OFFLINE is set.*checkpoint_path, or copy"):
            hub.fetch(entry)
    with pytest.raises(UserError, match="to continue the download"):
        hub.fetch(entry)
    assert not (tmp_path / "torch" / "hub" / "checkpoints" / "IN1K.pth.tar").exists()
    path = hub.fetch(entry)
    assert hub.fetch(entry) == path  # and no further request
    assert [wanted for *_, wanted in Server.requests] == [None, f"bytes={len(Server.content) // 2}-"]
    assert path.read_bytes() == Server.content
    assert "non-commercial use only" in caplog.text
    with pytest.raises(UserError, match="which has no revisions"):
        hub.fetch(entry, revision="v1")


@pytest.mark.timm
@pytest.mark.parametrize("variable", ["TORCH_HOME", "XDG_CACHE_HOME", None])
def test_files_are_kept_where_torch_keeps_them(variable, address, tmp_path, monkeypatch):
    import torch

    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if variable:
        monkeypatch.setenv(variable, "~/cache")
    entry = catalog.Entry(architecture="mine", url=f"{address}/a.pth", filename="a.pth", license="mit")
    assert hub.fetch(entry) == Path(torch.hub.get_dir(), "checkpoints", "a.pth")
