"""The checks of ``jaxvision doctor``. Each reads only the facts and yields what is wrong with its fix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxvision.doctor.facts import GIB, Facts, extras_of
from jaxvision.parallel.accelerators import MEMORY_FRACTION, hidden

# The oldest driver for each CUDA: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html.
_DRIVER = {"cuda12": 525, "cuda13": 580}
# The oldest GPUs, by compute capability. CUDA 13 dropped the GPUs before Turing.
_CAPABILITY = {"cuda12": 5.0, "cuda13": 7.5}
_INSTALL_DRIVER = f"install NVIDIA's driver {_DRIVER['cuda13']} or newer: https://www.nvidia.com/drivers"


@dataclass(frozen=True)
class Finding:
    """A problem, and the command or instruction that fixes it."""

    problem: str
    fix: str


def check_versions(facts: Facts) -> Iterator[Finding]:
    """Checks the installed packages against the requirements in their metadata."""
    wrong, wanted = [], []
    for name in (name for name in facts.requires if name in facts.versions):
        for requirement in map(Requirement, facts.requires[name]):
            extras = {"", "with-cuda", *facts.plugins}.intersection(extras_of(requirement))
            found = facts.versions.get(canonicalize_name(requirement.name))
            if not extras or (found is None and "" not in extras):
                continue
            if found is None or not requirement.specifier.contains(found, prereleases=True):
                needs = f"{name} {facts.versions[name]} needs {requirement.name}{requirement.specifier}"
                wrong.append(f"{needs}, {found or 'nothing'} is installed")
                wanted.append(f"'{str(requirement).partition(';')[0].strip()}'")
    if wrong:
        yield Finding("incompatible packages: " + "; ".join(wrong), f"pip install {' '.join(dict.fromkeys(wanted))}")


def check_driver(facts: Facts) -> Iterator[Finding]:
    """Checks that NVIDIA's driver answers and is new enough, and that a container shows its host's GPUs."""
    if facts.nvidia_smi and "gpu" in facts.shown:
        fix = "sudo reboot" if "mismatch" in facts.nvidia_smi else _INSTALL_DRIVER
        yield Finding(f"NVIDIA's driver does not answer: {facts.nvidia_smi}", fix)
    if facts.driver and _major(facts.driver) < min(_DRIVER.values()):
        yield Finding(f"NVIDIA's driver {facts.driver} is too old for CUDA 12 and 13", _INSTALL_DRIVER)
    if facts.host_gpus and "gpu" not in facts.shown and {"cuda12", "cuda13"} & {*facts.plugins}:
        problem = "this machine has an NVIDIA GPU, but this container does not show it"
        yield Finding(problem, "start the container with: docker run --gpus all ...")


def check_plugin(facts: Facts) -> Iterator[Finding]:
    """Checks that one CUDA plugin of JAX is installed, and that the driver and the GPU can run it."""
    installed = [extra for extra in ("cuda12", "cuda13") if extra in facts.plugins]
    bad = {extra: reason for extra in installed if (reason := _misfit(extra, facts))}
    if len(installed) == 2 and not bad:
        bad = {"cuda12": "the plugin for CUDA 13 is also installed, and JAX can use only one"}
    for extra, reason in bad.items():
        if extra == "cuda12" and len(installed) == 1:
            continue  # there is no older plugin: check_driver asks for a newer driver
        remove = f"pip uninstall -y jax-{extra}-plugin jax-{extra}-pjrt"
        other = "" if len(installed) == 2 else f" && {_install('cuda12', facts)}"
        yield Finding(f"jax-{extra}-plugin does not work here: {reason}", remove + other)


def check_start(facts: Facts) -> Iterator[Finding]:
    """Checks that JAX starts."""
    if facts.platform is not None:
        return
    asked = facts.environment.get("JAX_PLATFORMS", "")
    if pid := re.search(r"in use by process with pid (\d+)", facts.jax_error):
        fix = f"kill {pid[1]}    (in Colab: Runtime > Restart session)"
    elif "XLA_FLAGS" in facts.jax_error:
        fix = "unset XLA_FLAGS"
    elif asked and not _is_shown(asked, facts):
        fix = "unset JAX_PLATFORMS"
    else:
        fix = _install(_extra(facts), facts)
    setting = f" with JAX_PLATFORMS={asked}" if asked else ""
    error = facts.jax_error if facts.jax_error != "AssertionError" else "this machine shows no such device"
    yield Finding(f"JAX does not start{setting}: {error}", fix)


def check_hidden(facts: Facts) -> Iterator[Finding]:
    """Checks that the environment does not hide an accelerator from JAX."""
    if facts.shown and facts.environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        yield Finding(f"JAX_PLATFORMS=cpu hides the {_accelerator(facts)} from JAX", "unset JAX_PLATFORMS")
    if "gpu" in facts.shown and hidden(facts.environment):
        visible = facts.environment["CUDA_VISIBLE_DEVICES"]
        yield Finding(f"CUDA_VISIBLE_DEVICES={visible!r} hides the GPU from JAX", "unset CUDA_VISIBLE_DEVICES")


def check_cpu(facts: Facts) -> Iterator[Finding]:
    """Checks that JAX uses the accelerator of the machine, unless the environment hides it."""
    if facts.platform != "cpu" or not facts.shown or any(check_hidden(facts)):
        return
    extra, error = _extra(facts), f" ({facts.jax_error})" if facts.jax_error else ""
    missing = "" if extra in facts.plugins else f": jax[{extra}] is not installed"
    problem = f"JAX uses the CPU, although this machine has a {_accelerator(facts)}{missing}{error}"
    yield Finding(problem, _install(extra, facts))


def check_shadowed(facts: Facts) -> Iterator[Finding]:
    """Checks that the loader finds the CUDA libraries installed with JAX before others."""
    bundled = any(name.startswith(("nvidia-cudnn", "nvidia-cublas")) for name in facts.versions)
    if facts.shadowing and bundled and {"cuda12", "cuda13"} & {*facts.plugins}:
        kept = [p for p in facts.environment.get("LD_LIBRARY_PATH", "").split(":") if p and p not in facts.shadowing]
        fix = f"export LD_LIBRARY_PATH={':'.join(kept)}" if kept else "unset LD_LIBRARY_PATH"
        folders = ", ".join(facts.shadowing)
        yield Finding(f"LD_LIBRARY_PATH puts the CUDA libraries in {folders} before those installed with JAX", fix)


def check_memory_held(facts: Facts) -> Iterator[Finding]:
    """Checks that JAX can take its share of the GPU's memory, which other processes may hold."""
    if facts.environment.get("XLA_PYTHON_CLIENT_PREALLOCATE", "").lower() in ("false", "0"):
        return
    share = _memory_share(facts) or 0.75
    for i, gpu in enumerate(facts.gpus):
        if gpu.free >= share * gpu.memory:
            continue
        free = f"{gpu.free:,} of {gpu.memory:,} MiB of GPU {i} are free, and JAX takes {share:.0%} when it starts"
        others = [h for h in facts.holders if h.tensorflow or not h.ours]
        if others:
            most = max(others, key=lambda h: h.memory)
            by = f"process {most.pid} holds {most.memory:,} MiB"
            if most.tensorflow:
                by += (
                    " for TensorFlow, which takes all memory unless tf.config.set_visible_devices([], 'GPU') "
                    "hides the GPU"
                )
            yield Finding(f"only {free}: {by}", f"kill {most.pid}")
        elif not facts.holders:  # a container does not show other containers' processes
            fits = max(math.floor(100 * gpu.free / gpu.memory) - 5, 5) / 100
            problem = f"only {free}; another process, such as a notebook, holds the rest"
            yield Finding(problem, f"export {MEMORY_FRACTION[0]}={fits}")


