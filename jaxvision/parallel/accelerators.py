"""The accelerators of a machine, and the check that JAX uses them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from logging.handlers import MemoryHandler
from pathlib import Path

from jaxvision.errors import UserError

#: Environment variables that set the share of a GPU's memory that JAX reserves; the second is the older name.
MEMORY_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
#: Packages that let JAX use an accelerator.
PLUGINS = {"gpu": ("jax-cuda12-plugin", "jax-cuda13-plugin"), "tpu": ("libtpu",)}
NAMES = {"gpu": "NVIDIA GPU", "tpu": "TPU"}


def accelerators(environment: Mapping[str, str] | None = None, *, root: str | Path = "/") -> tuple[str, ...]:
    """Returns which of ``"gpu"`` (NVIDIA) and ``"tpu"`` this machine has, judged by its device files.

    No driver is loaded. GPUs that ``CUDA_VISIBLE_DEVICES`` hides do not count.

    Args:
      environment: environment variables. Default: ``os.environ``.
      root: folder that contains ``dev`` and ``sys``.

    Example:
      >>> accelerators({}, root="/nothing/is/here")
      ()
    """
    env, root = os.environ if environment is None else environment, Path(root)
    found = []
    # /dev/dxg, the GPU of Windows in WSL 2, may be of any vendor.
    wsl = (root / "dev/dxg").exists() and (root / "usr/lib/wsl/lib/nvidia-smi").exists()
    if (wsl or any(root.glob("dev/nvidia[0-9]*"))) and not hidden(env):
        found.append("gpu")
    if any(root.glob("dev/accel[0-9]*")) or (  # newer TPUs are VFIO devices, as other hardware may be
        any(root.glob("dev/vfio/[0-9]*")) and (env.get("COLAB_TPU_1VM") or env.get("TPU_NAME") or _tpu_chips(root))
    ):
        found.append("tpu")
    return tuple(found)


def hidden(environment: Mapping[str, str]) -> bool:
    """Returns whether the environment hides all GPUs from CUDA. Slurm sets ``NoDevFiles`` for no GPU."""
    return environment.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles")


def _tpu_chips(root: Path) -> bool:
    """Returns whether the PCI bus has a device by Google that is neither a network card nor a disk."""
    for vendor in root.glob("sys/bus/pci/devices/*/vendor"):
        try:
            kind = (vendor.parent / "class").read_text().strip()
            if vendor.read_text().strip() == "0x1ae0" and not kind.startswith(("0x01", "0x02")):
                return True
        except OSError:
            continue
    return False


def plugins(platform: str) -> list[str]:
    """Returns the names of the installed packages that let JAX use a platform, ``"gpu"`` or ``"tpu"``."""
    found = []
    for name in PLUGINS[platform]:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        found.append(name)
    return found


def check_accelerator(log: Callable[[str], None] = print) -> None:
    """Starts JAX, and raises if it uses the CPU by mistake.

    Call it after `jaxvision.parallel.distributed.initialize` and before anything that queries the devices. Using the
    CPU is no mistake if ``JAX_PLATFORMS`` asks for it, or if the machine has no accelerator.

    Args:
      log: called with a line of text if a plugin is installed for an accelerator that the machine does not have.

    Raises:
      UserError: the platform in ``JAX_PLATFORMS`` does not start, or JAX uses the CPU although there is an accelerator.

    Example:
      >>> check_accelerator()
    """
    import jax  # not at the top, because `jaxvision doctor` uses this file even if JAX cannot be imported

    asked = (jax.config.jax_platforms or "").split(",")[0]  # type: ignore[attr-defined]
    with _jax_log_held() as logged:
        try:
            platform = jax.devices()[0].platform
        except (RuntimeError, AssertionError) as e:
            reason = " ".join(str(e).partition(" (set JAX_PLATFORMS")[0].split()) or f"this machine shows no {asked}"
            raise UserError(f"JAX does not start: {reason}. Run `jaxvision doctor` to find the cause.") from e
    if refusal := why_not_cpu(platform, asked, accelerators()):
        raise UserError(refusal)
    if platform != "cpu":
        for record in logged:
            logging.getLogger(record.name).handle(record)
    elif asked != "cpu":
        for kind, name in NAMES.items():
            if installed := plugins(kind):
                log(f"{installed[0]} is installed, but this machine shows no {name}: using the CPU")


@contextmanager
def _jax_log_held() -> Iterator[list[logging.LogRecord]]:
    """Holds what JAX logs, such as a page about a backend that does not start, and yields the list of its records."""
    logger = logging.getLogger("jax")
    held = MemoryHandler(capacity=1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [held], False
    try:
        yield held.buffer
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def why_not_cpu(platform: str, asked: str, shown: Sequence[str]) -> str | None:
    """Returns why a run must not use `platform`, or None if it may.

    Args:
      platform: the platform that JAX uses.
      asked: the first entry of ``JAX_PLATFORMS``; empty if JAX was to choose.
      shown: from `accelerators`.

    Example:
      >>> why_not_cpu("cpu", "", ()), why_not_cpu("cpu", "cpu", ("gpu",))
      (None, None)
      >>> why_not_cpu("cpu", "cuda", ())
      'JAX_PLATFORMS asks for cuda, but JAX came up on the CPU. Run `jaxvision doctor` to find the cause.'
    """
    if platform != "cpu" or asked == "cpu":
        return None
    if asked:
        return f"JAX_PLATFORMS asks for {asked}, but JAX came up on the CPU. Run `jaxvision doctor` to find the cause."
    if not shown:
        return None
    return (
        f"this machine shows one {NAMES[shown[0]]} or more, but JAX came up on the CPU. Run `jaxvision doctor` to find "
        f"the fix, or set JAX_PLATFORMS=cpu to use the CPU."
    )
