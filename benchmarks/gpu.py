"""Measures jaxvision on one GPU in at most ten minutes, beside timm on PyTorch in the same run.

    python benchmarks/gpu.py                       # on an H100 or H200; writes gpu.json
    python benchmarks/gpu.py --minutes 30          # a slower GPU
    python benchmarks/gpu.py --tiny                # the same on tiny models, also without a GPU

Needs no installation of jaxvision. Requires JAX for the GPU and, for the columns beside it, PyTorch for the GPU. Beyond
these two:

    pip install flax optax absl-py cloudpickle "etils[epath]" rich safetensors
    pip install timm torchvision

A table is printed last. Its sections:

- parity: a model of each family on the GPU against the CPU, with the same weights and images. The value is the relative
  error of the logits, and of the gradient of all parameters, against float32 on the CPU. The limits are multiples of
  the same error of bfloat16 on the CPU: 2 for bfloat16; 1 for TF32, which has 3 more bits; for float32, which has 16
  more, 1/256, and 1/32 for the gradient, because rounding changes the sign of inputs of a ReLU that are almost 0. With
  --tiny on a CPU, the reference is the default implementation of each layer instead of the CPU's.
- training: jaxvision's train step in bfloat16 with its metrics and AdamW, beside timm with autocast, ``torch.compile``,
  channels_last and fused AdamW. MFU counts the same operations for both, those of `jaxvision plan`.
- inference: the same for the forward pass, with parameters in bfloat16.
- memory: the peak of the train step, as XLA predicts it from the compiled program, as measured, and PyTorch's.
- attention, depthwise: implementations of one layer, with the shapes of ViT-B/16 and EfficientNet-B3.

Each model runs in its own process, because the allocator's peak cannot be reset; tiny models share one. A process that
crashes or takes more than its share of the time leaves the rows that it has measured. The JSON file is rewritten after
each row, so that an interrupted run keeps them too. Tracebacks are in a .log file beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("parity", "training", "inference", "memory", "attention", "depthwise")
# model -> (image size, batch size)
MODELS = {"resnet50": (224, 256), "vit_base_patch16_224": (224, 256), "efficientnet_b3": (300, 128)}
TINY_MODELS = {"test_resnet": (32, 4), "test_vit": (32, 4), "test_efficientnet": (32, 4)}
LIBRARIES = ("jax", "nvidia-", "torch", "triton", "timm", "flax", "optax", "numpy")
NOT_MEASURED = ("failed", "skipped", "too large")  # how the note of such a row begins


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      section: one of `SECTIONS`.
      case: model and shapes.
      measure: what is measured. A row replaces an earlier one of the same section, case and measure.
      unit: unit of the values.
      value: the best round, of jaxvision or of the implementation that `measure` names.
      median: the median round.
      other: what `other_value` is: PyTorch, a limit or another implementation.
      other_value: the value beside it, in its best round.
      other_median: the same, in its median round.
      note: whether it passed, what failed, or why it was skipped.
    """

    section: str
    case: str
    measure: str
    unit: str = ""
    value: float | None = None
    median: float | None = None
    other: str = ""
    other_value: float | None = None
    other_median: float | None = None
    note: str = ""


class Report:
    """The rows of a run, in a JSON file that is complete at any time.

    Args:
      path: the file. It is read again for each row, because several processes add rows in turn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Returns the facts and, as ``rows``, the measurements."""
        return json.loads(self.path.read_text()) if self.path.exists() else {"rows": []}

    def rows(self) -> list[Row]:
        """Returns the measurements."""
        return [Row(**row) for row in self.read()["rows"]]

    def add(self, row: Row) -> None:
        """Adds a row, or replaces the one of the same section, case and measure, and prints it."""
        print(text_of(row), flush=True)
        key = (row.section, row.case, row.measure)
        kept = [old for old in self.rows() if (old.section, old.case, old.measure) != key]
        self.set(rows=[asdict(each) for each in [*kept, row]])

    def set(self, **facts: Any) -> None:
        """Replaces facts, and writes the file in one step."""
        text = json.dumps({**self.read(), **facts}, indent=1)
        partial = self.path.with_suffix(".partial")
        partial.write_text(text)
        os.replace(partial, self.path)


def text_of(row: Row) -> str:
    """Returns a line of the table."""
    ratio = row.value / row.other_value if row.value is not None and row.other_value else None
    other = f"{row.other} {_number(row.other_value)}" if row.other_value is not None else ""
    numbers = f"{_number(row.value):>9} {_number(row.median):>9} {row.unit:9} {other:>22} {_number(ratio):>7}"
    return f"{row.section:10} {row.case:38} {row.measure:26} {numbers}  {row.note}".rstrip()


