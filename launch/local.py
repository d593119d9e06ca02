"""Trains with several processes on this machine, as on a cluster.

    python launch/local.py --processes 2 -- --config configs/quickstart.py:resnet --workdir runs/two

Everything after ``--`` is the command line of ``python -m jaxvision.main``. On a CPU each process has ``--devices``
simulated devices. On a machine with GPUs, write a launcher that sets CUDA_VISIBLE_DEVICES for each process; otherwise
`jaxvision.parallel.distributed.initialize` needs only the three JAX_* environment variables that this script sets.

Send SIGTERM to this command to stop the run: all processes save and exit with status 75. Rerun the same command to
resume. If a process fails, this command prints its index and gives the others a minute to exit, as JAX makes them do.
Its exit status is that of the first process that failed, or 128 plus the signal's number if a signal ended it.
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
    """A parser that prints an error as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. Put the flags of the run after -- (see {self.prog} --help).\n")


def main() -> int:
    """Starts the processes and returns the first nonzero exit status, or 0."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: 2)")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices per process (default: 1)")
    parser.add_argument("flags", nargs="+", help="-- and the flags of python -m jaxvision.main")
    options = parser.parse_args()
    if options.processes < 1 or options.devices < 1:
        parser.error(f"got --processes {options.processes} and --devices {options.devices}, expected 1 or more of each")

    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    signals: list[int] = []  # `wait` forwards them once all processes have started
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C: the terminal sends it to all processes
    for i in range(options.processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(options.processes),
            "JAX_PROCESS_ID": str(i),
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}",
        }
        command = [sys.executable, "-m", "jaxvision.main", *options.flags]
        processes.append(subprocess.Popen(command, env=environment, preexec_fn=end_with_parent))
    return wait(processes, signals)


def free_port() -> int:
    """Returns a free TCP port of this machine."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def end_with_parent() -> None:
    """Makes Linux kill this process when its parent ends. Otherwise it would survive ``kill -9`` of the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def wait(processes: list[subprocess.Popen[bytes]], signals: list[int]) -> int:
    """Forwards signals until all processes have ended; returns the status of the first that failed, or 0.

    Args:
      processes: the processes.
      signals: numbers of signals to forward. Signal handlers append to it.
    """
    first, deadline, statuses = 0, float("inf"), [None]
    while None in statuses:
        time.sleep(0.2)
        while signals:
            number = signals.pop()
            for process in processes:
                process.send_signal(number)
        statuses = [process.poll() for process in processes]
        failed = [(i, status) for i, status in enumerate(statuses) if status]
        if failed and not first:
            i, first = failed[0]
            how = f"by {signal.Signals(-first).name}" if first < 0 else f"with status {first}"
            advice = ". Run the same command to resume." if first < 0 else ""
            print(f"process {i} was the first to end, {how}{advice}", file=sys.stderr)
            if first != 75:  # 75: stopped by SIGTERM; the others are saving
                deadline = time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return 128 - first if first < 0 else first


if __name__ == "__main__":
    sys.exit(main())
