"""What is wrong with a machine, and the line that mends it: ``jaxvision doctor``.

`examine` writes down what is found (`Facts`) and judges nothing; each check reads the facts, and nothing else, and
yields what is wrong (`Finding`). A new check is a function in `CHECKS`.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxvision.parallel.accelerators import MEMORY_FRACTION, NAMES, accelerators, hidden

GIB = 2**30
# What may be told of the environment: reports are passed on, and other variables may hold secrets.
_VARIABLES = re.compile(
    r"JAX_PLATFORMS|XLA_\w+|CUDA_VISIBLE_DEVICES|LD_LIBRARY_PATH|TPU_NAME|COLAB_TPU_1VM|TF_FORCE_\w+"
)
# Whose requirements are compared with what is installed, and the extras of theirs that count where they are installed.
_PACKAGES = (
    "jaxvision-nnx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "chex",
    "jax-cuda12-plugin", "jax-cuda13-plugin",
)  # fmt: skip
_ACCELERATED = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu")
_EXTRAS = ("", "cuda12", "cuda13", "tpu", "with-cuda")
# The oldest drivers: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html. CUDA 13 has
# nothing for GPUs before Turing.
_DRIVER = {"cuda12": 525, "cuda13": 580}
_CAPABILITY = {"cuda12": 5.0, "cuda13": 7.5}
_GET_DRIVER = f"install NVIDIA's driver {_DRIVER['cuda13']} or newer: https://www.nvidia.com/drivers"
# JAX's plugin loads most of CUDA's libraries by their paths; these are looked up by name later on.
_CUDA_LIBRARIES = ("libcudnn*.so*", "libnvJitLink.so*")


@dataclass(frozen=True)
class Gpu:
    """What ``nvidia-smi`` says of a GPU; memory in MiB."""

    name: str
    capability: float
    memory: int
    free: int


@dataclass(frozen=True)
class Holder:
    """A process with memory of a GPU, in MiB; `ours` if the doctor was started by it, as by a notebook."""

    pid: int
    memory: int
    tensorflow: bool = False
    ours: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found on a machine. The defaults are a sound one without an accelerator.

    Attributes:
      python: its version.
      versions: of the installed packages, by canonical name.
      requires: package -> what its metadata ask for.
      environment: variables that matter here.
      shown: "gpu" and "tpu", as `jaxvision.parallel.accelerators.accelerators` finds them, hidden ones included.
      host_gpus: the kernel has NVIDIA GPUs, whether or not this container shows them.
      driver: NVIDIA's, such as 580.65.06.
      nvidia_smi: what it says in place of an answer.
      gpus, holders: its answers.
      platform: that JAX came up on; None: it did not.
      devices: as JAX calls them.
      jax_error: why JAX did not start, or why it does not use an accelerator.
      shadowing: folders of LD_LIBRARY_PATH with CUDA libraries of their own.
      cores, memory, shared_memory: of the machine, in bytes; None: there is no /dev/shm.
      workdir, disk, writable: where runs go; free bytes there.
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
    cores: int = 8
    memory: int = 32 * GIB
    shared_memory: int | None = 16 * GIB
    workdir: str = "runs"
    disk: int = 100 * GIB
    writable: bool = True

    @property
    def plugins(self) -> list[str]:
        """The extras of JAX that are installed: ``cuda12``, ``cuda13``, ``tpu``."""
        names = {"cuda12": "jax-cuda12-plugin", "cuda13": "jax-cuda13-plugin", "tpu": "libtpu"}
        return [extra for extra, name in names.items() if name in self.versions]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and the line that mends it: a command, or what to do."""

    problem: str
    mend: str


