"""The devices, package versions and git commit of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from importlib import metadata

import jax

_PACKAGES = (
    ("jaxvision", "jaxvision-nnx"),
    ("jax", "jax"),
    ("jaxlib", "jaxlib"),
    ("flax", "flax"),
    ("optax", "optax"),
    ("orbax", "orbax-checkpoint"),
    ("numpy", "numpy"),
)


def environment() -> dict[str, str]:
    """Returns devices, package versions and the git commit of the working directory by name, in display order.

    Omits host and user names, because people share reports.
    """
    found = {"devices": devices(), "processes": str(jax.process_count()), "CPU cores": str(os.cpu_count())}
    found["python"] = platform.python_version()
    for name, distribution in _PACKAGES:
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    found["platform"] = platform.platform(terse=True)
    if revision := git_revision():
        found["git revision"] = revision
    return found


def devices() -> str:
    """Returns number and kind of the devices of all processes, such as ``"8 × NVIDIA H100 80GB HBM3"``."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return ", ".join(f"{n} × {kind}" for kind, n in kinds.items())  # noqa: RUF001


def git_revision() -> str | None:
    """Returns the commit of the working directory, such as ``"1a2b3c4d5e6f, with changes"``; None outside of git."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
        return result.stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{revision}, with changes" if changed else revision
