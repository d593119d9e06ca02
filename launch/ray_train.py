"""Trains on a Ray cluster, one process of `python -m jaxvision.main` for each of Ray Train's workers.

    python launch/ray_train.py --workers 2 -- --config configs/vit_base.py --workdir /shared/run
    python launch/ray_train.py --workers 8 --gpu -- --config ...                                    one GPU each
    python launch/ray_train.py --workers 4 --tpu 4x4 --accelerator TPU-V5E -- --config ...          one host each

Everything after ``--`` is the command line of ``python -m jaxvision.main``. The workdir lies where all workers see it.
Needs ``pip install 'ray[train]'``; the address of a running cluster is taken from RAY_ADDRESS, else Ray starts here.

A worker that is lost, or is told to stop and saves, has all of them started again, up to 100 times: they go on from
the last checkpoint. A mistake of yours is told once, with status 2.

Run for real on Ray 2.60.0 with CPU workers on one machine (docs/scaling.md); --gpu and --tpu were never run.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from typing import Any, NoReturn


def work(options: dict[str, Any]) -> int:
    """Runs in each worker: joins it to the others, and returns the exit status where Ray is not to start it again."""
    from ray import train, util
    from ray.train.collective import broadcast_from_rank_zero

    context = train.get_context()
    address = None
    if context.get_world_rank() == 0:
        with socket.socket() as s:  # a free port
            s.bind(("", 0))
            address = f"{util.get_node_ip_address()}:{s.getsockname()[1]}"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": broadcast_from_rank_zero(address),
        "JAX_NUM_PROCESSES": str(context.get_world_size()),
        "JAX_PROCESS_ID": str(context.get_world_rank()),
    }
    # A process of its own: Ray calls us in a thread, where no signal is heard. It must not outlive its worker.
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "jaxvision.main", *options["flags"]]
    status = subprocess.run(command, env=environment, cwd=options["folder"], check=False).returncode
    if status not in (0, 2):
        raise RuntimeError(f"jaxvision.main ended with status {status}")  # Ray starts all workers again
    return status


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, as everywhere here."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; the run's own flags come after -- (see {self.prog} --help)\n")


def main() -> int:
    """Starts the workers, and returns 0 when all are done."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--gpu", action="store_true", help="a GPU for each worker")
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="such as 4x4: a worker for each host of a TPU slice")
    parser.add_argument("--accelerator", metavar="TYPE", help="of the TPU slice, such as TPU-V5E")
    parser.add_argument("flags", nargs="+", help="-- and the flags of python -m jaxvision.main")
    options = parser.parse_args()

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxConfig, JaxTrainer

    tpu = {"use_tpu": True, "topology": options.tpu, "accelerator_type": options.accelerator} if options.tpu else {}
    trainer = JaxTrainer(
        work,
        train_loop_config={"flags": options.flags, "folder": os.getcwd()},
        jax_config=JaxConfig(),  # Ray itself would join no CPUs, and would take the TPUs for the worker
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu, **tpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=100)),
    )
    return trainer.fit().return_value


if __name__ == "__main__":
    sys.exit(main())
