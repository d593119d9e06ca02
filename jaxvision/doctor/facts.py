"""The facts of a machine: packages, driver, GPUs, devices of JAX, environment, memory and disk."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxvision.parallel.accelerators import NAMES, accelerators
from jaxvision.parallel.cores import usable_cores

GIB = 2**30
# The environment variables that are reported. Reports are passed on, and other variables may hold secrets.
_VARIABLES = re.compile(
    r"JAX_PLATFORMS|XLA_\w+|CUDA_VISIBLE_DEVICES|LD_LIBRARY_PATH|TPU_NAME|COLAB_TPU_1VM|TF_FORCE_\w+"
)
# The packages whose requirements are compared with what is installed, and the extras of theirs that count.
_PACKAGES = (
    "jaxvision-nnx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex",
    "jax-cuda12-plugin", "jax-cuda13-plugin",
)  # fmt: skip
_EXTRAS = ("", "cuda12", "cuda13", "tpu", "with-cuda")
_PLUGINS = {"cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin", "tpu": "libtpu"}
# JAX's plugin loads most CUDA libraries by their paths. The loader looks these up by name.
_CUDA_LIBRARIES = ("libcudnn*.so*", "libnvJitLink.so*")


@dataclass(frozen=True)
class Gpu:
    """A GPU as ``nvidia-smi`` reports it. Memory in MiB."""

    name: str
    capability: float
    memory: int
    free: int


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a GPU, in MiB.

    `ours` is True for this process and its ancestors, such as the notebook that started the doctor.
    """

    pid: int
    memory: int
    tensorflow: bool = False
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of a machine. The defaults describe a healthy machine without an accelerator.

    Attributes:
      python: version of Python.
      versions: canonical package name -> installed version.
      requires: package -> its requirements, from the package's metadata.
      environment: the relevant environment variables.
      shown: the accelerators that the machine shows, ``"gpu"`` and ``"tpu"``, including GPUs hidden from CUDA.
      host_gpus: whether the kernel has NVIDIA GPUs, even if this container does not show them.
      driver: version of NVIDIA's driver, such as 580.65.06.
      nvidia_smi: the error message of ``nvidia-smi``.
      gpus: the GPUs.
      holders: the processes that hold GPU memory.
      platform: the platform that JAX uses, None if JAX does not start.
      devices: kinds of JAX's devices.
      jax_error: why JAX does not start, or does not use an accelerator.
      shadowing: folders in ``LD_LIBRARY_PATH`` that hold CUDA libraries.
      cores: number of CPU cores that this process may use, which the quota of a container can make a fraction.
      memory: bytes of main memory.
      workdir: the folder for runs.
      disk: free bytes in it.
      writable: whether it can be written to.
    """

    python: str = "3.12.0"
    versions: Mapping[str, str] = field(default_factory=dict)
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    host_gpus: bool = False
    driver: str = ""
    nvidia_smi: str = ""
    gpus: tuple[Gpu, ...] = ()
    holders: tuple[Holder, ...] = ()
    platform: str | None = "cpu"
    devices: tuple[str, ...] = ("cpu",)
    jax_error: str = ""
    shadowing: tuple[str, ...] = ()
    cores: float = 8
    memory: int = 32 * GIB
    workdir: str = "runs"
    disk: int = 100 * GIB
    writable: bool = True

    @property
    def plugins(self) -> list[str]:
        """The extras of JAX that are installed: ``cuda12``, ``cuda13``, ``tpu``."""
        return [extra for extra, name in _PLUGINS.items() if name in self.versions]


def examine(workdir: str | Path = "runs", *, seconds: float = 180.0) -> Facts:
    """Returns the facts of this machine.

    Args:
      workdir: the folder for runs. It need not exist.
      seconds: how long JAX may take to start.
    """
    requires = {name: found for name in _PACKAGES if (found := _requirements(name))}
    # Before JAX starts, so that JAX's own GPU memory is not counted.
    driver, gpus, holders, error = query_nvidia_smi()
    started, devices, jax_error = _start_jax(seconds)
    folder = Path(workdir).absolute()
    while not folder.exists():
        folder = folder.parent
    return Facts(
        python=platform.python_version(),
        versions=_versions(requires),
        requires=requires,
        environment={name: value for name, value in os.environ.items() if _VARIABLES.fullmatch(name)},
        shown=accelerators({name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}),
        host_gpus=any(Path("/proc/driver/nvidia/gpus").glob("*")),
        driver=driver,
        nvidia_smi=error,
        gpus=gpus,
        holders=holders,
        platform=started,
        devices=devices,
        jax_error=jax_error,
        shadowing=tuple(
            path
            for path in os.environ.get("LD_LIBRARY_PATH", "").split(":")
            if path and any(found for pattern in _CUDA_LIBRARIES for found in Path(path).glob(pattern))
        ),
        cores=usable_cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        workdir=str(workdir),
        disk=shutil.disk_usage(folder).free,
        writable=os.access(folder, os.W_OK),
    )


# --- Packages ---


def extras_of(requirement: Requirement) -> list[str]:
    """Returns the extras under which a requirement applies, among those of JAX; ``""`` means no extra.

    Example:
      >>> extras_of(Requirement('libtpu==0.0.42.*; extra == "tpu"')), "" in extras_of(Requirement("numpy"))
      (['tpu'], True)
    """
    return [extra for extra in _EXTRAS if not requirement.marker or requirement.marker.evaluate({"extra": extra})]


def _requirements(name: str) -> tuple[str, ...]:
    try:
        return tuple(text for text in metadata.requires(name) or () if extras_of(Requirement(text)))
    except metadata.PackageNotFoundError:
        return ()


def _versions(requires: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Returns the installed versions of the required packages and of those in the summary."""
    names = {canonicalize_name(Requirement(text).name) for texts in requires.values() for text in texts}
    names |= {canonicalize_name(name) for name in (*_PACKAGES, *_PLUGINS.values(), "tensorflow")}
    found = {canonicalize_name(d.metadata["Name"] or ""): d.version for d in metadata.distributions()}
    return {name: found[name] for name in sorted(names) if name in found}


