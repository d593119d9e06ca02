"""``jaxvision convert``: weights in the format that timm reads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jaxvision.cli.arguments import load_model, path_argument
from jaxvision.errors import UserError

HELP = "convert a finished run or a weight file to a folder or file that timm reads"
EXAMPLES = """examples:
  jaxvision convert runs/mine mine-timm
  jaxvision convert resnet50.a1_in1k gray.safetensors --in-channels 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision convert``."""
    parser.add_argument(
        "model",
        type=path_argument,
        metavar="WORKDIR|NAME",
        help="workdir of a finished run, its export folder, or the name of a model",
    )
    parser.add_argument(
        "output",
        type=path_argument,
        metavar="OUTPUT",
        help="a folder (for model.safetensors and config.json), or a file that ends in .safetensors",
    )
    parser.add_argument("--to", default="timm", choices=["timm"], help="format of the output (default: timm)")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        metavar="FILE",
        help="read the weights of NAME from this file in timm's format instead of the hub",
    )
    parser.add_argument("--num-classes", type=int, help="number of classes of the head (default: the weights' own)")
    parser.add_argument(
        "--image-size",
        type=int,
        help="side of the input in pixels; the position embedding of a ViT is resampled (default: the weights' own)",
    )
    parser.add_argument(
        "--in-channels", type=int, help="channels of the input; the first convolution is adapted (default: 3)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder or file, and prints what it holds."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # Nothing is computed.
    from jaxvision.classifier import save_classifier
    from jaxvision.weights.timm import save_timm

    output = Path(arguments.output)
    if output.suffix in (".pth", ".pt", ".bin", ".ckpt", ".h5", ".npz", ".onnx"):
        raise UserError(f"{output}: expected a folder, or a file that ends in .safetensors.")
    if (output / "metrics.jsonl").exists() or (output / "checkpoints").exists():
        raise UserError(
            f"{output} is the workdir of a run, and convert would overwrite its config.json. Choose another folder."
        )
    classifier = load_model(arguments)
    if output.suffix == ".safetensors":
        save_timm(classifier.model, output)
    else:
        save_classifier(output, classifier)
    print(f"{output}: {classifier.model.architecture} with {classifier.model.num_classes} classes, in timm's format")