# --- The checks ---


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Packages that do not fit each other, by what they themselves ask for."""
    wrong, wanted = [], []
    for name in (name for name in facts.requires if name in facts.versions):
        for requirement in map(Requirement, facts.requires[name]):
            extras = {"", "with-cuda", *facts.plugins}.intersection(_extras_of(requirement))
            found = facts.versions.get(canonicalize_name(requirement.name))
            if not extras or (found is None and "" not in extras):
                continue
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                has, whose = f"{requirement.name} {found or 'is missing'}", f"{name} {facts.versions[name]}"
                wrong.append(f"{has}, where {whose} wants {requirement.specifier or 'one'}")
                wanted.append(f"'{str(requirement).partition(';')[0].strip()}'")
    if wrong:
        problem = "packages that do not fit each other: " + "; ".join(wrong)
        yield Finding(problem, f"pip install {' '.join(dict.fromkeys(wanted))}")


def check_driver(facts: Facts) -> Iterator[Finding]:
    """A driver that does not answer, or is too old; a container without the GPU of its host."""
    if facts.nvidia_smi and "gpu" in facts.shown:
        mend = "sudo reboot" if "mismatch" in facts.nvidia_smi else _GET_DRIVER
        yield Finding(f"NVIDIA's driver does not answer: {facts.nvidia_smi}", mend)
    if facts.driver and _major(facts.driver) < min(_DRIVER.values()):
        yield Finding(f"NVIDIA's driver {facts.driver} is too old for CUDA 12 and 13", _GET_DRIVER)
    if facts.host_gpus and "gpu" not in facts.shown and {"cuda12", "cuda13"} & {*facts.plugins}:
        problem = "this machine has an NVIDIA GPU, which this container does not show"
        yield Finding(problem, "start the container with: docker run --gpus all ...")


def check_plugin(facts: Facts) -> Iterator[Finding]:
    """JAX's CUDA plugin: one, and one that the driver and the GPU can run."""
    installed = [extra for extra in ("cuda12", "cuda13") if extra in facts.plugins]
    bad = {extra: reason for extra in installed if (reason := _misfit(extra, facts))}
    if len(installed) == 2 and not bad:
        bad = {"cuda12": "the plugin for CUDA 13 is installed as well, and only one can be used"}
    for extra, reason in bad.items():
        if extra == "cuda12" and len(installed) == 1:
            continue  # there is no older one: the driver is what must change, see above
        remove = f"pip uninstall -y jax-{extra}-plugin jax-{extra}-pjrt"
        other = "" if len(installed) == 2 else f" && {_install('cuda12', facts)}"
        yield Finding(f"jax-{extra}-plugin is of no use here: {reason}", remove + other)


def check_start(facts: Facts) -> Iterator[Finding]:
    """Whether JAX starts at all."""
    if facts.platform is not None:
        return
    asked = facts.environment.get("JAX_PLATFORMS", "")
    if pid := re.search(r"in use by process with pid (\d+)", facts.jax_error):
        mend = f"kill {pid[1]}    (in Colab: Runtime > Restart session)"
    elif "XLA_FLAGS" in facts.jax_error:
        mend = "unset XLA_FLAGS"
    elif asked and not _asks_for_what_is_there(asked, facts):
        mend = "unset JAX_PLATFORMS"
    else:
        mend = _install(_extra(facts), facts)
    with_ = f" with JAX_PLATFORMS={asked}" if asked else ""
    error = facts.jax_error if facts.jax_error != "AssertionError" else "this machine shows no such device"
    yield Finding(f"JAX does not start{with_}: {error}", mend)


def check_hidden(facts: Facts) -> Iterator[Finding]:
    """An accelerator that the environment keeps from JAX."""
    if facts.shown and facts.environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        yield Finding(f"JAX_PLATFORMS=cpu keeps JAX from the {_named(facts)} of this machine", "unset JAX_PLATFORMS")
    if "gpu" in facts.shown and hidden(facts.environment):
        visible = facts.environment["CUDA_VISIBLE_DEVICES"]
        yield Finding(f"CUDA_VISIBLE_DEVICES={visible!r} hides the GPU from JAX", "unset CUDA_VISIBLE_DEVICES")


def check_cpu(facts: Facts) -> Iterator[Finding]:
    """The CPU in the place of an accelerator, for no reason that the environment gives."""
    if facts.platform != "cpu" or not facts.shown or any(check_hidden(facts)):
        return
    extra, said = _extra(facts), f" ({facts.jax_error})" if facts.jax_error else ""
    missing = "" if extra in facts.plugins else f", for want of jax[{extra}]"
    problem = f"JAX uses the CPU, although this machine has a {_named(facts)}{missing}{said}"
    yield Finding(problem, _install(extra, facts))