# --- NVIDIA ---


def query_nvidia_smi() -> tuple[str, tuple[Gpu, ...], tuple[Holder, ...], str]:
    """Returns (driver version, GPUs, processes that hold their memory, error message of ``nvidia-smi``)."""
    if shutil.which("nvidia-smi") is None:
        return "", (), (), ""
    try:
        rows = _run_nvidia_smi("gpu=driver_version,name,compute_cap,memory.total,memory.free")
        gpus = tuple(Gpu(name, float(sm), int(total), int(free)) for _, name, sm, total, free in rows)
        processes = _run_nvidia_smi("compute-apps=pid,used_memory")
        # A container may show "[N/A]" as the memory of a process.
        used = [(int(pid), int(memory)) for pid, memory in processes if memory.isdigit()]
    except (OSError, ValueError, subprocess.TimeoutExpired) as e:
        return "", (), (), str(e)
    ancestors = {*_ancestors(os.getpid())}
    holders = tuple(Holder(pid, memory, _maps_tensorflow(pid), pid in ancestors) for pid, memory in used)
    return rows[0][0] if rows else "", gpus, holders, ""


def _run_nvidia_smi(query: str) -> list[list[str]]:
    command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(" ".join((done.stdout + done.stderr).split()))
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _ancestors(pid: int) -> Iterator[int]:
    """Yields `pid` and the processes above it (Linux)."""
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def _maps_tensorflow(pid: int) -> bool:
    try:
        return "libtensorflow" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # the process is another user's, or has ended
        return False


# --- JAX ---

# Runs in its own process, because JAX may fail, crash or hang, and must release the accelerator.
_START = """
import jax, json
devices = jax.devices()
limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
kinds = [f"{d.device_kind} ({limit / 2**30:.1f} GiB)" if limit else d.device_kind for d, limit in zip(devices, limits)]
print(json.dumps([devices[0].platform, kinds]))
"""


def _start_jax(seconds: float) -> tuple[str | None, tuple[str, ...], str]:
    """Starts JAX in another process; returns (its platform, its devices, the error)."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        command = [sys.executable, "-c", _START]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, (), f"no answer within {seconds:.0f} s"
    if done.returncode == 0:
        started, devices = json.loads(done.stdout.splitlines()[-1])
        return started, tuple(devices), "" if started != "cpu" else _error_line(done.stderr)
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return None, (), _error_line(done.stderr) or (lines[-1] if lines else ended)


def _error_line(log: str) -> str:
    """Returns the last line of a log that is an error or reports a backend that failed, or ``""``."""
    pattern = re.compile(r"\w*(\.\w+)*Error\b|.*(failed to initialize|Unknown flags? in XLA_FLAGS)")
    lines = [line.strip() for line in log.splitlines()]
    return next((line for line in reversed(lines) if pattern.match(line)), "")


# --- Summary ---


def summary(facts: Facts) -> dict[str, str]:
    """Returns the main facts as text, title -> text, in the order in which to show them."""
    v = facts.versions
    old = tuple(int(x) for x in facts.python.split(".")[:2]) < (3, 12)
    names = [name for name in _PACKAGES if name != "chex" and name not in _PLUGINS.values()]
    names += [*_PLUGINS.values(), "tensorflow"]
    kinds = Counter(facts.devices)
    rows = {
        "python": facts.python + (" (JAX after 0.10 needs 3.12 or newer)" if old else ""),
        "packages": ", ".join(f"{name} {v[name]}" for name in names if name in v),
        "JAX runs on": ", ".join(f"{n} x {kind}" for kind, n in kinds.items()) or "nothing: it does not start",
        "machine shows": ", ".join(NAMES[kind] for kind in facts.shown) or "no accelerator",
    }
    if facts.driver:
        free = ", ".join(f"{gpu.name}: {gpu.free:,} of {gpu.memory:,} MiB free" for gpu in facts.gpus)
        rows["driver"] = f"{facts.driver}; {free}"
    rows["host"] = f"{facts.cores:g} cores, {facts.memory / GIB:.1f} GiB of memory"
    rows["disk"] = f"{facts.disk / GIB:.1f} GiB free in {facts.workdir}"
    rows["environment"] = (
        ", ".join(f"{name}={value}" for name, value in sorted(facts.environment.items())) or "nothing set"
    )
    return rows
