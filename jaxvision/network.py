"""Downloads over HTTP that resume, and whether a server can be reached at all."""

from __future__ import annotations

import http.client
import queue
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path


def download_part(url: str, part: Path, progress: Callable[[int], object] = lambda size: None) -> None:
    """Downloads a file. Resumes an earlier download that was interrupted.

    The size of the file is compared with the one that the server states.

    Args:
      url: address of the file.
      part: where to write. If it exists, it is the start of the file.
      progress: called with the size of `part` as it grows.

    Raises:
      OSError: the address cannot be reached, what answers there does not speak HTTP, or the connection was closed
        early. `part` keeps what has arrived.
    """
    start = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "jaxvision"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)
    except urllib.error.HTTPError as e:
        if e.code != 416 or not start:
            raise
        e.close()
        part.unlink()  # nothing follows after these bytes, so they are not the start of the file
        return download_part(url, part, progress)
    except http.client.HTTPException as e:  # which urllib does not wrap
        raise OSError(f"the answer is not HTTP ({e!r:.200})") from e
    with response:
        length = response.headers.get("Content-Length")
        if response.status != 206:  # the server sends the file from the start
            start = 0
        size = start
        try:
            with part.open("ab" if start else "wb") as file:
                while data := response.read(2**18):
                    size += file.write(data)
                    progress(size)
        except http.client.HTTPException as e:
            raise OSError(f"the connection was closed ({type(e).__name__})") from e
    if length is not None and size != start + int(length):
        raise OSError("the connection was closed; run the command again to continue the download")


def first_to_answer(urls: Sequence[str], *, seconds: float = 2.0) -> str:
    """Returns the address whose server, or the proxy before it, is the first to accept a connection.

    The timeouts of `urllib` do not cover the lookup of a name, which takes many seconds without a network.

    Args:
      urls: addresses on one or more servers.
      seconds: how long to wait.

    Raises:
      OSError: no server accepted a connection.
    """
    outcomes: queue.SimpleQueue[tuple[str, OSError | None]] = queue.SimpleQueue()

    def connect(url: str) -> None:
        try:
            socket.create_connection(_server(url), timeout=seconds).close()
            outcomes.put((url, None))
        except OSError as e:
            outcomes.put((url, e))
        except ValueError as e:  # a malformed address, such as one of a proxy
            outcomes.put((url, OSError(str(e))))

    for url in urls:
        threading.Thread(target=connect, args=(url,), daemon=True).start()
    deadline = time.monotonic() + seconds
    for _ in urls:
        try:
            url, error = outcomes.get(timeout=max(deadline - time.monotonic(), 0))
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:g} seconds") from None
        if error is None:
            return url
    assert error is not None
    raise error


def _server(url: str) -> tuple[str, int]:
    """Returns the host and the port to connect to for an address: those of the proxy, if there is one."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.netloc):
        parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