def check_shadowed(facts: Facts) -> Iterator[Finding]:
    """CUDA libraries that the loader finds before those that came with JAX."""
    bundled = any(name.startswith(("nvidia-cudnn", "nvidia-cublas")) for name in facts.versions)
    if facts.shadowing and bundled and {"cuda12", "cuda13"} & {*facts.plugins}:
        kept = [p for p in facts.environment.get("LD_LIBRARY_PATH", "").split(":") if p and p not in facts.shadowing]
        mend = f"export LD_LIBRARY_PATH={':'.join(kept)}" if kept else "unset LD_LIBRARY_PATH"
        where = ", ".join(facts.shadowing)
        yield Finding(f"LD_LIBRARY_PATH puts the CUDA libraries of {where} before those that JAX brought", mend)


def check_memory_held(facts: Facts) -> Iterator[Finding]:
    """Memory of the GPU that others hold, so that JAX cannot have its share."""
    if facts.environment.get("XLA_PYTHON_CLIENT_PREALLOCATE", "").lower() in ("false", "0"):
        return
    share = _fraction(facts) or 0.75
    for i, gpu in enumerate(facts.gpus):
        if gpu.free >= share * gpu.memory:
            continue
        free = f"{gpu.free:,} of {gpu.memory:,} MiB of GPU {i} are free, and JAX takes {share:.0%} when it starts"
        others = [h for h in facts.holders if h.tensorflow or not h.ours]
        if others:
            most = max(others, key=lambda h: h.memory)
            by = f"process {most.pid} holds {most.memory:,} MiB"
            if most.tensorflow:
                by += " for TensorFlow, which takes all unless tf.config.set_visible_devices([], 'GPU') hides it"
            yield Finding(f"only {free}: {by}", f"kill {most.pid}")
        elif not facts.holders:  # a container does not show whose it is
            fits = max(math.floor(100 * gpu.free / gpu.memory) - 5, 5) / 100
            problem = f"only {free}; the rest is held by another process, such as a notebook's"
            yield Finding(problem, f"export {MEMORY_FRACTION[0]}={fits}")


def check_settings(facts: Facts) -> Iterator[Finding]:
    """XLA_PYTHON_CLIENT_*, which tell JAX how to handle a GPU's memory."""
    name = next((name for name in MEMORY_FRACTION if name in facts.environment), MEMORY_FRACTION[0])
    text = facts.environment.get(name)
    if text is not None and _fraction(facts) is None:
        problem = f"{name}={text} is no share of the memory: it is above 0 and at most 1"
        yield Finding(problem, f"unset {name}")
    if "gpu" in facts.shown and facts.environment.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        problem = "XLA_PYTHON_CLIENT_ALLOCATOR=platform asks the driver for each array, which is very slow"
        yield Finding(problem, "unset XLA_PYTHON_CLIENT_ALLOCATOR")


def check_shared_memory(facts: Facts) -> Iterator[Finding]:
    """Room for the batches that worker processes hand over: in containers there may be only 64 MiB."""
    workers = min(facts.cores, 16) if facts.cores > 2 else 0  # as in jaxvision.data.workers
    needed = workers * 3 * 64 * 224 * 224 * 3  # two finished batches of each and one in the making
    if facts.shared_memory is not None and facts.shared_memory < needed:
        there, takes = facts.shared_memory / 2**20, needed / 2**20
        problem = f"/dev/shm has {there:,.0f} MiB; {workers} workers with batches of 64 x 224 x 224 take {takes:,.0f}"
        size = f"--shm-size={math.ceil(2 * needed / GIB)}g"
        yield Finding(
            problem, f"start the container with: docker run {size} ..., or train with --config.data.workers=0"
        )


def check_disk(facts: Facts) -> Iterator[Finding]:
    """Room for checkpoints: of a ViT-Base with an average four at a time, 1.4 GB each."""
    if not facts.writable:
        yield Finding(f"{facts.workdir} cannot be written to", "take another --workdir")
    elif facts.disk < 6 * GIB:
        problem = f"only {facts.disk / GIB:.1f} GiB are free in {facts.workdir}; the checkpoints of a ViT-Base take 6"
        yield Finding(problem, "take a --workdir on another disk")


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    check_versions,
    check_driver,
    check_plugin,
    check_start,
    check_hidden,
    check_cpu,
    check_shadowed,
    check_memory_held,
    check_settings,
    check_shared_memory,
    check_disk,
)


