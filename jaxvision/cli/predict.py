"""``jaxvision predict``: labels and probabilities of images."""

from __future__ import annotations

import argparse
import json
import sys

from jaxvision.cli.arguments import add_model_arguments, image_files, load_model, warn
from jaxvision.cli.exit import MISTAKE
from jaxvision.errors import UserError

HELP = "predict the labels of images, with their probabilities"
EXAMPLES = """examples:
  jaxvision predict --model resnet50.a1_in1k photo.jpg
  jaxvision predict --model runs/mine images/ --top 1 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision predict``."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    add_model_arguments(parser)
    parser.add_argument("--top", type=int, default=5, help="number of labels per image (default: 5)")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per line and image")


def run(arguments: argparse.Namespace) -> int:
    """Prints the most likely labels of each image. Returns 2 if some images cannot be read."""
    import jax
    import numpy as np

    from jaxvision.parallel.accelerators import check_accelerator

    if arguments.top < 1:
        raise UserError(f"--top: got {arguments.top}, expected 1 or more.")
    check_accelerator(warn)
    files = list(image_files(arguments.images))
    classifier = load_model(arguments)
    if not classifier.classes:
        raise UserError(
            f"--model: got {arguments.model}, which has no head, expected a classifier. "
            "For its features use jaxvision.create_model in Python."
        )
    forward = jax.jit(lambda model, images: jax.nn.softmax(model(images).astype("float32")))
    status = 0
    for file in files:
        try:
            images = classifier.images([file])
        except UserError as e:  # The other images still get their predictions.
            print(f"error: {e}", file=sys.stderr)
            status = MISTAKE
            continue
        probabilities = np.asarray(forward(classifier.model, images))[0]
        order = np.argsort(-probabilities)[: arguments.top]
        top = [{"label": classifier.classes[i], "index": int(i), "probability": float(probabilities[i])} for i in order]
        if arguments.json:
            print(json.dumps({"image": str(file), "predictions": top}, ensure_ascii=False), flush=True)
        else:
            print(file)
            for row in top:
                print(f"  {row['probability']:7.2%}  {row['label']}", flush=True)
    return status
