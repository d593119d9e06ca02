"""``jaxvision predict``: labels and probabilities of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any, TypeVar

from jaxvision.cli.arguments import add_model_arguments, add_tta_argument, load_ensemble, warn
from jaxvision.cli.images import ImageInputs, add_images_argument
from jaxvision.errors import UserError, printable_line

T = TypeVar("T")

HELP = "predict the labels of images, with their probabilities"
EXAMPLES = """examples:
  jaxvision predict --model resnet50.a1_in1k photo.jpg
  jaxvision predict --model runs/mine images/ --top 1 --json
  jaxvision predict -m runs/a -m runs/b --weights 2,1 --tta flip images/
  find images -name '*.jpg' | jaxvision predict --model runs/mine -"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision predict``."""
    add_images_argument(parser)
    add_model_arguments(parser, several=True)
    add_tta_argument(parser)
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="images per step, over all devices (default: 32 for each)"
    )
    parser.add_argument("--top", type=int, default=5, help="number of labels per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line and image")


def run(arguments: argparse.Namespace) -> int:
    """Prints the most likely labels of each image. Returns 1 if some images cannot be read, 2 if none can."""
    import numpy as np

    from jaxvision.errors import memory_errors_as_user_errors
    from jaxvision.eval.predict import predict_files
    from jaxvision.parallel.accelerators import check_accelerator

    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size: got {arguments.batch_size}, expected 1 or more.")
    if arguments.top < 1:
        raise UserError(f"--top: got {arguments.top}, expected 1 or more.")
    check_accelerator(warn)
    inputs = ImageInputs(arguments.images)
    ensemble = load_ensemble(arguments)
    results = predict_files(ensemble, inputs.files, batch_size=arguments.batch_size)
    with memory_errors_as_user_errors("Set a smaller --batch-size."), closing(results):
        for file, probabilities in inputs.readable(_with_progress(results, len(inputs.files))):
            order = np.argsort(-probabilities)[: arguments.top]
            top = [
                {"label": ensemble.classes[i], "index": int(i), "probability": float(probabilities[i])} for i in order
            ]
            if arguments.json:
                print(_json({"image": str(file), "predictions": top}), flush=True)
            else:
                rows = (f"  {row['probability']:7.2%}  {printable_line(row['label'])}" for row in top)
                print("\n".join([printable_line(str(file)), *rows]), flush=True)
    return inputs.status


def _with_progress(results: Iterable[T], images: int) -> Iterator[T]:
    """Yields the results, and shows how many there are on standard error if they are many and go elsewhere."""
    from jaxvision.report import show_progress
    from jaxvision.report.terminal import is_terminal

    if images <= 32 or is_terminal(sys.stdout):  # on a terminal the results themselves are the progress
        yield from results
        return
    with show_progress("predict", images, unit="images") as update:
        for done, result in enumerate(results, 1):
            yield result
            update(done)


def _json(value: Any) -> str:
    """Returns JSON in one line, with escapes if standard output cannot encode a character."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # such as a name that is not UTF-8; its escapes give the same name when read back
        return json.dumps(value)
    return text
