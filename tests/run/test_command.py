"""The command line in processes of its own: signals, exit statuses and the launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from support.compile_flags import xla_flags
from support.paths import ROOT

from jaxvision.create import create_model
from jaxvision.weights.timm import save_timm

QUICK = ["--config", "configs/quickstart.py:resnet", "--config.data.batch_size=16"]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), *(p for p in sys.path if p)])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "XLA_FLAGS": xla_flags()}


def test_ctrl_c_while_the_step_is_compiled_ends_in_one_line(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxvision.main", *QUICK, "--workdir", str(tmp_path / "run")],
        cwd=tmp_path, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = threading.Timer(600, process.kill)
    deadline.start()
    try:
        assert process.stdout is not None
        assert any(line.startswith("compiling") for line in process.stdout), "training did not start"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    finally:
        deadline.cancel()
        process.kill()
    assert process.returncode == 130, err
    assert err.splitlines() == ["interrupted. No checkpoint was saved yet: the same command starts from scratch."]


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost() -> None:
    """Python prints an exception in such a callback and continues. JAX registers one."""
    code = """if True:
        import gc, os, signal, sys, time
        from jaxvision.cli.exit import run_and_exit

        def interrupted(phase, info):
            gc.callbacks.remove(interrupted)
            os.kill(os.getpid(), signal.SIGINT)

        def work():
            gc.callbacks.append(interrupted)
            gc.collect()
            print("continued", flush=True)
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                return 130

        run_and_exit(work)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "continued\n", "")


@pytest.mark.slow
def test_two_processes_of_the_launcher_train_as_one(tmp_path: Path) -> None:
    """Each reads half of each batch. The metrics equal those of one process, and only process 0 writes and prints."""
    flags = [*QUICK, "--config.train.steps=6"]
    two = subprocess.run(
        [sys.executable, ROOT / "launch" / "local.py", "--processes", "2", "--", *flags, "--workdir", tmp_path / "two"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("compiling") == 1
    one = subprocess.run(
        [sys.executable, "-m", "jaxvision.main", *flags, "--workdir", tmp_path / "one"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert one.returncode == 0, one.stderr
    files = [{p.name for p in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]
    last = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in ("one", "two")]
    assert last[0]["split"] == last[1]["split"] == "test"
    assert last[1]["count"] == last[0]["count"] == 359
    assert last[1]["loss"] == pytest.approx(last[0]["loss"], rel=1e-4)


@pytest.mark.slow
def test_two_processes_start_with_the_same_probe(tmp_path: Path) -> None:
    """Each computes the features of half of the images. Their model of step 0 is that of one process."""
    flags = [*QUICK, "--config.train.steps=1", "--config.train.head_init=probe"]
    for name, command in (
        ("two", [str(ROOT / "launch" / "local.py"), "--processes", "2", "--"]),
        ("one", ["-m", "jaxvision.main"]),
    ):
        done = subprocess.run(
            [sys.executable, *command, *flags, "--workdir", tmp_path / name],
            cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    lines = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[0]) for n in ("one", "two")]
    assert [line["step"] for line in lines] == [0, 0]
    assert lines[1]["loss"] == pytest.approx(lines[0]["loss"], rel=1e-3)
    assert lines[1]["top1"] > 0.7


def test_the_launcher_passes_on_the_exit_status_of_a_mistake(tmp_path: Path) -> None:
    flags = [*QUICK, "--config.train.steps=0", "--workdir", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, ROOT / "launch" / "local.py", "--processes", "2", "--", *flags],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "config.train.steps: got 0, expected 1 or more" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_too_small_for_a_checkpoint_is_reported_in_one_line(tmp_path: Path) -> None:
    """A limit on the size of files makes a write fail halfway, as on a full disk."""
    flags = [*QUICK, "--config.train.steps=4", "--config.train.evaluate_every=0.05", "--workdir", str(tmp_path / "run")]
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 100; exec "$@"', "-", sys.executable, "-m", "jaxvision.main", *flags],
        cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert [x for x in done.stderr.splitlines() if x.startswith("error: the checkpoint of step ")], done.stderr
    assert "Traceback" not in done.stderr
    assert not any((tmp_path / "run" / "checkpoints").iterdir())


def test_ctrl_c_during_predict_exits_with_status_130(tmp_path: Path) -> None:
    """An ordinary exit of Python would crash while XLA compiles."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    save_timm(create_model("test_resnet", num_classes=2), tmp_path / "w.safetensors")
    code = """if True:
        import jax, os, signal, sys, threading
        from jaxvision import cli

        def interrupt(name, *_, **__):
            if "backend_compile" not in name:
                threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()

        jax.monitoring.register_event_duration_secs_listener(interrupt)
        sys.argv = ["jaxvision", "predict", "-m", "test_resnet", "--checkpoint", "w.safetensors", *["a.png"] * 2000]
        cli.run_and_exit()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
