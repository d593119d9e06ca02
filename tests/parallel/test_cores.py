"""jaxvision.parallel.cores: affinity, quotas of containers, and processes that share a host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.processes import run_together

from jaxvision.parallel.cores import default_workers, usable_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 12),  # neither Linux nor a container
        ({"proc/self/cgroup": "0::/\n"}, 12),
        ({"proc/self/cgroup": "0::/\n", "cpu.max": "max 100000\n"}, 12),
        ({"proc/self/cgroup": "0::/\n", "cpu.max": "400000 100000\n"}, 4),  # docker --cpus=4
        ({"proc/self/cgroup": "0::/\n", "cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/\n", "cpu.max": "3200000 100000\n"}, 12),  # more than the affinity
        # systemd-run -p CPUQuota=300%, inside a slice with a smaller and one with a larger quota
        ({"proc/self/cgroup": "0::/a.slice/b\n", "a.slice/b/cpu.max": "300000 100000\n"}, 3),
        (
            {
                "proc/self/cgroup": "0::/a.slice/b\n",
                "a.slice/cpu.max": "200000 100000\n",
                "a.slice/b/cpu.max": "300000 100000\n",
            },
            2,
        ),
        # version 1: a Kubernetes pod, whose own cgroup is the top folder, with the host's path in /proc
        (
            {
                "proc/self/cgroup": "11:cpu,cpuacct:/kubepods/pod1\n1:memory:/kubepods/pod1\n",
                "cpu/cpu.cfs_quota_us": "600000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "proc/self/cgroup": "11:cpu:/\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
            12,
        ),
        ({"proc/self/cgroup": "0::/../..\n", "cpu.max": "500000 100000\n"}, 5),
    ],
)
def test_usable_cores(files: dict[str, str], cores: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    for name, text in files.items():
        file = tmp_path / ("" if name.startswith("proc") else "sys/fs/cgroup") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert usable_cores(tmp_path) == cores


def test_default_workers() -> None:
    """Two processes of 2.5 cores, an unbound process of 8 and one of 128: threads at first, never more than 16."""
    assert [default_workers(cores) for cores in (0.5, 1, 2, 2.5, 3, 8, 16, 128)] == [0, 0, 0, 2, 3, 8, 16, 16]


SHARE = """
import os
cores = [range(16), range(16), range(4)]
os.sched_getaffinity = lambda _: set(cores[int(os.environ["JAX_PROCESS_ID"])])
from jaxvision.parallel import distributed
distributed.initialize()
from jaxvision.parallel.cores import cores_of_this_process
print(cores_of_this_process())
"""


@pytest.mark.slow
def test_processes_on_one_host_divide_its_cores() -> None:
    """Two unbound processes share 16 cores. The launcher bound the third to four of its own."""
    printed = run_together("-c", SHARE, processes=3, devices=1)
    assert [float(text.split()[-1]) for text in printed] == [8, 8, 4]
