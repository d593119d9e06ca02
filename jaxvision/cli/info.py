"""``jaxvision info``: the cost of a model by stage."""

from __future__ import annotations

import argparse
import dataclasses
import json

HELP = "show the parameters, multiply-adds, activations and bytes of a model by stage"
EXAMPLES = """examples:
  jaxvision info resnet50
  jaxvision info vit_base_patch16_224 --image-size 384"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision info``."""
    parser.add_argument("name", help="name of a model, such as resnet50")
    parser.add_argument("--image-size", type=int, help="side of the input in pixels (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints the cost of a model."""
    from jaxvision.analysis.cost import model_info

    info = model_info(arguments.name, image_size=arguments.image_size)
    print(json.dumps(dataclasses.asdict(info)) if arguments.json else info)