HEADER = (
    f"{'section':10} {'case':38} {'measure':26} {'best':>9} {'median':>9} {'unit':9} {'beside it':>22} {'ratio':>7}"
)


def _number(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:.2e}" if 0 < abs(x) < 0.01 else f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def main() -> int:
    """Runs each part in a process and prints the table. Returns 1 if a part is missing or exceeds its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny models and 2 iterations, on a GPU or a CPU")
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit; skips what does not fit (default: 10)")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file to write (default: gpu.json)")
    parser.add_argument("--parts", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    report = Report(args.json)
    if args.parts:
        import gpu_parts  # imports JAX, which this process does not need

        gpu_parts.measure(args.parts, report, tiny=args.tiny)
        return 0

    args.json.unlink(missing_ok=True)
    report.set(tiny=args.tiny, minutes=args.minutes, **machine())
    for name, fact in report.read().items():
        if name != "rows":
            print(f"{name}: {fact}", flush=True)
    if not has_torch():
        print(
            'PyTorch or timm is not installed, so their columns stay empty. Run "pip install torch torchvision timm".',
            flush=True,
        )
    run_parts(args, report)
    rows = sorted(report.rows(), key=lambda row: SECTIONS.index(row.section))
    print(f"\n{report.read().get('device', 'no device')}; all rows are in {args.json}")
    print(f"{HEADER}  note", *map(text_of, rows), sep="\n")
    return int(any(row.note.startswith(NOT_MEASURED) for row in rows))


def run_parts(args: argparse.Namespace, report: Report) -> None:
    """Runs each part for at most its share of the remaining time. What it does not use is left to the later ones."""
    parts = parts_of(tiny=args.tiny)
    end = time.monotonic() + 60 * args.minutes
    environment = os.environ | {
        # Otherwise XLA takes three quarters of the GPU's memory when it starts, which PyTorch needs.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    groups = [[part] for part in parts]
    if args.tiny:  # importing and compiling take most of the time
        sys.path.insert(0, str(ROOT / "tests"))
        from support.compile_flags import LEAST_EFFORT

        environment["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *LEAST_EFFORT])
        groups = [[*parts]]
    shares = [sum(parts[part][1] for part in group) for group in groups]
    with open(args.json.with_suffix(".log"), "w") as log:
        for i, group in enumerate(groups):
            seconds = max(end - time.monotonic(), 0.0) * shares[i] / sum(shares[i:])
            command = [sys.executable, __file__, "--json", str(args.json), *["--tiny"] * args.tiny, "--parts", *group]
            status = run_for(seconds, command, env=environment, stderr=log)
            if status is None:
                note = f"skipped: {seconds:.0f} s were up. Run with --minutes {2 * args.minutes:g}"
            else:
                lines = Path(log.name).read_text(errors="replace").splitlines() or [""]
                note = f"failed with status {status}: {lines[-1][:200]}"
            finished = report.read().get("finished", {})
            for part in group:
                for section in parts[part][0]:
                    if section not in finished.get(part, []):
                        report.add(Row(section, part, "what is missing here", note=note))


def run_for(seconds: float, command: list[str], **options: Any) -> int | None:
    """Runs a command and returns its status, or None if it was stopped because the time was up."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also the compilers that torch.compile starts
        process.wait()


def parts_of(*, tiny: bool) -> dict[str, tuple[tuple[str, ...], int]]:
    """Returns the sections of each part, and its share of the time."""
    models = TINY_MODELS if tiny else MODELS
    of_model = ("parity", "training", "memory", "inference")
    return {"layers": (("attention", "depthwise"), 2), **dict.fromkeys(models, (of_model, 3))}


def has_torch() -> bool:
    """Returns whether PyTorch and timm are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm"))


def machine() -> dict[str, Any]:
    """Returns facts about the machine, its GPU's driver and the installed libraries."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm", "--format=csv"]
    gpu = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        gpu = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    versions = {package.name: package.version for package in importlib.metadata.distributions()}
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": f"{platform.platform()}, {len(os.sched_getaffinity(0))} threads, Python {platform.python_version()}",
        "gpu": gpu,
        "versions": {name: version for name, version in sorted(versions.items()) if name.startswith(LIBRARIES)},
    }


if __name__ == "__main__":
    sys.exit(main())
