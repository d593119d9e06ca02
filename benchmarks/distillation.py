"""Compares a student with and without a teacher at equal time.

    python benchmarks/distillation.py --teacher runs/lite0 --workdir runs/distillation

The student is that of configs/cifar10_cpu.py. The teacher is the workdir of a finished run on CIFAR-10, for example of
a fine-tuned tf_efficientnet_lite0. Every run is a process of its own, and its time is all that a user waits for: start,
compilation, the teacher's pass over the images, training, evaluation and export.

First, short runs measure the time of a step and of everything else. Then the plain student trains for --steps, and each
distilled student for as many steps as fit into the same time. ``cached`` computes the teacher's outputs once, before
the first step (`teacher.cache`); ``in each step`` computes them for the augmented images. A distilled student has no
label smoothing; ``no smoothing`` is the plain student without it. Flags ``--config.KEY=VALUE`` apply to all runs, such
as --config.source.data_dir=DIRECTORY. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "cifar10_cpu.py"


@dataclass(frozen=True)
class Result:
    """One run: its steps, seconds from start to exit, seconds per step, and accuracy on the test data."""

    steps: int
    seconds: float
    step_seconds: float
    top1: float


def train(workdir: Path, steps: int, flags: list[str]) -> Result:
    """Returns the result of a run, which is started from scratch."""
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "-m", "jaxvision.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    options = [f"--config.train.steps={steps}", "--config.train.evaluate_every=1000.0"]  # evaluates the last step only
    begin = time.monotonic()
    subprocess.run([*command, *options, *flags], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    seconds = time.monotonic() - begin
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    step_seconds = median(line["step_seconds"] for line in lines if line["split"] == "train")
    return Result(steps, seconds, step_seconds, lines[-1]["top1"])


def kinds_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """Returns the flags of each kind of run."""
    teacher = {"name": options.teacher.resolve(), "weight": options.weight, "temperature": options.temperature}
    if options.teacher_size:
        teacher["image_size"] = options.teacher_size
    # The teacher's probabilities take the place of label smoothing.
    distilled = ["--config.loss.label_smoothing=0.0", *(f"--config.teacher.{key}={x}" for key, x in teacher.items())]
    plain = {"plain": [], "no smoothing": ["--config.loss.label_smoothing=0.0"]}
    kinds = {**plain, "cached": [*distilled, "--config.teacher.cache=True"]}
    return kinds | ({"in each step": distilled} if options.in_step else {})


def main() -> None:
    """Prints a table with one row for each kind of run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="workdir or exported folder of the teacher")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for the runs; runs in it are replaced")
    parser.add_argument("--steps", type=int, default=2344, help="steps of the plain run (default: 2344, six epochs)")
    parser.add_argument("--weight", type=float, default=0.7, help="teacher.weight (default: 0.7)")
    parser.add_argument("--temperature", type=float, default=2.0, help="teacher.temperature (default: 2)")
    parser.add_argument("--teacher-size", type=int, help="teacher.image_size (default: the teacher's own)")
    parser.add_argument("--in-step", action="store_true", help="also run the teacher in each step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds to average over (default: 0)")
    parser.add_argument("--calibration", type=int, default=50, help="steps of the short runs (default: 50)")
    options, flags = parser.parse_known_args()
    kinds = kinds_of(options)

    short = {kind: train(options.workdir / "short", options.calibration, [*own, *flags]) for kind, own in kinds.items()}
    other = {kind: run.seconds - run.steps * run.step_seconds for kind, run in short.items()}
    budget = other["plain"] + options.steps * short["plain"].step_seconds
    steps = {kind: max(round((budget - other[kind]) / run.step_seconds), 1) for kind, run in short.items()}
    steps["plain"] = options.steps

    for kind, run in short.items():
        print(f"{kind}: {run.step_seconds:.3f} s per step and {other[kind]:.0f} s for everything else", flush=True)
    print(f"{'student':<14}{'steps':>7}{'seconds':>9}{'top-1':>9}   by seed")
    for kind, own in kinds.items():
        runs = []
        for seed in options.seeds:
            workdir = options.workdir / f"{kind.replace(' ', '_')}_{seed}"
            runs.append(train(workdir, steps[kind], [*own, *flags, f"--config.seed={seed}"]))
        seconds, top1 = mean(run.seconds for run in runs), [run.top1 for run in runs]
        by_seed = " ".join(f"{x:.2%}" for x in top1)
        print(f"{kind:<14}{steps[kind]:>7,}{seconds:>9,.0f}{mean(top1):>9.2%}   {by_seed}", flush=True)


if __name__ == "__main__":
    main()
