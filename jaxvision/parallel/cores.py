"""How many CPU cores this process may use, and how many workers that makes.

Importing this file imports neither JAX nor NumPy: workers use it, and `jaxvision doctor` when JAX cannot be imported.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

#: More workers than this only take memory.
MOST_WORKERS = 16


def default_workers(cores: float) -> int:
    """Returns the default number of worker processes for a number of cores.

    Args:
      cores: from `usable_cores` or `cores_of_this_process`.

    Returns:
      One for each core, at most 16, and 0 on two cores or less, where threads of the main process do the work.

    Example:
      >>> [default_workers(cores) for cores in (1, 2, 3, 8.5, 96)]
      [0, 0, 3, 8, 16]
    """
    return min(int(cores), MOST_WORKERS) if cores > 2 else 0


def usable_cores(root: str | Path = "/") -> float:
    """Returns how many cores this process and those that share its limits may use.

    Counts the cores of the CPU affinity (``taskset``, Slurm, a container's ``--cpuset-cpus``), or the quota of the
    cgroup if it is smaller (``docker --cpus``, the CPU limit of a Kubernetes pod). A quota may be a fraction of a core.

    Args:
      root: folder that contains ``proc`` and ``sys``.

    Example:
      >>> usable_cores() > 0
      True
    """
    return min([float(len(_affinity())), *(quota for quota, _ in _quotas(Path(root)))])


def cores_of_this_process() -> float:
    """Returns how many cores this process may use if all processes of the job on its host share them equally.

    Every process must call it at the same point. Processes with the same CPU affinity divide its cores, and those in
    the same cgroup divide its quota. A launcher that binds each process to cores of its own changes nothing, so the
    result does not depend on the launcher.

    Example:
      >>> cores_of_this_process() == usable_cores()
      True
    """
    import jax
    import numpy as np

    if jax.process_count() == 1:
        return usable_cores()
    from jax.experimental import multihost_utils

    affinity, quota, group = _affinity(), *min(_quotas(Path("/")), default=(float("inf"), 0))
    mine = np.array([_digest("cores", *sorted(affinity)), _digest("quota", group)], np.uint32)
    users = (np.asarray(multihost_utils.process_allgather(mine)) == mine).all(axis=-1).sum(axis=0)
    return float(min(len(affinity) / users[0], quota / users[1]))


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _digest(*facts: object) -> list[int]:
    """Returns two 32-bit numbers that identify facts about this host; by default JAX has no 64-bit numbers."""
    try:
        host = Path("/proc/sys/kernel/random/boot_id").read_text()  # containers on one host have the same
    except OSError:
        host = socket.gethostname()
    number = int.from_bytes(hashlib.sha256(repr((host, facts)).encode()).digest()[:8], "little")
    return [number % 2**32, number // 2**32]


def _quotas(root: Path) -> Iterator[tuple[float, int]]:
    """Yields the quota in cores, and the inode, of each cgroup around this process that has one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A container shows its own cgroup as the top folder, with the host's path or "/../.." in /proc.
        folder, *inner = root / "sys/fs/cgroup" / ("cpu" if controllers else ""), *Path(path).parts[1:]
        for name in ("", *inner):
            folder = folder / name
            try:
                if controllers:  # version 1
                    files = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
                    quota, period = (float(file.read_text()) for file in files)
                else:
                    quota, period = map(float, (folder / "cpu.max").read_text().replace("max", "-1").split())
                if quota > 0:
                    yield quota / period, folder.stat().st_ino
            except (OSError, ValueError):
                continue