def findings(facts: Facts) -> list[Finding]:
    """Returns what is wrong, the causes before what they cause; nothing if all is well.

    >>> findings(Facts())
    []
    >>> findings(Facts(shown=("gpu",), versions={"jax": "0.10.2"}, shared_memory=64 * 2**20))[0].mend
    'pip install "jax[cuda12]==0.10.2"'
    """
    return [finding for check in CHECKS for finding in check(facts)]


def summary(facts: Facts) -> dict[str, str]:
    """Returns the facts in short, in the order in which to show them."""
    v = facts.versions
    old = tuple(int(x) for x in facts.python.split(".")[:2]) < (3, 12)
    names = (
        "jaxvision-nnx",
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        *_ACCELERATED,
        "tensorflow",
    )
    kinds = Counter(facts.devices)
    rows = {
        "python": facts.python + (" (JAX after 0.10 takes 3.12 or newer)" if old else ""),
        "packages": ", ".join(f"{name} {v[name]}" for name in names if name in v),
        "JAX runs on": ", ".join(f"{n} x {kind}" for kind, n in kinds.items()) or "nothing: it does not start",
        "machine shows": ", ".join(NAMES[kind] for kind in facts.shown) or "no accelerator",
    }
    if facts.driver:
        free = ", ".join(f"{gpu.name}: {gpu.free:,} of {gpu.memory:,} MiB free" for gpu in facts.gpus)
        rows["driver"] = f"{facts.driver}; {free}"
    shm = "no /dev/shm" if facts.shared_memory is None else f"{facts.shared_memory / 2**20:,.0f} MiB of /dev/shm"
    rows["host"] = f"{facts.cores} cores, {facts.memory / GIB:.1f} GiB of memory, {shm}"
    rows["disk"] = f"{facts.disk / GIB:.1f} GiB free in {facts.workdir}"
    rows["environment"] = (
        ", ".join(f"{name}={value}" for name, value in sorted(facts.environment.items())) or "nothing set"
    )
    return rows


def _extras_of(requirement: Requirement) -> list[str]:
    """Returns for which of the extras that matter here a requirement is one; "" for all installations."""
    return [extra for extra in _EXTRAS if not requirement.marker or requirement.marker.evaluate({"extra": extra})]


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _misfit(extra: str, facts: Facts) -> str:
    """Returns why a CUDA plugin cannot work here; empty: it can."""
    if facts.driver and _major(facts.driver) < _DRIVER[extra]:
        return f"it takes NVIDIA's driver {_DRIVER[extra]} or newer, this is {facts.driver}"
    for gpu in facts.gpus:
        if gpu.capability < _CAPABILITY[extra]:
            return (
                f"it takes a GPU of compute capability {_CAPABILITY[extra]} or higher, {gpu.name} has {gpu.capability}"
            )
    return ""


def _extra(facts: Facts) -> str:
    """Returns the extra of JAX for this machine: ``tpu``, the CUDA that is installed, or else CUDA 12; "" for none."""
    if "tpu" in facts.shown:
        return "tpu"
    if "gpu" not in facts.shown:
        return ""
    return "cuda13" if "cuda13" in facts.plugins and not _misfit("cuda13", facts) else "cuda12"


def _install(extra: str, facts: Facts) -> str:
    version = f"=={facts.versions['jax']}" if "jax" in facts.versions else ""
    return f'pip install "jax{f"[{extra}]" if extra else ""}{version}"'


def _named(facts: Facts) -> str:
    return "TPU" if "tpu" in facts.shown else "GPU"


def _asks_for_what_is_there(asked: str, facts: Facts) -> bool:
    first = asked.split(",")[0]
    return (
        first == "cpu"
        or (first == "tpu" and "tpu" in facts.shown)
        or (first in ("cuda", "gpu") and "gpu" in facts.shown)
    )


def _fraction(facts: Facts) -> float | None:
    """Returns the share of a GPU's memory that JAX was told to take; None: nothing, or no share."""
    try:
        share = float(next(facts.environment[name] for name in MEMORY_FRACTION if name in facts.environment))
    except (ValueError, StopIteration):
        return None
    return share if 0 < share <= 1 else None


# --- The facts ---

