"""Damaged, lost and interrupted checkpoints: an intact one is found, or an error says why there is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from support.damage import SHARDINGS, STATE, cut, flip, folder, largest_file, save
from support.paths import TESTS

from jaxvision.checkpoint import Checkpoints, checksums, saved_steps
from jaxvision.errors import UserError


@pytest.mark.parametrize("what", ["arrays", "about", "metrics"])
@pytest.mark.parametrize("how", [flip, cut, Path.unlink])
def test_a_damaged_checkpoint_is_skipped(tmp_path: Path, what: str, how: object) -> None:
    save(tmp_path, 1, 2, 3)
    for step in (2, 3):
        how(largest_file(folder(tmp_path, step) / {"arrays": "state", "about": "about", "metrics": "metrics"}[what]))
    logged: list[str] = []
    with Checkpoints(tmp_path, log=logged.append) as checkpoints:
        restored = checkpoints.restore(STATE, SHARDINGS)
        assert restored.step == 1
        assert restored.state["optimizer"]["step"] == 8
        assert [message.split(":")[0] for message in logged] == [
            f"skipped a damaged checkpoint, step {step}" for step in (3, 2)
        ]
        assert checkpoints.steps() == [1]
        checkpoints.save(2, STATE, position={})  # the run reaches that step again
        checkpoints.save(3, STATE, position={})
    with Checkpoints(tmp_path, log=logged.append) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS).step == 3
    assert len(logged) == 2


@pytest.mark.parametrize("how", [flip, cut, Path.unlink])
def test_damage_to_any_file_is_found_or_harmless(tmp_path: Path, how: object) -> None:
    save(tmp_path / "intact", 1, 2)
    newest = folder(tmp_path / "intact", 2)
    files = [path.relative_to(tmp_path / "intact") for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 10
    for file in files:
        workdir = shutil.copytree(tmp_path / "intact", tmp_path / str(file).replace("/", "-"))
        how(workdir / file)
        with Checkpoints(workdir, log=lambda message: None) as checkpoints:
            restored = checkpoints.restore(STATE, SHARDINGS)
        assert restored.position == {"step": restored.step}
        for a, b in zip(jax.tree.leaves(restored.state), jax.tree.leaves(STATE), strict=True):
            np.testing.assert_array_equal(a, b + restored.step)


@pytest.mark.parametrize("text", ["", "{}", "[]", "{"])
def test_invalid_checksums_count_as_damage(tmp_path: Path, text: str) -> None:
    save(tmp_path, 1, 2)
    (folder(tmp_path, 2) / "checksums.json").write_text(text)
    logged: list[str] = []
    with Checkpoints(tmp_path, log=logged.append) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS).step == 1
    assert logged == ["skipped a damaged checkpoint, step 2: checksums.json is damaged"]


@pytest.mark.parametrize("text", ["{", "[]", '{"top1": "high"}', ""])
def test_damaged_metrics_are_logged(tmp_path: Path, text: str) -> None:
    """A checkpoint with damaged metrics may have been the best, so that is not passed over in silence."""
    with Checkpoints(tmp_path) as checkpoints:
        for step, top1 in ((1, 0.9), (2, 0.5)):
            checkpoints.save(step, STATE, position={}, metrics={"top1": top1})
    (folder(tmp_path, 1) / "metrics" / "metrics").write_text(text)
    logged: list[str] = []
    with Checkpoints(tmp_path, log=logged.append) as checkpoints:
        assert checkpoints.best_step() == 2
    assert logged == ["the metrics of the checkpoint of step 1 are damaged; it cannot be chosen as the best"]


def test_lost_checkpoints_are_an_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="expected those that this run has saved"):
        checkpoints.restore(STATE, SHARDINGS)


def test_without_an_intact_checkpoint_nothing_starts_from_scratch(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for step in (1, 2):
        cut(largest_file(folder(tmp_path, step)))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError, match=r"cannot read any checkpoint in .* \(step 2: .*; step 1: .*\)\. Remove the folder"
        ),
    ):
        checkpoints.restore(STATE, SHARDINGS)
    assert folder(tmp_path, 2).exists()


def test_a_file_that_is_no_checkpoint_is_logged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    folder(tmp_path, 2).write_text("a file")
    logged: list[str] = []
    with Checkpoints(tmp_path, log=logged.append) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS).step == 1
    assert logged == [f"skipped {folder(tmp_path, 2)}: it is a file, expected the folder of a checkpoint"]


# --- Writing checksums ---


def test_the_next_save_does_not_wait_for_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a save that may remove a checkpoint waits for the checksums of that one."""
    write, may_go_on = checksums.write_checksums, threading.Event()

    def write_late(folder: object) -> None:
        assert may_go_on.wait(60)
        write(folder)

    monkeypatch.setattr(checksums, "write_checksums", write_late)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, STATE, position={}, metrics={"top1": step / 10})
        assert saved_steps(tmp_path) == []
        threading.Timer(0.5, may_go_on.set).start()
        checkpoints.save(3, STATE, position={})
        assert may_go_on.is_set()
        checkpoints.wait()
        assert saved_steps(tmp_path) == checkpoints.steps() == [2, 3]


