"""``jaxvision predict``: labels and probabilities of images."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from jaxvision.cli.arguments import add_model_arguments, add_tta_argument, load_ensemble, warn
from jaxvision.cli.images import ImageInputs, add_images_argument
from jaxvision.errors import UserError, printable_line

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
    parser.add_argument("--top", type=int, default=5, help="number of labels per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line and image")


def run(arguments: argparse.Namespace) -> int:
    """Prints the most likely labels of each image. Returns 1 if some images cannot be read, 2 if none can."""
    import numpy as np

    from jaxvision.parallel.accelerators import check_accelerator

    if arguments.top < 1:
        raise UserError(f"--top: got {arguments.top}, expected 1 or more.")
    check_accelerator(warn)
    inputs = ImageInputs(arguments.images)
    ensemble = load_ensemble(arguments)
    for file, images in inputs.read(ensemble.images):
        probabilities = np.asarray(ensemble.predict(images))[0]
        order = np.argsort(-probabilities)[: arguments.top]
        top = [{"label": ensemble.classes[i], "index": int(i), "probability": float(probabilities[i])} for i in order]
        if arguments.json:
            print(_json({"image": str(file), "predictions": top}), flush=True)
        else:
            print(printable_line(str(file)))
            for row in top:
                print(f"  {row['probability']:7.2%}  {printable_line(row['label'])}", flush=True)
    return inputs.status


def _json(value: Any) -> str:
    """Returns JSON in one line, with escapes if standard output cannot encode a character."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # such as a name that is not UTF-8; its escapes give the same name when read back
        return json.dumps(value)
    return text
