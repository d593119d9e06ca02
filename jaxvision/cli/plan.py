"""``jaxvision plan``: memory and time of a config's train step on devices that this machine does not have."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from typing import Any

from jaxvision.cli.arguments import path_argument, split_overrides
from jaxvision.errors import count

HELP = "predict the memory and time of a train step on TPUs or GPUs"
EXAMPLES = """examples:
  jaxvision plan --config configs/vit_base.py --topology v5e:2x4
  jaxvision plan --config configs/resnet50.py --device a100-40g --config.data.batch_size=256
  jaxvision plan --config configs/vit_base.py --device h100:8 --config.data.batch_size=1024"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision plan``."""
    parser.add_argument(
        "--config",
        required=True,
        type=path_argument,
        metavar="FILE",
        help="the config, as for training; --config.SECTION.KEY=VALUE overrides a key",
    )
    parser.add_argument(
        "--topology",
        metavar="TPU[,TPU...]",
        help="TPUs, such as v5e:2x4, v5e:16x16, v6e:1x1 or v5p:4x4x4; several give a table that compares them, with "
        "the config's batch on the first and as many images per chip on the others",
    )
    parser.add_argument(
        "--device",
        metavar="GPU[:N]",
        help="a GPU, such as a100-40g, h100 or rtx4090, or its memory, such as 8GB, and how many of them one machine "
        "has, such as h100:8",
    )
    parser.add_argument("--num-classes", type=int, default=1000, help="classes of the dataset (default: 1000)")
    parser.add_argument("--in-channels", type=int, default=3, help="channels of the images (default: 3)")
    parser.add_argument(
        "--stored",
        type=int,
        metavar="PIXELS",
        help="side of small images that are kept in memory and cropped on the device (default: workers crop images)",
    )
    parser.add_argument(
        "--no-search", action="store_true", help="do not search for a better mesh or for the largest batch"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile for TPUs with the least effort: much faster for a convnet, less accurate",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Prints the plan. Returns 1 if the step does not fit into memory."""
    overrides = split_overrides(arguments.overrides)
    from jaxvision.parallel.accelerators import accelerators

    if arguments.topology is not None or "gpu" not in accelerators():
        os.environ["JAX_PLATFORMS"] = "cpu"  # The devices are only compiled for; those of this machine are left alone.
    from jaxvision import run as runs
    from jaxvision.run.config import complete, load

    config = complete(load(arguments.config), overrides)
    options = {
        "num_classes": arguments.num_classes,
        "channels": arguments.in_channels,
        "stored": arguments.stored,
        "compare": not arguments.no_search,
        "quick": arguments.quick,
        "log": lambda text: print(text, file=sys.stderr),
    }
    topologies = (arguments.topology or "").split(",")
    if len(topologies) > 1:
        answers = runs.plan_scaling(config, topologies, **options)
        if arguments.json:
            print(_json({name: answer.as_dict() for name, answer in answers.items()}))
        else:
            _print_scaling(config.model.name, answers)
        return 0 if all(answer.plans[0].fits for answer in answers.values()) else 1
    answer = runs.plan(
        config, topology=arguments.topology, device=arguments.device, search=not arguments.no_search, **options
    )
    if arguments.json:
        print(_json(answer.as_dict()))
    else:
        _print_plan(config.model.name, answer)
    return 0 if answer.plans[0].fits else 1


def _json(value: Any) -> str:
    """Returns JSON with null for infinity."""
    return re.sub(r"\bInfinity\b", "null", json.dumps(value))


def _grid(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _milliseconds(seconds: float | None) -> str:
    return f"{1000 * seconds:.2f}" if seconds else ""


def _print_scaling(name: str, answers: dict[str, Any]) -> None:
    """Prints a table with one row per topology and mesh."""
    from rich.console import Console

    from jaxvision.parallel.mesh import mesh_text
    from jaxvision.plan import GIB

    console = Console(highlight=False, soft_wrap=True, width=160)  # The default width for a file, 80, breaks words.
    columns = "images", "GiB", "compute, ms", "memory, ms", "links, ms", "collectives", "efficiency"
    rows = _grid(f"{name}: one step, by topology", "topology", "mesh", *columns)
    for topology, answer in answers.items():
        for plan in answer.plans:
            mesh, seconds = mesh_text(plan.mesh, zero1=plan.zero1), plan.seconds
            parts = [_milliseconds(seconds.get(part)) for part in ("compute", "memory", "interconnect")]
            collectives = str(sum(row.count for row in plan.collectives)) if seconds else "does not fit"
            share = "{:.0%} to {:.0%}".format(*plan.efficiency) if plan.efficiency else ""
            requested = answer.requested_batch_size
            rounded = "" if plan.batch_size == requested else f" (for {requested:,})"
            rows.add_row(
                topology, mesh, f"{plan.batch_size:,}{rounded}", f"{plan.total / GIB:.2f}", *parts, collectives, share
            )
    console.print(rows)
    console.print(
        "efficiency: share of the step that is not spent on communication, without overlap and with full overlap"
    )
    _print_assumptions(console, next(iter(answers.values())))


def _print_plan(name: str, answer: Any) -> None:
    """Prints the plan of one topology or GPU: memory, collectives, time, and the meshes compared."""
    from rich.console import Console

    from jaxvision.parallel.mesh import mesh_text

    console, plan = Console(highlight=False, soft_wrap=True), answer.plans[0]
    devices, mesh = math.prod(plan.mesh.values()), mesh_text(plan.mesh, zero1=plan.zero1)
    console.print(f"{name}: {count(plan.batch_size, 'image')} per step on {devices} x {plan.chip.name} ({mesh})")
    if plan.batch_size != answer.requested_batch_size:
        console.print(
            f"the config's batch of {answer.requested_batch_size:,} is not divisible by these devices; this is the "
            "next larger batch that is"
        )
    _print_memory(console, answer)
    if plan.collectives:
        _print_collectives(console, plan)
    if plan.seconds:
        _print_time(console, plan)
    if len(answer.plans) > 1:
        _print_meshes(console, answer)
    console.print(f"\nassumptions (compiled in {plan.compile_seconds:.0f} s)")
    _print_assumptions(console, answer)


def _print_memory(console: Any, answer: Any) -> None:
    from jaxvision.plan import GIB

    plan = answer.plans[0]
    devices = math.prod(plan.mesh.values())
    rows = _grid("\nmemory of one device", "", "GiB")
    for kind, n in plan.bytes.items():
        if n:
            rows.add_row(kind, f"{n / GIB:.3f}")
    rows.add_row("total", f"{sum(plan.bytes.values()) / GIB:.3f}")
    rows.add_row("before the first step", f"{plan.start / GIB:.3f}")
    rows.add_row("after the last step", f"{plan.end / GIB:.3f}")
    rows.add_row("available", f"{plan.chip.memory / GIB:.3f}")
    console.print(rows)
    if plan.fits:
        console.print("fits")
    else:
        console.print(
            f"does NOT fit: needs {plan.total / GIB:.1f} GiB, the device has {plan.chip.memory / GIB:.1f} GiB"
        )
    if not plan.fits and len(answer.plans) == 1:
        fixes = [
            "a smaller --config.data.batch_size",
            "--config.train.accumulate=4 (microbatches)",
            "--config.train.remat=nothing",
        ]
        if devices > 1:
            fixes.append("--config.mesh.data=1 --config.mesh.fsdp=-1, or omit --no-search to compare meshes")
        console.print(f"try {'; '.join(fixes)}")
    if answer.largest is not None:
        tried = ", ".join(f"{batch:,}: {n / GIB:.2f} GiB" for batch, n in sorted(answer.tried.items()))
        console.print(f"largest batch that fits: {answer.largest:,} ({len(answer.tried)} compiled: {tried})")


def _print_collectives(console: Any, plan: Any) -> None:
    rows = _grid("\ncollectives of a step, sent by one device", "kind", "axis", "count", "array MiB", "sent MiB")
    for row in plan.collectives:
        rows.add_row(row.kind, row.axis, str(row.count), f"{row.bytes / 2**20:.2f}", f"{row.sent / 2**20:.2f}")
    console.print(rows)


def _print_time(console: Any, plan: Any) -> None:
    from jaxvision.plan import GIB

    rows = _grid("\na step at the chip's peak", "", "amount on one device", "ms")
    amounts = {
        "compute": f"{plan.flops / 1e12:.3f} TFLOP",
        "memory": f"{plan.bytes_accessed / GIB:.2f} GiB",
        "interconnect": f"{sum(row.sent for row in plan.collectives) / GIB:.3f} GiB",
    }
    for part, seconds in plan.seconds.items():
        rows.add_row(part, amounts[part], _milliseconds(seconds))
    console.print(rows)
    bound = max(plan.seconds, key=plan.seconds.get)
    rate = plan.batch_size / plan.step_seconds
    console.print(f"at least {1000 * plan.step_seconds:.2f} ms per step ({rate:,.0f} images/s), limited by {bound}")
    if plan.collectives:
        console.print(f"{_milliseconds(plan.seconds_without_overlap)} ms if computation waits for every collective")
    console.print(f"MFU at most {plan.mfu:.0%}")
    console.print(
        f"at most {3600 * rate / 1e6:,.1f} million images per hour: "
        "images of the dataset x epochs / this = the least hours to rent"
    )


def _print_meshes(console: Any, answer: Any) -> None:
    from jaxvision.parallel.mesh import mesh_text
    from jaxvision.plan import GIB

    rows = _grid("\nmeshes, best first", "mesh", "GiB", "ms", "ms without overlap", "fits")
    for plan in answer.plans:
        times = _milliseconds(plan.step_seconds), _milliseconds(plan.seconds_without_overlap)
        mesh = mesh_text(plan.mesh, zero1=plan.zero1)
        rows.add_row(mesh, f"{plan.total / GIB:.3f}", *times, "yes" if plan.fits else "no")
    console.print(rows)
    console.print(f"choose the first with {answer.plans[0].flags}")


def _print_assumptions(console: Any, answer: Any) -> None:
    for line in answer.assumptions:
        console.print(f"- {line}")
