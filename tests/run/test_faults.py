"""Real runs, real signals: however a run is stopped, it resumes and ends as an undisturbed run does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from support.compile_flags import xla_flags
from support.paths import ROOT, TESTS

from jaxvision.errors import Preempted

TIMING = {"time", "images_per_second", "step_seconds", "data_wait"}


class Job:
    """``python -m jaxvision.main`` with a config of ``fault_config.py``, as one or several processes."""

    def __init__(self, workdir: Path, *, data: str = "memory", processes: int = 1, devices: int = 1, **flags: Any):
        self.workdir = workdir
        given = [f"--config.{key.replace('__', '.')}={value}" for key, value in flags.items()]
        arguments = ["--config", f"{TESTS / 'support' / 'fault_config.py'}:{data}", "--workdir", str(workdir), *given]
        one = [sys.executable, "-m", "jaxvision.main", *arguments]
        launcher = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", str(processes)]
        several = [*launcher, "--devices", str(devices), "--", *arguments]
        workdir.parent.mkdir(parents=True, exist_ok=True)
        self.log = workdir.parent / f"{workdir.name}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                one if processes == 1 else several,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env=os.environ | {"XLA_FLAGS": xla_flags(devices)},
            )

    def wait(self, timeout: float = 600) -> int:
        try:
            return self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()

    def until(self, moment: Callable[[], bool], timeout: float = 600) -> bool:
        """Waits for a moment; False if the process ended first."""
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            if moment():
                return True
            assert time.monotonic() < end, self.text()
            time.sleep(0.005)
        return False

    def text(self) -> str:
        return self.log.read_text()

    def steps(self, split: str) -> list[int]:
        return [line["step"] for line in lines(self.workdir) if line["split"] == split]

    # Moments, for `until`.
    def compiles(self) -> bool:
        return "compiling" in self.text()

    def trains(self) -> bool:
        return len(self.steps("train")) > 1

    def evaluates(self) -> bool:
        evaluated = max(self.steps("test"), default=0)
        return any(step > evaluated and is_due(step) for step in self.steps("train"))

    def saves(self) -> bool:
        return any("tmp" in path.name for path in self.workdir.glob("checkpoints/*"))

    def reports(self) -> bool:
        return "exporting the model" in self.text()


def is_due(step: int) -> bool:
    """Returns whether ``fault_config.py:memory`` evaluates at a step: every tenth of its 89.9 steps per epoch."""
    return step in (9, 18, 27, 36, 40)


def lines(workdir: Path) -> list[dict[str, Any]]:
    try:
        text = (workdir / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def curve(workdir: Path) -> list[dict[str, Any]]:
    """Returns the logged lines without their timing."""
    return [{key: x for key, x in line.items() if key not in TIMING} for line in lines(workdir)]


def arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Returns every array of the newest checkpoint: parameters, average, BatchNorm statistics, moments, random keys."""
    newest = max(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())
    folder = workdir / "checkpoints" / str(newest) / "state"
    with ocp.PyTreeCheckpointer() as reader:
        shapes = reader.metadata(folder).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        leaves = jax.tree_util.tree_leaves_with_path(reader.restore(folder, restore_args=on_host))
    return {"step": np.array(newest)} | {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def check_same(found: Path, wanted: Path) -> None:
    """Checks that two runs have the same arrays, log lines and exported weights, to the bit."""
    a, b = arrays(found), arrays(wanted)
    assert a.keys() == b.keys()
    assert len(a) > 100
    assert not [name for name in a if a[name].tobytes() != b[name].tobytes()]
    assert curve(found) == curve(wanted)
    weights = [(folder / "export" / "model.safetensors").read_bytes() for folder in (found, wanted)]
    assert weights[0] == weights[1]


def children(pid: int) -> list[int]:
    """Returns the descendants of a process, started from any of its threads."""
    found: list[int] = []
    with suppress(FileNotFoundError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found + [x for child in found for x in children(child)]


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Images for the streamed run, and one compilation cache for all runs."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, color in {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}.items():
        (folder / name).mkdir()
        for i in range(34):
            noise = rng.normal(0, 60, (*rng.integers(36, 60, 2), 1))
            Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(folder / name / f"{i}.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULT_IMAGES", str(folder))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Returns a function that returns the workdir of an undisturbed run."""
    done: dict[str, Path] = {}

    def of(data: str, **flags: Any) -> Path:
        key = f"{data}{flags}"
        if key not in done:
            done[key] = tmp_path_factory.mktemp(data) / "undisturbed"
            job = Job(done[key], data=data, **flags)
            assert job.wait() == 0, job.text()
        return done[key]

    return of


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compiles", "trains", "evaluates", "saves"])
def test_sigterm(moment: str, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends within 15 s with status 75, even after five signals; resuming gives bit-identical results."""
    workdir = tmp_path / "run"
    if moment == "compiles":
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    job = Job(workdir)
    assert job.until(getattr(job, moment)), job.text()
    signaled = time.monotonic()
    for _ in range(5):
        job.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    assert job.wait(60) == Preempted.STATUS, job.text()
    assert time.monotonic() - signaled < 15
    assert "stopped by SIGTERM" in job.text()
    assert not list(workdir.glob("checkpoints/*tmp*"))
    if moment != "compiles":
        assert list(workdir.glob("checkpoints/*/checksums.json"))
        stopped = int(job.text().split("stopped by SIGTERM at step ")[1].split(",")[0])
        assert max(int(path.name) for path in workdir.glob("checkpoints/*")) == stopped
    resumed = Job(workdir)
    assert resumed.wait() == 0, resumed.text()
    check_same(workdir, undisturbed("memory"))


@pytest.mark.slow
@pytest.mark.parametrize("data", ["memory", "streamed"])
def test_killed_at_thirty_moments(data: str, tmp_path: Path, undisturbed: Any) -> None:
    """Thirty times `kill -9` during a step, a save, an evaluation or at random; then the run is finished."""
    wanted, workdir, moments = undisturbed(data), tmp_path / "run", random.Random(0)
    kills, finished = {"trains": 0, "evaluates": 0, "saves": 0, "any": 0}, 0
    while sum(kills.values()) < 30:
        job = Job(workdir, data=data)
        kind = list(kills)[sum(kills.values()) % 4]
        started = len(job.text())
        if kind == "any":
            time.sleep(moments.uniform(0.5, 12))
        elif job.until(getattr(job, kind)):
            time.sleep(moments.uniform(0, 0.5))
        workers = children(job.process.pid)
        job.process.kill()
        status = job.wait()
        if status == -signal.SIGKILL:
            kills[kind] += 1
        else:  # it had ended: the next one starts from scratch
            assert status == 0, job.text()
            check_same(workdir, wanted)
            finished += 1
            workdir = tmp_path / f"run{finished}"
        assert "error" not in job.text()[started:]
        deadline = time.monotonic() + 10
        while left := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, f"workers of a killed run are still running: {left}"
            time.sleep(0.1)
    job = Job(workdir, data=data)
    assert job.wait() == 0, job.text()
    check_same(workdir, wanted)
    print("killed:", kills, "runs:", finished + 1)


def workers_of(job: Job) -> list[int]:
    """Returns the processes that read images for a job."""
    return [pid for pid in children(job.process.pid) if "spawn_main" in command_line(pid)]


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_with_one_line(tmp_path: Path, undisturbed: Any) -> None:
    """As the kernel does when memory is short. The other workers end, and the run resumes."""
    job = Job(tmp_path / "run", data="streamed")
    assert job.until(job.trains), job.text()
    workers = workers_of(job)
    os.kill(workers[0], signal.SIGKILL)
    assert job.wait(60) == 2, job.text()
    (line,) = [line for line in job.text().splitlines() if line.startswith("error")]
    assert line.startswith("error: data.workers: got a worker process that was killed or failed, expected ")
    assert not [word for word in ("Traceback", "leaked", "Warning") if word in job.text()]
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    resumed = Job(tmp_path / "run", data="streamed")
    assert resumed.wait() == 0, resumed.text()
    check_same(tmp_path / "run", undisturbed("streamed"))


@pytest.mark.slow
def test_sigterm_to_the_workers_as_well(tmp_path: Path) -> None:
    """A cluster signals every process of a job. The workers keep reading until the run has saved."""
    job = Job(tmp_path / "run", data="streamed")
    assert job.until(job.trains), job.text()
    workers = workers_of(job)
    assert len(workers) == 2
    for pid in (*workers, job.process.pid):
        os.kill(pid, signal.SIGTERM)
    assert job.wait(60) == Preempted.STATUS, job.text()
    assert "stopped by SIGTERM at step" in job.text()
    assert "Traceback" not in job.text()
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


# --- Several processes ---


# Adam takes a full step even where the gradient is only rounding error, as for a bias before BatchNorm. Training does
# not notice, but an evaluation differs by 1e-5 of the loss with steps of 5e-5. Hence the small learning rate.
GENTLE = {"optimizer__learning_rate": 2e-6}


def check_close(found: Path, wanted: Path) -> None:
    """Checks that logged losses agree to 1e-5, and the moments of parameters that have gradients."""
    a, b = curve(found), curve(wanted)
    assert [(x["step"], x["split"]) for x in a] == [(x["step"], x["split"]) for x in b]
    for x, y in zip(a, b, strict=True):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5), (x, y)
        assert x.get("count") == y.get("count")
    moments = {name: x for name, x in arrays(wanted).items() if "'mu'" in name and np.abs(x).max() > 1e-6}
    assert len(moments) > 20
    arrays_found = arrays(found)
    for name, x in moments.items():
        np.testing.assert_allclose(arrays_found[name], x, rtol=0, atol=1e-3 * np.abs(x).max(), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["memory", "streamed"])
def test_resumed_on_other_devices_by_other_processes(data: str, tmp_path: Path, undisturbed: Any) -> None:
    """1 device, 2 processes of 2 devices, 4 of 2 with fsdp, 1 of 8; each is stopped by SIGTERM or killed."""
    workdir = tmp_path / "run"
    kinds: list[dict[str, Any]] = [
        {},
        {"processes": 2, "devices": 2},
        {"processes": 4, "devices": 2, "mesh__data": 2, "mesh__fsdp": 4, "sharding__min_size": 1},
        {"devices": 8, "mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
    ]
    for i, kind in enumerate(kinds):
        job = Job(workdir, data=data, **GENTLE, **kind)
        before = max(job.steps("train"), default=0)
        assert job.until(lambda job=job, before=before: max(job.steps("train"), default=0) > before + 5)
        if i % 2:
            for pid in (job.process.pid, *children(job.process.pid)):
                os.kill(pid, signal.SIGKILL)
        else:
            job.process.send_signal(signal.SIGTERM)
        assert job.wait() == (-signal.SIGKILL if i % 2 else Preempted.STATUS), job.text()
    last = Job(workdir, data=data, processes=2, devices=2, **GENTLE)
    assert last.wait() == 0, last.text()
    check_close(workdir, undisturbed(data, **GENTLE))


@pytest.mark.slow
def test_tensor_parallelism_across_processes(tmp_path: Path, undisturbed: Any) -> None:
    """Both processes read the same images: no batch is halved, and an evaluation counts each image once."""
    job = Job(tmp_path / "run", processes=2, mesh__data=1, mesh__tensor=2, sharding__min_size=1, **GENTLE)
    assert job.wait() == 0, job.text()
    check_close(tmp_path / "run", undisturbed("memory", **GENTLE))


@pytest.mark.slow
def test_a_mesh_must_use_every_process(tmp_path: Path) -> None:
    job = Job(tmp_path / "run", processes=2, mesh__data=1)
    assert job.wait(60) == 2, job.text()
    assert "error: mesh: data=1, fsdp=1, tensor=1 does not tile 2 devices" in job.text()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compiles", "trains", "evaluates", "saves", "reports"])
def test_sigterm_of_several_processes(moment: str, tmp_path: Path, undisturbed: Any) -> None:
    workdir = tmp_path / "run"
    job = Job(workdir, processes=2, devices=2, **GENTLE)
    assert job.until(getattr(job, moment)), job.text()
    signaled = time.monotonic()
    job.process.send_signal(signal.SIGTERM)
    assert job.wait(90) == Preempted.STATUS, job.text()
    assert time.monotonic() - signaled < 15
    resumed = Job(workdir, processes=2, devices=2, **GENTLE)
    assert resumed.wait() == 0, resumed.text()
    check_close(workdir, undisturbed("memory", **GENTLE))


@pytest.mark.slow
@pytest.mark.parametrize(("which", "data"), [(0, "memory"), (1, "memory"), (0, "streamed"), (1, "streamed")])
def test_one_of_several_processes_is_killed(which: int, data: str, tmp_path: Path, undisturbed: Any) -> None:
    """The others end within a minute with a message that names it, and the run resumes."""
    workdir = tmp_path / "run"
    job = Job(workdir, data=data, processes=2, devices=2, **GENTLE)
    assert job.until(lambda: len(job.steps("train")) > 3), job.text()
    processes = [pid for pid in children(job.process.pid) if "jaxvision.main" in command_line(pid)]
    killed = time.monotonic()
    os.kill(processes[which], signal.SIGKILL)
    assert job.wait(90) == 128 + signal.SIGKILL, job.text()
    assert time.monotonic() - killed < 60
    assert f"process {which} was the first to end, by SIGKILL. Run the same command to resume.\n" in job.text()
    if which:  # JAX aborts every process when process 0 is lost
        assert f"error: lost the connection to process {which} (" in job.text()
        assert "stack trace" not in job.text()
    assert not [word for word in ("Traceback", "leaked") if word in job.text()]
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    resumed = Job(workdir, data=data, processes=2, devices=2, **GENTLE)
    assert resumed.wait() == 0, resumed.text()
    check_close(workdir, undisturbed(data, **GENTLE))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """Images of which three cannot be read, all in the part of the test data that process 1 of two reads."""
    folder = tmp_path / "images"
    for part, n in (("train", 34), ("test", 16)):
        for name in ("blue", "green"):
            (folder / part / name).mkdir(parents=True)
            files = sorted((Path(os.environ["FAULT_IMAGES"]) / name).iterdir())[:n]
            for file in files:
                shutil.copy(file, folder / part / name / file.name)
    for file in sorted((folder / "test" / "green").iterdir())[:3]:  # 16, 17 and 18 of 32
        file.write_bytes(file.read_bytes()[:100])
    return folder


@pytest.mark.slow
def test_an_error_in_one_process_ends_all(tmp_path: Path, damaged: Path) -> None:
    """The process prints its error and ends with status 2, and the others do not wait forever."""
    few = {"source__data_dir": damaged, "data__eval_batch_size": 32, "data__max_corrupt": 2}
    started = time.monotonic()
    job = Job(tmp_path / "run", data="streamed", processes=2, **few)
    assert job.until(lambda: "damaged images, expected at most data.max_corrupt=2" in job.text())
    printed = time.monotonic()
    assert job.wait(90) == 2, job.text()
    assert time.monotonic() - printed < 60
    assert "process 1 was the first to end, with status 2" in job.text()
    assert "Traceback" not in job.text()
    print("seconds:", printed - started, time.monotonic() - printed)


@pytest.mark.slow
def test_damaged_images_of_every_process_are_logged(tmp_path: Path, damaged: Path) -> None:
    job = Job(tmp_path / "run", data="streamed", processes=2, source__data_dir=damaged, data__eval_batch_size=32)
    assert job.wait() == 0, job.text()
    assert job.text().count("warning: skipped") == 3
    assert {line["count"] for line in lines(tmp_path / "run") if line["split"] == "test"} == {29}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except FileNotFoundError:
        return ""
