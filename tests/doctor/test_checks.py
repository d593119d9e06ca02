"""The checks of `jaxvision doctor`, on the facts of broken and healthy machines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jaxvision import doctor
from jaxvision.doctor import Facts, Gpu, Holder
from jaxvision.doctor.facts import GIB

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
def test_finds_nothing_on_a_healthy_machine(facts: Facts) -> None:
    assert doctor.findings(facts) == []


# name -> facts, problem, fix
BROKEN = {
    "jaxlib is older than jax": (
        versions(LAPTOP, jaxlib="0.9.1"),
        "jax 0.10.2 needs jaxlib<=0.10.2,>=0.10.1, 0.9.1 is installed",
        "pip install 'jaxlib<=0.10.2,>=0.10.1'",
    ),
    "jax is older than flax asks for": (
        replace(versions(LAPTOP, jax="0.9.1"), requires={"flax": REQUIRES["flax"]}),
        "flax 0.12.8 needs jax>=0.10.0, 0.9.1 is installed",
        "pip install 'jax>=0.10.0'",
    ),
    "jaxlib is missing": (
        replace(LAPTOP, versions={"jax": "0.10.2"}),
        "jax 0.10.2 needs jaxlib<=0.10.2,>=0.10.1, nothing is installed",
        "pip install 'jaxlib<=0.10.2,>=0.10.1'",
    ),
    "the plugin is older than jax": (
        versions(GPU, jax_cuda12_plugin="0.9.0"),
        "jax 0.10.2 needs jax-cuda12-plugin<=0.10.2,>=0.10.2, 0.9.0 is installed",
        "pip install 'jax-cuda12-plugin[with-cuda]<=0.10.2,>=0.10.2'",
    ),
    "pjrt does not match the plugin": (
        versions(GPU, jax_cuda12_pjrt="0.9.0"),
        "jax-cuda12-plugin 0.10.2 needs jax-cuda12-pjrt==0.10.2, 0.9.0 is installed",
        "pip install 'jax-cuda12-pjrt==0.10.2'",
    ),
    "another package installed an old cuDNN": (
        versions(GPU, nvidia_cudnn_cu12="9.1.0.70"),
        "jax-cuda12-plugin 0.10.2 needs nvidia-cudnn-cu12<10.0,>=9.8, 9.1.0.70 is installed",
        "pip install 'nvidia-cudnn-cu12<10.0,>=9.8'",
    ),
    "libtpu does not match jax": (
        versions(TPU, libtpu="0.0.30"),
        "jax 0.10.2 needs libtpu==0.0.42.*, 0.0.30 is installed",
        "pip install 'libtpu==0.0.42.*'",
    ),
    "the driver was updated under a running kernel": (
        replace(GPU, driver="", gpus=(), nvidia_smi="Failed to initialize NVML: Driver/library version mismatch"),
        "driver does not answer: Failed to initialize NVML",
        "sudo reboot",
    ),
    "the driver is too old for CUDA 12 and 13": (
        replace(GPU, driver="470.82.01"),
        "driver 470.82.01 is too old",
        "install NVIDIA's driver 580 or newer: https://www.nvidia.com/drivers",
    ),
    "a container without the GPU of its host": (
        replace(GPU, shown=(), gpus=(), driver="", platform="cpu"),
        "but this container does not show it",
        "start the container with: docker run --gpus all ...",
    ),
    "CUDA 13 on an older driver": (
        replace(GPU, versions=CUDA13, requires={}),
        "jax-cuda13-plugin does not work here: it needs NVIDIA's driver 580 or newer, this is 535.104.05",
        'pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install "jax[cuda12]==0.10.2"',
    ),
    "CUDA 13 on a GPU that it no longer supports": (
        replace(GPU, versions=CUDA13, requires={}, driver="580.65.06", gpus=(V100,)),
        "it needs compute capability 7.5 or higher, Tesla V100-SXM2-16GB has 7.0",
        'pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt && pip install "jax[cuda12]==0.10.2"',
    ),
    "two plugins": (
        replace(GPU, versions=CUDA12 | CUDA13, driver="580.65.06"),
        "the plugin for CUDA 13 is also installed",
        "pip uninstall -y jax-cuda12-plugin jax-cuda12-pjrt",
    ),
    "two plugins, and the driver supports one": (
        replace(GPU, versions=CUDA12 | CUDA13),
        "jax-cuda13-plugin does not work here",
        "pip uninstall -y jax-cuda13-plugin jax-cuda13-pjrt",
    ),
    "JAX_PLATFORMS names an absent device": (
        environment(replace(LAPTOP, platform=None, jax_error="AssertionError"), JAX_PLATFORMS="cuda"),
        "JAX does not start with JAX_PLATFORMS=cuda: this machine shows no such device",
        "unset JAX_PLATFORMS",
    ),
    "JAX_PLATFORMS names a device whose plugin is not installed": (
        environment(
            replace(GPU, versions=PACKAGES, platform=None, jax_error="Backend 'cuda' is not known"),
            JAX_PLATFORMS="cuda",
        ),
        "JAX does not start with JAX_PLATFORMS=cuda: Backend 'cuda' is not known",
        'pip install "jax[cuda12]==0.10.2"',
    ),
    "an unknown flag of XLA": (
        replace(LAPTOP, platform=None, jax_error="Unknown flag in XLA_FLAGS: --xla_bogus"),
        "Unknown flag in XLA_FLAGS: --xla_bogus",
        "unset XLA_FLAGS",
    ),
    "another process holds the TPU": (
        replace(TPU, platform=None, jax_error="ABORTED: The TPU is already in use by process with pid 4711."),
        "already in use by process with pid 4711",
        "kill 4711    (in Colab: Runtime > Restart session)",
    ),
    "JAX_PLATFORMS=cpu on a machine with a GPU": (
        environment(replace(GPU, platform="cpu"), JAX_PLATFORMS="cpu"),
        "JAX_PLATFORMS=cpu hides the GPU from JAX",
        "unset JAX_PLATFORMS",
    ),
    "a hidden GPU": (
        environment(replace(GPU, platform="cpu"), CUDA_VISIBLE_DEVICES="-1"),
        "CUDA_VISIBLE_DEVICES='-1' hides the GPU",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    "a GPU without a plugin": (
        replace(GPU, versions=PACKAGES, platform="cpu"),
        "JAX uses the CPU, although this machine has a GPU: jax[cuda12] is not installed",
        'pip install "jax[cuda12]==0.10.2"',
    ),
    "a GPU that JAX cannot start": (
        replace(GPU, platform="cpu", jax_error="RuntimeError: Unable to load cuDNN. Is it installed?"),
        "this machine has a GPU (RuntimeError: Unable to load cuDNN. Is it installed?)",
        'pip install "jax[cuda12]==0.10.2"',
    ),
    "a TPU with CUDA's plugin": (
        replace(GPU, shown=("tpu",), host_gpus=False, driver="", gpus=(), platform="cpu"),
        "this machine has a TPU: jax[tpu] is not installed",
        'pip install "jax[tpu]==0.10.2"',
    ),
    "older CUDA libraries come first": (
        environment(
            replace(GPU, shadowing=("/usr/local/cuda-11/lib64",)), LD_LIBRARY_PATH="/usr/local/cuda-11/lib64:/opt/lib"
        ),
        "LD_LIBRARY_PATH puts the CUDA libraries in /usr/local/cuda-11/lib64 before those installed with JAX",
        "export LD_LIBRARY_PATH=/opt/lib",
    ),
    "TensorFlow holds the GPU's memory": (
        replace(GPU, gpus=(replace(A100, free=800),), holders=(Holder(7, 39_000, tensorflow=True, ours=True),)),
        "only 800 of 40,960 MiB of GPU 0 are free, and JAX takes 75% when it starts: process 7 holds 39,000 MiB "
        "for TensorFlow",
        "kill 7",
    ),
    "two processes hold the GPU's memory": (
        replace(GPU, gpus=(replace(A100, free=9_000),), holders=(Holder(7, 1_000), Holder(8, 30_000))),
        "process 8 holds 30,000 MiB",
        "kill 8",
    ),
    "an unknown process holds the GPU's memory": (
        replace(GPU, gpus=(replace(A100, free=20_480),)),
        "another process, such as a notebook, holds the rest",
        "export XLA_CLIENT_MEM_FRACTION=0.45",
    ),
    "an invalid share of the memory": (
        environment(GPU, XLA_CLIENT_MEM_FRACTION="90"),
        "XLA_CLIENT_MEM_FRACTION=90: expected a number above 0 and at most 1",
        "unset XLA_CLIENT_MEM_FRACTION",
    ),
    "the slow allocator": (
        environment(GPU, XLA_PYTHON_CLIENT_ALLOCATOR="platform"),
        "XLA_PYTHON_CLIENT_ALLOCATOR=platform calls the driver for each array",
        "unset XLA_PYTHON_CLIENT_ALLOCATOR",
    ),
    "a full disk": (replace(LAPTOP, disk=GIB), "only 1.0 GiB are free in runs", "choose a --workdir on another disk"),
    "a disk that is read-only": (replace(LAPTOP, writable=False), "is not writable", "choose another --workdir"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_finds_the_problem_and_its_fix(case: str) -> None:
    facts, problem, fix = BROKEN[case]
    (found,) = doctor.findings(facts)
    assert problem in found.problem
    assert found.fix == fix


# Healthy machines that resemble those above: name -> facts
HEALTHY = {
    "only an extra that is not installed forbids this jaxlib": versions(LAPTOP, jaxlib="0.10.1"),
    "CUDA is installed on the machine instead of as packages": replace(
        GPU, versions={name: v for name, v in CUDA12.items() if not name.startswith("nvidia")}
    ),
    "CUDA 13 on a new driver and GPU": replace(GPU, versions=CUDA13, requires={}, driver="580.65.06"),
    "the plugin on a machine without a GPU": replace(LAPTOP, versions=CUDA12),
    "libtpu on a machine without a TPU, for planning": versions(LAPTOP, libtpu="0.0.42.1"),
    "JAX_PLATFORMS=cpu on a machine without accelerators": environment(LAPTOP, JAX_PLATFORMS="cpu"),
    "JAX_PLATFORMS names the platform that JAX uses": environment(GPU, JAX_PLATFORMS="cuda"),
    "CUDA_VISIBLE_DEVICES chooses a GPU": environment(GPU, CUDA_VISIBLE_DEVICES="1"),
    "a container without GPU support on a host with a GPU": replace(LAPTOP, host_gpus=True),
    "LD_LIBRARY_PATH without CUDA libraries": environment(GPU, LD_LIBRARY_PATH="/usr/lib64-nvidia"),
    "LD_LIBRARY_PATH with the CUDA libraries that JAX uses": replace(
        GPU,
        shadowing=("/usr/local/cuda/lib64",),
        versions={name: v for name, v in CUDA12.items() if not name.startswith("nvidia")},
    ),
    "this notebook holds the memory": replace(
        GPU, gpus=(replace(A100, free=9_000),), holders=(Holder(7, 30_000, ours=True),)
    ),
    "little memory is free, and JAX takes less": environment(
        replace(GPU, gpus=(replace(A100, free=20_000),), holders=(Holder(7, 20_000),)),
        XLA_PYTHON_CLIENT_MEM_FRACTION="0.4",
    ),
    "little memory is free, and JAX does not preallocate": environment(
        replace(GPU, gpus=(replace(A100, free=20_000),), holders=(Holder(7, 20_000),)),
        XLA_PYTHON_CLIENT_PREALLOCATE="false",
    ),
    "room for the checkpoints": replace(LAPTOP, disk=7 * GIB),
}


@pytest.mark.parametrize("case", HEALTHY)
def test_finds_nothing_on_a_similar_machine(case: str) -> None:
    assert doctor.findings(HEALTHY[case]) == []
