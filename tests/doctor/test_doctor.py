"""The command `jaxvision doctor`, and the errors of runs that would fall back to the CPU silently."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.paths import ROOT

from jaxvision import cli, doctor, run
from jaxvision.doctor import Facts, Gpu, Holder
from jaxvision.doctor.facts import query_nvidia_smi
from jaxvision.errors import UserError
from jaxvision.parallel import accelerators
from jaxvision.run import training
from jaxvision.run.config import load

GPU = {
    "shown": ("gpu",),
    "driver": "535.104.05",
    "gpus": (Gpu("NVIDIA A100-SXM4-40GB", 8.0, 40_960, 40_000),),
    "platform": "gpu",
    "devices": ("NVIDIA A100",),
}


def test_this_machine(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    status = cli.main(["doctor", "--json", "--workdir", str(tmp_path / "not" / "there")])
    report = json.loads(capsys.readouterr().out)
    facts = report["facts"]
    # The tests set JAX_PLATFORMS=cpu, whatever this machine has.
    assert facts["environment"]["JAX_PLATFORMS"] == "cpu"
    assert facts["platform"] == "cpu"
    assert facts["workdir"] == str(tmp_path / "not" / "there")
    assert facts["disk"] > 0
    assert {"jax", "flax", "optax"} <= set(facts["versions"])
    assert "jaxlib" in str(facts["requires"]["jax"])
    assert status == (1 if report["findings"] else 0)


def test_prints_facts_and_findings(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "examine", lambda workdir: Facts(**GPU, writable=False))
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "driver         535.104.05; NVIDIA A100-SXM4-40GB: 40,000 of 40,960 MiB free" in lines
    assert "JAX runs on    1 x NVIDIA A100" in lines
    (i,) = [i for i, line in enumerate(lines) if line == "1. runs is not writable"]
    assert lines[i + 1] == "   -> choose another --workdir"
    monkeypatch.setattr(doctor, "examine", lambda workdir: Facts(**GPU))
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("no problems found\n")


def bare(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Runs Python code in another process, with the modules in `folder` before all others."""
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""} | variables
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_works_if_jax_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise RuntimeError('jaxlib version 0.1 is older than this jax needs')")
    done = bare("from jaxvision.cli import main; raise SystemExit(main(['doctor']))", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "1. JAX does not start with JAX_PLATFORMS=cpu: RuntimeError: jaxlib version 0.1 is older" in done.stdout


def test_query_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"""#!/bin/sh
case "$1" in
  *gpu=*) echo "535.104.05, Tesla T4, 7.5, 15360, 400";;
  *compute-apps=*) echo "{os.getpid()}, 14000"; echo "1, [N/A]";;
esac
""")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver, gpus, holders, error = query_nvidia_smi()
    assert (driver, gpus, error) == ("535.104.05", (Gpu("Tesla T4", 7.5, 15360, 400),), "")
    assert holders == (Holder(os.getpid(), 14000, tensorflow=False, ours=True),)
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert query_nvidia_smi() == ("", (), (), "Failed to initialize NVML: Driver/library version mismatch")


# --- Runs and the CPU ---


def machine(root: Path, *files: str) -> Path:
    for name in files:
        path, _, text = name.partition("=")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "env", "shown"),
    [
        ((), {}, ()),
        (("dev/nvidia0", "dev/nvidiactl"), {}, ("gpu",)),
        (("dev/nvidia3",), {"CUDA_VISIBLE_DEVICES": "0"}, ("gpu",)),
        (("dev/nvidia0",), {"CUDA_VISIBLE_DEVICES": ""}, ()),
        (("dev/nvidiactl", "dev/nvidia-uvm"), {}, ()),  # a driver without a GPU
        (("dev/dxg",), {}, ()),  # WSL 2 with a GPU of another maker
        (("dev/dxg", "usr/lib/wsl/lib/nvidia-smi"), {}, ("gpu",)),
        (("dev/accel0",), {}, ("tpu",)),
        (("dev/accel/accel0",), {}, ()),  # a laptop's NPU
        (("dev/vfio/vfio", "dev/vfio/0"), {}, ()),  # any host of virtual machines
        (("dev/vfio/0",), {"COLAB_TPU_1VM": "1"}, ("tpu",)),
        (("dev/vfio/0",), {"COLAB_TPU_1VM": ""}, ()),
        (("dev/vfio/0", *(f"sys/bus/pci/devices/0/{x}" for x in ("vendor=0x1ae0\n", "class=0x120000"))), {}, ("tpu",)),
        (("dev/vfio/0", *(f"sys/bus/pci/devices/0/{x}" for x in ("vendor=0x1ae0\n", "class=0x020000"))), {}, ()),
    ],
)
def test_accelerators_are_found_by_their_files(
    files: tuple[str, ...], env: dict[str, str], shown: tuple[str, ...], tmp_path: Path
) -> None:
    assert accelerators.accelerators(env, root=machine(tmp_path, *files)) == shown


