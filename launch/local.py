"""Several processes on this machine that train as one: what a cluster does, where it can be watched.

    python launch/local.py --processes 2 -- --config configs/quickstart.py:resnet --workdir runs/two

Everything after ``--`` is the command line of ``python -m jaxvision.main``. On CPUs each process plays
``--devices`` devices; on a machine with GPUs say which ones each process sees, with CUDA_VISIBLE_DEVICES, in a launcher
of your own: three environment variables are all that `jaxvision.parallel.distributed.initialize` needs.

When one process ends badly the others are stopped, and its exit status is this command's.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time


def main() -> int:
    """Starts the processes and returns the first bad exit status, or 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--devices", type=int, default=1, help="CPU devices that each process plays (default: 1)")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- and the flags of python -m jaxvision.main")
    options = parser.parse_args()
    flags = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments

    with socket.socket() as s:  # a free port
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for i in range(options.processes):
        environment = os.environ | {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(options.processes),
            "JAX_PROCESS_ID": str(i),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={options.devices} {os.environ.get('XLA_FLAGS', '')}",
        }
        processes.append(subprocess.Popen([sys.executable, "-m", "jaxvision.main", *flags], env=environment))
    try:
        while True:
            statuses = [process.poll() for process in processes]
            bad = [status for status in statuses if status]
            if bad or all(status == 0 for status in statuses):
                return bad[0] if bad else 0
            time.sleep(0.2)
    except KeyboardInterrupt:
        return 130
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
