"""Trains on a Ray cluster, one process for each worker:

    python launch/ray_train.py --workers 2 -- --config configs/vit_base.py --workdir /shared/run

Everything after ``--`` is the command line of ``python -m jaxvision.main``. The workdir lies where all workers see it.
Needs ``pip install 'ray[train]'``; an address of a running cluster is taken from RAY_ADDRESS, else Ray starts here.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def work(options: dict[str, Any]) -> None:
    """Runs in each worker; Ray has joined them to one another by then."""
    from jaxvision.main import main

    status = main(options["flags"])
    if status:
        raise SystemExit(f"jaxvision.main ended with status {status}")


def main() -> int:
    """Starts the workers and returns 0 when all are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="such as 4x4: a worker for each host of a TPU slice")
    parser.add_argument("--accelerator", metavar="TYPE", help="of the TPU slice, such as TPU-V5E")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- and the flags of python -m jaxvision.main")
    options = parser.parse_args()
    flags = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    tpu = {"use_tpu": True, "topology": options.tpu, "accelerator_type": options.accelerator} if options.tpu else {}
    JaxTrainer(
        work,
        train_loop_config={"flags": flags},
        scaling_config=ScalingConfig(num_workers=options.workers, **tpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=-1)),  # the same flags go on where it stopped
    ).fit()
    return 0


if __name__ == "__main__":
    sys.exit(main())