def test_why_not_cpu() -> None:
    may = accelerators.why_not_cpu
    assert may("gpu", "", ("gpu",)) is may("tpu", "tpu", ("tpu",)) is None
    assert may("cpu", "", ()) is may("cpu", "cpu", ("gpu",)) is None
    assert "shows one NVIDIA GPU or more" in str(may("cpu", "", ("gpu",)))
    assert "shows one TPU or more" in str(may("cpu", "", ("tpu", "gpu")))
    assert "asks for cuda" in str(may("cpu", "cuda", ()))


MACHINE = """
from jaxvision.parallel import accelerators
accelerators.accelerators = lambda: {shown}
accelerators.plugins = lambda kind: {plugins}.get(kind, [])
"""


@pytest.mark.parametrize(
    ("platforms", "shown", "said"),
    [
        ("", ("gpu",), "this machine shows one NVIDIA GPU or more, but JAX came up on the CPU"),
        ("banana", (), "JAX does not start: Unable to initialize backend 'banana'"),
    ],
)
def test_a_run_that_would_use_the_cpu_fails_with_one_line(
    platforms: str, shown: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    code = f"""
from jaxvision import main
raise SystemExit(main.main(["--config=configs/quickstart.py:resnet", "--workdir={tmp_path / "run"}"]))"""
    done = bare(MACHINE.format(shown=shown, plugins={}) + code, tmp_path, JAX_PLATFORMS=platforms)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}"), done.stderr
    assert "`jaxvision doctor`" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_may_use_the_cpu_if_asked_or_without_accelerators(tmp_path: Path) -> None:
    start = "accelerators.check_accelerator()"
    plugins = {"gpu": ["jax-cuda12-plugin"]}
    done = bare(MACHINE.format(shown=(), plugins=plugins) + start, tmp_path, JAX_PLATFORMS="")
    said = "jax-cuda12-plugin is installed, but this machine shows no NVIDIA GPU: using the CPU\n"
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    done = bare(MACHINE.format(shown=("gpu",), plugins=plugins) + start, tmp_path, JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("platform", ["cpu", "gpu"], ids=["on the CPU", "on a GPU"])
def test_jax_logs_of_failed_backends_are_hidden_on_the_cpu(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, heard = logging.getLogger("jax"), []

    def devices() -> list[SimpleNamespace]:
        logger.getChild("backends").warning("a page about a backend that did not start")
        return [SimpleNamespace(platform=platform)]

    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", heard.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr("jax.devices", devices)
    accelerators.check_accelerator()
    assert len(heard) == (platform != "cpu")
    assert (logger.handlers, logger.propagate) == ([handler], True)


def test_a_run_warns_of_a_plugin_without_its_accelerator(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise UserError("stop here")

    monkeypatch.setattr(training, "check_accelerator", lambda log: log("a plugin, and no GPU"))
    monkeypatch.setattr(training, "open_run", stop)
    with pytest.raises(UserError, match="stop here"):
        run.train(load("configs/quickstart.py:resnet"), tmp_path)
    assert capsys.readouterr().out.count("a plugin, and no GPU") == 1


def test_commands_that_compute_check_the_accelerator(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(log: object) -> None:
        raise UserError("JAX came up on the CPU")

    monkeypatch.setattr(accelerators, "check_accelerator", refuse)
    for line in ("predict -m test_resnet x.png", "attention -m test_resnet x.png", "evaluate -m x --data digits"):
        assert cli.main(line.split()) == 2
        assert capsys.readouterr().err == "error: JAX came up on the CPU\n"


def test_help_works_without_jax(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise RuntimeError")
    done = bare("from jaxvision.cli import main; main(['--help'])", tmp_path)
    assert "doctor" in done.stdout, done.stderr
