"""jaxvision.network: whether a server can be reached, and through what. Downloads are tested where they are used."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from jaxvision.network import download_part, first_to_answer

NAMELESS = "https://no-such-host.invalid/file"


@pytest.fixture
def server():
    """The address of a server that accepts connections, and nothing else."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/file"


@pytest.fixture
def refused():
    """An address at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    return f"http://127.0.0.1:{port}/file"


def black_hole(monkeypatch):
    """Makes the lookup of every name but of those of this machine take longer than a user waits."""
    look_up = socket.getaddrinfo

    def slowly(host, *args, **options):
        if host != "127.0.0.1":
            time.sleep(2)
            raise socket.gaierror("Temporary failure in name resolution")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)


def test_the_first_server_that_answers_is_taken(server, refused, monkeypatch):
    black_hole(monkeypatch)
    assert first_to_answer([server]) == server
    assert first_to_answer([refused, NAMELESS, server]) == server


def test_without_a_network_it_says_so_in_time(refused, monkeypatch):
    with pytest.raises(ConnectionRefusedError):
        first_to_answer([refused])
    black_hole(monkeypatch)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.3 seconds"):
        first_to_answer([NAMELESS, refused], seconds=0.3)
    assert time.monotonic() - start < 1.5


def test_a_proxy_is_asked_instead_of_the_server(server, refused, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("https_proxy", server)
    assert first_to_answer([NAMELESS]) == NAMELESS
    monkeypatch.setenv("https_proxy", refused.removeprefix("http://").removesuffix("/file"))
    with pytest.raises(ConnectionRefusedError):
        first_to_answer([NAMELESS])
    monkeypatch.setenv("https_proxy", "http://localhost:99999")
    with pytest.raises(OSError, match="Port out of range"):
        first_to_answer([NAMELESS])
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    with pytest.raises(socket.gaierror):
        first_to_answer([NAMELESS])


def test_a_server_of_another_protocol_is_an_error_of_the_network(tmp_path):
    """So that a download tries the next mirror."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet():
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(OSError, match=r"the answer is not HTTP \(BadStatusLine\('SSH-2\.0-OpenSSH_9\.6"):
            download_part(f"http://127.0.0.1:{listening.getsockname()[1]}/file", tmp_path / "part")