def three_processes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets threads stand for three processes. Returns a function that says which of them a thread is."""
    thread = threading.local()
    monkeypatch.setattr(jax, "process_index", lambda: thread.process)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    return lambda process: setattr(thread, "process", process)


def test_each_process_reads_the_files_that_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    checkpoint = epath.Path(folder(tmp_path, 1))
    for process in (1, 2):
        shutil.copytree(checkpoint / "state" / "ocdbt.process_0", checkpoint / "state" / f"ocdbt.process_{process}")
    checksums.write_checksums(checkpoint)  # one process reads all
    expected = (checkpoint / "checksums.json").read_text()
    (checkpoint / "checksums.json").unlink()

    become = three_processes(monkeypatch)
    monkeypatch.setattr(checksums, "TIMEOUT", 0.2)

    def write(process: int) -> None:
        become(process)
        checksums.write_checksums(checkpoint)

    with pytest.raises(TimeoutError, match="process 0 has not written"):
        write(1)
    own = json.loads((checkpoint / "checksums.json.1-of-3").read_text())
    assert {name for name in json.loads(expected) if "process_1" in name} <= own.keys()
    assert not [name for name in own if "process_0" in name or "process_2" in name]
    with pytest.raises(TimeoutError, match="process 2 has not written its checksums"):
        write(0)
    assert not checksums.has_checksums(checkpoint)  # it counts as a checkpoint that was not verified

    monkeypatch.setattr(checksums, "TIMEOUT", 60)
    with ThreadPoolExecutor(3) as processes:
        list(processes.map(write, range(3)))
    assert json.loads((checkpoint / "checksums.json").read_text()) == json.loads(expected)
    assert [path.name for path in checkpoint.iterdir() if path.name.startswith("checksums")] == ["checksums.json"]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("is_removed", [False, True], ids=["kept", "removed by process 0"])
def test_a_process_that_fails_ends_the_wait_of_the_others(
    failing: int, is_removed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three processes cannot read one of its files."""
    save(tmp_path, 1)
    checkpoint = epath.Path(folder(tmp_path, 1))
    (checkpoint / "checksums.json").unlink()
    os.symlink(tmp_path / "gone", checkpoint / "state" / f"ocdbt.process_{failing}.unreadable")
    become = three_processes(monkeypatch)
    monkeypatch.setattr(checksums, "TIMEOUT", 60)

    def write(process: int) -> None:
        become(process)
        try:
            checksums.write_checksums(checkpoint)
        finally:
            if is_removed and process == 0:  # as `Checkpoints` does with a checkpoint that could not be written
                checkpoint.rename(tmp_path / "removed").rmtree()

    started = time.monotonic()
    with ThreadPoolExecutor(3) as processes:
        ended = [processes.submit(write, process) for process in range(3)]
    assert time.monotonic() - started < 20
    for end in ended:
        assert isinstance(end.exception(), OSError)
        assert not isinstance(end.exception(), TimeoutError)
    assert "No such file" in str(ended[failing].exception())
    assert not checksums.has_checksums(checkpoint)


# --- Saves that are interrupted or fail ---


def test_remains_of_an_interrupted_save_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    unfinished = folder(tmp_path, 3).with_name("3.orbax-checkpoint-tmp-1700000000")
    (unfinished / "state").mkdir(parents=True)
    folder(tmp_path, 4).mkdir()  # an empty folder
    (folder(tmp_path, 2) / "checksums.json").unlink()  # complete, but the process ended before it wrote the checksums
    logged: list[str] = []
    with Checkpoints(tmp_path, read_only=True, log=logged.append) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS).step == 2
    assert unfinished.exists()  # another process may be writing it
    assert folder(tmp_path, 4).exists()
    assert logged[0] == "the checkpoint of step 2 has no checksums.json, so it was not verified"
    assert logged[1].startswith("skipped a damaged checkpoint, step 4: ")
    logged.clear()
    with Checkpoints(tmp_path, log=logged.append) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS).step == 2
        checkpoints.save(3, STATE, position={})
    assert logged[0] == "skipped the checkpoint of step 3: saving it was interrupted"
    assert not unfinished.exists()
    assert not folder(tmp_path, 4).exists()