def check_settings(facts: Facts) -> Iterator[Finding]:
    """Checks the environment variables that control how JAX uses a GPU's memory."""
    name = next((name for name in MEMORY_FRACTION if name in facts.environment), MEMORY_FRACTION[0])
    text = facts.environment.get(name)
    if text is not None and _memory_share(facts) is None:
        yield Finding(f"{name}={text}: expected a number above 0 and at most 1", f"unset {name}")
    if "gpu" in facts.shown and facts.environment.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        problem = "XLA_PYTHON_CLIENT_ALLOCATOR=platform calls the driver for each array, which is very slow"
        yield Finding(problem, "unset XLA_PYTHON_CLIENT_ALLOCATOR")


def check_disk(facts: Facts) -> Iterator[Finding]:
    """Checks that the workdir has room for checkpoints: up to four of 1.4 GB each for a ViT-Base with EMA."""
    if not facts.writable:
        yield Finding(f"{facts.workdir} is not writable", "choose another --workdir")
    elif facts.disk < 6 * GIB:
        problem = f"only {facts.disk / GIB:.1f} GiB are free in {facts.workdir}; checkpoints of a ViT-Base need 6"
        yield Finding(problem, "choose a --workdir on another disk")


#: All checks. Causes come before their effects.
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
    check_disk,
)


def findings(facts: Facts) -> list[Finding]:
    """Returns what is wrong, causes before their effects. Empty if nothing is wrong.

    Example:
      >>> findings(Facts())
      []
      >>> findings(Facts(shown=("gpu",), versions={"jax": "0.10.2"}))[0].fix
      'pip install "jax[cuda12]==0.10.2"'
    """
    return [finding for check in CHECKS for finding in check(facts)]


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _misfit(extra: str, facts: Facts) -> str:
    """Returns why a CUDA plugin cannot work on this machine, ``""`` if it can."""
    if facts.driver and _major(facts.driver) < _DRIVER[extra]:
        return f"it needs NVIDIA's driver {_DRIVER[extra]} or newer, this is {facts.driver}"
    for gpu in facts.gpus:
        if gpu.capability < _CAPABILITY[extra]:
            return f"it needs compute capability {_CAPABILITY[extra]} or higher, {gpu.name} has {gpu.capability}"
    return ""


def _extra(facts: Facts) -> str:
    """Returns the extra of JAX for this machine: ``tpu``, the installed CUDA, or ``cuda12``; ``""`` for a CPU."""
    if "tpu" in facts.shown:
        return "tpu"
    if "gpu" not in facts.shown:
        return ""
    return "cuda13" if "cuda13" in facts.plugins and not _misfit("cuda13", facts) else "cuda12"


def _install(extra: str, facts: Facts) -> str:
    version = f"=={facts.versions['jax']}" if "jax" in facts.versions else ""
    return f'pip install "jax{f"[{extra}]" if extra else ""}{version}"'


def _accelerator(facts: Facts) -> str:
    return "TPU" if "tpu" in facts.shown else "GPU"


def _is_shown(platforms: str, facts: Facts) -> bool:
    """Returns whether the machine has the first platform of a value of JAX_PLATFORMS."""
    first = platforms.split(",")[0]
    return (
        first == "cpu"
        or (first == "tpu" and "tpu" in facts.shown)
        or (first in ("cuda", "gpu") and "gpu" in facts.shown)
    )


def _memory_share(facts: Facts) -> float | None:
    """Returns the share of a GPU's memory that the environment lets JAX take, None if unset or invalid."""
    try:
        share = float(next(facts.environment[name] for name in MEMORY_FRACTION if name in facts.environment))
    except (ValueError, StopIteration):
        return None
    return share if 0 < share <= 1 else None
