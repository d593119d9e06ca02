"""Damaged files, full disks, wrong clocks and a second run: a run resumes with bit-identical results, or an error
says in one line why it cannot.

Each test runs the command line in its own processes (`storage_run`).
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from support import storage_run, tiny
from support.damage import cut, flip, largest_file
from support.paths import ROOT, TESTS
from support.storage_run import Process

from jaxvision.data.order import batch_indices


@pytest.fixture(scope="module", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache of compiled programs, and one of Python's byte code, for all processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(ROOT)]))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    ends(Process(workdir))
    return workdir


@pytest.fixture(scope="module")
def _stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("stopped")
    assert Process(workdir, before=functools.partial(storage_run.kill_at_save, 8)).wait() == -signal.SIGKILL
    assert steps(workdir) == [4, 6]
    return workdir


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    """The workdir of a run that was killed after step 8; it has the checkpoints of steps 4 and 6."""
    return shutil.copytree(_stopped, tmp_path / "run")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", folder)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments: object) -> None:
    try:
        subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"may not mount a file system here: {e}")


def steps(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def ends(process: Process) -> str:
    """Waits for a run that must succeed, and returns its output."""
    status = process.wait()
    assert status == 0, process.err
    assert process.err == ""
    return process.out


def refused(process: Process, status: int = 2) -> str:
    """Waits for a run that must end with a status, and returns its line of standard error."""
    assert process.wait() == status, process.err
    assert process.err.startswith("error: " if status == 2 else "stopped by SIGTERM")
    assert process.err.count("\n") == 1, process.err
    return process.err


def state(workdir: Path, step: int) -> dict[str, np.ndarray]:
    with warnings.catch_warnings(), ocp.PyTreeCheckpointer() as reader:
        warnings.filterwarnings("ignore", "Sharding info not provided")
        return tiny.arrays(reader.restore(workdir / "checkpoints" / str(step) / "state"))


def numbers(workdir: Path) -> list[dict]:
    """Returns the lines of ``metrics.jsonl`` without their timing."""
    timed = {"time", "images_per_second", "data_wait", "step_seconds"}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key not in timed} for line in lines]


def assert_same(workdir: Path, undisturbed: Path, step: int = 8) -> None:
    """Checks that two runs have the same state, metrics and exported weights, to the bit."""
    assert_equal_states(state(workdir, step), state(undisturbed, step))
    assert numbers(workdir) == numbers(undisturbed)
    weights = Path("export", "model.safetensors")
    assert (workdir / weights).read_bytes() == (undisturbed / weights).read_bytes()


def assert_equal_states(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    assert len(a) > 100
    assert {name.split(".")[0] for name in a} == {"model", "optimizer", "ema"}
    assert [name for name in a if a[name].tobytes() != b[name].tobytes()] == []


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- Damaged checkpoints ---


DAMAGE = [
    ("arrays", flip),
    ("arrays", cut),
    ("arrays", Path.unlink),
    ("state/_METADATA", flip),
    ("state/manifest.ocdbt", Path.unlink),
    ("about/metadata", flip),
    ("about/metadata", cut),
    ("metrics/metrics", flip),
    ("metrics/metrics", Path.unlink),
    ("checksums.json", flip),
    ("checksums.json", cut),
    ("state", shutil.rmtree),
]


@pytest.mark.parametrize(
    ("what", "how"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (i > 0)) for i, case in enumerate(DAMAGE)],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_the_newest_checkpoint_is_damaged(stopped: Path, undisturbed: Path, what: str, how: Callable) -> None:
    newest = stopped / "checkpoints" / "6"
    how(largest_file(newest / "state") if what == "arrays" else newest / what)
    out = ends(Process(stopped))
    assert [line for line in out.splitlines() if "damaged" in line and "skipped" in line and "step 6" in line]
    assert_same(stopped, undisturbed)


@pytest.mark.parametrize(
    "how", ["damaged", *(pytest.param(how, marks=pytest.mark.slow) for how in ("emptied", "removed"))]
)
def test_no_checkpoint_is_left(stopped: Path, how: str) -> None:
    """The run does not silently start from scratch: it ends with an error and changes nothing."""
    if how == "damaged":
        for step in (4, 6):
            cut(largest_file(stopped / "checkpoints" / str(step) / "state"))
    else:
        shutil.rmtree(stopped / "checkpoints")
        if how == "emptied":
            (stopped / "checkpoints").mkdir()
    before = contents(stopped)
    error = refused(Process(stopped))
    assert (
        "cannot read any checkpoint"
        if how == "damaged"
        else "got no checkpoint, expected those that this run has saved"
    ) in error
    assert "to start from scratch" in error
    assert contents(stopped) == before


# --- Disks ---


NO_SPACE = "No space left on device"
FULL = {
    "at metrics": (functools.partial(storage_run.fill_at_metrics, step=7), NO_SPACE),
    "at a checkpoint": (
        functools.partial(storage_run.fill_at_save, step=8),
        "(no space left on the disk). The checkpoint of step 6 is intact",
    ),
    "at the start": (None, "cannot use the workdir"),
    "at the export": (functools.partial(storage_run.fill_at_end, name="save_classifier"), NO_SPACE),
    "at the report": (functools.partial(storage_run.fill_at_end, name="write_report"), NO_SPACE),
    "at the mistakes": (functools.partial(storage_run.fill_at_end, name="write_mistakes"), NO_SPACE),
}


@pytest.mark.parametrize(
    ("when", "message"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] * (i != 1)) for i, (name, case) in enumerate(FULL.items())],
)
def test_the_disk_is_full(
    stopped: Path, undisturbed: Path, disk: Path, when: functools.partial | None, message: str
) -> None:
    workdir = shutil.copytree(stopped, disk / "run")
    if when is None:
        storage_run.fill(disk)
    error = refused(Process(workdir, before=when and functools.partial(when, disk)))
    assert message in error
    good = steps(workdir)
    assert good[-1] == (8 if "fill_at_end" in str(when) else 6)
    assert not [path for path in workdir.rglob("*") if "tmp" in path.name or path.name.startswith(".config")]
    (disk / "filler").unlink()
    ends(Process(workdir))
    assert_same(workdir, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["mount", "mode"])
def test_the_workdir_cannot_be_written_to(stopped: Path, undisturbed: Path, how: str) -> None:
    before = contents(stopped)
    if how == "mount":
        mount("--bind", stopped, stopped)
        subprocess.run(["mount", "-o", "remount,ro,bind", stopped], check=True)
        process = Process(stopped)
    else:
        for path in [*stopped.rglob("*"), stopped]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        process = Process(stopped, before=storage_run.obey_modes)
    try:
        assert "cannot use the workdir" in refused(process)
        assert contents(stopped) == before
    finally:
        if how == "mount":
            subprocess.run(["umount", "--lazy", stopped], check=True)
        else:
            for path in [stopped, *stopped.rglob("*")]:
                path.chmod(0o755 if path.is_dir() else 0o644)
    ends(Process(stopped))
    assert_same(stopped, undisturbed)


# --- Clocks ---


@pytest.mark.slow
def test_the_clock_is_set_back(stopped: Path, undisturbed: Path) -> None:
    """By a day between two runs, and by another day during the second."""
    os.utime(stopped / "checkpoints" / "6", (10**9, 10**9))  # older than everything else
    out = ends(Process(stopped, before=functools.partial(storage_run.set_clock_back, 7)))
    assert "damaged" not in out
    assert_same(stopped, undisturbed)
    lines = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if line["split"] == "train"]
    assert [round((b - a) / 86400) for a, b in itertools.pairwise(times)] == [0, 0, 0, 0, 0, -2, 0]
    for line in lines:
        if line["split"] == "train":
            assert min(line["images_per_second"], line["step_seconds"]) > 0
            assert 0 <= line["data_wait"] <= 1
    assert "-" not in out.split("images/s")[-1].split("report")[0]  # no time at the end is negative
    assert "this run is finished" in ends(Process(stopped))
    assert_same(stopped, undisturbed)


# --- Two runs ---


def until(condition: Callable[[], object], timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_second_run_in_the_same_workdir(tmp_path: Path, undisturbed: Path, end: signal.Signals) -> None:
    """It is refused while the first one runs, even if that one is stopping, and accepted afterwards."""
    workdir, saving = tmp_path / "run", tmp_path / "saving"
    first = Process(workdir, before=functools.partial(storage_run.pause_at_save, 4, saving))
    until(saving.exists)
    if end == signal.SIGTERM:
        first.signal(end)
    error = refused(Process(workdir))
    assert f"is in use by another run (process {first.pid} on {socket.gethostname()}). Stop it" in error
    if end == signal.SIGKILL:
        first.signal(end)
        assert first.wait() == -end
    else:
        saving.unlink()
        refused(first, 75)
    ends(Process(workdir))
    assert_same(workdir, undisturbed)


@pytest.mark.slow
def test_two_runs_start_at_once(tmp_path: Path, undisturbed: Path) -> None:
    workdir, saving = tmp_path / "run", tmp_path / "saving"
    two = [Process(workdir, before=functools.partial(storage_run.pause_at_save, 2, saving)) for _ in range(2)]
    until(lambda: any(process.ended() for process in two))
    first, second = sorted(two, key=Process.ended)
    error = refused(second)
    assert f"process {first.pid} on" in error or "another run has just started" in error
    until(saving.exists)
    saving.unlink()
    ends(first)
    assert_same(workdir, undisturbed)


# --- Steps that are not finite ---

BAD = 5
EACH_STEP = ("--config.train.evaluate_every=0.001", "--config.checkpoint.keep=10")


def nan_at_step_5(*others: Callable[[], object]) -> Callable[[], object]:
    """Makes an image of step 5 NaN."""
    _, numbers = batch_indices(1438, 16, seed=0, step=BAD - 1)
    return functools.partial(storage_run.make_nan, int(numbers[3]), *others)


def listed(workdir: Path) -> list[tuple[int, list[str]]]:
    lines = [json.loads(line) for line in (workdir / "not_finite.jsonl").read_text().splitlines()]
    return [(line["step"], line["images"]) for line in lines]


def bad_batch() -> list[tuple[int, list[str]]]:
    _, numbers = batch_indices(1438, 16, seed=0, step=BAD - 1)
    return [(BAD, [f"digits train[{number}]" for number in numbers])]


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that skipped step 5; it has a checkpoint of every step."""
    workdir = tmp_path_factory.mktemp("skipping")
    out = ends(Process(workdir, "--config.train.not_finite=skip", *EACH_STEP, before=nan_at_step_5()))
    assert [line for line in out.splitlines() if "skipped step 5: its loss or gradient is not finite" in line]
    return workdir


