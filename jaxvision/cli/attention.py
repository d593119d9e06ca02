"""``jaxvision attention``: an image of where a model looks."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvision.cli.arguments import (
    add_model_arguments,
    add_overwrite_argument,
    check_outputs,
    load_ensemble,
    load_members,
    path_argument,
    warn,
)
from jaxvision.cli.images import ImageInputs, add_images_argument
from jaxvision.errors import UserError, printable_line, unknown_name_error

if TYPE_CHECKING:
    import numpy as np

    from jaxvision.classifier import Classifier

HELP = "write a PNG that shows where a model looks"
EXAMPLES = """examples:
  jaxvision attention --model vit_base_patch16_224.augreg2_in21k_ft_in1k photo.jpg
  jaxvision attention --model resnet50.a1_in1k photo.jpg --label 'tabby, tabby cat' -o cat.png
  jaxvision attention --model runs/mine images/ -o maps
  jaxvision attention -m runs/a -m runs/b photo.jpg"""

MIN_SIDE = 448  # Smaller images are enlarged to at least this many pixels.


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``jaxvision attention``."""
    add_images_argument(parser)
    add_model_arguments(parser, several=True)
    parser.add_argument(
        "--layer",
        type=int,
        help="show the attention of the class token in this layer of a ViT, -1 for the last "
        "(default: attention rollout over all layers of a ViT, Grad-CAM for a convnet)",
    )
    parser.add_argument(
        "--label",
        help="explain this class with Grad-CAM; only for convolutional networks (default: the predicted class)",
    )
    parser.add_argument(
        "--output",
        "-o",
        type=path_argument,
        help="the PNG to write, or a folder, which is created for several images "
        "(default: IMAGE-attention.png in the current directory)",
    )
    add_overwrite_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Writes each image next to copies with the heat map of each model; prints the file, the class and the methods.

    Returns 1 if some images cannot be read, 2 if none can.
    """
    import numpy as np

    from jaxvision.parallel.accelerators import check_accelerator

    check_accelerator(warn)
    inputs = ImageInputs(arguments.images)
    outputs = _output_files(inputs.files, arguments.output)
    check_outputs(outputs.values(), arguments)
    members = load_members(arguments)
    # A single model without a head can show its attention, too.
    ensemble = load_ensemble(arguments, members) if len(members) > 1 or members[0].classes else None
    coarse = None
    for file, images in inputs.read(ensemble.images if ensemble else lambda files: (members[0].images(files),)):
        probabilities = np.asarray(ensemble.predict(images))[0] if ensemble else None
        panels: list[np.ndarray] = []
        methods = []
        if ensemble and probabilities is not None:
            top = int(probabilities.argmax())
            methods.append(f"predicted {ensemble.classes[top]!r} ({probabilities[top]:.1%})")
        for i, (name, classifier, x) in enumerate(zip(arguments.model, members, images, strict=True)):
            order = ensemble.forward(i).order if ensemble else None
            own = probabilities if probabilities is None or order is None else probabilities[np.argsort(order)]
            heat, method = _heat_map(classifier, x, own, layer=arguments.layer, label=arguments.label)
            pixels = classifier.pixels(file, times=math.ceil(MIN_SIDE / x.shape[1]))
            panels += _panels(pixels, heat)[1 if panels else 0 :]
            methods.append(f"{method}, {name}")
            if min(heat.shape) < 3:
                coarse = f"{name} is only {heat.shape[0]} x {heat.shape[1]} at {x.shape[1]} pixels"
        _write(outputs[file], panels)
        print(printable_line(f"{outputs[file]}: {', '.join(methods)} on {file.name}"), flush=True)
    if coarse:
        warn(f"the map of {coarse}, too coarse to show where it looks. Try a larger --image-size.")
    return inputs.status


def _output_files(files: Sequence[Path], output: str | None) -> dict[Path, Path]:
    """Returns the file to write for each image. Images of the same name in different folders get a number."""
    folder = Path(output or "")
    if output is not None and not folder.is_dir():
        if len(files) == 1:
            return {files[0]: folder}
        if folder.suffix or folder.exists():
            raise UserError(f"--output: got {output} for {len(files)} images, expected a folder.")
        try:
            folder.mkdir(parents=True)
        except OSError as e:
            raise UserError(f"cannot create the folder {output}: {e.strerror or e}") from e
    outputs: dict[Path, Path] = {}
    count: Counter[str] = Counter()
    for file in dict.fromkeys(files):
        count[file.stem] += 1
        number = f"-{count[file.stem]}" if count[file.stem] > 1 else ""
        outputs[file] = folder / f"{file.stem}-attention{number}.png"
    return outputs


def _panels(pixels: np.ndarray, heat: np.ndarray) -> list[np.ndarray]:
    """Returns an image, and the image with a heat map on top, uint8 [h, w, 3]."""
    from jaxvision.analysis.saliency import overlay
    from jaxvision.augment.decoding import to_three_channels

    image = to_three_channels(pixels)
    return [image, overlay(image, heat / max(heat.max(), 1e-12))]


def _write(output: Path, panels: Sequence[np.ndarray]) -> None:
    """Writes images side by side, in the size of the first."""
    import numpy as np
    from PIL import Image

    h, w, _ = panels[0].shape
    same = [
        np.asarray(Image.fromarray(panel).resize((w, h))) if panel.shape[:2] != (h, w) else panel for panel in panels
    ]
    try:
        Image.fromarray(np.concatenate(same, axis=1)).save(output)
    except (OSError, ValueError) as e:
        raise UserError(f"cannot write {output}: {e}") from e


def _heat_map(
    classifier: Classifier, images: Any, probabilities: np.ndarray | None, *, layer: int | None, label: str | None
) -> tuple[np.ndarray, str]:
    """Returns a heat map [h, w] of one image, and the name of the method.

    Args:
      classifier: the model and its classes.
      images: the model's input for one image.
      probabilities: of the classes, float [classes]. None: the model has no head.
      layer: as ``--layer``.
      label: as ``--label``.

    Raises:
      UserError: the model has no such method or class.
    """
    import jax
    import numpy as np

    from jaxvision.analysis.attention import class_attention
    from jaxvision.analysis.saliency import explain

    model = classifier.model
    if layer is not None:
        if model.explanation != "attention rollout":
            raise UserError(f"--layer: {model.architecture} has no attention layers. Use --label instead.")
        heat = class_attention(model, images, layer_idx=layer)
        method = f"attention of layer {layer}"
    elif model.explanation != "Grad-CAM":
        if label is not None:
            raise UserError(
                f"--label: {model.architecture} is explained by {model.explanation}, which does not depend on a class. "
                "Remove --label."
            )
        heat, method = jax.jit(explain)(model, images), model.explanation
    elif probabilities is None:
        raise UserError(f"--model: got {model.architecture} without a head, expected a classifier for Grad-CAM.")
    else:
        chosen = int(probabilities.argmax()) if label is None else _class_index(label, classifier.classes)
        heat = explain(model, images, classes=np.array([chosen]))
        method = f"Grad-CAM for {classifier.classes[chosen]!r} ({probabilities[chosen]:.1%})"
    return np.asarray(heat)[0], method


def _class_index(label: str, classes: Sequence[str]) -> int:
    if label not in classes:
        raise unknown_name_error("--label", label, classes, expected="a class of the model")
    return classes.index(label)
