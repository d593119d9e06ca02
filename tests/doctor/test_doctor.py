"""`jaxvision doctor`, and runs that never take the CPU silently: on machines that are made up, and on this one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.paths import ROOT

from jaxvision import cli, doctor, run
from jaxvision.doctor import GIB, Facts, Gpu, Holder
from jaxvision.errors import UserError
from jaxvision.parallel import accelerators
from jaxvision.run import training
from jaxvision.run.config import load

A100 = Gpu("NVIDIA A100-SXM4-40GB", 8.0, 40_960, 40_000)
V100 = Gpu("Tesla V100-SXM2-16GB", 7.0, 16_384, 16_000)
PACKAGES = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}
REQUIRES = {
    "jax": (
        "jaxlib<=0.10.2,>=0.10.1",
        'jaxlib<=0.10.2,>=0.10.2; extra == "cuda12"',
        'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2; extra == "cuda12"',
        'libtpu==0.0.42.*; extra == "tpu"',
    ),
    "jax-cuda12-plugin": ("jax-cuda12-pjrt==0.10.2", 'nvidia-cudnn-cu12<10.0,>=9.8; extra == "with-cuda"'),
    "flax": ("jax>=0.10.0", "numpy>=1.23.2; python_version < '3'"),
}
CUDA12 = {**PACKAGES, "jax-cuda12-plugin": "0.10.2", "jax-cuda12-pjrt": "0.10.2", "nvidia-cudnn-cu12": "9.10.2.21"}
CUDA13 = {**PACKAGES, "jax-cuda13-plugin": "0.10.2"}

LAPTOP = Facts(versions=PACKAGES, requires=REQUIRES)
GPU = Facts(
    versions=CUDA12,
    requires=REQUIRES,
    shown=("gpu",),
    host_gpus=True,
    driver="535.104.05",
    gpus=(A100,),
    platform="gpu",
    devices=("NVIDIA A100",),
)
TPU = Facts(
    versions={**PACKAGES, "libtpu": "0.0.42.1"}, requires=REQUIRES, shown=("tpu",), platform="tpu", devices=("TPU v5e",)
)


def environment(facts: Facts, **variables: str) -> Facts:
    return replace(facts, environment=variables)


def versions(facts: Facts, **changed: str) -> Facts:
    return replace(facts, versions=facts.versions | {name.replace("_", "-"): v for name, v in changed.items()})


@pytest.mark.parametrize("facts", [LAPTOP, GPU, TPU], ids=["a laptop", "a GPU", "a TPU"])
def test_nothing_is_wrong_with_a_sound_machine(facts: Facts) -> None:
    assert doctor.findings(facts) == []


# Machine, what is found, and the line that mends it.
WRONG = {
    "jaxlib is older than jax": (
        versions(LAPTOP, jaxlib="0.9.1"),
        "jaxlib 0.9.1, where jax 0.10.2 wants <=0.10.2,>=0.10.1",
        "pip install 'jaxlib<=0.10.2,>=0.10.1'",
    ),
    "jax is older than flax asks for": (
        replace(versions(LAPTOP, jax="0.9.1"), requires={"flax": REQUIRES["flax"]}),
        "jax 0.9.1, where flax 0.12.8 wants >=0.10.0",
        "pip install 'jax>=0.10.0'",
    ),
    "jaxlib is missing": (
        replace(LAPTOP, versions={"jax": "0.10.2"}),
        "jaxlib is missing, where jax 0.10.2 wants",
        "pip install 'jaxlib<=0.10.2,>=0.10.1'",
    ),
    "the plugin is older than jax": (
        versions(GPU, jax_cuda12_plugin="0.9.0"),
        "jax-cuda12-plugin 0.9.0, where jax 0.10.2 wants",
        "pip install 'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2'",
    ),
    "pjrt is not the plugin's": (
        versions(GPU, jax_cuda12_pjrt="0.9.0"),
        "jax-cuda12-pjrt 0.9.0, where jax-cuda12-plugin 0.10.2 wants ==0.10.2",
        "pip install 'jax-cuda12-pjrt==0.10.2'",
    ),
    "another package brought an old cuDNN": (
        versions(GPU, nvidia_cudnn_cu12="9.1.0.70"),
        "nvidia-cudnn-cu12 9.1.0.70, where jax-cuda12-plugin",
        "pip install 'nvidia-cudnn-cu12<10.0,>=9.8'",
    ),
    "libtpu is of another jax": (
        versions(TPU, libtpu="0.0.30"),
        "libtpu 0.0.30, where jax 0.10.2 wants ==0.0.42.*",
        "pip install 'libtpu==0.0.42.*'",
    ),
    "the driver was updated under a running kernel": (
        replace(GPU, driver="", gpus=(), nvidia_smi="Failed to initialize NVML: Driver/library version mismatch"),
        "driver does not answer: Failed to initialize NVML",
        "sudo reboot",
    ),
    "the driver is too old for any CUDA that JAX has": (
        replace(GPU, driver="470.82.01"),
        "driver 470.82.01 is too old",
        "install NVIDIA's driver 580 or newer: https://www.nvidia.com/drivers",
    ),
    "a container without the GPU of its host": (
        replace(GPU, shown=(), gpus=(), driver="", platform="cpu"),
        "which this container does not show",
        "start the container with: docker run --gpus all ...",
    ),
    "CUDA 13 on an older driver": (
        replace(GPU, versions=CUDA13, requires={}),
        "jax-cuda13-plugin is of no use here: it takes NVIDIA's driver 580 or newer, this is 535.104.05",
        'pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install "jax[cuda12]==0.10.2"',
    ),
    "CUDA 13 on a GPU that it has dropped": (
        replace(GPU, versions=CUDA13, requires={}, driver="580.65.06", gpus=(V100,)),
        "it takes a GPU of compute capability 7.5 or higher, Tesla V100-SXM2-16GB has 7.0",
        'pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install "jax[cuda12]==0.10.2"',
    ),
    "two plugins": (
        replace(GPU, versions=CUDA12 | CUDA13, driver="580.65.06"),
        "the plugin for CUDA 13 is installed as well",
        "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt",
    ),
    "two plugins, of which the driver runs one": (
        replace(GPU, versions=CUDA12 | CUDA13),
        "jax-cuda13-plugin is of no use here",
        "pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt",
    ),
    "JAX_PLATFORMS asks for what is not there": (
        environment(replace(LAPTOP, platform=None, jax_error="AssertionError"), JAX_PLATFORMS="cuda"),
        "JAX does not start with JAX_PLATFORMS=cuda: this machine shows no such device",
        "unset JAX_PLATFORMS",
    ),
    "JAX_PLATFORMS asks for what is there, and not installed": (
        environment(
            replace(GPU, versions=PACKAGES, platform=None, jax_error="Backend 'cuda' is not known"),
            JAX_PLATFORMS="cuda",
        ),
        "JAX does not start with JAX_PLATFORMS=cuda: Backend 'cuda' is not known",
        'pip install "jax[cuda12]==0.10.2"',
    ),
    "a flag that XLA does not know": (
        replace(LAPTOP, platform=None, jax_error="Unknown flag in XLA_FLAGS: --xla_bogus"),
        "Unknown flag in XLA_FLAGS: --xla_bogus",
        "unset XLA_FLAGS",
    ),
    "another process holds the TPU": (
        replace(TPU, platform=None, jax_error="ABORTED: The TPU is already in use by process with pid 4711."),
        "already in use by process with pid 4711",
        "kill 4711    (in Colab: Runtime > Restart session)",
    ),
    "JAX_PLATFORMS=cpu, beside a GPU": (
        environment(replace(GPU, platform="cpu"), JAX_PLATFORMS="cpu"),
        "JAX_PLATFORMS=cpu keeps JAX from the GPU",
        "unset JAX_PLATFORMS",
    ),
    "a hidden GPU": (
        environment(replace(GPU, platform="cpu"), CUDA_VISIBLE_DEVICES="-1"),
        "CUDA_VISIBLE_DEVICES='-1' hides the GPU",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "a GPU without a plugin": (
        replace(GPU, versions=PACKAGES, platform="cpu"),
        "JAX uses the CPU, although this machine has a GPU, for want of jax[cuda12]",
        'pip install "jax[cuda12]==0.10.2"',
    ),
    "a GPU that JAX cannot start": (
        replace(GPU, platform="cpu", jax_error="RuntimeError: Unable to load cuDNN. Is it installed?"),
        "this machine has a GPU (RuntimeError: Unable to load cuDNN. Is it installed?)",
        'pip install "jax[cuda12]==0.10.2"',
    ),
    "a TPU with CUDA's plugin": (
        replace(GPU, shown=("tpu",), host_gpus=False, driver="", gpus=(), platform="cpu"),
        "this machine has a TPU, for want of jax[tpu]",
        'pip install "jax[tpu]==0.10.2"',
    ),
    "older CUDA libraries come first": (
        environment(
            replace(GPU, shadowing=("/usr/local/cuda-11/lib64",)), LD_LIBRARY_PATH="/usr/local/cuda-11/lib64:/opt/lib"
        ),
        "LD_LIBRARY_PATH puts the CUDA libraries of /usr/local/cuda-11/lib64 before those that JAX brought",
        "export LD_LIBRARY_PATH=/opt/lib",
    ),
    "TensorFlow holds the GPU's memory": (
        replace(GPU, gpus=(replace(A100, free=800),), holders=(Holder(7, 39_000, tensorflow=True, ours=True),)),
        "only 800 of 40,960 MiB of GPU 0 are free, and JAX takes 75% when it starts: process 7 holds 39,000 MiB "
        "for TensorFlow",
        "kill 7",
    ),
    "somebody holds the GPU's memory": (
        replace(GPU, gpus=(replace(A100, free=9_000),), holders=(Holder(7, 1_000), Holder(8, 30_000))),
        "process 8 holds 30,000 MiB",
        "kill 8",
    ),
    "it is not shown who holds the GPU's memory": (
        replace(GPU, gpus=(replace(A100, free=20_480),)),
        "held by another process",
        "export XLA_CLIENT_MEM_FRACTION=0.45",
    ),
    "a share of the memory that is none": (
        environment(GPU, XLA_CLIENT_MEM_FRACTION="90"),
        "XLA_CLIENT_MEM_FRACTION=90 is no share",
        "unset XLA_CLIENT_MEM_FRACTION",
    ),
    "the slow allocator": (
        environment(GPU, XLA_PYTHON_CLIENT_ALLOCATOR="platform"),
        "XLA_PYTHON_CLIENT_ALLOCATOR=platform asks the driver for each array",
        "unset XLA_PYTHON_CLIENT_ALLOCATOR",
    ),
    "Docker's 64 MiB of shared memory": (
        replace(LAPTOP, shared_memory=64 * 2**20),
        "/dev/shm has 64 MiB; 8 workers with batches of 64 x 224 x 224 take 220",
        "start the container with: docker run --shm-size=1g ..., or train with --config.data.workers=0",
    ),
    "a full disk": (replace(LAPTOP, disk=GIB), "only 1.0 GiB are free in runs", "take a --workdir on another disk"),
    "a disk that is read-only": (replace(LAPTOP, writable=False), "cannot be written to", "take another --workdir"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_found_with_the_line_that_mends_it(case: str) -> None:
    facts, problem, mend = WRONG[case]
    (found,) = doctor.findings(facts)
    assert problem in found.problem
    assert found.mend == mend


# What looks like it, and is not wrong.
RIGHT = {
    "jaxlib is one that only an extra which is not installed forbids": versions(LAPTOP, jaxlib="0.10.1"),
    "CUDA is the machine's own, not NVIDIA's packages": replace(
        GPU, versions={name: v for name, v in CUDA12.items() if not name.startswith("nvidia")}
    ),
    "CUDA 13 on a new driver and GPU": replace(GPU, versions=CUDA13, requires={}, driver="580.65.06"),
    "the plugin on a machine without a GPU": replace(LAPTOP, versions=CUDA12),
    "libtpu on a machine without a TPU, for planning": versions(LAPTOP, libtpu="0.0.42.1"),
    "JAX_PLATFORMS=cpu where there is nothing else": environment(LAPTOP, JAX_PLATFORMS="cpu"),
    "JAX_PLATFORMS names what JAX runs on": environment(GPU, JAX_PLATFORMS="cuda"),
    "one of the GPUs is chosen": environment(GPU, CUDA_VISIBLE_DEVICES="1"),
    "a host's GPU, and a container that does not want it": replace(LAPTOP, host_gpus=True),
    "LD_LIBRARY_PATH without CUDA libraries": environment(GPU, LD_LIBRARY_PATH="/usr/lib64-nvidia"),
    "CUDA libraries in LD_LIBRARY_PATH, for JAX built against them": replace(
        GPU,
        shadowing=("/usr/local/cuda/lib64",),
        versions={name: v for name, v in CUDA12.items() if not name.startswith("nvidia")},
    ),
    "this notebook's own JAX holds the memory": replace(
        GPU, gpus=(replace(A100, free=9_000),), holders=(Holder(7, 30_000, ours=True),)
    ),
    "little is free, and JAX is told to take less": environment(
        replace(GPU, gpus=(replace(A100, free=20_000),), holders=(Holder(7, 20_000),)),
        XLA_PYTHON_CLIENT_MEM_FRACTION="0.4",
    ),
    "little is free, and JAX is told to take what it needs": environment(
        replace(GPU, gpus=(replace(A100, free=20_000),), holders=(Holder(7, 20_000),)),
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
    ),
    "two cores start no workers": replace(LAPTOP, cores=2, shared_memory=2**20),
    "no /dev/shm, as on a Mac": replace(LAPTOP, shared_memory=None),
    "room for the checkpoints": replace(LAPTOP, disk=7 * GIB),
}


@pytest.mark.parametrize("case", RIGHT)
def test_nothing_is_found_where_nothing_is_wrong(case: str) -> None:
    assert doctor.findings(RIGHT[case]) == []


def test_this_machine(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    status = cli.main(["doctor", "--json", "--workdir", str(tmp_path / "not" / "there")])
    told = json.loads(capsys.readouterr().out)
    facts = told["facts"]
    # Whatever there is on this machine, the tests' environment says cpu.
    assert facts["environment"]["JAX_PLATFORMS"] == "cpu"
    assert facts["platform"] == "cpu"
    assert facts["workdir"] == str(tmp_path / "not" / "there")
    assert facts["disk"] > 0
    assert {"jax", "flax", "optax"} <= set(facts["versions"])
    assert "jaxlib" in str(facts["requires"]["jax"])
    assert status == (1 if told["findings"] else 0)


def test_it_prints_the_facts_and_then_what_is_wrong(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda workdir: replace(GPU, shared_memory=64 * 2**20))
    assert cli.main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "driver         535.104.05; NVIDIA A100-SXM4-40GB: 40,000 of 40,960 MiB free" in lines
    assert "JAX runs on    1 x NVIDIA A100" in lines
    (i,) = [i for i, line in enumerate(lines) if line.startswith("1. /dev/shm has 64 MiB")]
    assert lines[i + 1].startswith("   -> start the container with: docker run")
    monkeypatch.setattr(doctor, "examine", lambda workdir: GPU)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("nothing is wrong\n")


def bare(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Runs Python in a process of its own, with modules from `folder` before all others."""
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": ""} | variables
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def test_it_speaks_where_jax_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise RuntimeError('jaxlib version 0.1 is older than this jax needs')")
    done = bare("from jaxvision.cli import main; raise SystemExit(main(['doctor']))", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "1. JAX does not start with JAX_PLATFORMS=cpu: RuntimeError: jaxlib version 0.1 is older" in done.stdout


def test_it_reads_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"""#!/bin/sh
case "$1" in
  *gpu=*) echo "535.104.05, Tesla T4, 7.5, 15360, 400";;
  *compute-apps=*) echo "{os.getpid()}, 14000"; echo "1, [N/A]";;
esac
""")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    driver, gpus, holders, error = doctor._nvidia_smi()
    assert (driver, gpus, error) == ("535.104.05", (Gpu("Tesla T4", 7.5, 15360, 400),), "")
    assert holders == (Holder(os.getpid(), 14000, tensorflow=False, ours=True),)
    smi.write_text("#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    assert doctor._nvidia_smi() == ("", (), (), "Failed to initialize NVML: Driver/library version mismatch")


# --- A run on the CPU ---


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
        (("dev/dxg",), {}, ()),  # WSL 2, with a GPU of another maker
        (("dev/dxg", "usr/lib/wsl/lib/nvidia-smi"), {}, ("gpu",)),
        (("dev/accel0",), {}, ("tpu",)),
        (("dev/accel/accel0",), {}, ()),  # a laptop's NPU
        (("dev/vfio/vfio", "dev/vfio/0"), {}, ()),  # any machine that hands devices to guests
        (("dev/vfio/0",), {"COLAB_TPU_1VM": "1"}, ("tpu",)),
        (("dev/vfio/0",), {"COLAB_TPU_1VM": ""}, ()),
        (("dev/vfio/0", *(f"sys/bus/pci/devices/0/{x}" for x in ("vendor=0x1ae0\n", "class=0x120000"))), {}, ("tpu",)),
        (("dev/vfio/0", *(f"sys/bus/pci/devices/0/{x}" for x in ("vendor=0x1ae0\n", "class=0x020000"))), {}, ()),
    ],
)
def test_accelerators_are_seen_by_their_files(
    files: tuple[str, ...], env: dict[str, str], shown: tuple[str, ...], tmp_path: Path
) -> None:
    assert accelerators.accelerators(env, root=machine(tmp_path, *files)) == shown


