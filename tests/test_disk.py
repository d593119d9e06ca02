"""jaxvision.disk: locks between processes, and files that replace others."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxvision.disk import hold_lock, replaced

fcntl = pytest.importorskip("fcntl")


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Each opening of the file competes, as that of another process does."""
    path, events = tmp_path / "new" / ".lock", list[str]()

    def wait_for_it() -> None:
        with hold_lock(path, lambda: events.append("waits")) as is_held:
            events.append(f"holds: {is_held}")

    with hold_lock(path, lambda: events.append("never")) as is_held:
        assert is_held
        other = threading.Thread(target=wait_for_it)
        other.start()
        time.sleep(0.2)
        events.append("releases")
    other.join()
    assert events == ["waits", "releases", "holds: True"]


def test_a_busy_lock_may_be_refused_instead(tmp_path: Path) -> None:
    def refuse() -> None:
        raise ValueError("in use")

    path = tmp_path / ".lock"
    with hold_lock(path), pytest.raises(ValueError, match="in use"), hold_lock(path, refuse):
        pass
    with hold_lock(tmp_path / ".lock", refuse) as is_held:
        assert is_held


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\nfrom jaxvision.disk import hold_lock\n"
        "with hold_lock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    busy: list[bool] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        threading.Timer(0.2, process.kill).start()
        with hold_lock(tmp_path / ".lock", lambda: busy.append(True)) as is_held:
            assert is_held
    assert busy == [True]


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with hold_lock(tmp_path / ".lock") as is_held, hold_lock(tmp_path / ".lock") as is_held_too:
        assert not is_held
        assert not is_held_too


def test_a_lock_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with hold_lock(tmp_path / "file" / ".lock") as is_held:
        assert not is_held


def test_two_writers_of_a_file_never_share_a_temporary_file(tmp_path: Path) -> None:
    """Containers that share a disk may give two processes the same number."""
    path = tmp_path / "model.safetensors"
    with replaced(path) as first:
        first.write_text("first")
        with replaced(path) as second:
            second.write_text("second")
        assert (path.read_text(), first.read_text()) == ("second", "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
