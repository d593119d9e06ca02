"""``jaxvision convert``: weights in the format that timm reads."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from jaxvision.cli.arguments import (
    add_overwrite_argument,
    check_is_no_workdir,
    check_outputs,
    load_model,
    path_argument,
    warn,
)
from jaxvision.errors import UserError, count

if TYPE_CHECKING:
    from jaxvision.classifier import Classifier

HELP = "convert a run, a checkpoint or a weight file to the format of timm"
EXAMPLES = """A run that was stopped for good has checkpoints, but no export. Its best checkpoint by the validation data
is converted, or without validation data the newest one.

examples:
  jaxvision convert runs/mine mine-timm
  jaxvision convert runs/stopped mine-timm --step newest
  jaxvision convert resnet50.a1_in1k gray.safetensors --in-channels 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision convert``."""
    parser.add_argument(
        "model",
        type=path_argument,
        metavar="WORKDIR|NAME",
        help="workdir of a run, its export folder, or the name of a model",
    )
    parser.add_argument(
        "output",
        type=path_argument,
        metavar="OUTPUT",
        help="a folder (for model.safetensors and config.json), or a file that ends in .safetensors, which holds only "
        "the weights",
    )
    add_overwrite_argument(parser)
    parser.add_argument("--to", default="timm", choices=["timm"], help="format of the output (default: timm)")
    parser.add_argument(
        "--checkpoint",
        type=path_argument,
        metavar="FILE",
        help="read the weights of NAME from this file in timm's format instead of the hub",
    )
    parser.add_argument(
        "--step",
        metavar="newest|best|STEP",
        help="convert this checkpoint of the run in WORKDIR (default: its export, if the run is finished)",
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
    check_is_no_workdir(output)
    is_file = output.suffix == ".safetensors"
    check_outputs([output] if is_file else [output / "model.safetensors", output / "config.json"], arguments)
    classifier, step = _load(arguments)
    if is_file:
        save_timm(classifier.model, output)
        warn(
            f"{output} holds only the weights, without the names of the classes, the transform and the kind of "
            f"probabilities ({classifier.probabilities}). To keep them, give a folder as OUTPUT."
        )
    else:
        save_classifier(output, classifier)
    of_step = "" if step is None else f", step {step:,} of {arguments.model}"
    model = classifier.model
    print(
        f"{output}: {model.architecture} with {count(model.num_classes, 'class', 'classes')}{of_step}, in timm's format"
    )


def _load(arguments: argparse.Namespace) -> tuple[Classifier, int | None]:
    """Returns the model to convert, and its step if it is that of a checkpoint."""
    from jaxvision.checkpoint import saved_steps
    from jaxvision.weights.folder import read_export

    workdir, step = Path(arguments.model), arguments.step
    is_stopped = bool(saved_steps(workdir)) and read_export(workdir / "export") is None
    if step is None and not is_stopped:
        return load_model(arguments), None
    for option in ("checkpoint", "num_classes", "image_size", "in_channels"):
        if getattr(arguments, option) is not None:
            raise UserError(
                f"--{option.replace('_', '-')}: got {getattr(arguments, option)} for a checkpoint of a run, which has "
                "its own. Remove it, and convert the result again if necessary."
            )
    if step not in (None, "newest", "best") and not _is_number(step):
        raise UserError(f"--step: got {step!r}, expected newest, best or the number of a step.")
    from jaxvision.run.unfinished import load_checkpoint

    return load_checkpoint(workdir, step=int(step) if step and _is_number(step) else step, log=warn)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