def test_the_cpu_is_never_taken_silently() -> None:
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
def test_a_run_refuses_the_cpu_in_one_line(platforms: str, shown: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code = f"""
from jaxvision import main
raise SystemExit(main.main(["--config=configs/quickstart.py:resnet", "--workdir={tmp_path / "run"}"]))"""
    done = bare(MACHINE.format(shown=shown, plugins={}) + code, tmp_path, JAX_PLATFORMS=platforms)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}"), done.stderr
    assert "`jaxvision doctor`" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_the_cpu_is_right_where_it_is_meant_or_all_there_is(tmp_path: Path) -> None:
    start = "accelerators.check_accelerator()"
    plugins = {"gpu": ["jax-cuda12-plugin"]}
    done = bare(MACHINE.format(shown=(), plugins=plugins) + start, tmp_path, JAX_PLATFORMS="")
    said = "jax-cuda12-plugin is installed, but this machine shows no NVIDIA GPU: using the CPU\n"
    assert (done.returncode, done.stdout) == (0, said), done.stderr
    done = bare(MACHINE.format(shown=("gpu",), plugins=plugins) + start, tmp_path, JAX_PLATFORMS="cpu")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("platform", ["cpu", "gpu"], ids=["on the CPU", "on a GPU"])
def test_what_jax_logs_of_backends_is_kept_back_where_one_line_is_enough(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger, heard = logging.getLogger("jax._src.xla_bridge"), []

    def devices() -> list[SimpleNamespace]:
        logger.warning("a page about a backend that did not start")
        return [SimpleNamespace(platform=platform)]

    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", heard.append)
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr("jax.devices", devices)
    accelerators.check_accelerator()
    assert len(heard) == (platform != "cpu")
    assert logger.filters == []


def test_a_run_tells_of_a_plugin_without_its_accelerator(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "check_accelerator", lambda log: log("a plugin, and no GPU"))
    config = load("configs/quickstart.py:resnet")
    config.checkpoint = {"best": "nonsense"}  # it need not come further
    with pytest.raises(UserError, match="nonsense"):
        run.train(config, tmp_path)
    assert capsys.readouterr().out.count("a plugin, and no GPU") == 1


def test_commands_that_compute_refuse_it_as_well(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(log: object) -> None:
        raise UserError("JAX came up on the CPU")

    monkeypatch.setattr(accelerators, "check_accelerator", refuse)
    for line in ("predict -m test_resnet x.png", "attention -m test_resnet x.png", "evaluate -m x --data digits"):
        assert cli.main(line.split()) == 2
        assert capsys.readouterr().err == "error: JAX came up on the CPU\n"


def test_help_answers_without_jax(tmp_path: Path) -> None:
    (tmp_path / "jax.py").write_text("raise RuntimeError")
    done = bare("from jaxvision.cli import main; main(['--help'])", tmp_path)
    assert "doctor" in done.stdout, done.stderr
