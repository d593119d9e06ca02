"""Several processes of this machine that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from support.compile_flags import xla_flags


def run_together(*command: str | Path, processes: int, devices: int) -> list[str]:
    """Runs a Python program in several processes that JAX can connect; returns what each printed.

    Args:
      *command: a script and its arguments, or ``-c`` and a program. It calls `distributed.initialize`.
      processes: number of processes.
      devices: simulated devices of each.
    """
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "XLA_FLAGS": xla_flags(devices),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
    }
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**environment, "JAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    results = [process.communicate(timeout=240) for process in running]
    for process, (_, err) in zip(running, results, strict=True):
        assert process.returncode == 0, err
    return [out for out, _ in results]