# In a process of its own: JAX may fail, crash or hang, and must give back the accelerator. Nothing is preallocated.
_PROBE = """
import jax, json
devices = jax.devices()
limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
kinds = [f"{d.device_kind} ({limit / 2**30:.1f} GiB)" if limit else d.device_kind for d, limit in zip(devices, limits)]
print(json.dumps([devices[0].platform, kinds]))
"""


def examine(workdir: str | Path = "runs", *, seconds: float = 180.0) -> Facts:
    """Returns the facts of this machine.

    Args:
      workdir: where runs go.
      seconds: after which JAX is taken not to start.
    """
    requires = {name: found for name in _PACKAGES if (found := _requirements(name))}
    # NVIDIA first: what JAX takes while it is looked at is not to be counted.
    driver, gpus, holders, error = _nvidia_smi()
    started, devices, jax_error = _probe(seconds)
    folder = Path(workdir).absolute()
    while not folder.exists():
        folder = folder.parent
    shm = Path("/dev/shm")
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
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        shared_memory=shutil.disk_usage(shm).total if shm.is_dir() else None,
        workdir=str(workdir),
        disk=shutil.disk_usage(folder).free,
        writable=os.access(folder, os.W_OK),
    )


def _versions(requires: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Returns what is installed of what is asked for, and of what is shown."""
    names = {canonicalize_name(Requirement(text).name) for texts in requires.values() for text in texts}
    names |= {canonicalize_name(name) for name in (*_PACKAGES, *_ACCELERATED, "tensorflow")}
    found = {canonicalize_name(d.metadata["Name"] or ""): d.version for d in metadata.distributions()}
    return {name: found[name] for name in sorted(names) if name in found}


def _requirements(name: str) -> tuple[str, ...]:
    try:
        return tuple(text for text in metadata.requires(name) or () if _extras_of(Requirement(text)))
    except metadata.PackageNotFoundError:
        return ()


def _nvidia_smi() -> tuple[str, tuple[Gpu, ...], tuple[Holder, ...], str]:
    """Returns (version of the driver, GPUs, processes on them, what nvidia-smi says in place of that)."""
    if shutil.which("nvidia-smi") is None:
        return "", (), (), ""

    def query(what: str) -> list[list[str]]:
        command = ["nvidia-smi", f"--query-{what}", "--format=csv,noheader,nounits"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise OSError(" ".join((done.stdout + done.stderr).split()))
        return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]

    try:
        rows = query("gpu=driver_version,name,compute_cap,memory.total,memory.free")
        gpus = tuple(Gpu(name, float(sm), int(total), int(free)) for _, name, sm, total, free in rows)
        # The memory of a process is "[N/A]" where a container may not know.
        apps = [(int(pid), int(used)) for pid, used in query("compute-apps=pid,used_memory") if used.isdigit()]
    except (OSError, ValueError, subprocess.TimeoutExpired) as e:
        return "", (), (), str(e)
    ancestors = {*_ancestors(os.getpid())}
    holders = tuple(Holder(pid, used, _maps_tensorflow(pid), pid in ancestors) for pid, used in apps)
    return rows[0][0] if rows else "", gpus, holders, ""


def _ancestors(pid: int) -> Iterator[int]:
    while pid > 0:
        yield pid
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return


def _maps_tensorflow(pid: int) -> bool:
    try:
        return "libtensorflow" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # another user's, or gone
        return False


def _probe(seconds: float) -> tuple[str | None, tuple[str, ...], str]:
    """Starts JAX; returns (its platform, its devices, what went wrong)."""
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        command = [sys.executable, "-c", _PROBE]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, (), f"nothing within {seconds:.0f} s"
    if done.returncode == 0:
        started, devices = json.loads(done.stdout.splitlines()[-1])
        return started, tuple(devices), "" if started != "cpu" else _reason(done.stderr)
    ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return None, (), _reason(done.stderr, last=True) or ended


def _reason(log: str, *, last: bool = False) -> str:
    """Returns the line that says why: an error, or what JAX says of a backend that failed; or just the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    told = [
        line
        for line in lines
        if re.match(r"\w*(\.\w+)*Error\b|.*(failed to initialize|Unknown flags? in XLA_FLAGS)", line)
    ]
    return told[-1] if told else lines[-1] if last and lines else ""
