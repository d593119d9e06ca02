"""Several processes on this machine that train as one: what a cluster does, where it can be watched.

    python launch/local.py --processes 2 -- --config configs/quickstart.py:resnet --workdir runs/two

Everything after ``--`` is the command line of ``python -m jaxvision.main``. On CPUs each process plays
``--devices`` devices; on a machine with GPUs say which ones each process sees, with CUDA_VISIBLE_DEVICES, in a launcher
of your own: three environment variables are all that `jaxvision.parallel.distributed.initialize` needs.

``kill -TERM`` of this command tells all processes: the run saves, and ends with status 75; the same command goes on.
When one process ends badly it is named, the others get a minute to end by themselves (JAX tells them), and the
status of the first is this command's; 128 and the signal's number where a signal ended it.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from typing import NoReturn

GRACE = 60  # seconds


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; the run's own flags come after -- (see {self.prog} --help)\n")


def main() -> int:
    """Starts the processes and returns the first bad exit status, or 0."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that each process plays (default: 1)")
    parser.add_argument("flags", nargs="+", help="-- and the flags of python -m jaxvision.main")
    options = parser.parse_args()
    if options.processes < 1 or options.devices < 1:
        parser.error("--processes and --devices are 1 or more")

    with socket.socket() as s:  # a free port
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes: list[subprocess.Popen[bytes]] = []
    told: list[int] = []  # handed on by `wait`, when all have been started
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C: the terminal tells them all
    for i in range(options.processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(options.processes),
            "JAX_PROCESS_ID": str(i),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}",
        }
        command = [sys.executable, "-m", "jaxvision.main", *options.flags]
        processes.append(subprocess.Popen(command, env=environment, preexec_fn=end_with_parent))
    return wait(processes, told)


def end_with_parent() -> None:
    """Has Linux kill this process when its parent is gone: after a ``kill -9`` of that it would go on alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait(processes: list[subprocess.Popen[bytes]], told: list[int]) -> int:
    """Hands signals on; returns the status of the first process that ended badly, or 0, when none is left."""
    first, deadline, statuses = 0, float("inf"), [None]
    while None in statuses:
        time.sleep(0.2)
        while told:
            number = told.pop()
            for process in processes:
                process.send_signal(number)
        statuses = [process.poll() for process in processes]
        ended = [(i, status) for i, status in enumerate(statuses) if status]
        if ended and not first:
            i, first = ended[0]
            how = f"by {signal.Signals(-first).name}" if first < 0 else f"with status {first}"
            print(f"process {i} was the first to end, {how}", file=sys.stderr)
            if first != 75:  # that is told to stop: the others save
                deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return 128 - first if first < 0 else first


if __name__ == "__main__":
    sys.exit(main())
