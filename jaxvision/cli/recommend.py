"""``jaxvision recommend``: which model to take for a set of images and a device, and why."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from jaxvision.cli.arguments import path_argument, warn
from jaxvision.errors import printable_line

HELP = "recommend a model for your images and your device, with reasons"
EXAMPLES = """The answer follows a short decision tree: EfficientNet-Lite or B0 for phones, EfficientNet-B0 or B1 for
fast inference, a ViT for more than 100,000 images, ViT-B or EfficientNet-B4 on a GPU with 16 GB or more, and ResNet-50
for everything else. The rest of the list are the most accurate models at the same cost, half of it, a quarter and so
on. Neither a network nor a GPU is needed.

examples:
  jaxvision recommend --data photos
  jaxvision recommend --data photos --device t4 --license apache-2.0
  jaxvision recommend --data photos --metric speed --latency 20
  jaxvision recommend --data photos --try 3
  jaxvision recommend --images 500000 --device h100 --max-params 30M"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision recommend``."""
    parser.add_argument(
        "--data", type=path_argument, metavar="FOLDER", help="your images: a folder with one folder per class"
    )
    parser.add_argument("--images", type=int, metavar="N", help="number of images, if there is no folder yet")
    parser.add_argument(
        "--device",
        help="what trains the model: a GPU such as t4 or h100, a TPU such as v5e, a memory such as 8GB, or cpu; or "
        "what will use it: phone or raspberrypi (default: the device that JAX sees here)",
    )
    parser.add_argument(
        "--metric", help="what counts most: accuracy, speed or size (default: a balance, by the decision tree)"
    )
    parser.add_argument(
        "--latency",
        type=float,
        nargs="?",
        const=math.inf,
        metavar="MS",
        help="measure the time of one image on this machine (a few seconds per model), and exclude models that take "
        "more than MS milliseconds",
    )
    parser.add_argument(
        "--license",
        help="only weights with this license; a shell pattern, such as apache-2.0, or '*' for any license (default: "
        "those that are free for any use, without non-commercial ones)",
    )
    parser.add_argument("--max-params", metavar="N", help="only models with at most N parameters, such as 30M")
    parser.add_argument(
        "--try",
        dest="tries",
        type=int,
        metavar="N",
        help="probe the N best on a sample of --data (about 1,000 images, more if there are many classes) and rank "
        "them by their accuracy there; downloads their weights",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the recommendation."""
    from jaxvision.advice import recommend
    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(warn)
    answer = recommend(
        arguments.data,
        images=arguments.images,
        device=arguments.device,
        metric=arguments.metric,
        latency=arguments.latency,
        license=arguments.license,
        max_params=arguments.max_params,
        tries=arguments.tries,
        log=lambda text: print(text, file=sys.stderr),
    )
    if arguments.json:
        print(json.dumps(answer.as_dict()))
    else:
        _print(answer, arguments.images)


def _print(answer: Any, images: int | None) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True, width=200)  # Lines wrap in the terminal; cells do not.
    found = answer.images or (f"{images:,} images" if images else "none given; --data FOLDER counts them")
    console.print(f"images   {printable_line(str(found))}", markup=False)
    console.print(f"device   {answer.target}\n", markup=False)
    console.print(_table(answer.rows))
    console.print()
    for sentence in answer.reasons:
        console.print(sentence, markup=False)
    if answer.notes:
        console.print()
    for sentence in answer.notes:
        console.print(f"- {printable_line(sentence)}", markup=False)
    titles = ("features once and a linear classifier on them", "fine-tuning")
    for title, command in zip(titles, answer.commands, strict=True):
        console.print(f"\n{title}:\n  {command}", markup=False)
    star = " *: weights on this machine." if any(row.is_offline for row in answer.rows) else ""
    console.print(
        "\ntop-1: published for ImageNet, at px. memory: estimate for a training step (/2: in 2 microbatches). "
        f"images/s, time: bounds at the device's peak; real training is slower.{star}"
    )


def _parts(row: Any) -> str:
    return f" /{row.accumulate}" if row.accumulate > 1 else ""


def _table(rows: Any) -> Any:
    """Returns the table; a column in which every cell is empty is left out."""
    from rich.table import Table

    from jaxvision.advice.words import time_text
    from jaxvision.plan import GIB
    from jaxvision.report.wording import value

    columns: dict[str, list[str]] = {
        "model": [f"{row.name}{' *' if row.is_offline else ''}" for row in rows],
        "your images": ["" if row.trial is None else str(row.trial) for row in rows],
        "top-1": [f"{row.top1:.1f}" for row in rows],
        "px": [str(row.image_size) for row in rows],
        "params M": [f"{row.params / 1e6:.1f}" for row in rows],
        "MACs G": [f"{row.macs / 1e9:.2f}" for row in rows],
        "memory GiB": [f"{row.training_bytes / GIB:.1f}{_parts(row)}" for row in rows],
        "images/s": [
            "" if (x := row.images_per_second) is None else f"<{value('images_per_second', x)}" for row in rows
        ],
        "time": ["" if (x := row.training_seconds) is None else f">{time_text(x)}" for row in rows],
        "latency ms": ["" if row.latency is None else str(row.latency) for row in rows],
        "license": [row.license for row in rows],
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    for title in shown:
        table.add_column(title, justify="left" if title in ("model", "license") else "right")
    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)
    return table