def assert_skipped(workdir: Path) -> None:
    assert listed(workdir) == bad_batch()
    before, after, later = (state(workdir, step) for step in (BAD - 1, BAD, BAD + 1))
    assert_equal_states(before, after)
    changed = {name for name in after if after[name].tobytes() != later[name].tobytes()}
    assert len(changed) > 0.9 * len(after)
    assert all(np.isfinite(x).all() for x in later.values())


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped(skipping: Path) -> None:
    assert_skipped(skipping)
    losses = {line["step"]: line["loss"] for line in numbers(skipping) if line["split"] == "train"}
    assert [step for step, loss in losses.items() if loss is None] == [BAD]
    assert (skipping / "report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "arguments"), [(1, ["--config.train.accumulate=2"]), (8, []), (4, ["--config.train.accumulate=4"])]
)
def test_skipped_with_microbatches_and_on_many_devices(tmp_path: Path, devices: int, arguments: list[str]) -> None:
    ends(
        Process(
            tmp_path, "--config.train.not_finite=skip", *EACH_STEP, *arguments, devices=devices, before=nan_at_step_5()
        )
    )
    assert_skipped(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("at", [BAD, BAD + 2])
def test_killed_after_a_step_was_skipped(tmp_path: Path, skipping: Path, at: int) -> None:
    """Whether or not the bad step runs again, the bits are the same and it is listed once."""
    arguments = ("--config.train.not_finite=skip", *EACH_STEP)
    killed = Process(tmp_path, *arguments, before=nan_at_step_5(functools.partial(storage_run.kill_at_save, at)))
    assert killed.wait() == -signal.SIGKILL
    assert listed(tmp_path) == bad_batch()
    assert steps(tmp_path)[-1] == at - 1
    ends(Process(tmp_path, *arguments, before=nan_at_step_5()))
    assert listed(tmp_path) == bad_batch()
    assert_same(tmp_path, skipping)


@pytest.mark.slow
def test_stopped_before_a_skipped_step_was_logged(tmp_path: Path, skipping: Path) -> None:
    """Metrics are fetched every four steps, and once more before the run stops."""
    arguments = ("--config.train.not_finite=skip", "--config.train.log_every=4", "--config.train.evaluate_every=1.0")
    stopped = Process(tmp_path, *arguments, before=nan_at_step_5(functools.partial(storage_run.terminate_at, 6)))
    assert "stopped by SIGTERM at step 6" in refused(stopped, 75)
    assert listed(tmp_path) == bad_batch()
    ends(Process(tmp_path, *arguments, before=nan_at_step_5()))
    assert listed(tmp_path) == bad_batch()
    assert_equal_states(state(tmp_path, 8), state(skipping, 8))


@pytest.mark.slow
def test_a_step_that_is_not_finite_stops_the_run(tmp_path: Path, skipping: Path) -> None:
    for _ in range(2):  # the second resumes from the checkpoint and reaches the bad step again
        error = refused(Process(tmp_path, *EACH_STEP, before=nan_at_step_5()))
        assert error.startswith("error: step 5: the loss is nan")
        assert listed(tmp_path) == bad_batch()
        assert steps(tmp_path) == [1, 2, 3, 4]
    ends(Process(tmp_path, "--config.train.not_finite=skip", *EACH_STEP, before=nan_at_step_5()))
    assert_same(tmp_path, skipping)
