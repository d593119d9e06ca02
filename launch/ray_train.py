"""Trains on a Ray cluster, with one process of `python -m jaxvision.main` per worker of Ray Train.

    python launch/ray_train.py --workers 2 -- --config configs/vit_base.py --workdir /shared/run
    python launch/ray_train.py --workers 8 --gpu -- --config ...                                    one GPU each
    python launch/ray_train.py --workers 4 --tpu 4x4 --accelerator TPU-V5E -- --config ...          one host each

Everything after ``--`` is the command line of ``python -m jaxvision.main``. All workers must see the workdir. Requires
``pip install 'ray[default,train]'``. Set RAY_ADDRESS to use a running cluster; otherwise Ray starts on this machine.

If a worker is lost, or stops on SIGTERM after saving, Ray restarts all workers, up to 100 times. They resume from the
last checkpoint. A user's mistake (status 2) is not retried.

Tested on Ray 2.60.0 with CPU workers on one machine (docs/scaling.md). --gpu and --tpu have never been run.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from typing import Any, NoReturn


def work(options: dict[str, Any]) -> int:
    """Runs `jaxvision.main` in each worker; returns its exit status, or raises so that Ray restarts all workers."""
    from ray import train, util
    from ray.train.collective import broadcast_from_rank_zero

    context = train.get_context()
    address = None
    if context.get_world_rank() == 0:
        with socket.socket() as s:  # find a free port
            s.bind(("", 0))
            address = f"{util.get_node_ip_address()}:{s.getsockname()[1]}"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": broadcast_from_rank_zero(address),
        "JAX_NUM_PROCESSES": str(context.get_world_size()),
        "JAX_PROCESS_ID": str(context.get_world_rank()),
    }
    # A separate process, because Ray calls this function in a thread, and only main threads handle signals. `setpriv`
    # ends it with its worker.
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "jaxvision.main", *options["flags"]]
    status = subprocess.run(command, env=environment, cwd=options["folder"], check=False).returncode
    if status not in (0, 2):
        raise RuntimeError(f"jaxvision.main ended with status {status}")  # Ray restarts all workers
    return status


class Parser(argparse.ArgumentParser):
    """A parser that prints an error as one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. Put the flags of the run after -- (see {self.prog} --help).\n")


def main() -> int:
    """Starts the workers and returns their exit status, 0 or 2."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--gpu", action="store_true", help="give each worker one GPU")
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="TPU slice, such as 4x4, with one worker per host")
    parser.add_argument("--accelerator", metavar="TYPE", help="type of the TPU slice, such as TPU-V5E")
    parser.add_argument("flags", nargs="+", help="-- and the flags of python -m jaxvision.main")
    options = parser.parse_args()

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxConfig, JaxTrainer

    tpu = {"use_tpu": True, "topology": options.tpu, "accelerator_type": options.accelerator} if options.tpu else {}
    trainer = JaxTrainer(
        work,
        train_loop_config={"flags": options.flags, "folder": os.getcwd()},
        jax_config=JaxConfig(),  # without a backend: Ray would not connect CPUs, and would lock the TPUs
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu, **tpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=100)),
    )
    return trainer.fit().return_value


if __name__ == "__main__":
    sys.exit(main())