def test_an_overwritten_step_is_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint is kept until the new one is complete, whenever the process ends."""
    overwritten, later = {"step": "overwritten"}, jax.tree.map(lambda x: x + 1, STATE)

    def overwrite(workdir: Path) -> None:
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(1, later, position=overwritten, metrics={"top1": 0.5}, overwrite=True)

    save(tmp_path / "old", 1)
    new = shutil.copytree(tmp_path / "old", tmp_path / "new")
    overwrite(new)
    with Checkpoints(new) as checkpoints:
        assert checkpoints.restore(STATE, SHARDINGS).position == overwritten
        assert checkpoints.best_step() == 1

    for ended in ("before Orbax wrote", "before the checksums", "before the old one was removed"):
        workdir = shutil.copytree(new, tmp_path / ended)
        shutil.copytree(folder(tmp_path / "old", 1), workdir / "checkpoints" / "1.aside")
        if ended == "before Orbax wrote":
            shutil.rmtree(folder(workdir, 1))
        elif ended == "before the checksums":
            (folder(workdir, 1) / "checksums.json").unlink()
        is_complete = ended == "before the old one was removed"
        with Checkpoints(workdir) as checkpoints:
            restored = checkpoints.restore(STATE, SHARDINGS)
            assert restored.position == (overwritten if is_complete else {"step": 1})
            assert checkpoints.best_step() == (1 if is_complete else None)
        assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["1"]
        overwrite(workdir)
        with Checkpoints(workdir) as checkpoints:
            assert checkpoints.restore(STATE, SHARDINGS).position == overwritten

    with Checkpoints(tmp_path / "old") as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", raise_no_space)
        with pytest.raises(UserError, match=r"no space left on the disk\)\. The checkpoint of step 1 is intact"):
            checkpoints.save(1, later, position=overwritten, overwrite=True)
        assert checkpoints.restore(STATE, SHARDINGS).position == {"step": 1}


def raise_no_space(*args: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of a file fails in the background as a full disk does: in the middle of writing."""
    resource = pytest.importorskip("resource")
    big = {"model": {"kernel": jax.random.bits(jax.random.key(0), (2**20,))}}  # 4 MiB that cannot be compressed
    shardings = jax.tree.map(lambda x: x.sharding, big)
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, big, position={"step": 1})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        checkpoints.save(2, big, position={"step": 2})
        with pytest.raises(
            UserError, match=r"^cannot write the checkpoint of step 2 .*The checkpoint of step 1 is intact"
        ):
            checkpoints.wait()
        assert [path.name for path in checkpoints.directory.iterdir()] == ["1"]  # nothing is left half-written
        checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path, keep=1, log=lambda message: None) as checkpoints:
        restored = checkpoints.restore(big, shardings)
        assert restored.position == {"step": 1}
        np.testing.assert_array_equal(restored.state["model"]["kernel"], big["model"]["kernel"])
        checkpoints.save(2, big, position={})  # there is room again
        checkpoints.wait()
        assert checkpoints.steps() == [2]


def test_a_workdir_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"cannot write the checkpoint.*There is no earlier checkpoint"),
        Checkpoints(tmp_path / "file" / "run") as checkpoints,
    ):
        checkpoints.save(1, {"x": jax.numpy.ones(3)}, position={})


def test_the_first_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that fails while another error passes through is only logged."""
    logged: list[str] = []

    def fail_twice() -> None:
        with Checkpoints(tmp_path, log=logged.append) as checkpoints:
            checkpoints.save(1, STATE, position={})
            raise KeyError("first")

    monkeypatch.setattr(checksums, "write_checksums", raise_no_space)
    with pytest.raises(KeyError, match="first"):
        fail_twice()
    assert "no space left on the disk" in logged[0]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_while_saving(tmp_path: Path) -> None:
    """One process is killed while it saves step 4, another resumes there, and a third is never stopped."""

    def start(workdir: str, *arguments: int) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, TESTS / "support" / "resume.py", tmp_path / workdir, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def end(process: subprocess.Popen, status: int = 0) -> dict[str, str]:
        out, err = process.communicate()
        assert process.returncode == status, err
        assert "Traceback" not in err
        return dict(line.split(": ", 1) for line in out.splitlines())

    straight, killed = start("straight", 6), start("killed", 6, 4)
    assert end(killed, -signal.SIGKILL)["start"] == "0"
    resumed = end(start("killed", 6))
    if resumed["start"] == "2":
        assert resumed["logged"] in (
            "skipped the checkpoint of step 4: saving it was interrupted",
            "the checkpoint of step 2 has no checksums.json, so it was not verified",  # it was killed so early
        )
    else:  # the disk was faster than the signal
        assert resumed["start"] == "4"
    assert resumed["digest"] == end(straight)["digest"]
